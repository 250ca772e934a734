//! The clock of this machine.

use std::time::SystemTime;

use did_plc::Timestamp;

/// What it says now.
pub fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
