//! How much there is.

use super::open::Postgres;
use crate::store::{Statistics, StoreError};

impl Postgres {
    /// See [`crate::store::Store::statistics`].
    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        // Refusals are counted: they are few, or somebody should look. `operations` and `identities`
        // are kept by the commits.
        let counted = sqlx::query!(
            r#"SELECT
                coalesce((SELECT operations FROM sources), 0) AS "operations!",
                coalesce((SELECT identities FROM sources), 0) AS "identities!",
                (SELECT count(*) FROM refusals WHERE accepted_at IS NULL) AS "refusals!",
                coalesce((SELECT forgotten FROM sources), 0) AS "forgotten!",
                (SELECT count(*) FROM divergences WHERE closed_at IS NULL) AS "divergences!",
                pg_database_size(current_database()) AS "bytes!",
                pg_total_relation_size('claims') AS "claims_bytes!""#
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
            bytes: row.bytes.unsigned_abs(),
            claims: self.claims_index().await?,
            claims_bytes: row.claims_bytes.unsigned_abs(),
        })
    }
}
