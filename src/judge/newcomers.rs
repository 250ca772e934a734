//! Which identities are certainly not in the store: of those nothing has to be read, and while a log is read for the
//! first time that is most.

use ahash::RandomState;
use fastbloom::BloomFilter;

use did_plc::Did;

/// Bits for each identity: one in three hundred that is not there is looked for in vain.
const BITS: usize = 12;
/// Identities of the first filter, and of the largest one: each is twice as large as the one before, so that little is
/// set aside for what does not come.
const ROOM: (usize, usize) = (1 << 18, 1 << 24);

/// The identities that a store holds since it was empty, in a byte and a half each; some others pass for such.
pub struct Newcomers {
    filters: Vec<Filter>,
}

struct Filter {
    bits: BloomFilter<RandomState>,
    /// Identities that still find room.
    room: usize,
}

impl Filter {
    fn with_room_for(identities: usize) -> Filter {
        let bits = BloomFilter::with_num_bits(identities * BITS);
        let bits = bits.hasher(RandomState::new()).expected_items(identities);
        Filter { bits, room: identities }
    }
}

impl Newcomers {
    /// Of an empty store.
    pub fn of_nothing() -> Newcomers {
        Newcomers { filters: vec![Filter::with_room_for(ROOM.0)] }
    }

    /// Whether the store does not hold this identity.
    pub fn is_new(&self, did: &Did) -> bool {
        !self.filters.iter().any(|filter| filter.bits.contains(did))
    }

    /// It holds this one from now on.
    pub fn add(&mut self, did: &Did) {
        if !self.is_new(did) {
            return;
        }
        if self.filters.last().is_none_or(|last| last.room == 0) {
            let room = ROOM.1.min(ROOM.0 << self.filters.len());
            self.filters.push(Filter::with_room_for(room));
        }
        if let Some(last) = self.filters.last_mut() {
            last.bits.insert(did);
            last.room -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(number: u64) -> Did {
        let mut bytes = [0; 15];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        Did::from_bytes(bytes)
    }

    #[test]
    fn what_is_held_is_never_new_and_few_others_are_taken_for_it() {
        let mut newcomers = Newcomers::of_nothing();
        let held = 3 * ROOM.0 as u64;
        for number in 0..held {
            newcomers.add(&did(number));
        }
        assert!(newcomers.filters.len() > 1);
        assert!((0..held).all(|number| !newcomers.is_new(&did(number))));
        let others = (held..2 * held).filter(|number| !newcomers.is_new(&did(*number))).count();
        assert!(others < held as usize / 100, "{others} of {held}");
    }
}
