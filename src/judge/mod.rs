//! The one way from received lines to a verdict, and to what is to be written.
//!
//! ```text
//! lines ──decode──▶ entries ──cut──▶ parts ──group──▶ chains loaded ──judge──▶ verdicts ──▶ Commit
//!         all cores          one number,     by identity  cache, then one     all cores
//!                            one operation                query
//! ```
//!
//! Following and importing go the whole way ([`BatchJudge`]); what judges a log that is no store's
//! (`verify`) keeps all chains itself ([`SpillingChains`]) and makes its findings of the verdicts. Nothing here
//! writes to the store: a crash at any step costs the work on what has not been committed.

mod batch;
mod chains;
mod cut;
mod decode;
mod outcome;
mod spill;
mod verdict;

pub use batch::BatchJudge;
pub use chains::ChainCache;
pub use cut::{Lines, NotJson, Part, Parts};
pub use decode::{Decoded, Position, decode};
pub use outcome::Prepared;
pub use spill::{SpillError, SpillingChains};
pub use verdict::{Candidate, Group, Judged, LineRef, group, judge};
