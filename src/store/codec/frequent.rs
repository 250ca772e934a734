//! Which texts come often, in memory that does not grow.

/// Places of the table: a text that comes more often than once in so many is found.
const PLACES: usize = 1 << 15;
/// Occurrences after which a text is given a number while there are few numbers. A number costs a
/// row of 80 bytes once and saves 30 bytes each time.
const OFTEN: u32 = 16;
/// For each part of the table of numbers that is taken, a text has to come twice as often: whoever
/// wants to fill it up with worthless texts pays ever more operations for a number.
const PARTS: u32 = 8;

/// Counts texts in a fixed table: each text has one place, and a place counts one text at a time. Another
/// text that comes to the place lowers the count, and takes the place over at zero, so that
/// frequent texts stay and rare ones wash out.
#[derive(Debug)]
pub(super) struct Frequent {
    places: Box<[Counted]>,
    /// Keyed at random: nobody can aim at the place of a text.
    hasher: ahash::RandomState,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    /// Part of the hash that does not choose the place.
    fingerprint: u32,
    count: u32,
}

impl Frequent {
    pub(super) fn new() -> Frequent {
        Frequent {
            places: vec![Counted::default(); PLACES].into(),
            hasher: ahash::RandomState::new(),
        }
    }

    /// Counts an occurrence. True when the text has come often enough for a number, of which
    /// `taken` of `most` are given already.
    pub(super) fn is_often(&mut self, text: &str, taken: usize, most: usize) -> bool {
        let hash = self.hasher.hash_one(text);
        let fingerprint = (hash >> 32) as u32;
        let place = &mut self.places[hash as usize % PLACES];
        if place.fingerprint == fingerprint {
            place.count += 1;
        } else if place.count > 1 {
            place.count -= 1;
        } else {
            *place = Counted { fingerprint, count: 1 };
        }
        let parts_taken = (taken * PARTS as usize / most) as u32;
        place.fingerprint == fingerprint && place.count >= OFTEN << parts_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequent_text_is_found_among_many_rare_ones() {
        let mut frequent = Frequent::new();
        let found = (0..200_000).find(|number| {
            frequent.is_often(&format!("rare {number}"), 0, 100);
            number % 1000 == 0 && frequent.is_often("frequent", 0, 100)
        });
        assert!(found.is_some_and(|number| number < 50_000), "{found:?}");
    }

    #[test]
    fn the_fuller_the_table_the_more_often_a_text_has_to_come() {
        let often = |taken| {
            let mut frequent = Frequent::new();
            (1..).find(|_| frequent.is_often("text", taken, 1000)).unwrap()
        };
        assert_eq!([often(0), often(500), often(999)], [16, 256, 2048]);
    }
}
