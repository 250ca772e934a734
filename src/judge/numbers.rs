//! Which operation has a sequence number after a batch. A number is an unsigned statement of one upstream, and
//! decides no verdict: the operation for which it was stated last has it.

use ahash::AHashMap;

use did_plc::entry::Received;
use did_plc::{Cid, Did};

/// An operation, as numbers are given to it.
pub type Holder = (Did, Cid);

/// The numbers that the lines of a batch state for operations.
#[derive(Debug, Default)]
pub struct Numbers {
    /// The last line that states each number, and for which operation.
    stated: AHashMap<i64, (usize, Holder)>,
    /// The last line that states a number of each operation, and which.
    of: AHashMap<Holder, (usize, i64)>,
}

impl Numbers {
    /// Takes in that a line states a number for an operation.
    pub fn state(&mut self, line: usize, received: &Received) {
        let Some(number) = received.sequence else { return };
        let holder = (received.did, received.cid);
        let is_later = |before: Option<usize>| before.is_none_or(|before| before <= line);
        if is_later(self.stated.get(&number).map(|(before, _)| *before)) {
            self.stated.insert(number, (line, holder));
        }
        if is_later(self.of.get(&holder).map(|(before, _)| *before)) {
            self.of.insert(holder, (line, number));
        }
    }

    /// Leaves numbers to the operations that have them already, whatever is stated.
    pub fn leave_all(&mut self, holders: &AHashMap<i64, Holder>) {
        for (number, holder) in holders {
            if self.holder(*number) != Some(*holder) {
                self.stated.insert(*number, (usize::MAX, *holder));
            }
        }
    }

    /// Leaves a number to this operation where the batch states it for none.
    pub fn leave(&mut self, number: i64, holder: Holder) {
        self.stated.entry(number).or_insert((usize::MAX, holder));
    }

    /// The operation that has this number now, if the batch says so.
    pub fn holder(&self, number: i64) -> Option<Holder> {
        self.stated.get(&number).map(|(_, holder)| *holder)
    }

    /// The line that says which operation has this number now.
    pub fn line(&self, number: i64) -> Option<usize> {
        self.stated.get(&number).map(|(line, _)| *line)
    }

    /// The number of an operation that had this one before the batch.
    pub fn number(&self, holder: Holder, before: Option<i64>) -> Option<i64> {
        let stated = self.of.get(&holder).map(|(_, number)| *number);
        let has = |number: &i64| self.holder(*number).is_none_or(|of| of == holder);
        stated.filter(has).or(before.filter(has))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::Timestamp;

    fn holder(operation: u8) -> Holder {
        (Did::from_bytes([operation; 15]), Cid::of(&[operation]))
    }

    fn stating(number: i64, operation: u8) -> Received {
        let (did, cid) = holder(operation);
        Received {
            did,
            cid,
            stated_cid: None,
            created_at: Timestamp::from_millis(0),
            sequence: Some(number),
            nullified: None,
            received_at: None,
            signed: bytes::Bytes::new(),
        }
    }

    #[test]
    fn the_last_statement_stands() {
        let mut numbers = Numbers::default();
        for (line, received) in [stating(7, 1), stating(7, 2), stating(8, 1)].iter().enumerate() {
            numbers.state(line, received);
        }
        assert_eq!(numbers.holder(7), Some(holder(2)));
        assert_eq!(numbers.number(holder(1), Some(3)), Some(8));
        assert_eq!(numbers.number(holder(2), None), Some(7));
        // Who had a number loses it to the one it is stated for now.
        assert_eq!(numbers.number(holder(3), Some(7)), None);
        assert_eq!(numbers.number(holder(3), Some(9)), Some(9));
    }

    #[test]
    fn lines_may_come_in_any_order() {
        let mut numbers = Numbers::default();
        numbers.state(1, &stating(7, 2));
        numbers.state(0, &stating(7, 1));
        assert_eq!(numbers.number(holder(1), None), None);
        assert_eq!(numbers.number(holder(2), None), Some(7));
    }

    #[test]
    fn a_number_that_is_stated_for_none_is_left_to_the_first() {
        let mut numbers = Numbers::default();
        numbers.state(0, &stating(7, 1));
        numbers.leave(7, holder(2));
        numbers.leave(8, holder(2));
        numbers.leave(8, holder(3));
        assert_eq!(numbers.number(holder(2), Some(7)), None);
        assert_eq!(numbers.number(holder(2), Some(8)), Some(8));
        assert_eq!(numbers.number(holder(3), Some(8)), None);
    }

    #[test]
    fn numbers_that_are_left_to_who_has_them_are_not_taken() {
        let mut numbers = Numbers::default();
        numbers.state(0, &stating(7, 1));
        numbers.state(1, &stating(8, 1));
        numbers.leave_all(&AHashMap::from_iter([(8, holder(2))]));
        assert_eq!(numbers.number(holder(2), Some(8)), Some(8));
        assert_eq!(numbers.number(holder(1), Some(5)), Some(5));
    }
}
