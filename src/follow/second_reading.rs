//! The second reading: behind the follower every page is read once more, at least an hour after it was read
//! first, and then the whole log again and again at a low rate. What is missing here is taken in, what the
//! upstream states otherwise or does not have any more becomes a record, and what was taken over of that is read
//! once more, as long after it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::again::{self, AgainError, Said};
use super::bearing_out::refuse_unless_borne_out;
use super::fetch::{contradicts, fetch_lines, fetch_to_believe};
use super::missing::{Missing, lacking_in, record_missing};
use super::read_again::ReadAgain;
use super::reader::{Event, Gone};
use crate::clock;
use crate::judge::{Course, Decoded};
use crate::live::Status;
use crate::store::{Lease, Rereading, Store, StoredOperation, Unsettled};
use crate::upstream::{Backoff, ExportClient, Priority};
use did_plc::Timestamp;

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
    /// Other upstreams, who are asked before what is stated otherwise than before is believed.
    pub others: Vec<ExportClient>,
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
    /// What the upstream's export lacked.
    pub missing: Missing,
    /// How many pages the log has, about.
    pub pages: u64,
    /// What is unsettled up to this number has had its turn.
    pub unsettled_after: i64,
    /// Whether what is unsettled comes before what is read in order.
    pub unsettled_has_turn: bool,
}

/// What is read next.
enum Next {
    /// What comes after the second reading, up to this number; with what is held there.
    Second { through: i64, held: Vec<StoredOperation> },
    /// What was stated otherwise than before, under these numbers of one page; before that moment.
    Unsettled { numbers: Vec<Unsettled>, before: Timestamp },
    /// The next page of the round.
    Round,
    /// Nothing for so long.
    Pause(Duration),
}

impl SecondReading {
    /// Reads until the session ends.
    pub async fn run(mut self) -> Gone {
        let mut backoff = Backoff::new(self.client.limits());
        let mut said = Said::nothing_of("reading the log again");
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
                Ok(Next::Second { through, held }) => self.read_second(through, held).await,
                Ok(Next::Unsettled { numbers, before }) => {
                    self.read_unsettled(numbers, before).await
                }
                Ok(Next::Round) => {
                    let read = self.read_round().await;
                    next_of_round = Instant::now() + self.pause_of_round();
                    read
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => {
                    said.say_well();
                    backoff.reset();
                }
                Err(AgainError::Gone) => return Gone,
                Err(error) => {
                    let pause = match &error {
                        AgainError::Upstream(fault) => backoff.after(fault),
                        AgainError::Store(_) | AgainError::Gone => LOOK,
                    };
                    said.say(&error, pause, &self.store);
                    sleep(pause).await;
                }
            }
        }
    }

    /// What is read next. What is unsettled has every other turn, so that neither holds up the other.
    async fn next(
        &mut self,
        unheld_since: &mut Option<Instant>,
        next_of_round: Instant,
    ) -> Result<Next, AgainError> {
        if self.renumbering {
            self.renumbering = self.store.source().await?.is_some_and(|source| source.renumbering);
            return Ok(Next::Pause(self.pause()));
        }
        let due = clock::now() - self.settings.second_after;
        let unsettled = self.next_unsettled(due).await?;
        let has_turn = std::mem::replace(&mut self.unsettled_has_turn, true);
        match (unsettled, has_turn) {
            (Some(unsettled), true) => {
                self.unsettled_has_turn = false;
                Ok(unsettled)
            }
            (unsettled, _) => match self.next_in_order(unheld_since, next_of_round, due).await? {
                Next::Pause(pause) => Ok(unsettled.unwrap_or(Next::Pause(pause))),
                next => Ok(next),
            },
        }
    }

    async fn next_in_order(
        &mut self,
        unheld_since: &mut Option<Instant>,
        next_of_round: Instant,
        due: Timestamp,
    ) -> Result<Next, AgainError> {
        let page = self.client.limits().page;
        let held = self.store.export_by_sequence(self.position.second, page).await?;
        // What is numbered above all that was read on is not the log's yet.
        let passed = self.status.sequence();
        let read_before = held.iter().take_while(|operation| operation.received_at <= due);
        let read_before = read_before.filter_map(|operation| operation.sequence);
        if let Some(through) = read_before.take_while(|number| *number <= passed).last() {
            *unheld_since = None;
            return Ok(Next::Second { through, held });
        }
        if held.is_empty() && passed > self.position.second {
            let since = *unheld_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.settings.second_after {
                *unheld_since = None;
                return Ok(Next::Second { through: passed, held });
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

    /// The unsettled numbers of the next page that has some; behind the last one comes the first.
    async fn next_unsettled(&mut self, due: Timestamp) -> Result<Option<Next>, AgainError> {
        let page = self.client.limits().page;
        let mut numbers = self.store.unsettled(self.unsettled_after, due, page).await?;
        if numbers.is_empty() && self.unsettled_after > 0 {
            self.unsettled_after = 0;
            numbers = self.store.unsettled(0, due, page).await?;
        }
        let passed = self.status.sequence();
        let Some(first) = numbers.first().map(|first| first.number) else { return Ok(None) };
        numbers.retain(|it| it.number <= passed && it.number - first < page as i64);
        if numbers.is_empty() {
            // All that follow are above what was read on.
            self.unsettled_after = 0;
            return Ok(None);
        }
        Ok(Some(Next::Unsettled { numbers, before: due }))
    }

    /// The time after which it is looked again whether something is due.
    fn pause(&self) -> Duration {
        let pause = (self.settings.second_after / 10).min(LOOK);
        pause.max(self.client.limits().backoff_first / 2)
    }

    async fn read_second(
        &mut self,
        through: i64,
        held: Vec<StoredOperation>,
    ) -> Result<(), AgainError> {
        let end = self.read_page(self.position.second, through, &held, Course::Second).await?;
        self.position.second = end;
        self.store.set_rereading(&self.lease, self.position).await?;
        self.status.set_read_twice(end);
        Ok(())
    }

    /// Reads once more what was stated otherwise than before. What changes by that is read again in its turn; so is
    /// what fails now, or what a crash leaves.
    async fn read_unsettled(
        &mut self,
        numbers: Vec<Unsettled>,
        before: Timestamp,
    ) -> Result<(), AgainError> {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok(()) };
        let (after, through) = (first.number - 1, last.number);
        // Whatever comes of it, the others have their turn.
        self.unsettled_after = through;
        let count = usize::try_from(through - after).unwrap_or(1);
        let held = self.store.export_by_sequence(after, count).await?;
        let fetch = async || {
            let mut lines = fetch_lines(&self.client, after, count, Priority::Aside).await?;
            lines.retain_up_to(through);
            Ok(lines)
        };
        let lines = fetch_to_believe(fetch, |lines| contradicts(lines, &held)).await?;
        self.refuse_unless_borne_out((after, through), &lines, &held).await?;
        let end = if lines.is_empty() { through } else { lines.cursor_after(after) };
        // Another time is only taken over where one was before.
        for (times, course) in [(true, Course::Second), (false, Course::Again)] {
            let of_these =
                |number: i64| numbers.iter().any(|it| it.number == number && it.times == times);
            let mut some = lines.clone();
            some.retain(|number| number.is_some_and(of_these));
            if !some.is_empty() {
                again::take_in(&self.events, some, course, None).await?;
            }
        }
        let read = numbers.iter().map(|it| it.number).filter(|number| *number <= end).collect();
        self.unsettled_after = end.min(through);
        self.store.settle(&self.lease, read, before).await?;
        Ok(())
    }

    async fn read_round(&mut self) -> Result<(), AgainError> {
        if self.position.round_began_at.is_none() {
            self.position.round_began_at = Some(clock::now());
        }
        let page = self.client.limits().page;
        let operations = self.store.statistics().await?.operations;
        self.pages = operations / page.max(1) as u64 + 1;
        let Rereading { second, round: after, .. } = self.position;
        // A round that is beyond what was read twice, as where that was put back, has come to its end.
        if after < second {
            let held = self.store.export_by_sequence(after, page).await?;
            self.position.round = self.read_page(after, second, &held, Course::Again).await?;
        }
        if self.position.round >= second {
            tracing::info!(through = second, "the whole log was read again");
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
    /// number that is returned was read. `held` is what is held there, as much as a page takes.
    async fn read_page(
        &mut self,
        after: i64,
        through: i64,
        held: &[StoredOperation],
        course: Course,
    ) -> Result<i64, AgainError> {
        let ReadAgain { lines, end } = ReadAgain::fetch(&self.client, after, through, held).await?;
        self.refuse_unless_borne_out((after, end), &lines, held).await?;
        let lacking = lacking_in(&lines, held, end);
        let missing = self.missing.confirm(&self.client, lacking, self.position.rounds).await?;
        if !lines.is_empty() {
            again::take_in(&self.events, lines, course, None).await?;
        }
        for operation in missing {
            record_missing(&self.store, self.client.base(), &operation).await?;
        }
        Ok(end)
    }

    async fn refuse_unless_borne_out(
        &self,
        range: (i64, i64),
        lines: &Decoded,
        held: &[StoredOperation],
    ) -> Result<(), AgainError> {
        refuse_unless_borne_out(&self.events, &self.others, range, lines, held).await
    }
}
