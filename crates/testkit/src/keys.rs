//! Keys that sign, drawn from a seeded generator and signing deterministically (RFC 6979), so that
//! a log is the same bytes every time it is made.

use p256::ecdsa::signature::hazmat::PrehashSigner;
use rand::Rng;
use secp256k1::Message;

use did_plc::key::{Curve, PublicKey};
use did_plc::signature::SIGNATURE_LENGTH;

/// Order of the group of secp256k1, big-endian.
const K256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
    0xba, 0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];
/// Order of the group of P-256, big-endian.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// A private key and its `did:key` text.
#[derive(Debug, Clone)]
pub struct SigningKey {
    secret: Secret,
    did_key: String,
}

/// The private half.
#[derive(Debug, Clone)]
pub(crate) enum Secret {
    K256(secp256k1::SecretKey),
    P256(p256::ecdsa::SigningKey),
}

impl SigningKey {
    /// Draws a secp256k1 key.
    pub fn k256(random: &mut impl Rng) -> SigningKey {
        let secret = draw(random, |bytes| secp256k1::SecretKey::from_secret_bytes(bytes).ok());
        let point = secret.public_key().serialize();
        let did_key = PublicKey { curve: Curve::K256, point }.to_string();
        SigningKey { secret: Secret::K256(secret), did_key }
    }

    /// Draws a P-256 key.
    pub fn p256(random: &mut impl Rng) -> SigningKey {
        let secret = draw(random, |bytes| p256::ecdsa::SigningKey::from_slice(&bytes).ok());
        let encoded = secret.verifying_key().to_sec1_point(true);
        let mut point = [0; 33];
        point.copy_from_slice(encoded.as_bytes());
        let did_key = PublicKey { curve: Curve::P256, point }.to_string();
        SigningKey { secret: Secret::P256(secret), did_key }
    }

    /// The public half as operations state it.
    pub fn did_key(&self) -> &str {
        &self.did_key
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The low-S signature of a digest.
    pub fn sign(&self, digest: &[u8; 32]) -> [u8; SIGNATURE_LENGTH] {
        match &self.secret {
            Secret::K256(secret) => {
                secret.sign_ecdsa(Message::from_digest(*digest)).serialize_compact()
            }
            Secret::P256(secret) => {
                let signature: p256::ecdsa::Signature =
                    secret.sign_prehash(digest).expect("a digest of 32 bytes can be signed");
                signature.normalize_s().to_bytes().into()
            }
        }
    }

    /// The other signature that the same equation accepts: `s` replaced by `order - s`.
    pub fn high_s(&self, signature: &[u8; SIGNATURE_LENGTH]) -> [u8; SIGNATURE_LENGTH] {
        let order = match self.secret {
            Secret::K256(_) => &K256_ORDER,
            Secret::P256(_) => &P256_ORDER,
        };
        let mut high = *signature;
        let mut borrow = 0;
        for place in (0..32).rev() {
            let difference = i16::from(order[place]) - i16::from(signature[32 + place]) - borrow;
            borrow = i16::from(difference < 0);
            high[32 + place] = difference.rem_euclid(256) as u8;
        }
        high
    }
}

/// An ASN.1 DER signature (X.690): a sequence of two integers, as TLS writes it.
pub fn der(signature: &[u8; SIGNATURE_LENGTH]) -> Vec<u8> {
    let (r, s) = signature.split_at(SIGNATURE_LENGTH / 2);
    let integers = [der_integer(r), der_integer(s)].concat();
    [&[0x30, integers.len() as u8], &integers[..]].concat()
}

fn der_integer(big_endian: &[u8]) -> Vec<u8> {
    let leading_zeros = big_endian.iter().take_while(|&&byte| byte == 0).count();
    let mut digits = big_endian[leading_zeros..].to_vec();
    if digits.first().is_none_or(|&byte| byte >= 0x80) {
        digits.insert(0, 0);
    }
    [&[0x02, digits.len() as u8], &digits[..]].concat()
}

/// Draws until the bytes are a key: the first time, but for one in 2^32 (P-256) or 2^127.
pub(crate) fn draw<K>(random: &mut impl Rng, key: impl Fn([u8; 32]) -> Option<K>) -> K {
    loop {
        let mut bytes = [0; 32];
        random.fill_bytes(&mut bytes);
        if let Some(key) = key(bytes) {
            return key;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;
    use did_plc::signature::{PlainVerifier, Signature, Signed, Verifier};

    #[test]
    fn only_the_low_form_verifies_on_either_curve() {
        let mut random = ChaCha20Rng::seed_from_u64(1);
        for key in [SigningKey::k256(&mut random), SigningKey::p256(&mut random)] {
            let verify = |signature| {
                let signed = Signed { digest: [7; 32], signature: Signature(signature) };
                PlainVerifier.find_signer(&[key.did_key()], &signed).unwrap().is_some()
            };
            let signature = key.sign(&[7; 32]);
            assert!(verify(signature));
            let high = key.high_s(&signature);
            assert!(!verify(high));
            assert_eq!(key.high_s(&high), signature);
        }
    }

    #[test]
    fn der_is_what_the_library_writes() {
        let mut random = ChaCha20Rng::seed_from_u64(2);
        let key = SigningKey::k256(&mut random);
        for byte in 0..50 {
            let signature = key.sign(&[byte; 32]);
            let parsed = secp256k1::ecdsa::Signature::from_compact(&signature).unwrap();
            assert_eq!(der(&signature), parsed.serialize_der().to_vec());
        }
    }
}
