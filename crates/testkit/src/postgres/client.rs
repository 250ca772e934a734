//! Connections of the tests' own.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Column, Connection, Row, ValueRef};

/// A connection beside the store's.
pub struct Client {
    /// For what has parameters.
    pub connection: PgConnection,
}

impl Client {
    /// Connects to the database that a URL names.
    pub async fn connect(url: &str) -> Client {
        Client { connection: PgConnection::connect(url).await.unwrap() }
    }

    /// Runs one or more statements.
    pub async fn run(&mut self, sql: &str) {
        self.rows(sql).await;
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
