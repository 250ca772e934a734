//! What comes from an upstream: pages of its export, its live stream, files that somebody dumped.
//!
//! Everything here brings *raw lines*, in the order and with the bytes that were received; nothing
//! here judges an operation. What goes wrong on the way is an [`UpstreamFault`], a value that the
//! caller counts and logs; nothing that an upstream sends or withholds panics, spins or takes more
//! memory than [`Limits`] say.
//!
//! * [`ExportClient`] asks for a page, an audit log, or any other path;
//! * [`PagesAhead`] pages from a cursor to the end, fetching ahead of its consumer;
//! * [`Stream`] follows the WebSocket;
//! * [`Dump`] reads files, without async: it is used where there is no network.
//!
//! Memory: [`PagesAhead`] holds at most [`Limits::bytes_ahead`] of finished pages and one body in
//! flight of at most [`Limits::body`] (which may be twice that for a moment while it grows).
//! With the pages of the public directory (750 kB) this is 5 MB; with the worst that an upstream
//! can send, 80 MB. [`Stream`] holds at most [`Limits::gather_bytes`] and one message.

mod ahead;
mod dump;
mod export;
mod fault;
mod pace;
mod stream;

use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use ahead::{Fetched, PagesAhead};
pub use dump::{Block, Dump, DumpError, MAX_ENTRY, Progress};
pub use export::{Answer, ExportClient, Page, UnusableUpstream, is_json};
pub use fault::UpstreamFault;
pub use pace::{ASIDE_SHARE, Backoff, Priority, RequestBudget};
pub use stream::Stream;

use did_plc::Timestamp;

/// A page or a burst of the stream, as received. The unit of work of all that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Each a line of an export or a message of the stream, raw and not empty: slices of one
    /// body, which lives as long as any of them. Copy what is kept for longer.
    pub lines: Vec<Bytes>,
    /// When the last byte of it had arrived.
    pub received_at: Timestamp,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a batch comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A page of `/export?after=…`.
    Page {
        /// The cursor that was asked for: everything is after this sequence number.
        after: i64,
        /// The cursor of the next page. The same as `after` when nothing in the page moves it:
        /// an empty page, or one whose every line is damaged or unnumbered.
        next: i64,
        /// The number of lines that was asked for.
        asked: usize,
        /// Fewer lines came than were asked for, in a body that was complete: the end was near
        /// when the page was made.
        near_end: bool,
    },
    /// Messages of `/export/stream`.
    Stream,
    /// Entries of a file.
    Dump,
}

impl Batch {
    /// True for what reaches the upstream's present: what its stream brings, which is only opened
    /// once a page has reached the end, and a page that says, credibly, that it has. A page of
    /// nothing but damaged or unnumbered lines says nothing about the end of the log.
    pub fn reached_end(&self) -> bool {
        match self.origin {
            Origin::Page { after, next, near_end, .. } => {
                near_end && (next > after || self.lines.is_empty())
            }
            Origin::Stream => true,
            Origin::Dump => false,
        }
    }
}

/// Every bound on an exchange with an upstream. The defaults are for the public directory; tests
/// set shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Until a connection stands (DNS, TCP, TLS).
    pub connect: Duration,
    /// Between two signs of life of an answer: until its head, and between two pieces of its body.
    pub silence: Duration,
    /// For one whole answer.
    pub answer: Duration,
    /// Bytes of one body, uncompressed.
    pub body: usize,
    /// Lines to ask for in a page.
    pub page: usize,
    /// Pages that wait for the consumer.
    pub pages_ahead: usize,
    /// Bytes of the pages that wait for the consumer.
    pub bytes_ahead: usize,
    /// How often a page is fetched that nothing can be taken from, before it is handed over as it
    /// is.
    pub stuck_attempts: usize,
    /// First delay after a fault; doubled by each that follows.
    pub backoff_first: Duration,
    /// Longest delay that doubling leads to.
    pub backoff_longest: Duration,
    /// Longest `Retry-After` that is honoured.
    pub retry_after_longest: Duration,
    /// How long after a stream message others are gathered into the same batch.
    pub gather: Duration,
    /// Messages of a gathered batch.
    pub gather_messages: usize,
    /// Bytes of a gathered batch.
    pub gather_bytes: usize,
    /// Bytes of one stream message.
    pub message: usize,
    /// Without any frame for this long, a ping is sent on the stream.
    pub quiet: Duration,
    /// Without any frame for this long after the ping, the stream is given up.
    pub pong: Duration,
    /// How often an upstream that shows no fault is asked whether it still has what it gave us.
    pub check_shared: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: CONNECT,
            silence: SILENCE,
            answer: ANSWER,
            body: BODY,
            page: PAGE,
            pages_ahead: PAGES_AHEAD,
            bytes_ahead: BYTES_AHEAD,
            stuck_attempts: STUCK_ATTEMPTS,
            backoff_first: BACKOFF_FIRST,
            backoff_longest: BACKOFF_LONGEST,
            retry_after_longest: RETRY_AFTER_LONGEST,
            gather: GATHER,
            gather_messages: PAGE,
            gather_bytes: GATHER_BYTES,
            message: MESSAGE,
            quiet: QUIET,
            pong: PONG,
            check_shared: CHECK_SHARED,
        }
    }
}

/// Three lost SYNs (1 + 2 + 4 s) still connect.
const CONNECT: Duration = Duration::from_secs(10);
/// The directory answers a page within a second or two, also when its database is busy.
const SILENCE: Duration = Duration::from_secs(30);
/// A page of 750 kB at 6 kB/s. What came until then is used.
const ANSWER: Duration = Duration::from_secs(120);
/// A page of 1000 operations of 32 kB each; the directory takes none above 7.5 kB today.
const BODY: usize = 32 << 20;
/// The most that the directory gives.
const PAGE: usize = 1000;
/// Enough to hide the time of one slow request from the verifier; more only costs memory.
const PAGES_AHEAD: usize = 4;
/// Room for [`PAGES_AHEAD`] pages five times the usual size.
const BYTES_AHEAD: usize = 16 << 20;
/// Damage on the way is gone at the second attempt; what is still there at the third is theirs.
const STUCK_ATTEMPTS: usize = 3;
/// Long enough not to trouble a server that is restarting.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// An upstream that comes back is noticed within a minute.
const BACKOFF_LONGEST: Duration = Duration::from_secs(60);
/// The directory's rate limit looks back over 5 minutes; a longer wish is not taken on trust.
const RETRY_AFTER_LONGEST: Duration = Duration::from_secs(15 * 60);
/// A twentieth of the 100 ms within which an operation is to be committed.
const GATHER: Duration = Duration::from_millis(5);
/// Five pages' worth, for a backlog of large operations.
const GATHER_BYTES: usize = 4 << 20;
/// Far above any operation that the rules accept.
const MESSAGE: usize = 4 << 20;
/// The directory is rarely without an operation for this long.
const QUIET: Duration = Duration::from_secs(15);
/// A round trip, however bad the connection.
const PONG: Duration = Duration::from_secs(15);
/// A hundredth of the requests that the directory allows.
const CHECK_SHARED: Duration = Duration::from_secs(60);

/// The clock, asked at the edge only.
fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
