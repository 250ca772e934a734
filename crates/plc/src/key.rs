//! `did:key` texts of the two curves that did:plc knows (specification, "Supported curves").

use std::fmt;
use std::str::FromStr;

use multibase::Base;

use super::base58;
use super::x_coordinate::is_x_coordinate;

/// What comes before the multibase text of the key.
const SCHEME: &str = "did:key:";
/// The same with the multibase prefix of base58btc.
const PREFIX: &str = "did:key:z";
/// Bytes of a compressed point.
pub const POINT_LENGTH: usize = 33;
/// First byte of a compressed point with an even Y coordinate.
pub const EVEN: u8 = 2;
/// First byte of a compressed point with an odd Y coordinate.
pub const ODD: u8 = 3;
/// Bytes of a codec.
pub const CODEC_LENGTH: usize = 2;
/// Bytes of codec and point: always 48 characters of base58 for these two codecs, none of them a
/// leading zero.
const TAGGED_LENGTH: usize = CODEC_LENGTH + POINT_LENGTH;
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

impl Curve {
    /// Both of them.
    pub const ALL: [Curve; 2] = [Curve::K256, Curve::P256];

    /// What stands before a point of this curve in the text of a key (multicodec).
    pub const fn codec(self) -> [u8; CODEC_LENGTH] {
        match self {
            Curve::K256 => [0xe7, 0x01],
            Curve::P256 => [0x80, 0x24],
        }
    }
}

/// A compressed public key as a `did:key` text states it. That the point is on its curve is for
/// the verifier to say; an X coordinate of 0 makes no key on either curve.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey {
    /// The curve.
    pub curve: Curve,
    /// The compressed point, SEC 1: `02` or `03`, then the X coordinate.
    pub point: [u8; POINT_LENGTH],
}

/// The text is not the `did:key` of a compressed k256 or p256 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the did:key of a compressed k256 or p256 public key")]
pub struct MalformedKey;

impl PublicKey {
    /// Reads a `did:key` text as `FromStr` does, in a quarter of the time: for whoever reads one for
    /// each operation. `None` if it is not one of a compressed k256 or p256 key.
    pub fn from_ascii(text: &[u8]) -> Option<PublicKey> {
        let encoded = text.strip_prefix(PREFIX.as_bytes())?;
        PublicKey::from_tagged(&base58::decode(encoded.try_into().ok()?)?)
    }

    /// The `did:key` text as `Display` writes it, without an allocation and in a fraction of the
    /// time.
    pub fn to_ascii(&self) -> [u8; TEXT_LENGTH] {
        let mut text = [0; TEXT_LENGTH];
        let (prefix, encoded) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        encoded.copy_from_slice(&base58::encode(&self.to_tagged()));
        text
    }

    /// True when the point's X coordinate is one of its curve.
    pub fn is_on_its_curve(&self) -> bool {
        let [sign, x @ ..] = &self.point;
        match self.curve {
            Curve::K256 => matches!(*sign, EVEN | ODD) && is_x_coordinate(x),
            Curve::P256 => p256::PublicKey::from_sec1_bytes(&self.point).is_ok(),
        }
    }

    fn from_tagged(tagged: &[u8; TAGGED_LENGTH]) -> Option<PublicKey> {
        let [first, second, point @ ..] = *tagged;
        let curve = Curve::ALL.into_iter().find(|curve| curve.codec() == [first, second])?;
        let [sign, x @ ..] = &point;
        // P-256 has a point with X = 0; the library of the directory takes it for no key. The other
        // curve has none.
        let is_key = matches!(*sign, EVEN | ODD) && *x != [0; POINT_LENGTH - 1];
        is_key.then_some(PublicKey { curve, point })
    }

    /// Codec and point, what the text encodes.
    fn to_tagged(self) -> [u8; TAGGED_LENGTH] {
        let mut tagged = [0; TAGGED_LENGTH];
        tagged[..CODEC_LENGTH].copy_from_slice(&self.curve.codec());
        tagged[CODEC_LENGTH..].copy_from_slice(&self.point);
        tagged
    }
}

impl FromStr for PublicKey {
    type Err = MalformedKey;

    fn from_str(text: &str) -> Result<PublicKey, MalformedKey> {
        // A text of another length is none of these, and decoding base58 takes a time that grows
        // with the square of the length.
        if text.len() != TEXT_LENGTH {
            return Err(MalformedKey);
        }
        let encoded = text.strip_prefix(SCHEME).ok_or(MalformedKey)?;
        let (base, tagged) = multibase::decode(encoded).map_err(|_| MalformedKey)?;
        if base != Base::Base58Btc {
            return Err(MalformedKey);
        }
        let tagged = tagged.try_into().map_err(|_| MalformedKey)?;
        PublicKey::from_tagged(&tagged).ok_or(MalformedKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = multibase::encode(Base::Base58Btc, self.to_tagged());
        f.pad(&[SCHEME, &encoded].concat())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_written_as_it_was_read() {
        for (text, curve) in [
            ("did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ", Curve::K256),
            ("did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169", Curve::P256),
        ] {
            let key: PublicKey = text.parse().unwrap();
            assert_eq!(key.curve, curve);
            assert_eq!(key.to_string(), text);
            assert_eq!(PublicKey::from_ascii(text.as_bytes()), Some(key));
            assert_eq!(key.to_ascii(), text.as_bytes());
            assert!(key.is_on_its_curve());
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
            // As many characters, but other bases, and more or fewer than 35 bytes.
            "did:key:ZQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ",
            "did:key:be7010000000000000000000000000000000000000000000a",
            "did:key:zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
            "did:key:z1111111111111111111111111111111111111111111111111",
            "did:key:é3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJJ",
            // A zero-width space, in addition to the key and in place of characters of it.
            "did:key:z\u{200b}Q3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ",
            "did:key:z\u{200b}Q3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFw",
            // A point of P-256 with X = 0.
            "did:key:zDnaeQRy3dcKsKa1zmKtVKsTy3m2HYoQnFnfKuxD6HfSTQgYf",
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(MalformedKey), "{text:?}");
            assert_eq!(PublicKey::from_ascii(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn an_x_coordinate_of_zero_is_no_key() {
        for curve in [Curve::K256, Curve::P256] {
            for sign in [EVEN, ODD] {
                let mut point = [0; POINT_LENGTH];
                point[0] = sign;
                let text = PublicKey { curve, point }.to_string();
                assert_eq!(text.parse::<PublicKey>(), Err(MalformedKey), "{text}");
                assert_eq!(PublicKey::from_ascii(text.as_bytes()), None, "{text}");
                point[POINT_LENGTH - 1] = 1;
                let text = PublicKey { curve, point }.to_string();
                assert!(text.parse::<PublicKey>().is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn a_first_byte_that_is_no_sign_is_no_key() {
        for curve in [Curve::K256, Curve::P256] {
            for sign in 0..=u8::MAX {
                let mut point = [7; POINT_LENGTH];
                point[0] = sign;
                let key = PublicKey { curve, point };
                let expected = matches!(sign, EVEN | ODD).then_some(key);
                assert_eq!(key.to_string().parse().ok(), expected);
                assert_eq!(PublicKey::from_ascii(&key.to_ascii()), expected);
                assert_eq!(key.to_string().as_bytes(), key.to_ascii());
            }
        }
    }

    proptest! {
        #[test]
        fn both_readings_agree(text in "did:key:z(Q3s|Dna|[1-9A-HJ-NP-Za-km-z]{3})[0-9A-Za-z]{45}") {
            let read: Option<PublicKey> = text.parse().ok();
            prop_assert_eq!(PublicKey::from_ascii(text.as_bytes()), read);
        }

        #[test]
        fn both_writings_agree(p256: bool, odd: bool, x: [u8; 32]) {
            let mut point = [if odd { ODD } else { EVEN }; POINT_LENGTH];
            point[1..].copy_from_slice(&x);
            let key = PublicKey { curve: if p256 { Curve::P256 } else { Curve::K256 }, point };
            let text = key.to_string();
            prop_assert_eq!(text.as_bytes(), key.to_ascii());
            prop_assert_eq!(text.parse(), Ok(key));
            prop_assert_eq!(PublicKey::from_ascii(text.as_bytes()), Some(key));
        }
    }
}
