//! Brings the schema up to date when the store is opened.

use sqlx::Connection;
use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;

use super::error::query_error;
use crate::escape::printable;
use crate::store::StoreError;

/// Applied in the order of their numbers, each once. A released file is never
/// edited: its digest is recorded in every database that it was applied to.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Where the migrator keeps what it has applied.
const TABLE: &str = "_sqlx_migrations";

/// Building an index may take as long as it takes.
const SETTINGS: &str = "SET statement_timeout = 0; SET client_min_messages = warning";

/// One process migrates at a time: held to the end of its transaction. The number is no other program's.
const LOCK: i64 = 0x504c_4372;

/// How far the schema is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// There is nothing.
    Absent,
    /// Not all migrations were applied.
    Older,
    /// All of them.
    Current,
}

/// Applies what is missing, in one transaction: a crash or an error leaves what there was, which may be nothing. The
/// connection is of no other use afterwards.
pub(super) async fn migrate(
    mut connection: PgConnection,
    migrations: &Migrator,
) -> Result<(), StoreError> {
    sqlx::raw_sql(SETTINGS).execute(&mut connection).await.map_err(query_error)?;
    // Asked first: otherwise the right to create is needed even when there is nothing to do.
    if look(&mut connection, migrations).await? == Schema::Current {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(query_error)?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK);
    lock.execute(&mut *transaction).await.map_err(query_error)?;
    // Another process may have done the same until now.
    if schema(&mut transaction, migrations).await? == Schema::Current {
        return Ok(());
    }
    migrations.run(&mut *transaction).await.map_err(migrate_error)?;
    transaction.commit().await.map_err(query_error)?;
    if let Some(last) = migrations.iter().last() {
        tracing::info!("the database's schema is now {:04}_{}", last.version, last.description);
    }
    Ok(())
}

/// Looks at what there is at one moment: tables that another process makes meanwhile would be taken for
/// somebody else's.
///
/// # Errors
///
/// [`StoreError::Unusable`] where it is somebody else's, or of another version.
pub(super) async fn look(
    connection: &mut PgConnection,
    migrations: &Migrator,
) -> Result<Schema, StoreError> {
    const AT_ONE_MOMENT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut transaction = connection.begin_with(AT_ONE_MOMENT).await.map_err(query_error)?;
    schema(&mut transaction, migrations).await
}

/// The same in a transaction that nothing changes beside.
///
/// # Errors
///
/// [`StoreError::Unusable`] where it is somebody else's, or of another version of this program that
/// this one cannot go on from.
async fn schema(
    connection: &mut PgConnection,
    migrations: &Migrator,
) -> Result<Schema, StoreError> {
    let applied = applied(connection).await?;
    let is_ours = |(first, ours): (&Applied, &Migration)| {
        first.version == ours.version && first.description == ours.description
    };
    if !applied.first().zip(migrations.iter().next()).is_some_and(is_ours) {
        return match foreign_table(connection).await? {
            Some(table) => Err(StoreError::Unusable(format!(
                "the database that --database names is of another application (its schema has {}, and no log); name \
                 an empty one, or an empty schema of it by ?options=-csearch_path%3DSCHEMA",
                printable(&table)
            ))),
            None => Ok(Schema::Absent),
        };
    }
    let mut known = migrations.iter();
    for step in &applied {
        match known.next() {
            None => return Err(migrate_error(MigrateError::VersionMissing(step.version))),
            Some(ours) if ours.version != step.version || *ours.checksum != *step.checksum => {
                return Err(migrate_error(MigrateError::VersionMismatch(step.version)));
            }
            Some(_) => {}
        }
    }
    Ok(if known.next().is_some() { Schema::Older } else { Schema::Current })
}

/// A migration that was applied to the database.
#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    description: String,
    checksum: Vec<u8>,
}

/// Those that were applied, also by another program that keeps them in a table of this name.
async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, StoreError> {
    // Not `to_regclass`: in a transaction that has waited for a lock it may still answer from before.
    const IS_THERE: &str =
        "SELECT EXISTS (SELECT FROM pg_class WHERE relname = $1 AND pg_table_is_visible(oid))";
    let is_there: bool = sqlx::query_scalar(IS_THERE)
        .bind(TABLE)
        .fetch_one(&mut *connection)
        .await
        .map_err(query_error)?;
    if !is_there {
        return Ok(Vec::new());
    }
    sqlx::query_as("SELECT version, description, checksum FROM _sqlx_migrations ORDER BY version")
        .fetch_all(connection)
        .await
        .map_err(query_error)
}

/// A table or view where ours would be, if there is one. What belongs to an extension is nobody's.
async fn foreign_table(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
           AND relkind IN ('r', 'p', 'v', 'm', 'f')
           AND NOT EXISTS (
               SELECT FROM pg_depend
               WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
         ORDER BY relname LIMIT 1",
    )
    .fetch_optional(connection)
    .await
    .map_err(query_error)
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
            match query_error(error) {
                // Nothing was written, so that nothing of ours is damaged.
                StoreError::Damaged { reason, .. } => StoreError::Unusable(format!(
                    "the tables cannot be made in the database that --database names: {reason}"
                )),
                error => error,
            }
        }
        error => StoreError::Unavailable(error.to_string()),
    }
}
