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
            return file(path).map(DatabasePlace::Sqlite);
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(DatabasePlace::Postgres(url));
        }
        // A text in which nothing is named or separated is a path.
        if !url.is_empty() && !url.contains([':', '=']) {
            return file(url).map(DatabasePlace::Sqlite);
        }
        // The beginning is enough to see the mistake; the rest may hold a password.
        let scheme = url.find("://").map(|at| at + "://".len());
        let given = match scheme.or_else(|| url.find([':', '=']).map(|at| at + 1)) {
            Some(end) => format!("{}…", &url[..end]),
            None => url.to_owned(),
        };
        Err(StoreError::Unusable(format!(
            "the setting --database is `{given}`; it takes the path of a file, sqlite://PATH, \
             postgres://USER@HOST/NAME or postgresql://USER@HOST/NAME"
        )))
    }
}

/// The file that is named behind `sqlite://`: the whole of it is its path.
fn file(path: &str) -> Result<&Path, StoreError> {
    if let Some((_, query)) = path.split_once('?') {
        return Err(StoreError::Unusable(format!(
            "the setting --database has the query `?{query}`; sqlite:// takes the path of a file, and nothing after it"
        )));
    }
    if path == ":memory:" {
        return Err(StoreError::Unusable(
            "the setting --database is `sqlite://:memory:`; it takes the path of a file, since a log in memory \
             would end with this process"
                .to_owned(),
        ));
    }
    Ok(path.as_ref())
}
