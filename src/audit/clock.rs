//! What an audit reads off the clock, which only its edge asks: who compares is told the time.

use std::time::Duration;

use crate::clock::now;
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
