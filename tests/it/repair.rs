//! `plc-replica repair`: what a store lacks is found and taken in, on both backends.

use std::path::Path;

use plc_replica::store::Store;
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use tempfile::TempDir;

use crate::follow::{Place, Running, entries, places};
use crate::process::{Ran, run};

/// Identities with a genesis and an update each.
fn told() -> Vec<LogEntry> {
    let mut story = Story::seeded(71);
    let told: Vec<_> = (0..6).map(|_| story.create().accepted()).collect();
    for identity in &told {
        story.update(identity).handle("after.example").accepted();
    }
    entries(&story)
}

/// Has a store follow an upstream whose pages leave these operations out.
async fn follow_without(place: &Place, upstream: &FakeUpstream, left_out: &[&LogEntry]) {
    let cids: Vec<String> = left_out.iter().map(|entry| entry.cid.clone()).collect();
    let leave_out = move |lines: &mut Vec<String>| {
        lines.retain(|line| !cids.iter().any(|cid| line.contains(&format!("\"cid\":\"{cid}\""))));
    };
    upstream.fail(Route::Export, usize::MAX, Fault::edited(leave_out));
    let replica = Running::start(&place.url, &upstream.url()).await;
    let last = upstream.log().last().unwrap().seq;
    replica.live_at(last).await;
    for entry in left_out {
        assert!(!holds(&replica.store, entry).await);
    }
    replica.end().await;
    upstream.mend();
}

async fn holds(store: &Store, entry: &LogEntry) -> bool {
    let history = store.history(&entry.did.parse().unwrap()).await.unwrap();
    history.iter().any(|held| held.cid().to_string() == entry.cid)
}

fn repair(place: &Place, how: &[&str]) -> Ran {
    let common = ["repair", "--upstream-requests-per-minute", "0", "--database", &place.url];
    run(&[&common, how].concat())
}

/// It ends with 1 once, having found what is missing, and then with 0.
fn finds(place: &Place, how: &[&str], lines: usize, missing: &LogEntry) {
    let found = repair(place, how);
    assert_eq!(found.code, Some(1), "{found:?}");
    let expected = format!(
        "{}: 1 operation missing, which is here now\n{lines} lines compared: 1 operations were missing and are \
         here now, 0 refused, 0 differences recorded\n",
        missing.did
    );
    assert_eq!(found.out, expected);
    let again = repair(place, how);
    assert_eq!(again.code, Some(0), "{again:?}");
    let nothing = format!(
        "{lines} lines compared: 0 operations were missing and are here now, 0 refused, 0 differences recorded\n"
    );
    assert_eq!(again.out, nothing);
}

/// Ends with 2, having printed nothing but an error that says this.
fn is_told(ran: &Ran, said: &[&str]) {
    assert_eq!((ran.code, &*ran.out), (Some(2), ""), "{ran:?}");
    assert!(said.iter().all(|said| ran.errors.contains(said)), "{ran:?}");
}

fn write(path: &Path, log: &[LogEntry]) {
    let lines: Vec<String> = log.iter().map(LogEntry::sequenced).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// The store's export is this log.
async fn exports(store: &Store, log: &[LogEntry]) {
    let exported = store.export_by_sequence(0, 100).await.unwrap();
    let exported: Vec<_> =
        exported.iter().map(|row| (row.sequence.unwrap(), row.cid().to_string())).collect();
    let expected: Vec<_> = log.iter().map(|entry| (entry.seq, entry.cid.clone())).collect();
    assert_eq!(exported, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_found_and_taken_in() {
    let log = told();
    let folder = TempDir::new().unwrap();
    let dump = folder.path().join("dump.jsonl");
    write(&dump, &log[..9]);
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let [named, dumped, paged] = [&log[6], &log[8], &log[10]];
        follow_without(&place, &upstream, &[named, dumped, paged]).await;
        finds(&place, &[&named.did], 2, named);
        finds(&place, &["--from", dump.to_str().unwrap()], 9, dumped);
        finds(&place, &["--all"], 12, paged);
        let store = Store::open(&place.url).await.unwrap();
        exports(&store, &log).await;
        let cursor = store.source().await.unwrap().unwrap().cursor;
        assert_eq!(cursor, 12);
        drop(store);
        let checked = run(&["fsck", "--database", &place.url]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
}

/// What the store holds is wrong in another way than that something is missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_differs_and_what_is_refused_is_said() {
    let log = told();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[]).await;
        upstream.alter(2, |entry| entry.created_at = "2020-01-01T00:00:00.000Z".to_owned());
        upstream.alter(9, |entry| entry.operation = entry.operation.replace("after", "other"));
        let found = repair(&place, &[&log[1].did, &log[8].did]);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(found.out.contains(&format!("{}: recorded: restated-created-at", log[1].did)));
        assert!(found.out.contains(&format!("{}: refused: cid-mismatch", log[8].did)), "{found:?}");
    }
}

/// The numbers of a dump are nobody's statement about ours, and what it says otherwise is said of the dump.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_other_numbers_differs_in_nothing_else() {
    let log = told();
    let folder = TempDir::new().unwrap();
    let dump = folder.path().join("dump.jsonl");
    let mut dumped: Vec<LogEntry> =
        log.iter().map(|entry| LogEntry { seq: 25 - 2 * entry.seq, ..entry.clone() }).collect();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[]).await;
        write(&dump, &dumped);
        let ran = repair(&place, &["--from", dump.to_str().unwrap()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let store = Store::open(&place.url).await.unwrap();
        exports(&store, &log).await;
    }
    dumped[1].created_at = "2020-01-01T00:00:00.000Z".to_owned();
    dumped[8].operation = dumped[8].operation.replace("after", "other");
    write(&dump, &dumped);
    let name = dump.to_str().unwrap();
    for imports in [false, true] {
        for place in places().await {
            let upstream = FakeUpstream::start(log.clone()).await;
            follow_without(&place, &upstream, &[]).await;
            if imports {
                run(&["import", name, "--upstream", &upstream.url(), "--database", &place.url]);
            } else {
                repair(&place, &["--from", name]);
            }
            let store = Store::open(&place.url).await.unwrap();
            let records = store.divergences(None, None, None, 0, 100).await.unwrap();
            let said: Vec<_> = records
                .iter()
                .map(|record| (&*record.divergence.kind, &*record.divergence.source))
                .collect();
            assert_eq!(said, [("restated-created-at", name)]);
            let refusals = store.refusals(None, 0, 100).await.unwrap();
            let said: Vec<_> =
                refusals.iter().map(|kept| (&*kept.refusal.kind, &*kept.refusal.source)).collect();
            assert_eq!(said, [("cid-mismatch", name)]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_not_known_there_is_named() {
    let log = told();
    let unknown = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[&log[7]]).await;
        upstream.delete(1);
        upstream.delete(7);
        // The others are asked about all the same.
        let found = repair(&place, &[unknown, &log[0].did, &log[1].did]);
        assert_eq!(found.code, Some(1), "{found:?}");
        for expected in [
            format!("{unknown}: not known to the upstream\n"),
            format!("{}: not known to the upstream, and 2 operations are here\n", log[0].did),
            format!("{}: 1 operation missing, which is here now\n", log[1].did),
        ] {
            assert!(found.out.contains(&expected), "{expected}: {found:?}");
        }
    }
}

/// An answer that is damaged on its way is asked for again; and what is no answer is not taken for one.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_upstream_hide_nothing() {
    let log = told();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[&log[6], &log[7]]).await;
        upstream.fail(Route::Identity, 1, Fault::CutBody);
        upstream.fail(Route::Identity, 1, Fault::CutLine);
        finds(&place, &[&log[0].did], 2, &log[6]);
        upstream.fail(Route::Export, 1, Fault::WebPage);
        upstream.fail(Route::Export, 1, Fault::CutLine);
        finds(&place, &["--all"], 12, &log[7]);
        // One that stays damaged is said, and the others are compared.
        upstream.garble(3, usize::MAX, "{");
        let found = repair(&place, &["--all"]);
        assert!(found.code == Some(1) && found.out.contains(": refused: not-json"), "{found:?}");
        assert!(found.out.contains("12 lines compared: 0 operations were missing"), "{found:?}");
    }
}

/// What the upstream lacks is recorded or told; a page that is empty or short for once is not the end.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_lacks_is_told() {
    let log = told();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[&log[7]]).await;
        let nothing = |lines: &mut Vec<String>| {
            if lines.len() > 2 {
                lines.clear();
            }
        };
        upstream.fail(Route::Export, 4, Fault::edited(nothing));
        finds(&place, &["--all"], 12, &log[7]);
        let short = Fault::edited(|lines: &mut Vec<String>| lines.truncate(4));
        upstream.fail(Route::Export, 2, short);
        let ran = repair(&place, &["--all"]);
        assert!(ran.code == Some(0) && ran.out.starts_with("12 lines compared"), "{ran:?}");

        upstream.delete(3);
        upstream.delete(10);
        let found = repair(&place, &["--all"]);
        assert_eq!(found.code, Some(1), "{found:?}");
        for gone in [&log[2], &log[9]] {
            let expected = format!("{}: recorded: missing-in-export\n", gone.did);
            assert!(found.out.contains(&expected), "{found:?}");
        }
        assert!(found.out.ends_with("10 lines compared: 0 operations were missing and are here now, 0 refused, 2 differences recorded\n"), "{found:?}");
        let named = repair(&place, &[&log[9].did]);
        assert_eq!(named.code, Some(1), "{named:?}");
        let expected =
            format!("{}: the upstream's audit log lacks operations that are here: 1", log[9].did);
        assert!(named.out.contains(&expected), "{named:?}");
        // Everything is here as before.
        let store = Store::open(&place.url).await.unwrap();
        exports(&store, &log).await;
    }
}

/// What is damaged on its way and is JSON all the same is fetched again before it is believed.
#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_is_fetched_again() {
    let log = told();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[]).await;
        let time = log[3].created_at.clone();
        let other_time = move |lines: &mut Vec<String>| {
            for line in lines.iter_mut() {
                *line = line.replace(&time, "2021-02-03T04:05:06.789Z");
            }
        };
        let far = |lines: &mut Vec<String>| {
            for line in lines.iter_mut() {
                *line = line.replace("\"seq\":12,", "\"seq\":9007199254740991,");
            }
        };
        for fault in [Fault::edited(other_time), Fault::edited(far)] {
            upstream.fail(Route::Export, 1, fault);
            let ran = repair(&place, &["--all"]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
        let store = Store::open(&place.url).await.unwrap();
        exports(&store, &log).await;
        assert_eq!(store.divergences(None, None, None, 0, 100).await.unwrap(), []);
    }
}

/// The numbers and times of another log are not taken over.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_with_another_log_repairs_nothing() {
    let log = told();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[&log[7]]).await;
        upstream.rewind(10);
        for how in [&["--all"][..], &[&log[7].did]] {
            is_told(&repair(&place, how), &["under number 12", "`serve` finds where that begins"]);
        }
        let store = Store::open(&place.url).await.unwrap();
        assert!(!holds(&store, &log[7]).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_change_nothing() {
    let log = told();
    let folder = TempDir::new().unwrap();
    for place in places().await {
        let empty = repair(&place, &["--all"]);
        is_told(&empty, &[]);
        let upstream = FakeUpstream::start(log.clone()).await;
        follow_without(&place, &upstream, &[&log[6]]).await;
        let other = FakeUpstream::start(log.clone()).await;

        is_told(
            &repair(&place, &["did:plc:nonsense"]),
            &["did:plc:nonsense is no did:plc identifier"],
        );
        is_told(&repair(&place, &[]), &["--all", "--from"]);
        let missing = folder.path().join("missing.jsonl");
        is_told(&repair(&place, &["--from", missing.to_str().unwrap()]), &["missing.jsonl"]);
        let ran = repair(&place, &["--upstream", &other.url(), &log[0].did]);
        is_told(&ran, &[&upstream.url(), &other.url(), "repaired from the one that it follows"]);
        assert_eq!(other.asked().len(), 0);

        // Who follows has the store.
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(12).await;
        let ran = repair(&place, &[&log[0].did]);
        is_told(&ran, &["another follower writes to this store", "stop `serve` while this runs"]);
        assert!(!holds(&replica.store, &log[6]).await);
        replica.end().await;
        finds(&place, &["--upstream", &upstream.url(), &log[0].did], 2, &log[6]);
    }
}
