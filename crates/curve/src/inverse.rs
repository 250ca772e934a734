//! Inverses modulo a prime of 256 bits, three times faster than in the libraries.
//!
//! This is the method of Bernstein and Yang ("Fast constant-time gcd computation and modular
//! inversion", 2019) in the variable-time form that libsecp256k1 explains in its
//! `doc/safegcd_implementation.md`. A *division step* works on an odd `f`, a `g` and a small
//! counter, and looks at the lowest bits alone; it preserves gcd(f, g) and makes g zero in the
//! end, when f is ±gcd. 62 steps are done on the lowest 64 bits, which gives a matrix of small
//! numbers (times 2^-62) that is then applied to the whole f and g, and modulo m to (d, e). At all
//! times d·x = f and e·x = g modulo m; so in the end d = ±1/x.

/// Bits of a limb. Two are left for signs and sums.
const BITS: u32 = 62;
/// The bits of a limb.
const MASK: u64 = u64::MAX >> (64 - BITS);

/// A signed number: five limbs of 62 bits, little-endian, of which the last has the sign.
type Signed = [i64; 5];

/// A prime below 2^256.
pub(crate) struct Modulus {
    limbs: Signed,
    /// Its inverse modulo 2^62.
    inverse: u64,
}

/// What 62 division steps do: (f, g) becomes (u·f + v·g, q·f + r·g) / 2^62. The sums |u| + |v|
/// and |q| + |r| are at most 2^62.
struct Steps {
    u: i64,
    v: i64,
    q: i64,
    r: i64,
}

impl Modulus {
    /// An odd prime, as four little-endian limbs of 64 bits.
    pub(crate) const fn new(prime: [u64; 4]) -> Modulus {
        // By Newton: an odd number is its own inverse modulo 8; each step doubles the bits.
        let mut inverse = prime[0];
        let mut bits = 3;
        while bits < BITS {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(prime[0].wrapping_mul(inverse)));
            bits *= 2;
        }
        Modulus { limbs: split(prime), inverse: inverse & MASK }
    }

    /// 1/x modulo the prime, below it; `x` is not a multiple of the prime.
    pub(crate) fn invert(&self, x: [u64; 4]) -> [u64; 4] {
        let (mut f, mut g) = (self.limbs, split(x));
        let (mut d, mut e) = ([0; 5], [1, 0, 0, 0, 0]);
        let mut eta = -1;
        while g != [0; 5] {
            let steps;
            (eta, steps) = Steps::next(eta, f[0] as u64, g[0] as u64);
            (f, g) = steps.apply(&f, &g);
            (d, e) = self.apply(&steps, &d, &e);
        }
        self.reduce(d, f[4] < 0)
    }

    /// The steps applied to (d, e) modulo m. Both stay between -2m and m.
    fn apply(&self, steps: &Steps, d: &Signed, e: &Signed) -> (Signed, Signed) {
        let row = |a: i64, b: i64| {
            // The row's value plus `times` m is divisible by 2^62. Adding m where d or e are
            // negative keeps the result in bounds.
            let times = (a & (d[4] >> 63)) + (b & (e[4] >> 63));
            let lowest = a.wrapping_mul(d[0]).wrapping_add(b.wrapping_mul(e[0])) as u64;
            let excess = self.inverse.wrapping_mul(lowest).wrapping_add(times as u64) & MASK;
            let times = times - excess as i64;
            let mut result = [0; 5];
            let mut sum = wide(a, d[0]) + wide(b, e[0]) + wide(times, self.limbs[0]);
            for i in 1..5 {
                sum >>= BITS;
                sum += wide(a, d[i]) + wide(b, e[i]) + wide(times, self.limbs[i]);
                result[i - 1] = sum as i64 & MASK as i64;
            }
            result[4] = (sum >> BITS) as i64;
            result
        };
        (row(steps.u, steps.v), row(steps.q, steps.r))
    }

    /// A number between -2m and m, or its opposite, as the one that is congruent in 0..m.
    fn reduce(&self, mut d: Signed, negate: bool) -> [u64; 4] {
        let add_if_negative = |d: Signed| if d[4] < 0 { carried(d, self.limbs, 1) } else { d };
        d = add_if_negative(d);
        if negate {
            d = carried([0; 5], d, -1);
        }
        join(add_if_negative(d))
    }
}

impl Steps {
    /// 62 division steps from the lowest 64 bits of f and g, and the counter after them.
    fn next(mut eta: i64, mut f: u64, mut g: u64) -> (i64, Steps) {
        // Modulo 2^64: their signs come out right in the end.
        let (mut u, mut v, mut q, mut r) = (1u64, 0u64, 0u64, 1u64);
        let mut left = BITS;
        loop {
            // While g is even it is halved; instead of dividing q and r, u and v are doubled.
            let zeros = (g | u64::MAX << left).trailing_zeros();
            g >>= zeros;
            u <<= zeros;
            v <<= zeros;
            eta -= i64::from(zeros);
            left -= zeros;
            if left == 0 {
                break;
            }
            if eta < 0 {
                eta = -eta;
                (f, g) = (g, f.wrapping_neg());
                (u, q) = (q, u.wrapping_neg());
                (v, r) = (r, v.wrapping_neg());
            }
            // So many of the next steps do not exchange f and g: they add f to g where g is odd,
            // and halve. Adding the right multiple of f clears up to six bits of g at once:
            // -g/f modulo 64. (f² - 1 is divisible by 8, so that f·f(2 - f²) = 1 - (f² - 1)² is 1
            // modulo 64.)
            let steps = (eta + 1).min(i64::from(left)).min(6);
            let opposite = f.wrapping_mul(f.wrapping_mul(f).wrapping_sub(2));
            let times = opposite.wrapping_mul(g) & !(u64::MAX << steps);
            g = g.wrapping_add(f.wrapping_mul(times));
            q = q.wrapping_add(u.wrapping_mul(times));
            r = r.wrapping_add(v.wrapping_mul(times));
        }
        (eta, Steps { u: u as i64, v: v as i64, q: q as i64, r: r as i64 })
    }

    /// The steps applied to (f, g): exact, since their lowest 62 bits become zero.
    fn apply(&self, f: &Signed, g: &Signed) -> (Signed, Signed) {
        let row = |a: i64, b: i64| {
            let mut result = [0; 5];
            let mut sum = wide(a, f[0]) + wide(b, g[0]);
            for i in 1..5 {
                sum >>= BITS;
                sum += wide(a, f[i]) + wide(b, g[i]);
                result[i - 1] = sum as i64 & MASK as i64;
            }
            result[4] = (sum >> BITS) as i64;
            result
        };
        (row(self.u, self.v), row(self.q, self.r))
    }
}

/// The product of two limbs.
fn wide(a: i64, b: i64) -> i128 {
    i128::from(a) * i128::from(b)
}

/// a + sign·b.
fn carried(a: Signed, b: Signed, sign: i64) -> Signed {
    let mut result = [0; 5];
    let mut sum = 0;
    for i in 0..5 {
        sum += a[i] + sign * b[i];
        result[i] = sum & MASK as i64;
        sum >>= BITS;
    }
    // The last limb keeps its sign.
    result[4] |= sum << BITS;
    result
}

/// 64-bit limbs as limbs of 62 bits.
const fn split(x: [u64; 4]) -> Signed {
    [
        (x[0] & MASK) as i64,
        ((x[0] >> 62 | x[1] << 2) & MASK) as i64,
        ((x[1] >> 60 | x[2] << 4) & MASK) as i64,
        ((x[2] >> 58 | x[3] << 6) & MASK) as i64,
        (x[3] >> 56) as i64,
    ]
}

/// Limbs of 62 bits of a number in 0..2^256 as 64-bit limbs.
fn join(x: Signed) -> [u64; 4] {
    let x = x.map(|limb| limb as u64);
    [x[0] | x[1] << 62, x[1] >> 2 | x[2] << 60, x[2] >> 4 | x[3] << 58, x[3] >> 6 | x[4] << 56]
}

#[cfg(test)]
mod tests {
    use k256::Scalar;
    use k256::elliptic_curve::ff::{Field as _, PrimeField};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::limbs::limbs;

    /// The order of the group, one above the greatest scalar.
    fn order() -> [u64; 4] {
        let [lowest, rest @ ..] = limbs(&(-Scalar::ONE).to_bytes().into());
        [lowest + 1, rest[0], rest[1], rest[2]]
    }

    fn check(x: Scalar) {
        let inverse = Modulus::new(order()).invert(limbs(&x.to_bytes().into()));
        assert_eq!(inverse, limbs(&x.invert().unwrap().to_bytes().into()), "{x:?}");
    }

    #[test]
    fn inverses_are_those_of_the_plain_crate() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for small in 1..1000u64 {
            check(Scalar::from(small));
            check(-Scalar::from(small));
        }
        let mut power = Scalar::ONE;
        for _ in 0..512 {
            check(power);
            check(power - Scalar::ONE + Scalar::from(2u64));
            power = power.double();
        }
        for _ in 0..20_000 {
            let bytes: [u8; 32] = random.random();
            check(Option::from(Scalar::from_repr(bytes.into())).unwrap_or(Scalar::ONE));
        }
    }
}
