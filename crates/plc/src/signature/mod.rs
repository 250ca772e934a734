//! Signatures: their strict text (specification v0.3.0, "Signatures"), and who verifies them.

use std::cell::OnceCell;
use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

mod cache;
#[cfg(test)]
mod differential;
mod field;
mod hot;
mod inverse;
mod native;
mod plain;
mod table;

pub use native::{NativeVerifier, Tables};
pub use plain::PlainVerifier;
use table::Shared;

/// Bytes of a compact signature: `r` and `s`, 32 bytes each, big-endian.
pub const SIGNATURE_LENGTH: usize = 64;

/// A compact ECDSA signature, not yet known to be anybody's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; SIGNATURE_LENGTH]);

impl Signature {
    /// Reads the text of an operation's `sig`: base64url without padding, spare bits zero, no
    /// white space, 64 bytes. `None` otherwise.
    pub fn parse(text: &str) -> Option<Signature> {
        let mut bytes = [0; SIGNATURE_LENGTH];
        if BASE64URL_NOPAD.decode_len(text.len()).ok()? != SIGNATURE_LENGTH {
            return None;
        }
        let length = BASE64URL_NOPAD.decode_mut(text.as_bytes(), &mut bytes).ok()?;
        (length == SIGNATURE_LENGTH).then_some(Signature(bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

/// The SHA-256 of the unsigned DAG-CBOR: what is signed.
pub fn signing_digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// A signature and the digest that it is said to be of, to be held against one key after another.
#[derive(Debug)]
pub struct Signed {
    /// The SHA-256 of what was signed.
    pub digest: [u8; 32],
    /// The signature.
    pub signature: Signature,
    /// What the arithmetic with tables has in common for all keys: done once, for the first of
    /// them that has a table. None when this is nobody's signature.
    shared: OnceCell<Option<Shared>>,
}

impl Signed {
    /// A signature of a digest, perhaps.
    pub fn new(digest: [u8; 32], signature: Signature) -> Signed {
        Signed { digest, signature, shared: OnceCell::new() }
    }

    fn shared(&self) -> Option<&Shared> {
        self.shared.get_or_init(|| Shared::of(&self.digest, &self.signature)).as_ref()
    }
}

/// The text of a rotation key cannot be used: not a `did:key` of k256 or p256, or not a point of
/// its curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a did:key of a k256 or p256 public key")]
pub struct UnsupportedKey;

/// Says whether a key made a signature. Implementations differ in speed and in the library that
/// does the arithmetic, never in their answer.
pub trait Verifier: Send + Sync {
    /// True when this is a low-S signature of its digest by the `did:key` text `key`.
    ///
    /// # Errors
    ///
    /// [`UnsupportedKey`] when `key` is no key at all.
    fn verify(&self, key: &str, signed: &Signed) -> Result<bool, UnsupportedKey>;

    /// Index of the key that is the likeliest to have signed, where experience says so: the first
    /// occurrence of its text, and every key before it is one. Decides nothing but the order in
    /// which keys are tried.
    fn likeliest(&self, keys: &[&str]) -> Option<usize>;

    /// How the keys so far were found; nothing from a verifier that keeps none.
    fn lookups(&self) -> KeyLookups {
        KeyLookups::default()
    }
}

/// How often a key was found in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLookups {
    /// It had a table of its multiples.
    pub tables: u64,
    /// It was kept from before.
    pub kept: u64,
    /// It was parsed.
    pub parsed: u64,
}
