//! How much there is.

use super::open::Postgres;
use crate::store::{MOST_COUNTED, Statistics, StoreError};

impl Postgres {
    /// See [`crate::store::Store::statistics`].
    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        // The number of operations and that of identities are kept by the commits.
        let counted = sqlx::query!(
            r#"SELECT
                coalesce((SELECT operations FROM sources), 0) AS "operations!",
                coalesce((SELECT identities FROM sources), 0) AS "identities!",
                (SELECT count(*) FROM (
                    SELECT FROM refusals WHERE accepted_at IS NULL LIMIT $1) standing) AS "refusals!",
                coalesce((SELECT forgotten FROM sources), 0) AS "forgotten!",
                coalesce((SELECT forgotten_divergences FROM sources), 0) AS "forgotten_divergences!",
                (SELECT count(*) FROM (
                    SELECT FROM divergences WHERE closed_at IS NULL LIMIT $1) open) AS "divergences!",
                pg_database_size(current_database()) AS "bytes!",
                pg_total_relation_size('claims') AS "claims_bytes!""#,
            MOST_COUNTED as i64
        );
        let Some(row) = self.pages.first(counted).await? else {
            return Ok(Statistics::default());
        };
        Ok(Statistics {
            operations: row.operations.unsigned_abs(),
            identities: row.identities.unsigned_abs(),
            refusals: row.refusals.unsigned_abs(),
            forgotten_refusals: row.forgotten.unsigned_abs(),
            open_divergences: row.divergences.unsigned_abs(),
            forgotten_divergences: row.forgotten_divergences.unsigned_abs(),
            bytes: row.bytes.unsigned_abs(),
            claims: self.claims_index().await?,
            claims_bytes: row.claims_bytes.unsigned_abs(),
        })
    }
}
