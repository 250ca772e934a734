//! The order in which the operations of one identity are judged, and in which its audit log has them: that of
//! their times, whatever the order in which they came.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::cid::Cid;
use super::operation::Operation;
use super::timestamp::Timestamp;

/// Puts statements of one identity's operations in the order in which they are judged: by time; of equal times
/// what `prev` names before what names it, and where that says nothing the lower CID.
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
            sorted.extend(after_their_prev(tied, &signed));
        }
    }
    *items = sorted;
}

/// Items of one time, each after the one that its `prev` names, if that is among them.
fn after_their_prev<T>(items: Vec<T>, signed: impl for<'a> Fn(&'a T) -> &'a [u8]) -> Vec<T> {
    let cids: Vec<Cid> = items.iter().map(|item| Cid::of(signed(item))).collect();
    let prevs: Vec<Option<Cid>> = items.iter().map(|item| prev(signed(item))).collect();
    let here: HashSet<Cid> = cids.iter().copied().collect();
    let mut followers: HashMap<Cid, Vec<usize>> = HashMap::new();
    let mut ready = BinaryHeap::new();
    for (index, prev) in prevs.iter().enumerate() {
        match prev.filter(|prev| here.contains(prev)) {
            Some(prev) => followers.entry(prev).or_default().push(index),
            None => ready.push(Reverse((cids[index], index))),
        }
    }
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    let mut sorted = Vec::with_capacity(items.len());
    while let Some(Reverse((cid, index))) = ready.pop() {
        sorted.extend(items[index].take());
        // With the first statement of an operation what follows it is ready.
        let freed = followers.remove(&cid).unwrap_or_default();
        ready.extend(freed.into_iter().map(|index| Reverse((cids[index], index))));
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
