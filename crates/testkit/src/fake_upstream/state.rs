//! What the fake upstream has, what it is to do wrong, and what it was asked for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::ws::Message;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::entry::LogEntry;
use super::fault::{Fault, Route};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Instant,
    pub route: Route,
    /// Path and query.
    pub path: String,
    pub user_agent: String,
    pub authorization: String,
    pub accept_encoding: String,
}

/// The log and how it is told.
#[derive(Default)]
pub(super) struct Story {
    /// By sequence number, with the line of the sequenced export made already: the server is to
    /// be much faster than who is tested with it.
    pub(super) log: Vec<(LogEntry, Bytes)>,
    pub(super) faults: Vec<(Route, usize, Fault)>,
    /// Changes to pages that hold this sequence number, for so many more times.
    pub(super) garbled: HashMap<i64, (usize, String)>,
    /// Streams from below this are `OutdatedCursor`.
    pub(super) oldest_cursor: i64,
    /// The longest page, where it is shorter than the directory's.
    pub(super) longest_page: Option<usize>,
    /// It is as directories were before there were sequence numbers.
    pub(super) knows_no_numbers: bool,
    /// Answers by path that are not made from the log: status and body.
    pub(super) answers: HashMap<String, (u16, String)>,
    pub(super) asked: Vec<Asked>,
    /// What is submitted is not in the log yet.
    pub(super) withholds: bool,
    /// What was submitted meanwhile.
    pub(super) withheld: Vec<LogEntry>,
}

impl Story {
    /// Adds an entry at the end of the log.
    pub(super) fn push(&mut self, entry: LogEntry) {
        let line = Bytes::from(entry.sequenced());
        self.log.push((entry, line));
    }

    /// All that it has, withheld or not.
    pub(super) fn entries(&self) -> impl Iterator<Item = &LogEntry> {
        self.log.iter().map(|(entry, _)| entry).chain(&self.withheld)
    }

    /// The same, to be changed in what no line of the sequenced export says.
    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut LogEntry> {
        self.log.iter_mut().map(|(entry, _)| entry).chain(&mut self.withheld)
    }
}

pub(super) struct Shared {
    pub(super) story: Mutex<Story>,
    /// Changes with each change of the log.
    pub(super) version: watch::Sender<u64>,
    /// Sent as they are to all streams.
    pub(super) messages: broadcast::Sender<Message>,
    /// Ends the server and its connections. Another one for each start, so that no connection
    /// outlives a stop that is over before it has looked.
    pub(super) stop: Mutex<CancellationToken>,
}

impl Shared {
    pub(super) fn story(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap()
    }

    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.lock().unwrap().clone()
    }

    /// Until the server, as it runs now, is stopped.
    pub(super) fn stopped(&self) -> WaitForCancellationFutureOwned {
        self.stop().cancelled_owned()
    }
}
