//! Brings the schema up to date when the store is opened.

use tokio_postgres::Client;

use super::error::query_error;
use crate::store::StoreError;
use did_plc::Cid;

/// Applied in this order, each once, each in a transaction. A released file is never edited:
/// its digest is recorded in every database that it was applied to.
const MIGRATIONS: [(&str, &str); 3] = [
    ("0001_log", include_str!("../../../migrations/postgres/0001_log.sql")),
    ("0002_readable", include_str!("../../../migrations/postgres/0002_readable.sql")),
    ("0003_cursor_cid", include_str!("../../../migrations/postgres/0003_cursor_cid.sql")),
];

/// Number of the advisory lock that one process at a time holds while it migrates: "plc" in ASCII.
const LOCK: i64 = 0x70_6c_63;

/// Applies what is missing. A crash at any point leaves whole migrations behind, and the next
/// start goes on from there.
pub(super) async fn migrate(client: &Client) -> Result<(), StoreError> {
    // A lock of the session: it is gone with the connection, which nobody uses after an error.
    client.query_one("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(query_error)?;
    apply(client).await?;
    client.query_one("SELECT pg_advisory_unlock($1)", &[&LOCK]).await.map_err(query_error)?;
    Ok(())
}

/// Whether it has ever been done in this database.
pub(super) async fn is_migrated(client: &Client) -> Result<bool, StoreError> {
    client
        .query_one("SELECT to_regclass('migrations') IS NOT NULL", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(query_error)
}

async fn apply(client: &Client) -> Result<(), StoreError> {
    // Asked first: CREATE … IF NOT EXISTS needs the right to create even when there is nothing to do.
    if !is_migrated(client).await? {
        let sql = "CREATE TABLE migrations (
            name text PRIMARY KEY,
            digest bytea NOT NULL, -- SHA-256 of the file
            applied_at timestamptz NOT NULL DEFAULT now()
        )";
        client.batch_execute(sql).await.map_err(query_error)?;
    }
    let rows = client
        .query("SELECT name, digest FROM migrations ORDER BY name", &[])
        .await
        .map_err(query_error)?;
    for (at, row) in rows.iter().enumerate() {
        let name: &str = row.try_get(0).map_err(query_error)?;
        let digest: &[u8] = row.try_get(1).map_err(query_error)?;
        check(MIGRATIONS.get(at), name, digest)?;
    }
    for (name, sql) in MIGRATIONS.iter().skip(rows.len()) {
        let digest = Cid::of(sql.as_bytes());
        // The names are our own constants: nothing to escape.
        let script = format!(
            "BEGIN; {sql}; INSERT INTO migrations (name, digest) VALUES ('{name}', '\\x{}'); COMMIT",
            data_encoding::HEXLOWER.encode(digest.digest()),
        );
        client.batch_execute(&script).await.map_err(query_error)?;
        tracing::info!("the database's schema is now {name}");
    }
    Ok(())
}

/// Compares a migration on record with the one that stands at its place in this program.
fn check(ours: Option<&(&str, &str)>, name: &str, digest: &[u8]) -> Result<(), StoreError> {
    let Some((our_name, sql)) = ours else {
        return Err(StoreError::Unusable(format!(
            "the database was written by a newer version of plc-replica (its schema has {name}); \
             run that version, or name another database with --database"
        )));
    };
    if *our_name != name || Cid::of(sql.as_bytes()).digest() != digest {
        return Err(StoreError::Unusable(format!(
            "the database's schema has another {name} than this version of plc-replica \
             ({our_name}); run the version that made it, or name another database with --database"
        )));
    }
    Ok(())
}
