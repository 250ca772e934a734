//! Signatures: their strict text (specification v0.3.0, "Signatures"), and who verifies them.

mod compact;
mod plain;
mod verifier;

pub use compact::{SIGNATURE_LENGTH, Signature, Signed, signing_digest};
pub use plain::PlainVerifier;
pub use verifier::{UnsupportedKey, Verifier};
