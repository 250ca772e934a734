//! The clock, which only the edge of an audit asks: who compares is told the time.

use std::time::{Duration, SystemTime};

use did_plc::Timestamp;

/// What was accepted less than this before the peer was asked may be on one side only: it is on
/// its way, and clocks differ.
pub const GRACE: Duration = Duration::from_secs(10);

/// What was accepted until then has reached everybody who is up to date.
pub fn settled() -> Timestamp {
    now() - GRACE
}

/// The latest time that anybody's operation may honestly be dated at.
pub(super) fn latest() -> Timestamp {
    now() + GRACE
}

/// The present.
pub(super) fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
