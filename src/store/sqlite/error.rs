//! What an error of SQLite means to us.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// The place of damage that SQLite finds, which does not know where the database is.
const SOMEWHERE: &str = "the database";

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            // The file is not ours to write.
            Some(
                ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::AuthorizationForStatementDenied,
            ) => StoreError::Denied(format!(
                "{error}; this process needs the right to the file that --database names, and to its folder"
            )),
            // The disk is full or fails, the file is gone, another process holds it: all of it can
            // pass.
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::CannotOpen
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationAborted
                | ErrorCode::OperationInterrupted
                | ErrorCode::OutOfMemory,
            ) => StoreError::Unavailable(error.to_string()),
            // A value or a table that is not as we write them included.
            _ => damaged(SOMEWHERE, error),
        }
    }
}

/// Damage at `place`: something that this program would not have written.
pub(super) fn damaged(place: impl ToString, reason: impl ToString) -> StoreError {
    StoreError::Damaged { place: place.to_string(), reason: reason.to_string() }
}

/// The same error, with the file of the database where it says no other place.
pub(super) fn in_file(path: &Path, error: StoreError) -> StoreError {
    let file = path.display();
    match error {
        StoreError::Unavailable(reason) => StoreError::Unavailable(format!("{file}: {reason}")),
        StoreError::Damaged { place, reason } if place == SOMEWHERE => {
            damaged(format!("the database {file}"), reason)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    #[test]
    fn what_may_not_be_written_is_no_outage() {
        let fate =
            |code| StoreError::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [ffi::SQLITE_READONLY, ffi::SQLITE_PERM, ffi::SQLITE_AUTH] {
            assert!(matches!(fate(code), StoreError::Denied(_)), "{code}");
        }
        assert!(matches!(fate(ffi::SQLITE_FULL), StoreError::Unavailable(_)));
        assert!(matches!(fate(ffi::SQLITE_CORRUPT), StoreError::Damaged { .. }));
    }
}
