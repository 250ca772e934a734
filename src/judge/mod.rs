//! The one way from received lines to a verdict, and to what is to be written.
//!
//! ```text
//! lines ──decode──▶ entries ──group──▶ chains loaded ──▶ in order? ──judge──▶ verdicts ──▶ Commit
//!         all cores         by identity  cache, then one    │       all cores        ▲
//!                                        query              └─late──▶ all that is ───┘
//!                                                                     known, judged
//!                                                                     in order of time
//! ```
//!
//! Following and importing go the whole way ([`BatchJudge`]); what judges a log that is no store's
//! (`verify`) keeps all chains itself ([`SpillingChains`]), reads what came late once more ([`LateLines`]), and
//! makes its findings of the verdicts. Nothing here writes to the store: a crash at any step costs the work on what
//! has not been committed.

mod ahead;
mod batch;
mod chains;
mod cut;
mod decode;
mod late;
mod newcomers;
mod numbers;
mod outcome;
mod spill;
mod temporary;
mod verdict;
mod whole;

pub use batch::BatchJudge;
pub use chains::{ChainCache, chain_of};
pub use cut::{Course, Cut, Lines, NotJson, Part};
pub use decode::{Decoded, Position, decode};
pub use late::{GatheredLines, LateLines};
pub use outcome::Prepared;
pub use spill::{Met, SpillingChains};
pub use temporary::SpillError;
pub use verdict::{Candidate, Group, Judged, by_identity, group, judge};
