//! Which keys get a table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use ahash::RandomState;

use super::Signed;
use super::cache::KeyText;
use super::table::KeyTable;

/// Tables kept: 14 MB. A directory's operations are signed by a handful of hosts' keys.
pub(super) const TABLES: usize = 16;
/// A key gets a table when it was met so often without one. A table costs as much time as some 40
/// verifications, so that somebody who makes us build one after another slows us by a sixth, and a
/// table has paid for itself after 50 verifications.
pub(super) const HOT: u32 = 256;

/// The tables of the keys that are met most.
pub(super) struct HotKeys {
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
    /// Those of them in which it was the key that had signed, halved likewise.
    signed: AtomicU64,
}

impl HotKeys {
    pub(super) fn new(places: usize) -> HotKeys {
        HotKeys { places, tables: RwLock::new(HashMap::with_hasher(RandomState::new())) }
    }

    /// The verdict, if this key has a table.
    pub(super) fn verify(&self, key: &KeyText, signed: &Signed) -> Option<bool> {
        // Held while verifying, so that nothing else is to be counted. A writer waits for some
        // microseconds, and comes at most once in HOT verifications.
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let hot = tables.get(key)?;
        let table = hot.table.get()?;
        let verdict = table.verify(signed);
        hot.uses.fetch_add(1, Ordering::Relaxed);
        if verdict {
            hot.signed.fetch_add(1, Ordering::Relaxed);
        }
        Some(verdict)
    }

    /// First index of the key that has signed most of all, if one of them has a table.
    pub(super) fn likeliest(&self, keys: &[&str]) -> Option<usize> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let signed = |key: &&str| {
            let text: &KeyText = key.as_bytes().try_into().ok()?;
            tables.get(text).map(|hot| hot.signed.load(Ordering::Relaxed))
        };
        let mut likeliest = None;
        for (index, key) in keys.iter().enumerate() {
            if let Some(signed) = signed(key)
                && likeliest.is_none_or(|(most, _)| signed > most)
            {
                likeliest = Some((signed, index));
            }
        }
        likeliest.map(|(_, index)| index)
    }

    /// Gives a key that was met [`HOT`] times a table, unless all places are taken by keys that
    /// are met more than that. In a flood of new keys they replace each other, and the busy ones
    /// stay.
    pub(super) fn admit(&self, text: &KeyText, key: &secp256k1::PublicKey) {
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
                *hot.signed.get_mut() /= 2;
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
    use super::*;
    use crate::key::TEXT_LENGTH;
    use crate::signature::Signature;

    /// A key that nobody else has, and a text for it.
    fn key(number: u8) -> (KeyText, secp256k1::PublicKey) {
        let secret = secp256k1::SecretKey::from_secret_bytes([number; 32]).unwrap();
        ([number; TEXT_LENGTH], secp256k1::PublicKey::from_secret_key(&secret))
    }

    fn verify(hot: &HotKeys, number: u8, times: usize) -> Option<bool> {
        let (text, _) = key(number);
        let signed = Signed::new([1; 32], Signature([1; 64]));
        (0..times).fold(None, |_, _| hot.verify(&text, &signed))
    }

    fn admit(hot: &HotKeys, number: u8) -> bool {
        let (text, key) = key(number);
        hot.admit(&text, &key);
        hot.verify(&text, &Signed::new([1; 32], Signature([1; 64]))).is_some()
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
