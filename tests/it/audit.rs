//! An upstream that tells two stories: each is found, recorded once with evidence that verifies
//! offline, and closed when the upstream mends itself.

use std::sync::Arc;
use std::time::Duration;

use did_plc::Timestamp;
use did_plc::signature::{PlainVerifier, Signed, UnsupportedKey, Verifier};
use plc_replica::audit::DumpJudge;
use plc_replica::audit::{
    Checker, NewestOperations, Order, Pages, Peer, Sweep, Watch, WatchSettings,
};
use plc_replica::follow::{DoubtSettings, Follower, RereadingSettings, SwitchSettings};
use plc_replica::live::{Feed, Mode, Role, Status};
use plc_replica::reads::Reads;
use plc_replica::serve::{self, ReadThrough, ServeSettings, ServeState};
use plc_replica::store::{Store, StoredDivergence};
use plc_replica::upstream::{ExportClient, Limits};
use plc_testkit::builder::{Story, Told};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::follow::{Place, places};
use crate::process::program;
use crate::replica::{Replica, operation, stored};
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};

/// A replica that follows, serves, watches and reads through, in this process.
pub struct Watched {
    pub store: Store,
    pub status: Arc<Status>,
    pub url: String,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Watched {
    pub async fn start(place: &Place, upstream: &FakeUpstream) -> Watched {
        Watched::start_with(place, upstream, 6000, 0).await
    }

    /// So many comparisons, and so many requests to the upstream, a minute.
    pub async fn start_with(
        place: &Place,
        upstream: &FakeUpstream,
        comparisons: u32,
        requests: u32,
    ) -> Watched {
        let check_shared = Limits::default().check_shared;
        let rereading = RereadingSettings::default();
        let times = quick(comparisons);
        Watched::start_watching(place, upstream, times, requests, check_shared, rereading).await
    }

    async fn start_watching(
        place: &Place,
        upstream: &FakeUpstream,
        times: WatchSettings,
        requests: u32,
        check_shared: Duration,
        rereading: RereadingSettings,
    ) -> Watched {
        let limits = Limits {
            silence: Duration::from_millis(500),
            backoff_first: Duration::from_millis(20),
            backoff_longest: Duration::from_millis(200),
            check_shared,
            ..Limits::default()
        };
        let client = ExportClient::new(&upstream.url(), requests, "test", limits).unwrap();
        let store = Store::open(&place.url).await.unwrap();
        let source = store.source().await.unwrap();
        let status = Arc::new(Status::new([client.base()], source.as_ref()));
        let feed = Arc::new(Feed::new());
        let verifier: Arc<dyn Verifier> = Arc::new(PlainVerifier);
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = ServeState {
            reads: Arc::new(Reads::new(store.clone(), Arc::clone(&status), Vec::new())),
            store: store.clone(),
            feed: Arc::clone(&feed),
            status: Arc::clone(&status),
            verifier: Arc::clone(&verifier),
            upstream: Some(Arc::new(reading_through(&client, Arc::clone(&verifier)))),
            forward: None,
            settings: ServeSettings::default(),
        };
        let watch = Watch::new(
            Checker { store: store.clone(), verifier: Arc::clone(&verifier) },
            vec![Peer::Server(client.clone())],
            Arc::clone(&status),
            times,
        );
        let follower = Follower {
            store: store.clone(),
            upstreams: vec![client],
            switching: SwitchSettings::default(),
            verifier,
            feed,
            status: Arc::clone(&status),
            rereading,
            doubts: DoubtSettings::default(),
            comes_first: false,
        };
        let following = follower.run(shutdown.clone());
        let tasks = vec![
            tokio::spawn(serve::run(listener, state, shutdown.clone())),
            tokio::spawn(watch.run(shutdown.clone())),
            tokio::spawn(async move { following.await.unwrap() }),
        ];
        Watched { store, status, url, shutdown, tasks }
    }

    pub async fn live_at(&self, sequence: i64) {
        let follows = || self.status.role() == Role::Follower && self.status.mode() == Mode::Live;
        let reached = || self.status.sequence() >= sequence && follows();
        crate::follow::eventually(&format!("live at {sequence}"), reached).await;
    }

    pub async fn end(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    async fn divergences(&self, open: Option<bool>) -> Vec<StoredDivergence> {
        self.store.divergences(None, None, open, 0, 1000).await.unwrap()
    }

    /// Waits until these kinds, and no others, are open.
    async fn finds(&self, kinds: &[&str]) -> Vec<StoredDivergence> {
        for _ in 0..1000 {
            let open = self.divergences(Some(true)).await;
            let mut found: Vec<&str> = open.iter().map(|record| &*record.divergence.kind).collect();
            found.sort_unstable();
            if found == kinds {
                return open;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let open = self.divergences(Some(true)).await;
        let found: Vec<&str> = open.iter().map(|record| &*record.divergence.kind).collect();
        panic!("not within 10 s: {kinds:?}, but {found:?}: {open:#?}");
    }
}

/// So many comparisons a minute, soon after what changed.
fn quick(per_minute: u32) -> WatchSettings {
    WatchSettings {
        per_minute,
        later: Duration::from_millis(50),
        confirm: Duration::from_millis(50),
        recheck: Duration::from_millis(100),
        pause: Duration::from_millis(50),
    }
}

/// Alice (genesis, update, theft, recovery, update) and Bob (genesis, update): numbers 1 to 7.
pub struct Log {
    pub story: Story,
    pub alice: Told,
    pub bob: Told,
}

pub fn tell() -> Log {
    let mut story = Story::seeded(77);
    let thief = story.k256();
    let recovery = story.recovery.clone();
    let alice = story.create().handle("alice.example").accepted();
    let update = story.update(&alice).handle("a.example").accepted();
    story.update(&alice).rotation_keys([&thief]).accepted();
    story.after(&update).signed_by(&recovery).handle("b.example").accepted();
    let bob = story.create().handle("bob.example").accepted();
    story.update(&bob).host("https://bob.example").accepted();
    story.update(&alice).handle("c.example").accepted();
    Log { story, alice, bob }
}

pub fn entries(story: &Story) -> Vec<LogEntry> {
    story.log().iter().map(LogEntry::from).collect()
}

/// What a log in evidence is worth by itself: the names of what is wrong with it.
fn verify(log: &str) -> Vec<String> {
    let entries: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(log).unwrap();
    let block: Vec<(u64, bytes::Bytes)> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| (index as u64 + 1, entry.get().to_owned().into()))
        .collect();
    let (findings, _) = DumpJudge::judge_all(&block, &PlainVerifier).unwrap();
    findings.into_iter().map(|finding| finding.kind).collect()
}

/// Follows an honest upstream that then lies: what is found, that it is found once, that our side
/// of the evidence verifies, and that it is closed when the lie ends.
async fn lies(lie: impl Fn(&FakeUpstream, &Log), kinds: &[&str]) {
    for place in places().await {
        let told = tell();
        let log = entries(&told.story);
        let upstream = FakeUpstream::start(log.clone()).await;
        let watched = Watched::start(&place, &upstream).await;
        watched.live_at(7).await;
        lie(&upstream, &told);
        let found = watched.finds(kinds).await;
        for record in &found {
            let record = &record.divergence;
            assert_eq!(record.source, upstream.url());
            assert_eq!(verify(record.ours.as_ref().unwrap()), [""; 0]);
            assert!(record.theirs.is_some());
        }
        // The watch comes by many times more, and the records stay as they are.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(watched.divergences(None).await.len(), kinds.len());

        for entry in &log {
            upstream.delete(entry.seq);
        }
        upstream.append_all(log.clone());
        for did in [&told.alice.did, &told.bob.did] {
            for path in ["", "/log/last", "/log/audit"] {
                upstream.forget_answer(&format!("/{did}{path}"));
            }
        }
        watched.finds(&[]).await;
        let closed = watched.divergences(Some(false)).await;
        assert!(closed.len() >= kinds.len());
        watched.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_operation_is_found() {
    lies(|upstream, _| upstream.delete(7), &["missing-there"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_identity_is_found() {
    let delete = |upstream: &FakeUpstream, _: &Log| {
        upstream.delete(5);
        upstream.delete(6);
    };
    lies(delete, &["missing-there", "missing-there"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewound_recovery_is_found() {
    let rewind = |upstream: &FakeUpstream, _: &Log| {
        upstream.delete(7);
        upstream.delete(4);
        upstream.alter(3, |theft| theft.nullified = false);
    };
    lies(rewind, &["missing-there", "missing-there", "other-nullified-flag"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_time_is_found() {
    let alter = |upstream: &FakeUpstream, _: &Log| {
        upstream.alter(6, |entry| entry.created_at = "2024-02-01T00:00:00.000Z".into());
    };
    lies(alter, &["other-created-at"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_flag_is_found() {
    let flip = |upstream: &FakeUpstream, _: &Log| {
        upstream.alter(2, |entry| entry.nullified = true);
    };
    lies(flip, &["other-nullified-flag"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_operation_is_found() {
    let swap = |upstream: &FakeUpstream, told: &Log| {
        let mut other = tell();
        let bob = Told { ..told.bob.clone() };
        let at = other.story.log()[5].created_at.clone();
        other.story.after(&bob).at(&at).host("https://evil.example").accepted();
        let evil = LogEntry::from(other.story.log().last().unwrap());
        upstream.alter(6, |entry| *entry = LogEntry { seq: 6, nullified: false, ..evil });
    };
    lies(swap, &["missing-here", "missing-there"]).await;
}

/// A date that is still to come makes nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dated_into_the_future_is_found() {
    let future = "2099-01-01T00:00:00.000Z";
    let forged = |upstream: &FakeUpstream, told: &Log| {
        let log = told.story.log().iter().filter(|entry| entry.did == told.bob.did);
        let log: Vec<LogEntry> = log.map(LogEntry::from).collect();
        let mut forged = log[1].clone();
        forged.operation = forged.operation.replace("bob.example", "eve.example");
        let signed = did_plc::json::read_operation(&forged.operation).unwrap();
        forged.cid = did_plc::Cid::of(&signed).to_string();
        forged.created_at = future.to_owned();
        let body = [&log[0], &log[1], &forged].map(LogEntry::audited).join(",");
        upstream.answer(&format!("/{}/log/audit", told.bob.did), 200, &format!("[{body}]"));
    };
    lies(forged, &["does-not-verify", "other-document", "other-head"]).await;
    let valid = |upstream: &FakeUpstream, _: &Log| {
        let mut told = tell();
        told.story.update(&told.bob).at(future).handle("late.example").accepted();
        let log = told.story.log().iter().filter(|entry| entry.did == told.bob.did);
        let log: Vec<String> = log.map(|entry| LogEntry::from(entry).audited()).collect();
        let body = format!("[{}]", log.join(","));
        upstream.answer(&format!("/{}/log/audit", told.bob.did), 200, &body);
    };
    lies(valid, &["missing-here", "other-document", "other-head"]).await;
}

/// A lie that is told in another way is the same lie, until it agrees with what was said first.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_closed_when_it_agrees_and_not_when_it_changes() {
    for place in places().await {
        let mut told = tell();
        let first = now().to_string();
        told.story.create().at(&first).accepted();
        let upstream = FakeUpstream::start(entries(&told.story)).await;
        let watched = Watched::start_with(&place, &upstream, 6000, 0).await;
        watched.live_at(8).await;
        let mut restated = upstream.log()[7].clone();
        restated.created_at = (now() - Duration::from_secs(1)).to_string();
        upstream.say(&restated.streamed());
        upstream.alter(8, |entry| *entry = restated.clone());
        watched.finds(&["other-created-at", "restated-created-at"]).await;
        upstream.alter(8, |entry| entry.created_at = (now() - Duration::from_secs(2)).to_string());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        watched.finds(&["other-created-at", "restated-created-at"]).await;
        upstream.alter(8, |entry| entry.created_at = first.clone());
        watched.finds(&[]).await;
        watched.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_head_is_found() {
    let stale = |upstream: &FakeUpstream, told: &Log| {
        let old = &told.story.log()[3].operation_json;
        upstream.answer(&format!("/{}/log/last", told.alice.did), 200, old);
    };
    lies(stale, &["other-head"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_hidden_is_found() {
    let hide = |upstream: &FakeUpstream, told: &Log| {
        let did = &told.alice.did;
        let body = format!("{{\"message\":\"DID not registered: {did}\"}}");
        upstream.answer(&format!("/{did}"), 404, &body);
        upstream.answer(&format!("/{did}/log/last"), 404, &body);
    };
    lies(hide, &["other-document", "other-head"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_without_an_answer_keeps_no_other_waiting() {
    let place = places().await.remove(0);
    let told = tell();
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    upstream.answer(&format!("/{}/log/audit", told.alice.did), 500, "{}");
    let watched = Watched::start(&place, &upstream).await;
    watched.live_at(7).await;
    upstream.delete(6);
    watched.finds(&["missing-there"]).await;
    watched.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_record_keeps_nothing_new_waiting() {
    const MANY: usize = 40;
    let place = places().await.remove(0);
    let mut told = tell();
    for _ in 0..MANY {
        told.story.create().accepted();
    }
    let log = entries(&told.story);
    let upstream = FakeUpstream::start(log.clone()).await;
    let watched = Watched::start(&place, &upstream).await;
    watched.live_at(log.len() as i64).await;
    for entry in &log[7..] {
        upstream.delete(entry.seq);
    }
    let mut kinds = vec!["missing-there"; MANY];
    watched.finds(&kinds).await;

    upstream.alter(6, |entry| entry.nullified = true);
    told.story.update(&told.bob).at(&now().to_string()).handle("new.example").accepted();
    upstream.append(told.story.log().last().unwrap().into());
    watched.live_at(log.len() as i64 + 1).await;
    kinds.push("other-nullified-flag");
    watched.finds(&kinds).await;
    watched.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_on_another_path_is_found() {
    let told = tell();
    let log = entries(&told.story);
    let shorter: Vec<String> = log
        .iter()
        .filter(|entry| entry.did == told.alice.did && entry.seq < 7)
        .map(LogEntry::audited)
        .collect();
    let body = format!("[{}]", shorter.join(","));
    let hide = move |upstream: &FakeUpstream, told: &Log| {
        upstream.answer(&format!("/{}/log/audit", told.alice.did), 200, &body);
    };
    // That head and document are those of the longer history is found too.
    lies(hide, &["missing-there", "other-document", "other-head"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backdated_operation_is_found() {
    for place in places().await {
        let mut told = tell();
        let upstream = FakeUpstream::start(entries(&told.story)).await;
        let watched = Watched::start_with(&place, &upstream, 0, 0).await;
        watched.live_at(7).await;
        let fresh = told.story.update(&told.bob).at(&now().to_string()).accepted();
        upstream.append(told.story.log().last().unwrap().into());
        watched.live_at(8).await;
        let old = told.story.update(&told.alice).at("2024-02-01T00:00:00.000Z").accepted();
        assert!(old.created_at < fresh.created_at);
        upstream.append(told.story.log().last().unwrap().into());
        watched.live_at(9).await;
        let found = watched.finds(&["backdated"]).await;
        assert_eq!(found[0].divergence.subject, old.cid);
        assert_eq!(verify(found[0].divergence.ours.as_ref().unwrap()), [""; 0]);
        watched.end().await;

        // It stays on record for as long as the upstream says so.
        let watched = Watched::start(&place, &upstream).await;
        watched.live_at(9).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        watched.finds(&["backdated"]).await;
        let honest = now().to_string();
        upstream.alter(9, |entry| entry.created_at = honest.clone());
        watched.finds(&["other-created-at"]).await;
        watched.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_goes_back_is_followed_from_what_is_shared() {
    for place in places().await {
        let mut told = tell();
        let upstream = FakeUpstream::start(entries(&told.story)).await;
        let watched = Watched::start_with(&place, &upstream, 0, 0).await;
        watched.live_at(7).await;
        upstream.rewind(5);
        upstream.close_streams(1012, "restart");
        let found = watched.finds(&["upstream-rewound"]).await;
        let shared = &told.story.log()[4].cid;
        assert_eq!(found[0].divergence.subject, format!("5 {shared}"));
        // What it numbers from here on takes the numbers that it gave to what it has lost.
        told.story.create().at(&now().to_string()).accepted();
        let mut new = LogEntry::from(told.story.log().last().unwrap());
        new.seq = 6;
        upstream.append(new.clone());
        let holder = async || watched.store.sequences(&[6]).await.unwrap().pop();
        for _ in 0..500 {
            if holder().await.is_some_and(|held| held.cid().to_string() == new.cid) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(holder().await.unwrap().cid().to_string(), new.cid);
        // It is lost there, and not here.
        let lost = &told.story.log()[5];
        let history = watched.store.history(&lost.did.parse().unwrap()).await.unwrap();
        let held = history.iter().find(|held| held.cid().to_string() == lost.cid).unwrap();
        assert_eq!(held.sequence, None);
        watched.finds(&["restated-sequence", "upstream-rewound"]).await;
        watched.end().await;
    }
}

/// A restore from a backup that is noticed only once the log has grown past our cursor again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_has_used_our_numbers_again_is_caught_at_it() {
    for place in places().await {
        let mut told = tell();
        let log = entries(&told.story);
        let mut upstream = FakeUpstream::start(log.clone()).await;
        let watched = Watched::start_with(&place, &upstream, 6000, 0).await;
        watched.live_at(7).await;
        upstream.stop().await;
        upstream.rewind(5);
        let begin = told.story.log().len();
        for _ in 0..5 {
            // Of today, so that nothing about them is backdated however they come in.
            told.story.create().at(&now().to_string()).accepted();
        }
        let new: Vec<LogEntry> = told.story.log()[begin..]
            .iter()
            .zip(6..)
            .map(|(new, seq)| LogEntry { seq, ..LogEntry::from(new) })
            .collect();
        upstream.append_all(new.clone());
        upstream.start_again().await;
        // What it took back is missing there: Alice's and Bob's last operations.
        let found = watched.finds(&["missing-there", "missing-there", "upstream-rewound"]).await;
        let rewound = found.iter().find(|found| found.divergence.kind == "upstream-rewound");
        let rewound = &rewound.unwrap().divergence;
        assert_eq!(rewound.subject, format!("5 {}", log[4].cid));
        assert_eq!(verify(rewound.ours.as_ref().unwrap()), [""; 0]);
        watched.live_at(10).await;
        assert_eq!(watched.store.last_sequence().await.unwrap(), Some(10));
        // The numbers are those of what it gives them to now.
        let numbered = watched.store.sequences(&[6, 7]).await.unwrap();
        let numbered: Vec<String> = numbered.iter().map(|held| held.cid().to_string()).collect();
        assert_eq!(numbered, [new[0].cid.clone(), new[1].cid.clone()]);
        assert!(watched.store.refusals(None, 0, 10).await.unwrap().is_empty());

        // What it took back is there again, under other numbers.
        let again = log[5..].iter().zip(11..).map(|(lost, seq)| LogEntry { seq, ..lost.clone() });
        upstream.append_all(again);
        watched.live_at(12).await;
        watched.finds(&[]).await;
        let numbered = watched.store.sequences(&[11, 12]).await.unwrap();
        let numbered: Vec<String> = numbered.iter().map(|held| held.cid().to_string()).collect();
        assert_eq!(numbered, [log[5].cid.clone(), log[6].cid.clone()]);
        watched.end().await;
    }
}

/// A restore underneath a stream that goes on with what is new there.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_replaced_under_an_open_stream_is_noticed() {
    for place in places().await {
        let mut told = tell();
        let log = entries(&told.story);
        let upstream = FakeUpstream::start(log.clone()).await;
        // Longer than a busy machine takes to read what is new.
        let often = Duration::from_secs(3);
        let watched = Watched::start_watching(
            &place,
            &upstream,
            quick(0),
            0,
            often,
            RereadingSettings::default(),
        )
        .await;
        watched.live_at(7).await;
        // The first question, and from then on there is something to compare.
        for _ in 0..3_000 {
            if upstream.asked().iter().any(|asked| asked.path == "/export?after=6&count=1") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begin = told.story.log().len();
        for _ in 0..5 {
            told.story.create().at(&now().to_string()).accepted();
        }
        let new = told.story.log()[begin..].iter().zip(6..);
        let new: Vec<_> = new.map(|(new, seq)| LogEntry { seq, ..LogEntry::from(new) }).collect();
        let streams = upstream.asked_for(Route::Stream);
        upstream.replace_after(5, new);
        watched.live_at(10).await;
        assert_eq!(upstream.asked_for(Route::Stream), streams, "by the same stream");
        let found =
            watched.finds(&["restated-sequence", "restated-sequence", "upstream-rewound"]).await;
        let subjects: Vec<_> = found.iter().map(|found| &*found.divergence.subject).collect();
        assert!(subjects.contains(&&*format!("5 {}", log[4].cid)), "{subjects:?}");
        assert!(watched.store.refusals(None, 0, 10).await.unwrap().is_empty());
        watched.end().await;
    }
}

/// Fifty operations a second for some seconds, with updates, recoveries and interruptions, and
/// comparisons all the time. `PLC_WATCH_SECONDS=3600` makes it an hour, with the times that `serve`
/// has and fifty times its usual rate.
#[tokio::test(flavor = "multi_thread")]
async fn an_honest_upstream_that_grows_raises_no_alarm() {
    let seconds = std::env::var("PLC_WATCH_SECONDS").ok().and_then(|n| n.parse().ok());
    let times = match seconds {
        Some(_) => WatchSettings::per_minute(600),
        None => quick(6000),
    };
    let places = places().await;
    let all = places.iter().map(|place| honest(place, times, seconds.unwrap_or(3)));
    futures::future::join_all(all).await;
}

async fn honest(place: &Place, times: WatchSettings, seconds: u64) {
    let mut story = Story::seeded(5);
    let recovery = story.recovery.clone();
    let upstream = FakeUpstream::start([]).await;
    let check_shared = Limits::default().check_shared;
    let rereading = RereadingSettings::default();
    let watched =
        Watched::start_watching(place, &upstream, times, 0, check_shared, rereading).await;
    watched.live_at(0).await;
    let begun = std::time::Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(80));
    for round in 0.. {
        beat.tick().await;
        if begun.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        let known = story.log().len();
        // Each a millisecond after the one before, as the directory's clock would have it.
        let first = now();
        let at = |n: u64| (first + Duration::from_millis(n)).to_string();
        let identity = story.create().at(&at(0)).accepted();
        let update = story.update(&identity).at(&at(1)).handle("x.example").accepted();
        story.update(&identity).at(&at(2)).handle("y.example").accepted();
        story.after(&update).at(&at(3)).signed_by(&recovery).handle("z.example").accepted();
        let mut new: Vec<LogEntry> = story.log()[known..].iter().map(LogEntry::from).collect();
        // What is nullified in the end is not yet.
        new[2].nullified = false;
        let (recovery, before) = new.split_last().unwrap();
        upstream.append_all(before.iter().cloned());
        tokio::time::sleep(Duration::from_millis(10)).await;
        upstream.recover(recovery.clone(), before[2].seq);
        match round % 400 {
            100 => upstream.close_streams(1012, "restart"),
            200 => upstream.close_streams(1011, "trouble"),
            // Once, since the watch lets an upstream that fails rest for a while.
            300 => upstream.fail(Route::Identity, 1, Fault::Status(503, None)),
            _ => {}
        }
    }
    let operations = story.log().len() as i64;
    watched.live_at(operations).await;
    tokio::time::sleep(times.later + Duration::from_millis(500)).await;
    let questions = upstream.asked_for(Route::Identity) as u64;
    println!("{operations} operations in {seconds} s, {questions} questions");
    assert!(questions > 5 * seconds, "{questions}");
    assert_eq!(watched.divergences(None).await, []);
    assert_eq!(watched.store.refusals(None, 0, 10).await.unwrap(), []);
    watched.end().await;
}

fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

/// Status, `PLC-Read-Through` and body of an answer.
async fn get(url: String, headers: &[(&str, &str)]) -> (u16, String, String) {
    let client = reqwest::Client::new();
    let request =
        headers.iter().fold(client.get(url), |request, &(name, value)| request.header(name, value));
    let answer = request.send().await.unwrap();
    let header = answer.headers().get("plc-read-through");
    let header = header.map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), header, answer.text().await.unwrap())
}

const NO_CACHE: &[(&str, &str)] = &[("cache-control", "no-cache")];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_read_through_and_never_stored() {
    let mut told = tell();
    let place = places().await.remove(0);
    let mut upstream = FakeUpstream::start(entries(&told.story)).await;
    let watched = Watched::start_with(&place, &upstream, 0, 0).await;
    watched.live_at(7).await;
    let alice = format!("{}/{}", watched.url, told.alice.did);

    // An operation that the upstream shows on its other paths before its export has it.
    told.story.update(&told.alice).handle("new.example").accepted();
    let carol = told.story.create().handle("carol.example").accepted();
    let [.., update, genesis] = told.story.log() else { panic!("two more") };
    let log = plc_testkit::audit_log(told.story.accepted(&told.alice));
    upstream.answer(&format!("/{}/log/audit", told.alice.did), 200, &log);
    let log = plc_testkit::audit_log([genesis]);
    upstream.answer(&format!("/{}/log/audit", carol.did), 200, &log);

    let (status, how, body) = get(alice.clone(), &[]).await;
    assert_eq!((status, &*how), (200, ""));
    assert!(body.contains("c.example"));
    let (status, how, body) = get(alice.clone(), NO_CACHE).await;
    assert_eq!((status, &*how), (200, "upstream"));
    assert!(body.contains("new.example"));
    let (_, _, last) = get(format!("{alice}/log/last"), NO_CACHE).await;
    assert_eq!(last, update.operation_json);
    let (status, how, body) = get(format!("{}/{}", watched.url, carol.did), &[]).await;
    assert_eq!((status, &*how), (200, "upstream"));
    assert!(body.contains("carol.example"));
    assert_eq!(watched.store.history(&carol.did.parse().unwrap()).await.unwrap(), []);

    // What does not verify, and what lacks what we hold, is not passed on.
    let cut = plc_testkit::audit_log(told.story.accepted(&told.alice).skip(1));
    upstream.answer(&format!("/{}/log/audit", told.alice.did), 200, &cut);
    let (status, how, body) = get(alice.clone(), NO_CACHE).await;
    assert_eq!((status, &*how), (200, "upstream-does-not-verify"));
    assert!(body.contains("c.example"));
    let old = plc_testkit::audit_log(told.story.accepted(&told.alice).take(1));
    upstream.answer(&format!("/{}/log/audit", told.alice.did), 200, &old);
    assert_eq!(get(alice.clone(), NO_CACHE).await.1, "upstream-lacks-operations");
    // Our own bytes go with our own entity tag, whatever times the upstream states now.
    let stated = &told.story.log()[6].created_at;
    let restated = plc_testkit::audit_log(told.story.accepted(&told.alice).take(5))
        .replace(stated, "2024-06-01T00:00:00.000Z");
    upstream.answer(&format!("/{}/log/audit", told.alice.did), 200, &restated);
    let (status, how, body) = get(format!("{alice}/log/audit"), NO_CACHE).await;
    assert_eq!((status, &*how), (200, "upstream-restates-times"));
    assert!(body.contains(stated), "{body}");

    upstream.stop().await;
    let (status, how, _) = get(alice.clone(), NO_CACHE).await;
    assert_eq!((status, &*how), (200, "upstream-unavailable"));
    watched.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_identities_cannot_flood_the_upstream() {
    let told = tell();
    let place = places().await.remove(0);
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    // A request every 100 ms, of which the clients' share is a quarter.
    let watched = Watched::start_with(&place, &upstream, 0, 600).await;
    watched.live_at(7).await;
    let before = upstream.asked_for(Route::Identity);
    let begun = std::time::Instant::now();
    let client = reqwest::Client::new();
    let asked = (0..40).map(|task| {
        let (client, url) = (client.clone(), watched.url.clone());
        tokio::spawn(async move {
            for n in 0..5u8 {
                let mut bytes = [n; 15];
                bytes[0] = task;
                let did = did_plc::Did::from_bytes(bytes);
                let answer = client.get(format!("{url}/{did}")).send().await.unwrap();
                assert_eq!(answer.status(), 404);
            }
        })
    });
    for task in asked.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let allowed = begun.elapsed().as_millis() / 400 + 2;
    let sent = upstream.asked_for(Route::Identity) - before;
    assert!(sent as u128 <= allowed, "{sent} requests, {allowed} allowed");

    // One identity, asked for by many at once and again: one request.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = upstream.asked_for(Route::Identity);
    let url = format!("{}/did:plc:zzzzzzzzzzzzzzzzzzzzzzzz", watched.url);
    let many: Vec<_> = (0..50).map(|_| tokio::spawn(get(url.clone(), &[]))).collect();
    for one in many {
        let (status, how, _) = one.await.unwrap();
        assert_eq!((status, &*how), (404, "unknown-upstream"));
    }
    assert_eq!(get(url, &[]).await.0, 404);
    assert_eq!(upstream.asked_for(Route::Identity) - before, 1);
    watched.end().await;
}

/// Read-through of one upstream.
pub fn reading_through(client: &ExportClient, verifier: Arc<dyn Verifier>) -> ReadThrough {
    let status = Arc::new(Status::new([client.base()], None));
    ReadThrough::new(std::slice::from_ref(client), &[], status, verifier)
}

/// Fails at every signature.
struct Panicking;

impl Verifier for Panicking {
    fn find_signer(&self, _: &[&str], _: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        panic!("on request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_ends_in_a_panic_can_be_asked_again() {
    let told = tell();
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    let client = ExportClient::new(&upstream.url(), 0, "test", Limits::default()).unwrap();
    let replica =
        Replica::start_reading_through(reading_through(&client, Arc::new(Panicking))).await;
    for asked in 1..=6 {
        let answer = replica.get(&format!("/{}", told.alice.did)).await;
        // That it is not there nobody can say.
        assert_eq!(answer.status, 500);
        assert_eq!(upstream.asked_for(Route::Identity), asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_upstream_is_asked_is_answered() {
    const BOB: &str = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb";
    const ALICE: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let upstream = FakeUpstream::start([]).await;
    upstream.fail(Route::Identity, usize::MAX, Fault::Silence);
    let client = ExportClient::new(&upstream.url(), 0, "test", Limits::default()).unwrap();
    let mut replica =
        Replica::start_reading_through(reading_through(&client, Arc::new(PlainVerifier))).await;
    let new = |did, at, sequence, handle| stored(did, at, sequence, &operation(handle));
    let first = new(ALICE, "2024-01-01T00:00:00.000Z", 1, "at://old.example");
    replica.commit(vec![first]).await;
    replica.caught_up();
    let paths = [ALICE, BOB].map(|did| [format!("/{did}"), format!("/1.0/identifiers/{did}")]);
    let asked = paths.concat().into_iter().map(|path| {
        let url = format!("http://{}{path}", replica.address);
        tokio::spawn(async move {
            let mut request = reqwest::Client::new().get(url);
            // Bob is asked about in any case, being unknown.
            if path.ends_with(ALICE) {
                request = request.header("cache-control", "no-cache");
            }
            let answer = request.send().await.unwrap();
            let sequence = answer.headers()["plc-sequence"].to_str().unwrap().to_owned();
            (path, answer.status(), sequence, answer.text().await.unwrap())
        })
    });
    let asked: Vec<_> = asked.collect();
    while upstream.asked_for(Route::Identity) < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let update = new(ALICE, "2024-01-02T00:00:00.000Z", 2, "at://new.example");
    let genesis = new(BOB, "2024-01-02T00:00:00.000Z", 3, "at://new.example");
    replica.commit(vec![update, genesis]).await;
    for asked in asked {
        let (path, status, sequence, body) = asked.await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        assert!(body.contains("new.example"), "{path}: {body}");
        // What was known when the store was first looked at is what is promised.
        assert_eq!(sequence, "1", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_what_it_has_written() {
    let mut told = tell();
    let place = places().await.remove(0);
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    let watched = Watched::start_with(&place, &upstream, 0, 0).await;
    watched.live_at(7).await;
    let bob = format!("{}/{}", watched.url, told.bob.did);
    let mut waits = Vec::new();
    for n in 0..100 {
        let handle = format!("bob{n}.example");
        let new = told.story.update(&told.bob).handle(&handle).accepted();
        let asked = tokio::spawn(get(format!("{bob}?cid={}", new.cid), &[]));
        upstream.append(told.story.log().last().unwrap().into());
        let begun = std::time::Instant::now();
        let (status, _, body) = asked.await.unwrap();
        waits.push(begun.elapsed());
        assert_eq!(status, 200);
        assert!(body.contains(&handle), "{body}");
    }
    waits.sort_unstable();
    println!("read after write: p50 {:?}, p99 {:?}", waits[50], waits[99]);

    let absent = did_plc::Cid::of(b"absent");
    let begun = std::time::Instant::now();
    let (status, _, body) = get(format!("{bob}?cid={absent}"), &[("prefer", "wait=1")]).await;
    assert_eq!(status, 504);
    assert!(body.contains(&absent.to_string()) && body.contains("after 1 s"), "{body}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(get(format!("{bob}?cid=bafy"), &[]).await.0, 400);
    watched.end().await;
}

/// Exit code and output of `verify` on this text.
fn judged_offline(text: &str) -> (Option<i32>, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let output = program(&[]).arg("verify").arg(file.path()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_served() {
    let told = tell();
    let place = places().await.remove(0);
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    let watched = Watched::start(&place, &upstream).await;
    watched.live_at(7).await;
    upstream.delete(7);
    upstream.append(LogEntry { seq: 8, operation: "{}".into(), ..entries(&told.story)[0].clone() });
    watched.finds(&["does-not-verify", "missing-there"]).await;
    let json = async |path: &str| -> serde_json::Value {
        let (status, _, body) = get(format!("{}{path}", watched.url), &[]).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    };
    let all = json("/_audit/divergences").await;
    assert_eq!(all["divergences"].as_array().unwrap().len(), 2);
    assert_eq!(all["next"], serde_json::Value::Null);
    let missing = json("/_audit/divergences?kind=missing-there&open=true").await;
    let missing = &missing["divergences"][0];
    assert_eq!(missing["did"], told.alice.did);
    assert_eq!(missing["ours"].as_array().unwrap().len(), 5);
    let ours = json(&format!("/_audit/divergences/{}/ours", missing["id"])).await;
    assert_eq!(&ours, &missing["ours"]);
    assert_eq!(verify(&ours.to_string()), [""; 0]);
    let records = get(format!("{}/_audit/divergences", watched.url), &[]).await.2;
    let (code, printed) = judged_offline(&records);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("ours: 5 operations, which verify"), "{printed}");
    assert!(printed.contains("theirs: does not verify"), "{printed}");
    // Evidence that was tampered with on our side does not pass.
    let (code, printed) = judged_offline(&records.replace("c.example", "x.example"));
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("ours: does not verify"), "{printed}");
    assert_eq!(json("/_audit/divergences?open=false").await["divergences"], serde_json::json!([]));
    let first = json("/_audit/divergences?count=1").await;
    let rest = json(&format!("/_audit/divergences?after={}", first["next"])).await;
    assert_eq!(rest["divergences"].as_array().unwrap().len(), 1);
    let refused = json("/_audit/refused").await;
    assert_eq!(refused["refused"][0]["kind"], "malformed");
    assert_eq!(json("/_audit/refused?kind=other").await["refused"], serde_json::json!([]));

    let verdicts = json(&format!("/{}/log/verdicts", told.alice.did)).await;
    let verdicts = verdicts["verdicts"].as_array().unwrap().clone();
    assert_eq!(verdicts.len(), 5);
    assert_eq!(verdicts[2]["nullifiedBy"], verdicts[3]["cid"]);
    assert_eq!(verdicts[3]["signedBy"]["index"], 0);
    assert!(verdicts[0]["receivedAfterSeconds"].as_f64().unwrap() > 0.0);
    watched.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_suspects_what_differs_and_nothing_else() {
    for place in places().await {
        let told = tell();
        let upstream = FakeUpstream::start(entries(&told.story)).await;
        let watched = Watched::start_with(&place, &upstream, 0, 0).await;
        watched.live_at(7).await;
        let sweep = async |order| {
            let until = match order {
                Order::Time => now().millis(),
                Order::Sequence => 7,
            };
            let peer = Peer::new(&upstream.url(), 0, "test").unwrap();
            let mut pages = Pages::of(&peer).unwrap();
            let words = NewestOperations::ask(&watched.store, &peer).await.unwrap();
            let mut sweep = Sweep::new(order, 0, until);
            while !sweep.is_done() {
                sweep.step(&watched.store, &mut pages, &words).await.unwrap();
            }
            sweep
        };
        for order in [Order::Time, Order::Sequence] {
            let sweep = sweep(order).await;
            assert_eq!((sweep.compared, sweep.suspects.len()), (7, 0), "{order:?}");
        }
        upstream.alter(2, |entry| entry.nullified = true);
        assert_eq!(sweep(Order::Sequence).await.suspects.len(), 0);
        let suspects = sweep(Order::Time).await.suspects;
        assert!(suspects.into_keys().eq([told.alice.did.clone()]));
        upstream.delete(6);
        for order in [Order::Time, Order::Sequence] {
            assert!(sweep(order).await.suspects.contains_key(&told.bob.did), "{order:?}");
        }
        watched.end().await;
    }
}

/// An operation that the export alone lacks is on record for as long as that is so: what the audit log of its
/// identity says does not close it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_export_alone_lacks_stays_on_record_until_it_is_there() {
    for place in places().await {
        let told = tell();
        let log = entries(&told.story);
        let upstream = FakeUpstream::start(log.clone()).await;
        let check_shared = Limits::default().check_shared;
        let rereading = crate::second_reading::AT_ONCE;
        let watched =
            Watched::start_watching(&place, &upstream, quick(6000), 0, check_shared, rereading)
                .await;
        watched.live_at(7).await;
        let lacking = log[3].cid.clone();
        let stated = format!("\"cid\":\"{lacking}\"");
        let without = Fault::edited(move |lines| lines.retain(|line| !line.contains(&stated)));
        upstream.fail(Route::Export, usize::MAX, without);
        let found = watched.finds(&["missing-in-export"]).await;
        assert_eq!(found[0].divergence.subject, lacking);
        // It is compared and asked for many times more.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let open = watched.divergences(Some(true)).await;
            assert_eq!(open.len(), 1, "{open:?}");
        }
        assert_eq!(watched.divergences(None).await.len(), 1);
        upstream.mend();
        watched.finds(&[]).await;
        watched.end().await;
    }
}
