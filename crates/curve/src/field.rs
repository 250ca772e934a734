//! Arithmetic modulo p = 2^256 - 2^32 - 977, the field of secp256k1.
//!
//! The libraries keep theirs to themselves, or pay for constant time and for calls that are not
//! inlined. Everything here is public data, so time may vary.

use std::hint::select_unpredictable;
use std::ops::{Add, Mul, Neg, Sub};

use crate::inverse::Modulus;
use crate::limbs::limbs;

/// 2^256 - p: what a carry out of the highest limb is worth.
const FOLD: u64 = 0x1_0000_03d1;

/// p, little-endian.
pub(crate) const P: [u64; 4] = [0u64.wrapping_sub(FOLD), u64::MAX, u64::MAX, u64::MAX];

/// A number modulo p in four limbs, little-endian. Any value below 2^256 may stand for itself: the
/// 2^32 + 977 numbers that are smaller than that have two forms, and [`Field::is_zero`] knows both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field([u64; 4]);

impl Field {
    pub(crate) const ZERO: Field = Field([0; 4]);
    pub(crate) const ONE: Field = Field([1, 0, 0, 0]);

    /// The number modulo p with these limbs, little-endian.
    pub(crate) const fn new(limbs: [u64; 4]) -> Field {
        Field(limbs)
    }

    /// The number modulo p with these 32 bytes, big-endian.
    pub(crate) const fn from_bytes(bytes: &[u8; 32]) -> Field {
        Field(limbs(bytes))
    }

    /// Twice the number.
    #[inline(always)]
    pub(crate) fn double(self) -> Field {
        self + self
    }

    /// The square.
    #[inline(always)]
    pub(crate) fn square(self) -> Field {
        let [a0, a1, a2, a3] = self.0;
        // The products of different limbs, a0·(a1 a2 a3) + a1·(a2 a3) + a2·a3, once each,
        let (r1, h1) = a0.carrying_mul(a1, 0);
        let (l2, h2) = a0.carrying_mul(a2, 0);
        let (l3, h3) = a0.carrying_mul(a3, 0);
        let ([r2, r3, r4], _) = sum([l2, l3, h3], [h1, h2, 0]);
        let (s3, h3) = a1.carrying_mul(a2, 0);
        let (l4, h4) = a1.carrying_mul(a3, 0);
        let (l5, h5) = a2.carrying_mul(a3, 0);
        let ([s4, s5, s6], _) = sum([l4, l5, h5], [h3, h4, 0]);
        let ([r3, r4, r5, r6], _) = sum([r3, r4, 0, 0], [s3, s4, s5, s6]);
        // twice,
        let once = [r1, r2, r3, r4, r5, r6];
        let ([r1, r2, r3, r4, r5, r6], k) = sum(once, once);
        // and the squares of the limbs.
        let (r0, s1) = a0.carrying_mul(a0, 0);
        let (s2, s3) = a1.carrying_mul(a1, 0);
        let (s4, s5) = a2.carrying_mul(a2, 0);
        let (s6, s7) = a3.carrying_mul(a3, 0);
        let twice = [r1, r2, r3, r4, r5, r6, u64::from(k)];
        let ([r1, r2, r3, r4, r5, r6, r7], _) = sum(twice, [s1, s2, s3, s4, s5, s6, s7]);
        reduce([r0, r1, r2, r3], [r4, r5, r6, r7])
    }

    /// Whether this is zero modulo p.
    #[inline(always)]
    pub(crate) fn is_zero(self) -> bool {
        let [r0, r1, r2, r3] = self.0;
        r0 | r1 | r2 | r3 == 0 || r0 == P[0] && r1 & r2 & r3 == u64::MAX
    }

    /// The number if `negative` is false, its opposite if it is true, without a branch: the signs
    /// of a scalar's digits cannot be predicted.
    #[inline(always)]
    pub(crate) fn signed(self, negative: bool) -> Field {
        let opposite = -self;
        let mask = u64::from(negative).wrapping_neg();
        Field(std::array::from_fn(|i| self.0[i] ^ (mask & (self.0[i] ^ opposite.0[i]))))
    }

    /// The number whose product with this one is 1. This one is not zero.
    pub(crate) fn invert(self) -> Field {
        const MODULUS: Modulus = Modulus::new(P);
        Field(MODULUS.invert(self.0))
    }
}

impl PartialEq for Field {
    fn eq(&self, other: &Field) -> bool {
        (*self - *other).is_zero()
    }
}

impl Add for Field {
    type Output = Field;

    #[inline(always)]
    fn add(self, other: Field) -> Field {
        let (total, k) = sum(self.0, other.0);
        let ([r0, r1, r2, r3], k) = sum(total, [fold(k), 0, 0, 0]);
        // A second carry leaves a sum below FOLD: there will be no third.
        Field([r0.wrapping_add(fold(k)), r1, r2, r3])
    }
}

impl Sub for Field {
    type Output = Field;

    #[inline(always)]
    fn sub(self, other: Field) -> Field {
        let (rest, k) = difference(self.0, other.0);
        let ([r0, r1, r2, r3], k) = difference(rest, [fold(k), 0, 0, 0]);
        // A second borrow leaves a difference above 2^256 - FOLD: there will be no third.
        Field([r0.wrapping_sub(fold(k)), r1, r2, r3])
    }
}

impl Neg for Field {
    type Output = Field;

    #[inline(always)]
    fn neg(self) -> Field {
        Field(P) - self
    }
}

impl Mul for Field {
    type Output = Field;

    #[inline(always)]
    fn mul(self, other: Field) -> Field {
        let [b0, b1, b2, b3] = other.0;
        let [r0, upper @ ..] = row(self.0, b0);
        let (r1, upper) = add_row(upper, row(self.0, b1));
        let (r2, upper) = add_row(upper, row(self.0, b2));
        let (r3, upper) = add_row(upper, row(self.0, b3));
        reduce([r0, r1, r2, r3], upper)
    }
}

/// A product modulo p: the upper half is worth FOLD times as much in the lower one, and what that
/// carries out once more.
#[inline(always)]
fn reduce(lower: [u64; 4], upper: [u64; 4]) -> Field {
    let [s0, s1, s2, s3, s4] = row(upper, FOLD);
    let (lower, k) = sum(lower, [s0, s1, s2, s3]);
    // At most FOLD, so that FOLD times that has less than 67 bits.
    let carry = s4.wrapping_add(u64::from(k));
    let (low, high) = carry.carrying_mul(FOLD, 0);
    let ([r0, r1, r2, r3], k) = sum(lower, [low, high, 0, 0]);
    // If that carried, the rest has less than 67 bits, and the carry ends in the second limb.
    let (r0, k) = r0.overflowing_add(fold(k));
    Field([r0, r1.wrapping_add(u64::from(k)), r2, r3])
}

// Numbers are multiplied by rows: first the four products, then their sum in one chain of
// carries. That is what a processor does fastest.

/// The product of four limbs and one.
#[inline(always)]
fn row(a: [u64; 4], b: u64) -> [u64; 5] {
    let [(r0, h0), (l1, h1), (l2, h2), (l3, h3)] = a.map(|limb| limb.carrying_mul(b, 0));
    let ([r1, r2, r3, r4], _) = sum([l1, l2, l3, h3], [h0, h1, h2, 0]);
    [r0, r1, r2, r3, r4]
}

/// The upper limbs of a product so far and its next row, which begins at the same place: the
/// lowest limb of their sum, and the others. (The product of five limbs by four has nine, so that
/// there is no carry.)
#[inline(always)]
fn add_row(upper: [u64; 4], [s0, s1, s2, s3, s4]: [u64; 5]) -> (u64, [u64; 4]) {
    let ([r0, r1, r2, r3], k) = sum(upper, [s0, s1, s2, s3]);
    (r0, [r1, r2, r3, s4.wrapping_add(u64::from(k))])
}

/// What a carry or a borrow is worth. Not by a branch, which could not be predicted.
#[inline(always)]
fn fold(carry: bool) -> u64 {
    select_unpredictable(carry, FOLD, 0)
}

/// The sum of two numbers, and whether there is a carry.
#[inline(always)]
fn sum<const LIMBS: usize>(a: [u64; LIMBS], b: [u64; LIMBS]) -> ([u64; LIMBS], bool) {
    let mut sum = a;
    let mut carry = false;
    for i in 0..LIMBS {
        (sum[i], carry) = a[i].carrying_add(b[i], carry);
    }
    (sum, carry)
}

/// The difference of two numbers, and whether there is a borrow.
#[inline(always)]
fn difference(a: [u64; 4], b: [u64; 4]) -> ([u64; 4], bool) {
    let mut difference = a;
    let mut borrow = false;
    for i in 0..4 {
        (difference[i], borrow) = a[i].borrowing_sub(b[i], borrow);
    }
    (difference, borrow)
}

#[cfg(test)]
mod tests {
    use fiat::fiat_secp256k1_montgomery_montgomery_domain_field_element as Proven;
    use fiat::fiat_secp256k1_montgomery_non_montgomery_domain_field_element as Canonical;
    use fiat_crypto::secp256k1_montgomery_64 as fiat;
    use k256::Secp256k1;
    use k256::elliptic_curve::hazmat::FieldArithmetic;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::limbs::bytes;

    type Plain = <Secp256k1 as FieldArithmetic>::FieldElement;

    fn random_bytes(seed: u64) -> [u8; 32] {
        ChaCha8Rng::seed_from_u64(seed).random()
    }

    /// The form of a number that is below p.
    fn canonical(a: Field) -> [u64; 4] {
        let (reduced, borrow) = difference(a.0, P);
        if borrow { a.0 } else { reduced }
    }

    fn plain(a: Field) -> Plain {
        Plain::from_bytes(&bytes(&canonical(a)).into()).unwrap()
    }

    /// The same number for fiat-crypto, whose code is generated together with a proof that it is
    /// right. What it answers is canonical, so that equal numbers are equal limbs.
    fn proven(a: Field) -> Proven {
        let mut proven = Proven([0; 4]);
        fiat::fiat_secp256k1_montgomery_to_montgomery(&mut proven, &Canonical(canonical(a)));
        proven
    }

    fn of_one(operation: fn(&mut Proven, &Proven), a: &Proven) -> [u64; 4] {
        let mut result = Proven([0; 4]);
        operation(&mut result, a);
        result.0
    }

    fn of_two(operation: fn(&mut Proven, &Proven, &Proven), a: &Proven, b: &Proven) -> [u64; 4] {
        let mut result = Proven([0; 4]);
        operation(&mut result, a, b);
        result.0
    }

    /// All numbers made of limbs at the edges, the neighbours of p, and random ones.
    fn numbers() -> Vec<Field> {
        let limbs = [0, 1, FOLD.wrapping_neg(), u64::MAX];
        let mut numbers = Vec::new();
        for i in 0..256 {
            numbers.push(Field([
                limbs[i & 3],
                limbs[i >> 2 & 3],
                limbs[i >> 4 & 3],
                limbs[i >> 6],
            ]));
        }
        for near in 0..4 {
            numbers.push(Field([P[0] - near, P[1], P[2], P[3]]));
            numbers.push(Field([P[0] + near, P[1], P[2], P[3]]));
            numbers.push(Field([FOLD - near, 0, 0, 0]));
            numbers.push(Field([FOLD + near, 0, 0, 0]));
        }
        numbers.extend((0..200).map(|seed| Field::from_bytes(&random_bytes(seed))));
        numbers
    }

    #[test]
    fn arithmetic_is_that_of_the_plain_crate() {
        let numbers: Vec<_> = numbers().into_iter().map(|a| (a, plain(a))).collect();
        for (a, plain_a) in &numbers {
            for (b, plain_b) in &numbers {
                assert_eq!(plain(*a * *b), (*plain_a * plain_b).normalize(), "{a:?} * {b:?}");
                assert_eq!(plain(*a + *b), (*plain_a + plain_b).normalize(), "{a:?} + {b:?}");
                let opposite = plain_b.negate(1);
                assert_eq!(plain(*a - *b), (*plain_a + opposite).normalize(), "{a:?} - {b:?}");
                assert_eq!(a == b, plain_a == plain_b);
            }
            assert_eq!(plain(a.square()), plain_a.square().normalize(), "{a:?} squared");
            assert_eq!(plain(a.double()), plain_a.double().normalize(), "{a:?} doubled");
            assert_eq!(plain(-*a), plain_a.negate(1).normalize(), "-{a:?}");
            assert_eq!(plain(a.signed(false)), *plain_a);
            assert_eq!(plain(a.signed(true)), plain_a.negate(1).normalize());
            assert_eq!(a.is_zero(), bool::from(plain_a.is_zero()));
            if !a.is_zero() {
                assert_eq!(plain(a.invert()), plain_a.invert().unwrap(), "1 / {a:?}");
            }
        }
    }

    #[test]
    fn arithmetic_is_that_of_the_proven_crate() {
        let numbers: Vec<_> = numbers().into_iter().map(|a| (a, proven(a))).collect();
        for (a, proven_a) in &numbers {
            for (b, proven_b) in &numbers {
                let product = of_two(fiat::fiat_secp256k1_montgomery_mul, proven_a, proven_b);
                assert_eq!(proven(*a * *b).0, product, "{a:?} * {b:?}");
                let sum = of_two(fiat::fiat_secp256k1_montgomery_add, proven_a, proven_b);
                assert_eq!(proven(*a + *b).0, sum, "{a:?} + {b:?}");
                let difference = of_two(fiat::fiat_secp256k1_montgomery_sub, proven_a, proven_b);
                assert_eq!(proven(*a - *b).0, difference, "{a:?} - {b:?}");
                assert_eq!(a == b, proven_a.0 == proven_b.0);
            }
            let square = of_one(fiat::fiat_secp256k1_montgomery_square, proven_a);
            assert_eq!(proven(a.square()).0, square, "{a:?} squared");
            let opposite = of_one(fiat::fiat_secp256k1_montgomery_opp, proven_a);
            assert_eq!(proven(-*a).0, opposite, "-{a:?}");
            assert_eq!(proven(a.signed(true)).0, opposite);
        }
    }
}
