//! Following an upstream: batch → verify → commit, from the committed cursor on, for ever.
//!
//! Three tasks work at once: the [`source`] fetches, this module judges ([`batch`], [`assembly`]),
//! and the [`writer`] commits what was judged. A session begins at the cursor that the store holds;
//! when anything about the store is in doubt the session ends, with everything that was verified
//! on top, and the next one begins at the cursor that is read back. So a crash at any point leaves
//! behind what the last commit left.

mod assembly;
mod batch;
mod chains;
mod rewind;
mod source;
mod stated;
mod told;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use assembly::{Part, Prepared};
pub use batch::{BatchJudge, Lines, NotJson, Parts};
use rewind::RewindError;
use source::{Event, Reader};
use stated::Stated;
use told::Told;
use writer::Writer;

use crate::live::{Feed, Mode, Status};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::{Backoff, Batch, ExportClient, Origin, Priority, UpstreamFault, is_json};
use did_plc::signature::Verifier;

/// Lines that are judged at once, at most: what one commit can take in a fraction of a second.
/// With the pages on their way this bounds the memory of following to some tens of megabytes.
const MAX_BATCH: usize = 4_000;
/// Bytes of the lines that are judged at once, at most, apart from those of the last page: ten times
/// what ordinary lines have.
const MAX_BATCH_BYTES: usize = 32 << 20;
/// Events between source and judge; the source itself holds a few pages more.
const EVENTS: usize = 4;
/// Judged batches that wait for the writer.
const PREPARED: usize = 2;
/// How often a line that is not JSON is fetched before it is kept as it is.
const NOT_JSON_ATTEMPTS: u32 = 3;
/// A lease is kept well before it runs out.
const RENEW: Duration = Duration::from_secs(5);
/// First and longest pause after the store was not available.
const STORE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// (Sequence number, CID) pairs that must agree when another upstream is to be followed.
const COMPARED: usize = 10;

/// Why following ends for good.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store was filled from another upstream, and this one tells another story.
    #[error(
        "--upstream {given} is not the log that this database holds (it was filled from {remembered}): at sequence number {sequence} it has {theirs}, and we hold {ours}; use the upstream of before, or another database"
    )]
    OtherUpstream {
        /// The upstream as set.
        given: String,
        /// The upstream that the store remembers.
        remembered: String,
        /// Where both differ.
        sequence: i64,
        /// What we hold there.
        ours: String,
        /// What the upstream has there.
        theirs: String,
    },
    /// The store cannot be used at all.
    #[error(transparent)]
    Store(StoreError),
}

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
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// Somebody asked for it; everything in hand is committed.
    Shutdown,
    /// A line that is not JSON is to be fetched again.
    NotJson { cursor: i64 },
    /// The upstream has gone back to before the number `from`.
    Rewound { cursor: i64, from: i64 },
    /// The store.
    Store(StoreError),
}

impl Follower {
    /// Follows until `shutdown`.
    ///
    /// # Errors
    ///
    /// [`FollowError`]; everything that may pass is waited out.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), FollowError> {
        let mut pauses = Pauses::default();
        let mut damaged_line = (0, 0);
        // Made from the store before the first subscriber could come.
        let told = Arc::new(Told::up_to(self.status.sequence()));
        loop {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let (lease, source) = match self.store.follow(self.client.base()).await {
                Ok(following) => following,
                Err(error) => {
                    pauses.wait_out(error, &shutdown).await?;
                    continue;
                }
            };
            // Nobody else can commit from here on, and what others have committed can be read.
            if !told.takes_up(&source) {
                self.feed.interrupt();
            }
            let checking = self.check_upstream(&lease, &source, &shutdown);
            let checked = match self.holding(&lease, checking).await {
                Ok(checked) => checked,
                Err(error) => {
                    // Kept, it would keep us out ourselves at the next attempt.
                    self.store.release(lease).await.ok();
                    match error {
                        FollowError::Store(error) => pauses.wait_out(error, &shutdown).await?,
                        other => return Err(other),
                    }
                    continue;
                }
            };
            let end = match checked {
                false => End::Shutdown,
                true => {
                    let tries = if damaged_line.0 == source.cursor { damaged_line.1 } else { 0 };
                    self.session(&lease, &source, &told, tries, &mut pauses, &shutdown).await
                }
            };
            match end {
                End::Shutdown => {
                    // A lease that cannot be given back runs out by itself.
                    self.store.release(lease).await.ok();
                    return Ok(());
                }
                End::NotJson { cursor } => {
                    let tries = if damaged_line.0 == cursor { damaged_line.1 + 1 } else { 1 };
                    damaged_line = (cursor, tries);
                    self.store.release(lease).await.ok();
                    tracing::warn!(cursor, tries, "a line that is not JSON: it is fetched again");
                    pauses.sleep(&shutdown).await;
                }
                End::Rewound { cursor, from } => {
                    let stepping = self.step_back(&lease, &told, cursor, from);
                    let stepped = self.holding(&lease, stepping).await;
                    self.store.release(lease).await.ok();
                    match stepped {
                        Ok(true) => {}
                        // It takes dozens of requests each time.
                        Ok(false) => self.rest(&shutdown).await,
                        Err(FollowError::Store(error)) => {
                            pauses.wait_out(error, &shutdown).await?;
                        }
                        Err(other) => return Err(other),
                    }
                }
                End::Store(error) => {
                    self.store.release(lease).await.ok();
                    self.status.set_mode(Mode::Waiting);
                    pauses.wait_out(error, &shutdown).await?;
                }
            }
        }
    }

    /// Makes sure that this is the log that the store holds the beginning of. False when asked to
    /// end while the upstream could not be reached.
    async fn check_upstream(
        &self,
        lease: &Lease,
        source: &Source,
        shutdown: &CancellationToken,
    ) -> Result<bool, FollowError> {
        let same = source.upstream == self.client.base();
        if same {
            return Ok(true);
        }
        if source.cursor == 0 {
            self.store.set_upstream(lease, self.client.base()).await.map_err(FollowError::Store)?;
            return Ok(true);
        }
        let held = self.store.latest(COMPARED).await.map_err(FollowError::Store)?;
        // The oldest first: another log is told from one that is merely some operations behind.
        for operation in held.iter().rev() {
            let Some(sequence) = operation.sequence else { continue };
            let Some(lines) = self.lines_at(sequence, shutdown).await else {
                return Ok(false);
            };
            let theirs = cid_at(&lines, sequence);
            let ours = operation.cid();
            if theirs.as_deref() != Some(&*ours.to_string()) {
                return Err(FollowError::OtherUpstream {
                    given: self.client.base().to_owned(),
                    remembered: source.upstream.clone(),
                    sequence,
                    ours: ours.to_string(),
                    theirs: theirs.unwrap_or_else(|| "nothing".to_owned()),
                });
            }
        }
        tracing::info!(
            from = source.upstream,
            to = self.client.base(),
            "another upstream with the same log"
        );
        self.store.set_upstream(lease, self.client.base()).await.map_err(FollowError::Store)?;
        Ok(true)
    }

    /// The upstream's line at this number, or the next one: asked for until there is one; none when
    /// asked to end before.
    async fn lines_at(&self, sequence: i64, shutdown: &CancellationToken) -> Option<Vec<Bytes>> {
        let mut said = None;
        let mut backoff = Backoff::new(self.client.limits());
        loop {
            let fault = match self.client.lines(sequence - 1, 1, Priority::Following).await {
                // What was cut on its way says nothing about the log.
                Ok(lines) if !lines.iter().all(|line| is_json(line)) => {
                    UpstreamFault::Truncated { reason: "its only line is not JSON".to_owned() }
                }
                // A mirror that is behind gets there.
                Ok(lines) if lines.is_empty() => UpstreamFault::FutureCursor,
                Ok(lines) => return Some(lines),
                Err(fault) => fault,
            };
            self.status.set_mode(Mode::Waiting);
            if said.replace(fault.kind()) != Some(fault.kind()) {
                tracing::warn!(
                    "another upstream than before cannot be compared with what we hold: {fault}; asked again until it can"
                );
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = sleep(backoff.after(&fault)) => {}
            }
        }
    }

    /// The longest pause that an upstream which cannot be followed is left alone for.
    async fn rest(&self, shutdown: &CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(self.client.limits().backoff_longest) => {}
        }
    }

    /// Does something that may take longer than the lease runs.
    async fn holding<T>(
        &self,
        lease: &Lease,
        work: impl Future<Output = Result<T, FollowError>>,
    ) -> Result<T, FollowError> {
        tokio::select! {
            done = work => done,
            error = self.keep_lease(lease) => Err(FollowError::Store(error)),
        }
    }

    /// Puts the cursor back to what the upstream still has. Whatever fails is tried again at the
    /// upstream's next refusal of the cursor. False when it stays where it is.
    async fn step_back(
        &self,
        lease: &Lease,
        told: &Told,
        cursor: i64,
        from: i64,
    ) -> Result<bool, FollowError> {
        match rewind::step_back(&self.store, &self.client, cursor, from).await {
            Ok(Some(commit)) => {
                told.begin();
                self.store.commit(lease, &commit).await.map_err(FollowError::Store)?;
                told.end(commit.cursor_after);
                self.status.set_back(commit.cursor_after);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(RewindError::Upstream(fault)) => {
                tracing::warn!("to find what the upstream still has: {fault}");
                Ok(false)
            }
            Err(RewindError::Store(error)) => Err(FollowError::Store(error)),
        }
    }

    /// Reads, judges and commits from a cursor on.
    async fn session(
        &self,
        lease: &Lease,
        source: &Source,
        told: &Arc<Told>,
        tries: u32,
        pauses: &mut Pauses,
        shutdown: &CancellationToken,
    ) -> End {
        let cursor = source.cursor;
        let (committed_tx, committed) = watch::channel(0);
        let (prepared_tx, prepared) = mpsc::channel(PREPARED);
        let (events_tx, events) = mpsc::channel(EVENTS);
        let judge = BatchJudge::new(
            self.store.clone(),
            Arc::clone(&self.verifier),
            self.client.base().to_owned(),
            committed,
        );
        let judge = match judge.await {
            Ok(judge) => judge,
            Err(error) => return End::Store(error),
        };
        let cid = source.cursor_cid.clone();
        let last = cid.map(|cid| Stated { sequence: cursor, cid: Some(cid) });
        pauses.reset();
        let writer = Writer {
            store: self.store.clone(),
            lease: lease.clone(),
            feed: Arc::clone(&self.feed),
            told: Arc::clone(told),
            status: Arc::clone(&self.status),
            committed: committed_tx,
        };
        let status = Arc::clone(&self.status);
        let reader = Reader::new(self.client.clone(), cursor, last, events_tx, status);
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run()));
        let mut writer = AbortOnDropHandle::new(tokio::spawn(writer.run(prepared)));
        let renewal = self.keep_lease(lease);
        let work = self.judge_events(judge, cursor, tries, events, prepared_tx, shutdown);
        let ended = tokio::select! {
            ended = work => ended,
            error = renewal => return End::Store(error),
            written = &mut writer => return End::Store(written_error(written)),
        };
        if reader.is_finished()
            && let Err(error) = reader.await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
        // Everything that was judged is written before the session ends in order.
        match (writer.await, ended) {
            (Ok(Ok(())), end) => end,
            (written, _) => End::Store(written_error(written)),
        }
    }

    /// Judges what the source brings until it is time to stop.
    async fn judge_events(
        &self,
        mut judge: BatchJudge,
        mut cursor: i64,
        tries: u32,
        mut events: mpsc::Receiver<Event>,
        prepared: mpsc::Sender<writer::Work>,
        shutdown: &CancellationToken,
    ) -> End {
        let mut not_json =
            if tries >= NOT_JSON_ATTEMPTS { NotJson::Keep } else { NotJson::StopBefore };
        let mut waiting = None;
        loop {
            let event = match waiting.take() {
                Some(event) => event,
                None => tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return End::Shutdown,
                    event = events.recv() => match event {
                        Some(event) => event,
                        None => return End::Shutdown,
                    },
                },
            };
            let first = match event {
                Event::Mode(mode) => {
                    self.status.set_mode(mode);
                    if prepared.send(writer::Work::Live(mode == Mode::Live)).await.is_err() {
                        return End::Shutdown;
                    }
                    continue;
                }
                Event::Quiet(at) => {
                    self.status.heard(at);
                    if prepared.send(writer::Work::Current(at)).await.is_err() {
                        return End::Shutdown;
                    }
                    continue;
                }
                Event::Rewound { from } => return End::Rewound { cursor, from },
                Event::Batch(batch) => batch,
            };
            let mut lines = Lines {
                caught_up: is_present(&first),
                live: first.origin == Origin::Stream,
                lines: first.lines,
                received_at: first.received_at,
                cursor,
                not_json,
            };
            // What has come meanwhile is judged with it: larger commits cost less a line.
            let mut bytes = size(&lines.lines);
            while lines.lines.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
                match events.try_recv() {
                    Ok(Event::Batch(batch)) => {
                        lines.caught_up = is_present(&batch);
                        lines.live &= batch.origin == Origin::Stream;
                        bytes += size(&batch.lines);
                        lines.lines.extend(batch.lines);
                        lines.received_at = batch.received_at;
                    }
                    Ok(other) => {
                        waiting = Some(other);
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.status.heard(lines.received_at);
            let begun = Instant::now();
            let Parts { parts, cursor: after, stopped, kept_damaged } = judge.split(lines).await;
            for part in parts {
                let batch = match judge.judge(part).await {
                    Ok(batch) => batch,
                    Err(error) => return End::Store(error),
                };
                // Without a writer nothing more can be done here; it says itself why it ended.
                if prepared.send(writer::Work::Commit(Box::new(batch))).await.is_err() {
                    return End::Shutdown;
                }
            }
            metrics::histogram!("plc_ingest_stage_seconds", "stage" => "judge")
                .record(begun.elapsed().as_secs_f64());
            // Until then it is still to come: a message of the stream is after an empty page.
            if kept_damaged || after != cursor {
                not_json = NotJson::StopBefore;
            }
            cursor = after;
            if stopped {
                return End::NotJson { cursor };
            }
        }
    }

    /// Keeps the lease until it is lost.
    async fn keep_lease(&self, lease: &Lease) -> StoreError {
        loop {
            sleep(RENEW).await;
            match self.store.renew(lease).await {
                // The next commit will tell whether the store is gone for longer.
                Ok(()) | Err(StoreError::Unavailable(_)) => {}
                Err(error) => return error,
            }
        }
    }
}

/// Whether a batch reaches the upstream's present. What the stream brings does: it is only opened
/// once a page has reached the end, and what came since is a matter of milliseconds.
fn is_present(batch: &Batch) -> bool {
    batch.reached_end() || batch.origin == Origin::Stream
}

/// Why the writer ended before it was told to.
fn written_error(written: Result<Result<(), StoreError>, tokio::task::JoinError>) -> StoreError {
    match written {
        Ok(Ok(())) => StoreError::Unavailable("the writer ended".to_owned()),
        Ok(Err(error)) => error,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => StoreError::Unavailable(error.to_string()),
        },
    }
}

fn size(lines: &[Bytes]) -> usize {
    lines.iter().map(|line| line.len()).sum()
}

/// The CID that a page states for a sequence number.
fn cid_at(lines: &[Bytes], sequence: i64) -> Option<String> {
    Stated::among(lines, sequence).and_then(|stated| stated.cid)
}

/// Pauses while the store is away: said once, not a thousand times.
#[derive(Debug, Default)]
struct Pauses {
    next: Option<Duration>,
    said: Option<String>,
}

impl Pauses {
    /// Waits out what may pass, and returns what may not.
    async fn wait_out(
        &mut self,
        error: StoreError,
        shutdown: &CancellationToken,
    ) -> Result<(), FollowError> {
        match error {
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) => {
                self.say(&error, "retried until it is back");
            }
            StoreError::LostLease(_) => self.say(&error, "waiting for it to end"),
            StoreError::Damaged { .. } => {
                metrics::gauge!("plc_store_damaged").set(1.0);
                tracing::error!(
                    "{error}; nothing more is taken in until it is mended (see `fsck`), serving goes on"
                );
                shutdown.cancelled().await;
            }
            StoreError::Unusable(_) => return Err(FollowError::Store(error)),
        }
        self.sleep(shutdown).await;
        Ok(())
    }

    fn say(&mut self, error: &StoreError, what: &str) {
        let sentence = error.to_string();
        if self.said.as_ref() != Some(&sentence) {
            tracing::warn!("{sentence}; {what}");
            self.said = Some(sentence);
        }
    }

    async fn sleep(&mut self, shutdown: &CancellationToken) {
        let pause = self.next.unwrap_or(STORE_PAUSES.0);
        self.next = Some((pause * 2).min(STORE_PAUSES.1));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(pause) => {}
        }
    }

    fn reset(&mut self) {
        if self.said.take().is_some() {
            tracing::info!("the database is back");
        }
        self.next = None;
    }
}
