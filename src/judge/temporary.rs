//! Temporary databases, for what does not fit into memory while a log is judged that is in no store.

use rusqlite::Connection;

/// A temporary database failed.
#[derive(Debug, thiserror::Error)]
#[error("the temporary database for what does not fit into memory failed: {0}")]
pub struct SpillError(#[from] rusqlite::Error);

/// A database without a name, with this schema, that takes so many kB of memory: SQLite keeps the rest of it in a
/// temporary file that is gone when it is closed.
pub(super) fn open(schema: &str, kilobytes: u32) -> Result<Connection, SpillError> {
    let connection = Connection::open("")?;
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{kilobytes}; {schema}"
    ))?;
    Ok(connection)
}
