//! Which database a URL names.

use std::path::Path;

use super::error::StoreError;

/// Which backend a URL names.
pub(super) enum DatabasePlace<'a> {
    Sqlite(&'a Path),
    Postgres(&'a str),
}

impl DatabasePlace<'_> {
    pub(super) fn of(url: &str) -> Result<DatabasePlace<'_>, StoreError> {
        if let Some(path) = url.strip_prefix("sqlite://").filter(|path| !path.is_empty()) {
            return Ok(DatabasePlace::Sqlite(path.as_ref()));
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(DatabasePlace::Postgres(url));
        }
        // The beginning is enough to see the mistake; the rest may hold a password.
        let scheme = url.find("://").map(|at| at + "://".len());
        let given = match scheme.or_else(|| url.find([':', '=']).map(|at| at + 1)) {
            Some(end) => format!("{}…", &url[..end]),
            None => url.to_owned(),
        };
        Err(StoreError::Unusable(format!(
            "the setting --database is `{given}`; it takes sqlite://PATH, \
             postgres://USER@HOST/NAME or postgresql://USER@HOST/NAME"
        )))
    }
}
