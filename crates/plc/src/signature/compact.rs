//! A signature as an operation carries it, and what it is a signature of.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

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

/// The SHA-256 of the unsigned DAG-CBOR, given in parts: what is signed.
pub fn signing_digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// A signature and the digest that it is said to be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// The SHA-256 of what was signed.
    pub digest: [u8; 32],
    /// The signature.
    pub signature: Signature,
}
