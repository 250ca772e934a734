//! How fresh an answer is.

use did_plc::Timestamp;

use crate::live::Status;

/// How fresh an answer is, to be taken before the store is read: the answer then has everything that this promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// The upstream's sequence number up to which every operation is in the answer.
    pub sequence: i64,
    /// The time up to which ([`Status::as_of`]).
    pub as_of: Option<Timestamp>,
    /// Whether the log was caught up once: what is not in the answer does not exist.
    pub caught_up: bool,
}

impl Freshness {
    /// How fresh what is read from the primary from now on will be.
    pub fn now(status: &Status) -> Freshness {
        // In this order: what was committed before it was caught up is in the number.
        let caught_up = status.caught_up();
        let as_of = status.as_of();
        Freshness { sequence: status.sequence(), as_of, caught_up }
    }

    /// What both promise.
    pub fn least(self, other: Freshness) -> Freshness {
        Freshness {
            sequence: self.sequence.min(other.sequence),
            as_of: self.as_of.min(other.as_of),
            caught_up: self.caught_up && other.caught_up,
        }
    }
}
