//! What an error of the driver means for the one who called the store.

use std::error::Error as _;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::StoreError;

/// An error while connecting.
pub(super) fn connect_error(error: Error) -> StoreError {
    if let Some(server) = error.as_db_error()
        && is_our_setting(server.code())
    {
        return StoreError::Unusable(format!(
            "the setting --database names a server that refuses us: {}",
            describe(server)
        ));
    }
    query_error(error)
}

/// An error of a statement. Whatever was written in its transaction is rolled back.
pub(super) fn query_error(error: Error) -> StoreError {
    match error.as_db_error() {
        None => StoreError::Unavailable(chain(&error)),
        Some(server) if is_passing(server.code()) => StoreError::Unavailable(describe(server)),
        Some(server) => StoreError::Damaged {
            place: place(server),
            // A unique violation too: what was judged to be new is there already, so that
            // judgement and table disagree.
            reason: describe(server),
        },
    }
}

/// An error of COMMIT itself: only a plain ERROR says for sure that nothing was written. A
/// backend that is told to end (FATAL) may have committed just before it could say so.
pub(super) fn commit_error(error: Error) -> StoreError {
    match error.as_db_error() {
        Some(server) if server.parsed_severity() == Some(Severity::Error) => query_error(error),
        Some(server) => StoreError::OutcomeUnknown(describe(server)),
        None => StoreError::OutcomeUnknown(chain(&error)),
    }
}

/// Wrong credentials, no such database, no right to it: waiting does not help.
fn is_our_setting(code: &SqlState) -> bool {
    matches!(class(code), "28" | "3D") || *code == SqlState::INSUFFICIENT_PRIVILEGE
}

/// What goes away by itself or by an operator's hand: connection trouble (08), a transaction that
/// lost against another (40), a full disk or no memory (53), limits (54), a lock or another state
/// that is not met (55), shutdown and start (57), the system's own errors (58), a read-only server.
fn is_passing(code: &SqlState) -> bool {
    matches!(class(code), "08" | "40" | "53" | "54" | "55" | "57" | "58")
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
        || *code == SqlState::INSUFFICIENT_PRIVILEGE
}

/// The first two characters, which name the kind of an error.
fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or_default()
}

fn place(server: &DbError) -> String {
    match (server.table(), server.constraint()) {
        (Some(table), Some(constraint)) => format!("table {table} ({constraint})"),
        (Some(table), None) => format!("table {table}"),
        _ => "the database".to_owned(),
    }
}

fn describe(server: &DbError) -> String {
    let detail = server.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{}{detail} [{}]", server.message(), server.code().code())
}

/// The error and what caused it, in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        // What lies below an I/O error repeats it.
        cause = if error.is::<io::Error>() { None } else { error.source() };
    }
    text
}
