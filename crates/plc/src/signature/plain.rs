//! The verifier that everything else is compared with.

use super::{Signature, Signed, UnsupportedKey, Verifier};
use crate::key::{Curve, PublicKey};

/// The second opinion: the pure-Rust crates, nothing kept, nothing clever.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainVerifier;

impl Verifier for PlainVerifier {
    fn verify(&self, key: &str, signed: &Signed) -> Result<bool, UnsupportedKey> {
        let Signed { digest, signature, .. } = signed;
        let key = PublicKey::parse(key).ok_or(UnsupportedKey)?;
        match key.curve {
            Curve::K256 => plain_k256(&key, digest, signature),
            Curve::P256 => plain_p256(&key, digest, signature),
        }
    }

    /// It has no experience: the keys are tried in their order.
    fn likeliest(&self, _: &[&str]) -> Option<usize> {
        None
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
