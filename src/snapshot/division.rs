//! Which sequence numbers stand in which file.

use did_plc::sequence::MAX_SEQUENCE;

/// Sequence numbers of a file, unless something else is asked for: some 75 MB of lines, 20 MB as they are kept. A log
/// of 150 million operations is 1,500 such files, of which a reader fetches many beside each other, holds a few, and
/// fetches one again in seconds.
pub const NUMBERS_PER_FILE: i64 = 100_000;

/// Sequence numbers of a file at most: what is fetched, checked and fetched again as a whole stays below some
/// gigabytes.
pub const MAX_NUMBERS_PER_FILE: i64 = 10_000_000;

/// Divides the sequence numbers into ranges of equal length, one for each file: of 100,000 the first is 1 to 100,000. So
/// what a file holds follows from the log alone. It does not depend on when, in how many runs, or by whom it was written,
/// and an operation that comes late under an old number changes one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    numbers: i64,
}

impl Division {
    /// Into ranges of so many numbers; none where that is less than one or more than [`MAX_NUMBERS_PER_FILE`].
    pub fn into_ranges_of(numbers: i64) -> Option<Division> {
        (1..=MAX_NUMBERS_PER_FILE).contains(&numbers).then_some(Division { numbers })
    }

    /// Numbers of each range.
    pub fn numbers(self) -> i64 {
        self.numbers
    }

    /// The place, from 0, of the range in which a number stands.
    pub fn place_of(self, number: i64) -> i64 {
        (number - 1).div_euclid(self.numbers)
    }

    /// The number before the first of a range.
    pub fn before(self, place: i64) -> i64 {
        place.saturating_mul(self.numbers)
    }

    /// The last number of a range.
    pub fn last_of(self, place: i64) -> i64 {
        self.before(place).saturating_add(self.numbers).min(MAX_SEQUENCE)
    }
}

impl Default for Division {
    fn default() -> Division {
        Division { numbers: NUMBERS_PER_FILE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_one_another() {
        let by_ten = Division::into_ranges_of(10).unwrap();
        for (number, place) in [(1, 0), (10, 0), (11, 1), (20, 1), (21, 2)] {
            assert_eq!(by_ten.place_of(number), place, "{number}");
            assert!(by_ten.before(place) < number && number <= by_ten.last_of(place), "{number}");
        }
        for refused in [0, -1, MAX_NUMBERS_PER_FILE + 1] {
            assert_eq!(Division::into_ranges_of(refused), None);
        }
        let last = Division::default().place_of(MAX_SEQUENCE);
        assert_eq!(Division::default().last_of(last), MAX_SEQUENCE);
    }
}
