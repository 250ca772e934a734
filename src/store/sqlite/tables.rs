//! Whether the tables are as this program makes them. A copy that was made through SQL may have left something out.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::Sqlite;
use super::connection::{MIGRATIONS, Version};
use crate::store::StoreError;

impl Sqlite {
    /// See [`crate::store::Store::lacking`].
    pub async fn lacking(&self) -> Result<Vec<String>, StoreError> {
        self.long_read("comparing the tables", |shared| {
            let made = Connection::open_in_memory()?;
            for step in MIGRATIONS {
                made.execute_batch(step)?;
            }
            let (version, held) = shared
                .readers
                .with(|connection| Ok((Version::of(connection)?, parts(connection)?)))?;
            if version.steps > MIGRATIONS.len() {
                return Ok(Vec::new());
            }
            let lacking =
                parts(&made)?.into_iter().filter(|(name, sql)| held.get(name) != Some(sql));
            Ok(lacking
                .map(|(name, _)| match held.contains_key(&name) {
                    true => format!("the {name} as this program makes it"),
                    false => format!("the {name}"),
                })
                .collect())
        })
        .await
    }
}

/// Tables, indexes and views by kind and name, with the SQL that made them. Indexes that come with a table are in that.
fn parts(connection: &Connection) -> Result<BTreeMap<String, String>, StoreError> {
    let mut statement = connection
        .prepare("SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
    let parts = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(parts.collect::<Result<_, _>>()?)
}
