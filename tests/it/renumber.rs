//! `plc-replica renumber`: a store is turned to an upstream that has the same operations under other numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use did_plc::Timestamp;
use plc_replica::follow::{FollowError, RereadingSettings};
use plc_replica::store::Store;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;

use crate::follow::{Place, Running, eventually, lives_with_attacks, places};
use crate::process::{Ran, run};

/// The same operations under other numbers.
fn renumbered(log: &[LogEntry], numbers: impl IntoIterator<Item = i64>) -> Vec<LogEntry> {
    log.iter().zip(numbers).map(|(entry, seq)| LogEntry { seq, ..entry.clone() }).collect()
}

fn renumber(place: &Place, upstream: &str) -> Ran {
    run(&["renumber", "--database", &place.url, "--upstream", upstream])
}

/// Follows to the end of a log.
async fn follow(place: &Place, upstream: &FakeUpstream) {
    let replica = Running::start(&place.url, &upstream.url()).await;
    replica.live_at(upstream.log().last().unwrap().seq).await;
    replica.end().await;
}

/// A row of the log as it is exported: number, identity, CID, time, and whether it stands.
type Row = (i64, String, String, Timestamp, Option<Timestamp>);

/// What a store exports by number, what is refused there under which number, and the number of records.
async fn held(place: &Place) -> (Vec<Row>, BTreeMap<String, (String, Option<i64>)>, usize) {
    let store = Store::open(&place.url).await.unwrap();
    let rows = store.export_by_sequence(0, 100_000).await.unwrap().into_iter().map(|row| {
        let (did, cid) = (row.did.to_string(), row.cid().to_string());
        (row.sequence.unwrap(), did, cid, row.created_at, row.nullified_by)
    });
    let refusals = store.refusals(None, 0, 100_000).await.unwrap().into_iter();
    let refusals = refusals.map(|kept| {
        let refusal = kept.refusal;
        (refusal.cid.unwrap().to_string(), (refusal.kind, refusal.sequence))
    });
    let records = store.divergences(None, None, None, 0, 100_000).await.unwrap().len();
    (rows.collect(), refusals.collect(), records)
}

/// After it, all is as if this upstream had been followed from the beginning.
async fn becomes(place: &Place, fresh: &Place, upstream: &FakeUpstream) {
    follow(place, upstream).await;
    follow(fresh, upstream).await;
    let (rows, refusals, records) = held(place).await;
    let (expected_rows, expected_refusals, _) = held(fresh).await;
    assert_eq!(rows, expected_rows);
    assert_eq!(refusals, expected_refusals);
    assert_eq!(records, 0, "that numbers are others is what was asked for");
    let checked = run(&["fsck", "--database", &place.url]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_of_another_upstream_are_taken_over() {
    let log = lives_with_attacks(81, 60);
    let count = log.len() as i64;
    let mut permuted: Vec<i64> = (1..=count).collect();
    permuted.shuffle(&mut ChaCha20Rng::seed_from_u64(82));
    let shifted = 1_001..1_001 + count;
    let some_more = 4..4 + count;
    for numbers in [shifted.collect(), permuted, some_more.collect::<Vec<_>>()] {
        for (place, fresh) in places().await.into_iter().zip(places().await) {
            let first = FakeUpstream::start(log.clone()).await;
            follow(&place, &first).await;
            let other = FakeUpstream::start(renumbered(&log, numbers.iter().copied())).await;
            let ran = renumber(&place, &other.url());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            for said in [
                format!("{} was followed up to number {count}", first.url()),
                format!("from now on it is {}", other.url()),
                format!("serve --upstream {}", other.url()),
            ] {
                assert!(ran.out.contains(&said), "{ran:?}");
            }
            becomes(&place, &fresh, &other).await;
            // And back again, without a page of it being there meanwhile.
            let ran = renumber(&place, &first.url());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            let fresh = places().await.remove(0);
            becomes(&place, &fresh, &first).await;
        }
    }
}

/// Lookups are answered as before while the other log is read.
#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_meanwhile() {
    let log = lives_with_attacks(83, 90);
    for place in places().await {
        let first = FakeUpstream::start(log.clone()).await;
        let replica = Running::start(&place.url, &first.url()).await;
        let last = log.last().unwrap().seq;
        replica.live_at(last).await;
        let paths: Vec<String> = log
            .iter()
            .flat_map(|entry| {
                ["", "/log/audit", "/log/last"].map(|path| format!("/{}{path}", entry.did))
            })
            .collect();
        let mut before = BTreeMap::new();
        for path in &paths {
            before.insert(path, replica.get(path).await);
        }
        replica.end().await;

        let numbers: Vec<i64> = (1..=last).rev().map(|number| number + 5).collect();
        let other = FakeUpstream::start(renumbered(&log, numbers)).await;
        other.give_at_most(3);
        assert_eq!(renumber(&place, &other.url()).code, Some(0));
        let replica = Running::start_paging_by(&place.url, &other.url(), 3).await;
        let mut meanwhile = 0;
        while replica.status.sequence() < last + 5 {
            for path in &paths {
                assert_eq!(&replica.get(path).await, &before[path], "{path}");
                meanwhile += usize::from(replica.status.sequence() < last + 5);
            }
        }
        assert!(meanwhile > 0);
        replica.live_at(last + 5).await;
        replica.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_log_is_refused() {
    let log = lives_with_attacks(84, 20);
    for place in places().await {
        let empty = renumber(&place, "http://127.0.0.1:1");
        assert_eq!(empty.code, Some(2), "{empty:?}");
        let first = FakeUpstream::start(log.clone()).await;
        follow(&place, &first).await;
        let before = held(&place).await;
        let other = FakeUpstream::start(lives_with_attacks(85, 20)).await;
        let nothing = FakeUpstream::start([]).await;
        let ran = renumber(&place, &other.url());
        let said = format!(
            "only 0 of the first 27 operations of {} are in this database: it is another log; use another database for it",
            other.url()
        );
        assert!(ran.code == Some(2) && ran.errors.contains(&said), "{ran:?}");
        let ran = renumber(&place, &nothing.url());
        let said = format!("{} sent no operations that could be compared", nothing.url());
        assert!(ran.code == Some(2) && ran.errors.contains(&said), "{ran:?}");
        let web = FakeUpstream::start(log.clone()).await;
        web.fail(Route::Export, usize::MAX, Fault::WebPage);
        let ran = renumber(&place, &web.url());
        assert!(ran.code == Some(2) && ran.errors.contains("is not an export"), "{ran:?}");
        let away = renumber(&place, "http://127.0.0.1:1");
        let said = "http://127.0.0.1:1: the upstream cannot be reached";
        assert!(away.code == Some(2) && away.errors.contains(said), "{away:?}");

        // The way there is named to who follows another upstream without it.
        let shifted = FakeUpstream::start(renumbered(&log, 1_001..2_000)).await;
        let replica = Running::start(&place.url, &shifted.url()).await;
        let error = replica.fails().await;
        assert!(matches!(error, FollowError::OtherUpstream { .. }));
        let way = format!("`plc-replica renumber --upstream {}`", shifted.url());
        assert!(error.to_string().contains(&way), "{error}");

        let replica = Running::start(&place.url, &first.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        let ran = renumber(&place, &shifted.url());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.errors.contains("stop `serve` while this runs"), "{ran:?}");
        let source = replica.store.source().await.unwrap().unwrap();
        assert_eq!((source.upstream, source.cursor), (first.url(), log.last().unwrap().seq));
        replica.end().await;
        assert_eq!(held(&place).await, before);
    }
}

/// What was read before is not compared with the other log before its numbers are taken over.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_reading_waits_for_the_numbers() {
    let log = lives_with_attacks(86, 60);
    let last = 1_000 + log.last().unwrap().seq;
    for place in places().await {
        let first = FakeUpstream::start(log.clone()).await;
        follow(&place, &first).await;
        let other = FakeUpstream::start(renumbered(&log, 1_001..)).await;
        other.give_at_most(2);
        assert_eq!(renumber(&place, &other.url()).code, Some(0));
        let at_once = RereadingSettings { second_after: Duration::ZERO, round: None };
        let replica = Running::start_rereading(&place.url, &other.url(), 2, at_once).await;
        replica.live_at(last).await;
        eventually("everything is read twice", || replica.status.read_twice() >= last).await;
        let records = replica.store.divergences(None, None, None, 0, 100).await.unwrap();
        assert_eq!(records, []);
        replica.end().await;
    }
}
