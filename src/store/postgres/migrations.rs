//! Brings the schema up to date when the store is opened.

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::PgConnection;

use super::error::query_error;
use crate::store::StoreError;

/// Applied in the order of their numbers, each once, each in a transaction. A released file is never
/// edited: its digest is recorded in every database that it was applied to.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Where the migrator keeps what it has applied.
const TABLE: &str = "_sqlx_migrations";

/// Building an index may take as long as it takes.
const SETTINGS: &str = "SET statement_timeout = 0; SET client_min_messages = warning";

/// Applies what is missing. A crash at any point leaves whole migrations behind, and the next
/// start goes on from there. The connection is of no other use afterwards.
pub(super) async fn migrate(
    mut connection: PgConnection,
    migrations: &Migrator,
) -> Result<(), StoreError> {
    sqlx::raw_sql(SETTINGS).execute(&mut connection).await.map_err(query_error)?;
    // Asked first: otherwise the migrator needs the right to create even when there is nothing to do.
    if is_current(&mut connection, migrations).await? {
        return Ok(());
    }
    migrations.run(&mut connection).await.map_err(migrate_error)?;
    if let Some(last) = migrations.iter().last() {
        tracing::info!("the database's schema is now {:04}_{}", last.version, last.description);
    }
    Ok(())
}

/// Whether a migration was ever applied to this database.
pub(super) async fn is_migrated(connection: &mut PgConnection) -> Result<bool, StoreError> {
    sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(TABLE)
        .fetch_one(connection)
        .await
        .map_err(query_error)
}

async fn is_current(
    connection: &mut PgConnection,
    migrations: &Migrator,
) -> Result<bool, StoreError> {
    if !is_migrated(connection).await? {
        return Ok(false);
    }
    let applied = connection.list_applied_migrations(TABLE).await;
    let applied = applied.map_err(migrate_error)?;
    Ok(applied.len() == migrations.iter().count()
        && applied.iter().zip(migrations.iter()).all(|(applied, ours)| {
            applied.version == ours.version && applied.checksum == ours.checksum
        }))
}

fn migrate_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::VersionMissing(number) => StoreError::Unusable(format!(
            "the database was written by a newer version of plc-replica (its schema has migration \
             {number}); run that version, or name another database with --database"
        )),
        MigrateError::VersionMismatch(number) => StoreError::Unusable(format!(
            "the database's schema has another migration {number} than this version of \
             plc-replica; run the version that made it, or name another database with --database"
        )),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            query_error(error)
        }
        error => StoreError::Unavailable(error.to_string()),
    }
}
