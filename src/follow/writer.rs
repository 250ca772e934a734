//! Commits what was judged, in order, one transaction at a time, and tells who wants to know
//! after each, never before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tokio::sync::{mpsc, oneshot, watch};

use super::notices::Notices;
use crate::judge::Prepared;
use crate::live::{Feed, Status};
use crate::store::{Commit, Lease, Store, StoreError};
use crate::{clock, words};
use did_plc::Timestamp;

/// Operations of one transaction, at most, when several batches wait: two of the largest. What a
/// transaction costs by itself is little beside so many, and more of them only take memory.
const MAX_COMMIT: usize = 8_000;
/// How often progress is logged while catching up.
const PROGRESS: Duration = Duration::from_secs(10);

/// What the writer is given.
#[derive(Debug)]
pub enum Work {
    /// A batch to be written, and who waits until it is.
    Commit(Box<Prepared>, Option<oneshot::Sender<()>>),
    /// Whether the upstream's present is followed from here on.
    Live(bool),
    /// The upstream had nothing new at this time.
    UpToDate(Timestamp),
}

/// Writes for one session.
pub struct Writer {
    /// Where to.
    pub store: Store,
    /// By which right.
    pub lease: Lease,
    /// Who tells clients of the stream of new operations.
    pub feed: Arc<Feed>,
    /// Where it is said how fresh we are.
    pub status: Arc<Status>,
    /// Number of the last batch that is committed.
    pub committed: watch::Sender<u64>,
}

/// Operations counted since the last line of progress.
struct Totals {
    since: Instant,
    operations: usize,
}

impl Writer {
    /// Writes until nothing more comes.
    ///
    /// # Errors
    ///
    /// That of the first commit that failed.
    pub async fn run(self, mut work: mpsc::Receiver<Work>) -> Result<(), StoreError> {
        let mut totals = Totals { since: Instant::now(), operations: 0 };
        let mut notices = Notices::default();
        let mut live = false;
        let mut waiting = None;
        loop {
            let next = match waiting.take() {
                Some(next) => Some(next),
                None => work.recv().await,
            };
            match next {
                None => return Ok(()),
                Some(Work::Live(now_live)) => {
                    live = now_live;
                    self.store.set_durability(live).await?;
                }
                Some(Work::UpToDate(at)) => self.status.set_complete_at(at),
                Some(Work::Commit(mut prepared, committed)) => {
                    if committed.is_none() {
                        waiting = join_waiting(&mut prepared, &mut work);
                    }
                    totals.operations += prepared.accepted;
                    self.commit(*prepared, &mut notices).await?;
                    if let Some(committed) = committed {
                        // Whoever does not wait any more need not be told.
                        committed.send(()).ok();
                    }
                    totals.say(&self.status, live);
                }
            }
        }
    }

    /// One transaction, and then what others are told of it. A crash before the transaction ends leaves what
    /// was there before it. After it, the other processes learn from the store what their clients are to be told, and clients
    /// of this one come back for what they lack.
    async fn commit(&self, prepared: Prepared, notices: &mut Notices) -> Result<(), StoreError> {
        let Prepared { batch, mut commit, accepted, known } = prepared;
        let begun = Instant::now();
        tracing::debug!(cursor = commit.cursor_after, "committing");
        commit.word = Some(self.status.word(clock::now(), Some(&commit)));
        self.store.commit(&self.lease, &commit).await?;
        tracing::debug!(cursor = commit.cursor_after, "committed");
        histogram!("plc_ingest_stage_seconds", "stage" => "write")
            .record(begun.elapsed().as_secs_f64());
        self.committed.send_replace(batch);
        self.status.set_committed(&commit);
        self.feed.wake();
        count(&commit, accepted, known);
        notices.say(&commit, Instant::now());
        Ok(())
    }
}

/// Takes the batches that wait already into the same transaction, as far as it has room; the work that comes
/// after them and does not go into it.
fn join_waiting(prepared: &mut Prepared, work: &mut mpsc::Receiver<Work>) -> Option<Work> {
    while prepared.commit.operations.len() < MAX_COMMIT {
        match work.try_recv() {
            Ok(Work::Commit(next, None)) => {
                if let Some(next) = prepared.join(*next) {
                    return Some(Work::Commit(Box::new(next), None));
                }
            }
            Ok(other) => return Some(other),
            Err(_) => break,
        }
    }
    None
}

/// What happened, in numbers.
fn count(commit: &Commit, accepted: usize, known: usize) {
    counter!("plc_operations_accepted_total").increment(accepted as u64);
    counter!("plc_operations_known_total").increment(known as u64);
    gauge!("plc_cursor").set(commit.cursor_after as f64);
    histogram!("plc_ingest_batch_operations").record(accepted as f64);
    for refusal in &commit.refusals {
        counter!("plc_operations_refused_total", "kind" => refusal.kind.clone()).increment(1);
    }
    for divergence in &commit.divergences {
        counter!("plc_divergences_total", "kind" => divergence.kind.clone()).increment(1);
    }
}

impl Totals {
    /// A line of progress now and then while catching up.
    fn say(&mut self, status: &Status, live: bool) {
        let elapsed = self.since.elapsed();
        if elapsed < PROGRESS {
            return;
        }
        self.since = Instant::now();
        let operations = std::mem::take(&mut self.operations);
        if !live {
            let rate = operations as f64 / elapsed.as_secs_f64();
            let as_of = status.as_of().map(|time| time.to_string());
            let outlook = status.outlook();
            let percent = outlook.map(|outlook| format!("{:.1}", outlook.percent));
            let left = outlook.and_then(|outlook| outlook.left).map(words::duration);
            tracing::info!(
                cursor = status.sequence(),
                percent,
                rate = rate.round(),
                left,
                as_of,
                "catching up"
            );
        }
    }
}
