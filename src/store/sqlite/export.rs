//! The log in its two orders.

use rusqlite::{Connection, OptionalExtension, Params};

use super::Sqlite;
use super::rows::{self, operation_columns};
use crate::store::codec::Interned;
use crate::store::{StoreError, StoredOperation};
use did_plc::Timestamp;

const BY_SEQUENCE: &str = concat!(
    "SELECT ",
    operation_columns!(),
    " FROM operations o WHERE o.sequence > ?1 ORDER BY o.sequence LIMIT ?2"
);

const DESCENDING: &str = concat!(
    "SELECT ",
    operation_columns!(),
    " FROM operations o WHERE o.sequence > 0 ORDER BY o.sequence DESC LIMIT ?1"
);

pub(super) const OF_SEQUENCE: &str =
    concat!("SELECT ", operation_columns!(), " FROM operations o WHERE o.sequence = ?1");

const BY_TIME: &str = concat!(
    "SELECT ",
    operation_columns!(),
    " FROM operations o WHERE o.created_at > ?1 ORDER BY o.created_at LIMIT ?2"
);

const OF_TIME: &str =
    concat!("SELECT ", operation_columns!(), " FROM operations o WHERE o.created_at = ?1");

const LAST_SEQUENCE: &str = "SELECT max(sequence) FROM operations WHERE sequence > 0";

impl Sqlite {
    /// See [`crate::store::Store::export_by_sequence`].
    pub async fn export_by_sequence(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        // Operations below zero have no number.
        self.operations(BY_SEQUENCE, (after.max(0), limit as i64)).await
    }

    /// See [`crate::store::Store::latest`].
    pub async fn latest(&self, limit: usize) -> Result<Vec<StoredOperation>, StoreError> {
        self.operations(DESCENDING, [limit as i64]).await
    }

    /// See [`crate::store::Store::last_sequence`].
    pub async fn last_sequence(&self) -> Result<Option<i64>, StoreError> {
        self.shared.readers.with(|connection| {
            let mut statement = connection.prepare_cached(LAST_SEQUENCE)?;
            Ok(statement.query_row([], |row| row.get(0)).optional()?.flatten())
        })
    }

    /// See [`crate::store::Store::sequences`].
    pub async fn sequences(&self, sequences: &[i64]) -> Result<Vec<StoredOperation>, StoreError> {
        let mut sequences: Vec<i64> =
            sequences.iter().copied().filter(|&sequence| sequence > 0).collect();
        sequences.sort_unstable();
        sequences.dedup();
        self.long_read("looking numbers up", move |shared| {
            shared.readers.with(|connection| {
                let mut operations = Vec::new();
                for sequence in sequences {
                    operations.extend(select(
                        connection,
                        &shared.interned,
                        OF_SEQUENCE,
                        [sequence],
                    )?);
                }
                Ok(operations)
            })
        })
        .await
    }

    /// See [`crate::store::Store::export_by_time`].
    pub async fn export_by_time(
        &self,
        after: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        self.long_read("reading the log by time", move |shared| {
            shared.readers.with(|connection| {
                let after = after.map_or(i64::MIN, Timestamp::millis);
                let parameters = (after, limit as i64);
                let mut operations = select(connection, &shared.interned, BY_TIME, parameters)?;
                if operations.len() == limit
                    && let Some(last) = operations.last().map(|last| last.created_at)
                {
                    // Which of the last millisecond come first, their CIDs say.
                    operations.retain(|operation| operation.created_at < last);
                    let room = limit - operations.len();
                    operations.extend(first_of(connection, &shared.interned, last, room)?);
                }
                operations.sort_by_cached_key(|operation| {
                    (operation.created_at, operation.cid().to_ascii())
                });
                Ok(operations)
            })
        })
        .await
    }

    async fn operations(
        &self,
        sql: &'static str,
        parameters: impl Params + Send + 'static,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        self.long_read("reading the log by number", move |shared| {
            shared.readers.with(|connection| select(connection, &shared.interned, sql, parameters))
        })
        .await
    }
}

pub(super) fn select(
    connection: &Connection,
    interned: &Interned,
    sql: &str,
    parameters: impl Params,
) -> Result<Vec<StoredOperation>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut operations = Vec::new();
    while let Some(row) = rows.next()? {
        operations.push(rows::operation(row, connection, interned)?);
    }
    Ok(operations)
}

/// Of the operations of one millisecond those with the lowest CIDs. However many there are,
/// twice the number that is asked for is held at a time.
fn first_of(
    connection: &Connection,
    interned: &Interned,
    created_at: Timestamp,
    limit: usize,
) -> Result<Vec<StoredOperation>, StoreError> {
    let mut lowest = Vec::new();
    let keep = |lowest: &mut Vec<StoredOperation>| {
        lowest.sort_by_cached_key(|operation| operation.cid().to_ascii());
        lowest.truncate(limit);
    };
    let mut statement = connection.prepare_cached(OF_TIME)?;
    let mut rows = statement.query([created_at.millis()])?;
    while let Some(row) = rows.next()? {
        if lowest.len() >= 2 * limit {
            keep(&mut lowest);
        }
        lowest.push(rows::operation(row, connection, interned)?);
    }
    keep(&mut lowest);
    Ok(lowest)
}
