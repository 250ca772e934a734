//! The volumes that were taken in from their first line to their last.

use super::lease::over;
use super::open::Postgres;
use crate::store::{Lease, StoreError};

impl Postgres {
    /// See [`crate::store::Store::imported`].
    pub async fn imported(&self, contents: &[[u8; 32]]) -> Result<Vec<[u8; 32]>, StoreError> {
        let contents: Vec<Vec<u8>> = contents.iter().map(|content| content.to_vec()).collect();
        let imported =
            sqlx::query!("SELECT content FROM imported WHERE content = ANY($1)", &contents);
        let imported = self.ingest.all(imported).await?;
        // A check on the table holds them to this length.
        Ok(imported.into_iter().filter_map(|row| row.content.try_into().ok()).collect())
    }

    /// See [`crate::store::Store::note_imported`].
    pub async fn note_imported(&self, lease: &Lease, content: [u8; 32]) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let note = sqlx::query!(
            r#"WITH noted AS (
                INSERT INTO imported (content) SELECT $2 FROM sources WHERE epoch = $1
                ON CONFLICT DO NOTHING)
             SELECT count(*) AS "count!" FROM sources WHERE epoch = $1"#,
            lease.epoch,
            &content[..]
        );
        match self.writer.pool.lend().await?.first(note).await?.map_or(0, |row| row.count) {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }
}
