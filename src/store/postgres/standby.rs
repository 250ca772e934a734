//! A hot standby of the database: whether it is one, how far it has replayed, and a store that reads from it.

use std::sync::Arc;

use sqlx::FromRow;
use sqlx::postgres::PgConnection;

use super::error::{has_ended_connection, query_error};
use super::migrations::{self, MIGRATIONS, Schema};
use super::open::Postgres;
use super::pool;
use super::server::{Server, Setting};
use crate::store::StoreError;

/// By what a database and its standbys are told from all others: streaming replication copies a server file by file,
/// so that it has the same identifier, and all that is in it the same numbers.
const ORIGIN: &str = "
    SELECT system_identifier, oid AS database, coalesce(to_regclass('sources')::oid, 0::oid) AS sources
    FROM pg_control_system(), pg_database WHERE datname = current_database()";

/// How far it is. Asked some ten times a second: one row, by its key.
const REPLAYED: &str = "
    SELECT pg_is_in_recovery() AS is_standby, source.cursor, source.commits
    FROM (VALUES (1)) AS one (id) LEFT JOIN sources AS source USING (id)";

/// Which database it is, wherever it is copied to by replication.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Origin {
    /// Of the servers that have all files in common.
    system_identifier: i64,
    database: sqlx::postgres::types::Oid,
    /// The table `sources`; 0 where there is none.
    sources: sqlx::postgres::types::Oid,
}

#[derive(FromRow)]
struct Row {
    is_standby: bool,
    cursor: Option<i64>,
    commits: Option<i64>,
}

/// What a standby has replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// The cursor; 0 before anything is followed.
    pub cursor: i64,
    /// How many commits: some do not move the cursor.
    pub commits: i64,
}

impl Postgres {
    /// See [`crate::store::Store::standby`].
    pub async fn standby(&self, url: &str) -> Result<Standby, StoreError> {
        let server = Server::new(url, Setting::ReadDatabase)?;
        let mut connection = self.pages.lend().await?;
        let origin = sqlx::query_as(ORIGIN).fetch_one(connection.begun()).await;
        let origin = connection.ended(origin).map_err(query_error)?;
        Ok(Standby { server, origin, connection: None })
    }
}

/// A hot standby, and the connection on which it is asked how far it is.
pub struct Standby {
    server: Server,
    /// Of the database that it should be a standby of.
    origin: Origin,
    connection: Option<PgConnection>,
}

impl std::fmt::Debug for Standby {
    /// Without user and password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Standby").field(&self.name()).finish()
    }
}

impl Standby {
    /// Which database on which server, without user and password.
    pub fn name(&self) -> String {
        self.server.place()
    }

    /// What it has replayed. When this is dropped before its end, the connection is given up.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`], with a sentence, when it is no standby of ours; others when it cannot be asked now.
    pub async fn replayed(&mut self) -> Result<Replayed, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let replayed = match how_far(&mut connection).await {
            // What was asked stood in the way of what is replayed: the server is there, and says so now.
            Err(error) if !has_ended_connection(&error) => how_far(&mut connection).await,
            replayed => replayed,
        };
        let Row { is_standby, cursor, commits } = replayed.map_err(query_error)?;
        if !is_standby {
            return Err(self.unusable("is no standby: it takes writes of its own. Where it was promoted, name it with --database"));
        }
        self.connection = Some(connection);
        Ok(Replayed { cursor: cursor.unwrap_or_default(), commits: commits.unwrap_or_default() })
    }

    /// A connection to what is a standby of ours.
    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let mut connection = self.server.connect().await?;
        sqlx::raw_sql(pool::READING).execute(&mut connection).await.map_err(query_error)?;
        let origin: Origin =
            sqlx::query_as(ORIGIN).fetch_one(&mut connection).await.map_err(query_error)?;
        let not_replayed = |what: &str| {
            let reason = format!("{} has not replayed {what} yet", self.name());
            StoreError::Unavailable(reason)
        };
        if origin != self.origin {
            let is_ours = Origin { sources: self.origin.sources, ..origin } == self.origin;
            return Err(match is_ours && origin.sources.0 == 0 {
                true => not_replayed("the tables"),
                false => self.unusable(
                    "is no standby of the database that --database names, but another database",
                ),
            });
        }
        match migrations::look(&mut connection, &MIGRATIONS).await? {
            Schema::Current | Schema::Newer => Ok(connection),
            Schema::Absent | Schema::Older => {
                Err(not_replayed("what brings the tables up to date"))
            }
        }
    }

    fn unusable(&self, what: &str) -> StoreError {
        StoreError::Unusable(format!(
            "the setting --read-database names {}, which {what}",
            self.name()
        ))
    }

    /// A store that reads from it, on connections of its own, which are made when they are needed. Whatever is done
    /// with it to write fails.
    pub fn store(&self) -> Postgres {
        Postgres::of(&Arc::new(self.server.anew()), &MIGRATIONS)
    }
}

async fn how_far(connection: &mut PgConnection) -> sqlx::Result<Row> {
    sqlx::query_as(REPLAYED).fetch_one(connection).await
}
