//! What passes by itself costs time and nothing else: a database that cannot write for a while, and an upstream
//! that does not read what it asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::postgres::{Client, Database};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::follow::{Running, eventually};
use crate::process::Served;

fn log_of(operations: usize) -> Vec<LogEntry> {
    let mut story = Story::seeded(85);
    for _ in 0..operations {
        story.create().accepted();
    }
    story.log().iter().map(LogEntry::from).collect()
}

/// Lets every commit fail with this code, and counts those that are tried.
async fn fail_commits(client: &mut Client, code: &str) {
    let sql = format!(
        "CREATE SEQUENCE IF NOT EXISTS tried;
         SELECT setval('tried', 1, false);
         CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            -- Sequences are not rolled back.
            PERFORM nextval('tried');
            RAISE EXCEPTION 'on request' USING ERRCODE = '{code}';
         END $$;
         CREATE TRIGGER fail BEFORE INSERT ON operations
            FOR EACH STATEMENT EXECUTE FUNCTION fail()"
    );
    client.run(&sql).await;
}

/// How many commits were tried since.
async fn tried(client: &mut Client) -> u64 {
    let sql = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tried";
    client.value(sql).await.unwrap().parse().unwrap()
}

async fn mend_commits(client: &mut Client) {
    client.run("DROP TRIGGER fail ON operations").await;
}

/// A statement that is given up by the server, and whatever else says that it may go better next time, in
/// the words of the server itself and by each of its codes: intake goes on by itself once the cause is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_not_taken_for_damage() {
    let Some(database) = Database::create().await else { return };
    let codes =
        ["25P02", "25P03", "25P04", "25006", "40001", "40P01", "53100", "53200", "55P03", "57014"];
    let log = log_of(2 + codes.len());
    let upstream = FakeUpstream::start(log[..1].to_vec()).await;
    let replica = Running::start(&database.url, &upstream.url()).await;
    replica.live_at(1).await;
    let mut client = database.client().await;

    // From now on every new connection of the writer gives up what takes longer than this.
    let name = client.value("SELECT current_database()").await.unwrap();
    client.run(&format!("ALTER DATABASE {name} SET statement_timeout = '300ms'")).await;
    client
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    client.run("BEGIN; LOCK TABLE operations IN EXCLUSIVE MODE").await;
    upstream.append(log[1].clone());
    sleep(Duration::from_secs(3)).await;
    assert_eq!(replica.status.sequence(), 1);
    client.run("COMMIT").await;
    client.run(&format!("ALTER DATABASE {name} RESET statement_timeout")).await;
    replica.live_at(2).await;

    for (code, next) in codes.into_iter().zip(&log[2..]) {
        fail_commits(&mut client, code).await;
        upstream.append(next.clone());
        let begun = Instant::now();
        while tried(&mut client).await < 2 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{code}: it is not tried again");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(replica.status.sequence(), next.seq - 1, "{code}");
        mend_commits(&mut client).await;
        replica.live_at(next.seq).await;
    }
    replica.end().await;
}

/// A database that was opened, and then does not say how far it is: waited for like one that is not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_at_the_start_is_waited_for() {
    let Some(database) = Database::create().await else { return };
    let log = log_of(3);
    let upstream = FakeUpstream::start(log).await;
    let replica = Served::start_on(&database.url, &upstream.url(), &[]);
    replica.reaches(3).await;
    replica.end();
    let mut client = database.client().await;
    // Who reads gives up soon, and says that it may go better next time.
    client
        .run("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = 50', current_database()); END $$")
        .await;
    client.run("BEGIN; LOCK TABLE sources IN ACCESS EXCLUSIVE MODE").await;
    let replica = Served::start_on(&database.url, &upstream.url(), &[]);
    replica.eventually("it waits", async || replica.log().contains("is unavailable")).await;
    client.run("COMMIT").await;
    replica.reaches(3).await;
    let log = replica.end();
    assert_eq!(log.matches("the database is there").count(), 1, "{log}");
}

/// A disk that is full for a while: tried ever less often, with one line when it begins and one when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_once() {
    let Some(database) = Database::create().await else { return };
    let log = log_of(3);
    let upstream = FakeUpstream::start(log[..2].to_vec()).await;
    let replica = Served::start_on(&database.url, &upstream.url(), &[]);
    replica.reaches(2).await;
    let mut client = database.client().await;
    fail_commits(&mut client, "53100").await;
    upstream.append(log[2].clone());
    sleep(Duration::from_secs(8)).await;
    let tried = tried(&mut client).await;
    mend_commits(&mut client).await;
    replica.reaches(3).await;
    let log = replica.end();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    // After 0.25, 0.5, 1, 2, 4 and 5 s.
    assert!((2..=7).contains(&tried), "tried {tried} times: {log}");
    assert_eq!(lines("the database is unavailable"), 1, "{log}");
    assert_eq!(lines("the database is back"), 1, "{log}");
}

/// The same of a file that may not become larger, as on a full disk: serving goes on, and so does everything once
/// there is room.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_once_on_sqlite() {
    let log = log_of(60);
    let upstream = FakeUpstream::start(log[..30].to_vec()).await;
    let folder = TempDir::new().unwrap();
    let replica = Served::start(folder.path(), &upstream.url(), &[]);
    replica.reaches(30).await;
    let wal = std::fs::metadata(folder.path().join("plc.db-wal")).unwrap().len();
    replica.limit_files(&wal.to_string());
    for entry in &log[30..] {
        upstream.append(entry.clone());
    }
    let begun = "the database is unavailable";
    replica.eventually(begun, async || replica.log().contains(begun)).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(replica.get(&format!("/{}", log[0].did)).await, 200);
    assert_eq!(replica.get("/export?count=10").await, 200);
    replica.limit_files("unlimited");
    replica.reaches(60).await;
    let over = "the database is back";
    replica.eventually(over, async || replica.log().contains(over)).await;
    let said = replica.end();
    let lines = |text: &str| said.lines().filter(|line| line.contains(text)).count();
    assert_eq!((lines(begun), lines(over), lines("WARN")), (1, 1, 1), "{said}");
    let database = format!("sqlite://{}", folder.path().join("plc.db").display());
    let fsck = crate::process::run(&["fsck", "--database", &database]);
    assert_eq!(fsck.code, Some(0), "{fsck:?}");
}

/// A server of the database that lets nobody in for a while, while clients ask, the upstream sends, what was refused is
/// due and the index of claims is kept: one line when it begins, one when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_said_once() {
    let Some(database) = Database::create().await else { return };
    let mut story = Story::seeded(86);
    for _ in 0..3 {
        story.create().accepted();
    }
    story.create().forged_signature().refused("signature-invalid");
    let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
    // An upstream that sends something meanwhile, and one that is silent.
    for sends in [true, false] {
        let upstream = FakeUpstream::start(log[..2].to_vec()).await;
        let settings = [("PLC_INDEX", "on"), ("PLC_READ_THROUGH", "off")];
        let replica = Served::start_on(&database.url, &upstream.url(), &settings);
        replica.reaches(2).await;
        database.interrupt(true).await;
        if sends {
            log[2..].iter().for_each(|entry| upstream.append(entry.clone()));
        }
        for _ in 0..70 {
            assert_ne!(replica.get(&format!("/{}", log[0].did)).await, 200);
            sleep(Duration::from_millis(100)).await;
        }
        database.interrupt(false).await;
        let lookup = format!("/{}", log[0].did);
        replica.eventually("a lookup", async || replica.get(&lookup).await == 200).await;
        if sends {
            replica.reaches(4).await;
        }
        sleep(Duration::from_secs(2)).await;
        let said = replica.end();
        let is_of_outage = |line: &&str| {
            let told = ["the database is", "the index of claims has", "succeed"];
            told.iter().any(|told| line.contains(told))
        };
        let lines: Vec<&str> = said.lines().filter(is_of_outage).collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(
            lines[0].contains("the database is unavailable: no connection to plc_test"),
            "{said}"
        );
        assert!(lines[1].contains("the database is back"), "{said}");
    }
}

/// Pings that are sent by an upstream that reads none of the answers.
const PINGS: usize = 1_000_000;

/// An upstream without operations whose stream pings without end and is not read from; `sent` counts the pings.
async fn pinging_upstream(sent: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer(connection, Arc::clone(&sent)));
        }
    });
    url
}

async fn answer(mut connection: TcpStream, sent: Arc<AtomicU64>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = connection.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("sec-websocket-key").then_some(value)
    });
    let Some(key) = key else {
        let empty = "HTTP/1.1 200 OK\r\ncontent-type: application/jsonlines\r\n\
                     content-length: 0\r\nconnection: close\r\n\r\n";
        let _ = connection.write_all(empty.as_bytes()).await;
        return;
    };
    let accepted = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    if connection.write_all(accepted.as_bytes()).await.is_err() {
        return;
    }
    // The largest that there are.
    let mut ping = vec![0x89, 125];
    ping.extend([b'x'; 125]);
    let pings = ping.repeat(1_000);
    while sent.load(Ordering::Relaxed) < PINGS as u64 {
        if connection.write_all(&pings).await.is_err() {
            return;
        }
        sent.fetch_add(1_000, Ordering::Relaxed);
    }
    std::future::pending().await
}

/// Answers to pings are 131 bytes each, and are not kept for an upstream that does not read them.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_pings_and_does_not_read_takes_no_memory() {
    const ROOM: u64 = 40 << 10;
    let sent = Arc::new(AtomicU64::new(0));
    let upstream = pinging_upstream(Arc::clone(&sent)).await;
    let folder = TempDir::new().unwrap();
    let replica = Served::start(folder.path(), &upstream, &[]);
    eventually("the first pings", || sent.load(Ordering::Relaxed) > 0).await;
    let before = replica.peak_memory();
    replica.eventually("all pings", async || sent.load(Ordering::Relaxed) >= PINGS as u64).await;
    let after = replica.peak_memory();
    assert!(after < before + ROOM, "from {before} kB to {after} kB");
    replica.end();
}

/// No file descriptor is left for a while: said once, however often a connection that ends makes room for one
/// more, and once when it is over.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn that_no_connection_can_be_accepted_is_said_once() {
    let upstream = FakeUpstream::start(log_of(1)).await;
    let folder = TempDir::new().unwrap();
    let replica = Served::start(folder.path(), &upstream.url(), &[]);
    replica.reaches(1).await;
    replica.limit_descriptors(20);
    let mut clients = Vec::new();
    for _ in 0..10 {
        // They come and go, and there are always more than can be accepted.
        for _ in 0..60 {
            clients.push(TcpStream::connect(replica.address()).await.unwrap());
        }
        clients.drain(..clients.len() - 60);
        sleep(Duration::from_millis(300)).await;
    }
    drop(clients);
    let over = "connections can be accepted again";
    replica.eventually(over, async || replica.log().contains(over)).await;
    assert_eq!(replica.get("/_health").await, 200);
    let log = replica.end();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("cannot accept connections"), 1, "{log}");
    assert_eq!(lines(over), 1, "{log}");
}
