//! Figures about a store.

use super::claims::ClaimsIndex;

/// What the store holds, for a status page and for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Accepted operations, nullified ones included.
    pub operations: u64,
    /// Identities.
    pub identities: u64,
    /// Kept refusals that were not accepted since.
    pub refusals: u64,
    /// Divergences that are not closed.
    pub open_divergences: u64,
    /// Bytes that the database takes on disk, indexes included.
    pub bytes: u64,
    /// How far the index of claims is; none where there is no such index.
    pub claims: Option<ClaimsIndex>,
    /// Bytes of it; about, on SQLite, which does not know them without reading it all.
    pub claims_bytes: u64,
}

/// What a store's connections are doing, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections with work under way.
    pub busy: usize,
    /// Connections that are kept open for the next work.
    pub idle: usize,
    /// Reads that wait for a connection.
    pub waiting: usize,
}
