//! The primary as those see it who may read elsewhere too: whether it has fallen silent.

use std::sync::{Arc, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// The primary, from the start of the process on.
#[derive(Debug)]
pub struct Primary(RwLock<Arc<Conversation>>);

/// From when it answered first until it falls silent.
#[derive(Debug)]
pub struct Conversation {
    /// Reads from it. Of this time alone: connections on which nothing is answered any more go with it.
    pub store: Store,
    /// Cancelled when it has fallen silent.
    pub silent: CancellationToken,
}

impl Primary {
    /// It is taken to answer.
    pub fn new(store: Store) -> Primary {
        Primary(RwLock::new(Arc::new(Conversation { store, silent: CancellationToken::new() })))
    }

    /// As it is now.
    pub fn conversation(&self) -> Arc<Conversation> {
        // Nothing can panic between two changes of it.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// It does not answer.
    pub fn set_silent(&self) {
        self.conversation().silent.cancel();
    }

    /// It answers. Where it was silent, it is read on other connections from now on.
    pub fn set_answering(&self, anew: impl FnOnce() -> Store) {
        if self.conversation().silent.is_cancelled() {
            let conversation =
                Arc::new(Conversation { store: anew(), silent: CancellationToken::new() });
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = conversation;
        }
    }
}
