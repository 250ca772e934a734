//! Which keys get a table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use ahash::RandomState;

use super::Signature;
use super::cache::KeyText;
use super::table::KeyTable;

/// Tables kept: 14 MB. A directory's operations are signed by a handful of hosts' keys.
const TABLES: usize = 16;
/// A key gets a table when it was met so often without one. A table costs as much time as some 40
/// verifications, so that somebody who makes us build one after another slows us by a sixth, and a
/// table has paid for itself after 50 verifications.
pub(super) const HOT: u32 = 256;

/// The tables of the keys that are met most.
pub(super) struct HotKeys {
    tables: RwLock<HashMap<KeyText, Hot, RandomState>>,
}

struct Hot {
    table: KeyTable,
    /// Verifications, halved whenever another key wants a place.
    uses: AtomicU64,
}

impl HotKeys {
    pub(super) fn new() -> HotKeys {
        HotKeys { tables: RwLock::new(HashMap::with_hasher(RandomState::new())) }
    }

    /// The verdict, if this key has a table.
    pub(super) fn verify(
        &self,
        key: &KeyText,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Option<bool> {
        // Held while verifying, so that nothing else is to be counted. A writer waits for some
        // microseconds, and there is at most one in HOT verifications.
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let hot = tables.get(key)?;
        hot.uses.fetch_add(1, Ordering::Relaxed);
        Some(hot.table.verify(digest, signature))
    }

    /// Gives a key that was met [`HOT`] times a table, unless all places are taken by keys that
    /// are met more than that. In a flood of new keys they replace each other, and the busy ones
    /// stay.
    pub(super) fn admit(&self, text: &KeyText, key: &secp256k1::PublicKey) {
        if !self.make_room() {
            return;
        }
        let hot = Hot { table: KeyTable::new(key), uses: AtomicU64::new(0) };
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have come first: then there are a few verifications in vain.
        if tables.len() < TABLES || tables.contains_key(text) {
            tables.insert(*text, hot);
        }
    }

    /// Whether there is a place, now that the key with the fewest uses may have lost its own.
    fn make_room(&self) -> bool {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if tables.len() < TABLES {
            return true;
        }
        let uses = |hot: &Hot| hot.uses.load(Ordering::Relaxed);
        let least = tables.iter().map(|(text, hot)| (uses(hot), *text)).min();
        for hot in tables.values_mut() {
            *hot.uses.get_mut() /= 2;
        }
        least.is_some_and(|(uses, text)| uses < u64::from(HOT) && tables.remove(&text).is_some())
    }
}
