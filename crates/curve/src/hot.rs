//! Which keys get a table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use ahash::RandomState;

use crate::cache::KeyText;
use crate::table::{KeyTable, Trial};

/// Tables kept: 14 MB. A directory's operations are signed by a handful of hosts' keys.
pub(crate) const TABLES: usize = 16;
/// A key gets a table when it was met so often without one. A table costs as much time as some 40
/// verifications, so that somebody who makes us build one after another slows us by a sixth, and a
/// table has paid for itself after 50 verifications.
pub(crate) const HOT: u32 = 256;

/// The tables of the keys that are met most.
pub(crate) struct HotKeys {
    /// The most tables.
    places: usize,
    tables: RwLock<HashMap<KeyText, Hot, RandomState>>,
}

#[derive(Default)]
struct Hot {
    /// Empty while it is built.
    table: OnceLock<KeyTable>,
    /// Verifications, halved whenever another key wants a place.
    uses: AtomicU64,
}

impl HotKeys {
    pub(crate) fn new(places: usize) -> HotKeys {
        HotKeys { places, tables: RwLock::new(HashMap::with_hasher(RandomState::new())) }
    }

    /// The verdict, if this key has a table.
    pub(crate) fn verify(&self, key: &KeyText, trial: &Trial<'_>) -> Option<bool> {
        // Held while verifying, so that nothing else is to be counted. A writer waits for some
        // microseconds, and comes at most once in HOT verifications.
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let hot = tables.get(key)?;
        let verdict = hot.table.get()?.verify(trial);
        hot.uses.fetch_add(1, Ordering::Relaxed);
        Some(verdict)
    }

    /// Gives a key that was met [`HOT`] times a table, unless all places are taken by keys that
    /// are met more than that. In a flood of new keys they replace each other, and the busy ones
    /// stay.
    pub(crate) fn admit(&self, text: &KeyText, key: &secp256k1::PublicKey) {
        if !self.reserve(text) {
            return;
        }
        // The others verify as before in this millisecond.
        let table = KeyTable::new(key);
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(hot) = tables.get(text) {
            // It can have been set only if the place was lost and given to the same key again.
            let _ = hot.table.set(table);
        }
    }

    /// Takes a place for the key, if there is one or the key with the fewest uses can lose its
    /// own. False if the key has one already.
    fn reserve(&self, text: &KeyText) -> bool {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if tables.contains_key(text) {
            return false;
        }
        if tables.len() == self.places {
            let uses = |hot: &Hot| hot.uses.load(Ordering::Relaxed);
            let least = tables.iter().map(|(text, hot)| (uses(hot), *text)).min();
            for hot in tables.values_mut() {
                *hot.uses.get_mut() /= 2;
            }
            match least {
                Some((uses, least)) if uses < u64::from(HOT) => tables.remove(&least),
                _ => return false,
            };
        }
        tables.insert(*text, Hot::default());
        true
    }
}

#[cfg(test)]
mod tests {
    use did_plc::key::TEXT_LENGTH;
    use did_plc::signature::{Signature, Signed};

    use super::*;

    /// Nobody's signature.
    const SIGNED: Signed = Signed { digest: [1; 32], signature: Signature([1; 64]) };

    /// A key that nobody else has, and a text for it.
    fn key(number: u8) -> (KeyText, secp256k1::PublicKey) {
        let secret = secp256k1::SecretKey::from_secret_bytes([number; 32]).unwrap();
        ([number; TEXT_LENGTH], secp256k1::PublicKey::from_secret_key(&secret))
    }

    fn verify(hot: &HotKeys, number: u8, times: usize) -> Option<bool> {
        let (text, _) = key(number);
        (0..times).fold(None, |_, _| hot.verify(&text, &Trial::new(&SIGNED)))
    }

    fn admit(hot: &HotKeys, number: u8) -> bool {
        let (text, key) = key(number);
        hot.admit(&text, &key);
        hot.verify(&text, &Trial::new(&SIGNED)).is_some()
    }

    #[test]
    fn the_busy_keep_their_places() {
        let hot = HotKeys::new(2);
        assert_eq!(verify(&hot, 1, 1), None);
        assert!(admit(&hot, 1));
        assert_eq!(verify(&hot, 1, 3 * HOT as usize), Some(false));
        // Newcomers replace each other,
        assert!(admit(&hot, 2));
        assert!(admit(&hot, 3));
        assert_eq!(verify(&hot, 2, 1), None);
        assert_eq!(verify(&hot, 1, 1), Some(false));
        // until they are busy themselves;
        assert_eq!(verify(&hot, 3, 3 * HOT as usize), Some(false));
        assert_eq!(verify(&hot, 1, 3 * HOT as usize), Some(false));
        assert!(!admit(&hot, 4));
        // and who is not met any more loses the place in the end.
        assert_eq!(verify(&hot, 1, 3 * HOT as usize), Some(false));
        let tries = (0..64).take_while(|_| !admit(&hot, 4)).count();
        assert!(tries < 8, "{tries}");
        assert_eq!(verify(&hot, 3, 1), None);
        assert_eq!(hot.tables.read().unwrap().len(), 2);
    }
}
