//! The log as a table, for people who count things: a row for each operation, in columns that need no decoding.
//!
//! What is in which column stands in `docs/SQL.md`.

mod csv;
mod parquet;
mod row;
mod rows;

pub use self::csv::CsvTable;
pub use self::parquet::{ParquetTable, ROWS_OF_A_GROUP};
pub use row::Row;
pub use rows::rows;
