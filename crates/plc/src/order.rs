//! The order in which the operations of one identity are judged, and in which its audit log has them: that of
//! their times, whatever the order in which they came.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::cid::Cid;
use super::operation::Operation;
use super::timestamp::Timestamp;

/// Puts statements of one identity's operations in the order in which they are judged: by time. Of equal times
/// what `prev` names comes before what names it; of two that do not build on each other the one that builds on the
/// earlier operation, so that what is overruled in a millisecond cannot be built on in the same; and of two that
/// build on the same one that with the lower CID.
///
/// `time` is the `createdAt` of an item, `signed` its signed bytes, which are only read where times are equal.
pub fn sort<T>(
    items: &mut Vec<T>,
    time: impl Fn(&T) -> Timestamp,
    signed: impl for<'a> Fn(&'a T) -> &'a [u8],
) {
    if !items.is_sorted_by_key(&time) {
        items.sort_by_key(&time);
    }
    if items.windows(2).all(|pair| time(&pair[0]) < time(&pair[1])) {
        return;
    }
    let mut times: HashMap<Cid, Timestamp> = HashMap::with_capacity(items.len());
    for item in items.iter() {
        times.entry(Cid::of(signed(item))).or_insert_with(|| time(item));
    }
    let mut sorted = Vec::with_capacity(items.len());
    let mut rest = std::mem::take(items).into_iter().peekable();
    while let Some(first) = rest.next() {
        let at = time(&first);
        let mut tied = vec![first];
        while let Some(next) = rest.next_if(|next| time(next) == at) {
            tied.push(next);
        }
        if tied.len() == 1 {
            sorted.append(&mut tied);
        } else {
            sorted.extend(after_their_prev(tied, &times, &signed));
        }
    }
    *items = sorted;
}

/// Items of one time, each after the one that its `prev` names, if that is among them. `times` are those of all
/// operations that are known.
fn after_their_prev<T>(
    items: Vec<T>,
    times: &HashMap<Cid, Timestamp>,
    signed: impl for<'a> Fn(&'a T) -> &'a [u8],
) -> Vec<T> {
    let cids: Vec<Cid> = items.iter().map(|item| Cid::of(signed(item))).collect();
    let prevs: Vec<Option<Cid>> = items.iter().map(|item| prev(signed(item))).collect();
    let rank = |index: usize| {
        let prev_time = prevs[index].and_then(|prev| times.get(&prev));
        // What builds on nothing that is known is refused wherever it stands.
        let prev_time = prev_time.map_or(i64::MAX, |time| time.millis());
        Reverse((prev_time, cids[index], index))
    };
    // A CID that stands here twice is the same operation, stated twice.
    let here: HashSet<Cid> = cids.iter().copied().collect();
    let mut followers: HashMap<Cid, Vec<usize>> = HashMap::new();
    let mut ready = BinaryHeap::new();
    for (index, prev) in prevs.iter().enumerate() {
        match prev.filter(|prev| here.contains(prev)) {
            Some(prev) => followers.entry(prev).or_default().push(index),
            None => ready.push(rank(index)),
        }
    }
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    let mut sorted = Vec::with_capacity(items.len());
    while let Some(Reverse((_, cid, index))) = ready.pop() {
        sorted.extend(items[index].take());
        // With the first statement of an operation what follows it is ready.
        ready.extend(followers.remove(&cid).unwrap_or_default().into_iter().map(rank));
    }
    sorted
}

/// The operation that `prev` names.
fn prev(signed: &[u8]) -> Option<Cid> {
    Operation::read(signed).ok()?.prev_cid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Received;
    use plc_testkit::builder::Story;

    fn received(story: &Story) -> Vec<Received> {
        let lines = story.log().iter().map(|entry| entry.sequenced_line());
        lines.map(|line| Received::decode(line.as_bytes()).unwrap()).collect()
    }

    fn sorted(mut items: Vec<Received>) -> Vec<Cid> {
        sort(&mut items, |item| item.created_at, |item| &item.signed);
        items.iter().map(|item| item.cid).collect()
    }

    #[test]
    fn equal_times_are_in_the_order_of_the_chain() {
        let mut story = Story::seeded(1);
        let alice = story.create().accepted();
        for _ in 0..6 {
            story.update(&alice).at(&alice.created_at.to_string()).accepted();
        }
        let told = received(&story);
        let expected: Vec<Cid> = told.iter().map(|item| item.cid).collect();
        assert_eq!(sorted(told.iter().rev().cloned().collect()), expected);
        // An operation that is stated twice stands where it would once.
        let twice = sorted(told.iter().chain(told.iter().rev()).cloned().collect());
        let mut seen = HashSet::new();
        let once: Vec<Cid> = twice.into_iter().filter(|cid| seen.insert(*cid)).collect();
        assert_eq!(once, expected);
    }

    /// What is overruled in a millisecond cannot be built on in the same.
    #[test]
    fn what_builds_on_the_earlier_operation_is_first() {
        for seed in 0..8 {
            let mut story = Story::seeded(seed);
            let (recovery, alice) = (story.recovery.clone(), story.create().accepted());
            let stolen = story.update(&alice).accepted();
            let back = story.after(&alice).signed_by(&recovery).accepted();
            story.after(&stolen).at(&back.created_at.to_string()).refused("prev-nullified");
            let told = received(&story);
            let expected: Vec<Cid> = told.iter().map(|item| item.cid).collect();
            assert_eq!(sorted(told.clone()), expected);
            assert_eq!(sorted(told.into_iter().rev().collect()), expected);
        }
    }

    #[test]
    fn where_prev_says_nothing_the_lower_cid_is_first() {
        let mut story = Story::seeded(2);
        let alice = story.create().accepted();
        story.update(&alice).at(&alice.created_at.to_string()).handle("one.example").accepted();
        let recovery = story.recovery.clone();
        story.after(&alice).signed_by(&recovery).at(&alice.created_at.to_string()).accepted();
        let told = received(&story);
        let mut branches = [told[1].cid, told[2].cid];
        branches.sort();
        let expected = [told[0].cid, branches[0], branches[1]];
        assert_eq!(sorted(told.clone()), expected);
        assert_eq!(sorted(told.into_iter().rev().collect()), expected);
    }
}
