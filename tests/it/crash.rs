//! `SIGKILL` in the middle of following, again and again: in the end the store is the same, row for
//! row, as one that was never killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use did_plc::signature::PlainVerifier;
use plc_replica::audit::fsck;
use plc_replica::store::{Store, StoredOperation, StoredRefusal};

use crate::follow::{Place, lives_with_attacks, places};
use crate::process::program;
use plc_testkit::fake_upstream::FakeUpstream;

/// How often it is killed: a few times by default, as often as this says in a longer run.
const KILLS: &str = "PLC_KILLS";

fn kills() -> usize {
    std::env::var(KILLS).ok().and_then(|kills| kills.parse().ok()).unwrap_or(3)
}

/// `serve` as a process of its own, with a line on standard error before and after each commit.
fn start(place: &Place, upstream: &str) -> Child {
    program(&[])
        .args(["serve", "--listen", "127.0.0.1:0", "--upstream-requests-per-minute", "0"])
        .args(["--audit-requests-per-minute", "0", "--read-through", "off"])
        .args(["--database", &place.url, "--upstream", upstream])
        .env("PLC_LOG", "warn,plc_replica::follow=debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills it so long after it has begun a transaction. True when the commit had not been
/// acknowledged by then.
fn kill_in_a_transaction(mut child: Child, delay: Duration) -> bool {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let begun = lines.by_ref().find(|line| line.contains("committing"));
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    begun.is_some() && !lines.any(|line| line.contains("committed"))
}

/// Lets it run until this number is committed, then ends it in order.
async fn run_to_the_end(place: &Place, upstream: &str, last: i64) {
    let mut child = start(place, upstream);
    let stderr = child.stderr.take().unwrap();
    std::thread::spawn(move || BufReader::new(stderr).lines().for_each(drop));
    let store = Store::open(&place.url).await.unwrap();
    let begun = Instant::now();
    while store.source().await.unwrap().is_none_or(|source| source.cursor < last) {
        assert!(begun.elapsed() < Duration::from_secs(60), "not at the end within a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = Instant::now();
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(10));
}

/// All that is stored, without the times of receipt.
async fn rows(url: &str) -> (Vec<StoredOperation>, Vec<StoredRefusal>) {
    let store = Store::open(url).await.unwrap();
    let mut operations = store.export_by_sequence(0, 1_000_000).await.unwrap();
    for operation in &mut operations {
        operation.received_at = operation.created_at;
    }
    let mut refusals = store.refusals(None, 0, 100_000).await.unwrap();
    let same = did_plc::Timestamp::from_millis(0);
    for refusal in &mut refusals {
        // Numbers that a transaction took and gave back are not given out again.
        refusal.id = 0;
        refusal.received_at = same;
        refusal.accepted_at = refusal.accepted_at.map(|_| same);
        // How often it was asked about since.
        (refusal.asked, refusal.ask_at) = (0, None);
        // Of what carries no operation, a message of the stream and a line of a page are two lines.
        let line: serde_json::Value = serde_json::from_slice(&refusal.refusal.line).unwrap();
        refusal.refusal.line = line.to_string().into();
        refusal.refusal.key = [0; 32];
    }
    refusals.sort_by_key(|kept| kept.refusal.sequence);
    let mut damages = Vec::new();
    fsck::check(&store, &PlainVerifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    assert_eq!(damages, []);
    (operations, refusals)
}

/// Operations that wait for each process: what it begins to write is not empty.
const BURST: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_following() {
    let log = lives_with_attacks(41, (kills() + 1) * BURST);
    let last = log.last().unwrap().seq;
    for (calm, killed) in places().await.into_iter().zip(places().await) {
        let upstream = FakeUpstream::start([]).await;
        let mut telling = log.iter().cloned();
        let mut unacknowledged = 0;
        for kill in 0..kills() {
            upstream.append_all(telling.by_ref().take(BURST));
            let child = start(&killed, &upstream.url());
            let delay = Duration::from_micros(200 * (kill as u64 % 8));
            let killing = tokio::task::spawn_blocking(move || kill_in_a_transaction(child, delay));
            unacknowledged += usize::from(killing.await.unwrap());
        }
        upstream.append_all(telling);
        run_to_the_end(&killed, &upstream.url(), last).await;
        run_to_the_end(&calm, &upstream.url(), last).await;
        let (calm, killed) = (rows(&calm.url).await, rows(&killed.url).await);
        assert_eq!(calm.0.len(), killed.0.len());
        assert!(calm == killed, "the rows differ");
        println!(
            "{} kills, {unacknowledged} of them before the commit was acknowledged; {} operations \
             and {} refusals alike",
            kills(),
            calm.0.len(),
            calm.1.len()
        );
    }
}
