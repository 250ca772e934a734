//! What an upstream has said, and when: what an answer that states its age has to hold.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use did_plc::Timestamp;

/// How long something may be on its way to a follower on a busy machine.
pub const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// What was said so far.
#[derive(Debug, Default)]
pub struct Telling(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    said: Vec<Said>,
    /// Where the operations of each identity stand in it.
    of: HashMap<String, Vec<usize>>,
}

/// An operation that the upstream had at a time.
#[derive(Debug, Clone)]
pub struct Said {
    /// The identity.
    pub did: String,
    /// The CID.
    pub cid: String,
    /// The number.
    pub sequence: i64,
    /// When it was said.
    pub at: Timestamp,
}

impl Telling {
    /// This is said now. Numbers rise.
    pub fn note(&self, did: &str, cid: &str, sequence: i64) {
        let at = Timestamp::from(SystemTime::now());
        let mut told = self.told();
        let place = told.said.len();
        told.said.push(Said { did: did.to_owned(), cid: cid.to_owned(), sequence, at });
        told.of.entry(did.to_owned()).or_default().push(place);
    }

    /// All of it, in its order.
    pub fn all(&self) -> Vec<Said> {
        self.told().said.clone()
    }

    /// The last number.
    pub fn last(&self) -> i64 {
        self.told().said.last().map_or(0, |said| said.sequence)
    }

    /// When the first operation after a number was said.
    pub fn next_after(&self, sequence: i64) -> Option<Timestamp> {
        let told = self.told();
        let next = told.said.partition_point(|said| said.sequence <= sequence);
        told.said.get(next).map(|said| said.at)
    }

    /// How many operations of an identity an answer has to hold that states this number and this time. What was said so
    /// long before that time has to be in it: the time is that at which the follower had heard all, and while something
    /// is on its way there it has not.
    pub fn promised(
        &self,
        did: &str,
        sequence: i64,
        as_of: Option<Timestamp>,
        on_its_way: Duration,
    ) -> usize {
        let told = self.told();
        let is_promised = |said: &Said| {
            said.sequence <= sequence || as_of.is_some_and(|as_of| said.at < as_of - on_its_way)
        };
        told.of(did).filter(|said| is_promised(said)).count()
    }

    /// How many operations of an identity there were when this one was its newest; none of one that was not said.
    pub fn held_with(&self, did: &str, cid: &str) -> Option<usize> {
        let told = self.told();
        let place = told.of(did).position(|said| said.cid == cid);
        place.map(|place| place + 1)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn of(&self, did: &str) -> impl Iterator<Item = &Said> {
        self.of.get(did).into_iter().flatten().map(|place| &self.said[*place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_to_hold_what_it_states() {
        let told = Telling::default();
        for (sequence, did) in [(1, "alice"), (2, "bob"), (4, "alice"), (7, "alice")] {
            told.note(did, &format!("cid-{sequence}"), sequence);
        }
        let promised = |sequence, as_of| told.promised("alice", sequence, as_of, ON_ITS_WAY);
        assert_eq!((promised(0, None), promised(3, None), promised(6, None)), (0, 1, 2));
        // By the time of the answer all of it was said; what was said just now may be on its way.
        let now = Timestamp::from(SystemTime::now());
        assert_eq!(promised(1, Some(now)), 1);
        assert_eq!(promised(1, Some(now + 2 * ON_ITS_WAY)), 3);
        assert_eq!(told.promised("carol", 9, None, ON_ITS_WAY), 0);

        assert_eq!(told.held_with("alice", "cid-4"), Some(2));
        assert_eq!(told.held_with("alice", "cid-2"), None);
        assert_eq!(told.next_after(4), told.all().last().map(|said| said.at));
        assert_eq!((told.next_after(7), told.last()), (None, 7));
    }
}
