//! The lease that gives the right to write, kept while something is done under it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::clock;
use crate::live::Status;
use crate::store::{Lease, Source, Store, StoreError, Word};

/// Less than a third of what a lease runs: two renewals may fail.
const RENEW: Duration = Duration::from_secs(3);

/// Pauses between two looks at whether a lease has run out.
const LOOK: Duration = Duration::from_millis(500);
/// How much longer than a lease runs its end is waited for.
const MARGIN: Duration = Duration::from_secs(2);

/// Becomes the one follower for a while. One that was killed has left a lease that runs out, and is waited for; one
/// that is alive renews it.
///
/// # Errors
///
/// Those of the store; [`StoreError::LostLease`] when somebody follows.
pub async fn take(store: &Store, upstream: &str) -> Result<(Lease, Source), StoreError> {
    let patience = store.lease_after_death().map_or(Duration::ZERO, |lease| lease + MARGIN);
    let begun = Instant::now();
    let mut said = false;
    loop {
        match store.follow(upstream).await {
            Err(error @ StoreError::LostLease(_)) if begun.elapsed() < patience => {
                if !std::mem::replace(&mut said, true) {
                    let seconds = patience.as_secs();
                    tracing::warn!("{error}; waiting {seconds} s at most for it to end");
                }
                sleep(LOOK).await;
            }
            taken => return taken,
        }
    }
}

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
        error = renew(store, lease, || None) => Err(error.into()),
    }
}

/// The same, with which the processes that read are told what the follower knows.
///
/// # Errors
///
/// Those of the work, and of the store when the lease is lost.
pub async fn while_telling<T, E: From<StoreError>>(
    (store, status): (&Store, &Status),
    lease: &Lease,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        done = work => done,
        error = renew(store, lease, || Some(status.word(clock::now(), None))) => Err(error.into()),
    }
}

/// Renews until the lease is lost.
async fn renew(store: &Store, lease: &Lease, word: impl Fn() -> Option<Word>) -> StoreError {
    loop {
        sleep(RENEW).await;
        match store.renew(lease, word().as_ref()).await {
            // The next commit will tell whether the store is gone for longer.
            Ok(()) | Err(StoreError::Unavailable(_)) => {}
            Err(error) => return error,
        }
    }
}
