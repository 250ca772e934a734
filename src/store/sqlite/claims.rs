//! The index of claims in this backend; see [`crate::store::claims`].

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::prefix::{Entry, Prefix};
use super::read::{all, did_of};
use super::rows::{self, operation_columns};
use super::{Shared, Sqlite};
use crate::store::claims::{self, Claimants, ClaimsIndex};
use crate::store::{Commit, StoreError, StoredOperation};
use did_plc::Did;
use did_plc::claim::Value;

/// Rows that are read at once; no transaction that reads lasts longer.
const READ: usize = 4_096;
/// Pairs that one transaction adds: a tenth of a second in which no batch is committed.
const ADDED_AT_ONCE: usize = 1 << 16;
/// Operations that the last transaction of a step takes in under the lock: more than come while a
/// step is written, so that the builder gets to the end.
const TAIL: usize = 1_024;

const INDEX: &str = "SELECT claimed, (SELECT max(sequence) FROM operations), claims FROM sources";

const PLACE: &str = "SELECT claimed, renumbered FROM sources WHERE claimed IS NOT NULL";

/// Below the numbers of all operations.
const BEGIN: &str = "UPDATE sources SET claimed = ?1 WHERE claimed IS NULL";

const ROWS: &str = concat!(
    "SELECT ",
    operation_columns!(),
    ", o.sequence FROM operations o WHERE o.sequence > ?1 ORDER BY o.sequence LIMIT ?2"
);

const ADD: &str = "INSERT OR IGNORE INTO claims (pair) VALUES (?1)";

const COUNT: &str = "UPDATE sources SET claims = claims + ?1";

const CLAIMED: &str = "SELECT claimed FROM sources";

const MOVE: &str = "UPDATE sources SET claimed = ?1";

const PAIRS: &str = "SELECT pair FROM claims WHERE pair BETWEEN ?1 AND ?2 ORDER BY pair LIMIT ?3";

const HAS: &str = "SELECT 1 FROM claims WHERE pair = ?1";

const ENTRIES_OF: &str = "SELECT prefix, sequence FROM chains WHERE prefix = ?1";

/// The place of the index, the highest row, and how many pairs there are.
fn index(connection: &Connection) -> Result<Option<(i64, i64, i64)>, StoreError> {
    let mut statement = connection.prepare_cached(INDEX)?;
    let read = |row: &Row| {
        let highest: Option<i64> = row.get(1)?;
        Ok((row.get::<_, Option<i64>>(0)?, highest.unwrap_or(i64::MIN), row.get(2)?))
    };
    let found = statement.query_row([], read).optional()?;
    Ok(found.and_then(|(claimed, highest, pairs)| Some((claimed?, highest, pairs))))
}

/// From where a builder reads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BuildPlace {
    claimed: i64,
    /// Commits that took a number away from an identity.
    renumbered: i64,
}

impl BuildPlace {
    /// None where there is no such index.
    fn read(connection: &Connection) -> Result<Option<BuildPlace>, StoreError> {
        let mut statement = connection.prepare_cached(PLACE)?;
        let place = |row: &Row| Ok(BuildPlace { claimed: row.get(0)?, renumbered: row.get(1)? });
        Ok(statement.query_row([], place).optional()?)
    }
}

/// Adds pairs, which stand in their order.
fn add(transaction: &Transaction, pairs: &[i64]) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached(ADD)?;
    let mut new = 0;
    for pair in pairs {
        new += statement.execute([pair])?;
    }
    transaction.prepare_cached(COUNT)?.execute([new as i64])?;
    Ok(())
}

impl Shared {
    /// Adds what a commit adds; `before` and `after` are the highest rows.
    pub(super) fn claim(
        &self,
        transaction: &Transaction,
        commit: &Commit,
        before: i64,
        after: i64,
    ) -> Result<(), StoreError> {
        let claimed: Option<i64> =
            transaction.prepare_cached(CLAIMED)?.query_row([], |row| row.get(0))?;
        let Some(claimed) = claimed else { return Ok(()) };
        let at_end = self.keeps_claims.load(Ordering::Acquire)
            && self.live.load(Ordering::Acquire)
            && claimed >= before;
        let to = if at_end { after.max(claimed) } else { before.max(claimed) };
        let pairs = claims::pairs_up_to(commit, to)?;
        if !pairs.is_empty() {
            add(transaction, &pairs)?;
        }
        if at_end && to > claimed {
            transaction.prepare_cached(MOVE)?.execute([to])?;
        }
        Ok(())
    }

    pub(super) fn claims_index(&self) -> Result<Option<ClaimsIndex>, StoreError> {
        let found = self.readers.with(index)?;
        Ok(found.map(|(claimed, highest, pairs)| ClaimsIndex {
            sequence: claimed.max(0),
            highest: highest.max(0),
            begun: claimed >= 0 || claimed >= highest,
            pairs: pairs.unsigned_abs(),
        }))
    }

    fn keep_claims(&self) -> Result<(), StoreError> {
        self.keeps_claims.store(true, Ordering::Release);
        let mut writer = self.writer();
        let transaction = writer.bare_transaction()?;
        transaction.prepare_cached(BEGIN)?.execute([i64::MIN])?;
        Ok(transaction.commit()?)
    }

    /// The last of some rows, how many they are, and their pairs.
    fn pairs_after(&self, row: i64) -> Result<Option<(i64, usize, Vec<i64>)>, StoreError> {
        let rows = self.readers.with(|connection| self.rows(connection, row, READ))?;
        let Some(&(last, _)) = rows.last() else { return Ok(None) };
        let pairs = claims::pairs(rows.iter().map(|(_, operation)| operation))?;
        Ok(Some((last, rows.len(), pairs)))
    }

    fn add_claims(&self, pairs: &[i64]) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let transaction = writer.bare_transaction()?;
        add(&transaction, pairs)?;
        Ok(transaction.commit()?)
    }

    /// Moves the place of the index, with what has come behind it meanwhile.
    fn move_claims(&self, from: BuildPlace, to: i64) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let transaction = writer.bare_transaction()?;
        if BuildPlace::read(&transaction)? != Some(from) {
            // Another builder was here, or what was read may have changed since.
            return Ok(());
        }
        let tail = self.rows(&transaction, to, TAIL)?;
        add(&transaction, &claims::pairs(tail.iter().map(|(_, operation)| operation))?)?;
        let to = tail.last().map_or(to, |&(last, _)| last);
        transaction.prepare_cached(MOVE)?.execute([to])?;
        Ok(transaction.commit()?)
    }

    /// Operations after a row, with their rows, those without a number first.
    fn rows(
        &self,
        connection: &Connection,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, StoredOperation)>, StoreError> {
        let mut statement = connection.prepare_cached(ROWS)?;
        let mut found = statement.query((after, limit as i64))?;
        let mut operations = Vec::new();
        while let Some(row) = found.next()? {
            let operation = rows::operation(row, connection, &self.interned)?;
            operations.push((row.get(rows::COLUMNS)?, operation));
        }
        Ok(operations)
    }

    fn claimants(
        &self,
        range: (i64, i64),
        after: Option<Did>,
        limit: usize,
    ) -> Result<Claimants, StoreError> {
        let parameters = (range.0, range.1, limit as i64);
        let pairs: Vec<i64> =
            self.readers.with(|connection| all(connection, PAIRS, parameters, |row| row.get(0)))?;
        let prefixes: Vec<Prefix> =
            pairs.iter().map(|&pair| Prefix::of(&claims::dids(pair).0)).collect();
        let dids = self.with_recent(
            |recent| recent.find(&prefixes),
            |connection, mut entries| {
                for prefix in &prefixes {
                    let entry = |row: &Row| Ok((row.get(0)?, row.get(1)?));
                    entries.extend(all::<Entry>(connection, ENTRIES_OF, [prefix], entry)?);
                }
                entries.iter().map(|entry| did_of(connection, entry)).collect::<Result<Vec<_>, _>>()
            },
        )?;
        let mut dids: Vec<Did> = dids.into_iter().flatten().collect();
        dids.sort_unstable();
        dids.dedup();
        dids.retain(|did| Some(*did) > after);
        Ok(Claimants { dids, next: claims::end_of_page(&pairs, limit) })
    }
}

impl Sqlite {
    /// See [`crate::store::Store::keep_claims`].
    pub async fn keep_claims(&self) -> Result<(), StoreError> {
        self.write("beginning the index of claims", Shared::keep_claims).await
    }

    /// See [`crate::store::Store::build_claims`]. A crash leaves pairs behind that are written
    /// again.
    pub async fn build_claims(&self, limit: usize) -> Result<(), StoreError> {
        let Some(from) = self.shared.readers.with(BuildPlace::read)? else { return Ok(()) };
        let (mut to, mut read, mut pairs) = (from.claimed, 0, Vec::new());
        while read < limit {
            let page = self
                .long_read("reading what operations claim", move |shared| shared.pairs_after(to))
                .await?;
            let Some((last, rows, page)) = page else { break };
            to = last;
            read += rows;
            pairs.extend(page);
        }
        pairs.sort_unstable();
        pairs.dedup();
        for piece in pairs.chunks(ADDED_AT_ONCE) {
            let piece = piece.to_vec();
            self.write("building the index of claims", move |shared| shared.add_claims(&piece))
                .await?;
        }
        self.write("building the index of claims", move |shared| shared.move_claims(from, to)).await
    }

    /// See [`crate::store::Store::claims_index`].
    pub async fn claims_index(&self) -> Result<Option<ClaimsIndex>, StoreError> {
        self.shared.claims_index()
    }

    /// See [`crate::store::Store::claimants`].
    pub async fn claimants(
        &self,
        value: &Value<'_>,
        after: Option<Did>,
        limit: usize,
    ) -> Result<Claimants, StoreError> {
        let range = claims::range(value, after.as_ref());
        self.long_read("looking claimants up", move |shared| shared.claimants(range, after, limit))
            .await
    }

    /// See [`crate::store::Store::absent_claims`].
    pub async fn absent_claims(&self, pairs: &[i64]) -> Result<Vec<i64>, StoreError> {
        let pairs = pairs.to_vec();
        self.long_read("checking the index of claims", move |shared| {
            shared.readers.with(|connection| {
                let mut has = connection.prepare_cached(HAS)?;
                let mut absent = Vec::new();
                for pair in pairs {
                    if !has.exists([pair])? {
                        absent.push(pair);
                    }
                }
                Ok(absent)
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::samples::{commit_of, geneses, without_number};

    /// The end of the log goes away after a builder has read to it, and something else comes there.
    #[tokio::test]
    async fn a_builder_does_not_pass_what_has_come_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("plc.db")).await.unwrap();
        let (lease, _) =
            store.follow("https://plc.example", std::time::Duration::ZERO).await.unwrap();
        let operations = geneses(7);
        store.commit(&lease, &commit_of(&operations[..6], vec![])).await.unwrap();
        store.keep_claims().await.unwrap();
        store.set_durability(false).await.unwrap();
        let from = store.shared.readers.with(BuildPlace::read).unwrap().unwrap();
        let (to, _, pairs) = store.shared.pairs_after(from.claimed).unwrap().unwrap();
        assert_eq!(to, 6);

        let gone = vec![without_number(&operations[5]), without_number(&operations[4])];
        store.commit(&lease, &commit_of(&[], gone)).await.unwrap();
        let other = StoredOperation { sequence: Some(5), ..operations[6].clone() };
        store.commit(&lease, &commit_of(&[other], vec![])).await.unwrap();
        store.shared.add_claims(&pairs).unwrap();
        store.shared.move_claims(from, to).unwrap();

        for _ in 0..3 {
            let index = store.claims_index().await.unwrap().unwrap();
            let all = store.next_histories(None, 100).await.unwrap();
            let has = |of: &&StoredOperation| of.sequence.is_some_and(|n| n <= index.sequence);
            let expected = claims::pairs(all.iter().filter(has)).unwrap();
            assert_eq!(store.absent_claims(&expected).await.unwrap(), [0i64; 0], "{index:?}");
            store.build_claims(100).await.unwrap();
        }
        assert_eq!(store.claims_index().await.unwrap().unwrap().behind(), 0);
    }
}
