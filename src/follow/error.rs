//! Why following ends for good.

use crate::store::StoreError;

/// Why following ends for good.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store was filled from another upstream, and this one tells another story.
    #[error(
        "--upstream {given} is not the log that this database holds (it was filled from {remembered}): at sequence number {sequence} it has {theirs}, and we hold {ours}; use the upstream of before, or another database; if it has the same operations under other numbers, `plc-replica renumber --upstream {given}` turns this database to it"
    )]
    OtherUpstream {
        /// The upstream as set.
        given: String,
        /// The upstream that the store remembers.
        remembered: String,
        /// Where both differ.
        sequence: i64,
        /// What we hold there.
        ours: String,
        /// What the upstream has there.
        theirs: String,
    },
    /// The store cannot be used at all.
    #[error(transparent)]
    Store(#[from] StoreError),
}
