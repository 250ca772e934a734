//! The lease that gives the right to write, kept while something is done under it.

use std::time::Duration;

use tokio::time::sleep;

use crate::store::{Lease, Store, StoreError};

/// A third of what a lease runs: two renewals may fail.
const RENEW: Duration = Duration::from_secs(5);

/// Does something that may take longer than the lease runs, and renews it meanwhile. Once the lease is lost
/// the work is dropped where it waits: whatever it would still commit would be refused.
///
/// # Errors
///
/// Those of the work, and of the store when the lease is lost.
pub async fn while_renewing<T, E: From<StoreError>>(
    store: &Store,
    lease: &Lease,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        done = work => done,
        error = renew(store, lease) => Err(error.into()),
    }
}

/// Renews until the lease is lost.
async fn renew(store: &Store, lease: &Lease) -> StoreError {
    loop {
        sleep(RENEW).await;
        match store.renew(lease).await {
            // The next commit will tell whether the store is gone for longer.
            Ok(()) | Err(StoreError::Unavailable(_)) => {}
            Err(error) => return error,
        }
    }
}
