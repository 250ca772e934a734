//! Whether the tables are as this program makes them. A restore may have left out what comes after the rows: keys,
//! indexes, constraints.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::migrations;
use super::open::Postgres;
use crate::store::StoreError;

/// What the migrations make, as [`PARTS`] tells it; a test compares.
pub(super) const EXPECTED: &str = include_str!("tables.txt");

/// Columns, constraints and indexes of the tables, each in a line that is the same in every schema. An index that
/// could not be built to its end is none.
const PARTS: &str = "
    WITH ours AS (
        SELECT oid, relname::text AS name FROM pg_class
        WHERE relkind = 'r' AND relname <> '_sqlx_migrations'
          AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('_sqlx_migrations'))
    )
    SELECT format('column %s.%s %s', name, attname, format_type(atttypid, atttypmod))
        || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
        || CASE WHEN attidentity <> '' THEN ' IDENTITY' ELSE '' END
        || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '') AS part
    FROM ours JOIN pg_attribute ON attrelid = oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT format('constraint %s.%s %s', name, conname, pg_get_constraintdef(pg_constraint.oid))
    FROM ours JOIN pg_constraint ON conrelid = ours.oid WHERE contype IN ('p', 'u', 'c')
    UNION ALL
    SELECT 'index ' || regexp_replace(pg_get_indexdef(indexrelid), '^(.*) INDEX (.*) ON [^ ]+ ', '\\1 INDEX \\2 ON ' || name || ' ')
    FROM ours JOIN pg_index ON indrelid = oid WHERE indisvalid";

impl Postgres {
    /// See [`crate::store::Store::lacking`].
    pub async fn lacking(&self) -> Result<Vec<String>, StoreError> {
        if migrations::last_applied(&mut self.pages.lend().await?).await? > self.writer.version {
            return Ok(Vec::new());
        }
        let held = self.parts().await?;
        let is_lacking = |part: &&str| !held.iter().any(|held| held == part);
        Ok(EXPECTED.lines().filter(is_lacking).map(|part| format!("the {part}")).collect())
    }

    /// Of what the tables consist.
    pub(super) async fn parts(&self) -> Result<Vec<String>, StoreError> {
        let parts = sqlx::query(PARTS).try_map(|row: PgRow| row.try_get::<String, _>(0));
        let mut parts = self.pages.all(parts).await?;
        parts.sort_unstable();
        Ok(parts)
    }
}
