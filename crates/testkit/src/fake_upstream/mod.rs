//! A directory to follow in tests: a real HTTP and WebSocket server on a port of its own that
//! serves any log, lets it grow and change, and fails on request in every way we know of.
//!
//! ```ignore
//! let upstream = FakeUpstream::start(load(path)).await;
//! upstream.fail(Route::Export, 2, Fault::CutLine);   // the next two pages
//! upstream.append(entry);                            // streams get it at once, as what is submitted by POST
//! upstream.alter(7, |entry| entry.created_at = "…".into());
//! ```

mod answers;
mod entry;
mod fault;
mod query;
mod state;
mod streams;
mod writes;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use answers::answer;
pub use entry::{LogEntry, load};
pub use fault::{Fault, Route};
pub use state::Asked;
use state::Shared;

/// The server. It ends when it is dropped.
pub struct FakeUpstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.shared.stop().cancel();
    }
}

impl FakeUpstream {
    /// Serves this log on a free port of the loopback.
    pub async fn start(log: impl IntoIterator<Item = LogEntry>) -> FakeUpstream {
        let shared = Arc::new(Shared {
            story: Mutex::default(),
            version: watch::channel(0).0,
            messages: broadcast::channel(1024).0,
            stop: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(listener, Arc::clone(&shared));
        let upstream = FakeUpstream { shared, address, server };
        upstream.append_all(log);
        upstream
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds an entry, at the place of its sequence number.
    pub fn append(&self, entry: LogEntry) {
        self.append_all([entry]);
    }

    /// Adds entries.
    pub fn append_all(&self, entries: impl IntoIterator<Item = LogEntry>) {
        self.change(|log| {
            let mut in_order = true;
            for entry in entries {
                in_order &= log.last().is_none_or(|(last, _)| last.seq <= entry.seq);
                let line = Bytes::from(entry.sequenced());
                log.push((entry, line));
            }
            // A long log that grows is not sorted at every step.
            if !in_order {
                log.sort_by_key(|(entry, _)| entry.seq);
            }
        });
    }

    /// Takes the entry with this number out of the log.
    pub fn delete(&self, seq: i64) {
        self.change(|log| log.retain(|(entry, _)| entry.seq != seq));
    }

    /// Takes everything after this number out of the log, as a restored backup does.
    pub fn rewind(&self, seq: i64) {
        self.change(|log| log.retain(|(entry, _)| entry.seq <= seq));
    }

    /// Takes out everything after this number and adds these, in one step.
    pub fn replace_after(&self, seq: i64, entries: Vec<LogEntry>) {
        self.change(|log| {
            log.retain(|(entry, _)| entry.seq <= seq);
            log.extend(entries.into_iter().map(|entry| {
                let line = Bytes::from(entry.sequenced());
                (entry, line)
            }));
        });
    }

    /// Changes the entry with this number.
    pub fn alter(&self, seq: i64, alter: impl FnOnce(&mut LogEntry)) {
        self.change(|log| {
            let (entry, line) = log.iter_mut().find(|(entry, _)| entry.seq == seq).unwrap();
            alter(entry);
            *line = Bytes::from(entry.sequenced());
        });
    }

    /// Adds an entry that nullifies the one with this number, in one step as the directory does.
    pub fn recover(&self, recovery: LogEntry, nullified: i64) {
        self.change(|log| {
            let found = log.iter_mut().rfind(|(entry, _)| entry.seq == nullified);
            let (entry, line) = found.unwrap();
            entry.nullified = true;
            *line = Bytes::from(entry.sequenced());
            let line = Bytes::from(recovery.sequenced());
            log.push((recovery, line));
        });
    }

    /// What it holds.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.story().log.iter().map(|(entry, _)| entry.clone()).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(LogEntry, Bytes)>)) {
        change(&mut self.shared.story().log);
        self.shared.version.send_modify(|version| *version += 1);
    }

    /// Fails so many requests of a route; `usize::MAX` stands for all of them. Faults of one route
    /// happen in the order in which they were asked for.
    pub fn fail(&self, route: Route, times: usize, fault: Fault) {
        self.shared.story().faults.push((route, times, fault));
    }

    /// Ends all faults.
    pub fn mend(&self) {
        let mut story = self.shared.story();
        story.faults.clear();
        story.garbled.clear();
    }

    /// Shows this text instead of the line with this number, on so many pages.
    pub fn garble(&self, seq: i64, times: usize, text: &str) {
        self.shared.story().garbled.insert(seq, (times, text.to_owned()));
    }

    /// Streams from a cursor below this one are closed as `OutdatedCursor`.
    pub fn forget_streams_before(&self, cursor: i64) {
        self.shared.story().oldest_cursor = cursor;
    }

    /// Pages of the export have at most so many lines, whatever is asked for.
    pub fn give_at_most(&self, lines: usize) {
        self.shared.story().longest_page = Some(lines);
    }

    /// Whether it is as directories were before there were sequence numbers: no line has one, there is no stream, and
    /// what comes after a number is what comes after the date that JavaScript makes of it.
    pub fn know_no_numbers(&self, knows_none: bool) {
        self.shared.story().knows_no_numbers = knows_none;
    }

    /// Answers this path otherwise than the log would have it.
    pub fn answer(&self, path: &str, status: u16, body: &str) {
        self.shared.story().answers.insert(path.to_owned(), (status, body.to_owned()));
    }

    /// Answers this path as the log would have it again.
    pub fn forget_answer(&self, path: &str) {
        self.shared.story().answers.remove(path);
    }

    /// From now on what is submitted is taken, and is in no page and no stream before [`FakeUpstream::release`]: the
    /// directory numbers an operation after it has taken it.
    pub fn withhold(&self) {
        self.shared.story().withholds = true;
    }

    /// Ends that, and has what was taken meanwhile in pages and streams.
    pub fn release(&self) {
        let withheld = {
            let mut story = self.shared.story();
            story.withholds = false;
            std::mem::take(&mut story.withheld)
        };
        self.append_all(withheld);
    }

    /// Sends this text to all open streams, whatever it is.
    pub fn say(&self, message: &str) {
        let _ = self.shared.messages.send(Message::text(message));
    }

    /// Pings all open streams from now on, as the directory does while there is nothing to tell.
    pub fn ping_streams_every(&self, period: Duration) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            while let Some(shared) = shared.upgrade() {
                let _ = shared.messages.send(Message::Ping(Bytes::new()));
                drop(shared);
                sleep(period).await;
            }
        });
    }

    /// Closes all open streams.
    pub fn close_streams(&self, code: u16, reason: &'static str) {
        let close = CloseFrame { code, reason: reason.into() };
        let _ = self.shared.messages.send(Message::Close(Some(close)));
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.shared.messages.receiver_count()
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.story().asked.clone()
    }

    /// How often a route was asked for.
    pub fn asked_for(&self, route: Route) -> usize {
        self.shared.story().asked.iter().filter(|asked| asked.route == route).count()
    }

    /// Goes away: ends every connection and refuses new ones.
    pub async fn stop(&mut self) {
        self.shared.stop().cancel();
        (&mut self.server).await.unwrap();
        // Which may still be telling something.
        while self.streams() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Comes back, at the same place with the same log.
    pub async fn start_again(&mut self) {
        *self.shared.stop.lock().unwrap() = CancellationToken::new();
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.server = serve(listener, Arc::clone(&self.shared));
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    let stopped = shared.stopped();
    tokio::spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(stopped).await.unwrap();
    })
}
