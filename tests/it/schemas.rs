//! Databases as every schema has left them, opened by the newest: each has what it had. They are in `tests/fixtures`.
//!
//! `PLC_WRITE_FIXTURES=1 cargo test --test it schemas` writes those of the newest schema. That is due with each new
//! migration, and while nothing is released also when the first one is changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use plc_replica::store::{Store, StoredOperation};
use plc_testkit::postgres::{Client, Database, programs};
use tempfile::TempDir;

use crate::process::run;
use crate::shared::golden;

/// A small log, and hard to compress.
const LEVEL: i32 = 19;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the databases of each schema are in, the oldest first.
fn fixtures(backend: &str, suffix: &str) -> Vec<PathBuf> {
    let migrations = std::fs::read_dir(project().join("migrations").join(backend)).unwrap().count();
    let name = |number| format!("tests/fixtures/{backend}-{number}.{suffix}.zst");
    (1..=migrations).map(|number| project().join(name(number))).collect()
}

fn is_written() -> bool {
    std::env::var_os("PLC_WRITE_FIXTURES").is_some()
}

fn write(file: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, zstd::encode_all(bytes, LEVEL).unwrap()).unwrap();
}

fn read(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file)
        .unwrap_or_else(|error| panic!("{}: {error}; see schemas.rs", file.display()));
    zstd::decode_all(&*bytes).unwrap()
}

/// Takes the recorded log into a database.
fn fill(url: &str) {
    let log = golden().join("export.jsonl");
    let imported = run(&["import", log.to_str().unwrap(), "--database", url]);
    assert!(matches!(imported.code, Some(0 | 1)), "{imported:?}");
}

/// What is held, without when it was received, and how much was refused.
async fn held(url: &str) -> (Vec<StoredOperation>, usize) {
    let store = Store::open(url).await.unwrap();
    let mut operations = store.export_by_sequence(0, 10_000).await.unwrap();
    for operation in &mut operations {
        operation.received_at = operation.created_at;
    }
    (operations, store.refusals(None, 0, 10_000).await.unwrap().len())
}

/// What the newest schema makes of an older database is what it makes of the log, and whole.
async fn is_the_same(url: &str, newest: &str, file: &Path) {
    let (old, new) = (held(url).await, held(newest).await);
    assert!(!new.0.is_empty());
    assert!(old == new, "{}", file.display());
    let checked = run(&["fsck", "--database", url]);
    assert_eq!(checked.code, Some(0), "{}: {checked:?}", file.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_every_schema_opens_in_the_newest() {
    let folder = TempDir::new().unwrap();
    let url = |file: &Path| format!("sqlite://{}", file.display());
    let newest = folder.path().join("newest.db");
    fill(&url(&newest));
    let files = fixtures("sqlite", "db");
    if is_written() {
        let copy = folder.path().join("copy.db");
        let copied = run(&["backup", copy.to_str().unwrap(), "--database", &url(&newest)]);
        assert_eq!(copied.code, Some(0), "{copied:?}");
        write(files.last().unwrap(), &std::fs::read(copy).unwrap());
    }
    for file in files {
        let old = folder.path().join("old.db");
        std::fs::write(&old, read(&file)).unwrap();
        is_the_same(&url(&old), &url(&newest), &file).await;
        std::fs::remove_file(old).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_every_schema_opens_in_the_newest() {
    let Some(newest) = Database::create().await else { return };
    fill(&newest.url);
    let files = fixtures("postgres", "sql");
    if is_written() {
        let mut dump = Command::new(programs().unwrap().join("pg_dump"));
        dump.args(["--inserts", "--no-owner", "--no-privileges", &newest.url]);
        let dumped = tokio::task::block_in_place(|| dump.output().unwrap());
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        write(files.last().unwrap(), &dumped.stdout);
    }
    for file in files {
        let Some(old) = Database::create().await else { return };
        let sql = String::from_utf8(read(&file)).unwrap();
        // What a newer `pg_dump` says to its own terminal.
        let sql: Vec<&str> = sql.lines().filter(|line| !line.starts_with('\\')).collect();
        Client::connect(&old.url).await.run(&sql.join("\n")).await;
        is_the_same(&old.url, &newest.url, &file).await;
    }
}
