//! The follower: one session after the other, each under the lease, from the cursor that is read back.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::candidates::{Candidates, Followed};
use super::doubts::DoubtSettings;
use super::error::FollowError;
use super::fetch::NOT_JSON_ATTEMPTS;
use super::inquiry::{Finding, Inquiry, Suspect};
use super::intake::End;
use super::lease::while_telling;
use super::numbering::Numbering;
use super::pauses::{During, Pauses};
use super::same_log::SameLog;
use super::second_reading::RereadingSettings;
use super::session::{Beginning, Session};
use super::step_back::{Step, StepBackError, step_back};
use super::switching::SwitchSettings;
use crate::judge::{BatchJudge, Lines, NotJson};
use crate::live::{Feed, Mode, Status};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::ExportClient;
use did_plc::signature::Verifier;

/// Follows one upstream at a time into one store.
pub struct Follower {
    /// Where operations go.
    pub store: Store,
    /// Where they may come from, in order of preference; at least one.
    pub upstreams: Vec<ExportClient>,
    /// When another one is followed.
    pub switching: SwitchSettings,
    /// Who checks signatures.
    pub verifier: Arc<dyn Verifier>,
    /// Who tells clients of the stream of new operations.
    pub feed: Arc<Feed>,
    /// Where it is said how fresh we are.
    pub status: Arc<Status>,
    /// When the log is read again.
    pub rereading: RereadingSettings,
    /// When the upstream is asked about what was refused.
    pub doubts: DoubtSettings,
    /// Whether it comes before other processes on the same store: it takes the lease as soon as it is free.
    pub comes_first: bool,
}

/// How often a process that reads looks whether it is to take over.
const LOOK: Duration = Duration::from_secs(1);
/// How long it leaves the lease to who has just ended and comes back, or comes first.
const COURTESY: Duration = Duration::from_secs(2);

/// What a follower remembers from one session to the next.
struct Memory {
    pauses: Pauses,
    damaged_line: DamagedLine,
    suspects: Suspects,
}

/// Inquiries about one place that come to nothing, before it is passed: some seconds in which the others get there.
const INQUIRIES: u32 = 5;
/// Numbers that are passed at once at most: a page has a thousand lines, and there may be gaps between them.
const MOST_PASSED: i64 = 100_000;

/// Lines that others were asked about.
#[derive(Debug, Default)]
struct Suspects {
    /// The cursor before them.
    after: i64,
    /// How often.
    asked: u32,
    /// Up to this number they are passed.
    passed: i64,
    /// What another upstream states in place of them.
    instead: Option<Lines>,
}

/// A line that is not JSON, which may have been damaged on its way.
#[derive(Debug, Default)]
struct DamagedLine {
    /// The cursor before it.
    cursor: i64,
    /// How often it was fetched.
    attempts: u32,
}

/// How it goes on after a session.
#[derive(Debug)]
enum Next {
    /// Not at all: the shutdown.
    End,
    /// At once.
    Session,
    /// After a short pause.
    Pause,
    /// After the longest pause that an upstream which cannot be followed is left alone for.
    Rest,
}

impl Follower {
    /// Follows until `shutdown`.
    ///
    /// # Errors
    ///
    /// [`FollowError`]; everything that may pass is waited out.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), FollowError> {
        let mut memory = Memory {
            pauses: Pauses::until(shutdown.clone()),
            damaged_line: DamagedLine::default(),
            suspects: Suspects::default(),
        };
        let mut candidates = Candidates::new(&self.upstreams, self.switching, &self.status);
        // Whether another process follows, as far as it is known.
        let mut reads = false;
        while !shutdown.is_cancelled() {
            let free_for = if reads && !self.comes_first { COURTESY } else { Duration::ZERO };
            let upstream = candidates.client().base();
            let (lease, source) = match self.store.follow_after(upstream, free_for).await {
                Ok(following) => following,
                Err(StoreError::LostLease(reason)) => {
                    if !std::mem::replace(&mut reads, true) {
                        self.begin_to_read(&reason);
                    }
                    memory.pauses.sleep_for(LOOK).await;
                    continue;
                }
                Err(StoreError::Outdated(reason)) => {
                    self.read_on(&reason, &shutdown).await;
                    continue;
                }
                Err(error) => {
                    let sought = self.store.is_sought();
                    memory.pauses.wait_out(error, During::Beginning, sought).await?;
                    continue;
                }
            };
            // Nobody else can commit from here on, and what others have committed can be read.
            if std::mem::take(&mut reads) {
                tracing::info!(cursor = source.cursor, "this process follows from here on");
            }
            self.status.set_following(&source);
            // Of what was committed without this process having heard of it.
            self.feed.wake();
            let under = (&lease, &source);
            let next = self.follow_under(under, &mut candidates, &mut memory, &shutdown).await;
            // Kept, it would keep us out ourselves. One that cannot be given back runs out by itself.
            self.store.release(lease).await.ok();
            match next {
                Ok(Next::End) => return Ok(()),
                Ok(Next::Session) => {}
                Ok(Next::Pause) => memory.pauses.sleep().await,
                Ok(Next::Rest) => {
                    // Another process may follow meanwhile.
                    self.status.set_reading();
                    self.feed.wake();
                    memory.pauses.sleep_for(candidates.client().limits().backoff_longest).await;
                }
                Err(FollowError::Store(error)) => {
                    let sought = self.store.is_sought();
                    memory.pauses.wait_out(error, During::Session, sought).await?;
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Another process has the lease.
    fn begin_to_read(&self, reason: &str) {
        self.status.set_reading();
        self.feed.wake();
        if self.comes_first {
            tracing::warn!(
                "another process follows, though this one comes first: {reason}; it takes over as soon as that one ends"
            );
        } else {
            tracing::info!(
                "another process follows: {reason}; this one reads, and takes over when that one ends"
            );
        }
    }

    /// A newer version of the program has the tables now, which do not go back: this process reads until it ends.
    async fn read_on(&self, reason: &str, shutdown: &CancellationToken) {
        self.status.set_reading();
        self.feed.wake();
        tracing::warn!(
            "{reason}; this process reads on, and follows no more: put one of the newer version in its place"
        );
        shutdown.cancelled().await;
    }

    /// One session under a lease, and what its end calls for.
    async fn follow_under(
        &self,
        (lease, source): (&Lease, &Source),
        candidates: &mut Candidates,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Result<Next, FollowError> {
        let store = &self.store;
        let choosing = candidates.choose((store, lease), source, shutdown);
        if !while_telling((store, &self.status), lease, choosing).await? {
            return Ok(Next::End);
        }
        if self.upstreams.len() == 1 {
            let client = candidates.client();
            let same_log = SameLog { store, client, status: &self.status, shutdown };
            let work = same_log.ensure(lease, source);
            match while_telling((store, &self.status), lease, work).await? {
                None => return Ok(Next::End),
                Some(Numbering::Ours) => {}
                Some(other) => candidates.turn_to(other),
            }
        }
        let end = self.session_while_well((lease, source), candidates, memory, shutdown).await;
        if end.is_err() {
            self.status.set_mode(Mode::Waiting);
        }
        match end? {
            None => {
                candidates.leave();
                memory.suspects = Suspects::default();
                Ok(Next::Session)
            }
            Some(End::Shutdown) => Ok(Next::End),
            Some(End::NotJson { cursor }) => {
                let tries = memory.damaged_line.add_attempt(cursor);
                tracing::warn!(cursor, tries, "a line that is not JSON: it is fetched again");
                Ok(Next::Pause)
            }
            Some(End::Refuted { reason }) => {
                candidates.refute(reason);
                memory.suspects = Suspects::default();
                Ok(Next::Session)
            }
            Some(End::Numbering(numbering)) => {
                candidates.turn_to(numbering);
                Ok(Next::Session)
            }
            Some(End::Suspect(suspect)) => {
                let inquiry = self.inquire(suspect, candidates, &mut memory.suspects);
                while_telling((store, &self.status), lease, inquiry).await
            }
            Some(End::Rewound { cursor, from }) => {
                if !candidates.is_alone()
                    && !while_telling((store, &self.status), lease, candidates.still_has_all(store))
                        .await?
                {
                    return Ok(Next::Session);
                }
                let client = candidates.client();
                let stepping = self.step_back(lease, client, (cursor, from));
                match while_telling((store, &self.status), lease, stepping).await? {
                    true => {
                        candidates.has_stepped_back();
                        Ok(Next::Session)
                    }
                    // It takes dozens of requests each time.
                    false => Ok(Next::Rest),
                }
            }
        }
    }

    /// A session, until another upstream is to be followed: its end, unless that ends it.
    async fn session_while_well(
        &self,
        (lease, source): (&Lease, &Source),
        candidates: &mut Candidates,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Result<Option<End>, StoreError> {
        let ending = shutdown.child_token();
        let followed = candidates.followed();
        let session = self.session((lease, source), &followed, memory, &ending);
        let mut session = pin!(while_telling((&self.store, &self.status), lease, session));
        let ended = tokio::select! {
            biased;
            ended = &mut session => Some(ended),
            () = candidates.watch(&self.store) => None,
        };
        match ended {
            Some(ended) => ended.map(Some),
            None => {
                // In order, so that what was judged is committed and told.
                ending.cancel();
                let end = session.await?;
                let by_this = matches!(end, End::Shutdown) && !shutdown.is_cancelled();
                Ok((!by_this).then_some(end))
            }
        }
    }

    /// Asks others about what does not fit, and what follows from that.
    async fn inquire(
        &self,
        suspect: Suspect,
        candidates: &mut Candidates,
        suspects: &mut Suspects,
    ) -> Result<Next, FollowError> {
        let Suspect { after, through, .. } = suspect;
        // Of what was asked about before, the better lines are stored.
        let suspect = Suspect { after: after.max(suspects.passed), ..suspect };
        suspects.asked = if suspects.after == after { suspects.asked + 1 } else { 1 };
        suspects.after = after;
        let inquiry = Inquiry {
            store: &self.store,
            verifier: &self.verifier,
            followed: candidates.client(),
            others: &candidates.well(),
        };
        match inquiry.ask(suspect).await? {
            Finding::Unknown if suspects.asked < INQUIRIES => return Ok(Next::Pause),
            Finding::Unknown | Finding::Same => {}
            Finding::Better { lines, through, by } => {
                let other = lines.source.as_deref().unwrap_or_default();
                tracing::warn!(
                    after,
                    lines = by,
                    upstream = candidates.client().base(),
                    other,
                    "lines of the upstream do not fit, and those of another one do"
                );
                if candidates.misstates(by, other) {
                    *suspects = Suspects::default();
                    return Ok(Next::Session);
                }
                suspects.instead = Some(lines);
                suspects.passed = through;
                return Ok(Next::Session);
            }
        }
        // A number may be what is wrong.
        suspects.passed = through.min(suspect.after + MOST_PASSED);
        Ok(Next::Session)
    }

    /// Reads, judges and commits from the cursor of the source on.
    async fn session(
        &self,
        (lease, source): (&Lease, &Source),
        followed: &Followed,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let (committed_sender, committed) = watch::channel(0);
        let mut written = committed.clone();
        let (store, verifier) = (self.store.clone(), Arc::clone(&self.verifier));
        let upstream = followed.client.base().to_owned();
        let judge = BatchJudge::new(store, verifier, upstream, committed).await?;
        memory.pauses.begun();
        let beginning = Beginning {
            not_json: memory.damaged_line.what_to_do_at(source.cursor),
            passes_up_to: if followed.alone { i64::MAX } else { memory.suspects.passed },
            instead: memory.suspects.instead.take(),
        };
        let session = Session {
            store: &self.store,
            followed,
            lease,
            feed: &self.feed,
            status: &self.status,
            rereading: self.rereading,
            doubts: &self.doubts,
        };
        let mut running = pin!(session.run(source, (judge, committed_sender), beginning, shutdown));
        tokio::select! {
            biased;
            // Looked at first: a session that ends has written what it has written.
            Ok(()) = written.changed() => memory.pauses.committed(),
            end = &mut running => return end,
        }
        running.await
    }

    /// Puts the cursor back to what the upstream still has. Whatever fails is tried again at the
    /// upstream's next refusal of the cursor. False when it stays where it is.
    async fn step_back(
        &self,
        lease: &Lease,
        client: &ExportClient,
        (cursor, from): (i64, i64),
    ) -> Result<bool, FollowError> {
        let commit = match step_back(&self.store, client, cursor, from).await {
            Ok(Step::Back(commit)) => Some(commit),
            Ok(Step::Renumber) => None,
            Ok(Step::Stay) => return Ok(false),
            Err(StepBackError::Upstream(fault)) => {
                tracing::warn!("to find what the upstream still has: {fault}");
                return Ok(false);
            }
            Err(StepBackError::Store(error)) => return Err(error.into()),
        };
        // A crash before it is written leaves the cursor where it was, and the record unwritten.
        let cursor = match commit {
            Some(commit) => {
                self.store.commit(lease, &commit).await?;
                commit.cursor_after
            }
            None => {
                tracing::warn!(
                    upstream = client.base(),
                    "the upstream has what we hold under other numbers: it is read from its beginning, and its \
                     numbers are taken over"
                );
                self.store.begin_renumbering(lease, client.base()).await?;
                0
            }
        };
        self.status.set_back(cursor);
        self.feed.wake();
        Ok(true)
    }
}

impl DamagedLine {
    /// What to do about a line after this cursor that is not JSON.
    fn what_to_do_at(&self, cursor: i64) -> NotJson {
        let often_enough = self.cursor == cursor && self.attempts >= NOT_JSON_ATTEMPTS;
        if often_enough { NotJson::Keep } else { NotJson::StopBefore }
    }

    /// Counts one after this cursor; how often it was fetched by now.
    fn add_attempt(&mut self, cursor: i64) -> u32 {
        let attempts = if self.cursor == cursor { self.attempts + 1 } else { 1 };
        *self = DamagedLine { cursor, attempts };
        attempts
    }
}
