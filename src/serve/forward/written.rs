//! Writes that were sent to the upstream and have not come here yet, or may not be on every standby.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use did_plc::{Cid, Did};
use lru::LruCache;
use tokio::time::Instant;

/// For how long it is known that a write is still to come. The stream of a directory brings it within seconds, its
/// export is asked once a minute; whoever is further behind than this is so with all identities.
const MEMORY: Duration = Duration::from_secs(5 * 60);
/// Identities that are remembered: some 150 kB. Those that were written longest ago go first. The compiler sees
/// that it is not zero.
const MAX_IDENTITIES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The last such write of each identity.
#[derive(Debug)]
pub struct Written {
    writes: Mutex<LruCache<Did, (Cid, Instant)>>,
}

impl Written {
    /// None.
    pub fn new() -> Written {
        Written { writes: Mutex::new(LruCache::new(MAX_IDENTITIES)) }
    }

    /// An operation of this identity is on its way, or may be, if only to a standby.
    pub fn note(&self, did: Did, cid: Cid) {
        self.writes().put(did, (cid, Instant::now() + MEMORY));
    }

    /// What is on its way of this identity.
    pub fn of(&self, did: &Did) -> Option<Cid> {
        let writes = self.writes();
        let (cid, until) = writes.peek(did)?;
        (*until > Instant::now()).then_some(*cid)
    }

    /// This operation is wherever it can be read from.
    pub fn forget(&self, did: &Did, cid: Cid) {
        let mut writes = self.writes();
        if writes.peek(did).is_some_and(|(noted, _)| *noted == cid) {
            writes.pop(did);
        }
    }

    fn writes(&self) -> MutexGuard<'_, LruCache<Did, (Cid, Instant)>> {
        // Nothing in this module can panic between two changes of it.
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_is_remembered_until_it_has_come_or_for_a_while() {
        let written = Written::new();
        let [did, other] = [1, 2].map(|n| Did::from_bytes([n; 15]));
        let [first, second] = [Cid::of(b"first"), Cid::of(b"second")];
        written.note(did, first);
        assert_eq!((written.of(&did), written.of(&other)), (Some(first), None));
        written.note(did, second);
        written.forget(&did, first);
        assert_eq!(written.of(&did), Some(second));
        written.forget(&did, second);
        assert_eq!(written.of(&did), None);
        written.note(did, first);
        tokio::time::advance(MEMORY).await;
        assert_eq!(written.of(&did), None);
    }
}
