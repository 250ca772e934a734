//! Figures about a store.

use metrics::{counter, gauge};

use super::claims::ClaimsIndex;

/// Refusals and divergences are counted up to so many: a lying upstream makes any number of them, and to count a
/// million takes a second.
pub const MOST_COUNTED: u64 = 10_000;

/// What the store holds, for a status page and for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Accepted operations, nullified ones included.
    pub operations: u64,
    /// Identities.
    pub identities: u64,
    /// Kept refusals that were not accepted since, at most [`MOST_COUNTED`].
    pub refusals: u64,
    /// Refusals that were kept once and went for newer ones.
    pub forgotten_refusals: u64,
    /// Divergences that are not closed, at most [`MOST_COUNTED`].
    pub open_divergences: u64,
    /// Divergences that were recorded once and went for newer ones.
    pub forgotten_divergences: u64,
    /// Bytes that the database takes on disk, indexes included.
    pub bytes: u64,
    /// How far the index of claims is; none where there is no such index.
    pub claims: Option<ClaimsIndex>,
    /// Bytes of it; about, on SQLite, which does not know them without reading it all.
    pub claims_bytes: u64,
}

impl Statistics {
    /// States all of this as metrics.
    pub fn state_metrics(&self) {
        gauge!("plc_store_operations").set(self.operations as f64);
        gauge!("plc_store_identities").set(self.identities as f64);
        gauge!("plc_store_refusals").set(self.refusals as f64);
        counter!("plc_refusals_forgotten_total").absolute(self.forgotten_refusals);
        gauge!("plc_store_open_divergences").set(self.open_divergences as f64);
        counter!("plc_divergences_forgotten_total").absolute(self.forgotten_divergences);
        gauge!("plc_store_bytes").set(self.bytes as f64);
        if let Some(index) = self.claims {
            gauge!("plc_index_bytes").set(self.claims_bytes as f64);
            gauge!("plc_index_behind_operations").set(index.behind() as f64);
        }
    }
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

impl Load {
    /// States all of this as metrics.
    pub fn state_metrics(&self) {
        for (state, connections) in [("busy", self.busy), ("idle", self.idle)] {
            gauge!("plc_store_connections", "state" => state).set(connections as f64);
        }
        gauge!("plc_store_waiting").set(self.waiting as f64);
    }
}
