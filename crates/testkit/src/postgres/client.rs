//! Connections of the tests' own.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Column, Connection, Row, ValueRef};
use tokio::time::sleep;

/// How long a server may take to begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection beside the store's.
pub struct Client {
    /// For what has parameters.
    pub connection: PgConnection,
}

impl Client {
    /// Connects to the database that a URL names; its server may be about to take connections.
    pub async fn connect(url: &str) -> Client {
        let begun = Instant::now();
        loop {
            match PgConnection::connect(url).await {
                Ok(connection) => return Client { connection },
                Err(error) if begun.elapsed() > PATIENCE => panic!("{url}: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Runs one or more statements.
    pub async fn run(&mut self, sql: &str) {
        self.rows(sql).await;
    }

    /// The same; whether it succeeded.
    pub async fn try_run(&mut self, sql: &str) -> bool {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        query.execute(&mut self.connection).await.is_ok()
    }

    /// The rows of one or more statements, with every value as text.
    pub async fn rows(&mut self, sql: &str) -> Vec<TextRow> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let rows = query.fetch_all(&mut self.connection).await;
        rows.unwrap_or_else(|error| panic!("{error}: {sql}")).into_iter().map(TextRow).collect()
    }

    /// The first value of the first row, as text; none where it is null.
    pub async fn value(&mut self, sql: &str) -> Option<String> {
        self.rows(sql).await[0].at(0).map(str::to_owned)
    }
}

/// A row with every value as text.
pub struct TextRow(PgRow);

impl TextRow {
    /// The value in the column of this name; none where it is null.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.at(self.0.column(column).ordinal())
    }

    /// The value in a column, counted from 0; none where it is null.
    pub fn at(&self, column: usize) -> Option<&str> {
        let value = self.0.try_get_raw(column).unwrap();
        (!value.is_null()).then(|| value.as_str().unwrap())
    }
}
