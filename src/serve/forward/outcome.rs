//! What became of a write, for the client and for the metrics.

use ::metrics::counter;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Stated on every answer to an operation that was to be passed on.
const HEADER: HeaderName = HeaderName::from_static("plc-forwarded");

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not passed on: it is wrong, or beyond a limit.
    RefusedHere,
    /// It could not be sent.
    NotSent,
    /// The upstream has not taken it.
    Refused,
    /// The upstream has taken it, and it has not come here yet.
    Accepted,
    /// The upstream has taken it, and it is here.
    Committed,
    /// It was sent, and nobody has said what became of it.
    Unknown,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Outcome::RefusedHere => "refused-here",
            Outcome::NotSent => "not-sent",
            Outcome::Refused => "refused",
            Outcome::Accepted => "accepted",
            Outcome::Committed => "committed",
            Outcome::Unknown => "unknown",
        }
    }

    /// Counts it.
    pub fn count(self) {
        counter!("plc_writes_total", "outcome" => self.name()).increment(1);
    }

    /// States it.
    pub fn state(self, headers: &mut HeaderMap) {
        headers.insert(HEADER, HeaderValue::from_static(self.name()));
    }
}
