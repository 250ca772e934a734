//! The second reading: behind the follower every page is read once more, at least an hour after it was read
//! first, and then the whole log again and again at a low rate. What is missing here is taken in, what the
//! upstream states otherwise or does not have any more becomes a record.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::again::{self, AgainError};
use super::reader::{Event, Gone};
use crate::judge::{Course, Decoded};
use crate::live::Status;
use crate::store::{
    DivergenceKind, Lease, NewDivergence, Rereading, Store, StoredOperation, audit_log,
};
use crate::upstream::{Backoff, ExportClient, Priority};

/// The longest pause before it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(60);

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
            return Ok(Next::Pause(LOOK.min(self.settings.second_after / 10)));
        }
        let page = self.client.limits().page;
        let held = self.store.export_by_sequence(self.position.second, page).await?;
        let due = again::now() - self.settings.second_after;
        let read_before = held.iter().take_while(|operation| operation.received_at <= due);
        if let Some(through) = read_before.filter_map(|operation| operation.sequence).last() {
            *unheld_since = None;
            return Ok(Next::Second { through });
        }
        let passed = self.status.sequence();
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
        let pause = (self.settings.second_after / 10).min(LOOK);
        let pause = if round.is_some() { pause.min(until_round) } else { pause };
        Ok(Next::Pause(pause.max(self.client.limits().backoff_first / 2)))
    }

    async fn read_second(&mut self, through: i64) -> Result<(), AgainError> {
        let end = self.read_page(self.position.second, through, Course::Second).await?;
        self.position.second = end;
        self.store.set_rereading(&self.lease, self.position).await?;
        self.status.set_read_twice(end);
        Ok(())
    }

    async fn read_round(&mut self) -> Result<(), AgainError> {
        let position = &mut self.position;
        if position.round_began_at.is_none() {
            position.round_began_at = Some(again::now());
        }
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
        let page = self.client.limits().page.max(1) as i64;
        let pages = u32::try_from(self.position.second / page + 1).unwrap_or(u32::MAX);
        self.settings.round.map_or(LOOK, |round| round / pages)
    }

    /// Reads one page after this number, of which what is above `through` is left out. Everything up to the
    /// number that is returned was read.
    async fn read_page(&self, after: i64, through: i64, course: Course) -> Result<i64, AgainError> {
        let count = self.client.limits().page;
        let lines = self.client.lines(after, count, Priority::Aside).await?;
        let is_full = lines.len() >= count;
        let mut decoded = Decoded::from_lines(lines).await;
        let last = decoded.cursor_after(after);
        let end = if is_full { last.min(through) } else { through };
        decoded.retain_up_to(end);
        let missing = self.missing_there(after, end, &decoded).await?;
        if !decoded.is_empty() {
            again::take_in(&self.events, decoded, course).await?;
        }
        for operation in missing {
            self.record_missing(&operation).await?;
        }
        Ok(end)
    }

    /// What we hold between two numbers, the second one included, and the upstream does not have there any
    /// more: it was asked for each once more.
    async fn missing_there(
        &self,
        after: i64,
        end: i64,
        page: &Decoded,
    ) -> Result<Vec<StoredOperation>, AgainError> {
        let stated = page.numbers();
        let mut missing = Vec::new();
        let mut at = after;
        loop {
            let held = self.store.export_by_sequence(at, self.client.limits().page).await?;
            let Some(last) = held.last().and_then(|last| last.sequence) else { break };
            for operation in held {
                let Some(number) = operation.sequence.filter(|&number| number <= end) else {
                    continue;
                };
                if !stated.contains(&number) && self.is_gone(number).await? {
                    missing.push(operation);
                }
            }
            at = last;
            if at >= end {
                break;
            }
        }
        Ok(missing)
    }

    async fn is_gone(&self, number: i64) -> Result<bool, AgainError> {
        let line = self.client.first_from(number, Priority::Aside).await?;
        let decoded = Decoded::from_lines(line.into_iter().collect()).await;
        Ok(decoded.first_number() != Some(number))
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
