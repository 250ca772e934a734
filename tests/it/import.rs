//! `plc-replica import` of a dump that comes slowly.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::join_all;
use plc_replica::live::Mode;
use plc_testkit::builder::Story;
use plc_testkit::{Generated, lines};

use crate::follow::{Place, Running, entries, places};
use crate::process::{program, run};
use plc_testkit::fake_upstream::FakeUpstream;

/// Longer than a lease runs that nobody renews (10 s), and longer than who reads waits after its end (2 s).
const STALL: Duration = Duration::from_secs(15);
/// Identities of the first part of the dump: some more than a block of it, so that the import has begun to
/// write when the dump stalls.
const BEFORE: usize = 2_000;
const AFTER: usize = 10;

async fn nobody_takes_over_while_it_stalls(place: &Place) {
    let mut story = Story::seeded(83);
    for _ in 0..BEFORE + AFTER {
        story.create().accepted();
    }
    let (before, after) = story.log().split_at(BEFORE);
    let last = story.log().last().unwrap().seq;
    let upstream = FakeUpstream::start(entries(&story)).await;
    let mut import = program(&[])
        .args(["import", "-", "--upstream", &upstream.url(), "--database", &place.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut dump = import.stdin.take().unwrap();
    let before = lines(before, Generated::sequenced_line) + "\n";
    dump.write_all(before.as_bytes()).unwrap();
    let store = plc_replica::store::Store::open(&place.url).await.unwrap();
    let cursor = async || store.source().await.unwrap().map_or(0, |source| source.cursor);
    while cursor().await == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let written = cursor().await;

    let other = Running::start(&place.url, &upstream.url()).await;
    tokio::time::sleep(STALL).await;
    assert_eq!(cursor().await, written, "somebody else has written");
    assert_ne!(other.status.mode(), Mode::Live);

    dump.write_all(lines(after, Generated::sequenced_line).as_bytes()).unwrap();
    drop(dump);
    let output = tokio::task::block_in_place(|| import.wait_with_output()).unwrap();
    let [out, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{errors}");
    let accepted = format!("{} operations accepted, 0 known before", BEFORE + AFTER);
    assert!(out.contains(&accepted), "{out}");
    // Once the dump is taken in, the other one goes on from there.
    other.live_at(last).await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_stalls_keeps_the_lease() {
    let places = places().await;
    join_all(places.iter().map(nobody_takes_over_while_it_stalls)).await;
}

/// A kill leaves a lease behind on a server: it runs out, and is waited for. Who is alive is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_kill_has_left_is_waited_for_and_who_is_alive_is_told() {
    let mut story = Story::seeded(84);
    story.create().accepted();
    let folder = tempfile::TempDir::new().unwrap();
    let dump = folder.path().join("dump.jsonl");
    std::fs::write(&dump, lines(story.log(), Generated::sequenced_line)).unwrap();
    let dump = dump.to_str().unwrap();
    let upstream = FakeUpstream::start(entries(&story)).await;
    for place in places().await {
        let import = ["import", dump, "--upstream", &upstream.url(), "--database", &place.url];
        // Never given up, as by a kill; on a file it ends with the process, which is this one.
        let store = plc_replica::store::Store::open(&place.url).await.unwrap();
        let (lease, _) = store.follow(&upstream.url()).await.unwrap();
        let on_server = place.url.starts_with("postgres");
        if on_server {
            let ran = run(&import);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            let said = "waiting 12 s at most for it to end";
            assert_eq!(ran.errors.matches(said).count(), 1, "{ran:?}");
        }
        drop((store, lease));
        let alive = Running::start(&place.url, &upstream.url()).await;
        alive.live_at(1).await;
        let begun = Instant::now();
        let ran = run(&import);
        assert!(
            ran.code == Some(2) && ran.errors.contains("stop `serve` while this runs"),
            "{ran:?}"
        );
        assert!(on_server || begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        alive.end().await;
    }
}
