//! What was made of a key's text, kept: bounded, and shared by all threads.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ahash::RandomState;
use did_plc::key::TEXT_LENGTH;

/// The text of a key, perhaps. A text of another length is no key, and needs no place in a cache to
/// be told so.
pub(crate) type KeyText = [u8; TEXT_LENGTH];

/// So many threads rarely wait for each other: a lock is held for tens of nanoseconds.
const SHARDS: usize = 16;
/// Keys in one generation of one shard: what a hash table of 512 places takes. With two generations
/// and 16 shards there are at most 14,336 keys: 2.5 MB, or 17 MB if somebody makes all of them P-256
/// (their library keeps about 1 kB each).
const GENERATION: usize = 448;

/// A map from key texts to what was made of them, which may be forgotten and made again at any
/// time.
///
/// A shard has two generations. What is new or was met again goes into the young one; when that is
/// full it becomes the old one, and the old one is forgotten. So a key is kept as long as it is
/// met once while 448 others come by, a hit writes nothing, and nothing is ever searched for a
/// victim.
pub(crate) struct KeyCache<V> {
    /// Keyed at random: nobody can choose keys that collide.
    hasher: RandomState,
    shards: [RwLock<Shard<V>>; SHARDS],
}

struct Shard<V> {
    young: HashMap<KeyText, V, RandomState>,
    old: HashMap<KeyText, V, RandomState>,
}

impl<V> KeyCache<V> {
    pub(crate) fn new() -> Self {
        let hasher = RandomState::new();
        let shard = || Shard {
            young: HashMap::with_hasher(hasher.clone()),
            old: HashMap::with_hasher(hasher.clone()),
        };
        let shards = std::array::from_fn(|_| RwLock::new(shard()));
        KeyCache { hasher, shards }
    }

    /// What `look` says of the value of `text`, which `make` makes if it is not there. Other
    /// threads may be looking at the same value, and may have made it at the same time.
    pub(crate) fn with<R>(
        &self,
        text: &KeyText,
        make: impl FnOnce() -> V,
        look: impl Fn(&V) -> R,
    ) -> R {
        let shard = self.shard(text);
        if let Some(value) = read(shard).young.get(text) {
            return look(value);
        }
        let remembered = write(shard).old.remove(text);
        // Outside of the lock, since it takes microseconds.
        let value = remembered.unwrap_or_else(make);
        let shard = &mut *write(shard);
        if shard.young.len() >= GENERATION {
            std::mem::swap(&mut shard.old, &mut shard.young);
            shard.young.clear();
        }
        look(shard.young.entry(*text).or_insert(value))
    }

    /// What `look` says of the value of `text`, if there is one. It is not kept any longer for that.
    pub(crate) fn peek<R>(&self, text: &KeyText, look: impl Fn(&V) -> R) -> Option<R> {
        let shard = read(self.shard(text));
        shard.young.get(text).or_else(|| shard.old.get(text)).map(look)
    }

    fn shard(&self, text: &KeyText) -> &RwLock<Shard<V>> {
        // The maps take the lowest and the highest bits of the same hash.
        &self.shards[(self.hasher.hash_one(text) >> 32) as usize % SHARDS]
    }

    /// Values kept at present.
    #[cfg(test)]
    fn len(&self) -> usize {
        let count = |shard| {
            let shard: RwLockReadGuard<'_, Shard<V>> = read(shard);
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(count).sum()
    }
}

/// A map of pure functions' values is whole at every moment, also when a thread panicked.
fn read<V>(lock: &RwLock<V>) -> RwLockReadGuard<'_, V> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<V>(lock: &RwLock<V>) -> RwLockWriteGuard<'_, V> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn text(number: usize) -> KeyText {
        let mut text = [0; TEXT_LENGTH];
        text[..8].copy_from_slice(&number.to_le_bytes());
        text
    }

    #[test]
    fn a_value_is_made_once() {
        let cache = KeyCache::new();
        assert_eq!(cache.with(&text(1), || 10, |value| *value), 10);
        assert_eq!(cache.with(&text(1), || 11, |value| *value), 10);
        assert_eq!(cache.with(&text(2), || 20, |value| *value), 20);
    }

    #[test]
    fn a_peek_makes_nothing_and_keeps_nothing() {
        let cache = KeyCache::new();
        assert_eq!(cache.peek(&text(0), |value: &usize| *value), None);
        cache.with(&text(0), || 7, |_| ());
        assert_eq!(cache.peek(&text(0), |value| *value), Some(7));
        for number in 1..3 * 2 * SHARDS * GENERATION {
            cache.peek(&text(0), |_| ());
            cache.with(&text(number), || number, |_| ());
        }
        assert_eq!(cache.peek(&text(0), |value| *value), None);
    }

    #[test]
    fn what_is_met_again_stays_and_the_rest_is_bounded() {
        let cache = KeyCache::new();
        let made = AtomicUsize::new(0);
        let meet = |number| {
            let make = || made.fetch_add(1, Ordering::Relaxed);
            cache.with(&text(number), make, |_| ());
        };
        let most = 2 * SHARDS * GENERATION;
        for number in 1..3 * most {
            meet(0);
            meet(number);
        }
        assert_eq!(made.into_inner(), 3 * most, "key 0 was never forgotten");
        assert!(cache.len() <= most);
    }

    #[test]
    fn threads_agree() {
        let cache = KeyCache::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in (0..40_000).map(|step| step % 10_007) {
                        assert_eq!(cache.with(&text(number), || number, |value| *value), number);
                    }
                });
            }
        });
    }
}
