//! Whether the log that we hold and the one that somebody else has are the same.
//!
//! ```text
//! somebody's log ──▶ History (verified) ──┐
//! our log        ──▶ History (verified) ──┴─▶ diff (pure) ──▶ Difference ──▶ report, record
//! ```
//!
//! The comparison is pure; what is done about a difference is separate, and nothing that is found
//! changes an operation that is held. [`sweep`] finds the identities to compare, [`peer`] asks about
//! them, [`check`] compares and records, and [`watch`] does this in the background for what changes.

mod as_it_comes;
pub mod check;
pub mod clock;
pub mod diff;
pub mod export_check;
pub mod finding;
pub mod fsck;
mod newest;
mod pages;
pub mod peer;
mod recheck;
mod said;
mod share;
mod suspect;
pub mod sweep;
pub mod sweep_file;
pub mod verdict;
pub mod verify;
pub mod watch;

pub use check::{CheckError, CheckedIdentity, Checker, Depth};
pub use diff::{Comparison, Difference, Said, Theirs, compare};
pub use export_check::SweptExport;
pub use finding::{Finding, Summary};
pub use newest::NewestOperations;
pub use pages::{Pages, SweepError};
pub use peer::{Peer, PeerError, PeerLog};
pub use suspect::{Order, Suspicion};
pub use sweep::Sweep;
pub use sweep_file::{SweepFile, SweepScope};
pub use verdict::OperationVerdict;
pub use verify::DumpJudge;
pub use watch::{Watch, WatchSettings};
