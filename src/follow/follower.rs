//! The follower: one session after the other, each under the lease, from the cursor that is read back.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::doubts::DoubtSettings;
use super::error::FollowError;
use super::fetch::NOT_JSON_ATTEMPTS;
use super::intake::End;
use super::lease::while_renewing;
use super::pauses::{During, Pauses};
use super::published::Published;
use super::same_log::SameLog;
use super::second_reading::RereadingSettings;
use super::session::Session;
use super::step_back::{Step, StepBackError, step_back};
use crate::judge::{BatchJudge, NotJson};
use crate::live::{Feed, Mode, Status};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::ExportClient;
use did_plc::signature::Verifier;

/// Follows one upstream into one store.
pub struct Follower {
    /// Where operations go.
    pub store: Store,
    /// Where they come from.
    pub client: ExportClient,
    /// Who checks signatures.
    pub verifier: Arc<dyn Verifier>,
    /// Who is told of new operations.
    pub feed: Arc<Feed>,
    /// Where it is said how fresh we are.
    pub status: Arc<Status>,
    /// When the log is read again.
    pub rereading: RereadingSettings,
    /// When the upstream is asked about what was refused.
    pub doubts: DoubtSettings,
}

/// What a follower remembers from one session to the next.
struct Memory {
    published: Arc<Published>,
    pauses: Pauses,
    damaged_line: DamagedLine,
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
            // Made from the store before the first subscriber could come.
            published: Arc::new(Published::up_to(self.status.sequence())),
            pauses: Pauses::until(shutdown.clone()),
            damaged_line: DamagedLine::default(),
        };
        while !shutdown.is_cancelled() {
            let (lease, source) = match self.store.follow(self.client.base()).await {
                Ok(following) => following,
                Err(error) => {
                    let sought = self.store.is_sought();
                    memory.pauses.wait_out(error, During::Beginning, sought).await?;
                    continue;
                }
            };
            // Nobody else can commit from here on, and what others have committed can be read.
            if !memory.published.take_up(&source) {
                self.feed.interrupt();
            }
            let next = self.follow_under(&lease, &source, &mut memory, &shutdown).await;
            // Kept, it would keep us out ourselves. One that cannot be given back runs out by itself.
            self.store.release(lease).await.ok();
            match next {
                Ok(Next::End) => return Ok(()),
                Ok(Next::Session) => {}
                Ok(Next::Pause) => memory.pauses.sleep().await,
                Ok(Next::Rest) => {
                    memory.pauses.sleep_for(self.client.limits().backoff_longest).await;
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

    /// One session under a lease, and what its end calls for.
    async fn follow_under(
        &self,
        lease: &Lease,
        source: &Source,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Result<Next, FollowError> {
        let (store, client, status) = (&self.store, &self.client, &*self.status);
        let same_log = SameLog { store, client, status, shutdown };
        if !while_renewing(store, lease, same_log.ensure(lease, source)).await? {
            return Ok(Next::End);
        }
        let session = self.session(lease, source, memory, shutdown);
        let end = while_renewing(store, lease, session).await;
        if end.is_err() {
            self.status.set_mode(Mode::Waiting);
        }
        match end? {
            End::Shutdown => Ok(Next::End),
            End::NotJson { cursor } => {
                let tries = memory.damaged_line.add_attempt(cursor);
                tracing::warn!(cursor, tries, "a line that is not JSON: it is fetched again");
                Ok(Next::Pause)
            }
            End::Rewound { cursor, from } => {
                let stepping = self.step_back(lease, &memory.published, cursor, from);
                match while_renewing(store, lease, stepping).await? {
                    true => Ok(Next::Session),
                    // It takes dozens of requests each time.
                    false => Ok(Next::Rest),
                }
            }
        }
    }

    /// Reads, judges and commits from the cursor of the source on.
    async fn session(
        &self,
        lease: &Lease,
        source: &Source,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let (committed_sender, committed) = watch::channel(0);
        let mut written = committed.clone();
        let (store, verifier) = (self.store.clone(), Arc::clone(&self.verifier));
        let upstream = self.client.base().to_owned();
        let judge = BatchJudge::new(store, verifier, upstream, committed).await?;
        memory.pauses.begun();
        let not_json = memory.damaged_line.what_to_do_at(source.cursor);
        let session = Session {
            store: &self.store,
            client: &self.client,
            lease,
            feed: &self.feed,
            published: &memory.published,
            status: &self.status,
            rereading: self.rereading,
            doubts: &self.doubts,
        };
        let mut running = pin!(session.run(source, (judge, committed_sender), not_json, shutdown));
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
        published: &Published,
        cursor: i64,
        from: i64,
    ) -> Result<bool, FollowError> {
        let commit = match step_back(&self.store, &self.client, cursor, from).await {
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
        published.commit_begins();
        let cursor = match commit {
            Some(commit) => {
                self.store.commit(lease, &commit).await?;
                commit.cursor_after
            }
            None => {
                tracing::warn!(
                    upstream = self.client.base(),
                    "the upstream has what we hold under other numbers: it is read from its beginning, and its \
                     numbers are taken over"
                );
                self.store.begin_renumbering(lease, self.client.base()).await?;
                0
            }
        };
        published.commit_published(cursor);
        self.status.set_back(cursor);
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
