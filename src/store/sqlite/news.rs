//! What commits tell clients of the stream.

use rusqlite::{Connection, OptionalExtension};

use super::Sqlite;
use super::export::{OF_SEQUENCE, select};
use super::read::Transaction;
use crate::store::news::{KEPT, Noted, Plan, slot};
use crate::store::{CommitId, News, StoreError};

const COMMITS: &str = "SELECT commits FROM sources";

const COMMIT: &str = "SELECT number, epoch, told FROM commits WHERE slot = ?1";

impl Sqlite {
    /// See [`crate::store::Store::news`].
    pub async fn news(&self, after: CommitId) -> Result<Option<News>, StoreError> {
        self.long_read("reading what commits tell", move |shared| {
            shared.readers.with(|connection| {
                // All that is read is of one moment: a number that goes from one operation to another is told of once.
                let _moment = Transaction::begin(connection)?;
                let noted = noted_from(connection, after)?;
                let Some(plan) = Plan::after(after, &noted)? else { return Ok(None) };
                let mut operations = Vec::new();
                for number in plan.numbers() {
                    operations.extend(select(connection, &shared.interned, OF_SEQUENCE, [number])?);
                }
                Ok(Some(plan.with(operations)))
            })
        })
        .await
    }
}

/// The rows from this commit on, ascending; without those whose places others have taken.
fn noted_from(connection: &Connection, from: CommitId) -> Result<Vec<Noted>, StoreError> {
    let commits = connection.prepare_cached(COMMITS)?.query_row([], |row| row.get(0)).optional()?;
    let last: i64 = commits.unwrap_or(0);
    let mut select = connection.prepare_cached(COMMIT)?;
    let mut noted = Vec::new();
    for number in from.number.max(last - KEPT + 1).max(1)..=last {
        let found = select.query_row([slot(number)], |row| {
            let id = CommitId { number: row.get(0)?, epoch: row.get(1)? };
            Ok(Noted { id, told: row.get(2)? })
        });
        noted.extend(found.optional()?);
    }
    Ok(noted)
}
