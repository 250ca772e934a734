//! The store: every accepted operation, every refused one, and the position of the follower, on
//! Postgres or SQLite.
//!
//! The store decides nothing about operations. [`crate::sync`] judges a batch and hands over a
//! [`Commit`] with everything that follows from it; the store writes all of it in one
//! transaction or nothing, and only for the follower that holds the lease at the position that
//! the commit starts from.

pub mod claims;
pub mod codec;
mod postgres;
mod record;
mod sqlite;

use std::path::Path;

use bytes::Bytes;

use self::claims::{Claimants, ClaimsIndex};
pub use self::postgres::Postgres;
pub use self::record::{
    DivergenceKind, NewDivergence, NewRefusal, Noted, Rejudged, StoredDivergence, StoredRefusal,
};
pub use self::sqlite::Sqlite;
use did_plc::claim::Value;
use did_plc::entry::{Logged, Received};
use did_plc::history::HeldOperation;
use did_plc::{Cid, Did, Timestamp};

/// An accepted operation, as it is written and as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOperation {
    /// The identity that it belongs to.
    pub did: Did,
    /// When the directory accepted it; unique within the identity.
    pub created_at: Timestamp,
    /// The directory's sequence number; none for operations that only a legacy dump had.
    pub sequence: Option<i64>,
    /// The signed DAG-CBOR. Its SHA-256 is the CID.
    pub signed: Bytes,
    /// Index of the rotation key that signed it, in the list that was in force.
    pub signer: u16,
    /// `created_at` of the operation of the same identity that nullified it.
    pub nullified_by: Option<Timestamp>,
    /// When the batch that brought it arrived here.
    pub received_at: Timestamp,
}

impl StoredOperation {
    /// The CID of its signed bytes.
    pub fn cid(&self) -> Cid {
        Cid::of(&self.signed)
    }

    /// As it was received, to be judged again.
    pub fn as_received(&self) -> Received {
        Received {
            did: self.did,
            cid: self.cid(),
            stated_cid: None,
            created_at: self.created_at,
            sequence: self.sequence,
            nullified: Some(self.nullified_by.is_some()),
            // Read-through has zero for what was never received.
            received_at: Some(self.received_at).filter(|at| at.millis() > 0),
            signed: self.signed.clone(),
        }
    }

    /// With what came of it when it was verified, to be put in its place in a history.
    pub fn as_held(&self) -> HeldOperation {
        let received = self.as_received();
        HeldOperation { received, signer: self.signer, nullified_by: self.nullified_by }
    }

    /// As an entry of the log to be written; `cid` is [`StoredOperation::cid`].
    pub fn logged<'a>(&'a self, cid: &'a Cid) -> Logged<'a> {
        Logged {
            did: &self.did,
            cid,
            created_at: self.created_at,
            sequence: self.sequence,
            nullified: self.nullified_by.is_some(),
            signed: &self.signed,
        }
    }
}

/// Everything that one batch changes, written in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// Cursor that the batch started from: must be the stored one, or nothing is written.
    pub cursor_before: i64,
    /// Cursor after the batch.
    pub cursor_after: i64,
    /// The CID that the upstream stated under that number; none when it stated none. What is
    /// stored stays where the cursor does not move.
    pub cursor_cid: Option<String>,
    /// New operations, in any order. `nullified_by` may be set already when one operation of the
    /// batch nullifies another.
    pub operations: Vec<StoredOperation>,
    /// Operations stored earlier that are now nullified: (identity, `created_at`, `created_at` of
    /// the one that nullified it).
    pub nullified: Vec<(Did, Timestamp, Timestamp)>,
    /// Operations stored earlier without a sequence number that the upstream has now numbered.
    pub numbered: Vec<(Did, Timestamp, i64)>,
    /// Lines that were refused.
    pub refusals: Vec<NewRefusal>,
    /// Kept refusals that were judged again.
    pub rejudged: Vec<Rejudged>,
    /// Differences that were noticed while judging.
    pub divergences: Vec<NewDivergence>,
    /// When the batch arrived (milliseconds since 1970; zero in [`Commit::default`]).
    pub received_at_millis: i64,
    /// True when the batch reached the upstream's present: from then on an identity that is not
    /// here does not exist.
    pub caught_up: bool,
}

/// What the store knows about the upstream that it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Base URL, without a slash at its end.
    pub upstream: String,
    /// Last sequence number that is committed; 0 before the first.
    pub cursor: i64,
    /// The CID that the upstream stated under that number, which need not be that of an operation
    /// that we hold; none when it stated none.
    pub cursor_cid: Option<String>,
    /// Raised by each follower that takes over.
    pub epoch: i64,
    /// When the log was caught up for the first time.
    pub caught_up_at: Option<Timestamp>,
}

/// The right to write as the one follower, until somebody raises the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The epoch that this follower writes under.
    pub epoch: i64,
}

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
    /// The setting `--database` cannot be used as it is.
    #[error("{0}")]
    Unusable(String),
}

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

/// The store, on one of its two backends. Cheap to clone: clones share their connections.
///
/// Reads never wait for the writer, and the writer never waits for them.
#[derive(Debug, Clone)]
pub enum Store {
    /// A Postgres server.
    Postgres(Postgres),
    /// A file, in this process.
    Sqlite(Sqlite),
}

/// Calls the same method of whichever backend it is.
macro_rules! backend {
    ($store:expr, $backend:ident => $call:expr) => {
        match $store {
            Store::Postgres($backend) => $call.await,
            Store::Sqlite($backend) => $call.await,
        }
    };
}

/// Operations of one identity as its audit log, JSON, which `verify` reads: our side of a difference.
pub fn audit_log(stored: &[StoredOperation]) -> String {
    let mut out = vec![b'['];
    for (index, operation) in stored.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let begun = out.len();
        // What cannot be written is damaged here; `fsck` says so, the evidence lacks it.
        if operation.logged(&operation.cid()).write_audit(&mut out).is_err() {
            out.truncate(begun);
            out.extend_from_slice(b"null");
        }
    }
    out.push(b']');
    String::from_utf8(out).unwrap_or_default()
}

/// Which backend a URL names.
enum Place<'a> {
    Sqlite(&'a Path),
    Postgres(&'a str),
}

impl Place<'_> {
    fn of(url: &str) -> Result<Place<'_>, StoreError> {
        if let Some(path) = url.strip_prefix("sqlite://").filter(|path| !path.is_empty()) {
            return Ok(Place::Sqlite(path.as_ref()));
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Place::Postgres(url));
        }
        // The beginning is enough to see the mistake; the rest may hold a password.
        let scheme = url.find("://").map(|at| at + "://".len());
        let given = match scheme.or_else(|| url.find([':', '=']).map(|at| at + 1)) {
            Some(end) => format!("{}…", &url[..end]),
            None => url.to_owned(),
        };
        Err(StoreError::Unusable(format!(
            "the setting --database is `{given}`; it takes sqlite://PATH, \
             postgres://USER@HOST/NAME or postgresql://USER@HOST/NAME"
        )))
    }
}

impl Store {
    /// Opens the store that `url` names, creating and migrating it as needed:
    /// `sqlite://PATH`, `postgres://…` or `postgresql://…`.
    pub async fn open(url: &str) -> Result<Store, StoreError> {
        match Place::of(url)? {
            Place::Sqlite(path) => Sqlite::open(path).await.map(Store::Sqlite),
            Place::Postgres(url) => Postgres::open(url).await.map(Store::Postgres),
        }
    }

    /// Opens the store that `url` names and that must be there already, for what has nothing to say
    /// of an empty one: a mistake in the name is [`StoreError::Unusable`] and creates nothing.
    pub async fn open_existing(url: &str) -> Result<Store, StoreError> {
        match Place::of(url)? {
            Place::Sqlite(path) => Sqlite::open_existing(path).await.map(Store::Sqlite),
            Place::Postgres(url) => Postgres::open_existing(url).await.map(Store::Postgres),
        }
    }

    // ── reading

    /// What is followed, or none before the first [`Store::follow`].
    pub async fn source(&self) -> Result<Option<Source>, StoreError> {
        backend!(self, store => store.source())
    }

    /// All operations of these identities, nullified ones included, by DID (as bytes) and
    /// `created_at`.
    pub async fn histories(&self, dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.histories(dids))
    }

    /// All operations of one identity, nullified ones included, by `created_at`.
    pub async fn history(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.history(did))
    }

    /// The newest operation of an identity that is not nullified.
    pub async fn head(&self, did: &Did) -> Result<Option<StoredOperation>, StoreError> {
        backend!(self, store => store.head(did))
    }

    /// At most `limit` operations with a sequence number above `after`, ascending.
    pub async fn export_by_sequence(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.export_by_sequence(after, limit))
    }

    /// At most `limit` operations created after `after`, numbered or not, by `created_at` and then
    /// the CID's text bytewise.
    pub async fn export_by_time(
        &self,
        after: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.export_by_time(after, limit))
    }

    /// The highest sequence number that an operation holds.
    pub async fn last_sequence(&self) -> Result<Option<i64>, StoreError> {
        backend!(self, store => store.last_sequence())
    }

    /// The `limit` operations with the highest sequence numbers, descending.
    pub async fn latest(&self, limit: usize) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.latest(limit))
    }

    /// The operations that hold these sequence numbers, ascending.
    pub async fn sequences(&self, sequences: &[i64]) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.sequences(sequences))
    }

    /// At most `limit` kept refusals with an id above `after_id`, ascending, accepted ones
    /// included; of one DID as its lines stated it, if given.
    pub async fn refusals(
        &self,
        did: Option<&str>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        backend!(self, store => store.refusals(did, after_id, limit))
    }

    /// The refusals that are to be judged again once one of these operations is accepted, by id.
    pub async fn refusals_awaiting(&self, cids: &[Cid]) -> Result<Vec<StoredRefusal>, StoreError> {
        backend!(self, store => store.refusals_awaiting(cids))
    }

    /// At most `limit` of the operations that refusals wait for, each once.
    pub async fn awaited(&self, limit: usize) -> Result<Vec<Cid>, StoreError> {
        backend!(self, store => store.awaited(limit))
    }

    /// At most `limit` divergences with an id above `after_id`, ascending; those of a DID, of a
    /// kind, open or closed, where given.
    pub async fn divergences(
        &self,
        did: Option<&str>,
        kind: Option<&str>,
        open: Option<bool>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredDivergence>, StoreError> {
        backend!(self, store => store.divergences(did, kind, open, after_id, limit))
    }

    /// The first identity after this one in the order of the DIDs' bytes, without reading any of
    /// its operations: the way around a damaged one.
    pub async fn next_identity(&self, after: Option<Did>) -> Result<Option<Did>, StoreError> {
        backend!(self, store => store.next_identity(after))
    }

    /// Whole identities after `after` in the order of the DID's bytes, each with all of its
    /// operations by `created_at`: as many as hold about `operations` operations, and at least
    /// one while there is one.
    pub async fn next_histories(
        &self,
        after: Option<Did>,
        operations: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.next_histories(after, operations))
    }

    /// How much there is.
    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        backend!(self, store => store.statistics())
    }

    /// What the connections are doing at this moment. Waits for nothing.
    pub fn load(&self) -> Load {
        match self {
            Store::Postgres(store) => store.load(),
            Store::Sqlite(store) => store.load(),
        }
    }

    /// How far the index of claims is; none where there is no such index.
    pub async fn claims_index(&self) -> Result<Option<ClaimsIndex>, StoreError> {
        backend!(self, store => store.claims_index())
    }

    /// Identities after `after`, in the order of their bytes, that may have claimed a value: those of
    /// at most `limit` rows of the index.
    pub async fn claimants(
        &self,
        value: &Value<'_>,
        after: Option<Did>,
        limit: usize,
    ) -> Result<Claimants, StoreError> {
        backend!(self, store => store.claimants(value, after, limit))
    }

    /// Those of these pairs ([`claims::pairs`]) that are not in the index.
    pub async fn absent_claims(&self, pairs: &[i64]) -> Result<Vec<i64>, StoreError> {
        backend!(self, store => store.absent_claims(pairs))
    }

    // ── writing

    /// Becomes the one follower of `upstream`: takes the lease (raising the epoch) and returns the
    /// position to follow from. [`StoreError::LostLease`] while another follower is alive. The
    /// upstream is recorded when none was; that it is the recorded one is for the caller to see.
    pub async fn follow(&self, upstream: &str) -> Result<(Lease, Source), StoreError> {
        backend!(self, store => store.follow(upstream))
    }

    /// Keeps the lease; to be called every few seconds.
    pub async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        backend!(self, store => store.renew(lease))
    }

    /// Gives the lease up, so that the next follower need not wait for it to run out.
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        backend!(self, store => store.release(lease))
    }

    /// Remembers another upstream as the one whose log this is.
    pub async fn set_upstream(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        backend!(self, store => store.set_upstream(lease, upstream))
    }

    /// Writes all of a commit in one transaction, or nothing. [`StoreError::LostLease`] unless the
    /// lease is still the newest and the stored cursor the one that the commit starts from.
    pub async fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        backend!(self, store => store.commit(lease, commit))
    }

    /// Records what a comparison of one identity with one source found: `seen` is there now, and
    /// an open record of the same source and identity that is of one of the kinds that the
    /// comparison covers, and is not among `seen`, is closed. Needs no lease: nothing that a
    /// follower writes depends on it.
    pub async fn note_divergences(
        &self,
        source: &str,
        did: &str,
        covered: &[&str],
        seen: &[NewDivergence],
        now: Timestamp,
    ) -> Result<Noted, StoreError> {
        backend!(self, store => store.note_divergences(source, did, covered, seen, now))
    }

    /// Closes the divergence with this id, which was found to be gone.
    pub async fn close_divergence(&self, id: i64, now: Timestamp) -> Result<(), StoreError> {
        backend!(self, store => store.close_divergence(id, now))
    }

    /// Whether a commit survives a loss of power (`live`), or only a crash of this process: what
    /// was lost while catching up is fetched again.
    pub async fn set_durability(&self, live: bool) -> Result<(), StoreError> {
        backend!(self, store => store.set_durability(live))
    }

    /// Begins the index of claims where there is none and something is followed, and has the
    /// commits of this process, once the index is complete and the upstream's present is followed
    /// ([`Store::set_durability`]), keep it so. What it lacks is for [`Store::build_claims`].
    pub async fn keep_claims(&self) -> Result<(), StoreError> {
        backend!(self, store => store.keep_claims())
    }

    /// Brings about `limit` operations more into the index of claims. Needs no lease: it runs beside
    /// the follower, and another builder's work is recognised.
    pub async fn build_claims(&self, limit: usize) -> Result<(), StoreError> {
        backend!(self, store => store.build_claims(limit))
    }
}
