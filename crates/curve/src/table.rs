//! Verification of one key's signatures by tables of multiples.
//!
//! A signature (r, s) of a digest z verifies when the point u1·G + u2·Q, with u1 = z/s and
//! u2 = r/s, has an X coordinate that is r modulo n. Nearly all of the work is the two products.

use std::cell::OnceCell;
use std::sync::LazyLock;

use did_plc::signature::{Signature, Signed};
use k256::elliptic_curve::ff::PrimeField;
use k256::elliptic_curve::ops::Reduce;
use k256::elliptic_curve::scalar::IsHigh;
use k256::{FieldBytes, Scalar};

use crate::field::Field;
use crate::inverse::Modulus;
use crate::limbs::{bytes, limbs};
use crate::multiples::{Multiples, SMALLEST_WINDOW, sum};
use crate::point::{Affine, GENERATOR, Jacobian, ORDER};

/// Bits of a window of the generator's table: 20 additions a product, 5.2 MB.
const GENERATOR_WINDOW: u32 = 13;
/// Bits of a window of a key's table: 26 additions a product, 0.85 MB.
const KEY_WINDOW: u32 = SMALLEST_WINDOW;

/// Multiples of the generator, made when the first key's table is.
static GENERATOR_MULTIPLES: LazyLock<Multiples> =
    LazyLock::new(|| Multiples::of(GENERATOR, GENERATOR_WINDOW));

/// Multiples of one public key.
pub(crate) struct KeyTable(Multiples);

impl KeyTable {
    /// The table of a key that libsecp256k1 has parsed, so that it is a point of the curve.
    pub(crate) fn new(key: &secp256k1::PublicKey) -> KeyTable {
        LazyLock::force(&GENERATOR_MULTIPLES);
        let [_, coordinates @ ..] = key.serialize_uncompressed();
        let (x, y) = coordinates.split_at(32);
        let coordinate = |bytes: &[u8]| {
            let mut array = [0; 32];
            array.copy_from_slice(bytes);
            Field::from_bytes(&array)
        };
        KeyTable(Multiples::of(Affine { x: coordinate(x), y: coordinate(y) }, KEY_WINDOW))
    }

    /// Whether this is the key's low-S signature.
    pub(crate) fn verify(&self, trial: &Trial<'_>) -> bool {
        let Some(Shared { r, generator, u2 }) = trial.shared() else {
            return false;
        };
        sum(*generator, self.0.terms(u2)).has_x(r)
    }
}

/// A signature that is held against one key after another.
pub(crate) struct Trial<'a> {
    /// What was signed.
    pub(crate) signed: &'a Signed,
    /// Calculated for the first key that has a table. `None` when this is nobody's signature.
    shared: OnceCell<Option<Shared>>,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(signed: &'a Signed) -> Trial<'a> {
        Trial { signed, shared: OnceCell::new() }
    }

    fn shared(&self) -> Option<&Shared> {
        self.shared.get_or_init(|| Shared::of(self.signed)).as_ref()
    }
}

/// What is the same for all keys that a signature is held against: when a first key fails, the
/// second one costs half.
struct Shared {
    /// Big-endian.
    r: [u8; 32],
    /// u1·G
    generator: Jacobian,
    u2: Scalar,
}

impl Shared {
    /// `None` when this is nobody's signature: `r` or `s` out of range, or a high S.
    fn of(signed: &Signed) -> Option<Shared> {
        let (r, s) = parse(&signed.signature)?;
        let z = Scalar::reduce(&FieldBytes::from(signed.digest));
        let inverse = invert(&s);
        let (u1, u2) = (z * inverse, r * inverse);
        let generator = sum(Jacobian::INFINITY, GENERATOR_MULTIPLES.terms(&u1));
        Some(Shared { r: r.to_bytes().into(), generator, u2 })
    }
}

/// `r` and `s` of a signature, if they are in 1..n and S is low.
fn parse(signature: &Signature) -> Option<(Scalar, Scalar)> {
    let (r, s) = signature.0.split_at(32);
    let scalar = |bytes: &[u8]| {
        let bytes = FieldBytes::try_from(bytes).ok()?;
        Option::<Scalar>::from(Scalar::from_repr(bytes)).filter(|scalar| *scalar != Scalar::ZERO)
    };
    let (r, s) = (scalar(r)?, scalar(s)?);
    (!bool::from(s.is_high())).then_some((r, s))
}

/// 1/s modulo n; `s` is not zero.
fn invert(s: &Scalar) -> Scalar {
    const MODULUS: Modulus = Modulus::new(ORDER);
    let inverse = MODULUS.invert(limbs(&s.to_bytes().into()));
    Scalar::reduce(&FieldBytes::from(bytes(&inverse)))
}
