//! The parameters of a request.

use std::collections::HashMap;

/// Those of a path, by their names.
pub(super) fn query(path: &str) -> HashMap<String, String> {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
