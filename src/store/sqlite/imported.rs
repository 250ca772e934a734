//! The volumes that were taken in from their first line to their last.

use super::Sqlite;
use crate::store::{Lease, StoreError};

const IS_IMPORTED: &str = "SELECT EXISTS (SELECT 1 FROM imported WHERE content = ?1)";

const NOTE: &str = "INSERT INTO imported (content) VALUES (?1) ON CONFLICT DO NOTHING";

impl Sqlite {
    /// See [`crate::store::Store::imported`].
    pub async fn imported(&self, contents: &[[u8; 32]]) -> Result<Vec<[u8; 32]>, StoreError> {
        self.shared.readers.with(|connection| {
            let mut statement = connection.prepare_cached(IS_IMPORTED)?;
            let mut imported = Vec::new();
            for content in contents {
                if statement.query_row([content], |row| row.get(0))? {
                    imported.push(*content);
                }
            }
            Ok(imported)
        })
    }

    /// See [`crate::store::Store::note_imported`].
    pub async fn note_imported(&self, lease: &Lease, content: [u8; 32]) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write("noting what was imported", move |shared| {
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            transaction.prepare_cached(NOTE)?.execute([content])?;
            Ok(transaction.commit()?)
        })
        .await
    }
}
