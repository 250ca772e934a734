//! One session: reader, intake and writer from the stored cursor on, under one lease.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::candidates::Followed;
use super::doubts::{DoubtSettings, Doubts};
use super::head;
use super::intake::{End, Intake};
use super::missing::Missing;
use super::reader::{Event, Gone, Reader};
use super::second_reading::{RereadingSettings, SecondReading};
use super::writer::Writer;
use crate::judge::{BatchJudge, Lines, NotJson};
use crate::live::{Feed, Status};
use crate::store::{Lease, Source, Store, StoreError};

/// Events between reader and intake; the reader itself holds a few pages more.
const EVENTS: usize = 4;
/// Judged batches that wait for the writer.
const PREPARED: usize = 2;

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
        // Dropped, it ends; so do those below.
        let learning = head::learn(self.followed.client.clone(), Arc::clone(&status));
        let _learning = AbortOnDropHandle::new(tokio::spawn(learning));
        let mut readers = self.again(source, &sender, same_log);
        let reader = Reader::new(self.followed, source, sender, Arc::clone(&status), confirmed);
        readers.spawn(reader.run());
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
            waiting: None,
            writer: work,
        };
        let end = tokio::select! {
            biased;
            end = intake.run(shutdown) => end?,
            written = &mut writer => return Err(unexpected_end(written)),
            Some(read) = readers.join_next() => return Err(unexpected_end_of_reading(read)),
        };
        drop(readers);
        // Everything that was judged is written before the session ends in order.
        match writer.await {
            Ok(Ok(())) => Ok(end),
            written => Err(unexpected_end(written)),
        }
    }

    /// The tasks that ask the upstream once more for what was read already, while it has the log that was read.
    fn again(
        &self,
        source: &Source,
        events: &mpsc::Sender<Event>,
        same_log: watch::Receiver<bool>,
    ) -> JoinSet<Gone> {
        let second = SecondReading {
            store: self.store.clone(),
            client: self.followed.client.clone(),
            others: self.followed.others.clone(),
            lease: self.lease.clone(),
            events: events.clone(),
            same_log: same_log.clone(),
            status: Arc::clone(self.status),
            settings: self.rereading,
            position: source.rereading,
            renumbering: source.renumbering,
            missing: Missing::default(),
            pages: 1,
            unsettled_after: 0,
            unsettled_has_turn: true,
        };
        let doubts = Doubts {
            store: self.store.clone(),
            client: self.followed.client.clone(),
            others: self.followed.others.clone(),
            lease: self.lease.clone(),
            events: events.clone(),
            same_log,
            renumbering: source.renumbering,
            settings: self.doubts.clone(),
            others_asked: BTreeSet::new(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(second.run());
        tasks.spawn(doubts.run());
        tasks
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
