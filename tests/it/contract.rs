//! What a store promises, the same of both backends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use did_plc::{Cid, Did, Timestamp};
use plc_replica::store::codec::is_genesis;
use plc_replica::store::{
    Commit, Lease, NewDivergence, NewRefusal, Rejudged, Source, Store, StoreError, StoredOperation,
};
use plc_testkit::Generated;
use plc_testkit::builder::{RECOVERY_WINDOW, Story};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tempfile::TempDir;

use plc_testkit::postgres::Database;

const UPSTREAM: &str = "https://plc.example";
/// When every batch arrives.
const RECEIVED: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// Where a store is.
pub enum Place {
    Sqlite(TempDir),
    Postgres(Database),
}

impl Place {
    pub fn sqlite() -> Option<Place> {
        Some(Place::Sqlite(tempfile::tempdir().unwrap()))
    }

    pub async fn postgres() -> Option<Place> {
        Database::create().await.map(Place::Postgres)
    }

    pub async fn open(&self) -> Store {
        let url = match self {
            Place::Sqlite(folder) => {
                format!("sqlite://{}", folder.path().join("plc.db").display())
            }
            Place::Postgres(database) => database.url.clone(),
        };
        Store::open(&url).await.unwrap()
    }
}

/// Makes a test of each backend out of each function.
macro_rules! contract {
    ($($name:ident,)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Place::sqlite().unwrap()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = super::Place::postgres().await {
                    super::$name(place).await;
                }
            })*
        }
    };
}

contract! {
    an_empty_store_has_nothing,
    what_is_committed_is_read_back,
    one_follower_writes,
    a_commit_starts_from_the_stored_cursor,
    a_commit_that_fails_leaves_nothing,
    one_upstream_is_remembered,
    numbers_come_later,
    late_arrivals_are_found,
    the_export_by_time_is_ordered_by_cid_within_a_millisecond,
    refusals_are_kept_once_and_judged_again,
    divergences_are_recorded_once,
    a_divergence_that_is_back_has_its_new_evidence,
    strings_of_strangers_come_back,
    any_sequence_of_commits_is_what_a_map_says,
    readers_see_whole_commits,
}

/// Tells operations of an identity or more; they are stored as they are told.
fn told(story: &Story) -> Vec<StoredOperation> {
    story.log().iter().map(stored).collect()
}

pub fn stored(entry: &Generated) -> StoredOperation {
    StoredOperation {
        did: entry.did.parse().unwrap(),
        created_at: entry.created_at.parse().unwrap(),
        sequence: Some(entry.seq),
        signed: Bytes::from(entry.signed.clone()),
        signer: 1,
        nullified_by: None,
        received_at: RECEIVED,
    }
}

/// Identities with two updates each, in turns.
fn identities(seed: u64, count: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(seed);
    let told_first: Vec<_> = (0..count).map(|_| story.create().accepted()).collect();
    for _ in 0..2 {
        for identity in &told_first {
            story.update(identity).accepted();
        }
    }
    told(&story)
}

fn commit_of(cursor_before: i64, operations: &[StoredOperation]) -> Commit {
    let last = operations.iter().filter_map(|operation| operation.sequence).max();
    Commit {
        cursor_before,
        cursor_after: last.unwrap_or(0).max(cursor_before),
        operations: operations.to_vec(),
        received_at_millis: RECEIVED.millis(),
        ..Commit::default()
    }
}

async fn follow(store: &Store) -> (Lease, Source) {
    store.follow(UPSTREAM).await.unwrap()
}

/// A store that was filled with one commit.
async fn filled(place: &Place, operations: &[StoredOperation]) -> (Store, Lease) {
    let store = place.open().await;
    let (lease, source) = follow(&store).await;
    store.commit(&lease, &commit_of(source.cursor, operations)).await.unwrap();
    (store, lease)
}

fn sorted(operations: &[StoredOperation]) -> Vec<StoredOperation> {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| (operation.did, operation.created_at));
    sorted
}

/// Compares every way to read with a list of the operations that the store must hold.
async fn assert_holds(store: &Store, operations: &[StoredOperation]) {
    let by_did = sorted(operations);
    let dids: BTreeSet<Did> = operations.iter().map(|operation| operation.did).collect();
    let mut asked: Vec<Did> = dids.iter().copied().collect();
    asked.push(Did::from_bytes([7; 15]));
    assert_eq!(store.histories(&asked).await.unwrap(), by_did);
    for did in &asked {
        let history: Vec<_> = by_did.iter().filter(|of| of.did == *did).cloned().collect();
        let head = history.iter().rfind(|operation| operation.nullified_by.is_none());
        assert_eq!(store.head(did).await.unwrap().as_ref(), head);
        assert_eq!(store.history(did).await.unwrap(), history);
    }

    let mut numbered: Vec<_> =
        operations.iter().filter(|operation| operation.sequence.is_some()).cloned().collect();
    numbered.sort_by_key(|operation| operation.sequence);
    assert_eq!(paged_by_sequence(store, 7).await, numbered);
    let last = numbered.last().and_then(|last| last.sequence);
    assert_eq!(store.last_sequence().await.unwrap(), last);
    let numbers: Vec<i64> =
        numbered.iter().filter_map(|operation| operation.sequence).step_by(3).collect();
    let mut asked = numbers.clone();
    asked.extend([0, -1, i64::MAX]);
    asked.reverse();
    let found = store.sequences(&asked).await.unwrap();
    assert_eq!(found.iter().filter_map(|found| found.sequence).collect::<Vec<_>>(), numbers);
    numbered.reverse();
    numbered.truncate(5);
    assert_eq!(store.latest(5).await.unwrap(), numbered);

    let mut by_time = operations.to_vec();
    by_time.sort_by_key(|operation| (operation.created_at, operation.cid().to_string()));
    assert_eq!(store.export_by_time(None, operations.len() + 1).await.unwrap(), by_time);
    if let Some(middle) = by_time.get(by_time.len() / 2) {
        let after: Vec<_> =
            by_time.iter().filter(|of| of.created_at > middle.created_at).cloned().collect();
        let limit = after.len().min(4);
        let page = store.export_by_time(Some(middle.created_at), limit).await.unwrap();
        assert_eq!(page, after[..limit]);
    }

    assert_eq!(paged_by_identity(store).await, by_did);
    let mut next = None;
    let mut walked = BTreeSet::new();
    while let Some(did) = store.next_identity(next).await.unwrap() {
        assert!(next.is_none_or(|before| before < did));
        walked.insert(did);
        next = Some(did);
    }
    assert_eq!(walked, dids);
    let statistics = store.statistics().await.unwrap();
    assert_eq!(statistics.operations, operations.len() as u64);
    let genesis = operations.iter().filter(|operation| is_genesis(&operation.signed));
    assert_eq!(statistics.identities, genesis.count() as u64);
    assert!(statistics.bytes > 0);
}

async fn paged_by_sequence(store: &Store, limit: usize) -> Vec<StoredOperation> {
    let mut all: Vec<StoredOperation> = Vec::new();
    loop {
        let after = all.last().and_then(|last| last.sequence).unwrap_or(0);
        let page = store.export_by_sequence(after, limit).await.unwrap();
        assert!(page.len() <= limit);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn paged_by_identity(store: &Store) -> Vec<StoredOperation> {
    let mut all: Vec<StoredOperation> = Vec::new();
    loop {
        let after = all.last().map(|last| last.did);
        let page = store.next_histories(after, 4).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn an_empty_store_has_nothing(place: Place) {
    let store = place.open().await;
    assert_eq!(store.source().await.unwrap(), None);
    assert_holds(&store, &[]).await;
    assert_eq!(store.refusals(None, 0, 10).await.unwrap(), []);
    assert_eq!(store.awaited(10).await.unwrap(), []);
    assert_eq!(store.divergences(None, None, None, 0, 10).await.unwrap(), []);
}

async fn what_is_committed_is_read_back(place: Place) {
    let mut story = Story::seeded(1);
    let alice = story.create().accepted();
    let bob = story.create_legacy().accepted();
    let stolen = story.update(&alice).accepted();
    story.update(&bob).handle("bob.example").accepted();
    let recovery = story.recovery.clone();
    story.after(&alice).signed_by(&recovery).later_than(&stolen, RECOVERY_WINDOW).accepted();
    story.tombstone(&bob).accepted();
    let mut operations = told(&story);

    let (store, lease) = filled(&place, &operations[..4]).await;
    let elsewhere = place.open().await;
    assert_holds(&store, &operations[..4]).await;
    assert_holds(&elsewhere, &operations[..4]).await;

    let by = operations[4].created_at;
    let nullified = (operations[2].did, operations[2].created_at, by);
    let commit =
        Commit { nullified: vec![nullified], caught_up: true, ..commit_of(4, &operations[4..]) };
    store.commit(&lease, &commit).await.unwrap();
    operations[2].nullified_by = Some(by);
    assert_holds(&store, &operations).await;
    assert_holds(&elsewhere, &operations).await;
    let source = elsewhere.source().await.unwrap().unwrap();
    assert_eq!((source.cursor, source.caught_up_at), (6, Some(RECEIVED)));
    assert_eq!(source.upstream, UPSTREAM);

    // What is nullified within the commit that brings it, and a time that is set once.
    let commit = Commit { received_at_millis: 5, caught_up: true, ..commit_of(6, &[]) };
    store.commit(&lease, &commit).await.unwrap();
    assert_eq!(store.source().await.unwrap().unwrap().caught_up_at, Some(RECEIVED));
    drop((store, elsewhere));
    assert_holds(&place.open().await, &operations).await;
}

async fn one_follower_writes(place: Place) {
    let store = place.open().await;
    let (first, source) = follow(&store).await;
    assert_eq!((source.cursor, source.epoch), (0, first.epoch));
    let other = place.open().await;
    for store in [&store, &other] {
        let refused = store.follow(UPSTREAM).await;
        assert!(matches!(refused, Err(StoreError::LostLease(_))), "{refused:?}");
    }
    let operations = identities(2, 4);
    store.renew(&first).await.unwrap();
    store.commit(&first, &commit_of(0, &operations[..6])).await.unwrap();

    store.release(first.clone()).await.unwrap();
    let (second, source) = follow(&other).await;
    assert_eq!((source.cursor, source.epoch), (6, first.epoch + 1));
    for refused in [
        store.commit(&first, &commit_of(6, &operations[6..])).await,
        other.commit(&first, &commit_of(6, &operations[6..])).await,
        other.renew(&first).await,
        other.set_upstream(&first, "https://elsewhere.example").await,
    ] {
        assert!(matches!(refused, Err(StoreError::LostLease(_))), "{refused:?}");
    }
    // Giving back what one does not have any more takes nothing from who has it.
    store.release(first).await.unwrap();
    other.commit(&second, &commit_of(6, &operations[6..])).await.unwrap();
    assert_holds(&store, &operations).await;
    assert_holds(&other, &operations).await;
}

async fn a_commit_starts_from_the_stored_cursor(place: Place) {
    let operations = identities(3, 2);
    let (store, lease) = filled(&place, &operations[..3]).await;
    for cursor in [0, 2, 4] {
        let refused = store.commit(&lease, &commit_of(cursor, &operations[3..])).await;
        assert!(matches!(refused, Err(StoreError::LostLease(_))), "{refused:?}");
    }
    assert_holds(&store, &operations[..3]).await;
    store.commit(&lease, &commit_of(3, &operations[3..])).await.unwrap();
    assert_holds(&store, &operations).await;
}

async fn a_commit_that_fails_leaves_nothing(place: Place) {
    // Enough that the keys of the host are given numbers in the commit that fails.
    let operations = identities(4, 30);
    let (store, lease) = filled(&place, &operations[..5]).await;
    let refusal = refusal("a line", None);
    let mut taken = commit_of(5, &operations[5..]);
    taken.operations[0].sequence = Some(3);
    taken.refusals.push(refusal.clone());
    let absent = Did::from_bytes([1; 15]);
    let nullified = vec![(absent, RECEIVED, RECEIVED)];
    let numbered = vec![(absent, RECEIVED, 1_000_000)];
    for impossible in [
        taken,
        Commit { nullified, ..commit_of(5, &operations[5..]) },
        Commit { numbered, ..commit_of(5, &operations[5..]) },
    ] {
        let failed = store.commit(&lease, &impossible).await;
        assert!(matches!(failed, Err(StoreError::Damaged { .. })), "{failed:?}");
        assert_holds(&store, &operations[..5]).await;
        assert_eq!(store.refusals(None, 0, 10).await.unwrap(), []);
        assert_eq!(store.source().await.unwrap().unwrap().cursor, 5);
    }
    store.commit(&lease, &commit_of(5, &operations[5..])).await.unwrap();
    assert_holds(&store, &operations).await;
    assert_holds(&place.open().await, &operations).await;
}

async fn one_upstream_is_remembered(place: Place) {
    let store = place.open().await;
    let (lease, _) = follow(&store).await;
    store.release(lease).await.unwrap();
    let (lease, source) = store.follow("https://elsewhere.example").await.unwrap();
    assert_eq!(source.upstream, UPSTREAM);
    store.set_upstream(&lease, "https://elsewhere.example").await.unwrap();
    let source = place.open().await.source().await.unwrap().unwrap();
    assert_eq!(source.upstream, "https://elsewhere.example");
    for live in [false, true] {
        store.set_durability(live).await.unwrap();
    }
}

async fn numbers_come_later(place: Place) {
    let mut operations = identities(5, 6);
    for operation in &mut operations {
        operation.sequence = None;
    }
    let (store, lease) = filled(&place, &operations).await;
    assert_holds(&store, &operations).await;

    // In no order, and some with new operations beside them.
    let mut cursor = 0;
    let numbers = [(3, 40), (0, 12), (17, 13), (4, 90)];
    for (place, number) in numbers {
        operations[place].sequence = Some(number);
        let mut fresh = identities(100 + number as u64, 1);
        for (index, operation) in fresh.iter_mut().enumerate() {
            operation.sequence = (index > 0).then_some(1000 + number * 10 + index as i64);
        }
        let numbered = vec![(operations[place].did, operations[place].created_at, number)];
        let commit = Commit { numbered, ..commit_of(cursor, &fresh) };
        cursor = commit.cursor_after;
        store.commit(&lease, &commit).await.unwrap();
        operations.extend(fresh);
        assert_holds(&store, &operations).await;
    }
    let again = vec![(operations[3].did, operations[3].created_at, 41)];
    let failed = store.commit(&lease, &Commit { numbered: again, ..commit_of(cursor, &[]) }).await;
    assert!(matches!(failed, Err(StoreError::Damaged { .. })), "{failed:?}");
    assert_holds(&place.open().await, &operations).await;
}

async fn late_arrivals_are_found(place: Place) {
    let operations = identities(6, 8);
    let (early, late): (Vec<_>, Vec<_>) =
        operations.iter().cloned().partition(|of| of.sequence.is_some_and(|n| n % 4 != 1));
    let (store, lease) = filled(&place, &early).await;
    assert_holds(&store, &early).await;
    store.commit(&lease, &commit_of(24, &late)).await.unwrap();
    assert_holds(&store, &operations).await;
    assert_holds(&place.open().await, &operations).await;
}

async fn the_export_by_time_is_ordered_by_cid_within_a_millisecond(place: Place) {
    let mut story = Story::seeded(7);
    for _ in 0..60 {
        story.create().at("2024-01-01T00:00:00.000Z").accepted();
    }
    story.create().at("2024-01-01T00:00:00.001Z").accepted();
    let mut operations = told(&story);
    for operation in &mut operations {
        operation.created_at = match operation.sequence {
            Some(61) => "2024-01-01T00:00:00.001Z".parse().unwrap(),
            _ => "2024-01-01T00:00:00.000Z".parse().unwrap(),
        };
    }
    let (store, _) = filled(&place, &operations).await;
    assert_holds(&store, &operations).await;
    operations.sort_by_key(|of| (of.created_at, of.cid().to_string()));
    for limit in [1, 2, 25, 60, 61, 62] {
        let page = store.export_by_time(None, limit).await.unwrap();
        assert_eq!(page, operations[..limit.min(61)]);
    }
    let page = store.export_by_time(Some(operations[0].created_at), 10).await.unwrap();
    assert_eq!(page, operations[60..]);
}

fn refusal(line: &str, awaits: Option<Cid>) -> NewRefusal {
    NewRefusal {
        did: "did:plc:not one".to_owned(),
        sequence: Some(5),
        cid: Some(Cid::of(line.as_bytes())),
        kind: if awaits.is_some() { "unknown-prev" } else { "malformed" }.to_owned(),
        detail: format!("of {line}"),
        awaits,
        line: Bytes::from(line.to_owned()),
    }
}

async fn refusals_are_kept_once_and_judged_again(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let (x, y) = (Cid::of(b"x"), Cid::of(b"y"));
    let mut other = refusal("other", None);
    other.did = String::new();
    other.sequence = None;
    other.cid = None;
    let new = [refusal("a", Some(x)), refusal("b", None), refusal("a", Some(y)), other.clone()];
    let commit = Commit { refusals: new.to_vec(), ..commit_of(0, &[]) };
    for _ in 0..2 {
        store.commit(&lease, &commit).await.unwrap();
    }
    let kept = store.refusals(None, 0, 10).await.unwrap();
    let of_kept: Vec<NewRefusal> = kept.iter().map(|kept| kept.refusal.clone()).collect();
    assert_eq!(of_kept, [new[0].clone(), new[1].clone(), other]);
    assert!(kept.is_sorted_by(|a, b| a.id < b.id));
    assert!(kept.iter().all(|kept| kept.received_at == RECEIVED && kept.accepted_at.is_none()));
    assert_eq!(store.refusals(None, kept[0].id, 1).await.unwrap(), kept[1..2]);
    assert_eq!(store.refusals(Some(&new[0].did), 0, 10).await.unwrap(), kept[..2]);
    assert_eq!(store.refusals(Some("did:plc:no"), 0, 10).await.unwrap(), []);
    assert_eq!(store.awaited(10).await.unwrap(), [x]);
    assert_eq!(store.refusals_awaiting(&[y, x, x]).await.unwrap(), kept[..1]);
    assert_eq!(store.statistics().await.unwrap().refusals, 3);

    // For another reason, which waits for something else; then no longer refused.
    let again = Rejudged::Refused {
        id: kept[0].id,
        kind: "unknown-did".to_owned(),
        detail: "now this".to_owned(),
        awaits: Some(y),
    };
    let commit = Commit { rejudged: vec![again], ..commit_of(0, &[]) };
    store.commit(&lease, &commit).await.unwrap();
    assert_eq!(store.refusals_awaiting(&[x]).await.unwrap(), []);
    let waiting = store.refusals_awaiting(&[y]).await.unwrap();
    assert_eq!(waiting[0].refusal.kind, "unknown-did");
    assert_eq!(waiting[0].refusal.detail, "now this");
    let accepted = vec![Rejudged::Accepted { id: kept[0].id }];
    store.commit(&lease, &Commit { rejudged: accepted, ..commit_of(0, &[]) }).await.unwrap();
    assert_eq!(store.refusals_awaiting(&[x, y]).await.unwrap(), []);
    assert_eq!(store.awaited(10).await.unwrap(), []);
    assert_eq!(store.refusals(None, 0, 1).await.unwrap()[0].accepted_at, Some(RECEIVED));
    assert_eq!(store.statistics().await.unwrap().refusals, 2);
}

async fn divergences_are_recorded_once(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let new = |did: &str, kind: &str, subject: &str| NewDivergence {
        source: UPSTREAM.to_owned(),
        did: did.to_owned(),
        kind: kind.to_owned(),
        subject: subject.to_owned(),
        ours: Some("ours".to_owned()),
        theirs: None,
    };
    let divergences = vec![new("a", "k", "1"), new("a", "l", "1"), new("b", "k", "2")];
    for new in &divergences {
        let commit = Commit { divergences: vec![new.clone()], ..commit_of(0, &[]) };
        store.commit(&lease, &commit).await.unwrap();
    }
    let later = RECEIVED + Duration::from_secs(9);
    let commit = Commit {
        divergences: divergences[..1].to_vec(),
        received_at_millis: later.millis(),
        ..commit_of(0, &[])
    };
    store.commit(&lease, &commit).await.unwrap();

    let recorded = store.divergences(None, None, None, 0, 10).await.unwrap();
    let of_recorded: Vec<_> = recorded.iter().map(|one| one.divergence.clone()).collect();
    assert_eq!(of_recorded, divergences);
    assert_eq!((recorded[0].first_seen, recorded[0].last_seen), (RECEIVED, later));
    assert_eq!((recorded[1].first_seen, recorded[1].last_seen), (RECEIVED, RECEIVED));
    let first = recorded[0].id;
    let all = [0, 1, 2];
    for (did, kind, open, after, limit, expected) in [
        (Some("a"), None, None, 0, 10, &all[..2]),
        (Some("a"), Some("l"), Some(true), 0, 10, &all[1..2]),
        (None, Some("k"), None, 0, 10, &[0, 2]),
        (None, Some("k"), Some(true), first, 10, &all[2..]),
        (None, None, Some(true), 0, 2, &all[..2]),
        (None, None, Some(false), 0, 10, &[]),
        (Some("b"), None, Some(false), 0, 10, &[]),
    ] {
        let found = store.divergences(did, kind, open, after, limit).await.unwrap();
        let expected: Vec<_> = expected.iter().map(|&index| recorded[index].clone()).collect();
        assert_eq!(found, expected, "{did:?} {kind:?} {open:?}");
    }
    assert_eq!(store.statistics().await.unwrap().open_divergences, 3);
}

async fn a_divergence_that_is_back_has_its_new_evidence(place: Place) {
    let store = place.open().await;
    let seen = |time: &str| NewDivergence {
        source: UPSTREAM.to_owned(),
        did: "a".to_owned(),
        kind: "k".to_owned(),
        subject: "1".to_owned(),
        ours: Some(format!("ours {time}")),
        theirs: Some(format!("theirs {time}")),
    };
    let note = async |seen: &[NewDivergence], seconds: u64| {
        let at = RECEIVED + Duration::from_secs(seconds);
        let noted = store.note_divergences(UPSTREAM, "a", &["k"], seen, at).await.unwrap();
        let recorded = store.divergences(None, None, None, 0, 10).await.unwrap();
        assert_eq!(recorded.len(), 1);
        assert_eq!(recorded[0].closed_at.is_some(), seen.is_empty());
        (noted.opened.len(), recorded[0].divergence.clone())
    };
    assert_eq!(note(&[seen("first")], 0).await, (1, seen("first")));
    assert_eq!(note(&[seen("again")], 1).await, (0, seen("first")));
    assert_eq!(note(&[], 2).await, (0, seen("first")));
    assert_eq!(note(&[seen("back")], 3).await, (1, seen("back")));
}

async fn strings_of_strangers_come_back(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let long = "é\u{0}\u{1f600}'\"\\%".repeat(2000);
    let stranger = NewRefusal {
        did: long.clone(),
        detail: long.clone(),
        line: Bytes::from(b"\x00\xff not text".to_vec()),
        ..refusal("", None)
    };
    let difference = NewDivergence {
        source: long.clone(),
        did: long.clone(),
        kind: "kind".to_owned(),
        subject: long.clone(),
        ours: Some(String::new()),
        theirs: Some(long.clone()),
    };
    let commit = Commit {
        refusals: vec![stranger.clone()],
        divergences: vec![difference.clone(), difference.clone()],
        ..commit_of(0, &[])
    };
    store.commit(&lease, &commit).await.unwrap();
    let kept = store.refusals(Some(&long), 0, 10).await.unwrap();
    assert_eq!(kept.into_iter().map(|kept| kept.refusal).collect::<Vec<_>>(), [stranger]);
    let recorded = store.divergences(Some(&long), None, None, 0, 10).await.unwrap();
    let recorded: Vec<_> = recorded.into_iter().map(|one| one.divergence).collect();
    assert_eq!(recorded, [difference]);
    let mut story = Story::seeded(8);
    story.create().also_known_as([long.as_str(), "", "at://", "at://x.y"]).accepted();
    let operations = told(&story);
    store.commit(&lease, &commit_of(0, &operations)).await.unwrap();
    assert_holds(&store, &operations).await;
}

/// Commits of everything there is, drawn from a seed, beside a map that is changed likewise.
async fn any_sequence_of_commits_is_what_a_map_says(place: Place) {
    for seed in 0..3 {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let mut left: Vec<StoredOperation> = identities(20 + seed, 25);
        for operation in &mut left {
            operation.sequence = operation.sequence.map(|n| n + 1000 * seed as i64 + 1);
        }
        if seed == 1 {
            // An import without numbers, of which some are numbered later.
            left.iter_mut().for_each(|operation| operation.sequence = None);
        }
        let mut store = place.open().await;
        let (mut lease, mut source) = follow(&store).await;
        let mut model: BTreeMap<(Did, Timestamp), StoredOperation> = paged_by_identity(&store)
            .await
            .into_iter()
            .map(|operation| ((operation.did, operation.created_at), operation))
            .collect();
        while !left.is_empty() {
            let count = random.random_range(0..=left.len().min(9));
            let mut operations: Vec<_> = left.drain(..count).collect();
            operations.shuffle(&mut random);
            // A few of them come later than they should.
            if count > 4 {
                left.push(operations.pop().unwrap());
            }
            let mut commit = commit_of(source.cursor, &operations);
            change_some(&mut model, &mut commit, &mut random);
            for operation in operations {
                model.insert((operation.did, operation.created_at), operation);
            }
            store.commit(&lease, &commit).await.unwrap();
            source.cursor = commit.cursor_after;
            if random.random_bool(0.2) {
                let model: Vec<_> = model.values().cloned().collect();
                assert_holds(&store, &model).await;
            }
            if random.random_bool(0.1) {
                store.release(lease).await.unwrap();
                store = place.open().await;
                (lease, source) = follow(&store).await;
            }
        }
        let model: Vec<_> = model.values().cloned().collect();
        assert_holds(&store, &model).await;
        store.release(lease).await.unwrap();
    }
}

/// Nullifies an operation, and gives a number to one that has none.
fn change_some(
    model: &mut BTreeMap<(Did, Timestamp), StoredOperation>,
    commit: &mut Commit,
    random: &mut impl Rng,
) {
    if model.is_empty() {
        return;
    }
    let mut any = |model: &BTreeMap<(Did, Timestamp), StoredOperation>| {
        *model.keys().nth(random.random_range(0..model.len())).unwrap()
    };
    let (did, created_at) = any(model);
    commit.nullified.push((did, created_at, RECEIVED));
    model.get_mut(&(did, created_at)).unwrap().nullified_by = Some(RECEIVED);
    let (did, created_at) = any(model);
    let operation = model.get_mut(&(did, created_at)).unwrap();
    if operation.sequence.is_none() {
        // In no order, and none twice.
        let number = i64::from_be_bytes(*operation.cid().digest().first_chunk().unwrap());
        let number = 1_000_000 + number.rem_euclid(1 << 40);
        operation.sequence = Some(number);
        commit.numbered.push((did, created_at, number));
    }
}

/// While one follower writes, each reader sees a history that ended with some commit.
async fn readers_see_whole_commits(place: Place) {
    let mut story = Story::seeded(9);
    let first = story.create().accepted();
    let (store, lease) = filled(&place, &told(&story)).await;
    let mut all = told(&story);
    // Each commit nullifies what the one before has added, and goes on after the genesis.
    let mut commits = Vec::new();
    let recovery = story.recovery.clone();
    let mut before = first.clone();
    for _ in 0..150 {
        let told_now = story
            .after(&first)
            .signed_by(&recovery)
            .later_than(&before, Duration::from_secs(1))
            .accepted();
        let new = stored(story.log().last().unwrap());
        let cursor = all.last().unwrap().sequence.unwrap();
        let mut commit = commit_of(cursor, std::slice::from_ref(&new));
        if before != first {
            commit.nullified.push((new.did, before.created_at, new.created_at));
        }
        all.push(new);
        commits.push(commit);
        before = told_now;
    }
    let did = all[0].did;
    let elsewhere = place.open().await;
    let readers: Vec<_> = [store.clone(), store.clone(), elsewhere]
        .map(|store| {
            let total = all.len();
            tokio::spawn(async move {
                let mut seen = 0;
                while seen < total {
                    let history = store.history(&did).await.unwrap();
                    assert!(history.len() >= seen, "a commit has gone");
                    seen = history.len();
                    let standing =
                        history.iter().filter(|operation| operation.nullified_by.is_none());
                    assert_eq!(standing.count(), seen.min(2), "half a commit");
                    let head = store.head(&did).await.unwrap().unwrap();
                    assert!(head.created_at >= history.last().unwrap().created_at);
                    let histories = store.histories(&[did]).await.unwrap();
                    assert!(histories.len() >= seen);
                    tokio::task::yield_now().await;
                }
            })
        })
        .into();
    for commit in &commits {
        store.commit(&lease, commit).await.unwrap();
        let last = &commit.operations[0];
        assert_eq!(store.head(&did).await.unwrap().as_ref(), Some(last));
    }
    for reader in readers {
        reader.await.unwrap();
    }
}
