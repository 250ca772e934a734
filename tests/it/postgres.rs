//! What only this backend has: connections that break, commits that are given up half-way, and what
//! people read in SQL.

use std::iter;
use std::time::{Duration, Instant};

use bytes::Bytes;
use did_plc::Did;
use plc_replica::store::{
    Commit, NewDivergence, NewRefusal, RefusalLimits, Rewritten, Store, StoreError, StoredOperation,
};
use plc_testkit::builder::Story;

use crate::contract::{RECEIVED, told};
use plc_testkit::postgres::{Client, Database, Server};

const UPSTREAM: &str = "http://127.0.0.1:1";

/// A story's log as it is stored, each identity with two operations.
fn operations(identities: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(7);
    for _ in 0..identities {
        let identity = story.create().accepted();
        story.update(&identity).host("https://elsewhere.example.com").accepted();
    }
    told(&story)
}

fn commit(cursor_before: i64, operations: &[StoredOperation]) -> Commit {
    let last = operations.iter().filter_map(|new| new.sequence).max();
    Commit {
        cursor_before,
        cursor_after: last.unwrap_or(cursor_before),
        operations: operations.to_vec(),
        received_at_millis: RECEIVED.millis(),
        ..Commit::default()
    }
}

fn refusal(did: &str, line: &'static [u8]) -> NewRefusal {
    NewRefusal {
        key: NewRefusal::key_of_line(line),
        source: UPSTREAM.to_owned(),
        did: did.to_owned(),
        sequence: None,
        cid: None,
        kind: "malformed".to_owned(),
        detail: String::new(),
        line: Bytes::from_static(line),
    }
}

/// Lookups at the same time share queries, and each gets its own answer.
#[tokio::test(flavor = "multi_thread")]
async fn gathered_lookups_are_told_apart() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let log = operations(300);
    let (lease, source) = store.follow(UPSTREAM).await.unwrap();
    assert_eq!((source.cursor, source.epoch), (0, 1));
    // In two pieces and backwards: the order of rows is not that of the log.
    let mut backwards = log[..400].to_vec();
    backwards.reverse();
    store.commit(&lease, &commit(0, &backwards)).await.unwrap();
    store.commit(&lease, &commit(400, &log[400..])).await.unwrap();

    let unknown = Did::from_bytes([7; 15]);
    let lookups = log.chunks(2).map(|chain| {
        let store = store.clone();
        async move {
            assert_eq!(store.head(&chain[0].did).await.unwrap().as_ref(), chain.last());
            assert_eq!(store.history(&chain[0].did).await.unwrap(), chain);
            assert_eq!(store.head(&unknown).await.unwrap(), None);
            assert_eq!(store.history(&unknown).await.unwrap(), []);
        }
    });
    futures::future::join_all(lookups).await;
    assert_eq!(store.export_by_sequence(0, 1000).await.unwrap(), log);
    let statistics = store.statistics().await.unwrap();
    assert_eq!((statistics.operations, statistics.identities), (600, 300));
}

/// What is asked of one identity is not looked for among everybody's, also where most are of one other.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_divergences_of_an_identity_are_found_by_their_index() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let mut client = database.client().await;
    client
        .run(
            "INSERT INTO refusals (did, kind, detail, source, line, key, received_at)
             SELECT CASE WHEN n <= 10 THEN $$did:plc:yysjotofetl7xxd6u3ltxpgi$$ ELSE '' END::bytea,
                'malformed', '', 'there', repeat('x', 500)::bytea, sha256(n::text::bytea), 0
             FROM generate_series(1, 20000) n;
             INSERT INTO divergences (source, did, kind, subject, first_seen, last_seen, identity)
             SELECT 'there', CASE WHEN n <= 10 THEN $$did:plc:yysjotofetl7xxd6u3ltxpgi$$ ELSE '' END::bytea,
                'missing', '', 0, 0, sha256(n::text::bytea)
             FROM generate_series(1, 20000) n;
             ANALYZE",
        )
        .await;
    let did = "did:plc:yysjotofetl7xxd6u3ltxpgi";
    assert_eq!(store.refusals(Some(did), 5, 10).await.unwrap().len(), 5);
    assert_eq!(store.refused_after(&did.parse().unwrap(), None).await.unwrap(), 10);
    assert_eq!(store.standing_refusals(&[did.parse().unwrap()]).await.unwrap().len(), 10);
    assert_eq!(store.divergences(Some(did), None, Some(true), 5, 10).await.unwrap().len(), 5);
    let none = store.note_divergences("there", did, &[], &[], RECEIVED).await.unwrap();
    assert_eq!((none.opened.len(), none.closed), (0, 0));
    for (of, expected) in [("refusals", 30), ("divergences", 20)] {
        let index = format!("{of}_did");
        assert_eq!(entries_read(&mut client, &[&index], expected).await, expected, "{index}");
        let others = ["pkey", "standing", "open"].map(|name| format!("{of}_{name}"));
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        assert_eq!(entries_read(&mut client, &others, 0).await, 0, "{others:?}");
    }
}

/// Who waits for the lease of another asks for it on the same connection each time.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_lease_costs_no_connections() {
    let Some(database) = Database::create().await else { return };
    let first = Store::open(&database.url).await.unwrap();
    first.follow(UPSTREAM).await.unwrap();
    let waiting = Store::open(&database.url).await.unwrap();
    let mut client = database.client().await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        assert!(matches!(waiting.follow(UPSTREAM).await, Err(StoreError::LostLease(_))));
        let all = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity
            WHERE datname = current_database()";
        connections.push(client.value(all).await.unwrap());
    }
    connections.dedup();
    // One that is not given back yet when the next attempt begins is one more, once.
    assert!(connections.len() <= 2, "{connections:?}");
}

/// A comparison in one process beside a follower in another: one waits for the other, and never both.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_and_a_commit_of_two_processes_do_not_wait_for_each_other() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    store.follow(UPSTREAM).await.unwrap();
    let record = NewDivergence {
        source: "there".to_owned(),
        did: "did:plc:yysjotofetl7xxd6u3ltxpgi".to_owned(),
        kind: "missing".to_owned(),
        subject: "x".to_owned(),
        ours: None,
        theirs: None,
    };
    let seen = [record];
    let note = || store.note_divergences("there", &seen[0].did, &[], &seen, RECEIVED);
    note().await.unwrap();
    // As a commit does it: the source first, then the records.
    let mut client = database.client().await;
    client.run("BEGIN; SELECT FROM sources FOR UPDATE").await;
    let commits = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.run("UPDATE divergences SET last_seen = 1; COMMIT").await;
    };
    let (noted, ()) = tokio::join!(note(), commits);
    noted.unwrap();
}

/// The oldest refusals of a kind are not looked for among those of other kinds.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_rare_kind_go_without_a_walk_through_all_others() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    let mut client = database.client().await;
    client
        .run(&format!(
            "INSERT INTO refusals (did, kind, detail, source, line, key, received_at)
             SELECT '', CASE WHEN n <= 20000 THEN 'frequent' ELSE 'malformed' END, '', '{UPSTREAM}',
                repeat('x', 500)::bytea, sha256(n::text::bytea), 0
             FROM generate_series(1, 20100) n;
             UPDATE sources SET refused_bytes = (SELECT sum(bytes) FROM refusals);
             ANALYZE refusals"
        ))
        .await;
    store.limit_refusals(RefusalLimits { of_identity: 10_000, in_all: 20_100 * 800 });
    let refusals = vec![refusal("", b"one more")];
    store.commit(&lease, &Commit { refusals, ..Commit::default() }).await.unwrap();
    let read = entries_read(&mut client, &["refusals_kind"], 1).await;
    assert!((1..1_000).contains(&read), "the index of kinds: {read}");
    let walked = entries_read(&mut client, &["refusals_pkey"], 0).await;
    assert!(walked < 1_000, "{walked} records were looked at");
    let left = "SELECT count(*) FROM refusals WHERE kind = 'malformed'";
    assert_eq!(client.value(left).await.as_deref(), Some("100"));
}

/// How many entries of these indexes were read. A connection at rest reports it within ten seconds: so many are waited
/// for.
async fn entries_read(client: &mut Client, indexes: &[&str], expected: i64) -> i64 {
    let sql = format!(
        "SELECT sum(idx_tup_read)::int8 FROM pg_stat_user_indexes WHERE indexrelname IN ('{}')",
        indexes.join("', '")
    );
    let begun = Instant::now();
    loop {
        let read = client.value(&sql).await.unwrap().parse().unwrap();
        if read >= expected || begun.elapsed() > Duration::from_secs(20) {
            return read;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Numbers that another process gave to texts are found when they are met.
#[tokio::test(flavor = "multi_thread")]
async fn another_process_reads_what_is_interned_meanwhile() {
    let Some(database) = Database::create().await else { return };
    let log = operations(600);
    let writer = Store::open(&database.url).await.unwrap();
    let reader = Store::open(&database.url).await.unwrap();
    let (lease, _) = writer.follow(UPSTREAM).await.unwrap();
    let mut cursor = 0;
    for piece in log.chunks(200) {
        writer.commit(&lease, &commit(cursor, piece)).await.unwrap();
        assert_eq!(reader.export_by_sequence(cursor, 1000).await.unwrap(), piece);
        assert_eq!(reader.head(&piece[199].did).await.unwrap().as_ref(), piece.last());
        cursor += 200;
    }
    let mut client = database.client().await;
    let interned = client.value("SELECT count(*) FROM interned").await;
    assert_ne!(interned.as_deref(), Some("0"), "nothing was interned: the test shows nothing");

    // The one who takes over goes on with the numbers of the one before.
    writer.release(lease).await.unwrap();
    let (lease, source) = reader.follow(UPSTREAM).await.unwrap();
    let more = operations(700);
    reader.commit(&lease, &commit(source.cursor, &more[1200..])).await.unwrap();
    assert_eq!(writer.export_by_sequence(0, 2000).await.unwrap(), more);
}

/// Who meets such a number while somebody else is looking it up is not told that it is missing.
#[tokio::test(flavor = "multi_thread")]
async fn many_readers_meet_what_is_interned_at_once() {
    let Some(database) = Database::create().await else { return };
    let log = operations(100);
    let writer = Store::open(&database.url).await.unwrap();
    let (lease, _) = writer.follow(UPSTREAM).await.unwrap();
    writer.commit(&lease, &commit(0, &log)).await.unwrap();
    for _ in 0..10 {
        let reader = Store::open(&database.url).await.unwrap();
        let reads: Vec<_> = (0..12)
            .map(|number| {
                let (reader, did) = (reader.clone(), log[100 + 2 * number].did);
                tokio::spawn(async move {
                    match number % 3 {
                        0 => reader.history(&did).await.map(|read| read.len()),
                        1 => reader.histories(&[did]).await.map(|read| read.len()),
                        _ => reader.export_by_sequence(198, 2).await.map(|read| read.len()),
                    }
                })
            })
            .collect();
        for read in reads {
            assert_eq!(read.await.unwrap().unwrap(), 2);
        }
    }
}

/// While catching up COMMIT does not wait for the disk, unless it gives numbers to texts: this
/// process refers to them from then on, whatever a crash of the server takes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_interned_is_durable_also_while_catching_up() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    // Deferred triggers run when COMMIT does.
    let mut client = database.client().await;
    let noting = "CREATE TABLE noted (what text, setting text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.noted
                VALUES (TG_TABLE_NAME, current_setting('synchronous_commit'));
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER note AFTER INSERT ON interned
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
        CREATE CONSTRAINT TRIGGER note AFTER INSERT ON operations
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()";
    client.run(noting).await;
    let log = operations(10);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    store.set_durability(false).await.unwrap();
    store.commit(&lease, &commit(0, &log[..10])).await.unwrap();
    let noted = "SELECT DISTINCT what, setting FROM noted ORDER BY 1";
    let rows = client.rows(noted).await;
    let settings: Vec<_> = rows.iter().map(|row| (row.get("what"), row.get("setting"))).collect();
    let on = |what| (Some(what), Some("on"));
    assert_eq!(settings, [on("interned"), on("operations")]);

    client.run("TRUNCATE noted").await;
    store.commit(&lease, &commit(10, &log[10..11])).await.unwrap();
    let rows = client.rows(noted).await;
    assert_eq!(rows.len(), 1, "nothing new to intern was expected");
    assert_eq!((rows[0].get("what"), rows[0].get("setting")), (Some("operations"), Some("off")));
}

/// While the server is away requests fail at once; when it is back they succeed again.
#[tokio::test(flavor = "multi_thread")]
async fn connections_come_back_by_themselves() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let log = operations(10);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    store.commit(&lease, &commit(0, &log[..10])).await.unwrap();
    assert_eq!(store.head(&log[0].did).await.unwrap().as_ref(), Some(&log[1]));

    database.interrupt(true).await;
    let began = Instant::now();
    for _ in 0..200 {
        let error = store.head(&log[0].did).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        let error = store.export_by_sequence(0, 1).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        let error = store.commit(&lease, &commit(10, &log[10..])).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    database.interrupt(false).await;
    let back = async {
        while store.head(&log[0].did).await.is_err()
            || store.renew(&lease, None).await.is_err()
            // Pages are read by three connections in turn, and each has a back-off of its own.
            || store.export_by_sequence(0, 1).await.is_err()
            || store.export_by_sequence(0, 1).await.is_err()
            || store.export_by_sequence(0, 1).await.is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), back).await.unwrap();
    store.commit(&lease, &commit(10, &log[10..])).await.unwrap();
    assert_eq!(store.export_by_sequence(0, 100).await.unwrap(), log);
}

/// Whatever goes wrong in a commit, and wherever it is dropped, leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_whole_or_nothing() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let log = operations(500);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();

    let mut twice = commit(0, &log[..10]);
    twice.operations.push(log[0].clone());
    let error = store.commit(&lease, &twice).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let mut missing = commit(0, &log[..10]);
    missing.nullified = vec![(log[20].did, log[20].created_at, log[21].created_at)];
    let error = store.commit(&lease, &missing).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let error = store.commit(&lease, &commit(1, &log[..10])).await.unwrap_err();
    assert!(matches!(error, StoreError::LostLease(_)), "{error}");
    assert_eq!(store.export_by_time(None, 10).await.unwrap(), []);
    assert_eq!(store.source().await.unwrap().unwrap().cursor, 0);

    // Dropped after ever longer times, until it is through.
    let all = commit(0, &log);
    for time in longer_and_longer() {
        let ended = tokio::time::timeout(time, store.commit(&lease, &all)).await;
        let cursor = store.source().await.unwrap().unwrap().cursor;
        let stored = store.export_by_sequence(0, 2000).await.unwrap().len() as i64;
        assert_eq!(stored, cursor);
        match ended {
            Ok(ended) => ended.unwrap(),
            Err(_) if cursor == 0 => continue,
            Err(_) => {}
        }
        assert_eq!(cursor, 1000);
        break;
    }
    assert_eq!(store.export_by_sequence(0, 2000).await.unwrap(), log);
}

/// Times each of which is a tenth longer than the one before: short ones are close together, and one that is long
/// enough for the slowest machine comes soon.
fn longer_and_longer() -> impl Iterator<Item = Duration> {
    iter::successors(Some(Duration::from_micros(200)), |time| Some(time.mul_f64(1.1)))
}

/// The same of one that rewrites identities, and moves all of their numbers.
#[tokio::test(flavor = "multi_thread")]
async fn identities_are_rewritten_whole_or_not_at_all() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let log = operations(100);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    store.commit(&lease, &commit(0, &log)).await.unwrap();
    let moved: Vec<StoredOperation> = log
        .iter()
        .zip(log.iter().rev())
        .map(|(of, other)| StoredOperation { sequence: other.sequence, ..of.clone() })
        .collect();
    let rewritten = moved.chunks(2).map(|whole| Rewritten {
        did: whole[0].did,
        stored: 2,
        stored_geneses: 1,
        operations: whole.to_vec(),
    });
    let refusals = vec![refusal("did:plc:x", b"a line")];
    let all = Commit { rewritten: rewritten.collect(), refusals, ..commit(200, &[]) };
    // Dropped after ever longer times, until it is through.
    for time in longer_and_longer() {
        let ended = tokio::time::timeout(time, store.commit(&lease, &all)).await;
        // Whoever may still be at it is waited for.
        store.source().await.unwrap();
        let mut stored = store.export_by_sequence(0, 2000).await.unwrap();
        stored.sort_by_key(|of| (of.created_at, of.did));
        let refused = store.refusals(None, 0, 10).await.unwrap().len();
        let statistics = store.statistics().await.unwrap();
        assert_eq!((statistics.operations, statistics.identities), (200, 100));
        if stored == moved {
            assert_eq!(refused, 1);
            if let Ok(ended) = ended {
                ended.unwrap();
            }
            break;
        }
        assert!(stored == log && refused == 0, "half of a commit");
        assert!(ended.is_err(), "it said that it was through");
    }
}

/// A commit that is dropped at COMMIT, whose outcome nobody here has heard, keeps nobody waiting
/// who comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_in_doubt_holds_up_nothing() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let mut client = database.client().await;
    // Deferred triggers run when COMMIT does.
    let delaying = "CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(2);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER delay AFTER INSERT ON operations
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION delay()";
    client.run(delaying).await;
    let log = operations(1);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    let delayed = commit(0, &log[..1]);
    let dropped = store.commit(&lease, &delayed);
    tokio::time::timeout(Duration::from_secs(1), dropped).await.unwrap_err();

    let soon = Duration::from_secs(10);
    let after = tokio::time::timeout(soon, store.commit(&lease, &delayed)).await.unwrap();
    assert!(matches!(after, Err(StoreError::LostLease(_))), "{after:?}");
    let released = tokio::time::timeout(soon, store.release(lease)).await.unwrap();
    released.unwrap();

    // Who takes the lease has waited for the row: nobody who reads has to do it again.
    let (_, source) = store.follow(UPSTREAM).await.unwrap();
    assert_eq!(source.cursor, 1);
    client.run("BEGIN; SELECT FROM sources FOR UPDATE").await;
    let read = tokio::time::timeout(soon, store.source()).await.unwrap().unwrap();
    assert_eq!(read, Some(source));
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_the_text_forms() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let log = operations(1);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    let mut commit = commit(0, &log);
    let refusal = |did: &str, line: &'static [u8]| NewRefusal {
        cid: Some(log[0].cid()),
        ..refusal(did, line)
    };
    commit.refusals = vec![refusal("did:plc:\0é", b"{}"), refusal("é", b"\xff")];
    store.commit(&lease, &commit).await.unwrap();
    assert_eq!(store.refusals(Some("did:plc:\0é"), 0, 10).await.unwrap().len(), 1);

    let mut client = database.client().await;
    let mut text = async |sql: &str| client.value(sql).await.unwrap();
    let did = log[0].did.to_string();
    assert_eq!(text("SELECT did FROM history LIMIT 1").await, did);
    let back =
        format!("SELECT DISTINCT encode(did, 'hex') FROM operations WHERE did = plc_did('{did}')");
    assert_eq!(text(&back).await, data_encoding::HEXLOWER.encode(log[0].did.as_bytes()));
    let sql = "SELECT plc_did(plc_did('did:plc:77777777777777777777zzzz'))";
    assert_eq!(text(sql).await, "did:plc:77777777777777777777zzzz");
    assert_eq!(text("SELECT cid FROM readable_refusals LIMIT 1").await, log[0].cid().to_string());
    assert_eq!(
        text("SELECT string_agg(did || ' ' || line, ', ' ORDER BY id) FROM readable_refusals")
            .await,
        r"did:plc:\000\303\251 {}, é \377"
    );
    let sql = "SELECT to_char(min(created_at) AT TIME ZONE 'UTC',
        'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') FROM history";
    assert_eq!(text(sql).await, log[0].created_at.to_string());
    client.run("SELECT * FROM readable_divergences").await;
}

/// Of equal times the one that the others lead to is the head, and each knows who signed it.
#[tokio::test(flavor = "multi_thread")]
async fn people_read_equal_times() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let mut story = Story::seeded(9);
    let recovery = story.recovery.clone();
    let dids: Vec<_> = (0..6)
        .map(|number| {
            let identity = story.create().accepted();
            story.update(&identity).handle("middle.example").accepted();
            let last = match number % 2 {
                0 => story.update(&identity),
                _ => story.after(&identity).signed_by(&recovery),
            };
            last.handle(&format!("last{number}.example")).accepted();
            identity.did
        })
        .collect();
    let mut log = told(&story);
    for (number, history) in log.chunks_mut(3).enumerate() {
        let at = history[0].created_at;
        history.iter_mut().for_each(|operation| operation.created_at = at);
        history[1].nullified_by = (number % 2 == 1).then_some(at);
    }
    log.reverse();
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    store.commit(&lease, &commit(0, &log)).await.unwrap();

    let mut client = database.client().await;
    for (number, did) in dids.iter().enumerate() {
        let sql = format!("SELECT handle FROM plc_identity('{did}')");
        assert_eq!(client.value(&sql).await, Some(format!("last{number}.example")));
        let sql = format!("SELECT count(signer_key) FROM plc_history('{did}')");
        assert_eq!(client.value(&sql).await.as_deref(), Some("3"));
    }
    let heads = client.rows("SELECT handle FROM identities ORDER BY handle").await;
    assert_eq!(heads.len(), 6);
    assert!(heads.iter().all(|row| row.get("handle").unwrap().starts_with("last")));
    let sql = "SELECT count(*) FROM history WHERE nullified_by <> cid";
    assert_eq!(client.value(sql).await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_used_is_named_in_a_sentence() {
    let Some(database) = Database::create().await else { return };
    let sentence = async |url: &str| match Store::open(url).await {
        Err(StoreError::Unusable(sentence)) => sentence,
        other => panic!("{url}: {other:?}"),
    };
    let missing = database.url.replace("plc_test", "no_such");
    assert!(sentence(&missing).await.contains("does not exist"), "{}", sentence(&missing).await);
    let wrong = sentence("postgres://user:secret@localhost:none/plc").await;
    assert!(wrong.contains("port") && !wrong.contains("secret"), "{wrong}");
    let wrong = sentence("postgres://localhost/plc?sslmode=perhaps").await;
    assert!(wrong.contains("sslmode=perhaps"), "{wrong}");

    match Store::open_existing(&database.url).await {
        Err(StoreError::Unusable(sentence)) => assert!(sentence.contains("there is no log")),
        other => panic!("{other:?}"),
    }

    // Opened by two at once, then by one, then left by a newer version that nobody of before can read.
    let (one, other) = tokio::join!(Store::open(&database.url), Store::open(&database.url));
    one.unwrap();
    other.unwrap();
    Store::open_existing(&database.url).await.unwrap();
    let mut client = database.client().await;
    client
        .run(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'breaking later', true, '', 0)",
        )
        .await;
    assert!(sentence(&database.url).await.contains("newer version"));
}

/// A role that may do everything with the tables, but make none, opens what another has made.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_needs_no_right_to_create_tables() {
    let Some(database) = Database::create().await else { return };
    Store::open(&database.url).await.unwrap();
    let role = url::Url::parse(&database.url).unwrap().path().replace('/', "role_of_");
    let mut client = database.client().await;
    let grant = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'secret';
        REVOKE CREATE ON SCHEMA public FROM PUBLIC;
        GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
    );
    client.run(&grant).await;
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("secret")).unwrap();
    let store = Store::open(url.as_str()).await.unwrap();
    let log = operations(10);
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    store.commit(&lease, &commit(0, &log)).await.unwrap();
    assert_eq!(store.export_by_sequence(0, 100).await.unwrap(), log);

    // What it may not, may be granted any moment: nothing is damaged, and nothing is away.
    client.run(&format!("REVOKE SELECT ON operations FROM {role}")).await;
    let error = store.export_by_sequence(0, 100).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied(_)), "{error}");
    assert!(error.to_string().contains("permission denied for table operations"), "{error}");
    let command = ["export", "--database", url.as_str()];
    let ran = crate::process::run(&command);
    assert!(ran.code == Some(2) && ran.errors.contains("does not allow"), "{ran:?}");
    client.run(&format!("GRANT SELECT ON operations TO {role}")).await;
    assert_eq!(store.export_by_sequence(0, 100).await.unwrap(), log);
    client.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// As a restore leaves it that came to the rows and not to the end.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_lacks_is_found() {
    let Some(database) = Database::create().await else { return };
    let store = Store::open(&database.url).await.unwrap();
    let (lease, _) = store.follow(UPSTREAM).await.unwrap();
    store.release(lease).await.unwrap();
    assert_eq!(store.lacking().await.unwrap(), [""; 0]);
    let mut client = database.client().await;
    for (sql, lacking) in [
        (
            "ALTER TABLE interned DROP CONSTRAINT interned_pkey",
            "constraint interned.interned_pkey PRIMARY KEY (id)",
        ),
        (
            "DROP INDEX operations_sequence",
            "index CREATE UNIQUE INDEX operations_sequence ON operations ",
        ),
        ("DROP INDEX refusals_did", "index CREATE INDEX refusals_did ON refusals "),
        (
            "ALTER TABLE operations ALTER signer DROP NOT NULL",
            "column operations.signer smallint NOT NULL",
        ),
        (
            "ALTER TABLE refusals DROP CONSTRAINT refusals_key_key",
            "constraint refusals.refusals_key_key UNIQUE (key)",
        ),
        (
            "ALTER TABLE refusals ALTER id DROP IDENTITY",
            "column refusals.id bigint NOT NULL IDENTITY",
        ),
        (
            "ALTER TABLE sources DROP CONSTRAINT sources_id_check",
            "constraint sources.sources_id_check CHECK ((id = 1))",
        ),
    ] {
        client.run(sql).await;
        let found = store.lacking().await.unwrap();
        let begin = format!("the {lacking}");
        assert!(found.iter().any(|found| found.starts_with(&begin)), "{sql}: {found:?}");
    }
    let ran = crate::process::run(&["fsck", "--database", &database.url]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said =
        "damaged: the tables: the constraint interned.interned_pkey PRIMARY KEY (id) is missing";
    assert!(ran.out.contains(said), "{ran:?}");
}

/// The lease runs on the server's clock, and one follower at a time has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_follower_is_kept_out() {
    let Some(database) = Database::create().await else { return };
    let first = Store::open(&database.url).await.unwrap();
    let second = Store::open(&database.url).await.unwrap();
    let (lease, _) = first.follow(UPSTREAM).await.unwrap();
    let error = second.follow(UPSTREAM).await.unwrap_err();
    assert!(error.to_string().contains("another 10 s"), "{error}");
    let mut client = database.client().await;
    client.run("UPDATE sources SET lease_until = now()").await;
    let (taken, source) = second.follow(UPSTREAM).await.unwrap();
    assert_eq!((taken.epoch, source.cursor), (2, 0));
    for error in [
        first.renew(&lease, None).await.unwrap_err(),
        first.commit(&lease, &Commit::default()).await.unwrap_err(),
        first.set_upstream(&lease, "http://127.0.0.1:2").await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::LostLease(_)), "{error}");
    }
    first.release(lease).await.unwrap();
    second.commit(&taken, &Commit::default()).await.unwrap();
}

/// A certificate authority, and a way to have it sign for `localhost`.
pub fn authority() -> (String, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap().pem();
    (certificate, rcgen::Issuer::new(parameters, key))
}

/// `sslmode` is what libpq means by it: from `verify-ca` on the certificate is checked, from
/// `verify-full` on the name too.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_proves_who_it_is_where_that_is_asked_for() {
    let (roots, issuer) = authority();
    let (other_roots, _) = authority();
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    let server = Server::with_tls(&certificate.pem(), &key.serialize_pem());
    let Some((_server, port)) = server else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ours, others) = (file("roots", &roots), file("others", &other_roots));
    let url = |host: &str, query: &str| {
        format!("postgres://postgres:secret@{host}:{port}/postgres?{query}")
    };

    let mut client = Client::connect(&url("localhost", "")).await;
    for (name, host, query, encrypted) in [
        ("full", "localhost", format!("sslmode=verify-full&sslrootcert={ours}"), "t"),
        ("ca", "127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}"), "t"),
        ("require", "127.0.0.1", "sslmode=require".to_owned(), "t"),
        ("default", "127.0.0.1", String::new(), "t"),
        ("disable", "localhost", "sslmode=disable".to_owned(), "f"),
    ] {
        let query = format!("application_name={name}&{query}");
        let store = Store::open(&url(host, &query)).await.unwrap();
        assert_eq!(store.last_sequence().await.unwrap(), None);
        let seen = format!(
            "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = '{name}'"
        );
        assert_eq!(client.value(&seen).await.as_deref(), Some(encrypted), "{query}");
    }

    for (host, query, expected) in [
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={others}"),
            "invalid peer certificate",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={others}"),
            "invalid peer certificate",
        ),
        ("localhost", "sslmode=verify-full".to_owned(), "invalid peer certificate"),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}"), "not valid for name"),
        ("localhost", "sslmode=verify-full&sslrootcert=/no/such".to_owned(), "/no/such"),
    ] {
        match Store::open(&url(host, &query)).await {
            Err(StoreError::Unusable(sentence)) => {
                assert!(sentence.starts_with("the setting --database"), "{sentence}");
                assert!(sentence.contains(expected), "{query}: {sentence}");
                assert!(!sentence.contains("secret"), "{sentence}");
            }
            other => panic!("{query}: {other:?}"),
        }
    }
}
