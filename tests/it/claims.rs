//! The index of claims, on each backend: whatever comes in which order, it has the same pairs as a
//! scan of the log.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use plc_replica::generate::Generated;
use plc_replica::generate::builder::Story;
use plc_replica::plc::claim::{Kind, Value, claims};
use plc_replica::plc::{Did, Operation, Timestamp};
use plc_replica::store::claims::pairs;
use plc_replica::store::{Commit, Lease, Store, StoredOperation};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::follow::places;

const UPSTREAM: &str = "https://plc.example";

fn stored(entry: &Generated) -> StoredOperation {
    StoredOperation {
        did: entry.did.parse().unwrap(),
        created_at: entry.created_at.parse().unwrap(),
        sequence: Some(entry.seq),
        signed: Bytes::from(entry.signed.clone()),
        signer: 0,
        nullified_by: None,
        received_at: Timestamp::from_millis(0),
    }
}

/// Identities that share hosts and keys, and move.
fn told(seed: u64, identities: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(seed);
    let host = |n: usize| format!("https://pds{}.example.com", n % 3);
    let told: Vec<_> =
        (0..identities).map(|n| story.create().host(&host(n)).accepted()).collect();
    for (n, identity) in told.iter().enumerate() {
        story.update(identity).host(&host(n + 1)).accepted();
        story.update(identity).handle(&format!("moved{n}.example.com")).accepted();
    }
    story.log().iter().map(stored).collect()
}

/// All operations, those without a number too.
pub async fn everything(store: &Store) -> Vec<StoredOperation> {
    store.next_histories(None, 10_000_000).await.unwrap()
}

/// Compares the index with a scan of the log, up to where it says that it is.
pub async fn assert_index(store: &Store) {
    let held = everything(store).await;
    let Some(index) = store.claims_index().await.unwrap() else { return };
    let has = |operation: &&StoredOperation| match operation.sequence {
        None => index.begun,
        Some(sequence) => sequence <= index.sequence,
    };
    let expected = pairs(held.iter().filter(has)).unwrap();
    assert_eq!(store.absent_claims(&expected).await.unwrap(), [0i64; 0], "{index:?}");
    if index.is_complete() {
        assert_eq!(index.pairs, expected.len() as u64, "more, or counted wrongly");
    }
}

/// Asks for every value that was ever claimed, in pages.
async fn assert_found(store: &Store) {
    let mut claimants: BTreeMap<Value<'static>, BTreeSet<Did>> = BTreeMap::new();
    let held = everything(store).await;
    for stored in &held {
        let operation = Operation::read(&stored.signed).unwrap();
        for (value, _) in claims(&operation) {
            let value = Value { kind: value.kind, text: value.text.into_owned().into() };
            claimants.entry(value).or_default().insert(stored.did);
        }
    }
    for (value, dids) in &claimants {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = store.claimants(value, after, 2).await.unwrap();
            found.extend(page.dids);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert!(found.is_sorted_by(|a, b| a < b), "{value:?}: {found:?}");
        let found = BTreeSet::from_iter(found);
        assert!(dids.is_subset(&found), "{value:?}");
    }
    let nobody = Value::asked(Kind::Handle, "nobody.example").unwrap();
    assert_eq!(store.claimants(&nobody, None, 10).await.unwrap().dids, []);
}

async fn build(store: &Store, steps: usize, limit: usize) {
    for _ in 0..steps {
        store.build_claims(limit).await.unwrap();
    }
}

async fn commit(store: &Store, lease: &Lease, commit: Commit) {
    let cursor_before = store.source().await.unwrap().unwrap().cursor;
    let last = commit.operations.iter().filter_map(|operation| operation.sequence).max();
    let cursor_after = last.unwrap_or(0).max(cursor_before);
    let commit = Commit { cursor_before, cursor_after, ..commit };
    store.commit(lease, &commit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_kept_or_built_or_both() {
    let operations = told(51, 12);
    let count = operations.len();
    for place in places().await {
        let store = Store::open(&place.url).await.unwrap();
        assert_eq!(store.claims_index().await.unwrap(), None);
        store.keep_claims().await.unwrap();
        assert_eq!(store.claims_index().await.unwrap(), None, "nothing is followed");
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let commit = async |store: &Store, places: std::ops::Range<usize>| {
            let operations = operations[places].to_vec();
            commit(store, &lease, Commit { operations, ..Commit::default() }).await;
            assert_index(store).await;
        };
        // Without one, which is how it begins.
        commit(&store, 0..9).await;
        store.keep_claims().await.unwrap();
        assert!(!store.claims_index().await.unwrap().unwrap().is_complete());
        build(&store, 2, 1).await;
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        assert_index(&store).await;
        // Kept by the commits; not while the log is caught up.
        commit(&store, 9..14).await;
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        store.set_durability(false).await.unwrap();
        commit(&store, 14..20).await;
        let behind = store.claims_index().await.unwrap().unwrap();
        assert_eq!((behind.sequence, behind.highest), (14, 20));
        store.set_durability(true).await.unwrap();
        commit(&store, 20..23).await;
        assert_eq!(store.claims_index().await.unwrap().unwrap().sequence, 14, "there is a gap");
        build(&store, 1, 1000).await;
        commit(&store, 23..25).await;
        assert_eq!(store.claims_index().await.unwrap().unwrap().sequence, 25);
        store.release(lease.clone()).await.unwrap();
        drop(store);
        // A process that does not keep it leaves it behind.
        let store = Store::open(&place.url).await.unwrap();
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let commit = async |store: &Store, places: std::ops::Range<usize>| {
            let operations = operations[places].to_vec();
            self::commit(store, &lease, Commit { operations, ..Commit::default() }).await;
            assert_index(store).await;
        };
        commit(&store, 25..30).await;
        assert_eq!(store.claims_index().await.unwrap().unwrap().sequence, 25);
        store.keep_claims().await.unwrap();
        build(&store, 1, 2).await;
        commit(&store, 30..count).await;
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        assert_found(&store).await;
    }
}

/// Commits of any kind in any order, with builders in between: what is said to be in the index is.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_passed_over() {
    for seed in 0..6 {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let mut operations = told(60 + seed, 10);
        // Some have no number at first, some come late, some far ahead.
        let mut unnumbered: Vec<StoredOperation> = Vec::new();
        for operation in &mut operations {
            if random.random_bool(0.2) {
                let without = StoredOperation { sequence: None, ..operation.clone() };
                unnumbered.push(without);
                operation.sequence = operation.sequence.map(|sequence| sequence + 1000);
            }
        }
        let renumbered: Vec<StoredOperation> =
            operations.extract_if(.., |of| of.sequence > Some(1000)).collect();
        for place in operations.len() / 3..operations.len() / 2 {
            let other = random.random_range(0..operations.len());
            operations.swap(place, other);
        }
        for place in places().await {
            let mut store = Store::open(&place.url).await.unwrap();
            let (mut lease, _) = store.follow(UPSTREAM).await.unwrap();
            let mut left = operations.clone();
            left.reverse();
            let (mut without, mut numbers) = (unnumbered.clone(), renumbered.clone());
            let mut held_without: Vec<StoredOperation> = Vec::new();
            while !left.is_empty() || !without.is_empty() {
                match random.random_range(0..8) {
                    0 => store.keep_claims().await.unwrap(),
                    1 | 2 => store.build_claims(random.random_range(1..9)).await.unwrap(),
                    3 => store.set_durability(random.random_bool(0.5)).await.unwrap(),
                    4 => {
                        store.release(lease).await.unwrap();
                        store = Store::open(&place.url).await.unwrap();
                        lease = store.follow(UPSTREAM).await.unwrap().0;
                    }
                    _ => {
                        let count = random.random_range(1..5).min(left.len());
                        let mut new = left.split_off(left.len() - count);
                        if random.random_bool(0.3) {
                            let count = random.random_range(0..4).min(without.len());
                            let more = without.split_off(without.len() - count);
                            held_without.extend(more.iter().cloned());
                            new.extend(more);
                        }
                        new.shuffle(&mut random);
                        let mut numbered = Vec::new();
                        if random.random_bool(0.3) {
                            held_without.retain(|held| {
                                let is_it = |of: &StoredOperation| {
                                    (of.did, of.created_at) == (held.did, held.created_at)
                                };
                                let fresh = new.iter().any(is_it);
                                match numbers.iter().position(is_it).filter(|_| !fresh) {
                                    Some(at) => {
                                        let of = numbers.swap_remove(at);
                                        let number = of.sequence.unwrap();
                                        numbered.push((of.did, of.created_at, number));
                                        false
                                    }
                                    None => true,
                                }
                            });
                        }
                        let new = Commit { operations: new, numbered, ..Commit::default() };
                        commit(&store, &lease, new).await;
                    }
                }
                assert_index(&store).await;
            }
            store.keep_claims().await.unwrap();
            for _ in 0..200 {
                if store.claims_index().await.unwrap().unwrap().is_complete() {
                    break;
                }
                store.build_claims(3).await.unwrap();
                assert_index(&store).await;
            }
            assert!(store.claims_index().await.unwrap().unwrap().is_complete());
            assert_index(&store).await;
            assert_found(&store).await;
        }
    }
}
