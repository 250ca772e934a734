//! What an error of the driver means for the one who called the store.

use std::error::Error as _;
use std::io;

use sqlx::Error;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::store::StoreError;

/// An error while connecting to the database that a setting names.
pub(super) fn connect_error(error: Error, setting: &str) -> StoreError {
    match &error {
        Error::Database(server) => {
            let server = server.downcast_ref::<PgDatabaseError>();
            if is_our_setting(server.code()) {
                return StoreError::Unusable(format!(
                    "the setting {setting} names a server that refuses us: {}",
                    describe(server)
                ));
            }
        }
        Error::Tls(_) => return unsafe_connection(&error, setting),
        // The TLS library passes its own errors through the socket under this kind.
        Error::Io(socket) if socket.kind() == io::ErrorKind::InvalidData => {
            return unsafe_connection(&error, setting);
        }
        _ => {}
    }
    query_error(error)
}

/// No encryption where `sslmode` demands it, or a certificate that does not pass.
fn unsafe_connection(error: &Error, setting: &str) -> StoreError {
    StoreError::Unusable(format!(
        "the setting {setting} demands a safe connection by its sslmode, and there is none: {}",
        chain(error)
    ))
}

/// An error of a statement. Whatever was written in its transaction is rolled back.
pub(super) fn query_error(error: Error) -> StoreError {
    match &error {
        Error::Database(server) => {
            let server = server.downcast_ref::<PgDatabaseError>();
            match server.code() {
                INSUFFICIENT_PRIVILEGE => StoreError::Denied(format!(
                    "{}; the user that --database names needs the right to it",
                    describe(server)
                )),
                READ_ONLY => StoreError::Denied(format!(
                    "{}; it is a hot standby, or set to be read only: name its primary with --database, or promote it",
                    describe(server)
                )),
                code if is_passing(code) => StoreError::Unavailable(describe(server)),
                // A unique violation too: what was judged to be new is there already, so that
                // judgement and table disagree.
                _ => StoreError::Damaged { place: place(server), reason: describe(server) },
            }
        }
        // The server has answered, and not with the rows and columns that there are in our tables.
        Error::RowNotFound
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::TypeNotFound { .. } => {
            StoreError::Damaged { place: "the database".to_owned(), reason: error.to_string() }
        }
        Error::ColumnDecode { source, .. } | Error::Decode(source) => {
            StoreError::Damaged { place: "the database".to_owned(), reason: source.to_string() }
        }
        // What the driver says of it beside that tells nobody more.
        Error::Io(socket) => StoreError::Unavailable(socket.to_string()),
        _ => StoreError::Unavailable(chain(&error)),
    }
}

/// An error of COMMIT itself: only a plain ERROR says for sure that nothing was written. A
/// backend that is told to end (FATAL) may have committed just before it could say so.
pub(super) fn commit_error(error: Error) -> StoreError {
    match &error {
        Error::Database(_) if !has_ended_connection(&error) => query_error(error),
        Error::Database(server) => {
            StoreError::OutcomeUnknown(describe(server.downcast_ref::<PgDatabaseError>()))
        }
        _ => StoreError::OutcomeUnknown(chain(&error)),
    }
}

/// Whether the connection is of no use any more after this error.
pub(super) fn has_ended_connection(error: &Error) -> bool {
    match error {
        Error::Database(server) => matches!(
            server.downcast_ref::<PgDatabaseError>().severity(),
            PgSeverity::Fatal | PgSeverity::Panic
        ),
        // A value that does not fit its type leaves the connection in the middle of an answer.
        _ => true,
    }
}

/// Whether a lock was waited for in vain.
pub(super) fn is_lock_timeout(error: &Error) -> bool {
    error.as_database_error().and_then(|server| server.code()).as_deref() == Some(LOCK_TIMEOUT)
}

/// Wrong credentials, no such database, no right to it: waiting does not help.
fn is_our_setting(code: &str) -> bool {
    matches!(class(code), "28" | "3D") || code == INSUFFICIENT_PRIVILEGE
}

/// What goes away by itself or by an operator's hand: connection trouble (08), a transaction that
/// lost against another (40), a full disk or no memory (53), limits (54), a lock or another state
/// that is not met (55), shutdown and start (57), the system's own errors (58), a transaction that was aborted or took
/// too long.
fn is_passing(code: &str) -> bool {
    matches!(class(code), "08" | "40" | "53" | "54" | "55" | "57" | "58")
        || PASSING_STATES.contains(&code)
}

const INSUFFICIENT_PRIVILEGE: &str = "42501";

const LOCK_TIMEOUT: &str = "55P03";

/// A server that takes no writes: they are for another one, until it is promoted.
const READ_ONLY: &str = "25006";

/// Of the states of a transaction (25): aborted, idle or under way for too long.
const PASSING_STATES: [&str; 3] = ["25P02", "25P03", "25P04"];

/// The first two characters, which name the kind of an error.
fn class(code: &str) -> &str {
    code.get(..2).unwrap_or_default()
}

fn place(server: &PgDatabaseError) -> String {
    match (server.table(), server.constraint()) {
        (Some(table), Some(constraint)) => format!("table {table} ({constraint})"),
        (Some(table), None) => format!("table {table}"),
        _ => "the database".to_owned(),
    }
}

fn describe(server: &PgDatabaseError) -> String {
    let detail = server.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{}{detail} [{}]", server.message(), server.code())
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
