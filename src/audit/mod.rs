//! Whether the log that we hold and the one that somebody else tells are the same.
//!
//! ```text
//! somebody's log ──▶ History (verified) ──┐
//! our log        ──▶ History (verified) ──┴─▶ diff (pure) ──▶ Difference ──▶ report, record
//! ```
//!
//! The comparison is pure; what is done about a difference is separate, and nothing that is found
//! changes an operation that is held.

pub mod check;
pub mod diff;
pub mod doubt;
pub mod finding;
pub mod fsck;
pub mod history;
mod last_word;
pub mod peer;
pub mod state;
mod statement;
pub mod sweep;
pub mod verdict;
pub mod verify;
pub mod watch;

pub use check::{CheckError, Checker, Depth, Found};
pub use diff::{Comparison, Difference, Kind, Said, Theirs, compare};
pub use doubt::{Doubt, Export};
pub use finding::{Finding, Summary};
pub use history::{History, Statement, Step};
pub use last_word::LastWords;
pub use peer::{Peer, PeerError, Told};
pub use state::{Asked, State};
pub use sweep::{Order, Pages, Sweep, SweepError};
pub use verdict::Verdict;
pub use verify::DumpJudge;
pub use watch::{Watch, WatchSettings};
