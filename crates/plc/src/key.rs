//! `did:key` texts of the two curves that did:plc knows (specification, "Supported curves").

use std::fmt;

use super::base58;

/// Multicodec of a compressed secp256k1 public key.
const K256_CODEC: [u8; 2] = [0xe7, 0x01];
/// Multicodec of a compressed P-256 public key.
const P256_CODEC: [u8; 2] = [0x80, 0x24];
/// `did:key:` and the multibase prefix of base58btc.
const PREFIX: &str = "did:key:z";
/// Bytes of a compressed point.
pub const POINT_LENGTH: usize = 33;
/// First byte of a compressed point with an even Y coordinate.
pub const EVEN: u8 = 2;
/// First byte of a compressed point with an odd Y coordinate.
pub const ODD: u8 = 3;
/// Bytes of codec and point: always 48 characters of base58 for these two codecs, none of them a
/// leading zero.
const DECODED_LENGTH: usize = 2 + POINT_LENGTH;
/// Characters of a `did:key` text of these curves.
pub const TEXT_LENGTH: usize = PREFIX.len() + base58::ENCODED_LENGTH;

/// The curve that a key is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Curve {
    /// secp256k1, called k256 in the specification.
    K256,
    /// NIST P-256, called p256 in the specification.
    P256,
}

/// A compressed public key as a `did:key` text states it. That the point is on its curve is for
/// the verifier to say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey {
    /// The curve.
    pub curve: Curve,
    /// The compressed point, SEC 1: `02` or `03`, then the X coordinate.
    pub point: [u8; POINT_LENGTH],
}

impl PublicKey {
    /// Reads a `did:key` text, or `None` if it is not one of a compressed k256 or p256 key.
    pub fn parse(text: &str) -> Option<PublicKey> {
        let encoded = text.strip_prefix(PREFIX)?;
        let decoded = base58::decode(encoded.as_bytes().try_into().ok()?)?;
        let curve = match [decoded[0], decoded[1]] {
            K256_CODEC => Curve::K256,
            P256_CODEC => Curve::P256,
            _ => return None,
        };
        let mut point = [0; POINT_LENGTH];
        point.copy_from_slice(&decoded[2..]);
        matches!(point[0], EVEN | ODD).then_some(PublicKey { curve, point })
    }

    /// True when the point's X coordinate is one of its curve.
    pub fn is_on_its_curve(&self) -> bool {
        match self.curve {
            Curve::K256 => secp256k1::PublicKey::from_slice(&self.point).is_ok(),
            Curve::P256 => p256::PublicKey::from_sec1_bytes(&self.point).is_ok(),
        }
    }

    /// The `did:key` text as ASCII, without an allocation.
    pub fn to_ascii(&self) -> [u8; TEXT_LENGTH] {
        let mut text = [0; TEXT_LENGTH];
        let (prefix, encoded) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        encoded.copy_from_slice(&base58::encode(&self.tagged()));
        text
    }

    /// Codec and point, what the text encodes in base58.
    fn tagged(&self) -> [u8; DECODED_LENGTH] {
        let codec = match self.curve {
            Curve::K256 => K256_CODEC,
            Curve::P256 => P256_CODEC,
        };
        let mut tagged = [0; DECODED_LENGTH];
        tagged[..2].copy_from_slice(&codec);
        tagged[2..].copy_from_slice(&self.point);
        tagged
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(str::from_utf8(&self.to_ascii()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_as_it_was_read() {
        for (text, curve) in [
            ("did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ", Curve::K256),
            ("did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169", Curve::P256),
        ] {
            let key = PublicKey::parse(text).unwrap();
            assert_eq!(key.curve, curve);
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in [
            "",
            "did:key:",
            "did:key:z",
            "zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ",
            // Ed25519, base58 with a foreign character, one character short, and one too many.
            "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
            "did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLx0",
            "did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLx",
            "did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJJ",
        ] {
            assert_eq!(PublicKey::parse(text), None, "{text:?}");
        }
    }
}
