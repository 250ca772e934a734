//! Chains that are read from the store before they are needed: while one batch is judged, those of the next one. Where
//! they are not in memory, reading them takes longer than judging.

use ahash::AHashMap;
use futures::future::join;
use tokio_util::task::AbortOnDropHandle;

use super::chains;
use crate::blocking;
use crate::store::{Store, StoreError};
use did_plc::{Chain, Did};

/// The chains that the store holds of some identities, by identity; empty ones of those that it does not hold.
pub type Loaded = AHashMap<Did, Chain>;

/// What was asked for ahead. Dropped, it is asked for no more.
pub struct Ahead(Option<AbortOnDropHandle<Result<Loaded, StoreError>>>);

impl Ahead {
    /// Nothing.
    pub fn nothing() -> Ahead {
        Ahead(None)
    }

    /// Begins to read those that are held, and to have the store make ready for those that are `new` there. What is
    /// written of one of them before it is used has to be known otherwise.
    pub fn of(store: &Store, held: Vec<Did>, new: Vec<Did>) -> Ahead {
        if held.is_empty() && new.is_empty() {
            return Ahead::nothing();
        }
        let store = store.clone();
        let reading = tokio::spawn(async move {
            // What cannot be made ready is waited for later.
            let (loaded, _) = join(load(&store, &held), store.expect(&new)).await;
            loaded
        });
        Ahead(Some(AbortOnDropHandle::new(reading)))
    }

    /// Waits for them.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn loaded(self) -> Result<Loaded, StoreError> {
        match self.0 {
            Some(reading) => blocking::finished("reading chains ahead", reading.await).await,
            None => Ok(Loaded::new()),
        }
    }
}

/// Reads the chains of these identities.
///
/// # Errors
///
/// Those of the store.
pub async fn load(store: &Store, dids: &[Did]) -> Result<Loaded, StoreError> {
    let mut loaded: Loaded = dids.iter().map(|did| (*did, Chain::default())).collect();
    if !dids.is_empty() {
        let stored = store.histories(dids).await?;
        let held = blocking::run("reading chains", move || chains::from_stored(&stored)).await?;
        loaded.extend(held);
    }
    Ok(loaded)
}
