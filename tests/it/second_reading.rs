//! Pages are read once more: what is missing in them, and what is only somewhere else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use did_plc::Timestamp;
use plc_replica::follow::RereadingSettings;
use plc_replica::store::{Rereading, Store, StoredDivergence};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};

use crate::follow::{Place, Running, entries, eventually, places};
use crate::healing::{Row, honest, rows};

/// Everything is read again all the time.
pub const AT_ONCE: RereadingSettings =
    RereadingSettings { second_after: Duration::ZERO, round: Some(Duration::from_millis(50)) };

async fn rounds(store: &Store) -> i64 {
    store.source().await.unwrap().unwrap().rereading.rounds
}

/// Waits until the whole log was read again once more, from its beginning.
async fn another_round(store: &Store) {
    let (begun, before) = (Instant::now(), rounds(store).await);
    while rounds(store).await < before + 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no round ends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn missing(store: &Store) -> Vec<StoredDivergence> {
    let mut records = store.divergences(None, None, None, 0, 1000).await.unwrap();
    records.retain(|record| record.divergence.kind.starts_with("missing"));
    records
}

/// So many identities, under even numbers.
fn log(seed: u64, identities: usize) -> Vec<LogEntry> {
    let mut story = Story::seeded(seed);
    for _ in 0..identities {
        story.create().accepted();
    }
    let numbered = entries(&story).into_iter().zip((2..).step_by(2));
    numbered.map(|(entry, seq)| LogEntry { seq, ..entry }).collect()
}

/// An upstream with this log, and a replica that has read it twice, in pages of forty.
async fn read_twice(place: &Place, log: &[LogEntry]) -> (FakeUpstream, Running) {
    let last = log.last().unwrap().seq;
    let upstream = FakeUpstream::start(log.to_vec()).await;
    let replica = Running::start_rereading(&place.url, &upstream.url(), 40, AT_ONCE).await;
    replica.live_at(last).await;
    eventually("all is read twice", || replica.status.read_twice() >= last).await;
    (upstream, replica)
}

/// What the upstream has under other numbers is not missing there, however much of a page it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_another_number_now_is_not_missing() {
    for moved in [3, 30] {
        let log = log(101, 120);
        for place in places().await {
            let (upstream, replica) = read_twice(&place, &log).await;
            let others = log[..moved].iter().zip((101..).step_by(2));
            for (entry, seq) in others {
                upstream.delete(entry.seq);
                upstream.append(LogEntry { seq, ..entry.clone() });
            }
            another_round(&replica.store).await;
            assert_eq!(missing(&replica.store).await, []);
            for (entry, seq) in log[..moved].iter().zip((101..).step_by(2)) {
                let held = replica.store.sequences(&[seq]).await.unwrap();
                assert_eq!(held[0].cid().to_string(), entry.cid);
            }
            replica.end().await;
        }
    }
}

/// An upstream that gives its last operations lower numbers leaves the cursor above all of them, and nothing is
/// damaged by that: it is seen to at the end of a replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_tail_with_lower_numbers_is_no_damage() {
    for moved in [1, 3, 60] {
        let log = log(103, 120);
        let last = log.last().unwrap().seq;
        for place in places().await {
            let (upstream, replica) = read_twice(&place, &log).await;
            let tail = &log[log.len() - moved..];
            for entry in tail {
                upstream.delete(entry.seq);
                upstream.append(LogEntry { seq: entry.seq - 1, ..entry.clone() });
            }
            another_round(&replica.store).await;
            for entry in tail {
                let held = replica.store.sequences(&[entry.seq - 1]).await.unwrap();
                assert_eq!(held[0].cid().to_string(), entry.cid);
            }
            assert_eq!(replica.store.source().await.unwrap().unwrap().cursor, last);
            replica.end().await;
        }
    }
}

/// What the upstream does not have any more is on record, however much of a page it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_nowhere_in_the_export_is_on_record() {
    for gone in [3, 30] {
        let log = log(102, 120);
        for place in places().await {
            let (upstream, replica) = read_twice(&place, &log).await;
            for entry in &log[..gone] {
                upstream.delete(entry.seq);
            }
            another_round(&replica.store).await;
            let records = missing(&replica.store).await;
            assert!(records.iter().all(|record| record.divergence.kind == "missing-in-export"));
            let mut found: Vec<_> =
                records.into_iter().map(|record| record.divergence.subject).collect();
            let mut expected: Vec<_> = log[..gone].iter().map(|entry| entry.cid.clone()).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected);
            replica.end().await;
        }
    }
}

/// A round that stands beyond what was read twice, as after a cursor that was put back, ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_beyond_the_second_reading_ends() {
    let log = log(103, 20);
    let last = log.last().unwrap().seq;
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(last).await;
        let store = replica.end().await;
        let (lease, source) = store.follow(&upstream.url()).await.unwrap();
        let beyond = Rereading { second: 10, round: last, ..source.rereading };
        store.set_rereading(&lease, beyond).await.unwrap();
        store.release(lease).await.unwrap();
        drop(store);
        // Nothing of it is due to be read twice yet.
        let rereading = RereadingSettings { second_after: Duration::from_secs(3_600), ..AT_ONCE };
        let replica = Running::start_rereading(&place.url, &upstream.url(), 5, rereading).await;
        another_round(&replica.store).await;
        replica.end().await;
    }
}

/// What is read once more soon, and in no rounds.
const SOON: RereadingSettings =
    RereadingSettings { second_after: Duration::from_millis(500), round: None };

/// The same, long enough for the upstream to be honest again before anything is read for the third time.
const LATER: RereadingSettings =
    RereadingSettings { second_after: Duration::from_secs(4), round: None };

/// An upstream that lies on one route while it is asked to.
async fn liar(
    log: &[LogEntry],
    route: Route,
    lie: impl Fn(&mut Vec<String>) + Send + Sync + 'static,
) -> (FakeUpstream, Arc<AtomicBool>) {
    let upstream = FakeUpstream::start(log.to_vec()).await;
    let lies = Arc::new(AtomicBool::new(false));
    let is_lying = Arc::clone(&lies);
    let edited = Fault::edited(move |lines| {
        if is_lying.load(Ordering::SeqCst) {
            lie(lines);
        }
    });
    upstream.fail(route, usize::MAX, edited);
    (upstream, lies)
}

/// A number that is stated for another operation long after its page was read twice is asked about once more.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_change_long_after_the_second_reading_are_read_again() {
    let log = log(104, 20);
    let (last, (old, new)) = (log[18].seq, log.split_at(19));
    let expected = honest(&log).await;
    for place in places().await {
        let taken = LogEntry { seq: log[2].seq, ..log[7].clone() }.sequenced();
        let lie = move |lines: &mut Vec<String>| lines.insert(0, taken.clone());
        let (upstream, lies) = liar(old, Route::Stream, lie).await;
        let replica = Running::start_rereading(&place.url, &upstream.url(), 40, SOON).await;
        replica.live_at(last).await;
        eventually("all is read twice", || replica.status.read_twice() >= last).await;
        lies.store(true, Ordering::SeqCst);
        upstream.append_all(new.iter().cloned());
        replica.live_at(log[19].seq).await;
        lies.store(false, Ordering::SeqCst);
        assert_ne!(rows(&replica.store).await, expected);
        heals(&replica.store, &expected).await;
        replica.end().await;
    }
}

/// Times that are stated wrongly at the second reading are asked about once more, also those by which something does
/// not verify.
#[tokio::test(flavor = "multi_thread")]
async fn times_that_change_at_the_second_reading_are_read_again() {
    let mut story = Story::seeded(105);
    for _ in 0..120 {
        let identity = story.create().accepted();
        story.update(&identity).handle("x.example").accepted();
    }
    let log = entries(&story);
    let last = log.last().unwrap().seq;
    let expected = honest(&log).await;
    for place in places().await {
        // Of every third identity the head is dated before what it builds on; of the others what it builds on is later.
        let changed: Vec<(String, String)> = log
            .chunks(2)
            .step_by(2)
            .enumerate()
            .map(|(number, both)| match number % 3 {
                0 => (both[1].created_at.clone(), "2020-01-01T00:00:00.000Z".to_owned()),
                _ => (both[0].created_at.clone(), both[1].created_at.clone()),
            })
            .collect();
        let lie = move |lines: &mut Vec<String>| {
            for line in lines {
                for (honest, wrong) in &changed {
                    *line = line.replace(honest, wrong);
                }
            }
        };
        let (upstream, lies) = liar(&log, Route::Export, lie).await;
        let replica = Running::start_rereading(&place.url, &upstream.url(), 40, LATER).await;
        replica.live_at(last).await;
        lies.store(true, Ordering::SeqCst);
        eventually("all is read twice", || replica.status.read_twice() >= last).await;
        lies.store(false, Ordering::SeqCst);
        assert_ne!(rows(&replica.store).await, expected);
        heals(&replica.store, &expected).await;
        replica.end().await;
    }
}

/// Waits until this is what is held, and all of it was read once more.
async fn heals(store: &Store, expected: &BTreeMap<i64, Row>) {
    let begun = Instant::now();
    let is_settled = async || {
        let ever = Timestamp::from_millis(i64::MAX);
        store.unsettled(0, ever, 1).await.unwrap().is_empty()
    };
    while rows(store).await != *expected || !is_settled().await {
        if begun.elapsed() > Duration::from_secs(30) {
            let held = rows(store).await;
            let other: Vec<_> =
                expected.iter().filter(|(number, row)| held.get(number) != Some(row)).collect();
            panic!(
                "it does not heal: {} are missing or other, as {:?}",
                other.len(),
                other.first()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
