//! Verification by tables of multiples: for keys that sign very often.
//!
//! A signature (r, s) of a digest z verifies when the point u1·G + u2·Q, with u1 = z/s and
//! u2 = r/s, has an X coordinate that is r modulo n. Nearly all of the work is the two products.
//! A scalar of 256 bits is split into windows of w bits, each a signed digit d in
//! -2^(w-1)..=2^(w-1), so that the product is the sum of d·2^(wi)·Q over the windows i. If all of
//! 1..=2^(w-1) times 2^(wi)·Q are in a table, that is one addition a window and no doubling.

use std::sync::LazyLock;

use k256::elliptic_curve::ff::PrimeField;
use k256::elliptic_curve::ops::Reduce;
use k256::elliptic_curve::scalar::IsHigh;
use k256::{FieldBytes, Scalar};

use super::field::{Field, bytes, limbs};
use super::inverse::Modulus;
use super::{Signature, Signed};

/// Bits of a window of the generator's table: 20 additions a product, 5.2 MB.
const GENERATOR_WINDOW: u32 = 13;
/// Bits of a window of a key's table: 26 additions a product, 0.85 MB.
const KEY_WINDOW: u32 = 10;

/// The most terms that a product has: that by the smaller windows.
const MOST_TERMS: usize = windows(KEY_WINDOW);

/// The generator G, its limbs little-endian.
static GENERATOR: Affine = Affine {
    x: Field::new([
        0x59f2_815b_16f8_1798,
        0x029b_fcdb_2dce_28d9,
        0x55a0_6295_ce87_0b07,
        0x79be_667e_f9dc_bbac,
    ]),
    y: Field::new([
        0x9c47_d08f_fb10_d4b8,
        0xfd17_b448_a685_5419,
        0x5da4_fbfc_0e11_08a8,
        0x483a_da77_26a3_c465,
    ]),
};
/// The order n of the group, little-endian.
pub(super) const ORDER: [u64; 4] =
    [0xbfd2_5e8c_d036_4141, 0xbaae_dce6_af48_a03b, 0xffff_ffff_ffff_fffe, 0xffff_ffff_ffff_ffff];
/// p - n, big-endian. Only X coordinates below it have a second number that is the same modulo n.
const P_MINUS_ORDER: [u8; 32] = [
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x45, 0x51, 0x23, 0x19, 0x50, 0xb7, 0x5f, 0xc4, 0x40, 0x2d, 0xa1, 0x72, 0x2f, 0xc9, 0xba, 0xee,
];

/// Multiples of the generator, made when the first key's table is.
static GENERATOR_MULTIPLES: LazyLock<Multiples> =
    LazyLock::new(|| Multiples::of(GENERATOR, GENERATOR_WINDOW));

/// Multiples of one public key.
pub(super) struct KeyTable(Multiples);

impl KeyTable {
    /// The table of a key that libsecp256k1 has parsed, so that it is a point of the curve.
    pub(super) fn new(key: &secp256k1::PublicKey) -> KeyTable {
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
    pub(super) fn verify(&self, signed: &Signed) -> bool {
        let Some(Shared { r, generator, u2 }) = signed.shared() else {
            return false;
        };
        sum(*generator, self.0.terms(u2)).has_x(r)
    }
}

/// What is the same for all keys that a signature is held against. The first of two keys fails for
/// most operations, and the second then costs half.
#[derive(Debug)]
pub(super) struct Shared {
    /// Big-endian.
    r: [u8; 32],
    /// u1·G
    generator: Jacobian,
    u2: Scalar,
}

impl Shared {
    /// None when this is nobody's signature: `r` or `s` out of range, or a high S.
    pub(super) fn of(digest: &[u8; 32], signature: &Signature) -> Option<Shared> {
        let (r, s) = parse(signature)?;
        let z = Scalar::reduce(&FieldBytes::from(*digest));
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

/// A point of the curve that is not infinity. One line of the processor's cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Affine {
    x: Field,
    y: Field,
}

/// A point of the curve: x/z² and y/z³, or infinity when z is zero.
#[derive(Debug, Clone, Copy)]
struct Jacobian {
    x: Field,
    y: Field,
    z: Field,
}

impl Jacobian {
    const INFINITY: Jacobian = Jacobian { x: Field::ONE, y: Field::ONE, z: Field::ZERO };

    /// Twice the point. The curve has no point of order two, so that only twice infinity is
    /// infinity (and z says so by itself).
    fn double(self) -> Jacobian {
        let yy = self.y.square();
        let xx = self.x.square();
        let s = (self.x * yy).double().double();
        let m = xx.double() + xx;
        let x = m.square() - s.double();
        let y = m * (s - x) - yy.square().double().double().double();
        let z = (self.y * self.z).double();
        Jacobian { x, y, z }
    }

    /// The sum with another point; whatever the two are.
    #[inline(always)]
    fn add(self, other: Affine) -> Jacobian {
        // Products that do not wait for each other stand side by side.
        let zz = self.z.square();
        let yz = other.y * self.z;
        let dx = other.x * zz - self.x;
        let dy = yz * zz - self.y;
        if dx.is_zero() || self.z.is_zero() {
            return self.add_exception(other, dy);
        }
        let dxx = dx.square();
        let dyy = dy.square();
        let z = self.z * dx;
        let v = self.x * dxx;
        let dxxx = dx * dxx;
        let x = dyy - dxxx - v.double();
        let ydxxx = self.y * dxxx;
        let y = dy * (v - x) - ydxxx;
        Jacobian { x, y, z }
    }

    /// The sum where one of the points is infinity, or both have the same x.
    #[cold]
    fn add_exception(self, other: Affine, dy: Field) -> Jacobian {
        if self.z.is_zero() {
            Jacobian { x: other.x, y: other.y, z: Field::ONE }
        } else if dy.is_zero() {
            self.double()
        } else {
            Jacobian::INFINITY
        }
    }

    /// Whether the X coordinate of the point is `r` modulo n; `r`, big-endian, is below n.
    /// Instead of dividing x by z², `r` is multiplied by it.
    fn has_x(self, r: &[u8; 32]) -> bool {
        let zz = self.z.square();
        let x = Field::from_bytes(r);
        !self.z.is_zero()
            && (x * zz == self.x || *r < P_MINUS_ORDER && (x + Field::new(ORDER)) * zz == self.x)
    }
}

/// A point of a table, or its opposite.
#[derive(Clone, Copy)]
struct Term<'a> {
    point: &'a Affine,
    negative: bool,
}

/// The sum of a point and at most [`MOST_TERMS`] terms.
fn sum<'a>(point: Jacobian, terms: impl Iterator<Item = Term<'a>>) -> Jacobian {
    // The tables are larger than the nearer caches. First where the points are, then all of them
    // at once, so that the processor waits for many at a time; only then what takes longer.
    let mut places = [Term { point: &GENERATOR, negative: false }; MOST_TERMS];
    let mut count = 0;
    for (place, term) in places.iter_mut().zip(terms) {
        *place = term;
        count += 1;
    }
    let places = &places[..count];
    let mut points = [GENERATOR; MOST_TERMS];
    for (point, place) in points.iter_mut().zip(places) {
        *point = *place.point;
    }
    let mut sum = point;
    for (Affine { x, y }, place) in points.iter().zip(places) {
        sum = sum.add(Affine { x: *x, y: y.signed(place.negative) });
    }
    sum
}

/// For each window of a scalar the multiples 1..=2^(window - 1) of a point's 2^(window·i)-fold.
struct Multiples {
    window: u32,
    points: Box<[Affine]>,
}

impl Multiples {
    fn of(point: Affine, window: u32) -> Multiples {
        let half = 1 << (window - 1);
        let mut points = vec![point; windows(window) * half];
        for (row, base) in points.chunks_mut(half).zip(bases(point, window)) {
            row[0] = base;
        }
        // From 1..=known times the base follow known + 1..=2·known times: the sums of the last one
        // with each of them. The order of the group is prime and far greater, so that no sum is
        // infinity and only the last is one of equal points.
        let mut known = 1;
        while known < half {
            let slopes = points.chunks(half).flat_map(|row| {
                let last = row[known - 1];
                let slope = move |point: &Affine| Slope::chord(last, *point);
                row[..known - 1].iter().map(slope).chain([Slope::tangent(last)])
            });
            let mut slopes = Slope::values(slopes.collect()).into_iter();
            for row in points.chunks_mut(half) {
                let last = row[known - 1];
                for k in 0..known {
                    // There are as many slopes as points, in the same order.
                    let Some(slope) = slopes.next() else { break };
                    let x = slope.square() - last.x - row[k].x;
                    row[known + k] = Affine { x, y: slope * (last.x - x) - last.y };
                }
            }
            known *= 2;
        }
        Multiples { window, points: points.into() }
    }

    /// The points whose sum is `scalar` times the point of the table.
    fn terms(&self, scalar: &Scalar) -> impl Iterator<Item = Term<'_>> {
        // Of the scalar and its opposite one is below 2^255, so that the highest window does not
        // carry.
        let negate = bool::from(scalar.is_high());
        let scalar = if negate { -scalar } else { *scalar };
        let limbs = limbs(&scalar.to_bytes().into());
        let half = 1 << (self.window - 1);
        let mut carry = 0;
        self.points.chunks_exact(half).enumerate().filter_map(move |(window, row)| {
            // A digit above half becomes the negative one that is congruent, and a carry.
            let digit = bits(&limbs, window as u32 * self.window, self.window) + carry;
            let negative = digit > half;
            carry = usize::from(negative);
            let size = if negative { 2 * half - digit } else { digit };
            let point = row.get(size.wrapping_sub(1))?;
            Some(Term { point, negative: negative != negate })
        })
    }
}

/// Windows of a scalar. The highest is not full: there is room for a carry.
const fn windows(window: u32) -> usize {
    256u32.div_ceil(window) as usize
}

/// `count` bits of a number from bit `from` on.
fn bits(limbs: &[u64; 4], from: u32, count: u32) -> usize {
    let (limb, shift) = ((from / 64) as usize, from % 64);
    let low = limbs[limb] >> shift;
    // In two steps, since a shift by 64 is none.
    let high = limbs.get(limb + 1).map_or(0, |next| next << 1 << (63 - shift));
    (low | high) as usize & ((1 << count) - 1)
}

/// The 2^(window·i)-folds of a point, for each window of a scalar.
fn bases(point: Affine, window: u32) -> Vec<Affine> {
    let mut base = Jacobian { x: point.x, y: point.y, z: Field::ONE };
    let mut bases = Vec::new();
    for bit in 0..256 {
        if bit % window == 0 {
            bases.push(base);
        }
        base = base.double();
    }
    let heights = bases.iter().map(|base| Slope { rise: Field::ONE, run: base.z });
    let inverses = Slope::values(heights.collect());
    let scale = |(base, inverse): (&Jacobian, Field)| {
        let square = inverse.square();
        Affine { x: base.x * square, y: base.y * square * inverse }
    };
    bases.iter().zip(inverses).map(scale).collect()
}

/// The slope of a line through two points, as a fraction.
struct Slope {
    rise: Field,
    run: Field,
}

impl Slope {
    /// The line through two points with different x.
    fn chord(a: Affine, b: Affine) -> Slope {
        Slope { rise: b.y - a.y, run: b.x - a.x }
    }

    /// The line that touches the curve y² = x³ + 7 in a point.
    fn tangent(a: Affine) -> Slope {
        let square = a.x.square();
        Slope { rise: square.double() + square, run: a.y.double() }
    }

    /// The values of fractions whose denominators are not zero, with one inversion (Montgomery's
    /// trick): from the inverse of the product of all denominators, the last one's inverse is that
    /// times the product of those before it.
    fn values(slopes: Vec<Slope>) -> Vec<Field> {
        let mut values = Vec::with_capacity(slopes.len());
        let mut product = Field::ONE;
        for slope in &slopes {
            values.push(product);
            product = product * slope.run;
        }
        let mut inverse = product.invert();
        for (value, slope) in values.iter_mut().zip(&slopes).rev() {
            *value = *value * inverse * slope.rise;
            inverse = inverse * slope.run;
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use k256::ProjectivePoint;
    use k256::elliptic_curve::ff::Field as _;
    use k256::elliptic_curve::point::AffineCoordinates;
    use k256::elliptic_curve::sec1::ToSec1Point;

    use super::*;
    use crate::signature::field::tests::random_bytes;

    /// The same point by the plain crate, in the form of the tables.
    fn plain(scalar: Scalar) -> Affine {
        let point = (ProjectivePoint::GENERATOR * scalar).to_affine();
        let y = point.to_sec1_point(false).y().copied().unwrap();
        Affine { x: Field::from_bytes(&point.x().into()), y: Field::from_bytes(&y.into()) }
    }

    fn equal(a: Affine, b: Affine) -> bool {
        a.x == b.x && a.y == b.y
    }

    fn affine(point: Jacobian) -> Affine {
        let inverse = point.z.invert();
        let square = inverse.square();
        Affine { x: point.x * square, y: point.y * square * inverse }
    }

    fn edges() -> Vec<Scalar> {
        let mut edges = vec![Scalar::ONE, -Scalar::ONE, Scalar::TWO_INV, -Scalar::TWO_INV];
        for bit in 0..256 {
            let power = Scalar::from(2u64).pow_vartime([bit]);
            edges.extend([power, -power, power - Scalar::ONE, power + Scalar::ONE]);
        }
        edges.retain(|scalar| *scalar != Scalar::ZERO);
        edges
    }

    #[test]
    fn every_entry_of_a_table_is_its_multiple() {
        let multiples = Multiples::of(plain(Scalar::from(5u64)), 5);
        let mut base = Scalar::from(5u64);
        for row in multiples.points.chunks(16) {
            let mut multiple = Scalar::ZERO;
            for entry in row {
                multiple += base;
                assert!(equal(*entry, plain(multiple)));
            }
            base = multiple.double();
        }
    }

    #[test]
    fn terms_sum_up_to_the_product() {
        let tables = [3, 7, 8, KEY_WINDOW].map(|window| Multiples::of(GENERATOR, window));
        let scalars = (0..300).map(|seed| Scalar::reduce(&FieldBytes::from(random_bytes(seed))));
        for scalar in edges().into_iter().chain(scalars) {
            for table in &tables {
                let terms = table.terms(&scalar).map(|term| {
                    let Affine { x, y } = *term.point;
                    Affine { x, y: y.signed(term.negative) }
                });
                let total = terms.fold(Jacobian::INFINITY, Jacobian::add);
                assert!(equal(affine(total), plain(scalar)), "{scalar:?} by {}", table.window);
            }
        }
        assert_eq!(tables[0].terms(&Scalar::ZERO).count(), 0);
    }

    #[test]
    fn points_are_added_whatever_they_are() {
        for (a, b) in [(1, 2), (2, 1), (7, 7), (1, 1)] {
            let (a, b) = (Scalar::from(a as u64), Scalar::from(b as u64));
            // The same point in another form: z = 5.
            let z = Field::new([5, 0, 0, 0]);
            let Affine { x, y } = plain(a);
            let point = Jacobian { x: x * z.square(), y: y * z.square() * z, z };
            assert!(equal(affine(point.add(plain(b))), plain(a + b)));
            assert!(equal(affine(point.double()), plain(a + a)));
            assert!(point.add(plain(-a)).z.is_zero());
            assert!(point.add(plain(-a)).double().z.is_zero());
            assert!(equal(affine(point.add(plain(-a)).add(plain(b))), plain(b)));
        }
    }

    #[test]
    fn an_x_coordinate_is_compared_modulo_the_order() {
        let difference = limbs(&P_MINUS_ORDER);
        let less = |small: u64| bytes(&[difference[0] - small, difference[1], difference[2], 0]);
        let z = Field::from_bytes(&random_bytes(1));
        let at = |x: Field| Jacobian { x: x * z.square(), y: Field::ONE, z };
        for r in [bytes(&[1, 0, 0, 0]), less(1), less(2), random_bytes(2)] {
            assert!(at(Field::from_bytes(&r)).has_x(&r));
            assert!(!at(Field::from_bytes(&r) + Field::ONE).has_x(&r));
            // r + n is an X coordinate that is r modulo n, if it is below p.
            let other = at(Field::from_bytes(&r) + Field::new(ORDER));
            assert_eq!(other.has_x(&r), r < P_MINUS_ORDER);
        }
        // p - n and n add up to zero, which is not the same modulo n.
        assert!(!at(Field::ZERO).has_x(&P_MINUS_ORDER));
        assert!(!Jacobian::INFINITY.has_x(&bytes(&[1, 0, 0, 0])));
        assert!(!Jacobian { x: Field::ZERO, ..Jacobian::INFINITY }.has_x(&bytes(&[1, 0, 0, 0])));
    }

    #[test]
    fn the_constants_are_those_of_the_plain_crate() {
        assert!(equal(GENERATOR, plain(Scalar::ONE)));
        let minus_one = limbs(&(-Scalar::ONE).to_bytes().into());
        assert_eq!(minus_one, [ORDER[0] - 1, ORDER[1], ORDER[2], ORDER[3]]);
        let order = Field::new(ORDER);
        assert!(order + Field::from_bytes(&P_MINUS_ORDER) == Field::ZERO);
        assert_eq!(size_of::<Affine>(), 64);
    }
}
