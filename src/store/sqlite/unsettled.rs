//! Numbers under which something is stated otherwise than before, until they were read once more.

use did_plc::Timestamp;
use rusqlite::Transaction;

use super::Sqlite;
use crate::store::commit::MAX_UNSETTLED;
use crate::store::{Commit, Lease, StoreError, Unsettled};

const LOST: &str = "DELETE FROM unsettled WHERE sequence > ?1";

const HAS_ROOM: &str = "SELECT count(*) < ?1 FROM unsettled";

const NOTE: &str = "INSERT INTO unsettled (sequence, at, times) VALUES (?1, ?2, ?3)
    ON CONFLICT (sequence) DO UPDATE SET at = excluded.at, times = max(times, excluded.times)";

const UNSETTLED: &str = "SELECT sequence, times FROM unsettled WHERE sequence > ?1 AND at < ?2
    ORDER BY sequence LIMIT ?3";

const SETTLE: &str = "DELETE FROM unsettled WHERE sequence = ?1 AND at < ?2";

/// Notes what a commit takes over. What finds no room, and what is above a cursor that is put back, is left out.
pub(super) fn write(transaction: &Transaction, commit: &Commit) -> Result<(), StoreError> {
    if commit.goes_back() {
        transaction.prepare_cached(LOST)?.execute([commit.cursor_after])?;
    }
    if commit.unsettled.is_empty() {
        return Ok(());
    }
    let mut has_room = transaction.prepare_cached(HAS_ROOM)?;
    if has_room.query_row([MAX_UNSETTLED], |row| row.get(0))? {
        for Unsettled { number, times } in &commit.unsettled {
            let at = commit.received_at_millis;
            transaction.prepare_cached(NOTE)?.execute((number, at, times))?;
        }
    }
    Ok(())
}

impl Sqlite {
    /// See [`crate::store::Store::unsettled`].
    pub async fn unsettled(
        &self,
        after: i64,
        before: Timestamp,
        count: usize,
    ) -> Result<Vec<Unsettled>, StoreError> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.shared.readers.with(|connection| {
            let mut statement = connection.prepare_cached(UNSETTLED)?;
            let unsettled = statement.query_map((after, before.millis(), count), |row| {
                Ok(Unsettled { number: row.get(0)?, times: row.get(1)? })
            })?;
            Ok(unsettled.collect::<Result<_, _>>()?)
        })
    }

    /// See [`crate::store::Store::settle`].
    pub async fn settle(
        &self,
        lease: &Lease,
        numbers: Vec<i64>,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write("noting what was read once more", move |shared| {
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            for number in numbers {
                transaction.prepare_cached(SETTLE)?.execute((number, before.millis()))?;
            }
            Ok(transaction.commit()?)
        })
        .await
    }
}
