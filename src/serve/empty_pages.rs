//! Empty pages of the export, for those who ask for them again and again.
//!
//! A program that follows by pages and does not pause at the end of the log asks for the same empty page some
//! thousand times a second. It is given the same answer as everybody, but not sooner than a second after the
//! one before, unless there is something new: so it hears of that at once, and asks once a second otherwise.
//! To refuse it would be to tell it something that the directory would not.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::live::Subscription;

use super::client_address::client_key;

/// The time between two answers with the same empty page to one client.
const PERIOD: Duration = Duration::from_secs(1);
/// Answers that are held back at a time; any more are given at once. Each is a request that was read, some
/// kilobytes.
const MAX_HELD: usize = 1_000;
/// Pages that are remembered as given: some 100 bytes each. The compiler sees that it is not zero.
const MAX_GIVEN: NonZeroUsize = NonZeroUsize::new(1 << 12).unwrap();

/// Which empty pages were given to whom.
#[derive(Debug)]
pub struct EmptyPages {
    period: Duration,
    given: Mutex<LruCache<Key, Instant>>,
    places: Semaphore,
    hasher: RandomState,
}

/// A client, and the hash of its query.
type Key = (IpAddr, u64);

/// A page that turned out to be empty.
#[derive(Debug)]
pub struct EmptyPage<'a> {
    pages: &'a EmptyPages,
    key: Key,
}

/// An answer that is held back, and its place.
#[derive(Debug)]
pub struct Held<'a> {
    until: Instant,
    _place: SemaphorePermit<'a>,
}

impl EmptyPages {
    /// None given yet. No answer is held back for more than half of the time that it may take.
    pub fn new(longest_answer: Duration) -> EmptyPages {
        EmptyPages {
            period: PERIOD.min(longest_answer / 2),
            given: Mutex::new(LruCache::new(MAX_GIVEN)),
            places: Semaphore::new(MAX_HELD),
            hasher: RandomState::new(),
        }
    }

    /// What this client asks for with this query, which is empty now.
    pub fn asked_for(&self, client: IpAddr, query: &str) -> EmptyPage<'_> {
        EmptyPage { pages: self, key: (client_key(client), self.hasher.hash_one(query)) }
    }

    fn given(&self) -> MutexGuard<'_, LruCache<Key, Instant>> {
        // Nothing in this module can panic between two changes of it.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> EmptyPage<'a> {
    /// Holds it back, where the client was given it a moment ago and there is a place.
    pub fn hold(&self) -> Option<Held<'a>> {
        let until = *self.pages.given().peek(&self.key)? + self.pages.period;
        if until <= Instant::now() {
            return None;
        }
        Some(Held { until, _place: self.pages.places.try_acquire().ok()? })
    }

    /// The client is given it now.
    pub fn given(&self) {
        self.pages.given().put(self.key, Instant::now());
    }
}

impl Held<'_> {
    /// Waits until something was committed, which need not be what the page lacks; not for longer than this is
    /// held back, nor for the end of the server.
    pub async fn until(self, mut news: Subscription, shutdown: &CancellationToken) {
        tokio::select! {
            () = sleep_until(self.until) => {}
            () = news.wait() => {}
            () = shutdown.cancelled() => {}
        }
    }
}
