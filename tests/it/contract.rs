//! What a store promises, the same of both backends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use did_plc::{Cid, Did, Timestamp, order};
use plc_replica::store::codec::is_genesis;
use plc_replica::store::{
    Asked, ByTime, Commit, CommitId, Lease, MOST_COUNTED, NewDivergence, NewRefusal, RefusalKey,
    RefusalLimits, Rereading, Rewritten, Source, Store, StoreError, StoredOperation, Unsettled,
    Word,
};
use plc_testkit::Generated;
use plc_testkit::builder::{RECOVERY_WINDOW, Story};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tempfile::TempDir;

use crate::claims::assert_index;
use plc_testkit::postgres::Database;

const UPSTREAM: &str = "https://plc.example";
/// When every batch arrives.
pub const RECEIVED: Timestamp = Timestamp::from_millis(1_800_000_000_123);

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

    pub fn url(&self) -> String {
        match self {
            Place::Sqlite(folder) => {
                format!("sqlite://{}", folder.path().join("plc.db").display())
            }
            Place::Postgres(database) => database.url.clone(),
        }
    }

    pub async fn open(&self) -> Store {
        Store::open(&self.url()).await.unwrap()
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
    a_lease_is_left_to_who_comes_back,
    commits_tell_what_is_new,
    who_only_reads_changes_nothing,
    a_commit_starts_from_the_stored_cursor,
    a_commit_that_fails_leaves_nothing,
    one_upstream_is_remembered,
    renumbering_ends_at_the_present,
    numbers_come_later,
    late_arrivals_are_found,
    the_export_by_time_is_ordered_by_cid_within_a_millisecond,
    equal_times_stand_in_the_order_in_which_they_are_judged,
    an_identity_is_rewritten,
    numbers_move_between_identities,
    numbers_at_the_end_go_and_come_back,
    the_end_of_a_log_without_numbers_goes,
    what_is_rewritten_has_to_be_what_is_known,
    what_is_rewritten_is_in_the_index_of_claims,
    refusals_are_known_by_their_key,
    refusals_are_asked_about,
    refusals_make_room_for_newer_ones,
    differences_make_room_for_newer_ones,
    an_identity_has_room_of_its_own,
    refusals_are_counted_within_bounds,
    no_number_of_a_refusal_comes_twice,
    rereading_is_remembered,
    what_is_unsettled_stays_until_it_is_read,
    what_was_read_again_is_not_beyond_the_cursor,
    divergences_are_recorded_once,
    a_divergence_that_is_back_has_its_new_evidence,
    strings_of_strangers_come_back,
    any_sequence_of_commits_is_what_a_map_says,
    readers_see_whole_commits,
    readers_see_numbers_move,
}

/// Tells operations of an identity or more; they are stored as they are told.
pub fn told(story: &Story) -> Vec<StoredOperation> {
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

/// Writes a commit from where the store is.
async fn write(store: &Store, lease: &Lease, commit: Commit) -> Result<(), StoreError> {
    let cursor_before = store.source().await?.unwrap().cursor;
    let cursor_after = commit.cursor_after.max(cursor_before);
    store.commit(lease, &Commit { cursor_before, cursor_after, ..commit }).await
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
    sorted.sort_by_key(|operation| operation.did);
    let histories = sorted.chunk_by(|a, b| a.did == b.did).map(|history| {
        let mut history = history.to_vec();
        order::sort(&mut history, |operation| operation.created_at, |operation| &operation.signed);
        history
    });
    histories.flatten().collect()
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
    assert_eq!(store.refused_identities(0, 10).await.unwrap(), (vec![], 0));
    assert_eq!(store.doubtful(RECEIVED, 10).await.unwrap(), []);
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
    store.renew(&first, None).await.unwrap();
    store.commit(&first, &commit_of(0, &operations[..6])).await.unwrap();

    store.release(first.clone()).await.unwrap();
    let (second, source) = follow(&other).await;
    assert_eq!((source.cursor, source.epoch), (6, first.epoch + 1));
    for refused in [
        store.commit(&first, &commit_of(6, &operations[6..])).await,
        other.commit(&first, &commit_of(6, &operations[6..])).await,
        other.renew(&first, None).await,
        other.set_upstream(&first, "https://elsewhere.example").await,
        other.set_rereading(&first, Rereading::default()).await,
        other.note_asked(&first, &[], RECEIVED).await,
    ] {
        assert!(matches!(refused, Err(StoreError::LostLease(_))), "{refused:?}");
    }
    // Giving back what one does not have any more takes nothing from who has it.
    store.release(first).await.unwrap();
    other.commit(&second, &commit_of(6, &operations[6..])).await.unwrap();
    assert_holds(&store, &operations).await;
    assert_holds(&other, &operations).await;
}

async fn a_lease_is_left_to_who_comes_back(place: Place) {
    const SOME: Duration = Duration::from_secs(60);
    let store = place.open().await;
    let said_at = plc_replica::clock::now().millis();
    let word = Word { said_at, mode: "live".to_owned(), ..Word::default() };
    // Nobody has followed yet, whom it could be left to.
    let (lease, _) = store.follow_after(UPSTREAM, SOME).await.unwrap();
    store.renew(&lease, Some(&word)).await.unwrap();
    store.release(lease).await.unwrap();
    let other = place.open().await;
    let refused = other.follow_after(UPSTREAM, SOME).await.unwrap_err();
    assert!(refused.to_string().contains("only just now"), "{refused}");
    let (lease, source) = follow(&other).await;
    assert_eq!(source.word, Some(word));
    other.renew(&lease, None).await.unwrap();
    assert_eq!(store.committed_source().await.unwrap().unwrap().word, source.word);
}

/// What is told after a commit, of each commit, by numbers; none where it is not known any more.
async fn told_after(store: &Store, commit: CommitId) -> Option<Vec<Vec<i64>>> {
    let news = store.news(commit).await.unwrap()?;
    assert_eq!(news.through, news.last);
    let numbers = |operations: &Vec<StoredOperation>| {
        operations.iter().filter_map(|operation| operation.sequence).collect()
    };
    Some(news.commits.iter().map(numbers).collect())
}

async fn commits_tell_what_is_new(place: Place) {
    let [alice, bob, carol] = three_identities(17);
    let none = CommitId::default();
    let store = place.open().await;
    assert_eq!(told_after(&store, none).await, Some(vec![]));
    let (lease, source) = follow(&store).await;
    assert_eq!((source.commit, told_after(&store, none).await), (none, Some(vec![])));
    let numbers = |operations: &[StoredOperation]| -> Vec<i64> {
        operations.iter().filter_map(|operation| operation.sequence).collect()
    };

    let mut unnumbered = alice.clone();
    unnumbered[2].sequence = None;
    let first = Commit { word: Some(Word::default()), ..commit_of(0, &unnumbered) };
    write(&store, &lease, first).await.unwrap();
    let elsewhere = place.open().await;
    let after_first = elsewhere.committed_source().await.unwrap().unwrap().commit;
    assert_eq!((after_first.number, after_first.epoch), (1, lease.epoch));
    write(&store, &lease, commit_of(0, &bob)).await.unwrap();
    // One gets its number, and another one loses its own to one that comes late.
    let mut bob_then = bob.clone();
    let lost = bob_then[0].sequence.take().unwrap();
    let carol_then = vec![StoredOperation { sequence: Some(lost), ..carol[0].clone() }];
    let third = Commit {
        numbered: vec![(alice[2].did, alice[2].created_at, alice[2].sequence.unwrap())],
        rewritten: vec![rewritten(&bob, &bob_then), rewritten(&[], &carol_then)],
        late: vec![lost],
        ..commit_of(0, &[])
    };
    write(&store, &lease, third).await.unwrap();
    let mut of_third = vec![alice[2].sequence.unwrap(), lost];
    of_third.sort_unstable();
    let of_bob: Vec<i64> = numbers(&bob).into_iter().filter(|number| *number != lost).collect();
    let all = vec![numbers(&alice[..2]), of_bob.clone(), of_third.clone()];
    assert_eq!(told_after(&elsewhere, none).await, Some(all));
    assert_eq!(told_after(&elsewhere, after_first).await, Some(vec![of_bob, of_third]));
    let last = elsewhere.committed_source().await.unwrap().unwrap().commit;
    assert_eq!(told_after(&elsewhere, last).await, Some(vec![]));
    // Its number was given out again, or it is not there yet.
    let other_epoch = CommitId { epoch: last.epoch + 1, ..last };
    assert_eq!(told_after(&elsewhere, other_epoch).await, None);
    let to_come = CommitId { number: last.number + 1, ..last };
    assert_eq!(told_after(&elsewhere, to_come).await, None);

    // As many come as are kept, and one more.
    store.set_durability(false).await.unwrap();
    let empty = async || write(&store, &lease, commit_of(0, &[])).await.unwrap();
    for _ in 0..4_095 {
        empty().await;
    }
    assert_eq!(told_after(&elsewhere, last).await.map(|commits| commits.len()), Some(4_095));
    empty().await;
    assert_eq!(told_after(&elsewhere, last).await, None);
    assert_eq!(told_after(&elsewhere, none).await, None);
}

async fn who_only_reads_changes_nothing(place: Place) {
    let url = place.url();
    let missing = Store::open_to_read(&url).await.unwrap_err();
    assert!(matches!(missing, StoreError::Unusable(_)), "{missing}");
    let operations = identities(18, 4);
    let (store, lease) = filled(&place, &operations[..6]).await;
    let reader = Store::open_to_read(&url).await.unwrap();
    assert_holds(&reader, &operations[..6]).await;
    let before = reader.committed_source().await.unwrap().unwrap();
    let mut changes = reader.changes();
    store.commit(&lease, &commit_of(6, &operations[6..])).await.unwrap();
    let told = async {
        while reader.committed_source().await.unwrap().unwrap() == before {
            changes.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    assert_holds(&reader, &operations).await;
    store.release(lease).await.unwrap();
    let source = reader.committed_source().await.unwrap();
    drop(reader);
    assert_eq!(store.committed_source().await.unwrap(), source);
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
    let refusal = refusal("a line");
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

async fn renumbering_ends_at_the_present(place: Place) {
    let operations = identities(17, 4);
    let (store, lease) = filled(&place, &operations).await;
    let before = store.source().await.unwrap().unwrap();
    assert!(before.cursor > 0 && !before.renumbering);
    let rereading = Rereading { second: 2, round: 1, round_began_at: Some(RECEIVED), rounds: 3 };
    store.set_rereading(&lease, rereading).await.unwrap();

    store.begin_renumbering(&lease, "https://elsewhere.example").await.unwrap();
    let source = place.open().await.source().await.unwrap().unwrap();
    let begun = Source {
        upstream: "https://elsewhere.example".to_owned(),
        cursor: 0,
        cursor_cid: None,
        rereading: Rereading { rounds: 3, ..Rereading::default() },
        renumbering: true,
        forgotten_up_to: None,
        ..before
    };
    assert_eq!(source, begun);
    assert_holds(&store, &operations).await;
    let mut commit = Commit { cursor_after: 1, ..Commit::default() };
    store.commit(&lease, &commit).await.unwrap();
    assert!(store.source().await.unwrap().unwrap().renumbering);
    (commit.cursor_before, commit.cursor_after, commit.caught_up) = (1, 2, true);
    store.commit(&lease, &commit).await.unwrap();
    assert!(!store.source().await.unwrap().unwrap().renumbering);

    store.release(lease.clone()).await.unwrap();
    let other = place.open().await;
    let (_, source) = follow(&other).await;
    let lost = store.begin_renumbering(&lease, UPSTREAM).await;
    assert!(matches!(lost, Err(StoreError::LostLease(_))), "{lost:?}");
    assert_eq!(other.source().await.unwrap().unwrap(), source);
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

async fn equal_times_stand_in_the_order_in_which_they_are_judged(place: Place) {
    let mut story = Story::seeded(11);
    let alice = story.create().accepted();
    // Enough that the order of their CIDs, of their numbers and of their coming is another one.
    for _ in 0..9 {
        story.update(&alice).accepted();
    }
    let bob = story.create().accepted();
    story.update(&bob).accepted();
    let mut told = told(&story);
    let at = told[3].created_at;
    for operation in &mut told[3..8] {
        operation.created_at = at;
    }
    // The last of them is not the head, and its neighbours are no operations that stand.
    told[6].nullified_by = Some(at);
    told[7].nullified_by = Some(at);
    let mut numbers: Vec<_> = told.iter().map(|operation| operation.sequence).collect();
    numbers.reverse();
    numbers[2] = None;
    numbers[5] = None;
    for (operation, number) in told.iter_mut().zip(numbers) {
        operation.sequence = number;
    }

    for (last, head) in [(8, 5), (4, 3), (3, 2), (10, 9)] {
        let place = match &place {
            Place::Sqlite(_) => Place::sqlite().unwrap(),
            Place::Postgres(_) => Place::postgres().await.unwrap(),
        };
        let (alices, bobs) = (&told[..last], &told[10..]);
        let mut operations = [alices, bobs].concat();
        operations.shuffle(&mut ChaCha20Rng::seed_from_u64(last as u64));
        let (store, lease) = filled(&place, &operations[..5]).await;
        write(&store, &lease, commit_of(0, &operations[5..])).await.unwrap();
        for store in [&store, &place.open().await] {
            assert_eq!(store.history(&told[0].did).await.unwrap(), alices);
            assert_eq!(store.head(&told[0].did).await.unwrap().as_ref(), Some(&told[head]));
            assert_eq!(store.head(&bobs[0].did).await.unwrap().as_ref(), Some(&bobs[1]));
            assert_holds(store, &operations).await;
        }
    }
}

/// What replaces the operations of an identity of which these are stored.
fn rewritten(stored: &[StoredOperation], operations: &[StoredOperation]) -> Rewritten {
    let geneses = stored.iter().filter(|operation| is_genesis(&operation.signed));
    Rewritten {
        did: operations[0].did,
        stored: stored.len(),
        stored_geneses: geneses.count(),
        operations: operations.to_vec(),
    }
}

/// Three identities with three operations each, one after the other.
fn three_identities(seed: u64) -> [Vec<StoredOperation>; 3] {
    let operations = identities(seed, 3);
    [0, 1, 2].map(|who| operations.iter().skip(who).step_by(3).cloned().collect())
}

async fn an_identity_is_rewritten(place: Place) {
    let [alice, bob, carol] = three_identities(12);
    // The genesis of one comes last, the middle of another; the third has none of its operations here yet.
    let early = [&alice[1..], &bob[..1], &bob[2..]].concat();
    let (store, lease) = filled(&place, &early).await;
    let elsewhere = place.open().await;
    assert_holds(&elsewhere, &early).await;
    let mut whole = bob.clone();
    whole[1].nullified_by = Some(whole[2].created_at);
    let commit = Commit {
        rewritten: vec![
            rewritten(&alice[1..], &alice),
            rewritten(&[bob[0].clone(), bob[2].clone()], &whole),
            rewritten(&[], &carol[..1]),
        ],
        ..commit_of(0, &[])
    };
    write(&store, &lease, commit).await.unwrap();
    let held = [&alice[..], &whole, &carol[..1]].concat();
    for store in [&store, &elsewhere, &place.open().await] {
        assert_holds(store, &held).await;
    }
    // Beside it what is new of others, and back to what it was.
    let commit = Commit {
        rewritten: vec![rewritten(&whole, &bob), rewritten(&alice, &alice[..2])],
        ..commit_of(0, &carol[1..])
    };
    write(&store, &lease, commit).await.unwrap();
    let held = [&alice[..2], &bob, &carol].concat();
    for store in [&store, &elsewhere, &place.open().await] {
        assert_holds(store, &held).await;
    }
}

async fn numbers_move_between_identities(place: Place) {
    let [alice, bob, carol] = three_identities(13);
    let (store, lease) = filled(&place, &[&alice[..], &bob].concat()).await;
    let elsewhere = place.open().await;
    let (mut alice_then, mut bob_then) = (alice.clone(), bob.clone());
    // In a circle; and one loses its number, which is given to somebody new in the same commit.
    for at in 0..3 {
        alice_then[at].sequence = bob[at].sequence;
        bob_then[at].sequence = alice[(at + 1) % 3].sequence;
    }
    bob_then[1].sequence = None;
    let mut carol = carol;
    carol[0].sequence = alice[2].sequence;
    let steps = [
        (alice.clone(), alice_then.clone(), bob.clone(), bob_then.clone(), carol[..1].to_vec()),
        // The same number again, and another operation of the identity without one.
        (
            alice_then.clone(),
            alice_then.clone(),
            bob_then.clone(),
            {
                let mut again = bob_then.clone();
                again[1].sequence = bob_then[0].sequence;
                again[0].sequence = None;
                again
            },
            carol[1..].to_vec(),
        ),
    ];
    let mut carols = Vec::new();
    for (alice, alice_then, bob, bob_then, new) in steps {
        for store in [&store, &elsewhere] {
            assert_eq!(store.history(&alice[0].did).await.unwrap(), alice);
        }
        let commit = Commit {
            rewritten: vec![rewritten(&alice, &alice_then), rewritten(&bob, &bob_then)],
            ..commit_of(0, &new)
        };
        write(&store, &lease, commit).await.unwrap();
        carols.extend(new);
        let held = [&alice_then[..], &bob_then, &carols].concat();
        for store in [&store, &elsewhere, &place.open().await] {
            assert_holds(store, &held).await;
        }
    }
}

async fn numbers_at_the_end_go_and_come_back(place: Place) {
    let [alice, bob, carol] = three_identities(14);
    let (mut store, mut lease) = filled(&place, &[&alice[..], &bob].concat()).await;
    let elsewhere = place.open().await;
    for round in 0..3 {
        // The highest numbers go, those of two identities.
        let without = |operations: &[StoredOperation]| -> Vec<StoredOperation> {
            let mut without = operations.to_vec();
            without.last_mut().unwrap().sequence = None;
            without
        };
        let (alice_then, bob_then) = (without(&alice), without(&bob));
        let gone = vec![rewritten(&alice, &alice_then), rewritten(&bob, &bob_then)];
        let gone = Commit { rewritten: gone, ..commit_of(0, &[]) };
        write(&store, &lease, gone).await.unwrap();
        let held = [&alice_then[..], &bob_then].concat();
        for store in [&store, &elsewhere, &place.open().await] {
            assert_holds(store, &held).await;
        }
        if round == 1 {
            store.release(lease).await.unwrap();
            store = place.open().await;
            (lease, _) = follow(&store).await;
        }
        // Others have them for a while, one after the other.
        let mut others = carol.clone();
        others[0].sequence = alice[2].sequence;
        others[1].sequence = bob[2].sequence;
        others[2].sequence = None;
        for at in 1..=3 {
            let now = &others[..at];
            let commit = Commit { operations: now[at - 1..].to_vec(), ..commit_of(0, &[]) };
            write(&store, &lease, commit).await.unwrap();
            for store in [&store, &elsewhere, &place.open().await] {
                assert_holds(store, &[&held[..], now].concat()).await;
            }
        }
        // And they are given back; the others are not here any more.
        let back = vec![
            rewritten(&alice_then, &alice),
            rewritten(&bob_then, &bob),
            Rewritten { operations: vec![], ..rewritten(&others, &others) },
        ];
        let back = Commit { rewritten: back, ..commit_of(0, &[]) };
        write(&store, &lease, back).await.unwrap();
        for store in [&store, &elsewhere, &place.open().await] {
            assert_holds(store, &[&alice[..], &bob].concat()).await;
        }
    }
}

async fn the_end_of_a_log_without_numbers_goes(place: Place) {
    let [mut alice, _, _] = three_identities(18);
    for operation in &mut alice {
        operation.sequence = None;
    }
    let (store, lease) = filled(&place, &alice).await;
    let elsewhere = place.open().await;
    assert_holds(&elsewhere, &alice).await;
    let mut before = alice.clone();
    for left in [2, 1, 3, 0] {
        let now = alice[..left].to_vec();
        let fewer = Rewritten { operations: now.clone(), ..rewritten(&before, &alice) };
        write(&store, &lease, Commit { rewritten: vec![fewer], ..commit_of(0, &[]) })
            .await
            .unwrap();
        for store in [&store, &elsewhere, &place.open().await] {
            assert_holds(store, &now).await;
        }
        before = now;
    }
}

async fn what_is_rewritten_has_to_be_what_is_known(place: Place) {
    let [alice, bob, carol] = three_identities(15);
    let held = [&alice[..2], &bob].concat();
    let (store, lease) = filled(&place, &held).await;
    let elsewhere = place.open().await;
    let mut taken = alice.clone();
    taken[2].sequence = bob[1].sequence;
    for impossible in [
        // Fewer were known than there are, more, and of somebody who is not here.
        vec![rewritten(&bob, &bob), rewritten(&alice[..1], &alice)],
        vec![rewritten(&alice, &alice)],
        vec![rewritten(&carol, &carol)],
        // A number that somebody else has and keeps.
        vec![rewritten(&alice[..2], &taken)],
    ] {
        let commit = Commit { rewritten: impossible, ..commit_of(0, &carol[2..]) };
        let failed = write(&store, &lease, commit).await;
        assert!(matches!(failed, Err(StoreError::Damaged { .. })), "{failed:?}");
        for store in [&store, &elsewhere, &place.open().await] {
            assert_holds(store, &held).await;
        }
    }
    let commit = Commit { rewritten: vec![rewritten(&alice[..2], &alice)], ..commit_of(0, &carol) };
    write(&store, &lease, commit).await.unwrap();
    for store in [&store, &elsewhere] {
        assert_holds(store, &[alice.clone(), bob.clone(), carol.clone()].concat()).await;
    }
}

async fn what_is_rewritten_is_in_the_index_of_claims(place: Place) {
    let mut story = Story::seeded(18);
    for number in 0..3 {
        let identity = story.create().accepted();
        story.update(&identity).handle(&format!("middle{number}.example")).accepted();
        story.update(&identity).handle(&format!("last{number}.example")).accepted();
    }
    let told = told(&story);
    let (alice, mut bob, carol) = (told[..3].to_vec(), told[3..6].to_vec(), told[6..].to_vec());
    bob[1].sequence = None;
    let without_middle = |of: &[StoredOperation]| vec![of[0].clone(), of[2].clone()];
    let early = [without_middle(&alice), without_middle(&bob), carol].concat();
    let (store, lease) = filled(&place, &early).await;
    store.keep_claims().await.unwrap();
    for _ in 0..2 {
        store.build_claims(100).await.unwrap();
    }
    let before = store.claims_index().await.unwrap().unwrap();
    assert!(before.is_complete());
    let late = [&alice, &bob].map(|whole| rewritten(&without_middle(whole), whole));
    let late = Commit { rewritten: late.to_vec(), ..commit_of(0, &[]) };
    write(&store, &lease, late).await.unwrap();
    let after = store.claims_index().await.unwrap().unwrap();
    assert!(after.is_complete() && after.pairs == before.pairs + 2, "{before:?} {after:?}");
    assert_index(&store).await;
}

fn refusal(line: &str) -> NewRefusal {
    NewRefusal {
        key: NewRefusal::key_of_line(line.as_bytes()),
        source: UPSTREAM.to_owned(),
        did: "did:plc:not one".to_owned(),
        sequence: Some(5),
        cid: Some(Cid::of(line.as_bytes())),
        kind: "malformed".to_owned(),
        detail: format!("of {line}"),
        line: Bytes::from(line.to_owned()),
    }
}

/// What is refused and lifted so long after [`RECEIVED`].
fn refusing(refusals: &[NewRefusal], lifted: &[RefusalKey], seconds: u64) -> Commit {
    Commit {
        refusals: refusals.to_vec(),
        lifted: lifted.to_vec(),
        received_at_millis: (RECEIVED + Duration::from_secs(seconds)).millis(),
        ..commit_of(0, &[])
    }
}

async fn refusals_are_known_by_their_key(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let mut other = refusal("other");
    other.did = String::new();
    other.sequence = None;
    other.cid = None;
    // The same again in one commit: stated otherwise, and for another reason.
    let mut again = refusal("a");
    again.source = "https://elsewhere.example".to_owned();
    again.line = Bytes::from_static(b"another line");
    again.kind = "unknown-prev".to_owned();
    again.detail = "now this".to_owned();
    again.sequence = Some(6);
    let new = [refusal("a"), refusal("b"), again.clone(), other.clone()];
    store.commit(&lease, &refusing(&new, &[], 0)).await.unwrap();
    let mut first = new[0].clone();
    (first.kind, first.detail, first.sequence) = (again.kind, again.detail, again.sequence);
    let kept = store.refusals(None, 0, 10).await.unwrap();
    let of_kept: Vec<NewRefusal> = kept.iter().map(|kept| kept.refusal.clone()).collect();
    assert_eq!(of_kept, [first.clone(), new[1].clone(), other.clone()]);
    assert!(kept.is_sorted_by(|a, b| a.id < b.id));
    assert!(kept.iter().all(|kept| kept.received_at == RECEIVED && kept.accepted_at.is_none()));
    assert!(kept.iter().all(|kept| kept.asked == 0 && kept.ask_at == Some(RECEIVED)));
    assert_eq!(store.refusals(None, kept[0].id, 1).await.unwrap(), kept[1..2]);
    assert_eq!(store.refusals(Some(&first.did), 0, 10).await.unwrap(), kept[..2]);
    assert_eq!(store.refusals(Some("did:plc:no"), 0, 10).await.unwrap(), []);
    assert_eq!(store.statistics().await.unwrap().refusals, 3);

    // Refused for another reason in a later commit: the record stays, and when it is asked about.
    let mut later = refusal("b");
    (later.kind, later.sequence) = ("signature-invalid".to_owned(), None);
    store.commit(&lease, &refusing(&[later.clone()], &[], 9)).await.unwrap();
    let mut expected = kept.clone();
    // Who states no number takes none away.
    expected[1].refusal = NewRefusal { sequence: Some(5), ..later.clone() };
    assert_eq!(store.refusals(None, 0, 10).await.unwrap(), expected);

    // Lifted, once; then refused again, and asked about anew.
    let lifted = [later.key, refusal("none such").key];
    for seconds in [20, 30] {
        store.commit(&lease, &refusing(&[], &lifted, seconds)).await.unwrap();
        expected[1].accepted_at = Some(RECEIVED + Duration::from_secs(20));
        expected[1].ask_at = None;
        assert_eq!(store.refusals(None, 0, 10).await.unwrap(), expected);
    }
    assert_eq!(store.statistics().await.unwrap().refusals, 2);
    store.commit(&lease, &refusing(&[later], &[], 40)).await.unwrap();
    expected[1].accepted_at = None;
    expected[1].ask_at = Some(RECEIVED + Duration::from_secs(40));
    assert_eq!(place.open().await.refusals(None, 0, 10).await.unwrap(), expected);
    assert_eq!(store.statistics().await.unwrap().refusals, 3);
}

async fn refusals_are_asked_about(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let dids: Vec<Did> = (0..4).map(|first| Did::from_bytes([first; 15])).collect();
    let of_line =
        |who: usize, line: &str| NewRefusal { did: dids[who].to_string(), ..refusal(line) };
    let new = [of_line(0, "a"), of_line(1, "b"), of_line(0, "c"), of_line(2, "d"), refusal("e")];
    for (seconds, new) in new.iter().enumerate() {
        let commit = refusing(std::slice::from_ref(new), &[], seconds as u64);
        store.commit(&lease, &commit).await.unwrap();
    }
    let kept = store.refusals(None, 0, 10).await.unwrap();
    let lines = async |found: Vec<plc_replica::store::StoredRefusal>| -> String {
        found.iter().map(|found| str::from_utf8(&found.refusal.line).unwrap()).collect()
    };
    let standing = async |asked: &[usize]| {
        let asked: Vec<Did> = asked.iter().map(|&who| dids[who]).collect();
        lines(store.standing_refusals(&asked).await.unwrap()).await
    };
    let doubtful = async |seconds: u64, limit| {
        let now = RECEIVED + Duration::from_secs(seconds);
        lines(store.doubtful(now, limit).await.unwrap()).await
    };
    assert_eq!(store.standing_refusals(&dids[..1]).await.unwrap()[0], kept[0]);
    assert_eq!(standing(&[2, 0, 0, 3]).await, "acd");
    assert_eq!(standing(&[]).await, "");
    let still_refused = async |asked: &[usize]| {
        let ids: Vec<i64> = asked.iter().map(|&which| kept[which].id).collect();
        lines(store.still_refused(&ids).await.unwrap()).await
    };
    assert_eq!(store.still_refused(&[kept[0].id]).await.unwrap(), kept[..1]);
    assert_eq!(still_refused(&[2, 0, 0, 3]).await, "acd");
    assert_eq!(store.still_refused(&[kept[4].id + 1]).await.unwrap(), []);
    assert_eq!((doubtful(2, 10).await, doubtful(9, 2).await), ("abc".into(), "ab".into()));
    let mut walked = Vec::new();
    let mut after = 0;
    loop {
        let (identities, last) = store.refused_identities(after, 2).await.unwrap();
        if identities.is_empty() {
            assert_eq!(last, after);
            break;
        }
        assert!(identities.len() <= 2 && last > after);
        (walked, after) = ([walked, identities].concat(), last);
    }
    let of = |who: usize| dids[who].to_string();
    walked.sort_unstable();
    assert_eq!(walked, [of(0), of(0), of(1), of(2), new[4].did.clone()]);
    let (identities, last) = store.refused_identities(0, 10).await.unwrap();
    assert_eq!(identities, [of(0), of(1), of(2), new[4].did.clone()]);
    assert_eq!(last, kept[4].id);

    // Later again, never again, accepted; and one that was lifted meanwhile.
    let now = RECEIVED + Duration::from_secs(50);
    let later = RECEIVED + Duration::from_secs(60);
    store.commit(&lease, &refusing(&[], &[new[3].key], 40)).await.unwrap();
    let asked = |at: usize, accepted, ask_at| Asked { id: kept[at].id, accepted, ask_at };
    let came = [
        asked(0, false, Some(later)),
        asked(1, false, None),
        asked(2, true, Some(later)),
        asked(3, false, Some(later)),
        Asked { id: kept[4].id + 1000, accepted: true, ask_at: None },
    ];
    store.note_asked(&lease, &came, now).await.unwrap();
    let mut expected = kept.clone();
    for refusal in &mut expected[..4] {
        (refusal.asked, refusal.ask_at) = (1, None);
    }
    expected[0].ask_at = Some(later);
    expected[2].accepted_at = Some(now);
    expected[3].accepted_at = Some(RECEIVED + Duration::from_secs(40));
    assert_eq!(place.open().await.refusals(None, 0, 10).await.unwrap(), expected);
    assert_eq!(standing(&[0, 1, 2]).await, "ab");
    assert_eq!(still_refused(&[0, 1, 2, 3]).await, "ab");
    assert_eq!((doubtful(59, 10).await, doubtful(60, 10).await), ("e".into(), "ea".into()));
    assert_eq!(
        store.refused_identities(kept[0].id, 10).await.unwrap().0,
        [of(1), new[4].did.clone()]
    );
    store.note_asked(&lease, &came[..1], now).await.unwrap();
    assert_eq!(store.refusals(None, 0, 1).await.unwrap()[0].asked, 2);
    // Refused again, the one that stands is as often asked about as before, and those that did not stand any more
    // not yet.
    let again = [of_line(0, "a"), of_line(0, "c"), of_line(2, "d")];
    store.commit(&lease, &refusing(&again, &[], 70)).await.unwrap();
    let kept = store.refusals(None, 0, 10).await.unwrap();
    let asked: Vec<i32> = kept.iter().map(|kept| kept.asked).collect();
    assert_eq!(asked, [2, 1, 0, 0, 0]);
    assert!(kept.iter().all(|kept| kept.accepted_at.is_none()));

    let other = place.open().await;
    store.release(lease.clone()).await.unwrap();
    follow(&other).await;
    let lost = store.note_asked(&lease, &came, now).await;
    assert!(matches!(lost, Err(StoreError::LostLease(_))), "{lost:?}");
    assert_eq!(store.refusals(None, 0, 1).await.unwrap()[0].asked, 2);
}

/// The lines that are kept, one letter each, in the order of receipt.
async fn kept_lines(store: &Store) -> String {
    let kept = store.refusals(None, 0, 1000).await.unwrap();
    kept.iter().map(|kept| char::from(kept.refusal.line[0])).collect()
}

/// What counts of a record beside its texts.
const RECORD: usize = 300;

/// A refusal that counts with so many hundred bytes, half of its text in characters of two bytes.
fn sized(letter: char, source: &str, kind: &str, did: &str, hundreds: usize) -> NewRefusal {
    let text = 100 * hundreds - RECORD - 2 * did.len();
    let detail = "é".repeat(text / 4);
    let line = letter.to_string().repeat(text - detail.len());
    NewRefusal {
        key: NewRefusal::key_of_line(line.as_bytes()),
        source: source.to_owned(),
        kind: kind.to_owned(),
        did: did.to_owned(),
        detail,
        line: Bytes::from(line),
        ..refusal("")
    }
}

/// Limits in hundreds of bytes.
fn limits(of_identity: u64, in_all: u64) -> RefusalLimits {
    RefusalLimits { of_identity: 100 * of_identity, in_all: 100 * in_all }
}

async fn refusals_make_room_for_newer_ones(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    store.limit_refusals(limits(1000, 100));
    let refuse = async |new: &[NewRefusal]| {
        store.commit(&lease, &refusing(new, &[], 0)).await.unwrap();
        (kept_lines(&store).await, store.statistics().await.unwrap().forgotten_refusals)
    };
    let of = |letter, source: &str, kind: &str, size| sized(letter, source, kind, "", size);
    let full = [of('a', "x", "k", 20), of('b', "y", "k", 20), of('c', "x", "l", 20)];
    assert_eq!(refuse(&full).await, ("abc".into(), 0));
    assert_eq!(refuse(&[of('d', "x", "k", 20), of('e', "x", "l", 20)]).await, ("abcde".into(), 0));
    // The oldest of the same source and kind; what is known already makes no room for itself.
    assert_eq!(refuse(&[of('f', "x", "l", 20)]).await, ("abdef".into(), 1));
    assert_eq!(refuse(&[of('f', "x", "l", 20)]).await, ("abdef".into(), 1));
    // Then of the same source, of whatever kind.
    assert_eq!(refuse(&[of('g', "x", "m", 32)]).await, ("befg".into(), 3));
    assert_eq!(refuse(&[of('h', "x", "k", 20)]).await, ("bfgh".into(), 4));
    // Then of all.
    assert_eq!(refuse(&[of('i', "z", "m", 20)]).await, ("fghi".into(), 5));
    // Two of a commit: each makes room for itself.
    let two = [of('j', "z", "m", 12), of('k', "x", "m", 12)];
    assert_eq!(refuse(&two).await, ("fghjk".into(), 6));
    // One that is larger than all stays alone, and goes with the next.
    assert_eq!(refuse(&[of('l', "y", "k", 400)]).await, ("l".into(), 11));
    assert_eq!(refuse(&[of('m', "x", "k", 20)]).await, ("m".into(), 12));
    // One that is larger than all goes for a newer one of its commit, whatever that one is of.
    assert_eq!(refuse(&[of('r', "x", "k", 400), of('s', "y", "l", 20)]).await, ("s".into(), 14));
    assert_eq!(refuse(&[of('t', "x", "k", 20), of('u', "x", "l", 400)]).await, ("u".into(), 16));
    assert_eq!(refuse(&[of('m', "x", "k", 20)]).await, ("m".into(), 17));
    // More than there is room for in one commit, and more than are looked at at a time.
    let many: Vec<_> = (0..700u32)
        .map(|n| NewRefusal {
            key: NewRefusal::key_of_line(&n.to_be_bytes()),
            ..of(if n < 690 { 'n' } else { 'o' }, "x", "k", 4)
        })
        .collect();
    let expected = format!("{}{}", "n".repeat(15), "o".repeat(10));
    assert_eq!(refuse(&many).await, (expected, 17 + 1 + 675));
    // What grows when it is refused for another reason is counted too, as is what was lifted.
    let mut grown = many[699].clone();
    grown.detail.push_str(&"é".repeat(800));
    assert_eq!(refuse(&[grown.clone()]).await.0, format!("{}{}", "n".repeat(11), "o".repeat(10)));
    store.commit(&lease, &refusing(&[], &[grown.key], 0)).await.unwrap();
    assert_eq!(refuse(&[of('p', "y", "k", 80)]).await.0, "op");
    // Other limits, in another process.
    store.release(lease).await.unwrap();
    let store = place.open().await;
    let (lease, _) = follow(&store).await;
    store.limit_refusals(limits(1000, 60));
    store.commit(&lease, &refusing(&[of('q', "x", "k", 20)], &[], 0)).await.unwrap();
    assert_eq!(kept_lines(&store).await, "q");
}

/// A difference that counts with so many hundred bytes.
fn difference(letter: char, source: &str, kind: &str, hundreds: usize) -> NewDivergence {
    let did = "did:plc:a".to_owned();
    let subject = letter.to_string();
    let text = 100 * hundreds - 400 - 2 * did.len() - subject.len();
    let ours = "é".repeat(text / 4);
    let theirs = "x".repeat(text - ours.len());
    NewDivergence {
        source: source.to_owned(),
        did,
        kind: kind.to_owned(),
        subject,
        ours: Some(ours),
        theirs: Some(theirs),
    }
}

async fn differences_make_room_for_newer_ones(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    store.limit_divergences(10_000);
    let record = async |new: &[NewDivergence]| {
        let commit = Commit { divergences: new.to_vec(), ..Commit::default() };
        store.commit(&lease, &commit).await.unwrap();
        let kept = store.divergences(None, None, None, 0, 1_000).await.unwrap().into_iter();
        let kept: String = kept.map(|kept| kept.divergence.subject).collect();
        (kept, store.statistics().await.unwrap().forgotten_divergences)
    };
    let of = difference;
    let full = [of('a', "x", "k", 20), of('b', "x", "k", 20), of('c', "x", "l", 20)];
    assert_eq!(record(&full).await, ("abc".into(), 0));
    assert_eq!(record(&[of('d', "x", "k", 20), of('e', "y", "k", 20)]).await, ("abcde".into(), 0));
    // The oldest of the same source and kind but the first; what is known already makes no room for itself.
    assert_eq!(record(&[of('f', "x", "k", 20)]).await, ("acdef".into(), 1));
    assert_eq!(record(&[of('f', "x", "k", 20)]).await, ("acdef".into(), 1));
    // Then of the same source, of whatever kind.
    assert_eq!(record(&[of('g', "x", "l", 40)]).await, ("aceg".into(), 3));
    // Then of all.
    assert_eq!(record(&[of('h', "z", "m", 20)]).await, ("aceh".into(), 4));
    // One that is larger than all stays until the next; the first ones stay all the same.
    assert_eq!(record(&[of('i', "x", "k", 400)]).await, ("acehi".into(), 4));
    assert_eq!(record(&[of('j', "x", "k", 20)]).await, ("acehj".into(), 5));
    // What is noted beside commits is bounded too, and what is seen otherwise when it is opened again.
    let now = Timestamp::from_millis(1);
    let noted = [of('n', "y", "k", 20)];
    store.note_divergences("y", "did:plc:a", &[], &noted, now).await.unwrap();
    assert_eq!(record(&[]).await, ("acehn".into(), 6));
    let opened = store.divergences(None, None, None, 0, 1_000).await.unwrap().pop().unwrap();
    store.close_divergence(opened.id, now).await.unwrap();
    assert_eq!(record(&[of('n', "y", "k", 40)]).await, ("acehn".into(), 6));
    assert_eq!(record(&[of('o', "y", "k", 20)]).await, ("aceho".into(), 7));
    // More than there is room for in one commit, and more than are looked at at a time.
    let many: Vec<_> = (0..700u32)
        .map(|n| NewDivergence { did: format!("did:plc:{n:03}"), ..of('m', "x", "k", 6) })
        .collect();
    let (kept, forgotten) = record(&many).await;
    assert_eq!((&*kept, forgotten), ("acehm", 7 + 1 + 699));
    // Another process goes on with the same count.
    store.release(lease).await.unwrap();
    let store = place.open().await;
    let (lease, _) = follow(&store).await;
    store.limit_divergences(10_000);
    let commit = Commit { divergences: vec![of('p', "x", "l", 20)], ..Commit::default() };
    store.commit(&lease, &commit).await.unwrap();
    assert_eq!(store.statistics().await.unwrap().forgotten_divergences, 7 + 1 + 700);
}

async fn an_identity_has_room_of_its_own(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    store.limit_refusals(limits(40, 100));
    let refuse = async |new: &[NewRefusal]| {
        store.commit(&lease, &refusing(new, &[], 0)).await.unwrap();
        (kept_lines(&store).await, store.statistics().await.unwrap().forgotten_refusals)
    };
    let of = |letter, did: &str, source: &str, kind: &str| sized(letter, source, kind, did, 12);
    let first = [of('a', "p", "x", "k"), of('b', "q", "x", "l"), of('c', "q", "y", "k")];
    assert_eq!(refuse(&first).await, ("abc".into(), 0));
    assert_eq!(refuse(&[of('d', "q", "x", "k")]).await, ("abcd".into(), 0));
    // Of the identity's the same source and kind, the same source, any.
    assert_eq!(refuse(&[of('e', "q", "x", "k")]).await, ("abce".into(), 1));
    assert_eq!(refuse(&[of('f', "q", "x", "m")]).await, ("acef".into(), 2));
    assert_eq!(refuse(&[of('g', "q", "z", "m")]).await, ("aefg".into(), 3));
    // Lines that state no identity have no bound but that of all.
    let none = ['h', 'i', 'j', 'k'].map(|letter| of(letter, "", "w", "k"));
    assert_eq!(refuse(&none).await, ("aefghijk".into(), 3));
    assert_eq!(refuse(&[of('l', "", "w", "k")]).await, ("aefgijkl".into(), 4));
    let large = sized('m', "x", "k", "p", 60);
    assert_eq!(refuse(&[large]).await, ("jklm".into(), 4 + 1 + 4));
    let two = [sized('1', "x", "k", "p", 60), of('2', "p", "x", "l")];
    assert_eq!(refuse(&two).await, ("jkl2".into(), 9 + 2));
    // An identity that fills its room pushes out nobody else.
    store.limit_refusals(limits(40, 132));
    let many: Vec<_> = ('n'..='z').map(|letter| of(letter, "q", "v", "k")).collect();
    assert_eq!(refuse(&many).await, ("jkl2xyz".into(), 11 + 10));
}

/// What stands is counted for figures, and how much of it is later than a head for answers: neither without end.
async fn refusals_are_counted_within_bounds(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let head = &three_identities(19)[0][1];
    let line = |at: Option<Timestamp>| match at {
        Some(at) => format!(r#"{{"createdAt":"{at}"}}"#),
        None => "{}".to_owned(),
    };
    let of = |n: u32, sequence, at: Option<Timestamp>| NewRefusal {
        key: NewRefusal::key_of_line(&n.to_be_bytes()),
        did: head.did.to_string(),
        sequence,
        line: Bytes::from(line(at)),
        ..refusal("")
    };
    let [before, at, after] = [head.created_at - Duration::from_millis(1), head.created_at, {
        head.created_at + Duration::from_millis(1)
    }];
    let number = head.sequence.unwrap();
    let unnumbered = StoredOperation { sequence: None, ..head.clone() };
    // With the head, with one that has no number, with none.
    for (n, (sequence, stated_at, expected)) in [
        (None, None, [1, 1, 1]),
        (None, Some(before), [0, 0, 1]),
        (None, Some(at), [0, 0, 1]),
        (None, Some(after), [1, 1, 1]),
        (Some(number), None, [0, 1, 1]),
        (Some(number + 1), None, [1, 1, 1]),
        (Some(number), Some(at), [0, 0, 1]),
        (Some(number + 1), Some(at), [1, 0, 1]),
        (Some(number), Some(after), [1, 1, 1]),
    ]
    .into_iter()
    .enumerate()
    {
        let new = of(n as u32, sequence, stated_at);
        store.commit(&lease, &refusing(std::slice::from_ref(&new), &[], 0)).await.unwrap();
        for (head, expected) in [Some(head), Some(&unnumbered), None].into_iter().zip(expected) {
            let counted = store.refused_after(&new.did.parse().unwrap(), head).await.unwrap();
            assert_eq!(counted, expected, "{new:?} after {head:?}");
        }
        assert_eq!(store.refused_after(&Did::from_bytes([7; 15]), None).await.unwrap(), 0);
        store.commit(&lease, &refusing(&[], &[new.key], 0)).await.unwrap();
        assert_eq!(store.refused_after(&head.did, None).await.unwrap(), 0, "it was lifted");
    }

    let many: Vec<_> = (100..1_200).map(|n| of(n, None, Some(after))).collect();
    store.commit(&lease, &refusing(&many, &[], 0)).await.unwrap();
    assert_eq!(store.statistics().await.unwrap().refusals, 1_100);
    assert_eq!(store.refused_after(&head.did, Some(head)).await.unwrap(), 1_000);
    assert_eq!(store.refused_after(&head.did, None).await.unwrap(), 1_000);
    let others = (2_000..11_000).map(|n| NewRefusal { did: String::new(), ..of(n, None, None) });
    store.commit(&lease, &refusing(&others.collect::<Vec<_>>(), &[], 0)).await.unwrap();
    assert_eq!(store.statistics().await.unwrap().refusals, MOST_COUNTED);
}

/// Who has read up to a record reads on after it, so no later one stands before it.
async fn no_number_of_a_refusal_comes_twice(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    store.limit_refusals(limits(40, 40));
    let refuse = async |new: &NewRefusal| {
        let commit = refusing(std::slice::from_ref(new), &[], 0);
        store.commit(&lease, &commit).await.unwrap();
    };
    let mut old = sized('a', "x", "k", "p", 20);
    refuse(&old).await;
    let mut last = 0;
    for letter in ['b', 'c', 'd'] {
        refuse(&sized(letter, "x", "k", "p", 20)).await;
        let kept = store.refusals(None, last, 10).await.unwrap();
        let newest = kept.last().unwrap();
        assert!(newest.id > last && newest.refusal.line[0] == letter as u8, "{letter}: {kept:?}");
        last = newest.id;
        // The one before all of them, refused anew for a longer reason, takes the place of the newest.
        let short = std::mem::replace(&mut old.detail, "é".repeat(2_000));
        refuse(&old).await;
        assert_eq!(kept_lines(&store).await, "a");
        old.detail = short;
        refuse(&old).await;
    }
}

async fn rereading_is_remembered(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    assert_eq!(store.source().await.unwrap().unwrap().rereading, Rereading::default());
    for began in [Some(RECEIVED), None] {
        let rereading = Rereading { second: 3, round: 2, round_began_at: began, rounds: 2 };
        store.set_rereading(&lease, rereading).await.unwrap();
        let source = place.open().await.source().await.unwrap().unwrap();
        assert_eq!(source.rereading, rereading);
    }
    // A commit leaves it as it is, and the next who follows is told.
    store.commit(&lease, &commit_of(0, &identities(16, 1))).await.unwrap();
    store.release(lease.clone()).await.unwrap();
    let other = place.open().await;
    let (now, source) = follow(&other).await;
    assert_eq!(
        source.rereading,
        Rereading { second: 3, round: 2, round_began_at: None, rounds: 2 }
    );
    let lost = store.set_rereading(&lease, Rereading::default()).await;
    assert!(matches!(lost, Err(StoreError::LostLease(_))), "{lost:?}");
    let (upstream, at) = ("https://b.example".to_owned(), Timestamp::from_millis);
    let by_time = ByTime { upstream, read: at(1_700_000_000_000), second: at(7) };
    let lost = store.set_by_time(&lease, &by_time).await;
    assert!(matches!(lost, Err(StoreError::LostLease(_))), "{lost:?}");
    assert_eq!(other.source().await.unwrap().unwrap().by_time, None);
    other.set_by_time(&now, &by_time).await.unwrap();
    assert_eq!(other.source().await.unwrap().unwrap().by_time, Some(by_time));
    assert_eq!(other.source().await.unwrap().unwrap().rereading, source.rereading);
}

async fn what_is_unsettled_stays_until_it_is_read(place: Place) {
    let (store, lease) = filled(&place, &[]).await;
    let at = Timestamp::from_millis;
    let unsettled = async |before| {
        let unsettled = place.open().await.unsettled(0, at(before), 10).await.unwrap();
        unsettled.iter().map(|it| (it.number, it.times)).collect::<Vec<_>>()
    };
    let changes = async |changed: &[(i64, bool)], millis| {
        let unsettled =
            changed.iter().map(|&(number, times)| Unsettled { number, times }).collect();
        let commit = Commit { unsettled, received_at_millis: millis, ..Commit::default() };
        store.commit(&lease, &commit).await.unwrap();
    };
    changes(&[(9, false), (5, true), (7, false)], 100).await;
    changes(&[(7, true), (12, false)], 200).await;
    assert_eq!(unsettled(100).await, []);
    assert_eq!(unsettled(101).await, [(5, true), (9, false)]);
    assert_eq!(unsettled(201).await, [(5, true), (7, true), (9, false), (12, false)]);
    // Once a time has changed, it is one of those whose time has.
    changes(&[(5, false)], 300).await;
    assert_eq!(unsettled(301).await[0], (5, true));
    let of_page = store.unsettled(5, at(301), 2).await.unwrap();
    assert_eq!(of_page.iter().map(|it| it.number).collect::<Vec<_>>(), [7, 9]);
    // What has changed again since is not settled, nor what was not read.
    store.settle(&lease, vec![5, 9], at(250)).await.unwrap();
    assert_eq!(unsettled(301).await, [(5, true), (7, true), (12, false)]);
    let other = Lease { epoch: lease.epoch - 1 };
    let lost = store.settle(&other, vec![5], at(400)).await;
    assert!(matches!(lost, Err(StoreError::LostLease(_))), "{lost:?}");
    assert_eq!(unsettled(301).await.len(), 3);
    // A cursor that is put back takes with it what is above.
    let forth = Commit { cursor_after: 20, ..Commit::default() };
    store.commit(&lease, &forth).await.unwrap();
    let back = Commit { cursor_before: 20, cursor_after: 10, ..Commit::default() };
    store.commit(&lease, &back).await.unwrap();
    assert_eq!(unsettled(301).await, [(5, true), (7, true)]);
    store.begin_renumbering(&lease, "https://elsewhere.example").await.unwrap();
    assert_eq!(unsettled(301).await, []);
}

async fn what_was_read_again_is_not_beyond_the_cursor(place: Place) {
    let (store, lease) = filled(&place, &identities(18, 4)).await;
    let cursor = store.source().await.unwrap().unwrap().cursor;
    assert_eq!(cursor, 12);
    let rereading = Rereading { second: 9, round: 7, round_began_at: Some(RECEIVED), rounds: 2 };
    store.set_rereading(&lease, rereading).await.unwrap();
    for (cursor_before, cursor_after) in [(12, 10), (10, 8), (8, 5), (5, 30)] {
        let commit = Commit { cursor_before, cursor_after, ..Commit::default() };
        store.commit(&lease, &commit).await.unwrap();
        let now = place.open().await.source().await.unwrap().unwrap().rereading;
        // What went away does not come back.
        let lowest = if cursor_after == 30 { 5 } else { cursor_after };
        let (second, round) = (9.min(lowest), 7.min(lowest));
        assert_eq!(now, Rereading { second, round, ..rereading });
    }
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
        ..refusal("")
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

/// What a store holds, and what is still to come into it.
struct Model {
    held: BTreeMap<(Did, Cid), StoredOperation>,
    left: Vec<StoredOperation>,
    /// Numbers that were taken from an operation and that nobody has.
    free: Vec<i64>,
    random: ChaCha20Rng,
}

impl Model {
    fn operations(&self) -> Vec<StoredOperation> {
        self.held.values().cloned().collect()
    }

    fn of(&self, did: Did) -> Vec<StoredOperation> {
        let of = (did, Cid::from_digest([0; 32]))..=(did, Cid::from_digest([0xff; 32]));
        self.held.range(of).map(|(_, operation)| operation.clone()).collect()
    }

    fn hold(&mut self, operations: &[StoredOperation]) {
        for operation in operations {
            self.held.insert((operation.did, operation.cid()), operation.clone());
        }
    }

    /// A commit of what comes next, in no order and some of it later than it should, and of changes to what is held.
    fn next(&mut self, cursor: i64) -> Commit {
        let count = self.random.random_range(0..=self.left.len().min(9));
        let mut operations: Vec<_> = self.left.drain(..count).collect();
        operations.shuffle(&mut self.random);
        if count > 4 {
            self.left.push(operations.pop().unwrap());
        }
        let mut commit = commit_of(cursor, &operations);
        self.nullify_some(&mut commit);
        self.number_some(&mut commit);
        self.rewrite_some(&mut commit);
        if !self.free.is_empty() && self.random.random_bool(0.5) {
            // A number that somebody had before, or has until this commit.
            if let Some(new) = commit.operations.last_mut() {
                new.sequence = self.free.pop();
            }
        }
        self.hold(&commit.operations);
        commit
    }

    /// An operation whose time no other of its identity has, as what is nullified or numbered.
    fn any(&mut self) -> Option<&mut StoredOperation> {
        let place = self.random.random_range(0..self.held.len().max(1));
        let operation = self.held.values().nth(place)?.clone();
        let of_time = |other: &&StoredOperation| other.created_at == operation.created_at;
        let is_alone = self.of(operation.did).iter().filter(of_time).count() == 1;
        is_alone.then(|| self.held.get_mut(&(operation.did, operation.cid())).unwrap())
    }

    fn nullify_some(&mut self, commit: &mut Commit) {
        if let Some(operation) = self.any() {
            operation.nullified_by = Some(RECEIVED);
            commit.nullified.push((operation.did, operation.created_at, RECEIVED));
        }
    }

    fn number_some(&mut self, commit: &mut Commit) {
        // In no order, and none twice.
        let number = 1_000_000 + self.random.random_range(0..1 << 40);
        if let Some(operation) = self.any().filter(|operation| operation.sequence.is_none()) {
            operation.sequence = Some(number);
            commit.numbered.push((operation.did, operation.created_at, number));
        }
    }

    /// Rewrites up to three identities: what was left out comes in, numbers go from one to another, away and back,
    /// and times become equal.
    fn rewrite_some(&mut self, commit: &mut Commit) {
        let of_commit = commit.operations.iter().map(|new| new.did);
        let nullified = commit.nullified.iter().map(|(did, ..)| *did);
        let numbered = commit.numbered.iter().map(|(did, ..)| *did);
        let busy: BTreeSet<Did> = of_commit.chain(nullified).chain(numbered).collect();
        let mut dids: Vec<Did> = self.held.keys().map(|(did, _)| *did).collect();
        dids.dedup();
        dids.retain(|did| !busy.contains(did));
        dids.shuffle(&mut self.random);
        dids.truncate(self.random.random_range(0..=3));
        let mut all = Vec::new();
        for did in dids {
            let stored = self.of(did);
            let mut whole = stored.clone();
            whole.extend(self.left.extract_if(.., |late| late.did == did));
            let (one, other) = (
                self.random.random_range(0..whole.len()),
                self.random.random_range(0..whole.len()),
            );
            whole[one].nullified_by = self.random.random_bool(0.5).then_some(RECEIVED);
            if self.random.random_bool(0.3) {
                whole[one].created_at = whole[other].created_at;
            }
            all.push((stored, whole));
        }
        self.renumber(&mut all);
        for (stored, whole) in all {
            self.hold(&whole);
            commit.rewritten.push(rewritten(&stored, &whole));
        }
    }

    fn renumber(&mut self, all: &mut [(Vec<StoredOperation>, Vec<StoredOperation>)]) {
        let operations = || all.iter().flat_map(|(_, whole)| whole);
        let mut numbers: Vec<Option<i64>> = operations().map(|of| of.sequence).collect();
        if self.random.random_bool(0.5) {
            numbers.shuffle(&mut self.random);
        }
        for number in &mut numbers {
            match number {
                Some(taken) if self.random.random_bool(0.1) => {
                    self.free.push(*taken);
                    *number = None;
                }
                None if self.random.random_bool(0.3) => *number = self.free.pop(),
                _ => {}
            }
        }
        let operations = all.iter_mut().flat_map(|(_, whole)| whole);
        for (operation, number) in operations.zip(numbers) {
            operation.sequence = number;
        }
    }
}

/// Commits of everything there is, drawn from a seed, beside a map that is changed likewise. After each of them who
/// reads elsewhere sees the same, and the index of claims has what it says.
async fn any_sequence_of_commits_is_what_a_map_says(place: Place) {
    let elsewhere = place.open().await;
    for seed in 0..6 {
        let random = ChaCha20Rng::seed_from_u64(seed);
        let mut left: Vec<StoredOperation> = identities(20 + seed, 25);
        for operation in &mut left {
            operation.sequence = operation.sequence.map(|n| n + 1000 * seed as i64 + 1);
        }
        if seed % 3 == 1 {
            // An import without numbers, of which some are numbered later.
            left.iter_mut().for_each(|operation| operation.sequence = None);
        }
        let mut store = place.open().await;
        let (mut lease, mut source) = follow(&store).await;
        let mut model = Model { held: BTreeMap::new(), left, free: Vec::new(), random };
        model.hold(&paged_by_identity(&store).await);
        while !model.left.is_empty() {
            let commit = model.next(source.cursor);
            store.commit(&lease, &commit).await.unwrap();
            source.cursor = commit.cursor_after;
            let held = sorted(&model.operations());
            for store in [&store, &elsewhere] {
                assert_eq!(store.next_histories(None, 10_000).await.unwrap(), held);
                for rewritten in &commit.rewritten {
                    let history = sorted(&rewritten.operations);
                    assert_eq!(store.history(&rewritten.did).await.unwrap(), history);
                }
            }
            match model.random.random_range(0..20) {
                0..3 => assert_holds(&store, &held).await,
                3..6 => assert_holds(&elsewhere, &held).await,
                6 => store.keep_claims().await.unwrap(),
                7..10 => store.build_claims(model.random.random_range(1..40)).await.unwrap(),
                10 => store.set_durability(model.random.random_bool(0.7)).await.unwrap(),
                11..13 => {
                    store.release(lease).await.unwrap();
                    store = place.open().await;
                    (lease, source) = follow(&store).await;
                }
                _ => assert_index(&store).await,
            }
        }
        for store in [&store, &elsewhere, &place.open().await] {
            assert_holds(store, &model.operations()).await;
        }
        store.release(lease).await.unwrap();
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

/// While numbers go from one identity to another, each reader finds every operation that there is, and
/// never one that is another's.
async fn readers_see_numbers_move(place: Place) {
    let operations = identities(17, 120);
    let (store, lease) = filled(&place, &[]).await;
    let elsewhere = place.open().await;
    let pairs: Vec<[StoredOperation; 2]> =
        operations[..120].chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect();
    let dids: Vec<[Did; 2]> = pairs.iter().map(|[one, other]| [one.did, other.did]).collect();
    let readers: Vec<_> = [store.clone(), store.clone(), elsewhere.clone(), elsewhere]
        .map(|store| {
            let dids = dids.clone();
            tokio::spawn(async move {
                let mut looked = 0;
                for pair in dids {
                    let mut swapped = false;
                    while !swapped {
                        let both = store.histories(&pair).await.unwrap();
                        let of = |did| both.iter().filter(|one| one.did == did).count();
                        assert!(both.is_empty() || pair.map(of) == [1, 1], "{both:?}");
                        let head = store.head(&pair[0]).await.unwrap();
                        let history = store.history(&pair[1]).await.unwrap();
                        let found = usize::from(head.is_some()) + history.len();
                        assert!(found >= both.len(), "one is missing");
                        let numbers: BTreeSet<_> = both.iter().map(|one| one.sequence).collect();
                        assert_eq!(numbers.len(), both.len(), "half a commit: {both:?}");
                        swapped = both.iter().any(|one| one.received_at != RECEIVED);
                        looked += 1;
                        tokio::task::yield_now().await;
                    }
                }
                looked
            })
        })
        .into();
    let mut cursor = 0;
    for [one, other] in &pairs {
        let new = [one.clone(), other.clone()];
        let commit = commit_of(cursor, &new);
        cursor = commit.cursor_after;
        store.commit(&lease, &commit).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        // There and back, some times.
        let mut now = new;
        for _ in 0..3 {
            let mut then = now.clone();
            (then[0].sequence, then[1].sequence) = (now[1].sequence, now[0].sequence);
            let swap = [0, 1].map(|at| rewritten(&now[at..=at], &then[at..=at]));
            let commit = Commit { rewritten: swap.to_vec(), ..commit_of(cursor, &[]) };
            store.commit(&lease, &commit).await.unwrap();
            now = then;
        }
        let mut done = now.clone();
        for operation in &mut done {
            operation.received_at = RECEIVED + Duration::from_secs(1);
        }
        let mark = [0, 1].map(|at| rewritten(&now[at..=at], &done[at..=at]));
        let commit = Commit { rewritten: mark.to_vec(), ..commit_of(cursor, &[]) };
        store.commit(&lease, &commit).await.unwrap();
    }
    for reader in readers {
        assert!(reader.await.unwrap() >= 60);
    }
}
