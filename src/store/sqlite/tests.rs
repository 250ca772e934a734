//! What only this backend has: an index that lags behind, and a file that can be harmed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use tempfile::TempDir;

use super::prefix::{Entry, Prefix};
use super::*;
use crate::store::samples::stored;
use crate::store::{Commit, Lease, Rewritten, StoredOperation};
use did_plc::Did;
use plc_testkit::builder::Story;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

const UPSTREAM: &str = "https://plc.example";

async fn open(folder: &TempDir) -> Sqlite {
    Sqlite::open(&folder.path().join("plc.db")).await.unwrap()
}

/// A log in which every identity has three operations.
fn log(identities: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(1);
    let told: Vec<_> = (0..identities).map(|_| story.create().accepted()).collect();
    for _ in 0..2 {
        for identity in &told {
            story.update(identity).accepted();
        }
    }
    stored(&story)
}

fn commit_of(cursor_before: i64, operations: &[StoredOperation]) -> Commit {
    let cursor_after = operations.iter().filter_map(|operation| operation.sequence).max();
    let cursor_after = cursor_after.unwrap_or(cursor_before).max(cursor_before);
    Commit { cursor_before, cursor_after, operations: operations.to_vec(), ..Commit::default() }
}

async fn commit(store: &Sqlite, lease: &Lease, operations: &[StoredOperation]) {
    let cursor = store.source().await.unwrap().unwrap().cursor;
    store.commit(lease, &commit_of(cursor, operations)).await.unwrap();
}

async fn index(store: &Sqlite, lease: &Lease) {
    let lease = lease.clone();
    store.write("indexing", move |shared| shared.index_recent(&lease)).await.unwrap();
}

async fn assert_holds(store: &Sqlite, operations: &[StoredOperation]) {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| (operation.did, operation.created_at));
    let dids: Vec<Did> = sorted.iter().map(|operation| operation.did).collect();
    assert_eq!(store.histories(&dids).await.unwrap(), sorted);
    for limit in [1, 7, 1000] {
        let mut walked: Vec<StoredOperation> = Vec::new();
        loop {
            let after = walked.last().map(|last| last.did);
            let page = store.next_histories(after, limit).await.unwrap();
            if page.is_empty() {
                break;
            }
            walked.extend(page);
        }
        assert_eq!(walked, sorted, "by {limit}");
    }
}

#[tokio::test]
async fn operations_are_found_before_and_after_they_are_indexed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let elsewhere = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let operations = log(20);
    // The last number, and one that comes late, on both sides of what is indexed.
    let late = [15, 35];
    let early: Vec<_> = (0..60).filter(|place| !late.contains(place)).collect();
    let mut held = Vec::new();
    for (number, places) in early.chunks(10).chain([&late[..]]).enumerate() {
        let fresh: Vec<_> = places.iter().map(|&place| operations[place].clone()).collect();
        commit(&store, &lease, &fresh).await;
        held.extend(fresh);
        for store in [&store, &elsewhere] {
            assert_holds(store, &held).await;
        }
        if number % 2 == 1 {
            index(&store, &lease).await;
            for store in [&store, &elsewhere, &open(&folder).await] {
                assert_holds(store, &held).await;
            }
        }
    }
    assert_eq!(store.shared.recent.len(), 0);
    store.release(lease).await.unwrap();
    let (lease, _) = elsewhere.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let more = Commit { numbered: vec![], ..commit_of(60, &[]) };
    elsewhere.commit(&lease, &more).await.unwrap();
    assert_holds(&store, &operations).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_find_everything_while_it_is_indexed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let operations = Arc::new(log(30));
    let readers: Vec<_> = [store.clone(), store.clone(), open(&folder).await]
        .map(|store| {
            let operations = Arc::clone(&operations);
            tokio::spawn(async move {
                let mut done = 0;
                while done < operations.len() as i64 {
                    done = store.source().await.unwrap().unwrap().cursor;
                    let committed = &operations[..done as usize];
                    let did = operations[done as usize % 30].did;
                    let expected = committed.iter().filter(|of| of.did == did).count();
                    let found = store.history(&did).await.unwrap().len();
                    assert!(found >= expected, "{found} of {expected}");
                }
            })
        })
        .into();
    for operation in operations.iter() {
        commit(&store, &lease, std::slice::from_ref(operation)).await;
        index(&store, &lease).await;
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

/// The operations of one identity among these, in place of which others are to be.
fn rewritten(held: &[StoredOperation], whole: &[StoredOperation]) -> Rewritten {
    let did = whole[0].did;
    let stored = held.iter().filter(|of| of.did == did).count();
    Rewritten { did, stored, stored_geneses: 1, operations: whole.to_vec() }
}

/// Numbers that move to other identities, away and back, on both sides of what is indexed and across restarts.
#[tokio::test]
async fn numbers_move_on_both_sides_of_what_is_indexed() {
    for seed in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = open(&folder).await;
        let mut store = open(&folder).await;
        let (mut lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
        let mut held = log(12);
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        commit(&store, &lease, &held).await;
        let mut free: Vec<i64> = Vec::new();
        for _ in 0..40 {
            let mut dids: Vec<Did> = held.iter().map(|of| of.did).collect();
            dids.sort_unstable();
            dids.dedup();
            dids.shuffle(&mut random);
            dids.truncate(3);
            let before = held.clone();
            let mut of_dids: Vec<_> = held.iter_mut().filter(|of| dids.contains(&of.did)).collect();
            let mut numbers: Vec<_> = of_dids.iter().map(|of| of.sequence).collect();
            numbers.shuffle(&mut random);
            for (operation, number) in of_dids.iter_mut().zip(numbers) {
                operation.sequence = number;
            }
            // The highest number goes, or one comes back.
            let last = of_dids.iter_mut().max_by_key(|of| of.sequence).unwrap();
            if random.random_bool(0.6) {
                free.extend(last.sequence.take());
            } else if let Some(nobody) = of_dids.iter_mut().find(|of| of.sequence.is_none()) {
                nobody.sequence = free.pop();
            }
            let of = |did| held.iter().filter(move |of| of.did == did).cloned().collect::<Vec<_>>();
            let rewritten = dids.iter().map(|&did| rewritten(&before, &of(did))).collect();
            let cursor = store.source().await.unwrap().unwrap().cursor;
            let commit = Commit { rewritten, ..commit_of(cursor, &[]) };
            store.commit(&lease, &commit).await.unwrap();
            for store in [&store, &elsewhere] {
                assert_holds(store, &held).await;
            }
            match random.random_range(0..4) {
                0 => index(&store, &lease).await,
                1 => {
                    store.release(lease).await.unwrap();
                    store = open(&folder).await;
                    (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
                }
                _ => {}
            }
            for store in [&store, &elsewhere] {
                assert_holds(store, &held).await;
            }
        }
        // Who has the lease no more finds all of it too.
        store.release(lease).await.unwrap();
        for store in [&store, &elsewhere, &open(&folder).await] {
            assert_holds(store, &held).await;
        }
    }
}

/// The same while others read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_find_everything_while_numbers_move_and_are_indexed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let mut held = log(6);
    commit(&store, &lease, &held).await;
    let dids: Vec<Did> = held[..6].iter().map(|of| of.did).collect();
    let ended = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = [store.clone(), store.clone(), open(&folder).await]
        .map(|store| {
            let (dids, ended) = (dids.clone(), Arc::clone(&ended));
            tokio::spawn(async move {
                let mut looked = 0;
                while !ended.load(Ordering::Relaxed) {
                    let mut numbers: Vec<_> = store.histories(&dids).await.unwrap();
                    assert_eq!(numbers.len(), 18);
                    numbers.sort_by_key(|of| of.sequence);
                    assert!(numbers.is_sorted_by(|a, b| a.sequence < b.sequence), "half a commit");
                    let did = dids[looked % 6];
                    assert_eq!(store.history(&did).await.unwrap().len(), 3);
                    assert_eq!(store.next_histories(None, 7).await.unwrap().len() % 3, 0);
                    looked += 1;
                    tokio::task::yield_now().await;
                }
            })
        })
        .into();
    let mut random = ChaCha20Rng::seed_from_u64(1);
    for round in 0..150 {
        let before = held.clone();
        // Each time some of the numbers are new ones at the end.
        let mut numbers: Vec<i64> = held.iter().filter_map(|of| of.sequence).collect();
        numbers.shuffle(&mut random);
        numbers[0] = 100 + round;
        for (operation, number) in held.iter_mut().zip(numbers) {
            operation.sequence = Some(number);
        }
        let of = |did| held.iter().filter(move |of| of.did == did).cloned().collect::<Vec<_>>();
        let rewritten = dids.iter().map(|&did| rewritten(&before, &of(did))).collect();
        let cursor = store.source().await.unwrap().unwrap().cursor;
        let commit = Commit { rewritten, ..commit_of(cursor, &[]) };
        store.commit(&lease, &commit).await.unwrap();
        if round % 7 == 0 {
            index(&store, &lease).await;
        }
    }
    ended.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_holds(&store, &held).await;
}

/// The highest number is indexed, goes away, and comes to somebody else after a restart.
#[tokio::test]
async fn a_number_below_what_is_indexed_is_found_when_it_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut held = log(2);
    let newest = held.split_off(5);
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    commit(&store, &lease, &held).await;
    index(&store, &lease).await;
    let before = held.clone();
    held[4].sequence = None;
    let of: Vec<_> = held.iter().filter(|of| of.did == held[4].did).cloned().collect();
    let rewritten = vec![rewritten(&before, &of)];
    let commit_without = Commit { rewritten, ..commit_of(5, &[]) };
    store.commit(&lease, &commit_without).await.unwrap();
    store.release(lease).await.unwrap();

    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let again = StoredOperation { sequence: Some(5), ..newest[0].clone() };
    commit(&store, &lease, std::slice::from_ref(&again)).await;
    held.push(again);
    for store in [&store, &open(&folder).await] {
        assert_holds(store, &held).await;
    }
}

/// Of a commit that fails at its very end, in which numbers move, nothing is left.
#[tokio::test]
async fn a_commit_that_takes_numbers_away_and_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, elsewhere) = (open(&folder).await, open(&folder).await);
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let held = log(2);
    commit(&store, &lease, &held[..5]).await;
    let run = |sql: &str| store.shared.writer().connection().execute_batch(sql).unwrap();
    // What is missing is looked for when COMMIT comes.
    run("PRAGMA foreign_keys = ON;
         CREATE TABLE parents (id INTEGER PRIMARY KEY);
         CREATE TABLE children (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER orphan AFTER DELETE ON operations BEGIN INSERT INTO children VALUES (1); END");
    let mut then = held[..5].to_vec();
    (then[0].sequence, then[1].sequence) = (held[1].sequence, held[0].sequence);
    (then[4].sequence, then[3].sequence) = (None, held[4].sequence);
    let moves = [0, 1].map(|who| {
        let of: Vec<_> = then.iter().filter(|of| of.did == then[who].did).cloned().collect();
        rewritten(&held[..5], &of)
    });
    let moving = Commit { rewritten: moves.to_vec(), ..commit_of(5, &held[5..]) };
    for _ in 0..2 {
        let failed = store.commit(&lease, &moving).await;
        let Err(StoreError::Damaged { reason, .. }) = failed else { panic!("{failed:?}") };
        assert!(reason.contains("FOREIGN KEY"), "{reason}");
        for store in [&store, &elsewhere] {
            assert_holds(store, &held[..5]).await;
        }
    }
    run("DROP TRIGGER orphan");
    store.commit(&lease, &moving).await.unwrap();
    then.push(held[5].clone());
    for store in [&store, &elsewhere, &open(&folder).await] {
        assert_holds(store, &then).await;
    }
}

#[tokio::test]
async fn a_full_disk_passes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let operations = log(40);
    commit(&store, &lease, &operations[..10]).await;
    let set_size = |pages: i64| {
        let writer = store.shared.writer();
        let count = |name| {
            writer.connection().pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap()
        };
        let pages = count("page_count") + pages;
        writer.connection().pragma_update(None, "max_page_count", pages).unwrap();
    };
    set_size(0);
    for _ in 0..2 {
        let full = store.commit(&lease, &commit_of(10, &operations[10..])).await;
        assert!(matches!(full, Err(StoreError::Unavailable(_))), "{full:?}");
        assert_holds(&store, &operations[..10]).await;
    }
    set_size(1000);
    commit(&store, &lease, &operations[10..]).await;
    assert_holds(&store, &operations).await;
    assert_holds(&open(&folder).await, &operations).await;
}

#[tokio::test]
async fn damage_is_said_of_the_identity_that_it_may_concern() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let operations = log(3);
    commit(&store, &lease, &operations).await;
    index(&store, &lease).await;
    let harm = |sql: &str| {
        let harmed = store.shared.writer().connection().execute(sql, []).unwrap();
        assert_eq!(harmed, 1);
    };
    let (harmed, other) = (operations[0].did, operations[1].did);
    let whole: Vec<_> = operations.iter().filter(|of| of.did != harmed).cloned().collect();
    for sql in [
        "UPDATE operations SET operation = x'0203' WHERE sequence = 4",
        "UPDATE operations SET operation = substr(operation, 1, 50) WHERE sequence = 4",
        "UPDATE operations SET did = x'00' WHERE sequence = 4",
        "UPDATE operations SET did = zeroblob(15) WHERE sequence = 4",
        "DELETE FROM operations WHERE sequence = 4",
    ] {
        harm(sql);
        for damaged in [
            store.history(&harmed).await.err(),
            store.histories(&[other, harmed]).await.err(),
            store.next_histories(None, 100).await.err(),
        ] {
            assert!(matches!(damaged, Some(StoreError::Damaged { .. })), "{sql}: {damaged:?}");
        }
        // The way around it, on which it is met once more.
        let (mut found, mut damaged, mut next) = (Vec::new(), 0, None);
        while let Some(did) = store.next_identity(next).await.unwrap() {
            match store.history(&did).await {
                Ok(history) => found.extend(history),
                Err(StoreError::Damaged { .. }) => damaged += 1,
                Err(other) => panic!("{other}"),
            }
            next = Some(did);
        }
        found.sort_by_key(|of| of.sequence);
        assert_eq!(found, whole, "{sql}");
        assert!(damaged > 0, "{sql}");
    }
}

#[tokio::test]
async fn what_is_not_committed_yet_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let operations = log(4);
    commit(&store, &lease, &operations[..3]).await;
    // As a commit leaves it that is under way: of an identity that is here, and of new ones.
    let coming: Vec<Entry> = operations[3..]
        .iter()
        .map(|of| (Prefix::of(&of.did), of.sequence.unwrap()))
        .chain([(Prefix::of(&Did::from_bytes([0xff; 15])), 1000)])
        .collect();
    store.shared.recent.add(&coming);
    assert_holds(&store, &operations[..3]).await;
    let mut walked = Vec::new();
    while let Some(did) = store.next_identity(walked.last().copied()).await.unwrap() {
        walked.push(did);
    }
    let mut here: Vec<Did> = operations[..3].iter().map(|of| of.did).collect();
    here.sort_unstable();
    assert_eq!(walked, here);
    store.shared.recent.remove(&coming);
    commit(&store, &lease, &operations[3..]).await;
    assert_holds(&store, &operations).await;
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let absent = Sqlite::open(&folder.path().join("absent/plc.db")).await;
    assert!(matches!(absent, Err(StoreError::Unusable(_))), "{absent:?}");

    let store = open(&folder).await;
    let unreadable = 1000 << 16 | 1000;
    store.shared.writer().connection().pragma_update(None, "user_version", unreadable).unwrap();
    drop(store);
    let newer = Sqlite::open(&folder.path().join("plc.db")).await;
    let Err(StoreError::Unusable(reason)) = newer else { panic!("{newer:?}") };
    assert!(reason.contains("plc.db") && reason.contains("newer"), "{reason}");

    let text = folder.path().join("text");
    std::fs::write(&text, "no database, but long enough to be looked at ".repeat(200)).unwrap();
    let other = Sqlite::open(&text).await;
    assert!(matches!(other, Err(StoreError::Damaged { .. })), "{other:?}");
}

#[tokio::test]
async fn a_file_that_is_taken_away_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let operations = log(40);
    commit(&store, &lease, &operations[..100]).await;
    let file = folder.path().join("plc.db");
    let away = folder.path().join("away");
    let more = commit_of(100, &operations[100..]);
    std::fs::rename(&file, &away).unwrap();
    for missed in [store.commit(&lease, &more).await, store.renew(&lease, None).await] {
        assert!(matches!(missed, Err(StoreError::Unavailable(_))), "{missed:?}");
    }
    assert_holds(&store, &operations[..100]).await;
    // More at a time than there are connections, of which no other one can be opened.
    let readers = Arc::new(Barrier::new(8));
    let reads = (0..8).map(|_| {
        let (shared, readers) = (Arc::clone(&store.shared), Arc::clone(&readers));
        std::thread::spawn(move || {
            readers.wait();
            shared.readers.with(|connection| {
                std::thread::sleep(Duration::from_millis(10));
                Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?)
            })
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.join().unwrap().unwrap();
    }
    assert!(!file.exists(), "nobody makes it anew");

    std::fs::rename(&away, &file).unwrap();
    store.renew(&lease, None).await.unwrap();
    store.commit(&lease, &more).await.unwrap();
    assert_holds(&store, &operations).await;

    std::fs::rename(&file, &away).unwrap();
    std::fs::write(&file, "").unwrap();
    let next = commit_of(120, &[]);
    for missed in [store.commit(&lease, &next).await, store.renew(&lease, None).await] {
        let Err(StoreError::Unusable(reason)) = missed else { panic!("{missed:?}") };
        assert!(reason.contains("plc.db"), "{reason}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"", "nothing is written to the other one");
}

/// A bug in this program must not be waited out like a database that is away.
#[tokio::test]
async fn a_panic_is_logged_as_a_bug_and_the_store_goes_on() {
    let folder = TempDir::new().unwrap();
    let said = folder.path().join("log");
    let file = Arc::new(std::fs::File::create(&said).unwrap());
    let subscriber = tracing_subscriber::fmt().with_writer(file).with_ansi(false).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();

    let (writing, of) = (store.clone(), lease.clone());
    let written = tokio::spawn(async move {
        writing
            .write("testing the writer", move |shared| -> Result<(), StoreError> {
                let mut writer = shared.writer();
                let (_transaction, _) = writer.transaction(&of)?;
                panic!("a bug in the middle of a transaction")
            })
            .await
    });
    assert!(written.await.unwrap_err().is_panic());
    let reading = store.clone();
    let read = tokio::spawn(async move {
        reading
            .long_read("testing a reader", |shared| -> Result<(), StoreError> {
                shared.readers.with(|_| panic!("a bug while reading"))
            })
            .await
    });
    assert!(read.await.unwrap_err().is_panic());

    let logged = std::fs::read_to_string(&said).unwrap();
    for said in ["ERROR", "panicked while testing the writer", "in the middle of a transaction"] {
        assert!(logged.contains(said), "{said}: {logged}");
    }
    assert!(logged.contains("panicked while testing a reader"), "{logged}");
    assert!(!logged.contains("unavailable"), "{logged}");
    let operations = log(3);
    commit(&store, &lease, &operations).await;
    assert_holds(&store, &operations).await;
    assert_eq!((store.load().busy, store.load().waiting), (0, 0));
}

/// What this version of the program has made, a later one finds whole, and this one reads what a later one has made, and
/// writes nothing.
#[tokio::test]
async fn a_full_database_is_migrated_and_keeps_every_row() {
    const LATER: &[&str] = &[
        MIGRATIONS[0],
        "ALTER TABLE operations ADD COLUMN size INTEGER;
         UPDATE operations SET size = length(operation);
         CREATE INDEX operations_size ON operations (size);",
    ];
    const BROKEN: &[&str] = &[MIGRATIONS[0], "DELETE FROM operations; SELECT * FROM absent;"];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plc.db");
    let operations = log(100);
    let store = open(&folder).await;
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    commit(&store, &lease, &operations[..200]).await;
    drop((store, lease));

    // Opened again there is nothing to do; what fails leaves what was there.
    assert_holds(&open(&folder).await, &operations[..200]).await;
    assert!(Sqlite::open_at(&path, BROKEN).await.is_err());
    assert_holds(&open(&folder).await, &operations[..200]).await;

    let before = open(&folder).await;
    let (lease, _) = before.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    let store = Sqlite::open_at(&path, LATER).await.unwrap();
    assert_holds(&store, &operations[..200]).await;
    // The lease of the version before is over.
    let over = before.commit(&lease, &commit_of(200, &operations[200..])).await;
    assert!(matches!(over, Err(StoreError::LostLease(_))), "{over:?}");
    drop((before, lease));
    let sized = "SELECT count(size) FROM operations";
    let sized: i64 =
        store.shared.writer().connection().query_one(sized, [], |row| row.get(0)).unwrap();
    assert_eq!(sized, 200);
    let (lease, _) = store.follow(UPSTREAM, Duration::ZERO).await.unwrap();
    commit(&store, &lease, &operations[200..]).await;
    assert_holds(&store, &operations).await;
    drop((store, lease));
    let older = Sqlite::open(&path).await.unwrap();
    assert_holds(&older, &operations).await;
    let followed = older.follow(UPSTREAM, Duration::ZERO).await;
    let closed = older.close_divergence(1, operations[0].created_at).await;
    for refused in [followed.map(drop), closed, older.keep_claims().await] {
        assert!(matches!(refused, Err(StoreError::Outdated(_))), "{refused:?}");
    }
    assert_eq!(older.lacking().await.unwrap(), [""; 0]);
}
