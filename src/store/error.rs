//! What can go wrong with a store.

/// Errors of the store, by what is to be done about them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or cannot write now (a full disk too): try again later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// What was read is not what was written: answer 500 for this identity, alarm, stop ingest.
    #[error("the store is damaged at {place}: {reason}")]
    Damaged {
        /// The identity, or the table, that is damaged.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another follower has taken over, or the stored cursor is not the one that the commit
    /// starts from. Nothing was written.
    #[error("another follower writes to this store: {0}")]
    LostLease(String),
    /// The connection broke while committing: written or not, nobody knows before the cursor is
    /// read back.
    #[error("the outcome of a commit is unknown: {0}")]
    OutcomeUnknown(String),
    /// The database does not allow what we have to do. Waiting alone does not help: somebody has to give us the
    /// right, and is waited for.
    #[error("the database does not allow what is asked of it: {0}")]
    Denied(String),
    /// A newer version of this program has brought the tables up to date. They can be read still, and are that version's to
    /// write. Nothing was written.
    #[error("{0}")]
    Outdated(String),
    /// The setting `--database` cannot be used as it is.
    #[error("{0}")]
    Unusable(String),
}
