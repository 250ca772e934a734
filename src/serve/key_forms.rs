//! The forms in which people have a key: as operations state it, and as DID documents have stated it.
//!
//! Operations say `did:key:z…`. A document of today has the same without `did:key:` (`Multikey`). Documents of 2023,
//! of the types `EcdsaSecp256k1VerificationKey2019` and `EcdsaSecp256r1VerificationKey2019`, had the point itself in
//! multibase, uncompressed and without a word on its curve.

use did_plc::key::{Curve, PublicKey};
use k256::elliptic_curve::sec1::ToSec1Point;

/// Characters that are read at most: an uncompressed point in binary digits has fewer.
const LONGEST: usize = 600;
/// First byte of an uncompressed point (SEC 1).
const UNCOMPRESSED: u8 = 4;

/// The key that a text without `did:key:` states in one of these forms, in any base of multibase; none if it is no key
/// on one of the two curves.
pub fn read_key(text: &str) -> Option<PublicKey> {
    if text.len() > LONGEST {
        return None;
    }
    let (_, bytes) = multibase::decode(text).ok()?;
    if bytes.first() == Some(&UNCOMPRESSED) {
        // No curve has a point of the other one.
        return Curve::ALL.into_iter().find_map(|curve| on(curve, &bytes));
    }
    // A compressed point alone is no key: it may be one of either curve.
    Curve::ALL.into_iter().find_map(|curve| on(curve, bytes.strip_prefix(&curve.codec())?))
}

/// The key with this point, compressed or not, if the point is on the curve.
fn on(curve: Curve, point: &[u8]) -> Option<PublicKey> {
    let point = match curve {
        Curve::K256 => k256::PublicKey::from_sec1_bytes(point).ok()?.to_sec1_point(true).to_bytes(),
        Curve::P256 => p256::PublicKey::from_sec1_bytes(point).ok()?.to_sec1_point(true).to_bytes(),
    };
    Some(PublicKey { curve, point: (*point).try_into().ok()? })
}

#[cfg(test)]
mod tests {
    use multibase::Base;
    use plc_testkit::keys::SigningKey;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn a_key_is_found_in_each_form() {
        let random = &mut ChaCha20Rng::seed_from_u64(1);
        for signing in [SigningKey::k256(random), SigningKey::p256(random)] {
            let key: PublicKey = signing.did_key().parse().unwrap();
            let whole = match key.curve {
                Curve::K256 => {
                    let key = k256::PublicKey::from_sec1_bytes(&key.point).unwrap();
                    key.to_sec1_point(false).to_bytes()
                }
                Curve::P256 => {
                    let key = p256::PublicKey::from_sec1_bytes(&key.point).unwrap();
                    key.to_sec1_point(false).to_bytes()
                }
            };
            let multikey = [&key.curve.codec()[..], &key.point].concat();
            let uncompressed = [&key.curve.codec()[..], &whole].concat();
            for base in [Base::Base58Btc, Base::Base64Url, Base::Base16Lower, Base::Base2] {
                for bytes in [&multikey, &whole.to_vec(), &uncompressed] {
                    let text = multibase::encode(base, bytes);
                    assert_eq!(read_key(&text), Some(key), "{text}");
                }
                let point = multibase::encode(base, key.point);
                assert_eq!(read_key(&point), None, "of which curve {point} is cannot be told");
            }
        }
    }

    #[test]
    fn a_document_of_2023_has_the_point_alone() {
        let text = "zQYEBzXeuTM9UR3rfvNag6L3RNAs5pQZyYPsomTsgQhsxLdEgCrPTLgFna8yqCnxPpNT7DBk6Ym3dgPKNu86vt9GR";
        let key = read_key(text).unwrap();
        assert_eq!(key.to_string(), "did:key:zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF");
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in [
            "",
            "z",
            "alice.example.com",
            "f04",
            "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
            "did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ",
        ] {
            assert_eq!(read_key(text), None, "{text}");
        }
        assert_eq!(read_key(&"z2".repeat(LONGEST)), None);
        // On no curve.
        assert_eq!(read_key(&format!("f04{}", "11".repeat(64))), None);
    }
}
