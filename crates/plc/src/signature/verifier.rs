//! The question that the rules ask about a signature.

use super::compact::Signed;

/// A key that had to be tried cannot be used: its text is not a `did:key` of k256 or p256, or it is
/// not a point of its curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("key {index} is not a did:key of a k256 or p256 public key")]
pub struct UnsupportedKey {
    /// Its index among the keys that were given.
    pub index: usize,
}

/// Says which of several keys made a signature. Implementations differ in speed and in the library
/// that does the arithmetic, never in their answer.
pub trait Verifier: Send + Sync {
    /// The index of the first of `keys`, which are `did:key` texts, that made this low-S signature
    /// of its digest; `None` when none of them did.
    ///
    /// # Errors
    ///
    /// [`UnsupportedKey`] when there is a text that is no key and no key before it made the
    /// signature: keys are tried in their order, and the first that cannot be tried ends it.
    fn find_signer(&self, keys: &[&str], signed: &Signed) -> Result<Option<usize>, UnsupportedKey>;
}
