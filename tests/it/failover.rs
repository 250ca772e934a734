//! Several upstreams: the first that is well is followed. It dies, is behind, lies and comes back, and what is held in the
//! end is the honest log, each operation once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use did_plc::{Cid, Timestamp, json};
use futures::StreamExt;
use plc_replica::follow::{DoubtSettings, RereadingSettings, SwitchSettings};
use plc_replica::live::{Mode, Role, Standing, Upstreams};
use plc_replica::store::Store;
use plc_replica::upstream::ExportClient;
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::follow::{Place, Running, entries, limits, lives, lives_with_attacks, places};
use crate::healing::{by_number, honest, rows};
use crate::process::{Served, program, run};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// An upstream is away after this.
pub const AWAY: Duration = Duration::from_millis(1_500);

/// Seconds in place of minutes.
pub fn soon() -> SwitchSettings {
    SwitchSettings {
        look: Duration::from_millis(500),
        away: AWAY,
        behind: Duration::from_secs(2),
        well: Duration::from_millis(500),
        repented: Duration::from_millis(100),
        alone: Duration::from_secs(3_600),
    }
}

pub fn clients(upstreams: &[&FakeUpstream]) -> Vec<ExportClient> {
    let client =
        |upstream: &&FakeUpstream| ExportClient::new(&upstream.url(), 0, "test", limits()).unwrap();
    upstreams.iter().map(client).collect()
}

pub async fn start(
    place: &Place,
    upstreams: &[&FakeUpstream],
    switching: SwitchSettings,
) -> Running {
    start_rereading(place, upstreams, switching, RereadingSettings::default()).await
}

async fn start_rereading(
    place: &Place,
    upstreams: &[&FakeUpstream],
    switching: SwitchSettings,
    rereading: RereadingSettings,
) -> Running {
    let doubts = DoubtSettings { look: Duration::from_millis(50), ..DoubtSettings::default() };
    Running::start_among(&place.url, clients(upstreams), switching, rereading, doubts).await
}

pub async fn eventually(what: &str, replica: &Running, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        let reports = replica.status.upstreams().reports();
        let (sequence, mode) = (replica.status.sequence(), replica.status.mode());
        assert!(
            begun.elapsed() < PATIENCE,
            "not within a minute: {what}; at {sequence}, {mode:?}, {reports:#?}"
        );
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until this one is followed, and this number is committed from its present.
pub async fn follows(replica: &Running, place: usize, sequence: i64) {
    let upstreams = replica.status.upstreams();
    eventually(&format!("{place} is followed at {sequence}"), replica, || {
        upstreams.followed() == place
            && upstreams.report(place).unwrap().standing == Standing::Followed
            && replica.status.sequence() >= sequence
            && replica.status.mode() == Mode::Live
            && replica.status.role() == Role::Follower
    })
    .await;
}

pub async fn stands(replica: &Running, place: usize, standing: Standing) {
    eventually(&format!("{place} is {standing:?}"), replica, || {
        replica.status.upstreams().report(place).unwrap().standing == standing
    })
    .await;
}

/// Of what kind the differences are that were recorded, and who stated them; all is older here than what comes live.
pub async fn differences(replica: &Running) -> Vec<(String, String)> {
    let records = replica.store.divergences(None, None, None, 0, 10_000).await.unwrap();
    let records = records.into_iter().map(|record| record.divergence);
    let others = records.filter(|record| record.kind != "backdated");
    others.map(|record| (record.kind, record.source)).collect()
}

/// The numbers that a client of the stream is sent, from the beginning on: it comes back where it was.
pub fn listen(replica: &Running) -> (Arc<Mutex<Vec<i64>>>, JoinHandle<()>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (address, numbers) = (replica.address, Arc::clone(&heard));
    let listening = tokio::spawn(async move {
        loop {
            let cursor = numbers.lock().unwrap().last().copied().unwrap_or(0);
            let url = format!("ws://{address}/export/stream?cursor={cursor}");
            let Ok((mut client, _)) = tokio_tungstenite::connect_async(url).await else { return };
            while let Some(Ok(message)) = client.next().await {
                if let Message::Text(text) = message {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    numbers.lock().unwrap().push(message["seq"].as_i64().unwrap());
                }
            }
        }
    });
    (heard, listening)
}

/// One log that two tell, as far as each of them has come.
pub struct Told {
    pub log: Vec<LogEntry>,
    pub at: usize,
}

impl Told {
    /// Operations that come at once.
    const STEP: usize = 25;

    pub fn new(operations: usize) -> Told {
        Told { log: story(operations), at: 0 }
    }

    /// What comes next, so many.
    pub fn next(&mut self, count: usize) -> Vec<LogEntry> {
        let next = self.log[self.at..self.at + count].to_vec();
        self.at += count;
        next
    }

    pub fn sequence(&self) -> i64 {
        self.log[self.at - 1].seq
    }

    /// Grows at all of these, bit by bit.
    pub async fn grow(&mut self, count: usize, upstreams: &[&FakeUpstream]) {
        for _ in 0..count / Told::STEP {
            let next = self.next(Told::STEP);
            upstreams.iter().for_each(|upstream| upstream.append_all(next.clone()));
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// An upstream that tells all of it, as far as it has come, whatever it told before.
    pub fn tell(&self, upstream: &FakeUpstream) {
        upstream.replace_after(0, self.log[..self.at].to_vec());
        upstream.close_streams(1012, "restart");
    }
}

/// Lives of identities whose operations all verify, one a second.
pub fn story(operations: usize) -> Vec<LogEntry> {
    let mut story = Story::seeded(97);
    while story.log().len() < operations {
        let alice = story.create().accepted();
        story.update(&alice).handle("alice.example.com").accepted();
        let bob = story.create_legacy().accepted();
        story.update(&bob).handle("bob.example.com").accepted();
    }
    entries(&story)[..operations].to_vec()
}

/// All that is held is the honest log, every operation of it once, and clients were sent it in its order.
pub async fn is_whole(replica: Running, told: &Told, heard: &Mutex<Vec<i64>>) {
    let sent: Vec<i64> = is_held(&replica, told).await;
    eventually("all is sent", &replica, || heard.lock().unwrap().len() >= sent.len()).await;
    let heard = heard.lock().unwrap().clone();
    let other = heard.iter().zip(&sent).position(|(heard, sent)| heard != sent);
    let around = other.map(|at| &heard[at.saturating_sub(3)..heard.len().min(at + 20)]);
    assert_eq!((heard.len(), around), (sent.len(), None));
    replica.end().await;
}

/// All that is held is the honest log, every operation of it once; the numbers of it.
pub async fn is_held(replica: &Running, told: &Told) -> Vec<i64> {
    let expected = honest(&told.log[..told.at]).await;
    let held = rows(&replica.store).await;
    let other: Vec<_> =
        expected.iter().filter(|(number, row)| held.get(number) != Some(row)).take(3).collect();
    assert_eq!(held.len(), expected.len());
    assert_eq!(other, []);
    let operations = replica.store.export_by_time(None, 1_000_000).await.unwrap().len();
    assert_eq!(operations, expected.len(), "something is there twice or has no number");
    expected.into_keys().collect()
}

/// Waits until all that was told so far is held, under whatever numbers, each operation once, as in the honest log.
pub async fn holds(store: &Store, log: &[LogEntry]) {
    let expected = honest(log).await;
    let numbers: BTreeMap<&str, i64> = log.iter().map(|entry| (&*entry.cid, entry.seq)).collect();
    let begun = Instant::now();
    loop {
        let mut held = store.export_by_time(None, 1_000_000).await.unwrap();
        if held.len() >= expected.len() {
            for operation in &mut held {
                operation.sequence = numbers.get(&*operation.cid().to_string()).copied();
            }
            assert_eq!(held.len(), expected.len(), "something is there twice");
            assert_eq!(by_number(held), expected);
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{} of {} are held", held.len(), expected.len());
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a liar tells: the log as far as it has come, and more of it.
type Lie = (&'static str, fn(&FakeUpstream, &[LogEntry]));

const LIES: [Lie; 7] = [
    ("CIDs are those of others, from some number on", |upstream, next| {
        let log = upstream.log();
        let last = log.last().unwrap().seq;
        let other = log[0].cid.clone();
        for seq in last - 10..=last {
            upstream.alter(seq, |entry| entry.cid.clone_from(&other));
        }
        let lies = next.iter().map(|it| LogEntry { cid: other.clone(), ..it.clone() });
        upstream.append_all(lies);
    }),
    ("CIDs are those of others, from now on", |upstream, next| {
        let other = upstream.log()[0].cid.clone();
        for entry in next {
            upstream.append(LogEntry { cid: other.clone(), ..entry.clone() });
        }
    }),
    ("what comes is dated back", |upstream, next| {
        upstream.append(next[0].clone());
        for entry in &next[1..] {
            let created_at = entry.created_at.replacen("202", "201", 1);
            upstream.append(LogEntry { created_at, ..entry.clone() });
        }
    }),
    ("operations are deleted", |upstream, next| {
        let last = upstream.log().last().unwrap().seq;
        upstream.delete(last - 7);
        upstream.delete(last - 3);
        // Updates of what it does not have.
        upstream.append_all(next.iter().filter(|entry| entry.seq % 4 != 1).cloned());
    }),
    ("one operation is left out, of which nobody speaks", |upstream, next| {
        upstream.append_all(next.iter().filter(|entry| entry.seq != { next[8].seq }).cloned());
    }),
    ("what it told is something else", |upstream, _| {
        let mut log = upstream.log();
        let [before, last] = log.last_chunk_mut::<2>().unwrap();
        std::mem::swap(&mut before.seq, &mut last.seq);
        upstream.replace_after(last.seq - 1, vec![last.clone(), before.clone()]);
        upstream.close_streams(1012, "restart");
    }),
    ("numbers are others", |upstream, next| {
        let log = upstream.log();
        let from = log.len() - 20;
        let shifted = log[from..].iter().chain(next);
        let shifted = shifted.map(|entry| LogEntry { seq: entry.seq + 3, ..entry.clone() });
        let shifted: Vec<LogEntry> = shifted.collect();
        upstream.replace_after(log[from].seq - 1, shifted);
        upstream.close_streams(1012, "restart");
    }),
];

/// The first dies and the second takes over, the first comes back 300 operations behind, catches up and is returned to,
/// and lies in every way, each time until it is left, and repents.
async fn dies_comes_back_behind_and_lies(place: &Place) {
    let mut told = Told::new(2_500);
    let mut first = FakeUpstream::start(told.next(500)).await;
    let second = FakeUpstream::start(told.log[..500].to_vec()).await;
    let replica = start(place, &[&first, &second], soon()).await;
    let (heard, listening) = listen(&replica);
    follows(&replica, 0, 500).await;
    told.grow(100, &[&first, &second]).await;
    follows(&replica, 0, told.sequence()).await;

    first.stop().await;
    told.grow(100, &[&second]).await;
    follows(&replica, 1, told.sequence()).await;
    stands(&replica, 0, Standing::Away).await;

    first.rewind(400);
    first.start_again().await;
    stands(&replica, 0, Standing::Behind).await;
    told.grow(100, &[&second]).await;
    follows(&replica, 1, told.sequence()).await;
    sleep(3 * soon().well).await;
    assert_eq!(replica.status.upstreams().followed(), 1);

    told.tell(&first);
    follows(&replica, 0, told.sequence()).await;
    told.grow(100, &[&first, &second]).await;
    follows(&replica, 0, told.sequence()).await;

    for (name, lie) in LIES {
        println!("{name}");
        let next = told.next(20);
        second.append_all(next.clone());
        lie(&first, &next);
        stands(&replica, 0, Standing::Refuted).await;
        follows(&replica, 1, told.sequence()).await;
        told.grow(50, &[&second]).await;
        follows(&replica, 1, told.sequence()).await;
        told.tell(&first);
        follows(&replica, 0, told.sequence()).await;
        told.grow(50, &[&first, &second]).await;
        follows(&replica, 0, told.sequence()).await;
    }
    is_whole(replica, &told, &heard).await;
    listening.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_dies_comes_back_behind_and_lies() {
    for place in places().await {
        dies_comes_back_behind_and_lies(&place).await;
    }
}

/// What was read long ago and is told otherwise now is found by the second reading, and not taken over.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_otherwise_at_the_second_reading_is_not_taken_over() {
    let log = story(200);
    let dated_later = |entry: &mut LogEntry| {
        let at: Timestamp = entry.created_at.parse().unwrap();
        entry.created_at = (at + Duration::from_millis(1)).to_string();
    };
    for place in places().await {
        let first = FakeUpstream::start(log.clone()).await;
        let second = FakeUpstream::start(log.clone()).await;
        let rereading =
            RereadingSettings { second_after: Duration::from_secs(1), ..Default::default() };
        let replica = start_rereading(&place, &[&first, &second], soon(), rereading).await;
        follows(&replica, 0, 200).await;
        first.alter(20, dated_later);
        first.delete(30);
        stands(&replica, 0, Standing::Refuted).await;
        follows(&replica, 1, 200).await;
        eventually("read twice", &replica, || replica.status.read_twice() == 200).await;
        let expected = honest(&log).await;
        assert_eq!(rows(&replica.store).await, expected);
        assert_eq!(differences(&replica).await, []);
        replica.end().await;
    }
}

/// One line that is wrong is a line that is wrong: what it should be comes from the second, in its order.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_does_not_verify_is_asked_for_elsewhere() {
    for place in places().await {
        let mut told = Told::new(300);
        let first = FakeUpstream::start(told.next(100)).await;
        let second = FakeUpstream::start(told.log[..100].to_vec()).await;
        let replica = start(&place, &[&first, &second], soon()).await;
        let (heard, listening) = listen(&replica);
        follows(&replica, 0, 100).await;
        let next = told.next(20);
        second.append_all(next.clone());
        let wrong = LogEntry { cid: next[0].cid.clone(), ..next[7].clone() };
        first.append_all(
            next.iter().map(|it| if it.seq == wrong.seq { &wrong } else { it }).cloned(),
        );
        follows(&replica, 0, told.sequence()).await;
        told.grow(100, &[&first, &second]).await;
        follows(&replica, 0, told.sequence()).await;
        // What it states is on record beside what is held.
        let differences = differences(&replica).await;
        assert!(differences.contains(&("restated-cid".to_owned(), first.url())), "{differences:?}");
        assert!(differences.iter().all(|(_, source)| *source == first.url()), "{differences:?}");
        is_whole(replica, &told, &heard).await;
        listening.abort();
    }
}

/// What neither of them has otherwise is refused, and passed.
#[tokio::test(flavor = "multi_thread")]
async fn what_all_of_them_state_is_passed() {
    let log = lives_with_attacks(45, 200);
    let last = log.last().unwrap().seq;
    for place in places().await {
        let first = FakeUpstream::start(log[..120].to_vec()).await;
        let second = FakeUpstream::start(log[..120].to_vec()).await;
        let replica = start(&place, &[&first, &second], soon()).await;
        follows(&replica, 0, 115).await;
        for some in log[120..].chunks(10) {
            first.append_all(some.to_vec());
            second.append_all(some.to_vec());
            sleep(Duration::from_millis(30)).await;
        }
        follows(&replica, 0, last).await;
        assert_eq!(rows(&replica.store).await, honest(&log).await);
        assert_eq!(replica.status.upstreams().report(1).unwrap().standing, Standing::Ready);
        replica.end().await;
    }
}

/// Serving goes on while nobody is there, and says how old it is; whoever comes back first is followed.
#[tokio::test(flavor = "multi_thread")]
async fn all_of_them_are_away() {
    for place in places().await {
        let mut told = Told::new(200);
        let mut first = FakeUpstream::start(told.next(100)).await;
        let mut second = FakeUpstream::start(told.log[..100].to_vec()).await;
        let replica = start(&place, &[&first, &second], soon()).await;
        let (heard, listening) = listen(&replica);
        follows(&replica, 0, 100).await;
        first.stop().await;
        second.stop().await;
        stands(&replica, 0, Standing::Away).await;
        stands(&replica, 1, Standing::Away).await;
        let (status, _, page) = replica.get("/export?after=0").await;
        assert_eq!((status, page.lines().count()), (200, 100));
        let health: Value = serde_json::from_str(&replica.get("/_health").await.2).unwrap();
        for (at, upstream) in [&first, &second].into_iter().enumerate() {
            let said = &health["upstreams"][at];
            assert_eq!(said["url"], upstream.url());
            assert_eq!(said["state"], "away");
            assert_eq!(said["followed"], at == 0);
            assert!(said["reason"].as_str().unwrap().contains("cannot be reached"), "{said}");
        }
        let page = replica.get("/").await.2;
        assert_eq!(page.matches("warn\">away</span>").count(), 2, "{page}");
        second.start_again().await;
        told.grow(50, &[&first, &second]).await;
        follows(&replica, 1, told.sequence()).await;
        first.start_again().await;
        told.grow(50, &[&first, &second]).await;
        follows(&replica, 0, told.sequence()).await;
        is_whole(replica, &told, &heard).await;
        listening.abort();
    }
}

/// Another log is never followed, whoever else is away, and it is said why.
#[tokio::test(flavor = "multi_thread")]
async fn another_log_is_never_followed() {
    for place in places().await {
        let mut told = Told::new(200);
        let mut first = FakeUpstream::start(told.next(100)).await;
        let other = FakeUpstream::start(entries(&lives(3, 150))).await;
        let replica = start(&place, &[&first, &other], soon()).await;
        let (heard, listening) = listen(&replica);
        follows(&replica, 0, 100).await;
        stands(&replica, 1, Standing::Refuted).await;
        first.stop().await;
        stands(&replica, 0, Standing::Away).await;
        sleep(3 * AWAY).await;
        assert_eq!(replica.status.upstreams().followed(), 0);
        assert_eq!(other.streams(), 0);
        let expected = [("restated-sequence".to_owned(), other.url())];
        assert_eq!(differences(&replica).await, expected);
        first.start_again().await;
        told.grow(100, &[&first]).await;
        follows(&replica, 0, told.sequence()).await;
        is_whole(replica, &told, &heard).await;
        listening.abort();
    }
}

/// A second one that does not answer, or nothing that could be used, is not followed before it does.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_nonsense_is_not_followed() {
    for place in places().await {
        for fault in [Fault::Silence, Fault::WebPage, Fault::Status(503, None), Fault::EndlessBody]
        {
            let log = story(100);
            let mut first = FakeUpstream::start(log.clone()).await;
            let second = FakeUpstream::start(log.clone()).await;
            second.fail(Route::Export, usize::MAX, fault);
            let replica = start(&place, &[&first, &second], soon()).await;
            follows(&replica, 0, 100).await;
            stands(&replica, 1, Standing::Away).await;
            first.stop().await;
            stands(&replica, 0, Standing::Away).await;
            assert_eq!(replica.status.upstreams().followed(), 0);
            second.mend();
            follows(&replica, 1, 100).await;
            replica.end().await;
        }
    }
}

/// One that dies again and again, for less than a switch takes or for more, is asked no more and left no more often than
/// that.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_again_and_again_is_left_ever_longer() {
    for place in places().await {
        let mut told = Told::new(2_000);
        let mut first = FakeUpstream::start(told.next(100)).await;
        let second = FakeUpstream::start(told.log[..100].to_vec()).await;
        let away = AWAY / 3;
        let replica = start(&place, &[&first, &second], SwitchSettings { away, ..soon() }).await;
        let (heard, listening) = listen(&replica);
        follows(&replica, 0, 100).await;
        // Shorter than what counts as away.
        for _ in 0..5 {
            first.stop().await;
            told.grow(25, &[&first, &second]).await;
            sleep(away / 5).await;
            first.start_again().await;
            follows(&replica, 0, told.sequence()).await;
        }
        let (mut switches, mut followed) = (0, 0);
        let (begun, asked) = (Instant::now(), second.asked().len());
        while begun.elapsed() < 30 * away {
            for is_there in [false, true] {
                if is_there {
                    first.start_again().await
                } else {
                    first.stop().await
                }
                told.grow(25, &[&first, &second]).await;
                let until = Instant::now() + 3 * away;
                while Instant::now() < until {
                    let now = replica.status.upstreams().followed();
                    switches += usize::from(now != followed);
                    followed = now;
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
        let asked = second.asked().len() - asked;
        println!("{switches} switches, {asked} requests in {:?}", begun.elapsed());
        // It is there for 1.5 seconds each time, and would have to be so for half of one, 1, 2, and more.
        assert!((1..=6).contains(&switches), "{switches} switches");
        // While the first is not well the second is asked every 50 ms.
        assert!(asked < 400, "{asked} requests");
        sleep(Duration::from_secs(1)).await;
        let last = told.sequence();
        eventually("all is there", &replica, || replica.status.sequence() == last).await;
        is_whole(replica, &told, &heard).await;
        listening.abort();
    }
}

/// Two honest ones, of which either is a little behind: nobody is left, nothing is recorded, and little is asked.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_a_little_behind_is_no_reason_for_anything() {
    for slow in [0, 1] {
        for place in places().await {
            let mut told = Told::new(600);
            let upstreams = [
                FakeUpstream::start(told.next(100)).await,
                FakeUpstream::start(told.log[..100].to_vec()).await,
            ];
            let replica = start(&place, &[&upstreams[0], &upstreams[1]], soon()).await;
            follows(&replica, 0, 100).await;
            let asked = upstreams[1].asked().len();
            let begun = Instant::now();
            let mut late = Vec::new();
            for _ in 0..80 {
                let next = told.next(5);
                upstreams[1 - slow].append_all(next.clone());
                late.push(next);
                if late.len() > 8 {
                    upstreams[slow].append_all(late.remove(0));
                }
                assert_eq!(replica.status.upstreams().followed(), 0);
                sleep(Duration::from_millis(50)).await;
            }
            late.into_iter().for_each(|next| upstreams[slow].append_all(next));
            follows(&replica, 0, told.sequence()).await;
            stands(&replica, 1, Standing::Ready).await;
            let looks = begun.elapsed().as_millis() / soon().look.as_millis();
            let asked = upstreams[1].asked().split_off(asked);
            // One that is behind is asked a second time whether there is more; and one that has nothing of the newest
            // from its first look on, whether it has numbers of its own.
            assert!(asked.len() as u128 <= 4 * looks + 4, "{looks} looks: {asked:?}");
            assert_eq!(differences(&replica).await, []);
            assert_eq!(replica.store.refusals(None, 0, 10).await.unwrap(), []);
            replica.end().await;
        }
    }
}

/// A first one that stands still while the second grows is left, and returned to when it has caught up.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_still_is_behind() {
    for place in places().await {
        let mut told = Told::new(300);
        let first = FakeUpstream::start(told.next(100)).await;
        let second = FakeUpstream::start(told.log[..100].to_vec()).await;
        let replica = start(&place, &[&first, &second], soon()).await;
        let (heard, listening) = listen(&replica);
        follows(&replica, 0, 100).await;
        told.grow(100, &[&second]).await;
        follows(&replica, 1, told.sequence()).await;
        stands(&replica, 0, Standing::Behind).await;
        told.tell(&first);
        told.grow(100, &[&first, &second]).await;
        follows(&replica, 0, told.sequence()).await;
        is_whole(replica, &told, &heard).await;
        listening.abort();
    }
}

/// A crash at any moment of a switch leaves what the last commit has left, and the next start goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_another_one_takes_over_loses_nothing() {
    // A lease of before runs for some seconds on Postgres.
    for (place, crashes) in places().await.into_iter().zip([12, 3]) {
        let mut told = Told::new(2_000);
        let mut first = FakeUpstream::start(told.next(100)).await;
        let mut second = FakeUpstream::start(told.log[..100].to_vec()).await;
        for crash in 0..crashes {
            let switching = SwitchSettings { away: Duration::from_millis(200), ..soon() };
            let replica = start(&place, &[&first, &second], switching).await;
            let last = told.sequence();
            eventually("it goes on", &replica, || {
                replica.status.sequence() >= last
                    && replica.status.mode() == Mode::Live
                    && replica.status.role() == Role::Follower
            })
            .await;
            let (dies, lives) =
                if crash % 2 == 0 { (&mut first, &second) } else { (&mut second, &first) };
            dies.stop().await;
            told.grow(50, &[dies, lives]).await;
            sleep(Duration::from_millis(150 + 37 * crash)).await;
            replica.crash().await;
            dies.start_again().await;
        }
        let replica = start(&place, &[&first, &second], soon()).await;
        follows(&replica, 0, told.sequence()).await;
        is_held(&replica, &told).await;
        replica.end().await;
    }
}

/// The same of a whole process, which is killed at any moment of its start: while it chooses, while it takes over, and
/// while it follows. One of the two is away each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_while_it_chooses_loses_nothing() {
    // A lease of before runs for some seconds on Postgres.
    for (place, kills) in places().await.into_iter().zip([8, 2]) {
        let mut told = Told::new(1_000);
        let mut first = FakeUpstream::start(told.next(100)).await;
        let mut second = FakeUpstream::start(told.log[..100].to_vec()).await;
        let both = format!("{},{}", first.url(), second.url());
        for kill in 0..kills {
            let away = if kill % 2 == 0 { &mut first } else { &mut second };
            away.stop().await;
            let next = told.next(25);
            let replica = Served::start_on(&place.url, &both, &[]);
            sleep(Duration::from_millis(100 + 150 * kill)).await;
            drop(replica);
            first.append_all(next.clone());
            second.append_all(next);
            let away = if kill % 2 == 0 { &mut first } else { &mut second };
            away.start_again().await;
        }
        first.stop().await;
        let replica = Served::start_on(&place.url, &both, &[]);
        replica.reaches(told.sequence()).await;
        // What was held already is there before one is chosen.
        let health = format!("http://{}/_health", replica.address());
        let is_chosen = async || {
            let health = reqwest::get(&health).await.unwrap().text().await.unwrap();
            let health: Value = serde_json::from_str(&health).unwrap();
            let state = |place: usize| health["upstreams"][place]["state"].clone();
            state(1) == "followed" && state(0) == "away"
        };
        replica.eventually("the second one is followed", is_chosen).await;
        let log = replica.end();
        assert!(log.contains("cannot be reached"), "{log}");
        let replica = start(&place, &[&second], soon()).await;
        is_held(&replica, &told).await;
        replica.end().await;
    }
}

/// A test network: its identities are resolved beside those of the public directory, and are not in the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_identities_of_a_test_network_are_read_through() {
    let public = story(10);
    let mut network = Story::seeded(98);
    let alice = network.create().accepted().did;
    let nobody = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let place = places().await.remove(0);
    let mut upstream = FakeUpstream::start(public.clone()).await;
    let private = FakeUpstream::start(entries(&network)).await;
    let settings = [("PLC_ALSO_ASK", &*private.url())];
    let replica = Served::start_on(&place.url, &upstream.url(), &settings);
    replica.reaches(10).await;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://{}{path}", replica.address())).await.unwrap();
        let read =
            answer.headers().get("plc-read-through").map(|it| it.to_str().unwrap().to_owned());
        (answer.status().as_u16(), read.unwrap_or_default(), answer.text().await.unwrap())
    };
    let (status, read, document) = get(&format!("/{alice}")).await;
    assert_eq!((status, &*read), (200, "elsewhere"), "{document}");
    assert!(document.contains(&alice), "{document}");
    for path in ["/data", "/log/audit", "/log/last"] {
        assert_eq!(get(&format!("/{alice}{path}")).await.0, 200, "{path}");
    }
    let (status, read, _) = get(&format!("/{nobody}")).await;
    assert_eq!((status, &*read), (404, "unknown-upstream"));
    assert_eq!(get(&format!("/{}", public[0].did)).await.0, 200);
    let (_, _, export) = get("/export?after=0").await;
    assert_eq!(export.lines().count(), 10);
    // Neither is it bound to the upstream.
    upstream.stop().await;
    assert_eq!(get(&format!("/{alice}")).await.0, 200);
    replica.end();
}

/// They are given by flags, in the environment or in a file, in order, and each once.
#[tokio::test(flavor = "multi_thread")]
async fn they_are_given_in_every_way_that_settings_are() {
    let urls = ["https://a.example", "https://b.example/plc"];
    let expected = format!("upstream = [{:?}, {:?}]", urls[0], urls[1]);
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, &expected).unwrap();
    let printed = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let flags = ["serve", "--print-config", "--upstream", urls[0], "--upstream", urls[1]];
    let config = ["serve", "--print-config", "--config", file.to_str().unwrap()];
    for said in [
        printed(&mut program(&flags)),
        printed(program(&["serve", "--print-config"]).env("PLC_UPSTREAM", urls.join(","))),
        printed(&mut program(&config)),
    ] {
        assert!(said.contains(&expected), "{said}");
    }
    let twice = "https://a.example/";
    let refused =
        run(&["serve", "--upstream", urls[0], "--upstream", urls[1], "--upstream", twice]);
    assert_eq!(refused.code, Some(2), "{}", refused.said());
    assert!(refused.said().contains("https://a.example is given twice"), "{}", refused.said());
    let wrong = run(&["serve", "--upstream", "https://a.example,ftp://b.example"]);
    assert!(wrong.said().contains("ftp://b.example"), "{}", wrong.said());
}

/// The line that was wrong is wrong for as long as it is among the newest: that is no other log, and nobody is left for it,
/// neither then nor after the next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_was_taken_from_elsewhere_does_not_refute_the_one_that_has_it_otherwise() {
    let wrong: [fn(&LogEntry, &LogEntry) -> LogEntry; 3] = [
        // The CID of another one.
        |entry, other| LogEntry { cid: other.cid.clone(), ..entry.clone() },
        // Another signature, which does not verify.
        |entry, other| {
            let signature = |of: &LogEntry| {
                let operation: Value = serde_json::from_str(&of.operation).unwrap();
                operation["sig"].as_str().unwrap().to_owned()
            };
            let operation = entry.operation.replacen(&signature(entry), &signature(other), 1);
            let cid = Cid::of(&json::read_operation(&operation).unwrap());
            LogEntry { operation, cid: cid.to_string(), ..entry.clone() }
        },
        // No operation.
        |entry, _| LogEntry {
            operation: entry.operation.replacen("\"sig\":", "\"sig\":1,\"sig\":", 1),
            ..entry.clone()
        },
    ];
    for wrong in wrong {
        for place in places().await {
            let mut told = Told::new(300);
            let first = FakeUpstream::start(told.next(100)).await;
            let second = FakeUpstream::start(told.log[..100].to_vec()).await;
            let replica = start(&place, &[&first, &second], soon()).await;
            follows(&replica, 0, 100).await;
            let next = told.next(20);
            second.append_all(next.clone());
            let bad = wrong(&next[7], &next[3]);
            first.append_all(
                next.iter().map(|it| if it.seq == bad.seq { &bad } else { it }).cloned(),
            );
            follows(&replica, 0, told.sequence()).await;
            let upstreams = replica.status.upstreams();
            let is_followed_all_along = async |upstreams: &Upstreams| {
                let begun = Instant::now();
                while begun.elapsed() < 4 * soon().look {
                    let report = upstreams.report(0).unwrap();
                    assert_eq!(upstreams.followed(), 0, "{report:?}");
                    assert_ne!(report.standing, Standing::Refuted, "{report:?}");
                    sleep(Duration::from_millis(5)).await;
                }
            };
            is_followed_all_along(upstreams).await;
            replica.end().await;
            let replica = start(&place, &[&first, &second], soon()).await;
            follows(&replica, 0, told.sequence()).await;
            is_followed_all_along(replica.status.upstreams()).await;
            told.grow(25, &[&first, &second]).await;
            follows(&replica, 0, told.sequence()).await;
            // A number is whose its upstream says it is, also where that is refused.
            holds(&replica.store, &told.log[..told.at]).await;
            replica.end().await;
        }
    }
}
