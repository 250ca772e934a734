//! Following, on each backend: what comes in is judged, stored, and given back as it was.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use did_plc::sequence::MAX_SEQUENCE;
use did_plc::signature::{PlainVerifier, Verifier};
use did_plc::{Cid, Did};
use flate2::read::GzDecoder;
use futures::StreamExt;
use plc_curve::{FastVerifier, Tables};
use plc_replica::audit::fsck;
use plc_replica::follow::{
    DoubtSettings, FollowError, Follower, RereadingSettings, SwitchSettings,
};
use plc_replica::live::{Feed, Mode, Role, Status};
use plc_replica::reads::Reads;
use plc_replica::serve::{self, ServeSettings, ServeState};
use plc_replica::store::{Store, StoredDivergence};
use plc_replica::upstream::{ExportClient, Limits};
use plc_testkit::Expected;
use plc_testkit::builder::Story;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::shared;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route, load};
use plc_testkit::postgres::Database;

/// A place for a store, gone with it.
pub struct Place {
    pub url: String,
    _folder: Option<TempDir>,
    _database: Option<Database>,
}

/// An empty store on each backend that there is.
pub async fn places() -> Vec<Place> {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite://{}", folder.path().join("plc.db").display());
    let mut places = vec![Place { url, _folder: Some(folder), _database: None }];
    if let Some(database) = Database::create().await {
        let url = database.url.clone();
        places.push(Place { url, _folder: None, _database: Some(database) });
    }
    places
}

/// A replica that follows and serves, in this process.
pub struct Running {
    pub store: Store,
    pub status: Arc<Status>,
    pub address: SocketAddr,
    shutdown: CancellationToken,
    follower: JoinHandle<Result<(), FollowError>>,
    server: JoinHandle<()>,
}

/// Bounds that make the tests quick where an upstream is silent or away.
pub fn limits() -> Limits {
    Limits {
        silence: Duration::from_millis(500),
        backoff_first: Duration::from_millis(20),
        backoff_longest: Duration::from_millis(200),
        quiet: Duration::from_millis(300),
        pong: Duration::from_millis(300),
        body: 4 << 20,
        ..Limits::default()
    }
}

impl Running {
    pub async fn start(url: &str, upstream: &str) -> Running {
        Running::start_paging_by(url, upstream, 1000).await
    }

    /// Asks for so many lines a page.
    pub async fn start_paging_by(url: &str, upstream: &str, page: usize) -> Running {
        Running::start_rereading(url, upstream, page, RereadingSettings::default()).await
    }

    /// The same, reading the log again as is set.
    pub async fn start_rereading(
        url: &str,
        upstream: &str,
        page: usize,
        rereading: RereadingSettings,
    ) -> Running {
        Running::start_asking_again(url, upstream, page, rereading, DoubtSettings::default()).await
    }

    /// The same, asking about what was refused as is set.
    pub async fn start_asking_again(
        url: &str,
        upstream: &str,
        page: usize,
        rereading: RereadingSettings,
        doubts: DoubtSettings,
    ) -> Running {
        Running::start_within(url, upstream, Limits { page, ..limits() }, rereading, doubts).await
    }

    /// Has somebody check the signatures.
    pub async fn start_verifying_with(
        url: &str,
        upstream: &str,
        verifier: Arc<dyn Verifier>,
    ) -> Running {
        let (rereading, doubts) = (RereadingSettings::default(), DoubtSettings::default());
        let client = ExportClient::new(upstream, 0, "test", limits()).unwrap();
        let switching = SwitchSettings::default();
        Running::start_with(url, vec![client], switching, rereading, doubts, verifier).await
    }

    /// The same within these bounds.
    async fn start_within(
        url: &str,
        upstream: &str,
        limits: Limits,
        rereading: RereadingSettings,
        doubts: DoubtSettings,
    ) -> Running {
        let client = ExportClient::new(upstream, 0, "test", limits).unwrap();
        Running::start_among(url, vec![client], SwitchSettings::default(), rereading, doubts).await
    }

    /// Follows any of these.
    pub async fn start_among(
        url: &str,
        upstreams: Vec<ExportClient>,
        switching: SwitchSettings,
        rereading: RereadingSettings,
        doubts: DoubtSettings,
    ) -> Running {
        let verifier = Arc::new(FastVerifier::new(Tables::On));
        Running::start_with(url, upstreams, switching, rereading, doubts, verifier).await
    }

    /// Follows into a store that is open already.
    pub async fn start_in(store: Store, upstream: &str) -> Running {
        let client = ExportClient::new(upstream, 0, "test", limits()).unwrap();
        let (rereading, doubts) = (RereadingSettings::default(), DoubtSettings::default());
        let verifier = Arc::new(FastVerifier::new(Tables::On));
        let switching = SwitchSettings::default();
        Running::start_all(store, vec![client], switching, rereading, doubts, verifier).await
    }

    /// The same, with somebody who checks the signatures.
    pub async fn start_with(
        url: &str,
        upstreams: Vec<ExportClient>,
        switching: SwitchSettings,
        rereading: RereadingSettings,
        doubts: DoubtSettings,
        verifier: Arc<dyn Verifier>,
    ) -> Running {
        let store = Store::open(url).await.unwrap();
        Running::start_all(store, upstreams, switching, rereading, doubts, verifier).await
    }

    async fn start_all(
        store: Store,
        upstreams: Vec<ExportClient>,
        switching: SwitchSettings,
        rereading: RereadingSettings,
        doubts: DoubtSettings,
        verifier: Arc<dyn Verifier>,
    ) -> Running {
        let bases = upstreams.iter().map(ExportClient::base);
        let status = Arc::new(Status::of_store(bases, &store).await.unwrap());
        let feed = Arc::new(Feed::new());
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = ServeState {
            reads: Arc::new(Reads::new(store.clone(), Arc::clone(&status), Vec::new())),
            store: store.clone(),
            feed: Arc::clone(&feed),
            status: Arc::clone(&status),
            verifier: Arc::new(PlainVerifier),
            upstream: None,
            forward: None,
            settings: ServeSettings::default(),
        };
        let server = tokio::spawn(serve::run(listener, state, shutdown.clone()));
        let follower = Follower {
            store: store.clone(),
            upstreams,
            switching,
            verifier,
            feed,
            status: Arc::clone(&status),
            rereading,
            doubts,
            comes_first: false,
        };
        let follower = tokio::spawn(follower.run(shutdown.clone()));
        Running { store, status, address, shutdown, follower, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until this number is committed and the stream is followed, by this replica.
    pub async fn live_at(&self, sequence: i64) {
        let follows = || self.status.role() == Role::Follower && self.status.mode() == Mode::Live;
        let reached = || self.status.sequence() >= sequence && follows();
        eventually(&format!("live at {sequence}"), reached).await;
    }

    /// Ends in order, and checks what is left behind.
    pub async fn end(self) -> Store {
        self.shutdown.cancel();
        self.follower.await.unwrap().unwrap();
        self.server.await.unwrap();
        let mut damages = Vec::new();
        fsck::check(&self.store, &PlainVerifier, |damage| damages.push(damage), |_| ())
            .await
            .unwrap();
        assert_eq!(damages, []);
        self.store
    }

    /// Drops what follows where it waits, as a crash does.
    pub async fn crash(self) {
        self.follower.abort();
        assert!(self.follower.await.is_err_and(|error| error.is_cancelled()));
        self.shutdown.cancel();
        self.server.await.unwrap();
    }

    /// Why following ends for good.
    pub async fn fails(self) -> FollowError {
        let error = self.follower.await.unwrap().unwrap_err();
        self.shutdown.cancel();
        self.server.await.unwrap();
        error
    }

    /// Status, media type and body of an answer.
    pub async fn get(&self, path: &str) -> (u16, String, String) {
        let answer = reqwest::get(format!("{}{path}", self.url())).await.unwrap();
        let media_type = answer.headers().get("content-type").map_or("", |t| t.to_str().unwrap());
        let media_type = media_type.split(';').next().unwrap().to_owned();
        (answer.status().as_u16(), media_type, answer.text().await.unwrap())
    }
}

pub async fn eventually(what: &str, reached: impl Fn() -> bool) {
    for _ in 0..1500 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 15 s: {what}");
}

async fn kinds_of_refusals(store: &Store) -> BTreeMap<i64, String> {
    let refusals = store.refusals(None, 0, 10_000).await.unwrap();
    refusals
        .into_iter()
        .filter(|kept| kept.accepted_at.is_none())
        .map(|kept| (kept.refusal.sequence.unwrap_or(-1), kept.refusal.kind))
        .collect()
}

/// What the recorded verdicts say of a log, line by line, is what the store holds.
async fn holds_what_is_expected(store: &Store, folder: &Path) {
    let refused = kinds_of_refusals(store).await;
    let expected = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
    for line in expected.lines() {
        let expected: Value = serde_json::from_str(line).unwrap();
        let sequence = expected["seq"].as_i64().unwrap();
        let held = store.sequences(&[sequence]).await.unwrap().pop();
        if expected["verdict"] == "ok" {
            let held = held.unwrap_or_else(|| panic!("not accepted: {line}"));
            assert_eq!(held.cid().to_string(), expected["cid"].as_str().unwrap());
            assert_eq!(held.nullified_by.is_some(), expected["nullified"].as_bool().unwrap());
            assert!(!refused.contains_key(&sequence), "{line}");
        } else {
            assert!(held.is_none(), "accepted: {line}");
            assert!(refused.contains_key(&sequence), "not kept: {line}");
        }
    }
}

async fn answers_what_was_recorded(replica: &Running, folder: &Path) {
    let file = std::fs::File::open(folder.join("answers.jsonl.gz")).unwrap();
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let recorded: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let text = |name: &str| recorded[name].as_str().unwrap().to_owned();
        let status = recorded["status"].as_u64().unwrap() as u16;
        let answer = replica.get(&text("path")).await;
        assert_eq!(answer, (status, text("type"), text("body")), "{}", text("path"));
    }
}

/// The recorded logs, followed from a directory, from the replica of it by pages, and from that
/// one by its stream.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_logs_are_followed_through_a_chain_of_replicas() {
    for folder in shared::logs() {
        let log = load(&folder.join("export.jsonl"));
        let last = log.last().unwrap().seq;
        for (first, (second, third)) in
            places().await.iter().zip(places().await.iter().zip(places().await.iter()))
        {
            let (early, late) = log.split_at(log.len() / 3);
            let upstream = FakeUpstream::start(early.to_vec()).await;
            let a = Running::start_paging_by(&first.url, &upstream.url(), 50).await;
            a.live_at(early.last().unwrap().seq).await;
            // From here on the second follows the first by its stream.
            let b = Running::start(&second.url, &a.url()).await;
            eventually("live", || b.status.mode() == Mode::Live).await;
            for entry in late {
                upstream.append(entry.clone());
            }
            a.live_at(last).await;
            let held = a.store.last_sequence().await.unwrap().unwrap();
            b.live_at(held).await;
            // And the third all of it by pages.
            let c = Running::start_paging_by(&third.url, &b.url(), 50).await;
            c.live_at(held).await;

            holds_what_is_expected(&a.store, &folder).await;
            for replica in [&a, &b, &c] {
                answers_what_was_recorded(replica, &folder).await;
            }
            c.end().await;
            b.end().await;
            a.end().await;
        }
    }
}

pub fn entries(story: &Story) -> Vec<LogEntry> {
    story
        .log()
        .iter()
        .map(|told| LogEntry {
            did: told.did.clone(),
            cid: told.cid.clone(),
            seq: told.seq,
            created_at: told.created_at.clone(),
            operation: told.operation_json.clone(),
            nullified: told.nullified_in_the_end,
        })
        .collect()
}

/// Each kind of attack gets its refusal, and leaves the rest alone.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_attack_is_refused_by_name() {
    let mut story = Story::seeded(11);
    let thief = story.k256();
    let recovery = story.recovery.clone();
    let alice = story.create().handle("alice.example.com").accepted();
    story.update(&alice).padded_signature().refused("signature-encoding");
    story.update(&alice).loose_base64_bits().refused("signature-encoding");
    story.update(&alice).high_s().refused("signature-invalid");
    story.update(&alice).forged_signature().refused("signature-invalid");
    story.update(&alice).signed_by(&thief).refused("signature-invalid");
    story.update(&alice).rotation_keys([&thief]).signed_by(&thief).refused("signature-invalid");
    // Without another handle it would be the genesis operation itself, byte for byte.
    story.update(&alice).handle("again.example.com").prev_null().refused("second-genesis");
    story.update(&alice).prev(&Cid::of(b"nothing").to_string()).refused("unknown-prev");
    story.update(&alice).stated_cid(&Cid::of(b"other").to_string()).refused("cid-mismatch");
    story.update(&alice).duplicate_key().refused("malformed");
    story.update(&alice).lone_surrogate().refused("malformed");
    story.update(&alice).stated_did("did:plc:tooshort").refused("malformed-did");
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    story.after(&alice).just_in_time_for(&stolen).refused("not-authorised");
    story.after(&alice).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    story.after(&stolen).signed_by(&thief).refused("prev-nullified");
    let ended = story.tombstone(&alice).accepted();
    story.after(&ended).refused("prev-tombstone");
    let bob = story.create().accepted();
    let stolen = story.update(&bob).rotation_keys([&thief]).accepted();
    let late = story.after(&bob).signed_by(&recovery);
    late.just_too_late_for(&stolen).refused("recovery-too-late");

    for place in places().await {
        let upstream = FakeUpstream::start(entries(&story)).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(story.log().last().unwrap().seq).await;
        let refused = kinds_of_refusals(&replica.store).await;
        for told in story.log() {
            match told.expected {
                Expected::Refused(kind) => {
                    let refusal = refused.get(&told.seq).map(String::as_str);
                    assert_eq!(refusal, Some(kind), "{}: {refused:?}", told.sequenced_line());
                }
                Expected::Accepted => {
                    let held = replica.store.sequences(&[told.seq]).await.unwrap();
                    assert_eq!(held[0].nullified_by.is_some(), told.nullified_in_the_end);
                }
            }
        }
        replica.end().await;
    }
}

/// A life of some identities, told in order.
pub fn lives(seed: u64, identities: usize) -> Story {
    let mut story = Story::seeded(seed);
    let told: Vec<_> = (0..identities)
        .map(|n| story.create().handle(&format!("n{n}.example.com")).accepted())
        .collect();
    for (n, identity) in told.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
        story.update(identity).handle(&format!("m{n}.example.com")).accepted();
    }
    story
}

/// Lives of about so many operations, with thefts undone, tombstones, and attacks in between.
pub fn lives_with_attacks(seed: u64, operations: usize) -> Vec<LogEntry> {
    let mut story = Story::seeded(seed);
    let (thief, recovery) = (story.k256(), story.recovery.clone());
    while story.log().len() < operations {
        let alice = story.create().accepted();
        let bob = story.create_legacy().accepted();
        story.update(&bob).padded_signature().refused("signature-encoding");
        let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
        story.update(&alice).signed_by(&thief).handle("thief.example.com").accepted();
        story.after(&alice).signed_by(&recovery).just_in_time_for(&stolen).accepted();
        story.after(&stolen).signed_by(&thief).refused("prev-nullified");
        story.update(&bob).signed_by(&thief).refused("signature-invalid");
        story.tombstone(&bob).accepted();
    }
    entries(&story)
}

/// Follows a log whose telling is disturbed, and ends up with all of it.
async fn all_comes_in(what: &str, disturb: impl Fn(&FakeUpstream, &[LogEntry])) {
    let story = lives(21, 60);
    let log = entries(&story);
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        disturb(&upstream, &log);
        let replica = Running::start_paging_by(&place.url, &upstream.url(), 20).await;
        replica.live_at(log.last().unwrap().seq).await;
        for entry in &log {
            let held = replica.store.sequences(&[entry.seq]).await.unwrap();
            assert_eq!(held.len(), 1, "{what}: {} is missing", entry.seq);
            assert_eq!(held[0].cid().to_string(), entry.cid, "{what}");
        }
        replica.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_upstream_cost_nothing_but_time() {
    let faults: [(&str, Route, usize, Fault); 11] = [
        ("a cut line", Route::Export, 2, Fault::CutLine),
        ("a cut body", Route::Export, 2, Fault::CutBody),
        ("a cut chunk", Route::Export, 2, Fault::CutChunks),
        ("a server error", Route::Export, 3, Fault::Status(503, None)),
        ("too many requests", Route::Export, 1, Fault::Status(429, Some("1".to_owned()))),
        ("a redirect loop", Route::Export, 1, Fault::RedirectLoop),
        ("an endless body", Route::Export, 1, Fault::EndlessBody),
        ("silence", Route::Export, 1, Fault::Silence),
        ("a web page", Route::Export, 2, Fault::WebPage),
        ("a stream that drops", Route::Stream, 2, Fault::DropAfter(0)),
        ("a silent stream", Route::Stream, 1, Fault::SilentStream),
    ];
    for (what, route, times, fault) in faults {
        all_comes_in(what, |upstream, _| upstream.fail(route, times, fault.clone())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_away_is_said_to_be_waited_for() {
    let log = entries(&lives(41, 4));
    let last = log.last().unwrap().seq;
    let place = places().await.remove(0);
    let mut upstream = FakeUpstream::start(log).await;
    upstream.stop().await;
    let replica = Running::start(&place.url, &upstream.url()).await;
    let waits = || replica.status.mode() == Mode::Waiting;
    eventually("waiting for the first answer", waits).await;
    upstream.start_again().await;
    replica.live_at(last).await;
    upstream.stop().await;
    eventually("waiting for it to come back", waits).await;
    upstream.start_again().await;
    replica.live_at(last).await;
    // Without a stream too.
    upstream.stop().await;
    eventually("waiting again", waits).await;
    upstream.fail(Route::Stream, usize::MAX, Fault::Status(404, None));
    upstream.start_again().await;
    replica.live_at(last).await;
    upstream.stop().await;
    eventually("waiting without a stream", waits).await;
    upstream.start_again().await;
    replica.live_at(last).await;
    replica.end().await;
}

/// A restore from a backup between two pages, while the upstream was away.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_comes_back_with_another_log_is_not_read_on_from() {
    for place in places().await {
        let mut story = Story::seeded(21);
        for _ in 0..15 {
            story.create().accepted();
        }
        let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
        let upstream = FakeUpstream::start(log[..8].to_vec()).await;
        upstream.fail(Route::Export, 2, Fault::edited(|_| ()));
        upstream.fail(Route::Export, usize::MAX, Fault::Status(503, None));
        let replica = Running::start_paging_by(&place.url, &upstream.url(), 2).await;
        let waits = || replica.status.mode() == Mode::Waiting && replica.status.sequence() == 4;
        eventually("two pages and then none", waits).await;

        // Nothing that was taken back comes again, under whatever number.
        let other = log[8..].iter().zip(2..);
        let other = other.map(|(entry, seq)| LogEntry { seq, ..entry.clone() });
        upstream.replace_after(1, other.collect());
        upstream.mend();
        replica.live_at(8).await;
        let records = replica.store.divergences(None, None, None, 0, 10).await.unwrap();
        let records: Vec<_> = records.into_iter().map(|record| record.divergence).collect();
        // And one for each operation whose number is that of another one now.
        assert_eq!(records.len(), 4, "{records:?}");
        assert_eq!(records[0].kind, "upstream-rewound");
        assert!(records[1..].iter().all(|record| record.kind == "restated-sequence"));
        assert_eq!(records[0].subject, format!("1 {}", log[0].cid));
        // What it numbered 2 to 4 before is kept, and what it numbers so now is known.
        let refused = kinds_of_refusals(&replica.store).await;
        assert_eq!(refused, BTreeMap::new());
        let held = replica.store.sequences(&[1, 2, 3, 4, 5, 6, 7, 8]).await.unwrap();
        let held: Vec<String> = held.iter().map(|held| held.cid().to_string()).collect();
        let expected = log[..1].iter().chain(&log[8..15]).map(|entry| entry.cid.clone());
        assert_eq!(held, expected.collect::<Vec<_>>());
        replica.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_streams_are_opened_again() {
    for reason in ["OutdatedCursor", "FutureCursor", "ConsumerTooSlow"] {
        all_comes_in(reason, |upstream, _| {
            upstream.fail(Route::Stream, 2, Fault::Close(1000, reason));
        })
        .await;
    }
}

/// Whatever an upstream ends its stream with, again and again: while nothing new comes, it is asked ever less.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_keeps_closing_its_stream_is_left_alone() {
    const WATCHED: Duration = Duration::from_secs(3);
    let log = entries(&lives(42, 4));
    let last = log.last().unwrap().seq;
    let old = log[1].streamed();
    let beyond = LogEntry { seq: last + (1 << 40), ..log[1].clone() }.streamed();
    let close = |reason| Fault::Close(1000, reason);
    let say = |message: &str, reason| Fault::SayAndClose(message.to_owned(), 1000, reason);
    let faults = [
        // What it answers is looked at, and half of it asked for again, before the longest pause.
        (close("FutureCursor"), 40),
        (close("OutdatedCursor"), 4),
        (close("ConsumerTooSlow"), 4),
        (close("restart"), 4),
        (say(&old, "OutdatedCursor"), 4),
        (say(&old, "ConsumerTooSlow"), 4),
        (say(&beyond, "restart"), 4),
        (say("{}", "restart"), 4),
        (Fault::DropAfter(0), 4),
        (Fault::Status(503, None), 4),
        (Fault::Status(404, None), 4),
    ];
    for (number, (fault, pages_each)) in faults.into_iter().enumerate() {
        let place = places().await.remove(0);
        let upstream = FakeUpstream::start(log.clone()).await;
        upstream.fail(Route::Stream, usize::MAX, fault);
        let replica = Running::start(&place.url, &upstream.url()).await;
        eventually("all pages", || replica.status.sequence() == last).await;
        let before = (upstream.asked_for(Route::Stream), upstream.asked_for(Route::Export));
        let begun = Instant::now();
        tokio::time::sleep(WATCHED).await;
        let streams = upstream.asked_for(Route::Stream) - before.0;
        let pages = upstream.asked_for(Route::Export) - before.1;
        // The longest pause here is between 100 and 200 ms, after four that are shorter. One is to learn how far the
        // log goes.
        let most = begun.elapsed().as_millis() as usize / 100 + 6;
        assert!(streams <= most, "{number}: {streams} connections, {most} allowed");
        assert!(
            pages <= (streams + 1) * pages_each,
            "{number}: {pages} pages, {streams} connections"
        );
        upstream.mend();
        replica.shutdown.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_out_of_order_and_twice_are_taken_as_they_come() {
    all_comes_in("reversed", |upstream, _| {
        upstream.fail(Route::Export, 3, Fault::edited(|lines| lines.swap(2, 7)));
    })
    .await;
    all_comes_in("repeated", |upstream, _| {
        upstream.fail(
            Route::Export,
            3,
            Fault::edited(|lines| {
                let again = lines[3].clone();
                lines.insert(9, again);
            }),
        );
    })
    .await;
}

/// A line that is damaged on its way is fetched again; one that stays damaged is kept as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_not_json() {
    all_comes_in("garbled once", |upstream, log| upstream.garble(log[30].seq, 2, "{\"did\":"))
        .await;

    let story = lives(22, 40);
    let log = entries(&story);
    // A genesis operation without any successor.
    let lost = log[31].seq;
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        upstream.garble(lost, usize::MAX, "not json at all");
        let replica = Running::start_paging_by(&place.url, &upstream.url(), 20).await;
        replica.live_at(log.last().unwrap().seq).await;
        assert!(replica.store.sequences(&[lost]).await.unwrap().is_empty());
        let kept = replica.store.refusals(None, 0, 10).await.unwrap();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(
            (kept[0].refusal.kind.as_str(), &kept[0].refusal.line[..]),
            ("not-json", &b"not json at all"[..])
        );
        replica.end().await;
    }
}

/// The same on the stream, where it comes again with every new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_json() {
    let log = entries(&lives(37, 10));
    let (early, late) = log.split_at(8);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        let kept = async || replica.store.refusals(None, 0, 10).await.unwrap();
        let begun = Instant::now();
        while kept().await.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it is never kept");
            upstream.say("hello");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(kept().await[0].refusal.line, "hello");
        upstream.append_all(late.to_vec());
        let last = late.last().unwrap().seq;
        replica.live_at(last).await;
        assert_eq!(replica.store.last_sequence().await.unwrap(), Some(last));
        replica.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_another_type_is_kept_as_it_is() {
    let log = entries(&lives(23, 10));
    let line = r#"{"type":"notice","seq":3,"text":"hello"}"#;
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        upstream.fail(Route::Export, 1, Fault::edited(|lines| lines.insert(4, line.to_owned())));
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        let kept = replica.store.refusals(None, 0, 10).await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].refusal.kind, "unknown-type");
        assert_eq!(kept[0].refusal.line, line);
        replica.end().await;
    }
}

/// What can be no number leads nowhere, and one far above all others is asked about before it is believed; if it
/// is, the cursor comes back as soon as the upstream says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_beyond_all_others_is_gone_back_from() {
    let log = entries(&lives(35, 12));
    // The third time nothing else is held yet.
    for (number, pages, held) in
        [(i64::MAX, 1, 10), (MAX_SEQUENCE, 2, 10), (MAX_SEQUENCE, 4, 10), (MAX_SEQUENCE, 4, 0)]
    {
        let (early, late) = log.split_at(held);
        let line = format!(r#"{{"type":"notice","seq":{number}}}"#);
        for place in places().await {
            let upstream = FakeUpstream::start(early.to_vec()).await;
            let line = line.clone();
            let edited = Fault::edited(move |lines| lines.push(line.clone()));
            upstream.fail(Route::Export, pages, edited);
            let replica = Running::start(&place.url, &upstream.url()).await;
            if pages == 4 {
                eventually("above all", || replica.status.sequence() == number).await;
            } else {
                replica.live_at(held as i64).await;
                assert_eq!(replica.status.sequence(), held as i64);
            }
            upstream.append_all(late.to_vec());
            let last = late.last().unwrap().seq;
            let reached = || replica.status.sequence() == last;
            eventually("read on from what is held", reached).await;
            for entry in &log {
                assert_eq!(replica.store.sequences(&[entry.seq]).await.unwrap().len(), 1);
            }
            assert_eq!(rewinds(&replica.store).await, []);
            replica.end().await;
        }
    }
}

/// What cannot be a sequence number is none: it moves no cursor, on a page and on the stream.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sequence_number_moves_no_cursor() {
    let log = entries(&lives(39, 12));
    let (early, late) = log.split_at(10);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let page = [MAX_SEQUENCE + 1, i64::MAX, 0, -7];
        let page = page.map(|number| format!(r#"{{"type":"notice","seq":{number}}}"#));
        upstream.fail(Route::Export, 1, Fault::edited(move |lines| lines.extend(page.clone())));
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(10).await;
        assert_eq!(replica.store.source().await.unwrap().unwrap().cursor, 10);
        let operation = log[0].sequenced().replace(r#""seq":1,"#, r#""seq":9223372036854775807,"#);
        upstream.say(&operation);
        let kinds = async || {
            let kept = replica.store.refusals(None, 0, 10).await.unwrap();
            kept.into_iter().map(|kept| kept.refusal.kind).collect::<Vec<_>>()
        };
        let begun = Instant::now();
        while !kinds().await.iter().any(|kind| kind == "malformed") {
            assert!(begun.elapsed() < Duration::from_secs(60), "the line is not kept");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(
            kinds().await,
            ["unknown-type"; 4].into_iter().chain(["malformed"]).collect::<Vec<_>>()
        );
        assert_eq!(replica.status.sequence(), 10);
        upstream.append_all(late.to_vec());
        let last = late.last().unwrap().seq;
        replica.live_at(last).await;
        assert_eq!(replica.store.source().await.unwrap().unwrap().cursor, last);
        replica.end().await;
    }
}

/// The last message of a stream that is quiet afterwards: that it was left out is seen when the upstream is asked
/// whether it has the log still.
#[tokio::test(flavor = "multi_thread")]
async fn a_last_message_that_is_lost_is_found() {
    let log = entries(&lives(47, 6));
    let (early, late) = log.split_at(log.len() - 1);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        upstream.fail(Route::Stream, usize::MAX, Fault::edited(Vec::clear));
        let often = Limits { check_shared: Duration::from_secs(1), ..limits() };
        let (url, rereading) = (upstream.url(), RereadingSettings::default());
        let replica =
            Running::start_within(&place.url, &url, often, rereading, DoubtSettings::default())
                .await;
        replica.live_at(early.last().unwrap().seq).await;
        eventually("a stream", || upstream.streams() == 1).await;
        upstream.append_all(late.to_vec());
        replica.live_at(late[0].seq).await;
        replica.end().await;
    }
}

/// An upstream that gives fewer lines than are asked for is read to its end by pages: until then an identity that is
/// not here may still come, and what the stream would bring is old.
#[tokio::test(flavor = "multi_thread")]
async fn short_pages_are_not_taken_for_the_end() {
    let log = entries(&lives(46, 12));
    let last = log.last().unwrap().seq;
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        upstream.give_at_most(4);
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(last).await;
        let asked = upstream.asked();
        let pages = asked.iter().filter(|asked| asked.path.ends_with("count=1000")).count();
        let stream = asked.iter().position(|asked| asked.route == Route::Stream).unwrap();
        assert!(pages as i64 > last / 4, "{pages} pages of four lines");
        let begins = format!("cursor={last}");
        assert!(asked[stream].path.ends_with(&begins), "{}", asked[stream].path);
        assert_eq!(replica.store.divergences(None, None, None, 0, 100).await.unwrap(), []);
        replica.end().await;
    }
}

/// An upstream that states every number wrongly at first shares none with us later, and still has all that we hold.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_all_wrong_at_first_are_put_right() {
    let log = entries(&lives(45, 12));
    let last = log.last().unwrap().seq;
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let shifted = Fault::edited(|lines| {
            for line in lines {
                let begin = line.find("\"seq\":").unwrap() + 6;
                line.insert(begin, '9');
            }
        });
        // The page, the one behind it, and what it seems to have left out.
        upstream.fail(Route::Export, 3, shifted);
        let replica = Running::start(&place.url, &upstream.url()).await;
        let reached = || replica.status.sequence() == last;
        eventually("read again under the right numbers", reached).await;
        for entry in &log {
            let held = replica.store.sequences(&[entry.seq]).await.unwrap();
            assert_eq!(held.len(), 1, "{}", entry.seq);
            assert_eq!(held[0].cid().to_string(), entry.cid);
        }
        assert_eq!(replica.store.last_sequence().await.unwrap(), Some(last));
        // The log says it once, and not a record of each operation.
        assert_eq!(replica.store.divergences(None, None, None, 0, 100).await.unwrap(), []);
        let source = replica.store.source().await.unwrap().unwrap();
        assert_eq!((source.upstream, source.renumbering), (upstream.url(), false));
        replica.end().await;
    }
}

/// What is on record of going back.
async fn rewinds(store: &Store) -> Vec<StoredDivergence> {
    store.divergences(None, Some("upstream-rewound"), None, 0, 10).await.unwrap()
}

/// The same by the stream, after operations.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_all_others_leads_nowhere() {
    let log = entries(&lives(36, 12));
    let (early, late) = log.split_at(10);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(10).await;
        upstream.say(&format!(r#"{{"type":"notice","seq":{MAX_SEQUENCE}}}"#));
        upstream.append_all(late.to_vec());
        let last = late.last().unwrap().seq;
        let reached = || replica.status.sequence() == last;
        eventually("read on from what is held", reached).await;
        assert_eq!(rewinds(&replica.store).await, []);
        replica.end().await;
    }
}

/// One wrong number in the stream is no reason to ask for everything below it while the upstream's log grows.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_number_in_the_stream_is_not_the_end_of_a_gap() {
    let log = entries(&lives(46, 12));
    let (early, late) = log.split_at(10);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let wrong = Fault::edited(|lines| {
            for line in lines.iter_mut().filter(|line| line.contains("\"seq\":12,")) {
                *line = line.replace("\"seq\":12,", "\"seq\":900000,");
            }
        });
        upstream.fail(Route::Stream, usize::MAX, wrong);
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(10).await;
        // From now on whoever asks is told of one operation more each time.
        let told = AtomicI64::new(20);
        let growing = Fault::edited(move |lines| {
            let number = told.fetch_add(1, Ordering::Relaxed);
            *lines = vec![format!(r#"{{"type":"notice","seq":{number}}}"#)];
        });
        upstream.fail(Route::Export, usize::MAX, growing);
        upstream.append_all(late.to_vec());
        let last = late.last().unwrap().seq;
        let reached = || replica.status.sequence() >= last;
        eventually("what came with the wrong number", reached).await;
        upstream.mend();
        replica.end().await;
    }
}

/// An upstream that goes back while nobody follows, and grows past the cursor again.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_replaced_meanwhile_is_noticed_where_the_last_line_was_refused() {
    let log = entries(&lives(37, 20));
    for place in places().await {
        let upstream = FakeUpstream::start(log[..9].to_vec()).await;
        // The last line is refused: its operation does not have the CID that is stated.
        upstream.alter(9, |entry| entry.cid = log[0].cid.clone());
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(9).await;
        assert_eq!(kinds_of_refusals(&replica.store).await.get(&9).unwrap(), "cid-mismatch");
        drop(replica.end().await);

        let strangers = entries(&lives(38, 8));
        let renumbered = strangers.iter().zip(8..);
        let renumbered = renumbered.map(|(entry, seq)| LogEntry { seq, ..entry.clone() });
        upstream.replace_after(7, renumbered.collect());
        let replica = Running::start(&place.url, &upstream.url()).await;
        let last = 7 + strangers.len() as i64;
        replica.live_at(last).await;
        // Number 8 was ours, and belongs to what the upstream gives it to now.
        let held = replica.store.sequences(&[8, 9]).await.unwrap();
        let held: Vec<String> = held.iter().map(|held| held.cid().to_string()).collect();
        assert_eq!(held, [strangers[0].cid.clone(), strangers[1].cid.clone()]);
        let ours = replica.store.history(&log[7].did.parse().unwrap()).await.unwrap();
        let ours = ours.iter().find(|held| held.cid().to_string() == log[7].cid).unwrap();
        assert_eq!(ours.sequence, None);
        let records = replica.store.divergences(None, None, None, 0, 10).await.unwrap();
        let kinds: Vec<_> = records.iter().map(|record| &*record.divergence.kind).collect();
        assert_eq!(kinds, ["upstream-rewound", "restated-sequence"]);
        replica.end().await;
    }
}

/// Where the upstream has gone back, what it gives our numbers to since then is no further going
/// back when following begins again in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_among_numbers_that_were_given_again_raises_no_alarm() {
    let log = entries(&lives(37, 20));
    let strangers = entries(&lives(38, 8));
    for place in places().await {
        let upstream = FakeUpstream::start(log[..9].to_vec()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(9).await;
        let renumbered = strangers.iter().zip(6..);
        let renumbered: Vec<_> =
            renumbered.map(|(entry, seq)| LogEntry { seq, ..entry.clone() }).collect();
        upstream.replace_after(5, renumbered[..2].to_vec());
        upstream.close_streams(1012, "restart");
        let back = || replica.status.sequence() == 7 && replica.status.mode() == Mode::Live;
        eventually("among the numbers that were given again", back).await;
        let before = rewinds(&replica.store).await;
        assert_eq!(before.len(), 1);
        drop(replica.end().await);

        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(7).await;
        upstream.append_all(renumbered[2..].iter().cloned());
        replica.live_at(5 + strangers.len() as i64).await;
        assert_eq!(rewinds(&replica.store).await, before);
        replica.end().await;
    }
}

/// What waits for its `prev` is judged again when that comes, and keeps its own number.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_before_its_prev_is_accepted_when_that_comes() {
    let mut story = Story::seeded(24);
    let alice = story.create().accepted();
    story.update(&alice).handle("one.example.com").accepted();
    story.update(&alice).handle("two.example.com").accepted();
    story.create().accepted();
    let mut log = entries(&story);
    // The genesis comes last, under a higher number.
    let genesis = log.remove(0);
    let held_back = LogEntry { seq: log.last().unwrap().seq + 5, ..genesis.clone() };
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        let did: Did = genesis.did.parse().unwrap();
        assert_eq!(replica.store.history(&did).await.unwrap().len(), 0);
        assert_eq!(kinds_of_refusals(&replica.store).await.len(), 2);
        upstream.append(held_back.clone());
        replica.live_at(held_back.seq).await;
        let history = replica.store.history(&did).await.unwrap();
        let numbers: Vec<_> = history.iter().map(|held| held.sequence.unwrap()).collect();
        assert_eq!(numbers, [held_back.seq, log[0].seq, log[1].seq]);
        assert_eq!(kinds_of_refusals(&replica.store).await.len(), 0);
        replica.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_taken_and_a_statement_that_changes_are_recorded() {
    let log = entries(&lives(25, 8));
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        // Again, with another time; and another operation under a number that is taken.
        let again =
            LogEntry { created_at: "2020-01-01T00:00:00.000Z".to_owned(), ..log[2].clone() };
        let stranger = entries(&lives(26, 1)).remove(0);
        let conflicting = LogEntry { seq: log[3].seq, ..stranger };
        upstream.say(&again.streamed());
        upstream.say(&conflicting.streamed());
        let last = LogEntry { seq: 1000, ..entries(&lives(27, 1)).remove(0) };
        upstream.append(last);
        replica.live_at(1000).await;
        let mut divergences = replica.store.divergences(None, None, None, 0, 10).await.unwrap();
        // The last operation is dated before what came in live earlier, which is recorded too.
        // What is said and what is appended reach the replica in either order.
        divergences.sort_by(|a, b| a.divergence.kind.cmp(&b.divergence.kind));
        let kinds: Vec<_> = divergences.iter().map(|d| d.divergence.kind.as_str()).collect();
        assert_eq!(kinds, ["backdated", "backdated", "restated-created-at", "restated-sequence"]);
        assert_eq!(divergences[2].divergence.theirs.as_deref(), Some(&*again.streamed()));
        assert_eq!(divergences[3].divergence.theirs.as_deref(), Some(&*conflicting.streamed()));
        assert_eq!(divergences[3].divergence.subject, log[3].cid);
        // The number belongs to what it was stated for last, and both operations are here.
        let holder = replica.store.sequences(&[log[3].seq]).await.unwrap().remove(0);
        assert_eq!(holder.cid().to_string(), conflicting.cid);
        let before = replica.store.history(&log[3].did.parse().unwrap()).await.unwrap();
        assert!(before.iter().any(|held| held.cid().to_string() == log[3].cid));
        assert_eq!(kinds_of_refusals(&replica.store).await.len(), 0);
        replica.end().await;
    }
}

/// One page states two operations under one number, again and again: both are here, and the number belongs to
/// the one it is stated for last.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_claimed_twice_in_a_page_holds_nothing_up() {
    let log = entries(&lives(31, 8));
    let strangers = entries(&lives(32, 4));
    let conflicting = strangers
        .iter()
        .zip(&log)
        .map(|(stranger, honest)| LogEntry { seq: honest.seq, ..stranger.clone() });
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        upstream.append_all(conflicting.clone());
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        assert_eq!(kinds_of_refusals(&replica.store).await.len(), 0);
        for entry in log.iter().chain(&strangers) {
            let history = replica.store.history(&entry.did.parse().unwrap()).await.unwrap();
            assert!(history.iter().any(|held| held.cid().to_string() == entry.cid), "{entry:?}");
        }
        replica.end().await;
    }
}

/// Operations that came before their `prev` under one number: of those that one page frees, and of
/// what claims the number again with it, one has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_claimed_by_several_that_waited_holds_nothing_up() {
    let mut story = Story::seeded(33);
    let told: Vec<_> = (0..3).map(|_| story.create().accepted()).collect();
    for identity in &told {
        story.update(identity).handle("freed.example.com").accepted();
    }
    let log = entries(&story);
    let (geneses, updates) = log.split_at(3);
    let under = |seq: i64, entry: &LogEntry| LogEntry { seq, ..entry.clone() };
    let early = updates.iter().map(|update| under(10, update));
    let late: Vec<_> = (21..).zip(geneses).map(|(seq, genesis)| under(seq, genesis)).collect();
    for place in places().await {
        let upstream = FakeUpstream::start(early.clone()).await;
        upstream.append(under(11, &entries(&lives(34, 1))[0]));
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(11).await;
        assert_eq!(replica.store.refusals(None, 0, 10).await.unwrap().len(), 3);
        replica.end().await;

        upstream.append_all(late.clone());
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(23).await;
        let held = replica.store.sequences(&[10]).await.unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!(kinds_of_refusals(&replica.store).await, BTreeMap::new());
        // One has the number, and all are here.
        for update in updates {
            let history = replica.store.history(&update.did.parse().unwrap()).await.unwrap();
            assert!(history.iter().any(|held| held.cid().to_string() == update.cid));
        }
        replica.end().await;
    }
}

/// Another upstream is followed when it has the same log, and not otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn another_upstream_must_tell_the_same_story() {
    let log = entries(&lives(28, 20));
    for place in places().await {
        let first = FakeUpstream::start(log.clone()).await;
        let replica = Running::start(&place.url, &first.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        replica.end().await;

        // An answer that was cut on its way is not another story.
        let same = FakeUpstream::start(log.clone()).await;
        same.fail(Route::Export, 1, Fault::CutLine);
        same.fail(Route::Export, 1, Fault::CutBody);
        let replica = Running::start(&place.url, &same.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        let source = replica.store.source().await.unwrap().unwrap();
        assert_eq!(source.upstream, same.url());
        replica.end().await;

        // And neither is one that is not told to its end yet.
        let behind = FakeUpstream::start(log[..log.len() - 2].to_vec()).await;
        let replica = Running::start(&place.url, &behind.url()).await;
        let waits = || replica.status.mode() == Mode::Waiting;
        eventually("waits for the one that is behind", waits).await;
        behind.append_all(log[log.len() - 2..].to_vec());
        replica.live_at(log.last().unwrap().seq).await;
        replica.end().await;

        let other = FakeUpstream::start(entries(&lives(29, 20))).await;
        let replica = Running::start(&place.url, &other.url()).await;
        let error = replica.fails().await;
        assert!(
            matches!(&error, FollowError::OtherUpstream { ours, theirs, .. } if ours != theirs)
        );
        let sentence = error.to_string();
        assert!(sentence.contains(&other.url()) && sentence.contains(&behind.url()), "{sentence}");
    }
}

/// The stream clients of one that reads are told what another process commits, and notice nothing when it takes over.
#[tokio::test(flavor = "multi_thread")]
async fn stream_clients_of_one_that_takes_over_miss_nothing() {
    let log = entries(&lives(36, 14));
    let (early, late) = log.split_at(10);
    let (by_first, by_standby) = late.split_at(2);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let first = Running::start(&place.url, &upstream.url()).await;
        first.live_at(early.last().unwrap().seq).await;
        let standby = Running::start(&place.url, &upstream.url()).await;
        let url = format!("ws://{}/export/stream", standby.address);
        let mut client = tokio_tungstenite::connect_async(url).await.unwrap().0;
        upstream.append_all(by_first.to_vec());
        first.live_at(by_first.last().unwrap().seq).await;
        first.end().await;
        upstream.append_all(by_standby.to_vec());
        standby.live_at(late.last().unwrap().seq).await;
        for entry in late {
            let next = tokio::time::timeout(Duration::from_secs(20), client.next()).await;
            let message = next.expect("the client hears nothing").unwrap().unwrap();
            let Message::Text(text) = message else { panic!("{message:?}") };
            assert!(text.contains(&entry.cid), "{text}");
        }
        standby.end().await;
    }
}

/// An identity of which something was refused is judged as a whole each time: its operations go to stream clients in
/// their place all the same. A client that is gone after the next number comes back with that, and would miss them.
#[tokio::test(flavor = "multi_thread")]
async fn stream_clients_are_sent_a_commit_in_the_order_of_its_numbers() {
    let mut story = Story::seeded(37);
    let bob = story.create().accepted();
    story.update(&bob).padded_signature().refused("signature-encoding");
    story.update(&bob).handle("bob.example.com").accepted();
    story.create().accepted();
    let log = entries(&story);
    let (early, late) = log.split_at(2);
    for place in places().await {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(1).await;
        let url = format!("ws://{}/export/stream", replica.address);
        let mut client = tokio_tungstenite::connect_async(url).await.unwrap().0;
        upstream.append_all(late.to_vec());
        replica.live_at(4).await;
        let mut numbers = Vec::new();
        while numbers.len() < 2 {
            let next = tokio::time::timeout(Duration::from_secs(20), client.next()).await;
            if let Message::Text(text) = next.unwrap().unwrap().unwrap() {
                let message: Value = serde_json::from_str(&text).unwrap();
                numbers.push(message["seq"].as_i64().unwrap());
            }
        }
        assert_eq!(numbers, [3, 4]);
        replica.end().await;
    }
}

/// What `/_health` says of the log does not wait for the next operation after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_operation_is_known_after_a_restart() {
    let log = entries(&lives(43, 3));
    let last = log.last().unwrap().clone();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        for _ in 0..2 {
            let replica = Running::start(&place.url, &upstream.url()).await;
            replica.live_at(last.seq).await;
            let health: Value = serde_json::from_str(&replica.get("/_health").await.2).unwrap();
            assert_eq!(health["lastOperationAt"], *last.created_at, "{health}");
            replica.end().await;
        }
    }
}

/// An upstream that goes away and comes back is followed on; serving never stops.
#[tokio::test(flavor = "multi_thread")]
async fn serving_goes_on_while_the_upstream_is_away() {
    let log = entries(&lives(30, 20));
    let (early, late) = log.split_at(15);
    for place in places().await {
        let mut upstream = FakeUpstream::start(early.to_vec()).await;
        let replica = Running::start(&place.url, &upstream.url()).await;
        replica.live_at(early.last().unwrap().seq).await;
        upstream.stop().await;
        let answer = replica.get(&format!("/{}", early[0].did)).await;
        assert_eq!(answer.0, 200);
        upstream.append_all(late.to_vec());
        upstream.start_again().await;
        replica.live_at(late.last().unwrap().seq).await;
        replica.end().await;
    }
}
