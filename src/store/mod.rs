//! The store: every accepted operation, every refused one, and the position of the follower, on
//! Postgres or SQLite.
//!
//! The store decides nothing about operations. Who follows hands over a [`Commit`] with
//! everything that follows from the verdicts on a batch; the store writes all of it in one
//! transaction or nothing, and only for the follower that holds the lease at the position that
//! the commit starts from.

pub mod claims;
pub mod codec;
mod commit;
mod divergence;
mod error;
mod news;
mod operation;
mod place;
mod postgres;
mod refusal;
mod room;
#[cfg(test)]
mod samples;
mod sqlite;
mod statistics;
mod word;

use std::path::Path;
use std::time::Duration;

use did_plc::claim::Value;
use did_plc::{Did, Timestamp};

use self::claims::{Claimants, ClaimsIndex};
pub use self::commit::{ByTime, Commit, Lease, Rereading, Rewritten, Source, Unsettled};
pub use self::divergence::{
    DIVERGENCE_BYTES, DivergenceKind, NewDivergence, Noted, StoredDivergence,
};
pub use self::error::StoreError;
pub use self::news::{CommitId, News};
pub use self::operation::{StoredOperation, audit_log};
use self::place::DatabasePlace;
pub use self::postgres::{Postgres, Presence, Replayed, Standby};
pub use self::refusal::{Asked, NewRefusal, RefusalKey, RefusalLimits, StoredRefusal};
pub use self::sqlite::Sqlite;
pub use self::statistics::{Load, MOST_COUNTED, Statistics};
pub use self::word::{UpstreamWord, Word};

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

impl Store {
    /// Opens the store that `url` names, creating and migrating it as needed:
    /// `sqlite://PATH`, `postgres://…` or `postgresql://…`. One of a newer version is opened where this one can read it, and
    /// nothing is written to it ([`StoreError::Outdated`]).
    pub async fn open(url: &str) -> Result<Store, StoreError> {
        match DatabasePlace::of(url)? {
            DatabasePlace::Sqlite(path) => Sqlite::open(path).await.map(Store::Sqlite),
            DatabasePlace::Postgres(url) => Postgres::open(url).await.map(Store::Postgres),
        }
    }

    /// Opens the store that `url` names and that must be there already, for what has nothing to say
    /// of an empty one: a mistake in the name is [`StoreError::Unusable`] and creates nothing.
    pub async fn open_existing(url: &str) -> Result<Store, StoreError> {
        match DatabasePlace::of(url)? {
            DatabasePlace::Sqlite(path) => Sqlite::open_existing(path).await.map(Store::Sqlite),
            DatabasePlace::Postgres(url) => Postgres::open_existing(url).await.map(Store::Postgres),
        }
    }

    /// Opens the store that `url` names to read from it, which takes no right to anything else: nothing is created, changed
    /// or locked. It must be there, with the tables that this version of the program makes, or a newer one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] where it is not; [`StoreError::Unavailable`] where it still has those of an older version.
    pub async fn open_to_read(url: &str) -> Result<Store, StoreError> {
        match DatabasePlace::of(url)? {
            DatabasePlace::Sqlite(path) => Sqlite::open_to_read(path).await.map(Store::Sqlite),
            DatabasePlace::Postgres(url) => Postgres::open_to_read(url).await.map(Store::Postgres),
        }
    }

    /// Copies the store that `url` names into a file that is not there yet, while others write to it, and returns its
    /// bytes. `progress` is told the bytes that are copied, and those of all.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] on Postgres, which has programs of its own for this; those of [`sqlite::back_up`].
    pub fn back_up(
        url: &str,
        to: &Path,
        progress: impl FnMut(u64, u64),
    ) -> Result<u64, StoreError> {
        match DatabasePlace::of(url)? {
            DatabasePlace::Sqlite(path) => sqlite::back_up(path, to, progress),
            DatabasePlace::Postgres(_) => Err(StoreError::Unusable(
                "a database in Postgres is backed up by the programs of Postgres, while it is in use: `pg_dump \
                 --format=custom --file=FILE URL`, and `pg_restore --dbname=URL FILE` brings it back"
                    .to_owned(),
            )),
        }
    }

    /// Whether the server of the database is being looked for, after a connection broke or could not be made. The
    /// store itself logs that it is away and that it is back: nobody else has to.
    pub fn is_sought(&self) -> bool {
        match self {
            Store::Postgres(store) => store.is_sought(),
            Store::Sqlite(_) => false,
        }
    }

    /// A hot standby of the database, named by a URL. It is not looked for yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] for what is no URL of Postgres, and on SQLite; others if the store is not there.
    pub async fn standby(&self, url: &str) -> Result<Standby, StoreError> {
        match self {
            Store::Postgres(store) => store.standby(url).await,
            Store::Sqlite(_) => Err(StoreError::Unusable(
                "the setting --read-database names hot standbys of a database in Postgres, and --database names a \
                 file of SQLite; several processes of one machine may read that file"
                    .to_owned(),
            )),
        }
    }

    /// Whether the server of the database answers, to be asked again and again; none where there is no server.
    pub fn presence(&self) -> Option<Presence> {
        match self {
            Store::Postgres(store) => Some(store.presence()),
            Store::Sqlite(_) => None,
        }
    }

    // ── reading

    /// What is followed, or none before the first [`Store::follow`].
    pub async fn source(&self) -> Result<Option<Source>, StoreError> {
        backend!(self, store => store.source())
    }

    /// What is followed, as it is committed at this moment, whatever may be under way; none before the first
    /// [`Store::follow`].
    pub async fn committed_source(&self) -> Result<Option<Source>, StoreError> {
        backend!(self, store => store.committed_source())
    }

    /// What the commits after this one tell clients of the stream, read at one moment; none where that is not to be seen any
    /// more: too much has come since, or that commit was taken back by a crash.
    pub async fn news(&self, after: CommitId) -> Result<Option<News>, StoreError> {
        backend!(self, store => store.news(after))
    }

    /// Tells when another process may have committed something.
    pub fn changes(&self) -> Changes {
        match self {
            Store::Postgres(store) => Changes::Postgres(store.changes()),
            Store::Sqlite(store) => Changes::Sqlite(store.changes()),
        }
    }

    /// All operations of these identities, nullified ones included, by DID (as bytes), and those of
    /// each in the order in which they are judged ([`did_plc::order`]).
    pub async fn histories(&self, dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.histories(dids))
    }

    /// Makes ready for identities that are not here and are about to be written: what a commit would have to wait for is
    /// read beforehand. Writes nothing.
    pub async fn expect(&self, dids: &[Did]) -> Result<(), StoreError> {
        match self {
            // It appends, and sorts what is new into its index in large pieces.
            Store::Sqlite(_) => Ok(()),
            Store::Postgres(store) => store.expect(dids).await,
        }
    }

    /// All operations of one identity, nullified ones included, in the order in which they are judged.
    pub async fn history(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        backend!(self, store => store.history(did))
    }

    /// The last operation of an identity in that order that is not nullified.
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

    /// The refusals of these identities that stand.
    pub async fn standing_refusals(&self, dids: &[Did]) -> Result<Vec<StoredRefusal>, StoreError> {
        backend!(self, store => store.standing_refusals(dids))
    }

    /// Those of the refusals with these ids that stand, ascending.
    pub async fn still_refused(&self, ids: &[i64]) -> Result<Vec<StoredRefusal>, StoreError> {
        backend!(self, store => store.still_refused(ids))
    }

    /// How many refusals of an identity stand of what was stated after this head of it, with a later time or with a
    /// higher number; what states neither may be anything, and is counted too, as is all where there is no head. At
    /// most a thousand are counted.
    pub async fn refused_after(
        &self,
        did: &Did,
        head: Option<&StoredOperation>,
    ) -> Result<usize, StoreError> {
        backend!(self, store => store.refused_after(did, head))
    }

    /// The identities, as their lines stated them, of the first `limit` standing refusals with an id above `after_id`,
    /// each once in this answer; it may be in the next one too. With them the highest id that was looked at.
    pub async fn refused_identities(
        &self,
        after_id: i64,
        limit: usize,
    ) -> Result<(Vec<String>, i64), StoreError> {
        backend!(self, store => store.refused_identities(after_id, limit))
    }

    /// At most `limit` standing refusals about which the upstream is to be asked by now, the longest due first.
    pub async fn doubtful(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        backend!(self, store => store.doubtful(now, limit))
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
    /// operations in that order: as many as hold about `operations` operations, and at least
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

    /// What is not there of the tables, or not as this program makes it: columns, constraints, indexes. Nothing, but
    /// where somebody has copied or changed them. Of those of a newer version it is not known what belongs there.
    pub async fn lacking(&self) -> Result<Vec<String>, StoreError> {
        backend!(self, store => store.lacking())
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
    /// position to follow from. [`StoreError::LostLease`] while another follower is alive, [`StoreError::Outdated`] once a
    /// newer version has brought the tables up to date. The
    /// upstream is recorded when none was; that it is the recorded one is for the caller to see.
    pub async fn follow(&self, upstream: &str) -> Result<(Lease, Source), StoreError> {
        self.follow_after(upstream, Duration::ZERO).await
    }

    /// The same where nobody has followed for so long: it leaves the lease to who comes back within that time.
    pub async fn follow_after(
        &self,
        upstream: &str,
        free_for: Duration,
    ) -> Result<(Lease, Source), StoreError> {
        backend!(self, store => store.follow(upstream, free_for))
    }

    /// How long a lease runs on when its holder has ended without giving it up; none where it ends with the process.
    pub fn lease_after_death(&self) -> Option<Duration> {
        match self {
            Store::Postgres(_) => Some(postgres::LEASE),
            Store::Sqlite(_) => None,
        }
    }

    /// Keeps the lease, and notes what the follower knows, if it says so; to be called every few seconds.
    pub async fn renew(&self, lease: &Lease, word: Option<&Word>) -> Result<(), StoreError> {
        backend!(self, store => store.renew(lease, word))
    }

    /// Gives the lease up, so that the next follower need not wait for it to run out.
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        backend!(self, store => store.release(lease))
    }

    /// Remembers another upstream as the one whose log this is.
    pub async fn set_upstream(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        backend!(self, store => store.set_upstream(lease, upstream))
    }

    /// Remembers another upstream, whose log is read from its beginning and whose numbers are taken over
    /// ([`Source::renumbering`]).
    pub async fn begin_renumbering(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        backend!(self, store => store.begin_renumbering(lease, upstream))
    }

    /// Writes all of a commit in one transaction, or nothing. [`StoreError::LostLease`] unless the
    /// lease is still the newest and the stored cursor the one that the commit starts from.
    pub async fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        backend!(self, store => store.commit(lease, commit))
    }

    /// Records what came of asking about refusals. [`StoreError::LostLease`] unless the lease is still the
    /// newest.
    pub async fn note_asked(
        &self,
        lease: &Lease,
        asked: &[Asked],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        backend!(self, store => store.note_asked(lease, asked, now))
    }

    /// Records how far what was read is read again. [`StoreError::LostLease`] unless the lease is still
    /// the newest.
    pub async fn set_rereading(
        &self,
        lease: &Lease,
        rereading: Rereading,
    ) -> Result<(), StoreError> {
        backend!(self, store => store.set_rereading(lease, rereading))
    }

    /// Records how far an upstream is read by time. [`StoreError::LostLease`] unless the lease is still the newest.
    pub async fn set_by_time(&self, lease: &Lease, by_time: &ByTime) -> Result<(), StoreError> {
        backend!(self, store => store.set_by_time(lease, by_time))
    }

    /// The unsettled numbers above `after` that were stated before a moment, at most so many, in ascending order.
    ///
    /// # Errors
    ///
    /// If the store is not there.
    pub async fn unsettled(
        &self,
        after: i64,
        before: Timestamp,
        count: usize,
    ) -> Result<Vec<Unsettled>, StoreError> {
        backend!(self, store => store.unsettled(after, before, count))
    }

    /// Notes that these numbers were read once more. Those that were stated otherwise again at `before` or later stay
    /// unsettled.
    ///
    /// # Errors
    ///
    /// [`StoreError::LostLease`] when somebody has taken over; others if the store is not there.
    pub async fn settle(
        &self,
        lease: &Lease,
        numbers: Vec<i64>,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        backend!(self, store => store.settle(lease, numbers, before))
    }

    /// Those of these volumes of archives, each by the SHA-256 of its lines, that were imported whole.
    ///
    /// # Errors
    ///
    /// If the store is not there.
    pub async fn imported(&self, contents: &[[u8; 32]]) -> Result<Vec<[u8; 32]>, StoreError> {
        backend!(self, store => store.imported(contents))
    }

    /// Notes that the volume of which the lines have this SHA-256 was imported whole. A crash before that has it
    /// imported once more, and every operation of it recognised.
    ///
    /// # Errors
    ///
    /// [`StoreError::LostLease`] when somebody has taken over; others if the store is not there.
    pub async fn note_imported(&self, lease: &Lease, content: [u8; 32]) -> Result<(), StoreError> {
        backend!(self, store => store.note_imported(lease, content))
    }

    /// How many bytes records of differences may take from the next one on. Each counts with both sides, its subject,
    /// twice its DID, and 400 for the rest of its record. What is beyond is forgotten with what brings more: the oldest
    /// of the same source and kind first, but the first of each.
    pub fn limit_divergences(&self, bytes: u64) {
        match self {
            Store::Postgres(store) => store.limit_divergences(bytes),
            Store::Sqlite(store) => store.limit_divergences(bytes),
        }
    }

    /// How much of what is refused the commits of this process keep, from now on.
    pub fn limit_refusals(&self, limits: RefusalLimits) {
        match self {
            Store::Postgres(store) => store.limit_refusals(limits),
            Store::Sqlite(store) => store.limit_refusals(limits),
        }
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

/// Tells when another process may have committed something.
#[derive(Debug)]
pub enum Changes {
    /// By notifications, and by asking now and then.
    Postgres(postgres::Changes),
    /// By asking often.
    Sqlite(sqlite::Changes),
}

impl Changes {
    /// Waits until there may be something new, for a second at most; true when somebody has said so. May be dropped while
    /// it waits.
    pub async fn next(&mut self) -> bool {
        match self {
            Changes::Postgres(changes) => changes.next().await,
            Changes::Sqlite(changes) => changes.next().await,
        }
    }

    /// To be called when there was something new of which nobody has said so: who should have is not relied on for a while.
    pub fn missed(&mut self) {
        match self {
            Changes::Postgres(changes) => changes.missed(),
            Changes::Sqlite(_) => {}
        }
    }

    /// Lets go of what is only needed while this is waited for.
    pub fn rest(&mut self) {
        match self {
            Changes::Postgres(changes) => changes.rest(),
            Changes::Sqlite(_) => {}
        }
    }
}
