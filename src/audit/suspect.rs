//! What a sweep looks for: identities about which the two sides do not say exactly the same.

use serde::{Deserialize, Serialize};

/// The order in which both sides are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// By `createdAt`. What is compared includes the nullified flags.
    Time,
    /// By sequence number, where both sides have the same. What is compared includes the number.
    Sequence,
}

/// Suspicions that are kept of one identity. More of them would add nothing to what is reported:
/// that the export tells another history of it.
pub const MAX_SUSPICIONS: usize = 32;

/// An operation that their export states otherwise than we do, or that one side lacks there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Suspicion {
    /// Its CID; where it could not be read, the one that was stated.
    pub cid: String,
    /// Where in the sweep's order their export stated it; where it did not, our place.
    pub at: i64,
}
