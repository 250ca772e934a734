//! Brings the schema up to date when the store is opened.

use std::cmp::Ordering;

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};

use super::error::{is_lock_timeout, query_error};
use super::pool::Lent;
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
/// Who writes without the lease has a share of it.
const LOCK: i64 = 0x504c_4372;

/// How the name of a migration begins after which the version before cannot read any more.
const BREAKING: &str = "breaking";

/// The follower commits nothing more: it has lost the lease, and what it was committing is waited for. The whole table is
/// locked, and not the row: who waited for that would be in the way of who changes the table.
const END_LEASE: &str = "
    LOCK TABLE sources IN EXCLUSIVE MODE;
    UPDATE sources SET epoch = epoch + 1, lease_until = clock_timestamp()";

/// Whoever reads a table waits behind who wants to change it: so who wants to does not wait for long.
const BRIEFLY: &str = "SET LOCAL lock_timeout = '3s'";

/// How far the schema is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Schema {
    /// There is nothing.
    Absent,
    /// Not all migrations were applied.
    Older,
    /// All of them.
    Current,
    /// All of them, and more by a newer version: it can be read.
    Newer,
}

/// The number of the last of these migrations.
pub(super) fn last(migrations: &Migrator) -> i64 {
    migrations.iter().last().map_or(0, |last| last.version)
}

/// Applies what is missing, in one transaction: a crash or an error leaves what there was, which may be nothing. What a newer
/// version has made is left as it is. The connection is of no other use afterwards.
pub(super) async fn migrate(
    mut connection: PgConnection,
    migrations: &Migrator,
) -> Result<(), StoreError> {
    sqlx::raw_sql(SETTINGS).execute(&mut connection).await.map_err(query_error)?;
    // Asked first: otherwise the right to create is needed even when there is nothing to do.
    if matches!(look(&mut connection, migrations).await?, Schema::Current | Schema::Newer) {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(query_error)?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK);
    lock.execute(&mut *transaction).await.map_err(query_error)?;
    sqlx::raw_sql(BRIEFLY).execute(&mut *transaction).await.map_err(query_error)?;
    match schema(&mut transaction, migrations).await? {
        Schema::Absent => {}
        // First of all: what is committed after the tables were read would be missing in those that are made of them.
        Schema::Older => {
            sqlx::raw_sql(END_LEASE).execute(&mut *transaction).await.map_err(change_error)?;
        }
        // Another process may have done the same until now.
        Schema::Current | Schema::Newer => return Ok(()),
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
    let is_another = |(step, ours): &(&Applied, &Migration)| {
        step.version != ours.version || *step.checksum != *ours.checksum
    };
    if let Some((step, _)) = applied.iter().zip(migrations.iter()).find(is_another) {
        return Err(StoreError::Unusable(format!(
            "the database's schema has another migration {} than this version of plc-replica; run the version that made \
             it, or name another database with --database",
            step.version
        )));
    }
    let known = migrations.iter().count();
    let newer = applied.get(known..).unwrap_or_default();
    if let Some(step) = newer.iter().find(|step| step.description.starts_with(BREAKING)) {
        return Err(StoreError::Unusable(format!(
            "the database was written by a newer version of plc-replica, and this one cannot read it any more (its schema \
             has migration {}); run that version, or name another database with --database",
            step.version
        )));
    }
    Ok(match applied.len().cmp(&known) {
        Ordering::Less => Schema::Older,
        Ordering::Equal => Schema::Current,
        Ordering::Greater => Schema::Newer,
    })
}

/// Has the tables stay of the version that has this last migration until the transaction ends, for who writes in it without
/// having had the lease.
///
/// # Errors
///
/// [`StoreError::Outdated`] where they are of a newer one.
pub(super) async fn hold(connection: &mut Lent, known: i64) -> Result<(), StoreError> {
    let share = sqlx::query!(r#"SELECT pg_try_advisory_xact_lock_shared($1) AS "has!""#, LOCK);
    if !connection.first(share).await?.is_some_and(|lock| lock.has) {
        let reason = "its tables are being brought up to date".to_owned();
        return Err(StoreError::Unavailable(reason));
    }
    // Nothing comes after this one as long as the lock is held.
    match last_applied(connection).await? {
        last if last > known => Err(StoreError::Outdated(format!(
            "the database is of a newer version of plc-replica (its schema has migration {last}, this version knows \
             {known}), which alone may write to it"
        ))),
        _ => Ok(()),
    }
}

/// The number of the last migration that was applied.
pub(super) async fn last_applied(connection: &mut Lent) -> Result<i64, StoreError> {
    let last = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
        .try_map(|row: PgRow| row.try_get(0));
    Ok(connection.first(last).await?.unwrap_or_default())
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
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            change_error(error)
        }
        error => StoreError::Unavailable(error.to_string()),
    }
}

/// What it means that the tables could not be changed. Nothing was written, so that nothing of ours is damaged.
fn change_error(error: sqlx::Error) -> StoreError {
    let is_in_use = is_lock_timeout(&error);
    match query_error(error) {
        StoreError::Unavailable(reason) if is_in_use => StoreError::Unavailable(format!(
            "its tables cannot be brought up to date while somebody else uses them for long: {reason}"
        )),
        StoreError::Damaged { reason, .. } => StoreError::Unusable(format!(
            "the tables cannot be made in the database that --database names: {reason}"
        )),
        error => error,
    }
}
