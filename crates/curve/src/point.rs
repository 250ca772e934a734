//! Points of secp256k1, the curve y² = x³ + 7, and their sums.

use crate::field::Field;

/// The generator G, its limbs little-endian.
pub(crate) static GENERATOR: Affine = Affine {
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
pub(crate) const ORDER: [u64; 4] =
    [0xbfd2_5e8c_d036_4141, 0xbaae_dce6_af48_a03b, 0xffff_ffff_ffff_fffe, 0xffff_ffff_ffff_ffff];
/// p - n, big-endian. Only X coordinates below it have a second number that is the same modulo n.
const P_MINUS_ORDER: [u8; 32] = [
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x45, 0x51, 0x23, 0x19, 0x50, 0xb7, 0x5f, 0xc4, 0x40, 0x2d, 0xa1, 0x72, 0x2f, 0xc9, 0xba, 0xee,
];

/// A point of the curve that is not infinity. One line of the processor's cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Affine {
    pub x: Field,
    pub y: Field,
}

/// A point of the curve: x/z² and y/z³, or infinity when z is zero.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jacobian {
    pub x: Field,
    pub y: Field,
    pub z: Field,
}

impl Jacobian {
    pub(crate) const INFINITY: Jacobian = Jacobian { x: Field::ONE, y: Field::ONE, z: Field::ZERO };

    /// Twice the point. The curve has no point of order two, so that only twice infinity is
    /// infinity (and z says so by itself).
    pub(crate) fn double(self) -> Jacobian {
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
    pub(crate) fn add(self, other: Affine) -> Jacobian {
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
    pub(crate) fn has_x(self, r: &[u8; 32]) -> bool {
        let zz = self.z.square();
        let x = Field::from_bytes(r);
        !self.z.is_zero()
            && (x * zz == self.x || *r < P_MINUS_ORDER && (x + Field::new(ORDER)) * zz == self.x)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use k256::elliptic_curve::point::AffineCoordinates;
    use k256::elliptic_curve::sec1::ToSec1Point;
    use k256::{ProjectivePoint, Scalar};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::limbs::{bytes, limbs};

    pub fn random_bytes(seed: u64) -> [u8; 32] {
        ChaCha8Rng::seed_from_u64(seed).random()
    }

    /// The same point by the plain crate, in the form of the tables.
    pub fn plain(scalar: Scalar) -> Affine {
        let point = (ProjectivePoint::GENERATOR * scalar).to_affine();
        let y = point.to_sec1_point(false).y().copied().unwrap();
        Affine { x: Field::from_bytes(&point.x().into()), y: Field::from_bytes(&y.into()) }
    }

    pub fn equal(a: Affine, b: Affine) -> bool {
        a.x == b.x && a.y == b.y
    }

    pub fn affine(point: Jacobian) -> Affine {
        let inverse = point.z.invert();
        let square = inverse.square();
        Affine { x: point.x * square, y: point.y * square * inverse }
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
