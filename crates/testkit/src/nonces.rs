//! Signatures for logs of millions of operations, at a tenth of the usual time.
//!
//! Their nonces are a few of which all that is slow is computed once. Whoever sees two signatures of a key with one nonce
//! knows the key: nothing but test data may be signed like this. To a verifier they are signatures like all others.

use did_plc::signature::SIGNATURE_LENGTH;
use p256::elliptic_curve::ops::{Invert, Reduce};
use p256::elliptic_curve::point::AffineCoordinates;
use p256::elliptic_curve::scalar::IsHigh;
use p256::elliptic_curve::{
    CurveArithmetic, FieldBytes, Group, NonZeroScalar, PrimeField, Scalar, group::Curve,
};
use rand::Rng;

use crate::keys::{Secret, SigningKey, draw};

/// How many there are of a curve.
const NONCES: usize = 64;

/// Nonces of both curves.
pub struct Nonces {
    k256: Vec<Nonce<k256::Secp256k1>>,
    p256: Vec<Nonce<p256::NistP256>>,
}

/// What a signature is computed from, beside the key and the digest.
struct Nonce<C: CurveArithmetic> {
    /// The x-coordinate of its multiple of the generator: the first half of each signature.
    r: Scalar<C>,
    inverse: Scalar<C>,
}

impl Nonces {
    /// Draws them.
    pub fn draw(random: &mut impl Rng) -> Nonces {
        Nonces {
            k256: (0..NONCES).map(|_| Nonce::draw(random)).collect(),
            p256: (0..NONCES).map(|_| Nonce::draw(random)).collect(),
        }
    }

    /// A low-S signature of a digest, which decides about the nonce.
    pub fn sign(&self, key: &SigningKey, digest: &[u8; 32]) -> [u8; SIGNATURE_LENGTH] {
        let chosen = usize::from(digest[0]) % NONCES;
        match key.secret() {
            Secret::K256(secret) => self.k256[chosen].sign(&secret.to_secret_bytes(), digest),
            Secret::P256(secret) => self.p256[chosen].sign(&secret.to_bytes().into(), digest),
        }
    }
}

impl<C> Nonce<C>
where
    C: CurveArithmetic,
    C::AffinePoint: AffineCoordinates<FieldRepr = FieldBytes<C>>,
    C::ProjectivePoint: Curve<Affine = C::AffinePoint>,
    FieldBytes<C>: From<[u8; 32]> + Into<[u8; 32]>,
{
    fn draw(random: &mut impl Rng) -> Nonce<C> {
        let nonce = draw(random, |bytes| NonZeroScalar::<C>::from_repr(bytes.into()).into_option());
        let point = C::ProjectivePoint::generator() * *nonce;
        let r = Reduce::<FieldBytes<C>>::reduce(&point.to_affine().x());
        Nonce { r, inverse: *Invert::invert(&nonce) }
    }

    /// The second half is `(digest + r * secret) / nonce`, or its negative, whichever is low.
    fn sign(&self, secret: &[u8; 32], digest: &[u8; 32]) -> [u8; SIGNATURE_LENGTH] {
        let scalar = |bytes: &[u8; 32]| -> Scalar<C> {
            Reduce::<FieldBytes<C>>::reduce(&FieldBytes::<C>::from(*bytes))
        };
        let s = self.inverse * (scalar(digest) + self.r * scalar(secret));
        let s = if bool::from(s.is_high()) { -s } else { s };
        let mut signature = [0; SIGNATURE_LENGTH];
        signature[..32].copy_from_slice(&self.r.to_repr());
        signature[32..].copy_from_slice(&s.to_repr());
        signature
    }
}

#[cfg(test)]
mod tests {
    use did_plc::signature::{PlainVerifier, Signature, Signed, Verifier};
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn they_verify_like_all_others() {
        let mut random = ChaCha20Rng::seed_from_u64(3);
        let nonces = Nonces::draw(&mut random);
        for key in [SigningKey::k256(&mut random), SigningKey::p256(&mut random)] {
            for byte in 0..=u8::MAX {
                let digest = [byte; 32];
                let signature = Signature(nonces.sign(&key, &digest));
                let signed = Signed { digest, signature };
                let signer = PlainVerifier.find_signer(&[key.did_key()], &signed).unwrap();
                assert!(signer.is_some(), "{byte}");
            }
        }
    }
}
