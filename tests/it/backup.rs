//! Backups that are made while a replica follows: each is a log as it was at one moment, and following goes on from it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use plc_replica::store::Store;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::postgres::{Database, programs};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::follow::{Running, lives_with_attacks};
use crate::process::{Served, run};

/// An upstream with the first of these operations, and the others to come, one each few milliseconds.
async fn growing(log: &[LogEntry], at_first: usize) -> (Arc<FakeUpstream>, JoinHandle<()>) {
    let upstream = Arc::new(FakeUpstream::start(log[..at_first].to_vec()).await);
    let (rest, grows) = (log[at_first..].to_vec(), Arc::clone(&upstream));
    let growing = tokio::spawn(async move {
        for entry in rest {
            grows.append(entry);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    (upstream, growing)
}

/// The whole export by number.
async fn exported(url: &str) -> Vec<(i64, String)> {
    let store = Store::open_existing(url).await.unwrap();
    let rows = store.export_by_sequence(0, 10_000).await.unwrap();
    rows.iter().map(|row| (row.sequence.unwrap(), row.cid().to_string())).collect()
}

/// A copy is sound, has what the log had up to some moment, and lacks nothing once it has followed on.
async fn follows_on(url: &str, upstream: &FakeUpstream, whole: &[(i64, String)]) {
    let copied = exported(url).await;
    assert!(!copied.is_empty() && whole.starts_with(&copied), "{} operations", copied.len());
    let checked = run(&["fsck", "--database", url]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let replica = Running::start(url, &upstream.url()).await;
    replica.live_at(upstream.log().last().unwrap().seq).await;
    replica.end().await;
    assert_eq!(exported(url).await, whole);
}

fn sqlite(file: &Path) -> String {
    format!("sqlite://{}", file.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_file_that_is_written_to_follows_on() {
    let log = lives_with_attacks(111, 600);
    let folder = TempDir::new().unwrap();
    let (upstream, growing) = growing(&log, 100).await;
    let served = Served::start(folder.path(), &upstream.url(), &[]);
    served.reaches(log[99].seq).await;
    let database = folder.path().join("plc.db");
    let copies: Vec<_> = (0..5).map(|n| folder.path().join(format!("copy{n}.db"))).collect();
    // What an attempt that was cut off has left.
    std::fs::write(folder.path().join("copy0.db.part"), "left behind").unwrap();
    for copy in &copies {
        let ran = run(&["backup", copy.to_str().unwrap(), "--database", &sqlite(&database)]);
        let bytes = copy.metadata().unwrap().len();
        let said = format!("{bytes} bytes are in {}\n", copy.display());
        assert_eq!((ran.code, ran.out), (Some(0), said), "{}", ran.errors);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    growing.await.unwrap();
    served.reaches(log.last().unwrap().seq).await;
    served.end();
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    left.retain(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("part"));
    assert!(left.is_empty(), "{left:?}");
    let whole = exported(&sqlite(&database)).await;
    // They were made at different times.
    assert!(exported(&sqlite(&copies[0])).await.len() < exported(&sqlite(&copies[4])).await.len());
    for copy in &copies {
        follows_on(&sqlite(copy), &upstream, &whole).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_a_server_that_is_written_to_follows_on() {
    let Some(database) = Database::create().await else { return };
    let restored = Database::create().await.unwrap();
    let Some(programs) = programs() else { return };
    let log = lives_with_attacks(112, 600);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("dump");
    let (upstream, growing) = growing(&log, 100).await;
    let replica = Running::start(&database.url, &upstream.url()).await;
    replica.live_at(log[99].seq).await;
    let succeeds = |command: &mut Command| {
        let ran = tokio::task::block_in_place(|| command.output().unwrap());
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    let mut dump = Command::new(programs.join("pg_dump"));
    succeeds(dump.args(["--format=custom", "--file"]).arg(&file).arg(&database.url));
    growing.await.unwrap();
    replica.live_at(log.last().unwrap().seq).await;
    replica.end().await;
    let mut restore = Command::new(programs.join("pg_restore"));
    succeeds(restore.args(["--exit-on-error", "--dbname", &restored.url]).arg(&file));
    let whole = exported(&database.url).await;
    assert!(exported(&restored.url).await.len() < whole.len());
    follows_on(&restored.url, &upstream, &whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_write_nothing() {
    let folder = TempDir::new().unwrap();
    let database = folder.path().join("plc.db");
    let copy = folder.path().join("copy.db");
    let [url, to] = [sqlite(&database), copy.display().to_string()];
    let is_told = |arguments: &[&str], said: &str| {
        let ran = run(arguments);
        assert!(ran.code == Some(2) && ran.errors.contains(said), "{said}: {ran:?}");
    };
    is_told(&["backup", &to, "--database", &url], "there is no database");
    assert!(!copy.exists());
    drop(Store::open(&url).await.unwrap());
    std::fs::write(&copy, "mine").unwrap();
    is_told(&["backup", &to, "--database", &url], "copy.db is there already");
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "mine");
    let nowhere = folder.path().join("nowhere/copy.db").display().to_string();
    is_told(&["backup", &nowhere, "--database", &url], "the backup cannot be written to");
    is_told(&["backup", &nowhere, "--database", "postgres://localhost/plc"], "`pg_dump");
}
