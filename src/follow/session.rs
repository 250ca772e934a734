//! One session: reader, intake and writer from the stored cursor on, under one lease.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::agreement::Newest;
use super::candidates::Followed;
use super::doubts::{DoubtSettings, Doubts};
use super::head;
use super::intake::{End, Intake};
use super::missing::Missing;
use super::numbering::{BEGINNING, Numbering};
use super::reader::{Event, Gone, Reader};
use super::second_reading::{RereadingSettings, SecondReading};
use super::time_reader::TimeReader;
use super::writer::Writer;
use crate::judge::{BatchJudge, Lines, NotJson};
use crate::live::{Feed, Status};
use crate::store::{ByTime, Lease, Source, Store, StoreError};
use did_plc::Timestamp;

/// Events between reader and intake; the reader itself holds a few pages more.
const EVENTS: usize = 2;
/// Judged batches that wait for the writer.
const PREPARED: usize = 2;

/// How much is read again by time of what was read by number.
const MARGIN: Duration = Duration::from_secs(10 * 60);

/// What a session works with.
pub struct Session<'a> {
    /// Where operations go.
    pub store: &'a Store,
    /// Where they come from.
    pub followed: &'a Followed,
    /// By which right they are written.
    pub lease: &'a Lease,
    /// Who tells clients of the stream of new operations.
    pub feed: &'a Arc<Feed>,
    /// Where it is said how fresh we are.
    pub status: &'a Arc<Status>,
    /// When the log is read again.
    pub rereading: RereadingSettings,
    /// When the upstream is asked about what was refused.
    pub doubts: &'a DoubtSettings,
}

/// How a session begins, after what the one before it has met.
pub struct Beginning {
    /// What to do about a line that is not JSON.
    pub not_json: NotJson,
    /// Lines up to this number are passed whatever is wrong with them.
    pub passes_up_to: i64,
    /// What another upstream states in place of lines that do not fit, and goes before them.
    pub instead: Option<Lines>,
}

impl Session<'_> {
    /// Reads, judges and commits from the cursor of the source on. `judge` looks at `committed` to see what was
    /// committed. Dropping it, as a crash does, leaves what the last commit left.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn run(
        &self,
        source: &Source,
        (judge, committed): (BatchJudge, watch::Sender<u64>),
        beginning: Beginning,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let Beginning { not_json, passes_up_to, instead } = beginning;
        let (work, prepared) = mpsc::channel(PREPARED);
        let (sender, events) = mpsc::channel(EVENTS);
        if let Some(lines) = instead {
            // There is room for it: nobody else has sent anything yet.
            sender.try_send(Event::Lines(lines)).ok();
        }
        let status = Arc::clone(self.status);
        let (confirmed, same_log) = watch::channel(false);
        // Dropped, all of them end; so does the writer below.
        let mut learning = JoinSet::new();
        let mut readers = JoinSet::new();
        readers.spawn(self.doubts(source, &sender, same_log.clone()).run());
        if self.followed.numbering.is_ours() {
            learning.spawn(head::learn(self.followed.client.clone(), Arc::clone(&status)));
            readers.spawn(self.second_reading(source, &sender, same_log).run());
            let reader = Reader::new(self.followed, source, sender, Arc::clone(&status), confirmed);
            readers.spawn(reader.run());
        } else {
            readers.spawn(self.time_reader(source, sender, confirmed).await?.run());
        }
        let writer = self.writer(committed).run(prepared);
        let mut writer = AbortOnDropHandle::new(tokio::spawn(writer));
        let cursor = source.cursor;
        let intake = Intake {
            judge,
            cursor,
            not_json,
            passes_up_to,
            latest: None,
            status,
            events,
            waiting: VecDeque::new(),
            writer: work,
        };
        let end = tokio::select! {
            biased;
            end = intake.run(shutdown) => end?,
            written = &mut writer => return Err(unexpected_end(written)),
            Some(read) = readers.join_next() => return Err(unexpected_end_of_reading(read)),
        };
        drop((learning, readers));
        // Everything that was judged is written before the session ends in order.
        match writer.await {
            Ok(Ok(())) => Ok(end),
            written => Err(unexpected_end(written)),
        }
    }

    /// Who reads the upstream by time, from where it was read to before, or from the time to which the log was read by
    /// number.
    async fn time_reader(
        &self,
        source: &Source,
        events: mpsc::Sender<Event>,
        confirmed: watch::Sender<bool>,
    ) -> Result<TimeReader, StoreError> {
        let Followed { client, numbering, contact, .. } = self.followed.clone();
        let by_number = Newest::read(self.store).await?.created_at().filter(|_| source.cursor > 0);
        let position = begin_by_time(source, client.base(), by_number);
        tracing::info!(upstream = client.base(), from = %position.read, "reading by time");
        Ok(TimeReader {
            client,
            numbering,
            store: self.store.clone(),
            lease: self.lease.clone(),
            events,
            contact,
            confirmed,
            position,
            second_after: self.rereading.second_after,
            has_all_times: numbering == Numbering::Absent && source.cursor == 0,
            reaches_present: !source.renumbering,
        })
    }

    /// Who reads the log again behind the reader, while the upstream has the log that was read.
    fn second_reading(
        &self,
        source: &Source,
        events: &mpsc::Sender<Event>,
        same_log: watch::Receiver<bool>,
    ) -> SecondReading {
        SecondReading {
            store: self.store.clone(),
            client: self.followed.client.clone(),
            others: self.followed.others.clone(),
            lease: self.lease.clone(),
            events: events.clone(),
            same_log,
            status: Arc::clone(self.status),
            settings: self.rereading,
            position: source.rereading,
            renumbering: source.renumbering,
            missing: Missing::default(),
            pages: 1,
            unsettled_after: 0,
            unsettled_has_turn: true,
        }
    }

    /// Who asks once more for what was refused, likewise.
    fn doubts(
        &self,
        source: &Source,
        events: &mpsc::Sender<Event>,
        same_log: watch::Receiver<bool>,
    ) -> Doubts {
        Doubts {
            store: self.store.clone(),
            client: self.followed.client.clone(),
            numbering: self.followed.numbering,
            others: self.followed.others.clone(),
            lease: self.lease.clone(),
            events: events.clone(),
            same_log,
            renumbering: source.renumbering,
            settings: self.doubts.clone(),
            others_asked: BTreeSet::new(),
        }
    }

    fn writer(&self, committed: watch::Sender<u64>) -> Writer {
        Writer {
            store: self.store.clone(),
            lease: self.lease.clone(),
            feed: Arc::clone(self.feed),
            status: Arc::clone(self.status),
            committed,
        }
    }
}

/// Where an upstream is read by time from: as far as it was read before, or to about the time to which the log was read
/// by number. Whatever was created before that has come, and what is dated back comes with its number.
fn begin_by_time(source: &Source, upstream: &str, by_number: Option<Timestamp>) -> ByTime {
    let before = source.by_time.clone().filter(|by_time| by_time.upstream == upstream);
    let from = by_number.map_or(BEGINNING, |time| time - MARGIN);
    let before =
        before.unwrap_or(ByTime { upstream: upstream.to_owned(), read: from, second: from });
    ByTime { read: before.read.max(from), ..before }
}

/// Why the writer ended before it was told to.
fn unexpected_end(written: Result<Result<(), StoreError>, JoinError>) -> StoreError {
    match written {
        Ok(Ok(())) => StoreError::Unavailable("the writer ended".to_owned()),
        Ok(Err(error)) => error,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => StoreError::Unavailable(error.to_string()),
        },
    }
}

/// Why one who reads ended before the intake did, who listens.
fn unexpected_end_of_reading(read: Result<Gone, JoinError>) -> StoreError {
    match read.map_err(JoinError::try_into_panic) {
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Ok(Gone) | Err(Err(_)) => StoreError::Unavailable("a reader ended".to_owned()),
    }
}
