//! The names under which judging leaves records.

/// An operation whose `createdAt` is well before it was received.
pub const BACKDATED: &str = "backdated";
/// An operation that came again with another statement about it: its CID, its `createdAt`, its
/// sequence number.
pub const RESTATED: [&str; 3] = ["restated-cid", "restated-created-at", "restated-sequence"];
/// A kept line that is not JSON.
pub const NOT_JSON: &str = "not-json";
/// A kept line whose `type` is not known.
pub const UNKNOWN_TYPE: &str = "unknown-type";
