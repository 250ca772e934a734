//! Signatures: their strict text (specification v0.3.0, "Signatures"), and who verifies them.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use super::key::{Curve, PublicKey};

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

/// The text of a rotation key cannot be used: not a `did:key` of k256 or p256, or not a point of
/// its curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a did:key of a k256 or p256 public key")]
pub struct UnsupportedKey;

/// Says whether a key made a signature. Implementations differ in speed and in the library that
/// does the arithmetic, never in their answer.
pub trait Verifier: Send + Sync {
    /// True when `signature` is a low-S signature of `digest` by the `did:key` text `key`.
    ///
    /// # Errors
    ///
    /// [`UnsupportedKey`] when `key` is no key at all.
    fn verify(
        &self,
        key: &str,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, UnsupportedKey>;
}

/// The second opinion: the pure-Rust crates, nothing kept, nothing clever.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainVerifier;

impl Verifier for PlainVerifier {
    fn verify(
        &self,
        key: &str,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, UnsupportedKey> {
        let key = PublicKey::parse(key).ok_or(UnsupportedKey)?;
        match key.curve {
            Curve::K256 => plain_k256(&key, digest, signature),
            Curve::P256 => plain_p256(&key, digest, signature),
        }
    }
}

fn plain_k256(
    key: &PublicKey,
    digest: &[u8; 32],
    signature: &Signature,
) -> Result<bool, UnsupportedKey> {
    use k256::ecdsa::signature::hazmat::PrehashVerifier;
    let key = k256::ecdsa::VerifyingKey::from_sec1_bytes(&key.point).map_err(|_| UnsupportedKey)?;
    let Ok(signature) = k256::ecdsa::Signature::from_slice(&signature.0) else {
        return Ok(false);
    };
    let low = signature.normalize_s() == signature;
    Ok(low && key.verify_prehash(digest, &signature).is_ok())
}

fn plain_p256(
    key: &PublicKey,
    digest: &[u8; 32],
    signature: &Signature,
) -> Result<bool, UnsupportedKey> {
    use p256::ecdsa::signature::hazmat::PrehashVerifier;
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&key.point).map_err(|_| UnsupportedKey)?;
    let Ok(signature) = p256::ecdsa::Signature::from_slice(&signature.0) else {
        return Ok(false);
    };
    let low = signature.normalize_s() == signature;
    Ok(low && key.verify_prehash(digest, &signature).is_ok())
}
