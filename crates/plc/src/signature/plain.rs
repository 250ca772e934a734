//! The verifier that every other one is compared with.

use super::compact::Signed;
use super::verifier::{UnsupportedKey, Verifier};
use crate::key::{Curve, POINT_LENGTH, PublicKey};

/// Verifies with the pure-Rust crates `k256` and `p256`, one key after the other, and remembers
/// nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainVerifier;

impl Verifier for PlainVerifier {
    fn find_signer(&self, keys: &[&str], signed: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        for (index, key) in keys.iter().enumerate() {
            if made_by(key, signed).ok_or(UnsupportedKey { index })? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// Whether the key made the signature; `None` if it is no key.
fn made_by(key: &str, signed: &Signed) -> Option<bool> {
    let key: PublicKey = key.parse().ok()?;
    match key.curve {
        Curve::K256 => made_by_k256(&key.point, signed),
        Curve::P256 => made_by_p256(&key.point, signed),
    }
}

fn made_by_k256(point: &[u8; POINT_LENGTH], signed: &Signed) -> Option<bool> {
    use k256::ecdsa::signature::hazmat::PrehashVerifier;
    let key = k256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
    let Ok(signature) = k256::ecdsa::Signature::from_slice(&signed.signature.0) else {
        return Some(false);
    };
    let low = signature.normalize_s() == signature;
    Some(low && key.verify_prehash(&signed.digest, &signature).is_ok())
}

fn made_by_p256(point: &[u8; POINT_LENGTH], signed: &Signed) -> Option<bool> {
    use p256::ecdsa::signature::hazmat::PrehashVerifier;
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
    let Ok(signature) = p256::ecdsa::Signature::from_slice(&signed.signature.0) else {
        return Some(false);
    };
    let low = signature.normalize_s() == signature;
    Some(low && key.verify_prehash(&signed.digest, &signature).is_ok())
}
