//! The second reading: behind the follower every page is read once more, at least an hour after it was read
//! first, and then the whole log again and again at a low rate. What is missing here is taken in, what the
//! upstream states otherwise or does not have any more becomes a record.

use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::again::{self, AgainError};
use super::fetch::fetch_lines;
use super::reader::{Event, Gone};
use crate::judge::{Course, Decoded};
use crate::live::Status;
use crate::store::{
    DivergenceKind, Lease, NewDivergence, Rereading, Store, StoredOperation, audit_log,
};
use crate::upstream::{Backoff, ExportClient, Priority, UpstreamFault};
use did_plc::Cid;

/// The longest pause before it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(60);

/// Of so many operations of a page that the upstream does not have any more it is asked for each.
const FEW_MISSING: usize = 20;

/// When the log is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RereadingSettings {
    /// A page is read the second time when it was read first at least so long ago.
    pub second_after: Duration,
    /// How long a round through the whole log takes; none for no rounds.
    pub round: Option<Duration>,
}

impl Default for RereadingSettings {
    fn default() -> RereadingSettings {
        RereadingSettings {
            second_after: Duration::from_secs(60 * 60),
            round: Some(Duration::from_secs(30 * 24 * 60 * 60)),
        }
    }
}

/// Reads the log of an upstream again.
pub struct SecondReading {
    /// Where the log is.
    pub store: Store,
    /// Who is asked.
    pub client: ExportClient,
    /// By which right it is recorded how far it is.
    pub lease: Lease,
    /// Who judges what comes.
    pub events: mpsc::Sender<Event>,
    /// Whether the upstream has the log that was read from it. Of another one nothing is taken in here: its
    /// numbers would hide where it begins.
    pub same_log: watch::Receiver<bool>,
    /// Where it is said how far it is.
    pub status: Arc<Status>,
    /// When to read.
    pub settings: RereadingSettings,
    /// How far it is.
    pub position: Rereading,
    /// The numbers of stored operations are an earlier upstream's: pages cannot be compared with them yet.
    pub renumbering: bool,
    /// How many pages the log has, about.
    pub pages: u64,
}

/// What is read next.
enum Next {
    /// What comes after the second reading, up to this number.
    Second { through: i64 },
    /// The next page of the round.
    Round,
    /// Nothing for so long.
    Pause(Duration),
}

impl SecondReading {
    /// Reads until the session ends.
    pub async fn run(mut self) -> Gone {
        let mut backoff = Backoff::new(self.client.limits());
        let mut next_of_round = Instant::now();
        // Since when there has been nothing here of what the follower has passed.
        let mut unheld_since = None;
        loop {
            if again::wait_for(&mut self.same_log).await.is_err() {
                return Gone;
            }
            let done = match self.next(&mut unheld_since, next_of_round).await {
                Ok(Next::Pause(pause)) => {
                    if self.events.is_closed() {
                        return Gone;
                    }
                    sleep(pause).await;
                    continue;
                }
                Ok(Next::Second { through }) => self.read_second(through).await,
                Ok(Next::Round) => {
                    let read = self.read_round().await;
                    next_of_round = Instant::now() + self.pause_of_round();
                    read
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => backoff.reset(),
                Err(AgainError::Gone) => return Gone,
                Err(AgainError::Upstream(fault)) => {
                    let pause = backoff.after(&fault);
                    tracing::debug!(?pause, "the log could not be read again: {fault}");
                    sleep(pause).await;
                }
                Err(AgainError::Store(error)) => {
                    tracing::debug!("what is to be read again could not be told: {error}");
                    sleep(LOOK).await;
                }
            }
        }
    }

    async fn next(
        &mut self,
        unheld_since: &mut Option<Instant>,
        next_of_round: Instant,
    ) -> Result<Next, AgainError> {
        if self.renumbering {
            self.renumbering = self.store.source().await?.is_some_and(|source| source.renumbering);
            return Ok(Next::Pause(self.pause()));
        }
        let page = self.client.limits().page;
        let held = self.store.export_by_sequence(self.position.second, page).await?;
        let due = again::now() - self.settings.second_after;
        // What is numbered above all that was read on is not the log's yet.
        let passed = self.status.sequence();
        let read_before = held.iter().take_while(|operation| operation.received_at <= due);
        let read_before = read_before.filter_map(|operation| operation.sequence);
        if let Some(through) = read_before.take_while(|number| *number <= passed).last() {
            *unheld_since = None;
            return Ok(Next::Second { through });
        }
        if held.is_empty() && passed > self.position.second {
            let since = *unheld_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.settings.second_after {
                *unheld_since = None;
                return Ok(Next::Second { through: passed });
            }
        }
        let round = self.settings.round.filter(|_| self.position.second > 0);
        if round.is_some() && Instant::now() >= next_of_round {
            return Ok(Next::Round);
        }
        let until_round = next_of_round.saturating_duration_since(Instant::now());
        let pause = self.pause();
        Ok(Next::Pause(if round.is_some() { pause.min(until_round) } else { pause }))
    }

    /// The time after which it is looked again whether something is due.
    fn pause(&self) -> Duration {
        let pause = (self.settings.second_after / 10).min(LOOK);
        pause.max(self.client.limits().backoff_first / 2)
    }

    async fn read_second(&mut self, through: i64) -> Result<(), AgainError> {
        let end = self.read_page(self.position.second, through, Course::Second).await?;
        self.position.second = end;
        self.store.set_rereading(&self.lease, self.position).await?;
        self.status.set_read_twice(end);
        Ok(())
    }

    async fn read_round(&mut self) -> Result<(), AgainError> {
        if self.position.round_began_at.is_none() {
            self.position.round_began_at = Some(again::now());
        }
        let operations = self.store.statistics().await?.operations;
        self.pages = operations / self.client.limits().page.max(1) as u64 + 1;
        let end = self.read_page(self.position.round, self.position.second, Course::Again).await?;
        self.position.round = end;
        if end >= self.position.second {
            tracing::info!(through = end, "the whole log was read again");
            self.position = Rereading {
                round: 0,
                round_began_at: None,
                rounds: self.position.rounds + 1,
                ..self.position
            };
        }
        self.store.set_rereading(&self.lease, self.position).await?;
        Ok(())
    }

    /// The time between two pages of a round.
    fn pause_of_round(&self) -> Duration {
        let pages = u32::try_from(self.pages.max(1)).unwrap_or(u32::MAX);
        self.settings.round.map_or(LOOK, |round| round / pages)
    }

    /// Reads one page after this number, of which what is above `through` is left out. Everything up to the
    /// number that is returned was read.
    ///
    /// What contradicts what is held is fetched twice, and believed if it is the same both times.
    async fn read_page(&self, after: i64, through: i64, course: Course) -> Result<i64, AgainError> {
        let held = self.store.export_by_sequence(after, self.client.limits().page).await?;
        let last_held = held.last().and_then(|last| last.sequence);
        let is_all = held.len() < self.client.limits().page;
        let through = if is_all { through } else { through.min(last_held.unwrap_or(through)) };
        let (page, end) = self.fetch(after, through).await?;
        let mut missing = missing_in(&page, &held, end);
        if !missing.is_empty() || has_other_times(&page, &held) {
            let (again, other_end) = self.fetch(after, through).await?;
            if other_end != end || again.entries() != page.entries() {
                // One of the two was damaged on its way.
                let reason = "a page that was fetched twice is not the same".to_owned();
                return Err(UpstreamFault::Truncated { reason }.into());
            }
        }
        if missing.len() <= FEW_MISSING {
            missing = self.still_missing(missing).await?;
        }
        if !page.is_empty() {
            again::take_in(&self.events, page, course, None).await?;
        }
        for operation in missing {
            self.record_missing(&operation).await?;
        }
        Ok(end)
    }

    /// A page after a number up to another one, and up to which number it has told everything.
    async fn fetch(&self, after: i64, through: i64) -> Result<(Decoded, i64), AgainError> {
        let count = self.client.limits().page;
        let mut page = fetch_lines(&self.client, after, count, Priority::Aside).await?;
        if page.is_empty() {
            // Only what is empty twice is the end.
            page = fetch_lines(&self.client, after, count, Priority::Aside).await?;
        }
        let end = match page.is_empty() {
            true => through,
            false => page.cursor_after(after).min(through),
        };
        if end <= after {
            return Err(UpstreamFault::NotAdvancing { after }.into());
        }
        page.retain_up_to(end);
        Ok((page, end))
    }

    /// Those that the upstream does not have under their numbers when it is asked for each.
    async fn still_missing(
        &self,
        missing: Vec<StoredOperation>,
    ) -> Result<Vec<StoredOperation>, AgainError> {
        let mut still = Vec::new();
        for operation in missing {
            let Some(number) = operation.sequence else { continue };
            let line = self.client.first_from(number, Priority::Aside).await?;
            let decoded = Decoded::from_lines(line.into_iter().collect()).await;
            if decoded.first_number() != Some(number) {
                still.push(operation);
            }
        }
        Ok(still)
    }

    /// Records that the upstream's export lacks an operation that we hold. A crash before this leaves it to
    /// the next round.
    async fn record_missing(&self, operation: &StoredOperation) -> Result<(), AgainError> {
        let did = operation.did.to_string();
        let record = NewDivergence {
            source: self.client.base().to_owned(),
            did: did.clone(),
            kind: DivergenceKind::MissingThere.name().to_owned(),
            subject: operation.cid().to_string(),
            ours: Some(audit_log(&self.store.history(&operation.did).await?)),
            theirs: None,
        };
        let noted = self
            .store
            .note_divergences(self.client.base(), &did, &[], &[record], again::now())
            .await?;
        if !noted.opened.is_empty() {
            tracing::warn!(
                did,
                sequence = operation.sequence,
                "the upstream's export lacks an operation that it gave us"
            );
        }
        Ok(())
    }
}

/// What is held under a number up to `end`, and stated neither under that number nor under another one.
fn missing_in(page: &Decoded, held: &[StoredOperation], end: i64) -> Vec<StoredOperation> {
    let numbers = page.numbers();
    let cids: AHashSet<Cid> = page.entries().iter().flatten().map(|stated| stated.cid).collect();
    let is_missing = |operation: &&StoredOperation| {
        let number = operation.sequence.filter(|&number| number <= end);
        number.is_some_and(|number| !numbers.contains(&number)) && !cids.contains(&operation.cid())
    };
    held.iter().filter(is_missing).cloned().collect()
}

/// Whether an operation that is held is stated with another time.
fn has_other_times(page: &Decoded, held: &[StoredOperation]) -> bool {
    let held: AHashMap<i64, &StoredOperation> =
        held.iter().filter_map(|operation| Some((operation.sequence?, operation))).collect();
    page.entries().iter().flatten().any(|stated| {
        let held = stated.sequence.and_then(|number| held.get(&number));
        held.is_some_and(|held| held.created_at != stated.created_at && held.cid() == stated.cid)
    })
}
