//! `fsck` finds whatever somebody has done to the rows of a store, on both backends.

use bytes::Bytes;
use plc_replica::store::{Commit, NewRefusal, RefusalLimits, Store};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::FakeUpstream;
use plc_testkit::postgres::Client;

use crate::follow::{Place, Running, entries, places};
use crate::process::run;

/// What is done to a store that holds a genesis (1), an update (2) by a thief, the recovery (3) that nullifies it, and
/// another identity (4, 5); and what is said of it.
const DAMAGES: [(&str, &str); 9] = [
    (
        "UPDATE operations SET operation = (SELECT operation FROM operations WHERE sequence = 4)
            WHERE sequence = 2",
        "does not verify",
    ),
    (
        "UPDATE operations SET operation = (SELECT operation FROM operations WHERE sequence = 4)
            WHERE sequence = 5",
        "is stored twice",
    ),
    ("UPDATE operations SET signer = signer + 1 WHERE sequence = 3", "signed by rotation key"),
    (
        "UPDATE operations SET nullified_by = created_at + 1 WHERE sequence = 4",
        "the chain leads to nothing",
    ),
    (
        "UPDATE operations SET nullified_by = NULL WHERE sequence = 2",
        "stored as nullified by nothing",
    ),
    ("DELETE FROM operations WHERE sequence = 4", "does not verify"),
    (
        "UPDATE operations SET created_at = created_at - 100000000000 WHERE sequence = 5",
        "does not verify",
    ),
    (
        "UPDATE operations SET did = (SELECT did FROM operations WHERE sequence = 1)
            WHERE sequence = 5",
        "does not verify",
    ),
    ("UPDATE sources SET cursor = 1000, cursor_cid = NULL", "nothing beyond 5 was ever received"),
];

async fn store(place: &Place) {
    let mut story = Story::seeded(121);
    let (thief, recovery) = (story.k256(), story.recovery.clone());
    let alice = story.create().accepted();
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    story.after(&alice).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    let bob = story.create().accepted();
    story.update(&bob).handle("bob.example").accepted();
    let upstream = FakeUpstream::start(entries(&story)).await;
    let replica = Running::start(&place.url, &upstream.url()).await;
    replica.live_at(5).await;
    replica.end().await;
}

async fn damage(place: &Place, sql: &str) {
    match place.url.strip_prefix("sqlite://") {
        Some(file) => rusqlite::Connection::open(file).unwrap().execute_batch(sql).unwrap(),
        None => Client::connect(&place.url).await.run(sql).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_found() {
    for (sql, said) in DAMAGES {
        for place in places().await {
            store(&place).await;
            let whole = run(&["fsck", "--database", &place.url]);
            assert_eq!(whole.code, Some(0), "{whole:?}");
            damage(&place, sql).await;
            let ran = run(&["fsck", "--database", &place.url]);
            assert!(ran.code == Some(1) && ran.out.contains(said), "{sql}: {ran:?}");
        }
    }
}

/// What was refused and is not kept any more still says how far was read.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_judged_where_refusals_were_forgotten() {
    for place in places().await {
        let store = Store::open(&place.url).await.unwrap();
        let (lease, source) = store.follow("https://plc.example").await.unwrap();
        store.limit_refusals(RefusalLimits { of_identity: 1, in_all: 1 });
        // The last number that was read, and then something without one, which takes its place.
        for (sequence, cursor_before) in [(Some(1_000), source.cursor), (None, 1_000)] {
            let line = Bytes::from(format!("{sequence:?}"));
            let refusal = NewRefusal {
                key: NewRefusal::key_of_line(&line),
                source: "https://plc.example".to_owned(),
                did: String::new(),
                sequence,
                cid: None,
                kind: "malformed".to_owned(),
                detail: String::new(),
                line,
            };
            let refusals = vec![refusal];
            let commit =
                Commit { cursor_before, cursor_after: 1_000, refusals, ..Commit::default() };
            store.commit(&lease, &commit).await.unwrap();
        }
        assert_eq!(store.statistics().await.unwrap().forgotten_refusals, 1);
        store.release(lease).await.unwrap();
        let whole = run(&["fsck", "--database", &place.url]);
        assert_eq!(whole.code, Some(0), "{whole:?}");
        damage(&place, "UPDATE sources SET cursor = 1001").await;
        let ran = run(&["fsck", "--database", &place.url]);
        let said = "it is 1001, and nothing beyond 1000 was ever received";
        assert!(ran.code == Some(1) && ran.out.contains(said), "{ran:?}");
    }
}
