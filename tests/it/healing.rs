//! An upstream that fails or lies for a few seconds and is honest ever after: `serve` ends with the honest log,
//! row for row, by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use did_plc::Timestamp;
use did_plc::signature::PlainVerifier;
use plc_replica::audit::fsck;
use plc_replica::store::{Store, StoredOperation};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::follow::{Place, lives_with_attacks, places};
use crate::process::{Running, serve};

/// For how long an upstream is faulty.
const FAULTY: Duration = Duration::from_millis(2_500);
/// Everything is read again so long after it was read first.
const SECOND_READING: &str = "0.1";
/// Until when it has to be whole again.
const HEALED: Duration = Duration::from_secs(240);
/// More operations than any log here has.
pub const ALL: usize = 1_000_000;
/// Operations that are there at the start, and that come while the upstream is faulty.
const AT_START: usize = 200;

/// A replica that reads everything again soon.
fn serving(place: &Place, upstream: &str) -> Running {
    serving_with(place, upstream, &["--second-reading-minutes", SECOND_READING])
}

/// A replica with these settings.
fn serving_with(place: &Place, upstream: &str, settings: &[&str]) -> Running {
    let mut command = serve(&place.url, upstream);
    command.args(["--listen", "127.0.0.1:0", "--read-through", "off"]).args(settings);
    Running::start(command)
}

/// An operation as it is held: its identity, CID and time, who signed it, and what nullified it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub did: String,
    pub cid: String,
    pub created_at: Timestamp,
    pub signer: u16,
    pub nullified_by: Option<Timestamp>,
}

/// What is held under each number.
pub async fn rows(store: &Store) -> BTreeMap<i64, Row> {
    by_number(store.export_by_sequence(0, ALL).await.unwrap())
}

/// What these operations are held as, under each number.
pub fn by_number(held: Vec<StoredOperation>) -> BTreeMap<i64, Row> {
    let row = |it: &StoredOperation| Row {
        did: it.did.to_string(),
        cid: it.cid().to_string(),
        created_at: it.created_at,
        signer: it.signer,
        nullified_by: it.nullified_by,
    };
    held.iter().map(|it| (it.sequence.unwrap(), row(it))).collect()
}

/// What an honest log comes to.
pub async fn honest(log: &[LogEntry]) -> BTreeMap<i64, Row> {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("plc.db").display());
    let upstream = FakeUpstream::start(log.to_vec()).await;
    let replica = crate::follow::Running::start(&url, &upstream.url()).await;
    replica.live_at(log.last().unwrap().seq).await;
    let rows = rows(&replica.store).await;
    replica.end().await;
    rows
}

/// What is wrong while the upstream is faulty: it can change lines of pages and messages of the stream, and the
/// log itself.
pub struct Misfortune {
    pub name: &'static str,
    /// Changes what is sent; draws from the second.
    pub edit: fn(&mut Vec<String>, &mut ChaCha20Rng),
    /// Whether pages are changed so, and the stream.
    pub routes: &'static [Route],
}

fn damage(line: &mut String, random: &mut ChaCha20Rng) {
    let mut bytes = std::mem::take(line).into_bytes();
    let at = random.random_range(0..bytes.len());
    bytes[at] = b"x7\"{}:, a"[random.random_range(0..9)];
    *line = String::from_utf8(bytes).unwrap();
}

/// Puts another text in place of the value of a member.
fn replace_value(line: &mut String, name: &str, other: impl FnOnce(&str) -> String) {
    let name = format!("\"{name}\":");
    let Some(begin) = line.find(&name).map(|at| at + name.len()) else { return };
    let quoted = line[begin..].starts_with('"');
    let end = match quoted {
        true => begin + 1 + line[begin + 1..].find('"').unwrap() + 1,
        false => begin + line[begin..].find([',', '}']).unwrap(),
    };
    let new = other(line[begin..end].trim_matches('"'));
    let new = if quoted { format!("\"{new}\"") } else { new };
    line.replace_range(begin..end, &new);
}

const BOTH: &[Route] = &[Route::Export, Route::Stream];

pub const MISFORTUNES: &[Misfortune] = &[
    Misfortune {
        name: "a tenth of the stream is dropped",
        edit: |lines, random| lines.retain(|_| random.random_bool(0.9)),
        routes: &[Route::Stream],
    },
    Misfortune {
        name: "a tenth of everything is dropped",
        edit: |lines, random| lines.retain(|_| random.random_bool(0.9)),
        routes: BOTH,
    },
    Misfortune {
        name: "a tenth of all lines is damaged",
        edit: |lines, random| {
            for line in lines {
                if random.random_bool(0.1) {
                    damage(line, random);
                }
            }
        },
        routes: BOTH,
    },
    Misfortune {
        name: "all lines are damaged",
        edit: |lines, random| lines.iter_mut().for_each(|line| damage(line, random)),
        routes: BOTH,
    },
    Misfortune {
        name: "signatures are wrong",
        edit: |lines, random| {
            for line in lines.iter_mut().filter(|_| random.random_bool(0.3)) {
                replace_value(line, "sig", |sig| format!("A{}", &sig[1..]));
            }
        },
        routes: BOTH,
    },
    Misfortune { name: "everything is in reverse", edit: |lines, _| lines.reverse(), routes: BOTH },
    Misfortune {
        name: "everything is in any order, some of it many times",
        edit: |lines, random| {
            let again: Vec<String> =
                lines.iter().filter(|_| random.random_bool(0.2)).cloned().collect();
            lines.extend(again.iter().cloned());
            lines.extend(again);
            lines.shuffle(random);
        },
        routes: BOTH,
    },
    Misfortune {
        name: "times are wrong",
        edit: |lines, random| {
            for line in lines.iter_mut().filter(|_| random.random_bool(0.2)) {
                replace_value(line, "createdAt", |time| time.replacen("2024", "2025", 1));
            }
        },
        routes: BOTH,
    },
    Misfortune {
        name: "numbers are wrong",
        edit: |lines, random| {
            for line in lines.iter_mut().filter(|_| random.random_bool(0.2)) {
                replace_value(line, "seq", |seq| (seq.parse::<i64>().unwrap() + 3).to_string());
            }
        },
        routes: BOTH,
    },
    Misfortune {
        name: "numbers are those of before",
        edit: |lines, random| {
            for line in lines.iter_mut().filter(|_| random.random_bool(0.2)) {
                let other = |seq: &str| (seq.parse::<i64>().unwrap() - 3).max(1).to_string();
                replace_value(line, "seq", other);
            }
        },
        routes: BOTH,
    },
    Misfortune {
        name: "numbers are beyond all others",
        edit: |lines, random| {
            for line in lines {
                let number = [i64::MAX, (1 << 53) - 1, 5_000_000][random.random_range(0..3)];
                if random.random_bool(0.05) {
                    replace_value(line, "seq", |_| number.to_string());
                }
            }
        },
        routes: BOTH,
    },
    Misfortune {
        name: "CIDs are those of others",
        edit: |lines, _| {
            let mut cids = Vec::new();
            for line in lines.iter_mut() {
                replace_value(line, "cid", |cid| {
                    cids.push(cid.to_owned());
                    cids[cids.len() / 2].clone()
                });
            }
        },
        routes: BOTH,
    },
    Misfortune {
        name: "identities are those of others",
        edit: |lines, random| {
            for line in lines.iter_mut().filter(|_| random.random_bool(0.2)) {
                replace_value(line, "did", |_| "did:plc:ewvi7nxzyoun6zhxrhs64oiz".to_owned());
            }
        },
        routes: BOTH,
    },
];

/// Follows an upstream that is faulty for some seconds, and waits until all that is held is the honest log.
async fn heals(place: &Place, seed: u64, misfortune: &Misfortune) {
    let log = lives_with_attacks(41, 2 * AT_START);
    let expected = honest(&log).await;
    let (early, late) = log.split_at(AT_START);
    let upstream = FakeUpstream::start(early.to_vec()).await;
    let until = Arc::new(OnceLock::new());
    for &route in misfortune.routes {
        let random = Mutex::new(ChaCha20Rng::seed_from_u64(seed));
        let (edit, until) = (misfortune.edit, Arc::clone(&until));
        let edited = Fault::edited(move |lines| {
            // By the clock, however busy the machine is: what is told wrongly at the second reading too is believed.
            if Instant::now() < *until.get_or_init(|| Instant::now() + FAULTY) {
                edit(lines, &mut random.lock().unwrap());
            }
        });
        upstream.fail(route, usize::MAX, edited);
    }
    let begun = Instant::now();
    let mut serving = serving(place, &upstream.url());
    grows(&upstream, late).await;
    let at_mend = upstream.asked().len();
    let seconds = ends_with(place, &mut serving, &expected, misfortune.name, begun).await;
    drop(serving);
    println!(
        "{}: whole after {seconds:.1} s, {at_mend} requests while faulty and {} after",
        misfortune.name,
        upstream.asked().len() - at_mend
    );
    is_sound(place).await;
}

/// What an upstream's log gains while it is faulty.
async fn grows(upstream: &FakeUpstream, late: &[LogEntry]) {
    let steps = 20;
    for some in late.chunks(late.len().div_ceil(steps)) {
        tokio::time::sleep(FAULTY / steps as u32).await;
        upstream.append_all(some.iter().cloned());
    }
}

/// Waits until what is held is this; how long it took.
async fn ends_with(
    place: &Place,
    serving: &mut Running,
    expected: &BTreeMap<i64, Row>,
    name: &str,
    begun: Instant,
) -> f64 {
    let mut store = None;
    loop {
        if store.is_none() {
            store = Store::open_existing(&place.url).await.ok();
        }
        let held = match &store {
            Some(store) => rows(store).await,
            None => BTreeMap::new(),
        };
        if &held == expected {
            return begun.elapsed().as_secs_f64();
        }
        assert!(serving.runs(), "{name}: it has ended: {}", serving.log());
        if begun.elapsed() > HEALED {
            let missing: Vec<_> =
                expected.iter().filter(|(number, row)| held.get(number) != Some(row)).collect();
            let more: Vec<_> =
                held.iter().filter(|(number, row)| expected.get(number) != Some(row)).collect();
            panic!(
                "{}\n{name}: not whole within {HEALED:?}: {} of {} are missing or other, {} are too much:\n{:?}\n{:?}",
                serving.log(),
                missing.len(),
                expected.len(),
                more.len(),
                &missing[..missing.len().min(3)],
                &more[..more.len().min(3)],
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn is_sound(place: &Place) {
    let store = Store::open(&place.url).await.unwrap();
    let mut damages = Vec::new();
    fsck::check(&store, &PlainVerifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    assert_eq!(damages, []);
}

/// Every other way in which the testkit's upstream can fail, for as long.
pub fn failures() -> Vec<(&'static str, Route, Fault)> {
    vec![
        ("lines are cut", Route::Export, Fault::CutLine),
        ("bodies are cut", Route::Export, Fault::CutBody),
        ("chunks are cut", Route::Export, Fault::CutChunks),
        ("bodies come in crumbs", Route::Export, Fault::Drip(2_000)),
        ("compressed bodies are cut", Route::Export, Fault::Gzip { cut: true }),
        ("bodies have no end", Route::Export, Fault::EndlessBody),
        ("requests are too many", Route::Export, Fault::Status(429, Some("1".to_owned()))),
        ("the server fails", Route::Export, Fault::Status(503, None)),
        ("pages are not found", Route::Export, Fault::Status(404, None)),
        ("redirects go round", Route::Export, Fault::RedirectLoop),
        ("pages are of the web", Route::Export, Fault::WebPage),
        ("there is no stream", Route::Stream, Fault::Status(404, None)),
        ("streams are dropped", Route::Stream, Fault::DropAfter(3)),
        ("streams are closed", Route::Stream, Fault::Close(1000, "OutdatedCursor")),
        ("streams know no cursor", Route::Stream, Fault::Close(1000, "FutureCursor")),
    ]
}

/// The same with an upstream that fails on one route.
async fn survives(place: &Place, (name, route, fault): (&str, Route, Fault)) {
    let log = lives_with_attacks(41, 2 * AT_START);
    let expected = honest(&log).await;
    let (early, late) = log.split_at(AT_START);
    let upstream = FakeUpstream::start(early.to_vec()).await;
    upstream.fail(route, usize::MAX, fault);
    let begun = Instant::now();
    let mut serving = serving(place, &upstream.url());
    grows(&upstream, late).await;
    upstream.mend();
    let seconds = ends_with(place, &mut serving, &expected, name, begun).await;
    drop(serving);
    println!("{name}: whole after {seconds:.1} s, {} requests in all", upstream.asked().len());
    is_sound(place).await;
}

/// An upstream that is restored from a backup, goes on, and gives numbers again: its export is ours in the end,
/// and what it has lost is still here.
async fn follows_a_restored_upstream(place: &Place) {
    let log = lives_with_attacks(41, 3 * AT_START);
    let upstream = FakeUpstream::start(log[..2 * AT_START].to_vec()).await;
    let begun = Instant::now();
    let mut serving = serving(place, &upstream.url());
    ends_with(
        place,
        &mut serving,
        &honest(&log[..2 * AT_START]).await,
        "before the restore",
        begun,
    )
    .await;
    let lost = honest(&log[..2 * AT_START]).await.split_off(&(AT_START as i64 + 1));
    let other = lives_with_attacks(42, 2 * AT_START);
    let renumbered = other.iter().zip(AT_START as i64 + 1..);
    let renumbered: Vec<LogEntry> =
        renumbered.map(|(entry, seq)| LogEntry { seq, ..entry.clone() }).collect();
    upstream.replace_after(AT_START as i64, renumbered[..AT_START / 2].to_vec());
    upstream.close_streams(1012, "restart");
    for some in renumbered[AT_START / 2..].chunks(20) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        upstream.append_all(some.iter().cloned());
    }
    let expected = honest(&upstream.log()).await;
    let seconds = ends_with(place, &mut serving, &expected, "a restored upstream", begun).await;
    drop(serving);
    println!("restored: whole after {seconds:.1} s, {} requests in all", upstream.asked().len());
    let store = Store::open(&place.url).await.unwrap();
    for Row { did, cid, .. } in lost.values() {
        let history = store.history(&did.parse().unwrap()).await.unwrap();
        assert!(history.iter().any(|held| &held.cid().to_string() == cid), "{cid} is lost");
    }
    is_sound(place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_upstream_costs_time_and_nothing_else() {
    let failures = Mutex::new(failures());
    let workers = (0..6).map(|_| async {
        loop {
            let Some(failure) = failures.lock().unwrap().pop() else { return };
            for place in places().await {
                survives(&place, failure.clone()).await;
            }
        }
    });
    futures::future::join_all(workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_upstream_is_followed_and_nothing_is_lost() {
    for place in places().await {
        follows_a_restored_upstream(&place).await;
    }
}

/// What an honest upstream is asked for, by what it is.
fn counted(upstream: &FakeUpstream) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for asked in upstream.asked() {
        let what = match asked.route {
            Route::Stream => "streams",
            Route::Identity => "identities",
            Route::Export if asked.path.ends_with("count=1000") => "pages",
            // Once a minute and before the stream: whether it still has the log that was read.
            Route::Export if asked.path.ends_with("count=1") => "lines",
            Route::Export if asked.path.ends_with("count=2") => "lines",
            Route::Export => "gaps",
            Route::Write => "writes",
        };
        *counts.entry(what).or_default() += 1;
    }
    counts
}

/// Fifty operations a second with forks: nothing is doubted or recorded, and nothing asked for but pages, the
/// stream, and the pages once more. `PLC_HONEST_SECONDS=3600` makes it an hour.
async fn an_honest_upstream(place: &Place, seconds: u64, second_reading: &str) {
    let mut story = Story::seeded(5);
    let recovery = story.recovery.clone();
    let upstream = FakeUpstream::start([]).await;
    let settings = ["--second-reading-minutes", second_reading];
    let serving = serving_with(place, &upstream.url(), &settings);
    let begun = Instant::now();
    while upstream.streams() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no stream is opened");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut beat = tokio::time::interval(Duration::from_millis(80));
    while begun.elapsed() < Duration::from_secs(seconds) {
        beat.tick().await;
        let known = story.log().len();
        let first = Timestamp::from(SystemTime::now());
        let at = |n: u64| (first + Duration::from_millis(n)).to_string();
        let identity = story.create().at(&at(0)).accepted();
        let update = story.update(&identity).at(&at(1)).handle("x.example").accepted();
        story.update(&identity).at(&at(2)).handle("y.example").accepted();
        story.after(&update).at(&at(3)).signed_by(&recovery).handle("z.example").accepted();
        upstream.append_all(story.log()[known..].iter().map(LogEntry::from));
        // All that is told stays in memory: each identity is told once.
        if story.log().len().is_multiple_of(40_000) {
            upstream.close_streams(1012, "restart");
        }
    }
    let last = story.log().len() as i64;
    let mut operations = 0;
    let ended = Instant::now();
    while operations < last {
        assert!(ended.elapsed() < Duration::from_secs(60), "not at the end within a minute");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let store = Store::open_existing(&place.url).await.unwrap();
        operations = store.last_sequence().await.unwrap().unwrap_or(0);
    }
    drop(serving);
    let counts = counted(&upstream);
    println!("{operations} operations in {seconds} s: {counts:?}");
    assert_eq!(counts.get("identities"), None);
    assert_eq!(counts.get("gaps"), None);
    let store = Store::open(&place.url).await.unwrap();
    let read_twice = store.source().await.unwrap().unwrap().rereading.second;
    println!("read twice up to {read_twice}");
    assert!(read_twice > 0, "nothing was read twice");
    assert_eq!(store.divergences(None, None, None, 0, 10).await.unwrap(), []);
    assert_eq!(store.refusals(None, 0, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_upstream_is_asked_for_no_more() {
    let seconds = std::env::var("PLC_HONEST_SECONDS").ok().and_then(|text| text.parse().ok());
    // Of the usual hour a sixth, so that an hour has a second reading.
    let second_reading = if seconds.is_some() { "10" } else { "0.05" };
    let places = places().await;
    let all =
        places.iter().map(|place| an_honest_upstream(place, seconds.unwrap_or(10), second_reading));
    futures::future::join_all(all).await;
}

/// What the upstream has lost before anybody read it is asked for elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_lacks_is_asked_for_elsewhere() {
    let mut story = Story::seeded(44);
    let alice = story.create().accepted();
    story.update(&alice).handle("one.example.com").accepted();
    story.update(&alice).handle("two.example.com").accepted();
    let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
    for place in places().await {
        let other = FakeUpstream::start(log.clone()).await;
        let upstream = FakeUpstream::start([log[0].clone(), log[2].clone()]).await;
        let settings = ["--second-reading-minutes", SECOND_READING, "--also-ask", &other.url()];
        let serving = serving_with(&place, &upstream.url(), &settings);
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < HEALED, "it is not found");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Ok(store) = Store::open_existing(&place.url).await else { continue };
            let held = store.history(&alice.did.parse().unwrap()).await.unwrap_or_default();
            if held.len() == 3 {
                let numbers: Vec<_> = held.iter().map(|held| held.sequence).collect();
                assert_eq!(numbers, [Some(1), None, Some(3)]);
                break;
            }
        }
        drop(serving);
        is_sound(&place).await;
    }
}

/// Each misfortune for one backend, several at once: most of the time is waiting. `PLC_HEALINGS=20` has each of them
/// twenty times, never the same way.
async fn all_heal(of: usize) {
    let times = std::env::var("PLC_HEALINGS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let workers = (0..6).map(|_| async {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= times * MISFORTUNES.len() {
                return;
            }
            let mut places = places().await;
            if of >= places.len() {
                return;
            }
            heals(&places.remove(of), at as u64, &MISFORTUNES[at % MISFORTUNES.len()]).await;
        }
    });
    futures::future::join_all(workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_upstream_costs_time_and_nothing_else_on_sqlite() {
    all_heal(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_upstream_costs_time_and_nothing_else_on_postgres() {
    all_heal(1).await;
}
