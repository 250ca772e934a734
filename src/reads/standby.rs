//! A hot standby as those see it who read: whether it answers, and how fresh it is.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ::metrics::Counter;
use tokio_util::sync::CancellationToken;

use super::freshness::Freshness;
use super::trail::Place;
use crate::store::Store;

/// A standby, from the start of the process on.
#[derive(Debug)]
pub struct Standby {
    /// Which database on which server, without user and password.
    pub name: String,
    /// Reads that were asked of it.
    pub reads: Counter,
    answering: RwLock<Option<Arc<Answering>>>,
}

/// While it answers: from when it was found to be there until it is found not to be.
#[derive(Debug)]
pub struct Answering {
    /// Reads from it. Of this time alone: connections on which nothing is answered any more go with it.
    pub store: Store,
    /// Cancelled when it is found not to be there: whoever waits for it asks somebody else.
    pub gone: CancellationToken,
    seen: Mutex<Seen>,
}

/// How it was at the last look.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// What it promises.
    pub freshness: Freshness,
    /// Whether it is too far behind to be read from while there is another one, or the primary.
    pub behind: bool,
}

impl Standby {
    /// One that was not looked for yet.
    pub fn new(name: String, reads: Counter) -> Standby {
        Standby { name, reads, answering: RwLock::default() }
    }

    /// What answers, if it does.
    pub fn answering(&self) -> Option<Arc<Answering>> {
        // Nothing can panic between two changes of it.
        self.answering.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It was found to be there, and so far.
    pub fn set_answering(&self, store: Store, seen: Seen) {
        let answering = Answering { store, gone: CancellationToken::new(), seen: Mutex::new(seen) };
        self.set(Some(Arc::new(answering)));
    }

    /// It was found not to be there.
    pub fn set_gone(&self) {
        self.set(None);
    }

    fn set(&self, answering: Option<Arc<Answering>>) {
        let mut place = self.answering.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *place, answering);
        drop(place);
        if let Some(before) = before {
            before.gone.cancel();
        }
    }
}

impl Answering {
    /// How it was at the last look.
    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was found to be so.
    pub fn set_seen(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl Seen {
    /// At this place; too far behind where that is more than this.
    pub fn at(place: Place, most: std::time::Duration) -> Seen {
        Seen { freshness: place.freshness, behind: place.lag.is_none_or(|lag| lag > most) }
    }
}
