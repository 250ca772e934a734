//! Lookups: of identities, and of what is kept beside them.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, TryLockError};

use futures::future::try_join_all;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::error::damaged;
use super::prefix::{Entry, Prefix};
use super::recent::Recent;
use super::rows::{self, divergence_columns, operation_columns, source_columns};
use super::writer::beside;
use super::{Shared, Sqlite};
use crate::blocking;
use crate::store::operation::{head_of, sort_histories};
use crate::store::{
    Load, MOST_COUNTED, Source, Statistics, StoreError, StoredDivergence, StoredOperation,
};
use did_plc::Did;

/// A row for each entry of the index, if need be of nothing but nulls.
const OF_PREFIX: &str = concat!(
    "SELECT ",
    operation_columns!(),
    ", c.sequence FROM chains c LEFT JOIN operations o ON o.sequence = c.sequence
        WHERE c.prefix = ?1"
);

const OF_SEQUENCE: &str =
    concat!("SELECT ", operation_columns!(), " FROM operations o WHERE o.sequence = ?1");

/// Entries of the index from a prefix on. The second statement is for the rest of a prefix.
const ENTRIES: &str =
    "SELECT prefix, sequence FROM chains WHERE prefix >= ?1 ORDER BY prefix, sequence LIMIT ?2";
const MORE_ENTRIES: &str =
    "SELECT prefix, sequence FROM chains WHERE prefix = ?1 AND sequence > ?2 ORDER BY sequence";

const IS_INDEXED: &str = "SELECT 1 FROM chains WHERE prefix = ?1 AND sequence = ?2";

/// Threads that read the histories of many identities.
const PARALLEL_READS: usize = 4;
/// Identities for which one of them is begun at least.
const WORTH_A_READ: usize = 32;

const DID_OF: &str = "SELECT did FROM operations WHERE sequence = ?1";

pub(super) const SOURCE: &str = concat!("SELECT ", source_columns!(), " FROM sources");

const DIVERGENCES: &str = concat!(
    "SELECT ",
    divergence_columns!(),
    " FROM divergences WHERE id > ?1 AND (?3 IS NULL OR kind = ?3)
        AND (?4 IS NULL OR (closed_at IS NULL) = ?4) ORDER BY id LIMIT ?2"
);

const DIVERGENCES_OF: &str = concat!(
    "SELECT ",
    divergence_columns!(),
    " FROM divergences WHERE did = ?5 AND id > ?1 AND (?3 IS NULL OR kind = ?3)
        AND (?4 IS NULL OR (closed_at IS NULL) = ?4) ORDER BY id LIMIT ?2"
);

const OPEN_DIVERGENCES: &str = concat!(
    "SELECT ",
    divergence_columns!(),
    " FROM divergences WHERE closed_at IS NULL AND id > ?1 AND (?3 IS NULL OR kind = ?3)
        ORDER BY id LIMIT ?2"
);

/// The number of operations and that of identities are kept by the commits.
const STATISTICS: &str = "SELECT
    coalesce((SELECT operations FROM sources), 0),
    coalesce((SELECT identities FROM sources), 0),
    (SELECT count(*) FROM (SELECT 1 FROM refusals WHERE accepted_at IS NULL LIMIT ?1)),
    (SELECT count(*) FROM (SELECT 1 FROM divergences WHERE closed_at IS NULL LIMIT ?1)),
    coalesce((SELECT forgotten FROM sources), 0),
    coalesce((SELECT forgotten_divergences FROM sources), 0)";

/// What a pair takes in the index of claims, the free space of its pages included.
const BYTES_OF_A_PAIR: u64 = 20;

/// A transaction that reads, and ends with this value.
pub(super) struct Transaction<'a>(&'a Connection);

impl<'a> Transaction<'a> {
    pub(super) fn begin(connection: &'a Connection) -> Result<Transaction<'a>, StoreError> {
        connection.prepare_cached("BEGIN")?.execute([])?;
        Ok(Transaction(connection))
    }

    /// Takes its view of the database now; by itself it would at its first read.
    fn pin(&self) -> Result<(), StoreError> {
        self.0.prepare_cached("SELECT 1 FROM sources")?.exists([])?;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // A connection that is still in a transaction is not used again.
        if let Ok(mut statement) = self.0.prepare_cached("COMMIT") {
            let _ = statement.execute([]);
        }
    }
}

impl Shared {
    /// Reads in one transaction, with those entries that the index lacks in it.
    pub(super) fn with_recent<T>(
        &self,
        find: impl Fn(&Recent) -> Vec<Entry>,
        read: impl FnOnce(&Connection, Vec<Entry>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.readers.with(|connection| {
            loop {
                let version = self.recent.version();
                let transaction = Transaction::begin(connection)?;
                if self.following.load(Ordering::Acquire) {
                    transaction.pin()?;
                } else if !self.recent.catch_up(connection)? {
                    continue;
                }
                let recent = find(&self.recent);
                // Otherwise a commit has come in between: perhaps its rows are in the
                // transaction and its entries are not among those found.
                if self.recent.version() == version {
                    return read(connection, recent);
                }
            }
        })
    }

    /// The same for a read that is short: it is made again if there was a change meanwhile, which saves the
    /// statement that would take the transaction's view beforehand.
    fn with_few_recent<T>(
        &self,
        find: impl Fn(&Recent) -> Vec<Entry>,
        read: impl Fn(&Connection, &[Entry]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let tried = self.readers.with(|connection| {
            if !self.following.load(Ordering::Acquire) {
                return Ok(None);
            }
            let version = self.recent.version();
            let recent = find(&self.recent);
            let transaction = Transaction::begin(connection)?;
            let result = read(connection, &recent);
            drop(transaction);
            // Then nothing has changed since before the transaction took its view, at the first read.
            match self.recent.version() == version {
                true => result.map(Some),
                false => Ok(None),
            }
        })?;
        match tried {
            Some(result) => Ok(result),
            None => self.with_recent(find, |connection, recent| read(connection, &recent)),
        }
    }

    /// Calls `take` with each operation that is stored under the identity's prefix and is its own.
    fn each_of(
        &self,
        connection: &Connection,
        did: &Did,
        recent: &[Entry],
        mut take: impl FnMut(&Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let prefix = Prefix::of(did);
        let mut own = |row: &Row| match rows::did_bytes(row, 1)? {
            bytes if bytes == did.as_bytes() => take(row),
            bytes if is_under(bytes, prefix) => Ok(()),
            // It may have been an operation of this identity: saying nothing would be a lie.
            _ => Err(not_under(row.get(0)?)),
        };
        let mut indexed = Vec::new();
        let mut statement = connection.prepare_cached(OF_PREFIX)?;
        let mut found = statement.query([prefix])?;
        while let Some(row) = found.next()? {
            let sequence: i64 = row.get(rows::COLUMNS)?;
            if row.get_ref(0)? == ValueRef::Null {
                return Err(only_in_index(sequence));
            }
            if !recent.is_empty() {
                indexed.push(sequence);
            }
            own(row)?;
        }
        for &(_, sequence) in recent.iter().filter(|(of, _)| *of == prefix) {
            // What came out of order is in the index and, after a restart, here as well.
            if indexed.contains(&sequence) {
                continue;
            }
            let mut statement = connection.prepare_cached(OF_SEQUENCE)?;
            if let Some(row) = statement.query([sequence])?.next()? {
                own(row)?;
            }
        }
        Ok(())
    }

    fn operations_of(
        &self,
        connection: &Connection,
        did: &Did,
        recent: &[Entry],
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let mut operations = Vec::new();
        self.each_of(connection, did, recent, |row| {
            operations.push(rows::operation(row, connection, &self.interned)?);
            Ok(())
        })?;
        sort_histories(&mut operations);
        Ok(operations)
    }

    /// The entries of index and memory from a prefix on: about `limit`, and never half a prefix.
    fn entries_from(
        connection: &Connection,
        first: Prefix,
        limit: usize,
        recent: Vec<Entry>,
    ) -> Result<Vec<Entry>, StoreError> {
        let entry = |row: &Row| Ok((row.get(0)?, row.get(1)?));
        let mut entries: Vec<Entry> = all(connection, ENTRIES, (first, limit as i64), entry)?;
        let indexed_to = match entries.last() {
            Some(&last) if entries.len() >= limit => {
                entries.extend(all::<Entry>(connection, MORE_ENTRIES, last, entry)?);
                Some(last.0)
            }
            _ => None,
        };
        let recent_to = recent.last().filter(|_| recent.len() >= limit).map(|last| last.0);
        entries.extend(recent);
        // Beyond the nearer end, the other side has more that was not asked for.
        if let Some(end) = indexed_to.into_iter().chain(recent_to).min() {
            entries.retain(|entry| entry.0 <= end);
        }
        entries.sort_unstable();
        entries.dedup();
        Ok(entries)
    }
}

/// All rows of a statement, each made into a value.
pub(super) fn all<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    make: impl FnMut(&Row) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(parameters, make)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn only_in_index(sequence: i64) -> StoreError {
    damaged(format!("operation {sequence}"), "it is in the index only")
}

fn is_under(did: &[u8], prefix: Prefix) -> bool {
    Did::from_slice(did).is_some_and(|did| Prefix::of(&did) == prefix)
}

fn not_under(sequence: i64) -> StoreError {
    damaged(format!("operation {sequence}"), "a DID that is not the one it is indexed under")
}

/// Counts one who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sqlite {
    /// Runs a read of many rows apart from the server's threads. `doing` is what a panic in it is logged with.
    pub(super) async fn long_read<T: Send + 'static>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        // Never closed: the error cannot be, and would do no harm.
        let waiting = Waiting::new(&self.shared.waiting);
        let _turn = self.shared.long_reads.acquire().await.ok();
        drop(waiting);
        blocking::run(doing, move || read(&shared)).await
    }

    /// See [`crate::store::Store::load`].
    pub fn load(&self) -> Load {
        let (lent, idle) = self.shared.readers.lent_and_idle();
        // The connection that writes is always open.
        let writer = self.shared.writer.try_lock();
        let writing = usize::from(matches!(writer, Err(TryLockError::WouldBlock)));
        Load {
            busy: lent + writing,
            idle: idle + 1 - writing,
            waiting: self.shared.waiting.load(Ordering::Relaxed),
        }
    }

    /// See [`crate::store::Store::source`].
    pub async fn source(&self) -> Result<Option<Source>, StoreError> {
        self.shared.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SOURCE)?;
            Ok(statement.query_row([], rows::source).optional()?)
        })
    }

    /// See [`crate::store::Store::committed_source`].
    pub async fn committed_source(&self) -> Result<Option<Source>, StoreError> {
        self.source().await
    }

    /// See [`crate::store::Store::histories`].
    pub async fn histories(&self, dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        let mut dids = dids.to_vec();
        // Neighbours in the index one after the other.
        dids.sort_unstable();
        dids.dedup();
        // Where they are not in memory, reading is waiting for the disk, which does several things at a time.
        let share = dids.len().div_ceil(PARALLEL_READS).max(WORTH_A_READ);
        let reads = dids.chunks(share).map(|share| self.histories_in_order(share.to_vec()));
        Ok(try_join_all(reads).await?.into_iter().flatten().collect())
    }

    /// The histories of these identities, which are in their order.
    async fn histories_in_order(&self, dids: Vec<Did>) -> Result<Vec<StoredOperation>, StoreError> {
        self.long_read("reading histories", move |shared| {
            let mut prefixes: Vec<Prefix> = dids.iter().map(Prefix::of).collect();
            prefixes.dedup();
            shared.with_recent(
                |recent| recent.find(&prefixes),
                |connection, recent| {
                    let mut operations = Vec::new();
                    let mut recent = &recent[..];
                    for did in &dids {
                        // Both are in the order of prefixes.
                        let passed = recent.partition_point(|entry| entry.0 < Prefix::of(did));
                        recent = &recent[passed..];
                        let own = recent.partition_point(|entry| entry.0 <= Prefix::of(did));
                        operations.extend(shared.operations_of(connection, did, &recent[..own])?);
                    }
                    Ok(operations)
                },
            )
        })
        .await
    }

    /// See [`crate::store::Store::history`].
    pub async fn history(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        self.shared.with_few_recent(
            |recent| recent.find(&[Prefix::of(did)]),
            |connection, recent| self.shared.operations_of(connection, did, recent),
        )
    }

    /// See [`crate::store::Store::head`].
    pub async fn head(&self, did: &Did) -> Result<Option<StoredOperation>, StoreError> {
        let shared = &self.shared;
        shared.with_few_recent(
            |recent| recent.find(&[Prefix::of(did)]),
            |connection, recent| {
                let mut head: Option<StoredOperation> = None;
                let mut is_tied = false;
                shared.each_of(connection, did, recent, |row| {
                    if rows::is_nullified(row)? {
                        return Ok(());
                    }
                    let created_at = rows::created_at(row)?;
                    match head.as_ref().map(|head| created_at.cmp(&head.created_at)) {
                        Some(Less) => {}
                        Some(Equal) => is_tied = true,
                        None | Some(Greater) => {
                            head = Some(rows::operation(row, connection, &shared.interned)?);
                            is_tied = false;
                        }
                    }
                    Ok(())
                })?;
                if is_tied {
                    // Which of them is the last, only the order of the whole history says.
                    head = head_of(shared.operations_of(connection, did, recent)?);
                }
                Ok(head)
            },
        )
    }

    /// See [`crate::store::Store::next_identity`].
    pub async fn next_identity(&self, after: Option<Did>) -> Result<Option<Did>, StoreError> {
        self.long_read("looking for the next identity", move |shared| {
            let mut first = after.map_or(Prefix::FIRST, |did| Prefix::of(&did));
            loop {
                let (entries, next) = shared.with_recent(
                    |recent| recent.from(first, 1),
                    |connection, recent| {
                        let entries = Shared::entries_from(connection, first, 1, recent)?;
                        let dids = entries.iter().map(|entry| did_of(connection, entry));
                        let dids: Vec<Option<Did>> = dids.collect::<Result<_, _>>()?;
                        let dids = dids.into_iter().flatten();
                        let next = dids.filter(|&did| Some(did) > after).min();
                        Ok((entries, next))
                    },
                )?;
                match (next, entries.last().map(|last| last.0.next())) {
                    (Some(next), _) => return Ok(Some(next)),
                    (None, Some(Some(prefix))) => first = prefix,
                    (None, _) => return Ok(None),
                }
            }
        })
        .await
    }

    /// See [`crate::store::Store::next_histories`].
    pub async fn next_histories(
        &self,
        after: Option<Did>,
        operations: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let limit = operations.max(1);
        self.long_read("reading the next histories", move |shared| {
            let mut first = after.map_or(Prefix::FIRST, |did| Prefix::of(&did));
            loop {
                let (entries, mut operations) = shared.with_recent(
                    |recent| recent.from(first, limit),
                    |connection, recent| {
                        let entries = Shared::entries_from(connection, first, limit, recent)?;
                        let operations = shared.operations_at(connection, &entries, after)?;
                        Ok((entries, operations))
                    },
                )?;
                sort_histories(&mut operations);
                match entries.last().and_then(|last| last.0.next()) {
                    Some(prefix) if operations.is_empty() => first = prefix,
                    _ => return Ok(operations),
                }
            }
        })
        .await
    }

    /// See [`crate::store::Store::divergences`].
    pub async fn divergences(
        &self,
        did: Option<&str>,
        kind: Option<&str>,
        open: Option<bool>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredDivergence>, StoreError> {
        let (did, kind) = (did.map(str::to_owned), kind.map(str::to_owned));
        let limit = limit as i64;
        self.long_read("reading divergences", move |shared| {
            shared.readers.with(|connection| match (did, open) {
                (Some(did), _) => all(
                    connection,
                    DIVERGENCES_OF,
                    (after_id, limit, kind, open, did),
                    rows::divergence,
                ),
                (None, Some(true)) => {
                    all(connection, OPEN_DIVERGENCES, (after_id, limit, kind), rows::divergence)
                }
                (None, _) => {
                    all(connection, DIVERGENCES, (after_id, limit, kind, open), rows::divergence)
                }
            })
        })
        .await
    }

    /// See [`crate::store::Store::statistics`].
    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        self.long_read("counting rows", |shared| {
            let counted = shared.readers.with(|connection| {
                let mut statement = connection.prepare_cached(STATISTICS)?;
                let count = |row: &Row, at| row.get::<_, i64>(at).map(i64::unsigned_abs);
                Ok(statement.query_row([MOST_COUNTED as i64], |row| {
                    Ok(Statistics {
                        operations: count(row, 0)?,
                        identities: count(row, 1)?,
                        refusals: count(row, 2)?,
                        open_divergences: count(row, 3)?,
                        forgotten_refusals: count(row, 4)?,
                        forgotten_divergences: count(row, 5)?,
                        ..Statistics::default()
                    })
                })?)
            })?;
            let files = [shared.path.clone(), beside(&shared.path, "-wal")];
            let sizes = files.iter().filter_map(|file| Some(file.metadata().ok()?.len()));
            let claims = shared.claims_index()?;
            let claims_bytes = claims.map_or(0, |index| index.pairs * BYTES_OF_A_PAIR);
            Ok(Statistics { bytes: sizes.sum(), claims, claims_bytes, ..counted })
        })
        .await
    }
}

/// The DID of an operation of the index. Of one that has another, or none, it is the last DID
/// that there can be under its prefix: asking for its history tells of the damage. None of one
/// that is not committed yet.
pub(super) fn did_of(
    connection: &Connection,
    &(prefix, sequence): &Entry,
) -> Result<Option<Did>, StoreError> {
    let mut statement = connection.prepare_cached(DID_OF)?;
    let mut rows = statement.query([sequence])?;
    let did = match rows.next()? {
        Some(row) => Did::from_slice(rows::did_bytes(row, 0)?),
        None if is_indexed(connection, &(prefix, sequence))? => None,
        None => return Ok(None),
    };
    Ok(Some(did.filter(|did| Prefix::of(did) == prefix).unwrap_or(prefix.last_did())))
}

/// Whether an entry without an operation is one of the index, which has lost it. The others are in
/// memory before their commit, or still there after one that gave the operation another number.
fn is_indexed(connection: &Connection, entry: &Entry) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached(IS_INDEXED)?.exists(*entry)?)
}

impl Shared {
    /// The operations of the index's entries whose DID comes after this one.
    fn operations_at(
        &self,
        connection: &Connection,
        entries: &[Entry],
        after: Option<Did>,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let mut operations = Vec::with_capacity(entries.len());
        for &(prefix, sequence) in entries {
            let mut statement = connection.prepare_cached(OF_SEQUENCE)?;
            let mut found = statement.query([sequence])?;
            let Some(row) = found.next()? else {
                if is_indexed(connection, &(prefix, sequence))? {
                    return Err(only_in_index(sequence));
                }
                continue;
            };
            let did = rows::did_bytes(row, 1)?;
            if !is_under(did, prefix) {
                return Err(not_under(sequence));
            }
            if after.is_none_or(|after| did > after.as_bytes().as_slice()) {
                operations.push(rows::operation(row, connection, &self.interned)?);
            }
        }
        Ok(operations)
    }
}
