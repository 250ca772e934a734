//! Whether a number is the X coordinate of a point of secp256k1, the curve y² = x³ + 7.
//!
//! Every DID document asks this of a key. The arithmetic is that of fiat-crypto, whose code is
//! generated together with a proof that it is right; it takes three fifths of the time of the k256
//! crate.

use fiat_crypto::secp256k1_dettman_64::{
    fiat_secp256k1_dettman_mul, fiat_secp256k1_dettman_square,
};

/// A number modulo p = 2^256 - 2^32 - 977: four limbs of 52 bits and one of 48, little-endian, each
/// with room for one bit more.
#[derive(Clone, Copy)]
struct Number([u64; 5]);

const LIMB: u64 = (1 << 52) - 1;
const LAST_LIMB: u64 = (1 << 48) - 1;
/// 2^256 - p: what a carry out of the last limb is worth.
const FOLD: u64 = 0x1_0000_03d1;
/// The lowest limb of p; all bits of the others are set.
const LOWEST_OF_P: u64 = LIMB - (FOLD - 1);

/// True when there is a point of the curve with this X coordinate, big-endian.
pub(crate) fn is_x_coordinate(x: &[u8; 32]) -> bool {
    let number = Number::from_bytes(x);
    if number.canonical() != number.0 {
        return false;
    }
    let mut square = number.square().times(&number);
    square.0[0] += 7;
    // Of a number that is no square this is the root of its opposite. (Zero does not occur: the
    // curve has no point with y = 0.)
    square.root().square().canonical() == square.canonical()
}

impl Number {
    fn from_bytes(bytes: &[u8; 32]) -> Number {
        let mut limbs = [0; 5];
        for (place, byte) in bytes.iter().rev().enumerate() {
            let (limb, shift) = (place * 8 / 52, place * 8 % 52);
            limbs[limb] |= u64::from(*byte) << shift & LIMB;
            // The upper half of a byte that two limbs share.
            if shift > 52 - 8 {
                limbs[limb + 1] |= u64::from(*byte) >> (52 - shift);
            }
        }
        Number(limbs)
    }

    fn times(&self, other: &Number) -> Number {
        let mut product = [0; 5];
        fiat_secp256k1_dettman_mul(&mut product, &self.0, &other.0);
        Number(product)
    }

    #[inline(always)]
    fn square(&self) -> Number {
        let mut square = [0; 5];
        fiat_secp256k1_dettman_square(&mut square, &self.0);
        Number(square)
    }

    /// The number to the power of 2^`squarings`, times another. Not a copy of this loop for each
    /// use, so that the squaring itself is inlined: that takes half of the time.
    #[inline(never)]
    fn raised(&self, squarings: u32, other: &Number) -> Number {
        let mut power = *self;
        for _ in 0..squarings {
            power = power.square();
        }
        power.times(other)
    }

    /// The power to (p + 1)/4, which is the square root of a square. In binary, that exponent is
    /// 223 ones, a zero, 22 ones, 0000, 11, 00; `n_ones` is the power to n ones.
    fn root(&self) -> Number {
        let two_ones = self.raised(1, self);
        let three_ones = two_ones.raised(1, self);
        let six_ones = three_ones.raised(3, &three_ones);
        let nine_ones = six_ones.raised(3, &three_ones);
        let eleven_ones = nine_ones.raised(2, &two_ones);
        let twenty_two_ones = eleven_ones.raised(11, &eleven_ones);
        let forty_four_ones = twenty_two_ones.raised(22, &twenty_two_ones);
        let eighty_eight_ones = forty_four_ones.raised(44, &forty_four_ones);
        eighty_eight_ones
            .raised(88, &eighty_eight_ones)
            .raised(44, &forty_four_ones)
            .raised(3, &three_ones)
            .raised(23, &twenty_two_ones)
            .raised(6, &two_ones)
            .square()
            .square()
    }

    /// The limbs of the number that is congruent and below p.
    fn canonical(&self) -> [u64; 5] {
        let mut limbs = self.0;
        // The second time because the first may carry out of the last limb again.
        for _ in 0..2 {
            limbs[0] += (limbs[4] >> 48) * FOLD;
            limbs[4] &= LAST_LIMB;
            for place in 0..4 {
                limbs[place + 1] += limbs[place] >> 52;
                limbs[place] &= LIMB;
            }
        }
        match limbs {
            [lowest, LIMB, LIMB, LIMB, LAST_LIMB] if lowest >= LOWEST_OF_P => {
                [lowest - LOWEST_OF_P, 0, 0, 0, 0]
            }
            _ => limbs,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_the_k256_crate(x: &[u8; 32]) -> bool {
        k256::PublicKey::from_sec1_bytes(&[&[2], &x[..]].concat()).is_ok()
    }

    #[test]
    fn numbers_at_the_edges() {
        let p: [u8; 32] = std::array::from_fn(|place| match place {
            27 => 0xfe,
            30 => 0xfc,
            31 => 0x2f,
            _ => 0xff,
        });
        let mut found = 0;
        for byte in 0..=255 {
            for place in 0..32 {
                for mut x in [[0; 32], [0xff; 32], p] {
                    x[place] = byte;
                    assert_eq!(is_x_coordinate(&x), by_the_k256_crate(&x), "{x:02x?}");
                    found += usize::from(is_x_coordinate(&x));
                }
            }
        }
        assert!(found > 5_000, "{found}");
        assert!(!is_x_coordinate(&p) && !is_x_coordinate(&[0xff; 32]));
    }

    proptest! {
        #[test]
        fn any_numbers(x in any::<[u8; 32]>()) {
            prop_assert_eq!(is_x_coordinate(&x), by_the_k256_crate(&x));
        }
    }
}
