//! Clients as a directory has them, for hours: lookups by the clock and readers of the stream, and what they must be
//! answered.

pub mod failures;
pub mod lookups;
pub mod questions;
pub mod readers;
