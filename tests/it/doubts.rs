//! What was refused is asked about again: what counts as an answer, and what follows from one.

use std::time::Duration;

use tokio::time::Instant;

use plc_replica::follow::{DoubtSettings, RereadingSettings, renumber};
use plc_replica::store::{Store, StoredRefusal};
use plc_replica::upstream::{ExportClient, Limits};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};

use crate::follow::{Place, Running, entries, places};

/// Looks all the time, and asks again after so long each time.
fn settings(pause: Duration) -> DoubtSettings {
    DoubtSettings {
        look: Duration::from_millis(5),
        pauses: vec![pause; 1_000],
        ..DoubtSettings::default()
    }
}

async fn start(place: &Place, upstream: &FakeUpstream, page: usize, pause: Duration) -> Running {
    let (never, url) = (RereadingSettings::default(), upstream.url());
    Running::start_asking_again(&place.url, &url, page, never, settings(pause)).await
}

async fn refusals(store: &Store) -> Vec<StoredRefusal> {
    store.refusals(None, 0, 100).await.unwrap()
}

/// Waits until it is so of the refusals.
async fn until(what: &str, store: &Store, is: impl Fn(&[StoredRefusal]) -> bool) {
    let begun = Instant::now();
    loop {
        let kept = refusals(store).await;
        if is(&kept) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "not {what}: {kept:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// That another identity has the number of a refused line does not make it accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_line_is_not_accepted_because_another_identity_has_its_number() {
    let mut story = Story::seeded(91);
    let alice = story.create().accepted();
    story.update(&alice).duplicate_key().refused("malformed");
    story.create().accepted();
    let mut log = entries(&story);
    log[2].seq = 2;
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let replica = start(&place, &upstream, 1000, Duration::from_millis(10)).await;
        until("asked about", &replica.store, |kept| {
            kept.first().is_some_and(|kept| kept.asked > 0)
        })
        .await;
        let kept = refusals(&replica.store).await;
        assert_eq!((kept.len(), kept[0].accepted_at), (1, None), "{kept:?}");
        replica.end().await;
    }
}

/// While the numbers that are held are an earlier upstream's, nothing is told by a number.
#[tokio::test(flavor = "multi_thread")]
async fn doubts_wait_for_the_numbers_of_another_upstream() {
    let mut story = Story::seeded(92);
    let alice = story.create().accepted();
    story.update(&alice).handle("a.example.com").accepted();
    story.update(&alice).duplicate_key().refused("malformed");
    for _ in 0..200 {
        story.create().accepted();
    }
    let log = entries(&story);
    // The genesis gets the number that the refused line had, which comes last now.
    let mut other: Vec<LogEntry> = log.clone();
    let refused = other.remove(2);
    other.push(refused);
    let numbered = other.iter().zip(3..);
    let other: Vec<LogEntry> =
        numbered.map(|(entry, seq)| LogEntry { seq, ..entry.clone() }).collect();
    let last = other.last().unwrap().seq;
    for place in places().await {
        let first = FakeUpstream::start(log.clone()).await;
        let replica = Running::start(&place.url, &first.url()).await;
        replica.live_at(log.last().unwrap().seq).await;
        let store = replica.end().await;
        // Where the first question came soon, the next one is not due yet.
        let upstream = FakeUpstream::start(other.clone()).await;
        let client = ExportClient::new(&upstream.url(), 0, "test", Limits::default()).unwrap();
        renumber(&store, &client).await.unwrap();
        let asked = refusals(&store).await[0].asked;
        drop(store);
        let replica = start(&place, &upstream, 1, Duration::ZERO).await;
        loop {
            let kept = refusals(&replica.store).await;
            if replica.status.sequence() >= last {
                break;
            }
            assert_eq!((kept[0].asked, kept[0].accepted_at), (asked, None), "{kept:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        until("asked about later", &replica.store, |kept| kept[0].asked > asked).await;
        assert_eq!(refusals(&replica.store).await[0].accepted_at, None);
        replica.end().await;
    }
}

/// The updates of four identities, without what they build on.
fn updates(seed: u64) -> Vec<LogEntry> {
    let mut story = Story::seeded(seed);
    let identities: Vec<_> = (0..4).map(|_| story.create().accepted()).collect();
    for identity in &identities {
        story.update(identity).handle("late.example.com").accepted();
    }
    entries(&story).split_off(4)
}

/// Questions that an upstream does not take do not count.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_takes_no_questions_is_asked_again_about_everything() {
    for place in places().await {
        let upstream = FakeUpstream::start(updates(93)).await;
        upstream.fail(Route::Identity, usize::MAX, Fault::Status(429, None));
        let replica = start(&place, &upstream, 1000, Duration::from_secs(600)).await;
        replica.live_at(8).await;
        let begun = Instant::now();
        while upstream.asked_for(Route::Identity) < 6 {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing is asked");
            let kept = refusals(&replica.store).await;
            assert!(kept.iter().all(|kept| kept.asked == 0), "{kept:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(refusals(&replica.store).await.len(), 4);
        upstream.mend();
        until("asked about", &replica.store, |kept| kept.iter().all(|kept| kept.asked == 1)).await;
        replica.end().await;
    }
}

/// The others are asked while the upstream takes no questions; once for each time, and not instead of it.
#[tokio::test(flavor = "multi_thread")]
async fn others_are_asked_though_the_upstream_takes_no_questions() {
    let mut story = Story::seeded(97);
    let alice = story.create().accepted();
    story.update(&alice).handle("late.example.com").accepted();
    let bob = story.create().accepted();
    let orphan = story.update(&bob).handle("bob.example.com").accepted();
    let log = entries(&story);
    for place in places().await {
        let upstream = FakeUpstream::start([log[1].clone(), log[3].clone()]).await;
        upstream.fail(Route::Identity, usize::MAX, Fault::Status(429, None));
        // It has what is lacking of one of them.
        let other = FakeUpstream::start(log[..2].to_vec()).await;
        // It is away the first time, which is no answer.
        other.fail(Route::Identity, 1, Fault::Status(503, None));
        let client = ExportClient::new(&other.url(), 0, "test", Limits::default()).unwrap();
        let settings = DoubtSettings { others: vec![client], ..settings(Duration::from_secs(600)) };
        let never = RereadingSettings::default();
        let replica =
            Running::start_asking_again(&place.url, &upstream.url(), 1000, never, settings).await;
        until("healed by the other", &replica.store, |kept| {
            kept.iter().any(|kept| kept.accepted_at.is_some())
        })
        .await;
        let before = upstream.asked_for(Route::Identity);
        let begun = Instant::now();
        while upstream.asked_for(Route::Identity) < before + 5 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the upstream is not asked again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(other.asked_for(Route::Identity), 1 + 2);
        let kept = refusals(&replica.store).await;
        let standing: Vec<&StoredRefusal> =
            kept.iter().filter(|kept| kept.accepted_at.is_none()).collect();
        assert_eq!((standing.len(), standing[0].asked), (1, 0), "{kept:#?}");
        assert_eq!(standing[0].refusal.did, orphan.did);
        replica.end().await;
    }
}

/// A server that fails for one identity is asked about the others the next time.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_not_asked_on() {
    for place in places().await {
        let upstream = FakeUpstream::start(updates(94)).await;
        upstream.fail(Route::Identity, 1, Fault::Status(503, None));
        let replica = start(&place, &upstream, 1000, Duration::from_secs(600)).await;
        until("asked about", &replica.store, |kept| {
            kept.len() == 4 && kept.iter().all(|kept| kept.asked == 1)
        })
        .await;
        // The pause after the fault is the upstream's, and the others come in another turn.
        let asked = upstream.asked();
        let at: Vec<Instant> = asked
            .iter()
            .filter(|asked| asked.route == Route::Identity)
            .map(|asked| asked.at)
            .collect();
        assert_eq!(at.len(), 4);
        assert!(at[1] - at[0] >= Duration::from_millis(10), "{:?}", at[1] - at[0]);
        replica.end().await;
    }
}

/// What is sent in place of an export is no line of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_something_else_is_not_kept_as_refused() {
    let mut story = Story::seeded(95);
    let alice = story.create().accepted();
    story.update(&alice).duplicate_key().refused("malformed");
    story.create().accepted();
    let log = entries(&story);
    let busy = Fault::edited(|lines| *lines = vec!["Busy, try again".to_owned()]);
    for other in [Fault::WebPage, busy] {
        for place in places().await {
            let upstream = FakeUpstream::start(log.clone()).await;
            let replica = start(&place, &upstream, 1000, Duration::from_millis(10)).await;
            replica.live_at(3).await;
            upstream.fail(Route::Export, usize::MAX, other.clone());
            let (before, begun) = (upstream.asked_for(Route::Export), Instant::now());
            while upstream.asked_for(Route::Export) < before + 6 {
                assert!(begun.elapsed() < Duration::from_secs(20), "nothing is asked");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let kept = refusals(&replica.store).await;
            assert!(kept.iter().all(|kept| kept.refusal.kind == "malformed"), "{kept:#?}");
            upstream.mend();
            replica.end().await;
        }
    }
}

/// What is read again beside a refused line, and contradicts what is held, is believed only if it stays so.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_damaged_when_it_is_read_again_is_no_difference() {
    let mut story = Story::seeded(96);
    let alice = story.create().accepted();
    story.update(&alice).duplicate_key().refused("malformed");
    story.create().accepted();
    story.update(&alice).duplicate_key().refused("malformed");
    story.create().accepted();
    let log = entries(&story);
    let (right, wrong) = (log[2].created_at.clone(), log[2].created_at.replacen("20", "21", 1));
    // In its time, in its number, and in its CID.
    let damages = [(right, wrong), ("\"seq\":3".into(), "\"seq\":1".into()), {
        let damaged = log[2].cid.replacen("bafyrei", "bafyreh", 1);
        (format!("\"cid\":\"{}", log[2].cid), format!("\"cid\":\"{damaged}"))
    }];
    for (right, wrong) in damages {
        for place in places().await {
            let upstream = FakeUpstream::start(log.clone()).await;
            let replica = start(&place, &upstream, 1000, Duration::from_millis(10)).await;
            replica.live_at(5).await;
            let before = refusals(&replica.store).await[0].asked;
            let (right, wrong) = (right.clone(), wrong.clone());
            let damage = Fault::edited(move |lines| {
                let line = lines.iter_mut().find(|line| line.contains("\"seq\":3,")).unwrap();
                assert!(line.contains(&right));
                *line = line.replace(&right, &wrong);
            });
            upstream.fail(Route::Export, 1, damage);
            until("asked about", &replica.store, |kept| kept[0].asked > before + 2).await;
            let records = replica.store.divergences(None, None, None, 0, 100).await.unwrap();
            assert_eq!(records, []);
            let held = replica.store.sequences(&[1, 3, 5]).await.unwrap();
            let held: Vec<String> = held.iter().map(|held| held.cid().to_string()).collect();
            assert_eq!(held, [log[0].cid.clone(), log[2].cid.clone(), log[4].cid.clone()]);
            replica.end().await;
        }
    }
}
