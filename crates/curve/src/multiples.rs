//! Tables of multiples of a point.
//!
//! A scalar of 256 bits is split into windows of w bits, each a signed digit d in
//! -2^(w-1)..=2^(w-1), so that its product with a point Q is the sum of d·2^(wi)·Q over the windows
//! i. If all of 1..=2^(w-1) times 2^(wi)·Q are in a table, that is one addition a window and no
//! doubling.

use k256::Scalar;
use k256::elliptic_curve::scalar::IsHigh;

use crate::field::Field;
use crate::limbs::limbs;
use crate::point::{Affine, GENERATOR, Jacobian};

/// Bits of the smallest window that a table of this program has.
pub(crate) const SMALLEST_WINDOW: u32 = 10;
/// The most terms that a product has: that by the smallest windows.
const MOST_TERMS: usize = windows(SMALLEST_WINDOW);

/// A point of a table, or its opposite.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    point: &'a Affine,
    negative: bool,
}

/// The sum of a point and at most [`MOST_TERMS`] terms.
pub(crate) fn sum<'a>(point: Jacobian, terms: impl Iterator<Item = Term<'a>>) -> Jacobian {
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
pub(crate) struct Multiples {
    window: u32,
    points: Box<[Affine]>,
}

impl Multiples {
    pub(crate) fn of(point: Affine, window: u32) -> Multiples {
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
    pub(crate) fn terms(&self, scalar: &Scalar) -> impl Iterator<Item = Term<'_>> {
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
    use k256::FieldBytes;
    use k256::elliptic_curve::ff::{Field as _, PrimeField};
    use k256::elliptic_curve::ops::Reduce;

    use super::*;
    use crate::point::tests::{affine, equal, plain, random_bytes};

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
        let tables = [3, 7, 8, SMALLEST_WINDOW].map(|window| Multiples::of(GENERATOR, window));
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
}
