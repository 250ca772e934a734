//! All verifiers against each other, on signatures honest and forged. The fast one is asked for
//! what it finds by itself, before it has a refusal confirmed.
//!
//! `PLC_DIFFERENTIAL_SIGNATURES` says how many (see [`BOUNDED`]); in a release build two million take
//! some minutes.

use did_plc::key::{Curve, PublicKey};
use did_plc::signature::{PlainVerifier, Signature, Signed, UnsupportedKey, Verifier};
use k256::FieldBytes;
use k256::elliptic_curve::ff::{Field as _, PrimeField};
use k256::elliptic_curve::group::GroupEncoding;
use k256::elliptic_curve::ops::Reduce;
use k256::elliptic_curve::scalar::IsHigh;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::field;
use crate::limbs::bytes;
use crate::point::ORDER;
use crate::table::{KeyTable, Trial};
use crate::{FastVerifier, Tables};

/// Signatures when nothing else is asked for: seconds in a debug build.
const BOUNDED: usize = 6_000;
/// Signatures of one seed, which has its own keys.
const ROUND: usize = 2_000;

/// A curve by the plain crates, for somebody who knows all secrets.
trait Plain {
    const CURVE: Curve;
    type Scalar: PrimeField<Repr = FieldBytes> + Reduce<FieldBytes> + IsHigh;

    /// A multiple of the generator, compressed.
    fn multiple(scalar: Self::Scalar) -> [u8; 33];

    fn scalar(random: &mut ChaCha8Rng) -> Self::Scalar {
        Self::Scalar::reduce(&FieldBytes::from(random.random::<[u8; 32]>()))
    }
}

struct K256;
struct P256;

impl Plain for K256 {
    const CURVE: Curve = Curve::K256;
    type Scalar = k256::Scalar;

    fn multiple(scalar: k256::Scalar) -> [u8; 33] {
        (k256::ProjectivePoint::GENERATOR * scalar).to_bytes().into()
    }
}

impl Plain for P256 {
    const CURVE: Curve = Curve::P256;
    type Scalar = p256::Scalar;

    fn multiple(scalar: p256::Scalar) -> [u8; 33] {
        (p256::ProjectivePoint::GENERATOR * scalar).to_bytes().into()
    }
}

/// One question, and its answer where the one who made it knows it.
struct Case {
    key: String,
    digest: [u8; 32],
    signature: Signature,
    expected: Option<bool>,
}

/// Whether this key made the signature.
type Verdict = Result<bool, UnsupportedKey>;

fn plain(key: &str, signed: &Signed) -> Verdict {
    PlainVerifier.find_signer(&[key], signed).map(|signer| signer.is_some())
}

fn fast(verifier: &FastVerifier, key: &str, signed: &Signed) -> Verdict {
    verifier.try_keys(&[key], signed).map(|signer| signer.is_some())
}

fn text<C: Plain>(point: [u8; 33]) -> String {
    PublicKey { curve: C::CURVE, point }.to_string()
}

fn signature<C: Plain>(r: C::Scalar, s: C::Scalar) -> Signature {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&r.to_repr());
    bytes[32..].copy_from_slice(&s.to_repr());
    Signature(bytes)
}

/// The point u1·G + u2·Q is made to be the one of the nonce, whatever u1 and u2 are, by choosing
/// the digest: so a verifier can be led anywhere. (If it is infinity, no `r` makes a signature.)
fn chosen<C: Plain>(secret: C::Scalar, u1: C::Scalar, u2: C::Scalar) -> Case {
    let nonce = u1 + u2 * secret;
    let r = match bool::from(nonce.is_zero()) {
        true => C::Scalar::ONE,
        false => C::Scalar::reduce(&x(C::multiple(nonce))),
    };
    let s = r * u2.invert().unwrap();
    let digest = u1 * s;
    let (s, digest) = if bool::from(s.is_high()) { (-s, digest) } else { (s, digest) };
    Case {
        key: text::<C>(C::multiple(secret)),
        digest: digest.to_repr().into(),
        signature: signature::<C>(r, s),
        expected: Some(!bool::from(nonce.is_zero())),
    }
}

fn x(point: [u8; 33]) -> FieldBytes {
    FieldBytes::try_from(&point[1..]).unwrap()
}

fn honest<C: Plain>(secret: C::Scalar, digest: [u8; 32], nonce: C::Scalar) -> Case {
    let r = C::Scalar::reduce(&x(C::multiple(nonce)));
    let s = (C::Scalar::reduce(&digest.into()) + r * secret) * nonce.invert().unwrap();
    let s = if bool::from(s.is_high()) { -s } else { s };
    let key = text::<C>(C::multiple(secret));
    Case { key, digest, signature: signature::<C>(r, s), expected: Some(true) }
}

/// A scalar at which tables and windows may go wrong: a small multiple of a power of two or of its
/// neighbours, all digits at their limit, half of the order, or any.
fn special<C: Plain>(random: &mut ChaCha8Rng) -> C::Scalar {
    let two = C::Scalar::from(2);
    let small = C::Scalar::from(random.random_range(0..4));
    let window = [8, 10, 13][random.random_range(0..3)];
    let power = two.pow_vartime([window * random.random_range(0..256 / window)]);
    let scalar = match random.random_range(0..6) {
        0 => small * power,
        1 => power - small,
        2 => C::Scalar::from(random.random_range(0..1 << window)) * power,
        3 => {
            // 100…100…100…, every digit at one half, or one more or less.
            let digits = (0..256 / window).map(|digit| two.pow_vartime([digit * window]));
            let half = two.pow_vartime([window - 1]) + C::Scalar::ONE - small;
            digits.fold(C::Scalar::ZERO, |sum, digit| sum + digit * half)
        }
        4 => C::Scalar::TWO_INV + small - C::Scalar::ONE,
        _ => C::scalar(random),
    };
    if random.random() { -scalar } else { scalar }
}

/// Numbers of 32 bytes around those that are special: zero, the order, half of it, the field's
/// prime and the end.
fn special_bytes<C: Plain>(random: &mut ChaCha8Rng) -> [u8; 32] {
    let mut bytes: [u8; 32] = match random.random_range(0..5) {
        0 => [0; 32],
        1 => (-C::Scalar::ONE).to_repr().into(),
        2 => C::Scalar::TWO_INV.to_repr().into(),
        3 => match C::CURVE {
            Curve::K256 => bytes(&field::P),
            Curve::P256 => {
                let mut prime = [0xff; 32];
                prime[4..20].fill(0);
                prime[7] = 1;
                prime
            }
        },
        _ => [0xff; 32],
    };
    let last = bytes[31].wrapping_add(random.random_range(0..5)).wrapping_sub(2);
    bytes[31] = last;
    bytes
}

fn case<C: Plain>(secrets: &[C::Scalar], random: &mut ChaCha8Rng) -> Case {
    let secret = secrets[random.random_range(0..secrets.len())];
    let kind = random.random_range(0..12);
    if kind < 4 {
        // Nonzero u2; u1 is such that both products meet, or cancel, or is special itself.
        let mut u2 = special::<C>(random);
        if bool::from(u2.is_zero()) {
            u2 = C::Scalar::ONE;
        }
        let u1 = match random.random_range(0..4) {
            0 => u2 * secret,
            1 => -(u2 * secret),
            2 => C::Scalar::ZERO,
            _ => special::<C>(random),
        };
        return chosen::<C>(secret, u1, u2);
    }
    let nonce = C::scalar(random);
    let digest = if kind == 4 { special_bytes::<C>(random) } else { random.random() };
    let mut case = honest::<C>(secret, digest, nonce);
    let Signature(bytes) = &mut case.signature;
    match kind {
        4..7 => return case,
        7 => {
            bytes[random.random_range(0..64)] ^= 1 << random.random_range(0..8);
            case.expected = Some(false);
        }
        8 => {
            case.digest[random.random_range(0..32)] ^= 1 << random.random_range(0..8);
            case.expected = Some(false);
        }
        9 => {
            let s = C::Scalar::reduce(&FieldBytes::try_from(&bytes[32..]).unwrap());
            bytes[32..].copy_from_slice(&(-s).to_repr());
            case.expected = Some(false);
        }
        10 => {
            let half = 32 * random.random_range(0..2);
            bytes[half..half + 32].copy_from_slice(&special_bytes::<C>(random));
            if random.random() {
                bytes[32 - half..64 - half].copy_from_slice(&special_bytes::<C>(random));
            }
            case.expected = None;
        }
        _ => {
            // Another key, or none.
            let mut point = C::multiple(secret);
            match random.random_range(0..4) {
                0 => point = C::multiple(secrets[random.random_range(0..secrets.len())]),
                1 => point[1..].copy_from_slice(&special_bytes::<C>(random)),
                _ => point[random.random_range(0..33)] ^= 1 << random.random_range(0..8),
            }
            case.key = text::<C>(point);
            case.expected = None;
        }
    }
    case
}

/// Random secrets, and small ones, so that a key is a point of the generator's table or close to
/// one.
fn secrets<C: Plain>(random: &mut ChaCha8Rng) -> Vec<C::Scalar> {
    let mut secrets: Vec<_> = (0..8).map(|_| C::scalar(random)).collect();
    for small in [1, 2, random.random_range(3..5000)] {
        let power = C::Scalar::from(2).pow_vartime([random.random_range(0..250)]);
        let small = C::Scalar::from(small);
        secrets.extend([small, -small, small * power, -(small * power)]);
    }
    secrets
}

/// Runs one round; answers how many signatures were accepted.
fn round<C: Plain>(seed: u64, count: usize) -> usize {
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let secrets = secrets::<C>(random);
    let table = |secret: &C::Scalar| {
        let point = C::multiple(*secret);
        let key = secp256k1::PublicKey::from_byte_array_compressed(point).unwrap();
        (text::<C>(point), KeyTable::new(&key))
    };
    let tables: Vec<_> = match C::CURVE {
        Curve::K256 => secrets.iter().map(table).collect(),
        Curve::P256 => Vec::new(),
    };
    let (off, on) = (FastVerifier::new(Tables::Off), FastVerifier::new(Tables::On));
    let mut accepted = 0;
    for number in 0..count {
        let Case { key, digest, signature, expected } = case::<C>(&secrets, random);
        let signed = Signed { digest, signature };
        let by_plain = plain(&key, &signed);
        let context = format!("round {seed}, case {number}: {key} {digest:02x?} {signature:?}");
        if let Some(expected) = expected {
            assert_eq!(by_plain, Ok(expected), "plain, {context}");
        }
        assert_eq!(fast(&off, &key, &signed), by_plain, "libraries, {context}");
        assert_eq!(fast(&on, &key, &signed), by_plain, "with tables, {context}");
        // What one table left for the next one must serve it as well.
        let trial = Trial::new(&signed);
        let other = tables.get(number % tables.len().max(1));
        for (text, table) in other.into_iter().chain(tables.iter().find(|(text, _)| *text == key)) {
            let by_plain = if *text == key { by_plain } else { plain(text, &signed) };
            assert_eq!(Ok(table.verify(&trial)), by_plain, "table, {context}");
        }
        accepted += usize::from(by_plain == Ok(true));
    }
    accepted
}

fn rounds<C: Plain>(count: usize) {
    let seeds = 0..count.div_ceil(ROUND) as u64;
    let size = |seed: u64| ROUND.min(count - seed as usize * ROUND);
    let accepted: usize = seeds.into_par_iter().map(|seed| round::<C>(seed, size(seed))).sum();
    // A third to two thirds, so that neither answer is a rare one.
    assert!(accepted > count / 3 && accepted < count * 2 / 3, "{accepted} of {count}");
    println!("{:?}: {count} signatures, {accepted} accepted, all agree", C::CURVE);
}

fn count() -> usize {
    let asked = std::env::var("PLC_DIFFERENTIAL_SIGNATURES");
    asked.map_or(BOUNDED, |count| count.parse().expect("PLC_DIFFERENTIAL_SIGNATURES: a number"))
}

#[test]
fn verifiers_agree_on_k256() {
    rounds::<K256>(count());
}

#[test]
fn verifiers_agree_on_p256() {
    // One in twenty, as in the directory: the plain crate needs 0.3 ms.
    rounds::<P256>(count() / 20);
}

#[test]
fn verifiers_agree_on_x_coordinates_above_the_order() {
    // Nobody has met one by chance (it takes 2^128 signatures); but a key can be made for any
    // point R, any r, s and digest: Q = (s·R - z·G) / r.
    use k256::elliptic_curve::point::DecompressPoint;
    use k256::elliptic_curve::subtle::Choice;
    use k256::{AffinePoint, ProjectivePoint, Scalar};
    let mut found = 0;
    for above in 1..40u64 {
        let mut x = ORDER;
        x[0] += above;
        let x = bytes(&x).into();
        let Some(point) = Option::<AffinePoint>::from(AffinePoint::decompress(&x, Choice::from(1)))
        else {
            continue;
        };
        let (r, s, z) = (Scalar::from(above), Scalar::from(77u64), Scalar::from(1234u64));
        let key = (ProjectivePoint::from(point) * s - ProjectivePoint::GENERATOR * z)
            * r.invert().unwrap();
        let point: [u8; 33] = key.to_bytes().into();
        let parsed = secp256k1::PublicKey::from_byte_array_compressed(point).unwrap();
        let (key, digest, signature) =
            (text::<K256>(point), z.to_bytes().into(), signature::<K256>(r, s));
        let signed = Signed { digest, signature };
        assert_eq!(plain(&key, &signed), Ok(true));
        assert_eq!(fast(&FastVerifier::new(Tables::Off), &key, &signed), Ok(true));
        assert!(KeyTable::new(&parsed).verify(&Trial::new(&signed)));
        found += 1;
    }
    assert!(found > 10);
}

#[test]
fn texts_that_are_no_keys_are_unsupported() {
    let verifier = FastVerifier::new(Tables::On);
    let signed = Signed { digest: [1; 32], signature: Signature([1; 64]) };
    let good = text::<K256>(K256::multiple(k256::Scalar::from(3u64)));
    let mut texts = vec![
        String::new(),
        "did:key:".into(),
        "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK".into(),
        good.replace("did:key:z", "did:key:Z"),
        good.replace("did:key:z", "did:web:z"),
        format!("{good}1"),
        format!("{good} "),
        "é".repeat(28) + "e",
        "did:key:z".to_owned() + &"1".repeat(48),
        "did:key:z".to_owned() + &"z".repeat(48),
        "did:key:z".repeat(100_000),
    ];
    texts.extend((9..good.len()).map(|place| {
        let mut text = good.clone();
        text.replace_range(place..=place, "0");
        text
    }));
    for text in texts {
        for _ in 0..2 {
            let verdict = fast(&verifier, &text, &signed);
            assert_eq!(verdict, Err(UnsupportedKey { index: 0 }), "{text:?}");
            assert_eq!(plain(&text, &signed), verdict, "{text:?}");
        }
    }
}
