//! Several processes on one database: one follows, the others read and serve the same, and take over.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::postgres::Database;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::follow::{Place, entries, lives, places};
use crate::process::{Served, run};

/// Long enough for a busy machine; nothing is waited for this long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Streams go back to the beginning of any log, and nothing is asked of the upstream beside it.
const SETTINGS: [(&str, &str); 2] =
    [("PLC_STREAM_CATCH_UP_SECONDS", "9999999999"), ("PLC_READ_THROUGH", "off")];

pub fn log(seed: u64, operations: usize) -> Vec<LogEntry> {
    let mut log = entries(&lives(seed, operations));
    log.truncate(operations);
    log
}

/// Another process on the same database.
pub fn serve(place: &str, upstream: &FakeUpstream, settings: &[(&str, &str)]) -> Served {
    let settings: Vec<(&str, &str)> = SETTINGS.iter().chain(settings).copied().collect();
    Served::start_on(place, &upstream.url(), &settings)
}

pub async fn eventually(what: &str, processes: &[&Served], is: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is().await {
        let logs: Vec<String> = processes.iter().map(|process| process.log()).collect();
        assert!(begun.elapsed() < PATIENCE, "{what}: {logs:#?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What `/_health` says; null where it does not answer.
pub async fn health(process: &Served) -> Value {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    let url = format!("http://{}/_health", process.address());
    let Ok(answer) = client.get(url).send().await else { return Value::Null };
    serde_json::from_slice(&answer.bytes().await.unwrap_or_default()).unwrap_or_default()
}

pub async fn is(process: &Served, role: &str) -> bool {
    let health = health(process).await;
    health["role"] == role && health["state"] == "live"
}

pub async fn reach(processes: &[&Served], sequence: i64) {
    for process in processes {
        eventually(&format!("number {sequence}"), processes, async || {
            health(process).await["sequence"].as_i64() >= Some(sequence)
        })
        .await;
    }
}

/// A client of the stream, from the beginning of the log on.
pub struct Client {
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
}

/// What a client was sent.
#[derive(Debug, Default)]
struct Heard {
    operations: Vec<(i64, String)>,
    connections: usize,
    addresses: Vec<std::net::SocketAddr>,
}

impl Client {
    /// Goes from one of these to the next whenever its connection ends.
    pub fn of(processes: &[&Served]) -> Client {
        let addresses = processes.iter().map(|process| process.address()).collect();
        let heard = Arc::new(Mutex::new(Heard { addresses, ..Heard::default() }));
        let task = tokio::spawn(Client::listen(Arc::clone(&heard)));
        Client { heard, task }
    }

    async fn listen(heard: Arc<Mutex<Heard>>) {
        loop {
            let (address, cursor) = {
                let mut heard = heard.lock().unwrap();
                heard.connections += 1;
                let place = (heard.connections - 1) % heard.addresses.len();
                let cursor = heard.operations.iter().map(|(number, _)| *number).max();
                (heard.addresses[place], cursor.unwrap_or(0))
            };
            let url = format!("ws://{address}/export/stream?cursor={cursor}");
            if let Ok((mut stream, _)) = connect_async(url).await {
                while let Some(Ok(message)) = stream.next().await {
                    let Message::Text(text) = message else { continue };
                    let said: Value = serde_json::from_str(&text).unwrap();
                    let cid = said["cid"].as_str().unwrap().to_owned();
                    let number = said["seq"].as_i64().unwrap();
                    heard.lock().unwrap().operations.push((number, cid));
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn numbers(&self) -> Vec<i64> {
        self.heard.lock().unwrap().operations.iter().map(|(number, _)| *number).collect()
    }

    pub fn connections(&self) -> usize {
        self.heard.lock().unwrap().connections
    }

    /// Waits until it has heard so many operations: it is connected, and reads.
    pub async fn hears(&self, count: usize, processes: &[&Served]) {
        let heard = || self.heard.lock().unwrap().operations.len() >= count;
        eventually("the stream", processes, async || heard()).await;
    }

    /// Waits until it has as much as there is, and then for more than there may be; all of it once, and as it is told.
    pub async fn has_all_of(&self, log: &[LogEntry], processes: &[&Served]) {
        self.hears(log.len(), processes).await;
        sleep(Duration::from_millis(300)).await;
        let heard = self.heard.lock().unwrap();
        let told: BTreeMap<i64, &str> = log.iter().map(|entry| (entry.seq, &*entry.cid)).collect();
        let all: BTreeMap<i64, &str> =
            heard.operations.iter().map(|(number, cid)| (*number, &**cid)).collect();
        assert_eq!(all, told);
        assert_eq!(heard.operations.len(), log.len(), "some came twice");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for the log over and over: an answer holds everything up to the number that it states.
fn asks(process: &Served) -> JoinHandle<()> {
    let address = process.address();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(30)).await;
            let url = format!("http://{address}/export?after=0&count=1000");
            let Ok(answer) = reqwest::get(url).await else { continue };
            if answer.status() != 200 {
                continue;
            }
            let stated =
                answer.headers().get("plc-sequence").map(|stated| stated.to_str().unwrap());
            let stated: i64 = stated.unwrap_or("0").parse().unwrap();
            let Ok(body) = answer.text().await else { continue };
            let last = body.lines().last().map_or(0, |line| {
                serde_json::from_str::<Value>(line).unwrap()["seq"].as_i64().unwrap()
            });
            assert!(last >= stated, "up to {last} where {stated} is stated");
        }
    })
}

/// One follows and two read: all of them say and serve the same, and what comes late as well.
#[tokio::test(flavor = "multi_thread")]
async fn readers_serve_what_the_follower_takes_in() {
    for place in places().await {
        readers_on(&place).await;
    }
}

async fn readers_on(place: &Place) {
    let log = log(61, 60);
    let (early, later) = log.split_at(20);
    let (withheld, early_told): (Vec<_>, Vec<_>) =
        early.iter().cloned().partition(|entry| entry.seq == 20);
    let upstream = FakeUpstream::start(early_told.clone()).await;
    // Everything is read again all the time.
    let again = [("PLC_SECOND_READING_MINUTES", "0"), ("PLC_REREADING_DAYS", "0.000001")];
    let first = serve(&place.url, &upstream, &again);
    eventually("it follows", &[&first], async || is(&first, "follower").await).await;
    let second = serve(&place.url, &upstream, &again);
    let reads = [("PLC_FOLLOW", "off"), ("PLC_FORWARD_WRITES", "on")];
    let third = serve(&place.url, &upstream, &reads);
    let all = [&first, &second, &third];
    for reader in [&second, &third] {
        eventually("it reads", &all, async || is(reader, "reader").await).await;
        eventually("it is ready", &all, async || reader.get("/_ready").await == 200).await;
    }
    let clients = [Client::of(&[&first]), Client::of(&[&second]), Client::of(&[&third])];
    let asking = all.map(asks);

    // A request that waits on a reader is answered when the operation has come.
    let last = later.last().unwrap();
    let url = format!("http://{}/{}?cid={}", third.address(), last.did, last.cid);
    let waiting = reqwest::Client::new().get(url).header("prefer", "wait=30").send();
    let waiting = tokio::spawn(waiting);
    for entry in &later[..later.len() - 1] {
        upstream.append(entry.clone());
        sleep(Duration::from_millis(5)).await;
    }
    reach(&all, last.seq - 1).await;
    // What is written through a reader is there when it says so.
    let url = format!("http://{}/{}", third.address(), last.did);
    let write = reqwest::Client::new().post(&url).header("content-type", "application/json");
    let written = write.body(last.operation.clone()).send().await.unwrap();
    assert_eq!(written.status(), 200, "{}", written.text().await.unwrap());
    assert_eq!(third.get(&format!("/{}", last.did)).await, 200);
    reach(&all, last.seq).await;
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    let told: Vec<LogEntry> = early_told.into_iter().chain(later.iter().cloned()).collect();
    for client in &clients {
        client.has_all_of(&told, &all).await;
        assert!(client.numbers().is_sorted(), "{:?}", client.numbers());
    }

    upstream.append_all(withheld);
    for client in &clients {
        client.has_all_of(&log, &all).await;
        assert_eq!(client.connections(), 1);
    }
    let page = reqwest::get(format!("http://{}/", second.address())).await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("reads what another one takes in") && page.contains("live"), "{page}");
    for asking in asking {
        assert!(!asking.is_finished(), "{:?}", asking.await);
        asking.abort();
    }
}

/// What follows is killed, or stopped for a while: another one follows, and no client of those that run misses anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_dies_is_followed_by_another() {
    for place in places().await {
        death_on(&place).await;
    }
}

async fn death_on(place: &Place) {
    let log = log(62, 400);
    let upstream = FakeUpstream::start(log[..50].to_vec()).await;
    let first = serve(&place.url, &upstream, &[]);
    eventually("it follows", &[&first], async || is(&first, "follower").await).await;
    let second = serve(&place.url, &upstream, &[]);
    let third = serve(&place.url, &upstream, &[]);
    for reader in [&second, &third] {
        eventually("it reads", &[&first, reader], async || is(reader, "reader").await).await;
    }
    let survivors = [&second, &third];
    let (of_second, of_third) = (Client::of(&[&second]), Client::of(&[&third]));
    let of_first = Client::of(&[&first, &second]);
    let asking = survivors.map(asks);
    let mut telling = log[50..].iter().cloned();
    for entry in telling.by_ref().take(100) {
        upstream.append(entry);
        sleep(Duration::from_millis(3)).await;
    }
    first.signal("KILL");
    let killed = Instant::now();
    for entry in telling.by_ref().take(150) {
        upstream.append(entry);
        sleep(Duration::from_millis(3)).await;
    }
    let follows = async || is(&second, "follower").await || is(&third, "follower").await;
    eventually("another one follows", &survivors, follows).await;
    println!("followed again after {:?}", killed.elapsed());
    upstream.append_all(telling);
    reach(&survivors, log.last().unwrap().seq).await;
    for client in [&of_second, &of_third, &of_first] {
        client.has_all_of(&log, &survivors).await;
    }
    // Who was connected to a process that lives has noticed nothing.
    assert_eq!((of_second.connections(), of_third.connections()), (1, 1));
    for client in [&of_second, &of_third] {
        assert!(client.numbers().is_sorted(), "{:?}", client.numbers());
    }
    for asking in asking {
        assert!(!asking.is_finished(), "{:?}", asking.await);
        asking.abort();
    }
}

/// One that hangs loses the lease on Postgres, reads when it goes on, and has its clients miss nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hangs_reads_when_it_goes_on() {
    let Some(database) = Database::create().await else { return };
    let log = log(63, 200);
    let upstream = FakeUpstream::start(log[..50].to_vec()).await;
    let first = serve(&database.url, &upstream, &[]);
    eventually("it follows", &[&first], async || is(&first, "follower").await).await;
    let second = serve(&database.url, &upstream, &[]);
    let both = [&first, &second];
    eventually("it reads", &both, async || is(&second, "reader").await).await;
    let clients = [Client::of(&[&first]), Client::of(&[&second])];
    let mut telling = log[50..].iter().cloned();
    for client in &clients {
        client.hears(50, &both).await;
    }
    upstream.append_all(telling.by_ref().take(50));
    first.signal("STOP");
    let stopped = Instant::now();
    upstream.append_all(telling.by_ref().take(50));
    eventually("another one follows", &[&second], async || is(&second, "follower").await).await;
    println!("followed again after {:?}", stopped.elapsed());
    first.signal("CONT");
    eventually("it reads", &both, async || is(&first, "reader").await).await;
    upstream.append_all(telling);
    reach(&both, log.last().unwrap().seq).await;
    for client in &clients {
        client.has_all_of(&log, &both).await;
        assert_eq!(client.connections(), 1);
    }
}

/// On SQLite the one that hangs keeps the lock of the file, and is waited for; the others serve on.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hangs_is_waited_for_on_a_file() {
    let log = log(64, 100);
    let folder = tempfile::tempdir().unwrap();
    let place = format!("sqlite://{}", folder.path().join("plc.db").display());
    let upstream = FakeUpstream::start(log[..50].to_vec()).await;
    let first = serve(&place, &upstream, &[]);
    eventually("it follows", &[&first], async || is(&first, "follower").await).await;
    let second = serve(&place, &upstream, &[]);
    let both = [&first, &second];
    eventually("it reads", &both, async || is(&second, "reader").await).await;
    let clients = [Client::of(&[&first]), Client::of(&[&second])];
    for client in &clients {
        client.hears(50, &both).await;
    }
    first.signal("STOP");
    upstream.append_all(log[50..].iter().cloned());
    sleep(Duration::from_secs(4)).await;
    let health = health(&second).await;
    assert_eq!((&health["role"], &health["sequence"]), (&"reader".into(), &50.into()));
    assert_eq!(second.get("/export?count=10").await, 200);
    first.signal("CONT");
    reach(&both, log.last().unwrap().seq).await;
    for client in &clients {
        client.has_all_of(&log, &both).await;
        assert_eq!(client.connections(), 1);
    }
}

/// With the right to read alone everything is served; nothing else is tried.
#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_read_is_enough() {
    let Some(database) = Database::create().await else { return };
    let log = log(65, 60);
    let upstream = FakeUpstream::start(log[..30].to_vec()).await;
    let follower = serve(&database.url, &upstream, &[]);
    eventually("it follows", &[&follower], async || is(&follower, "follower").await).await;
    let role = format!("plc_reader_{}", std::process::id());
    let mut owner = database.client().await;
    owner
        .run(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'reads';
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
        ))
        .await;
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("reads")).unwrap();
    let reader = serve(url.as_str(), &upstream, &[("PLC_FOLLOW", "off")]);
    let both = [&follower, &reader];
    eventually("it reads", &both, async || is(&reader, "reader").await).await;
    let client = Client::of(&[&reader]);
    upstream.append_all(log[30..].iter().cloned());
    reach(&both, log.last().unwrap().seq).await;
    client.has_all_of(&log, &both).await;
    for path in ["/_ready", "/", "/_audit/refused", "/export?count=5", "/explore"] {
        assert_eq!(reader.get(path).await, 200, "{path}: {}", reader.log());
    }
    let said = reader.end();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    owner.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// What is not there, or is of another version, is not made by one that only reads.
#[tokio::test(flavor = "multi_thread")]
async fn who_only_reads_makes_no_tables() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plc.db");
    let place = format!("sqlite://{}", file.display());
    let serve = |place: &str| {
        run(&["serve", "--follow", "off", "--listen", "127.0.0.1:0", "--database", place])
    };
    let ran = serve(&place);
    assert!(ran.code == Some(2) || ran.code == Some(1), "{ran:?}");
    assert!(ran.said().contains("there is no database"), "{ran:?}");
    assert!(!Path::new(&file).exists());
    let Some(database) = Database::create().await else { return };
    let ran = serve(&database.url);
    assert!(ran.said().contains("there is no log in the database"), "{ran:?}");
    let tables = "SELECT count(*)::text FROM pg_class WHERE relname = 'operations'";
    assert_eq!(database.client().await.value(tables).await.as_deref(), Some("0"));
}

/// At the end `/_ready` goes first, another process follows at once, and requests are answered until the connections end.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_announced() {
    for place in places().await {
        let log = log(66, 90);
        let upstream = FakeUpstream::start(log[..30].to_vec()).await;
        let first = serve(&place.url, &upstream, &[("PLC_DRAIN_SECONDS", "20")]);
        eventually("it follows", &[&first], async || is(&first, "follower").await).await;
        let second = serve(&place.url, &upstream, &[]);
        let both = [&first, &second];
        eventually("it reads", &both, async || is(&second, "reader").await).await;
        eventually("it is ready", &both, async || first.get("/_ready").await == 200).await;
        let clients = [Client::of(&[&first, &second]), Client::of(&[&second])];
        first.signal("TERM");
        eventually("it is not ready", &both, async || first.get("/_ready").await == 503).await;
        upstream.append_all(log[30..60].iter().cloned());
        eventually("the other one follows", &both, async || is(&second, "follower").await).await;
        // What the other one takes in is served here too.
        reach(&both, 60).await;
        let answer = reqwest::get(format!("http://{}/export?count=5", first.address())).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["connection"], "close");
        let said = first.end();
        assert!(said.contains("ended in order"), "{said}");
        upstream.append_all(log[60..].iter().cloned());
        reach(&[&second], log.last().unwrap().seq).await;
        for client in &clients {
            client.has_all_of(&log, &[&second]).await;
        }
        assert_eq!(clients[1].connections(), 1);
    }
}

/// One that is stopped in the middle of a large commit, for the rest of which the server waits, is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hangs_in_a_commit_is_taken_over_from() {
    let Some(database) = Database::create().await else { return };
    let log = log(67, 400);
    let upstream = FakeUpstream::start(log[..300].to_vec()).await;
    let (first, second) = stopped_in_a_commit(&database, &database.url, &upstream).await;
    let both = [&first, &second];
    let client = Client::of(&[&second]);
    let stopped = Instant::now();
    eventually("another one follows", &[&second], async || is(&second, "follower").await).await;
    println!("followed again after {:?}", stopped.elapsed());
    let said = second.log();
    assert!(said.contains("hangs in the middle of a transaction"), "{said}");
    first.signal("CONT");
    eventually("it reads", &both, async || is(&first, "reader").await).await;
    upstream.append_all(log[300..].iter().cloned());
    reach(&both, log.last().unwrap().seq).await;
    client.has_all_of(&log, &both).await;
    let checked = run(&["fsck", "--database", &database.url]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

/// A follower that is stopped when it has begun to copy operations into the table, and the server waits for them; and another
/// process, which reads the same database by this URL.
async fn stopped_in_a_commit(
    database: &Database,
    url_of_other: &str,
    upstream: &FakeUpstream,
) -> (Served, Served) {
    assert_eq!(run(&["migrate", "--database", &database.url]).code, Some(0));
    let (mut locking, mut looking) = (database.client().await, database.client().await);
    locking.run("BEGIN; LOCK TABLE operations IN SHARE MODE").await;
    let follower = serve(&database.url, upstream, &[]);
    let mut waits_for = async |event: &str| {
        let copies = format!(
            "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database()
             AND query LIKE 'COPY operations%' AND state = 'active' AND wait_event_type = '{event}'"
        );
        while looking.value(&copies).await.as_deref() != Some("1") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    waits_for("Lock").await;
    let other = serve(url_of_other, upstream, &[]);
    let reads = async || health(&other).await["role"] == "reader";
    eventually("it reads", &[&other], reads).await;
    follower.signal("STOP");
    locking.run("COMMIT").await;
    waits_for("Client").await;
    (follower, other)
}

/// Who may not end the connection of one that hangs says how that is done.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_end_what_hangs_says_who_may() {
    let Some(database) = Database::create().await else { return };
    let log = log(68, 300);
    let upstream = FakeUpstream::start(log.clone()).await;
    let role = format!("plc_other_{}", std::process::id());
    let mut owner = database.client().await;
    owner
        .run(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'writes';
             ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
        ))
        .await;
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("writes")).unwrap();
    let (first, second) = stopped_in_a_commit(&database, url.as_str(), &upstream).await;
    let says = async || second.log().contains("end it as the same user, or as a superuser");
    eventually("it says who may", &[&first, &second], says).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'COPY operations%'";
    owner.run(end).await;
    eventually("another one follows", &[&second], async || is(&second, "follower").await).await;
    reach(&[&second], log.last().unwrap().seq).await;
    assert_eq!(second.log().matches("nobody can follow").count(), 1, "{}", second.log());
    drop((first, second));
    owner.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
