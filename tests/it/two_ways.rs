//! Two replicas of one log: one follows it by the stream from the start, the other begins with a dump in any order
//! and goes on by pages, and is killed again and again. In the end both hold the same.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use did_plc::signature::PlainVerifier;
use plc_replica::store::Store;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::follow::{Place, lives_with_attacks, places};
use crate::process::{self, Running};

/// How often the second one is killed, unless PLC_KILLS says otherwise.
const KILLS: usize = 4;
const OPERATIONS: usize = 600;

fn kills() -> usize {
    std::env::var("PLC_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

fn replica(place: &Place, arguments: &[&str]) -> Command {
    let mut command = process::program(arguments);
    command.args(["--database", &place.url]);
    command
}

fn serve(place: &Place, upstream: &str) -> Command {
    let mut command = process::serve(&place.url, upstream);
    command.args(["--listen", "127.0.0.1:0", "--read-through", "off"]);
    command
}

/// What somebody sees of a store: both exports, the verdicts, and what is refused, but for when it was received.
async fn seen(place: &Place) -> BTreeMap<&'static str, Vec<String>> {
    let store = Store::open_existing(&place.url).await.unwrap();
    let mut seen = BTreeMap::new();
    for (name, arguments) in [("export", &["export"][..]), ("by time", &["export", "--by-time"])] {
        let ran = process::run(&[arguments, &["--database", &place.url]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.errors);
        seen.insert(name, ran.out.lines().map(str::to_owned).collect());
    }
    let mut after = None;
    let mut verdicts = Vec::new();
    loop {
        let page = store.next_histories(after, 1_000).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.did);
        verdicts.extend(
            page.iter()
                .map(|it| format!("{} {} {} {:?}", it.did, it.cid(), it.signer, it.nullified_by)),
        );
    }
    seen.insert("verdicts", verdicts);
    let refusals = store.refusals(None, 0, 100_000).await.unwrap().into_iter();
    let standing = refusals.filter(|kept| kept.accepted_at.is_none()).map(|kept| kept.refusal);
    let mut standing: Vec<String> = standing
        // Of what carries no operation a message and a line are two texts.
        .map(|it| (it.cid.is_some(), it))
        .map(|(judged, it)| {
            let line = String::from_utf8_lossy(&it.line).into_owned();
            let line = if judged && it.kind != "cid-mismatch" { line } else { String::new() };
            format!("{} {:?} {} {} {line}", it.did, it.sequence, it.kind, it.detail)
        })
        .collect();
    standing.sort();
    seen.insert("refusals", standing);
    seen
}

async fn until_cursor(place: &Place, last: i64) {
    let begun = Instant::now();
    loop {
        if let Ok(store) = Store::open_existing(&place.url).await
            && let Ok(Some(source)) = store.source().await
            && source.cursor >= last
        {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "not at {last} within a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn both_ways_lead_to_the_same(by_stream: &Place, by_dump: &Place) {
    let mut random = ChaCha20Rng::seed_from_u64(7);
    let log = lives_with_attacks(43, OPERATIONS);
    let last = log.last().unwrap().seq;
    let upstream = FakeUpstream::start([]).await;
    let following = Running::start(serve(by_stream, &upstream.url()));
    // Pages say nothing to the second one about the stream.
    let paged = FakeUpstream::start([]).await;
    paged.fail(Route::Stream, usize::MAX, Fault::Status(404, None));

    let (dumped, rest) = log.split_at(OPERATIONS / 3);
    let mut lines: Vec<String> = dumped.iter().map(LogEntry::sequenced).collect();
    lines.shuffle(&mut random);
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump.jsonl");
    std::fs::write(&dump, lines.join("\n")).unwrap();
    upstream.append_all(dumped.to_vec());
    paged.append_all(dumped.to_vec());
    let import = ["import", dump.to_str().unwrap(), "--upstream", &paged.url()];
    for _ in 0..kills() / 2 {
        let killed = Running::start(replica(by_dump, &import));
        tokio::time::sleep(Duration::from_millis(random.random_range(5..150))).await;
        drop(killed);
        // The lease of one that was killed runs out by itself.
        if by_dump.url.starts_with("postgres") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let begun = Instant::now();
    let import_all = [&import[..], &["--database", &by_dump.url]].concat();
    loop {
        let ran = process::run(&import_all);
        if ran.code == Some(0) {
            break;
        }
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(60), "the dump cannot be imported: {}", ran.errors);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let pieces = kills().div_ceil(2);
    for piece in rest.chunks(rest.len().div_ceil(pieces)) {
        upstream.append_all(piece.to_vec());
        paged.append_all(piece.to_vec());
        let killed = Running::start(serve(by_dump, &paged.url()));
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        drop(killed);
    }
    let paging = Running::start(serve(by_dump, &paged.url()));
    until_cursor(by_stream, last).await;
    until_cursor(by_dump, last).await;
    drop((following, paging));
    tokio::time::sleep(Duration::from_millis(200)).await;

    let (one, other) = (seen(by_stream).await, seen(by_dump).await);
    for (what, lines) in &one {
        let others = &other[what];
        let differ = lines.iter().zip(others).find(|(a, b)| a != b);
        assert!(lines == others, "{what}: {} and {} lines, {differ:?}", lines.len(), others.len());
        println!("{what}: {} lines alike", lines.len());
    }
    assert!(one["refusals"].len() > 50 && one["export"].len() > 200);
    for place in [by_stream, by_dump] {
        let store = Store::open(&place.url).await.unwrap();
        let mut damages = Vec::new();
        plc_replica::audit::fsck::check(
            &store,
            &PlainVerifier,
            |damage| damages.push(damage),
            |_| (),
        )
        .await
        .unwrap();
        assert_eq!(damages, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_and_a_dump_with_pages_lead_to_the_same() {
    for (by_stream, by_dump) in places().await.iter().zip(places().await.iter()) {
        both_ways_lead_to_the_same(by_stream, by_dump).await;
    }
}
