//! A fleet of two versions of the program. The older one is the program as it is; the newer one, in this process, has a
//! migration more, which adds a table and columns.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use plc_replica::store::{Postgres, Sqlite, Store, StoreError};
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::postgres::Database;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::follow::{Place, Running, places};
use crate::process::{Served, run};
use crate::roles::{Client, eventually, health, is, log, reach, serve};

/// Those of the program as it is.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
const STEPS: &[&str] = &[include_str!("../../migrations/sqlite/0001_log.sql")];

/// What the newer version adds, in the words of both databases.
const LATER: &str = "
    CREATE TABLE remarks (id int PRIMARY KEY, remark text);
    ALTER TABLE operations ADD COLUMN remark text;
    ALTER TABLE sources ADD COLUMN remark text";

/// The migrations of the newer version.
pub fn later() -> Migrator {
    let number = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap() + 1;
    let sql = LATER.into_sql_str();
    let later = Migration::new(number, "later".into(), MigrationType::Simple, sql, false);
    Migrator::with_migrations(MIGRATIONS.iter().cloned().chain([later]).collect())
}

/// The store as the newer version opens it, which brings the tables up to date.
async fn open_later(url: &str) -> Store {
    match url.strip_prefix("sqlite://") {
        Some(path) => {
            let steps: Vec<&'static str> = STEPS.iter().copied().chain([LATER]).collect();
            let opened = Sqlite::open_at(path.as_ref(), steps.leak()).await;
            Store::Sqlite(opened.unwrap())
        }
        None => Store::Postgres(Postgres::open_at(url, &later()).await.unwrap()),
    }
}

/// Has a version that is newer still make the tables unreadable.
async fn break_tables(url: &str) {
    match url.strip_prefix("sqlite://") {
        Some(path) => {
            let file = rusqlite::Connection::open(path).unwrap();
            file.pragma_update(None, "user_version", 3 << 16 | 3).unwrap();
        }
        None => {
            let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                VALUES (3, 'breaking change', true, '', 0)";
            plc_testkit::postgres::Client::connect(url).await.run(sql).await;
        }
    }
}

/// Asks a process for an identity and for a page over and over; what was not answered with 200.
struct Asking {
    refused: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Asking {
    fn of(process: &Served, log: &[LogEntry]) -> Asking {
        let paths = [format!("/{}", log[0].did), "/export?after=0&count=20".to_owned()];
        let (address, refused) = (process.address(), Arc::<Mutex<Vec<String>>>::default());
        let noted = Arc::clone(&refused);
        let task = tokio::spawn(async move {
            for path in paths.iter().cycle() {
                let answer = reqwest::get(format!("http://{address}{path}")).await;
                let status = answer.as_ref().map(|answer| answer.status().as_u16());
                if status.as_ref().ok() != Some(&200) {
                    noted.lock().unwrap().push(format!("{path}: {answer:?}"));
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        Asking { refused, task }
    }

    /// All of it was answered.
    fn ends(self) {
        self.task.abort();
        let refused = self.refused.lock().unwrap();
        assert!(refused.is_empty(), "{refused:?}");
    }
}

/// The upstream goes on all the time.
fn tell(upstream: &Arc<FakeUpstream>, log: &[LogEntry]) -> JoinHandle<()> {
    let (upstream, log) = (Arc::clone(upstream), log.to_vec());
    tokio::spawn(async move {
        for entry in log {
            upstream.append(entry);
            sleep(Duration::from_millis(20)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_takes_over_and_the_older_one_reads_on() {
    for place in places().await {
        newer_on(&place).await;
    }
}

async fn newer_on(place: &Place) {
    let log = log(71, 500);
    let upstream = Arc::new(FakeUpstream::start(log[..50].to_vec()).await);
    let first = serve(&place.url, &upstream, &[]);
    eventually("it follows", &[&first], async || is(&first, "follower").await).await;
    let second = serve(&place.url, &upstream, &[]);
    let third = serve(&place.url, &upstream, &[("PLC_FOLLOW", "off")]);
    let older = [&first, &second, &third];
    for reader in [&second, &third] {
        eventually("it reads", &older, async || is(reader, "reader").await).await;
    }
    let clients = older.map(|process| Client::of(&[process]));
    for client in &clients {
        client.hears(50, &older).await;
    }
    let asking = older.map(|process| Asking::of(process, &log));
    let telling = tell(&upstream, &log[50..400]);
    sleep(Duration::from_secs(1)).await;

    // It brings the tables up to date, and follows.
    let newer = Running::start_in(open_later(&place.url).await, &upstream.url()).await;
    newer.live_at(100).await;
    eventually("the older one reads", &older, async || is(&first, "reader").await).await;
    eventually("it says so", &older, async || {
        first.log().contains("another process follows") || first.log().contains("follows no more")
    })
    .await;
    telling.await.unwrap();
    reach(&older, log[399].seq).await;
    for client in &clients {
        client.has_all_of(&log[..400], &older).await;
        assert_eq!(client.connections(), 1);
    }
    for asking in asking {
        asking.ends();
    }

    // Whoever of the older version is started again reads as well, and does not follow when nobody else does.
    let again = serve(&place.url, &upstream, &[("PLC_FOLLOW", "on")]);
    eventually("it reads", &[&again], async || is(&again, "reader").await).await;
    newer.end().await;
    for process in [&first, &second, &again] {
        let what = "it says that it follows no more";
        eventually(what, &[process], async || {
            let log = process.log();
            log.contains("which alone may write to it; this process reads on, and follows no more")
        })
        .await;
    }
    upstream.append_all(log[400..].iter().cloned());
    sleep(Duration::from_secs(3)).await;
    for process in older.into_iter().chain([&again]) {
        assert_eq!(health(process).await["sequence"], log[399].seq);
        assert_eq!(process.get("/export?count=5").await, 200);
    }
    of_older_commands(&place.url, &log[0].did, &upstream.url());

    let newer = Running::start_in(open_later(&place.url).await, &upstream.url()).await;
    newer.live_at(log.last().unwrap().seq).await;
    reach(&older, log.last().unwrap().seq).await;
    for client in &clients {
        client.has_all_of(&log, &older).await;
    }
    newer.end().await;
    break_tables(&place.url).await;
    let ran = run(&["resolve", &log[0].did, "--database", &place.url]);
    assert!(ran.code == Some(2) && ran.said().contains("cannot read it any more"), "{ran:?}");
}

/// Those that read do, those that write do not.
fn of_older_commands(url: &str, did: &str, upstream: &str) {
    for reads in [vec!["resolve", did], vec!["fsck"], vec!["export"], vec!["refused"]] {
        let ran = run(&[&reads[..], &["--database", url]].concat());
        assert_eq!(ran.code, Some(0), "{reads:?}: {ran:?}");
    }
    let of_upstream = ["--upstream", upstream];
    for writes in [["repair", did].as_slice(), &["import", "/dev/null"]] {
        let writes = [writes, &of_upstream].concat();
        let ran = run(&[&writes[..], &["--database", url]].concat());
        assert_eq!(ran.code, Some(2), "{writes:?}: {ran:?}");
        assert!(ran.said().contains("which alone may write to it"), "{writes:?}: {ran:?}");
    }
}

/// A process that reads is started before the tables are up to date, and begins when they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_waits_for_the_tables_of_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plc.db");
    let place = format!("sqlite://{}", path.display());
    let log = log(72, 30);
    let upstream = FakeUpstream::start(log.clone()).await;
    let follower = serve(&place, &upstream, &[]);
    follower.reaches(log.last().unwrap().seq).await;
    follower.end();
    // As the version before has left them, as far as anybody is told.
    let mark = |steps: i64| {
        let file = rusqlite::Connection::open(&path).unwrap();
        file.pragma_update(None, "user_version", steps).unwrap();
    };
    mark(STEPS.len() as i64 - 1);
    let reader = serve(&place, &upstream, &[("PLC_FOLLOW", "off")]);
    eventually("it says what it waits for", &[&reader], async || {
        reader
            .log()
            .contains("are of an older version of plc-replica, and wait for `plc-replica migrate`")
    })
    .await;
    mark(STEPS.len() as i64);
    reach(&[&reader], log.last().unwrap().seq).await;
    let said = reader.end();
    assert!(said.contains("the database is there"), "{said}");

    let Some(database) = Database::create().await else { return };
    Postgres::open(&database.url).await.unwrap();
    match Postgres::open_to_read_at(&database.url, &later()).await {
        Err(StoreError::Unavailable(reason)) => assert!(reason.contains("wait for"), "{reason}"),
        other => panic!("{other:?}"),
    }
    Postgres::open_at(&database.url, &later()).await.unwrap();
    Postgres::open_to_read_at(&database.url, &later()).await.unwrap();
}
