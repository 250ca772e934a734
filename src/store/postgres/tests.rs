//! A database that is migrated while it is full.

use std::time::Duration;

use bytes::Bytes;
use plc_testkit::builder::Story;
use plc_testkit::postgres::Database;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::migrations::MIGRATIONS;
use super::open::Postgres;
use crate::store::samples::stored;
use crate::store::{
    Commit, Lease, NewDivergence, NewRefusal, Source, StoreError, StoredDivergence,
    StoredOperation, StoredRefusal,
};

/// The migrations of this program, and one more, as a later version will have.
fn with_one_more(sql: &'static str) -> Migrator {
    let later = Migration::new(2, "later".into(), MigrationType::Simple, sql.into_sql_str(), false);
    Migrator::with_migrations(MIGRATIONS.iter().cloned().chain([later]).collect())
}

/// Identities with two operations each.
fn log(identities: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(3);
    for _ in 0..identities {
        let identity = story.create().accepted();
        story.update(&identity).accepted();
    }
    stored(&story)
}

fn commit_of(cursor_before: i64, operations: &[StoredOperation]) -> Commit {
    let last = operations.iter().filter_map(|operation| operation.sequence).max();
    Commit {
        cursor_before,
        cursor_after: last.unwrap_or(cursor_before),
        operations: operations.to_vec(),
        refusals: vec![NewRefusal {
            key: NewRefusal::key_of_line(&cursor_before.to_be_bytes()),
            source: "https://plc.example".to_owned(),
            did: "did:plc:\0".to_owned(),
            sequence: Some(7),
            cid: None,
            kind: "malformed".to_owned(),
            detail: "no JSON".to_owned(),
            line: Bytes::from(format!("after {cursor_before}")),
        }],
        divergences: vec![NewDivergence {
            source: "https://plc.example".to_owned(),
            did: operations[0].did.to_string(),
            kind: "restated-created-at".to_owned(),
            subject: operations[0].cid().to_string(),
            ours: Some("[]".to_owned()),
            theirs: None,
        }],
        ..Commit::default()
    }
}

/// What a store reads of everything that it holds.
#[derive(Debug, PartialEq)]
struct Contents {
    operations: Vec<StoredOperation>,
    refusals: Vec<StoredRefusal>,
    divergences: Vec<StoredDivergence>,
    source: Option<Source>,
}

async fn contents(store: &Postgres) -> Contents {
    Contents {
        operations: store.export_by_sequence(0, 1000).await.unwrap(),
        refusals: store.refusals(None, 0, 1000).await.unwrap(),
        divergences: store.divergences(None, None, None, 0, 1000).await.unwrap(),
        source: store.source().await.unwrap(),
    }
}

async fn filled(database: &Database, log: &[StoredOperation]) -> (Postgres, Lease) {
    let store = Postgres::open(&database.url).await.unwrap();
    let (lease, _) = store.follow("https://plc.example", Duration::ZERO).await.unwrap();
    store.commit(&lease, &commit_of(0, log)).await.unwrap();
    (store, lease)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_database_is_migrated_and_keeps_every_row() {
    let Some(database) = Database::create().await else { return };
    let log = log(150);
    let (store, lease) = filled(&database, &log[..200]).await;
    let before = contents(&store).await;
    drop(store);

    // Opened again there is nothing to do.
    let store = Postgres::open(&database.url).await.unwrap();
    assert_eq!(contents(&store).await, before);

    let later = with_one_more(
        "ALTER TABLE operations ADD COLUMN size int4;
         UPDATE operations SET size = octet_length(operation);
         CREATE INDEX operations_size ON operations (size);
         DROP INDEX divergences_open;
         CREATE INDEX divergences_open ON divergences (id) WHERE closed_at IS NULL",
    );
    let store = Postgres::open_at(&database.url, &later).await.unwrap();
    let mut migrated = contents(&store).await;
    // The lease of the version before is over.
    migrated.source.as_mut().unwrap().epoch -= 1;
    assert_eq!(migrated, before);
    let mut client = database.client().await;
    let sized = client.value("SELECT count(size) FROM operations").await;
    assert_eq!(sized.as_deref(), Some("200"));

    // And it goes on from there, by its own.
    let more = commit_of(200, &log[200..]);
    let over = store.commit(&lease, &more).await;
    assert!(matches!(over, Err(StoreError::LostLease(_))), "{over:?}");
    let (lease, _) = store.follow("https://plc.example", Duration::ZERO).await.unwrap();
    store.commit(&lease, &more).await.unwrap();
    assert_eq!(store.export_by_sequence(0, 1000).await.unwrap(), log);
    assert_eq!(store.head(&log[0].did).await.unwrap().as_ref(), Some(&log[1]));

    // This version reads what a later one has made, and writes nothing.
    store.release(lease).await.unwrap();
    let older = Postgres::open(&database.url).await.unwrap();
    assert_eq!(older.export_by_sequence(0, 1000).await.unwrap(), log);
    let followed = older.follow("https://plc.example", Duration::ZERO).await;
    let closed = older.close_divergence(1, log[0].created_at).await;
    for refused in [followed.map(drop), closed, older.keep_claims().await] {
        assert!(matches!(refused, Err(StoreError::Outdated(_))), "{refused:?}");
    }
    assert_eq!(older.lacking().await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_fails_leaves_what_was_there() {
    let Some(database) = Database::create().await else { return };
    let log = log(10);
    let (store, lease) = filled(&database, &log[..10]).await;
    let before = contents(&store).await;
    let broken =
        with_one_more("DELETE FROM refusals; ALTER TABLE operations ADD CHECK (signer > 0)");
    assert!(Postgres::open_at(&database.url, &broken).await.is_err());
    let store = Postgres::open(&database.url).await.unwrap();
    assert_eq!(contents(&store).await, before);
    store.commit(&lease, &commit_of(10, &log[10..])).await.unwrap();
    assert_eq!(store.export_by_sequence(0, 1000).await.unwrap(), log);
}

/// Who is answered does not wait for what is judged.
#[tokio::test]
async fn what_was_refused_is_looked_up_while_all_connections_of_ingest_are_in_use() {
    let Some(database) = Database::create().await else { return };
    let store = Postgres::open(&database.url).await.unwrap();
    let (lease, _) = store.follow("https://plc.example", Duration::ZERO).await.unwrap();
    let did = log(1)[0].did;
    let mut commit = commit_of(0, &log(1));
    commit.refusals[0].did = did.to_string();
    store.commit(&lease, &commit).await.unwrap();
    let in_use = [store.ingest.lend().await.unwrap(), store.ingest.lend().await.unwrap()];
    let asked = store.refused_after(&did, None);
    let counted = tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap().unwrap();
    assert_eq!(counted, 1);
    drop(in_use);
}

/// What is compared with by `fsck`. Written anew, where a migration was added, with PLC_WRITE_TABLES set.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_tables_consist_of_is_written_down() {
    let Some(database) = Database::create().await else { return };
    let store = Postgres::open(&database.url).await.unwrap();
    let parts = store.parts().await.unwrap().join("\n") + "\n";
    if std::env::var_os("PLC_WRITE_TABLES").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/postgres/tables.txt");
        return std::fs::write(file, parts).unwrap();
    }
    assert_eq!(parts, super::tables::EXPECTED);
}
