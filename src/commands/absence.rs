//! What is said of an identity of which the database holds no operation.

use did_plc::Did;

use crate::store::{Store, StoreError};

use super::settings::without_password;

/// That it is not there; or, where operations of it were received, that none of them verifies.
///
/// # Errors
///
/// Those of the store.
pub async fn absence(store: &Store, did: &Did, database: &str) -> Result<String, StoreError> {
    Ok(match store.standing_refusals(&[*did]).await?.len() {
        0 => format!("{did} is not in {}", without_password(database)),
        _ => format!(
            "operations of {did} were received and none of them verifies: see `plc-replica refused --did {did}`"
        ),
    })
}
