//! The bounds on an exchange with an upstream.

use std::time::Duration;

/// The most lines of the export that the directory gives at once.
pub const MAX_LINES: usize = 1000;

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
            page: MAX_LINES,
            pages_ahead: PAGES_AHEAD,
            bytes_ahead: BYTES_AHEAD,
            stuck_attempts: STUCK_ATTEMPTS,
            backoff_first: BACKOFF_FIRST,
            backoff_longest: BACKOFF_LONGEST,
            retry_after_longest: RETRY_AFTER_LONGEST,
            gather: GATHER,
            gather_messages: MAX_LINES,
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
