//! Keys and signatures by the fast libraries: libsecp256k1 for k256, aws-lc for P-256.

use std::sync::Arc;

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use did_plc::key::{Curve, PublicKey};
use did_plc::signature::Signed;

/// Half of the order of P-256, rounded down: the greatest low S, big-endian.
const P256_HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
];

/// What a library made of a key's text.
#[derive(Clone)]
pub(crate) enum Key {
    Unsupported,
    K256(secp256k1::PublicKey),
    P256(Arc<ParsedPublicKey>),
}

impl Key {
    pub(crate) fn parse(text: &[u8]) -> Key {
        let Some(key) = PublicKey::from_ascii(text) else {
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

/// Whether this is the key's low-S signature. libsecp256k1 refuses by itself `r` and `s` that are
/// not in 1..n, and a high S.
pub(crate) fn verify_k256(key: &secp256k1::PublicKey, signed: &Signed) -> bool {
    let message = secp256k1::Message::from_digest(signed.digest);
    secp256k1::ecdsa::Signature::from_compact(&signed.signature.0)
        .is_ok_and(|signature| secp256k1::ecdsa::verify(&signature, message, key).is_ok())
}

/// The same on the other curve. aws-lc refuses by itself `r` and `s` that are not in 1..n, but not a
/// high S.
pub(crate) fn verify_p256(key: &ParsedPublicKey, signed: &Signed) -> bool {
    let signature = &signed.signature.0;
    let low = signature[32..] <= P256_HALF_ORDER[..];
    low && Digest::import_less_safe(&signed.digest, &SHA256)
        .is_ok_and(|digest| key.verify_digest_sig(&digest, signature).is_ok())
}
