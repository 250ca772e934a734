//! Which operation has which sequence number after several batches, on both backends: what one batch leaves in
//! memory for the next has to be what is stored.

use std::sync::Arc;

use bytes::Bytes;
use did_plc::Timestamp;
use did_plc::signature::PlainVerifier;
use plc_replica::judge::{BatchJudge, Course, Cut, Decoded, Lines, NotJson, Prepared};
use plc_replica::store::{Lease, Store};
use plc_testkit::Generated;
use plc_testkit::builder::Story;
use tokio::sync::watch;

use crate::contract::Place;

const UPSTREAM: &str = "https://plc.example";

/// A store on each backend that there is.
async fn places() -> Vec<Place> {
    [Place::sqlite(), Place::postgres().await].into_iter().flatten().collect()
}

/// The genesis operations of some identities.
fn geneses<const COUNT: usize>() -> [Generated; COUNT] {
    let mut story = Story::seeded(91);
    for _ in 0..COUNT {
        story.create().accepted();
    }
    <[Generated; COUNT]>::try_from(story.log().to_vec()).unwrap()
}

/// The line of an operation under a number.
fn under(seq: i64, operation: &Generated) -> String {
    Generated { seq, ..operation.clone() }.sequenced_line()
}

/// One process that takes in batches.
struct Process {
    store: Store,
    lease: Lease,
    judge: BatchJudge,
    committed: watch::Sender<u64>,
}

impl Process {
    async fn start(place: &Place) -> Process {
        let store = place.open().await;
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let (committed, receiver) = watch::channel(0);
        let verifier = Arc::new(PlainVerifier);
        let judge = BatchJudge::new(store.clone(), verifier, UPSTREAM.to_owned(), receiver);
        Process { judge: judge.await.unwrap(), store, lease, committed }
    }

    /// Judges lines at once, and commits what follows.
    async fn take(&mut self, course: Course, lines: impl IntoIterator<Item = String>) -> Prepared {
        let decoded = Decoded::from_lines(lines.into_iter().map(Bytes::from).collect()).await;
        let received_at = Timestamp::from_millis(1_800_000_000_000);
        let lines = Lines { decoded, received_at, caught_up: false, course, source: None };
        let Cut { part, .. } = Cut::of(lines, 0, NotJson::Keep, true);
        let mut prepared = self.judge.judge(part, &[]).await.unwrap();
        prepared.commit.cursor_after = 0;
        self.store.commit(&self.lease, &prepared.commit).await.unwrap();
        self.committed.send_replace(prepared.batch);
        prepared
    }

    /// The numbers that operations have in the store.
    async fn numbers<const COUNT: usize>(&self, of: [&Generated; COUNT]) -> [Option<i64>; COUNT] {
        let mut numbers = [None; COUNT];
        for (number, operation) in numbers.iter_mut().zip(of) {
            let held = self.store.history(&operation.did.parse().unwrap()).await.unwrap();
            *number =
                held.iter().find(|row| row.cid().to_string() == operation.cid).unwrap().sequence;
        }
        numbers
    }

    /// The kinds of differences on record.
    async fn records(&self) -> Vec<String> {
        let records = self.store.divergences(None, None, None, 0, 100).await.unwrap();
        records.into_iter().map(|record| record.divergence.kind).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_stated_for_another_in_the_same_batch_is_not_had() {
    let [a, b, c] = geneses();
    for place in places().await {
        let mut process = Process::start(&place).await;
        process.take(Course::Again, [under(10, &a), under(10, &b), under(12, &c)]).await;
        assert_eq!(process.numbers([&a, &b, &c]).await, [None, Some(10), Some(12)]);
        // As when they come in two batches.
        assert_eq!(process.records().await, ["restated-sequence"]);
        process.take(Course::Again, [under(10, &a), under(11, &b)]).await;
        assert_eq!(process.numbers([&a, &b, &c]).await, [Some(10), Some(11), Some(12)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_for_an_operation_without_one_the_last_is_had() {
    let [a, b] = geneses();
    for place in places().await {
        let mut process = Process::start(&place).await;
        process.take(Course::Again, [a.audit_entry(), b.audit_entry()]).await;
        for (of, [first, last]) in [(&a, [5, 6]), (&b, [8, 7])] {
            process.take(Course::Again, [under(first, of), under(last, of)]).await;
            assert_eq!(process.numbers([of]).await, [Some(last)]);
            process.take(Course::Again, [under(first, of)]).await;
            assert_eq!(process.numbers([of]).await, [Some(first)]);
        }
    }
}

/// The same operation is stated without one and then, in the same batch, with one and another time.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_stated_later_in_the_batch_is_had() {
    let [a] = geneses();
    let later = Generated { created_at: "2030-01-01T00:00:00.000Z".to_owned(), ..a.clone() };
    for place in places().await {
        let mut process = Process::start(&place).await;
        process.take(Course::Again, [a.audit_entry(), under(5, &later)]).await;
        assert_eq!(process.numbers([&a]).await, [Some(5)]);
        assert_eq!(process.records().await, ["restated-created-at"]);
    }
}

/// What has one keeps it, what has none gets a free one, and nothing of it is a difference.
#[tokio::test(flavor = "multi_thread")]
async fn those_of_a_dump_are_had_where_nothing_else_is() {
    let [held, first, second, without, new] = geneses();
    for place in places().await {
        let mut process = Process::start(&place).await;
        process.take(Course::Again, [under(1, &held), under(2, &first), under(3, &second)]).await;
        process.take(Course::Again, [without.audit_entry()]).await;
        // One free number, and each other's.
        let dump = [under(100, &held), under(3, &first), under(2, &second), under(1, &without)];
        process.take(Course::Elsewhere, dump).await;
        let all = [&held, &first, &second, &without];
        assert_eq!(process.numbers(all).await, [Some(1), Some(2), Some(3), None]);
        // Neither of two that are had.
        process.take(Course::Elsewhere, [under(2, &without), under(3, &without)]).await;
        assert_eq!(process.numbers(all).await, [Some(1), Some(2), Some(3), None]);
        // What is stated for one that has its own is free for others.
        let dump = [under(50, &without), under(100, &new), under(100, &held)];
        process.take(Course::Elsewhere, dump).await;
        assert_eq!(process.numbers([&held, &without, &new]).await, [Some(1), Some(50), Some(100)]);
        assert_eq!(process.records().await, [""; 0]);
        // The upstream's own statement stands against that of a dump.
        process.take(Course::Again, [under(100, &held)]).await;
        assert_eq!(process.numbers([&held, &new]).await, [Some(100), None]);
        assert_eq!(process.records().await.len(), 2);
    }
}

/// Stream clients are told of what gets a number where it had none, since who came in between was sent it under none.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_changes_its_own_is_no_news_and_one_that_had_none_is() {
    let [a, b, without] = geneses();
    for place in places().await {
        let mut process = Process::start(&place).await;
        process.take(Course::Again, [under(1, &a), without.audit_entry()]).await;
        let changed = process.take(Course::Again, [under(2, &a)]).await;
        assert_eq!(process.numbers([&a]).await, [Some(2)]);
        assert_eq!((changed.commit.numbered, changed.commit.late), (vec![], vec![]));
        // It loses its number, and gets one again.
        let taken = process.take(Course::Again, [under(2, &b)]).await;
        assert_eq!((taken.commit.operations.len(), taken.commit.late), (1, vec![]));
        assert_eq!(process.numbers([&a, &b]).await, [None, Some(2)]);
        let back = process.take(Course::Again, [under(4, &a), under(3, &without)]).await;
        assert_eq!(process.numbers([&a, &b, &without]).await, [Some(4), Some(2), Some(3)]);
        let mut numbers: Vec<i64> = back.commit.numbered.iter().map(|(.., it)| *it).collect();
        numbers.extend(back.commit.late.iter().copied());
        numbers.sort_unstable();
        assert_eq!(numbers, [3, 4]);
    }
}
