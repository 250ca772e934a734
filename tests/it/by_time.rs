//! An upstream as directories were before there were sequence numbers: it is found out by what it answers, and read by
//! time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plc_replica::follow::{DoubtSettings, FollowError, RereadingSettings, SwitchSettings};
use plc_replica::live::{Mode, Standing};
use plc_replica::upstream::{ExportClient, Limits};
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use plc_testkit::plcbundle;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::archives::Counting;
use crate::failover::{follows, holds, soon, stands, start, story};
use crate::follow::{Place, Running, entries, eventually, lives, places};
use crate::process::run;

const PATIENCE: Duration = Duration::from_secs(60);

/// An upstream without numbers.
async fn legacy(log: &[LogEntry]) -> FakeUpstream {
    let upstream = FakeUpstream::start(log.to_vec()).await;
    upstream.know_no_numbers(true);
    upstream
}

async fn follow(place: &Place, upstream: &FakeUpstream, page: usize) -> Running {
    follow_rereading(place, upstream, page, RereadingSettings::default()).await
}

async fn follow_rereading(
    place: &Place,
    upstream: &FakeUpstream,
    page: usize,
    rereading: RereadingSettings,
) -> Running {
    let doubts = DoubtSettings { look: Duration::from_millis(50), ..DoubtSettings::default() };
    Running::start_asking_again(&place.url, &upstream.url(), page, rereading, doubts).await
}

/// With somebody who counts the signatures that are checked.
async fn follow_counting(place: &Place, upstream: &FakeUpstream) -> (Running, Arc<Counting>) {
    let counting = Arc::new(Counting::default());
    let verifier = Arc::clone(&counting);
    let replica = Running::start_verifying_with(&place.url, &upstream.url(), verifier).await;
    (replica, counting)
}

async fn is_live(replica: &Running) {
    eventually("live", || replica.status.mode() == Mode::Live).await;
}

/// The times after which pages were asked for, from some request on.
fn asked_after(upstream: &FakeUpstream, from: usize) -> Vec<String> {
    let asked = upstream.asked().into_iter().skip(from).map(|asked| asked.path);
    let after = asked.filter_map(|path| {
        let after = path.strip_prefix("/export?after=")?.split('&').next()?.to_owned();
        Some(after).filter(|after| after.contains('T'))
    });
    after.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_read_to_its_end_and_on_from_there() {
    let log = story(300);
    for place in places().await {
        let upstream = legacy(&log[..200]).await;
        let replica = follow(&place, &upstream, 20).await;
        holds(&replica.store, &log[..200]).await;
        is_live(&replica).await;
        let nobody = "/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
        eventually("all is here", || replica.status.caught_up()).await;
        assert_eq!(replica.get(nobody).await.0, 404);
        let all = replica.get("/export?count=1000").await.2;
        let expected: Vec<String> = log[..200].iter().map(LogEntry::timestamped).collect();
        assert_eq!(all.lines().collect::<Vec<_>>(), expected);
        assert_eq!(replica.get("/export?after=0").await.2, "");
        upstream.append_all(log[200..250].to_vec());
        holds(&replica.store, &log[..250]).await;
        // At the end nothing is judged or written again and again.
        let reports = replica.status.upstreams().reports();
        assert_eq!(reports[0].standing, Standing::Followed);
        assert!(reports[0].reason.contains("without numbers"), "{reports:?}");
        replica.end().await;

        // It goes on from where it was, after an end in order and after a crash.
        for (crash, next) in [&log[..275], &log[..300]].into_iter().enumerate() {
            upstream.append_all(next[next.len() - 25..].to_vec());
            let asked = upstream.asked().len();
            let replica = follow(&place, &upstream, 20).await;
            holds(&replica.store, next).await;
            let from = asked_after(&upstream, asked);
            // One question asks whether there are numbers, where `after` would be one.
            let past = &log[200].created_at;
            assert!(from.iter().all(|after| after > past), "{from:?}");
            if crash == 1 {
                replica.crash().await;
            } else {
                replica.end().await;
            }
        }
    }
}

/// Pages that end within a moment, and a moment that is longer than a page.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_created_at_the_same_time_is_not_lost_between_two_pages() {
    let mut log = story(200);
    // Of each identity one operation: the order of equal times says nothing about them.
    let mut seen = std::collections::BTreeSet::new();
    log.retain(|entry| seen.insert(entry.did.clone()));
    assert_eq!(log.len(), 100);
    for (at, entry) in log.iter_mut().enumerate() {
        // Seven at a time, and thirty at one.
        let moment = if (40..70).contains(&at) { 40 } else { at / 7 };
        entry.created_at = format!("2024-01-01T00:00:{:02}.000Z", moment % 60);
    }
    log.sort_by(|a, b| a.created_at.cmp(&b.created_at));
    for (seq, entry) in (1..).zip(&mut log) {
        entry.seq = seq;
    }
    for place in places().await {
        for (page, lost) in [(100, 0), (40, 0), (33, 0), (20, 10)] {
            let upstream = legacy(&log).await;
            let folder = TempDir::new().unwrap();
            let url = match place.url.starts_with("sqlite") {
                true => format!("sqlite://{}", folder.path().join("plc.db").display()),
                false => place.url.clone(),
            };
            let replica = Running::start_paging_by(&url, &upstream.url(), page).await;
            is_live(&replica).await;
            let held = replica.store.export_by_time(None, 1_000).await.unwrap().len();
            // The export by time cannot give more of one moment than a page has. Somebody had them before.
            if place.url.starts_with("sqlite") {
                assert_eq!(held, 100 - lost, "pages of {page}");
            } else {
                assert_eq!(held, 100);
            }
            replica.end().await;
        }
    }
}

/// An upstream that gives fewer lines than it is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn short_pages_are_not_its_end() {
    let log = story(150);
    for place in places().await {
        let upstream = legacy(&log).await;
        upstream.give_at_most(10);
        let replica = follow(&place, &upstream, 1_000).await;
        let begun = Instant::now();
        holds(&replica.store, &log).await;
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        replica.end().await;
    }
}

/// What is left out at first, what is dated into the future, and what was damaged on its way.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_for_a_while_is_made_good() {
    let mut log = story(200);
    log[150].created_at = "2121-01-01T00:00:00.000Z".to_owned();
    let left_out = log[100].cid.clone();
    let damaged = log[120].clone();
    for place in places().await {
        let upstream = legacy(&log[..180]).await;
        let is_wrong = Arc::new(AtomicBool::new(true));
        let (is, left_out, damaged) = (Arc::clone(&is_wrong), left_out.clone(), damaged.clone());
        let fault = Fault::edited(move |lines| {
            if is.load(Ordering::Relaxed) {
                lines.retain(|line| !line.contains(&left_out));
                for line in lines.iter_mut().filter(|line| line.contains(&damaged.cid)) {
                    *line = line.replacen("\"sig\":\"", "\"sig\":\"A", 1);
                }
            }
        });
        upstream.fail(Route::Export, usize::MAX, fault);
        let rereading =
            RereadingSettings { second_after: Duration::from_secs(1), ..Default::default() };
        let replica = follow_rereading(&place, &upstream, 40, rereading).await;
        is_live(&replica).await;
        let held = replica.store.export_by_time(None, 1_000).await.unwrap();
        assert!(held.iter().all(|held| held.cid().to_string() != log[100].cid));
        is_wrong.store(false, Ordering::Relaxed);
        // One is dated into the future: what comes after it is read all the same.
        upstream.append_all(log[180..].to_vec());
        holds(&replica.store, &log).await;
        replica.end().await;
    }
}

/// A dump without numbers, or with numbers, is taken in before; what it has is recognised.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_imported_is_recognised() {
    let log = story(300);
    let folder = TempDir::new().unwrap();
    for (name, line) in [
        ("legacy.jsonl", LogEntry::timestamped as fn(&LogEntry) -> String),
        ("sequenced.jsonl", LogEntry::sequenced),
    ] {
        let dump = folder.path().join(name);
        let lines: Vec<String> = log[..250].iter().map(line).collect();
        std::fs::write(&dump, lines.join("\n")).unwrap();
        for place in places().await {
            let upstream = legacy(&log).await;
            let dump = dump.to_str().unwrap();
            let ran =
                run(&["import", dump, "--upstream", &upstream.url(), "--database", &place.url]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            let (replica, counting) = follow_counting(&place, &upstream).await;
            holds(&replica.store, &log).await;
            assert_eq!(counting.0.load(Ordering::Relaxed), 50, "{name}");
            let from = asked_after(&upstream, 0);
            let read_all = from.iter().any(|after| *after < log[0].created_at);
            assert_eq!(read_all, name == "legacy.jsonl", "{from:?}");
            replica.end().await;
        }
    }
}

/// A repository of bundles leaves nothing out up to its end: what comes after it is read, and nothing before. The second
/// reading begins with the beginning all the same.
#[tokio::test(flavor = "multi_thread")]
async fn after_bundles_it_is_read_from_their_end() {
    let log = story(300);
    let folder = TempDir::new().unwrap();
    let lines: Vec<String> = log[..230].iter().map(LogEntry::timestamped).collect();
    plcbundle::write(folder.path(), "https://plc.example", &lines, 100);
    for place in places().await {
        let upstream = legacy(&log).await;
        let repository = folder.path().to_str().unwrap();
        let options = ["--upstream", &upstream.url(), "--database", &place.url];
        for _ in 0..2 {
            let ran = run(&[&["import", repository][..], &options].concat());
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
        let (replica, counting) = follow_counting(&place, &upstream).await;
        holds(&replica.store, &log).await;
        assert_eq!(counting.0.load(Ordering::Relaxed), 100);
        let from = asked_after(&upstream, 0);
        assert!(from.iter().all(|after| *after > log[195].created_at), "{from:?}");
        replica.end().await;
        let rereading = RereadingSettings { second_after: Duration::ZERO, ..Default::default() };
        let asked = upstream.asked().len();
        let replica = follow_rereading(&place, &upstream, 1_000, rereading).await;
        let begun = Instant::now();
        while !asked_after(&upstream, asked).iter().any(|after| *after < log[0].created_at) {
            assert!(begun.elapsed() < PATIENCE);
            sleep(Duration::from_millis(20)).await;
        }
        replica.end().await;
    }
}

/// The directory gets numbers, and is read by them: what is held gets its number, and no signature is checked again.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_numbers_later_is_read_by_them() {
    let log = story(200);
    for place in places().await {
        let upstream = legacy(&log[..150]).await;
        let replica = follow(&place, &upstream, 1_000).await;
        holds(&replica.store, &log[..150]).await;
        replica.end().await;
        upstream.know_no_numbers(false);
        upstream.append_all(log[150..].to_vec());
        let (replica, counting) = follow_counting(&place, &upstream).await;
        replica.live_at(200).await;
        let numbered = replica.store.export_by_sequence(0, 1_000).await.unwrap();
        assert_eq!(numbered.len(), 200);
        holds(&replica.store, &log).await;
        assert_eq!(counting.0.load(Ordering::Relaxed), 50);
        replica.end().await;
    }
}

/// Another one than before is compared by its operations, with numbers or without.
#[tokio::test(flavor = "multi_thread")]
async fn another_one_has_to_have_the_same_log() {
    let log = story(200);
    for place in places().await {
        let before = legacy(&log[..150]).await;
        let replica = follow(&place, &before, 1_000).await;
        holds(&replica.store, &log[..150]).await;
        replica.end().await;
        let other = entries(&lives(3, 100));
        for knows_none in [true, false] {
            let other = FakeUpstream::start(other.clone()).await;
            other.know_no_numbers(knows_none);
            let error = Running::start(&place.url, &other.url()).await.fails().await;
            assert!(matches!(error, FollowError::OtherUpstream { .. }), "{error}");
        }
        let next = legacy(&log).await;
        let replica = follow(&place, &next, 1_000).await;
        holds(&replica.store, &log).await;
        replica.end().await;
        // With numbers it is the one whose numbers these are.
        let numbered = FakeUpstream::start(log.clone()).await;
        let replica = follow(&place, &numbered, 1_000).await;
        replica.live_at(200).await;
        assert_eq!(replica.store.export_by_sequence(0, 1_000).await.unwrap().len(), 200);
        // From there on one without numbers is followed by time again.
        let source = replica.store.source().await.unwrap().unwrap();
        assert_eq!(source.upstream, numbered.url());
        replica.end().await;
        let (replica, counting) = follow_counting(&place, &next).await;
        is_live(&replica).await;
        holds(&replica.store, &log).await;
        assert_eq!(counting.0.load(Ordering::Relaxed), 0);
        replica.end().await;
    }
}

/// As one of several: it is followed while the one with numbers is away, also where nothing is held yet.
#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_one_of_several() {
    let log = story(300);
    for place in places().await {
        let mut first = FakeUpstream::start(log[..100].to_vec()).await;
        let second = legacy(&log[..100]).await;
        first.stop().await;
        let replica = start(&place, &[&first, &second], soon()).await;
        stands(&replica, 1, Standing::Followed).await;
        holds(&replica.store, &log[..100]).await;
        first.start_again().await;
        follows(&replica, 0, 100).await;
        stands(&replica, 1, Standing::OwnNumbers).await;
        first.stop().await;
        second.append_all(log[100..200].to_vec());
        stands(&replica, 1, Standing::Followed).await;
        holds(&replica.store, &log[..200]).await;
        first.append_all(log[100..].to_vec());
        first.start_again().await;
        follows(&replica, 0, 300).await;
        assert_eq!(replica.store.export_by_sequence(0, 1_000).await.unwrap().len(), 300);
        replica.end().await;
    }
}

/// Faults of every kind cost time, and are told.
#[tokio::test(flavor = "multi_thread")]
async fn its_faults_cost_nothing_but_time() {
    let log = story(200);
    for place in places().await {
        let mut upstream = legacy(&log[..100]).await;
        for fault in [
            Fault::Status(503, None),
            Fault::Silence,
            Fault::WebPage,
            Fault::CutBody,
            Fault::CutLine,
            Fault::Gzip { cut: true },
            Fault::EndlessBody,
        ] {
            upstream.fail(Route::Export, 2, fault);
        }
        let replica = follow(&place, &upstream, 30).await;
        holds(&replica.store, &log[..100]).await;
        is_live(&replica).await;
        upstream.stop().await;
        let begun = Instant::now();
        while replica.status.mode() != Mode::Waiting {
            assert!(begun.elapsed() < PATIENCE);
            sleep(Duration::from_millis(20)).await;
        }
        upstream.append_all(log[100..].to_vec());
        upstream.start_again().await;
        holds(&replica.store, &log).await;
        replica.end().await;
    }
}

/// A replica of it has no numbers either: its export by number is empty, and its export by time is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_it_reads_it_by_time_too() {
    let log = story(120);
    for (first, second) in places().await.iter().zip(places().await) {
        let upstream = legacy(&log).await;
        let replica = follow(first, &upstream, 1_000).await;
        holds(&replica.store, &log).await;
        is_live(&replica).await;
        // Who asks for the same empty page again is kept waiting for a second.
        let client = ExportClient::new(&replica.url(), 0, "test", Limits::default()).unwrap();
        let behind = Running::start_among(
            &second.url,
            vec![client],
            SwitchSettings::default(),
            RereadingSettings::default(),
            DoubtSettings::default(),
        )
        .await;
        holds(&behind.store, &log).await;
        behind.end().await;
        replica.end().await;
    }
}
