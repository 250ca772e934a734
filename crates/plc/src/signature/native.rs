//! The fast verifier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};

use super::cache::{KeyCache, KeyText};
use super::hot::{HOT, HotKeys, TABLES};
use super::{KeyLookups, Signature, Signed, UnsupportedKey, Verifier};
use crate::key::{Curve, PublicKey};

/// Half of the order of P-256, rounded down: the greatest low S, big-endian.
const P256_HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
];

/// Whether tables of multiples are built for the k256 keys that are met most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// They are: up to 19 MB, and a quarter of the time.
    On,
    /// Every k256 signature is verified by libsecp256k1.
    Off,
}

/// Verifies with libsecp256k1, aws-lc and tables of multiples, and keeps the keys that it has
/// parsed.
///
/// One is meant to be shared by all threads for as long as the process lives. Its memory is
/// bounded whatever keys come: by [`KeyCache`] and [`HotKeys`].
pub struct NativeVerifier {
    keys: KeyCache<Met>,
    hot: Option<HotKeys>,
    lookups: Lookups,
}

/// [`KeyLookups`] as they are counted.
#[derive(Default)]
struct Lookups {
    tables: AtomicU64,
    kept: AtomicU64,
    parsed: AtomicU64,
}

/// A key that was met.
struct Met {
    key: Key,
    /// How often a k256 key was met without a table.
    times: AtomicU32,
}

/// What a library made of a key's text.
#[derive(Clone)]
enum Key {
    Unsupported,
    K256(secp256k1::PublicKey),
    P256(Arc<ParsedPublicKey>),
}

impl NativeVerifier {
    /// A verifier that has met no key yet.
    #[must_use]
    pub fn new(tables: Tables) -> NativeVerifier {
        let hot = (tables == Tables::On).then(|| HotKeys::new(TABLES));
        NativeVerifier { keys: KeyCache::new(), hot, lookups: Lookups::default() }
    }
}

impl Verifier for NativeVerifier {
    fn verify(&self, key: &str, signed: &Signed) -> Result<bool, UnsupportedKey> {
        let text: &KeyText = key.as_bytes().try_into().map_err(|_| UnsupportedKey)?;
        if let Some(hot) = &self.hot
            && let Some(verdict) = hot.verify(text, signed)
        {
            self.lookups.tables.fetch_add(1, Ordering::Relaxed);
            return Ok(verdict);
        }
        let Signed { digest, signature, .. } = signed;
        let (parsed, times) = self.keys.with(text, || Met::new(key), Met::again);
        let found = if times == 1 { &self.lookups.parsed } else { &self.lookups.kept };
        found.fetch_add(1, Ordering::Relaxed);
        match parsed {
            Key::Unsupported => Err(UnsupportedKey),
            Key::P256(key) => Ok(verify_p256(&key, digest, signature)),
            Key::K256(key) => {
                if let Some(hot) = &self.hot
                    && times.is_multiple_of(HOT)
                {
                    hot.admit(text, &key);
                }
                Ok(verify_k256(&key, digest, signature))
            }
        }
    }

    fn likeliest(&self, keys: &[&str]) -> Option<usize> {
        let likeliest = self.hot.as_ref()?.likeliest(keys)?;
        let is_key = |key: &&str| {
            let text: Option<&KeyText> = key.as_bytes().try_into().ok();
            text.is_some_and(|text| self.keys.with(text, || Met::new(key), Met::is_key))
        };
        keys[..likeliest].iter().all(is_key).then_some(likeliest)
    }

    fn lookups(&self) -> KeyLookups {
        let Lookups { tables, kept, parsed } = &self.lookups;
        let [tables, kept, parsed] =
            [tables, kept, parsed].map(|count| count.load(Ordering::Relaxed));
        KeyLookups { tables, kept, parsed }
    }
}

impl Met {
    fn new(text: &str) -> Met {
        Met { key: Key::parse(text), times: AtomicU32::new(0) }
    }

    fn is_key(&self) -> bool {
        !matches!(self.key, Key::Unsupported)
    }

    /// The key, and how often it was met, this time included. One thread sees each number.
    fn again(&self) -> (Key, u32) {
        let before = self.times.fetch_add(1, Ordering::Relaxed);
        (self.key.clone(), before.wrapping_add(1))
    }
}

impl Key {
    fn parse(text: &str) -> Key {
        let Some(key) = PublicKey::parse(text) else {
            return Key::Unsupported;
        };
        match key.curve {
            Curve::K256 => secp256k1::PublicKey::from_byte_array_compressed(key.point)
                .map_or(Key::Unsupported, Key::K256),
            Curve::P256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point)
                .map_or(Key::Unsupported, |key| Key::P256(Arc::new(key))),
        }
    }
}

/// libsecp256k1 refuses by itself `r` and `s` that are not in 1..n, and a high S.
fn verify_k256(key: &secp256k1::PublicKey, digest: &[u8; 32], signature: &Signature) -> bool {
    let message = secp256k1::Message::from_digest(*digest);
    secp256k1::ecdsa::Signature::from_compact(&signature.0)
        .is_ok_and(|signature| secp256k1::ecdsa::verify(&signature, message, key).is_ok())
}

/// aws-lc refuses by itself `r` and `s` that are not in 1..n, but not a high S.
fn verify_p256(key: &ParsedPublicKey, digest: &[u8; 32], signature: &Signature) -> bool {
    let low = signature.0[32..] <= P256_HALF_ORDER[..];
    low && Digest::import_less_safe(digest, &SHA256)
        .is_ok_and(|digest| key.verify_digest_sig(&digest, &signature.0).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_meet_a_key_often_find_its_table() {
        let secret = secp256k1::SecretKey::from_secret_bytes([7; 32]).unwrap();
        let point = secp256k1::PublicKey::from_secret_key(&secret).serialize();
        let key = PublicKey { curve: Curve::K256, point }.to_string();
        let digest = [9; 32];
        let message = secp256k1::Message::from_digest(digest);
        let good = secp256k1::ecdsa::sign(message, &secret).serialize_compact();
        let mut bad = good;
        bad[63] ^= 1;
        let verifier = NativeVerifier::new(Tables::On);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..HOT {
                        assert_eq!(
                            verifier.verify(&key, &Signed::new(digest, Signature(good))),
                            Ok(true)
                        );
                        assert_eq!(
                            verifier.verify(&key, &Signed::new(digest, Signature(bad))),
                            Ok(false)
                        );
                    }
                });
            }
        });
        let text = key.as_bytes().try_into().unwrap();
        let hot = verifier.hot.unwrap();
        assert_eq!(hot.verify(text, &Signed::new(digest, Signature(good))), Some(true));
        assert_eq!(hot.verify(text, &Signed::new(digest, Signature(bad))), Some(false));
    }
}
