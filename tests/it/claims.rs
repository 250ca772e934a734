//! The index of claims, on each backend: whatever comes in which order, it has the same pairs as a
//! scan of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use did_plc::claim::{ClaimKind, Value, claims};
use did_plc::signature::PlainVerifier;
use did_plc::{Did, Operation};
use multibase::Base;
use plc_replica::audit::fsck;
use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;
use plc_replica::store::claims::pairs;
use plc_replica::store::{Commit, Lease, Store, StoredOperation};
use plc_testkit::Generated;
use plc_testkit::builder::Story;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::{Value as Json, json};

use crate::contract::stored;
use crate::follow::{lives_with_attacks, places};
use crate::process::program;
use crate::replica::Replica;
use plc_testkit::fake_upstream::FakeUpstream;
use plc_testkit::postgres::Client;

const UPSTREAM: &str = "https://plc.example";

/// Identities that share hosts and keys, and move.
fn told(seed: u64, identities: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(seed);
    let host = |n: usize| format!("https://pds{}.example.com", n % 3);
    let told: Vec<_> = (0..identities).map(|n| story.create().host(&host(n)).accepted()).collect();
    for (n, identity) in told.iter().enumerate() {
        story.update(identity).host(&host(n + 1)).accepted();
        story.update(identity).handle(&format!("moved{n}.example.com")).accepted();
    }
    story.log().iter().map(stored).collect()
}

/// All operations, those without a number too.
pub async fn everything(store: &Store) -> Vec<StoredOperation> {
    store.next_histories(None, 10_000_000).await.unwrap()
}

/// Compares the index with a scan of the log, up to where it says that it is.
pub async fn assert_index(store: &Store) {
    let held = everything(store).await;
    let Some(index) = store.claims_index().await.unwrap() else { return };
    let has = |operation: &&StoredOperation| match operation.sequence {
        None => index.begun,
        Some(sequence) => sequence <= index.sequence,
    };
    let expected = pairs(held.iter().filter(has)).unwrap();
    assert_eq!(store.absent_claims(&expected).await.unwrap(), [0i64; 0], "{index:?}");
    if index.is_complete() {
        assert_eq!(index.pairs, expected.len() as u64, "more, or counted wrongly");
    }
}

/// Asks for every value that was ever claimed, in pages.
async fn assert_found(store: &Store) {
    let mut claimants: BTreeMap<Value<'static>, BTreeSet<Did>> = BTreeMap::new();
    let held = everything(store).await;
    for stored in &held {
        let operation = Operation::read(&stored.signed).unwrap();
        for (value, _) in claims(&operation) {
            let value = Value { kind: value.kind, text: value.text.into_owned().into() };
            claimants.entry(value).or_default().insert(stored.did);
        }
    }
    for (value, dids) in &claimants {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = store.claimants(value, after, 2).await.unwrap();
            found.extend(page.dids);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert!(found.is_sorted_by(|a, b| a < b), "{value:?}: {found:?}");
        let found = BTreeSet::from_iter(found);
        assert!(dids.is_subset(&found), "{value:?}");
    }
    let nobody = Value::asked(ClaimKind::Handle, "nobody.example").unwrap();
    assert_eq!(store.claimants(&nobody, None, 10).await.unwrap().dids, []);
}

async fn build(store: &Store, steps: usize, limit: usize) {
    for _ in 0..steps {
        store.build_claims(limit).await.unwrap();
    }
}

async fn commit(store: &Store, lease: &Lease, commit: Commit) {
    let cursor_before = store.source().await.unwrap().unwrap().cursor;
    let last = commit.operations.iter().filter_map(|operation| operation.sequence).max();
    let cursor_after = last.unwrap_or(0).max(cursor_before);
    let commit = Commit { cursor_before, cursor_after, ..commit };
    store.commit(lease, &commit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_kept_or_built_or_both() {
    let operations = told(51, 12);
    let count = operations.len();
    for place in places().await {
        let store = Store::open(&place.url).await.unwrap();
        assert_eq!(store.claims_index().await.unwrap(), None);
        store.keep_claims().await.unwrap();
        assert_eq!(store.claims_index().await.unwrap(), None, "nothing is followed");
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let commit = async |store: &Store, places: std::ops::Range<usize>| {
            let operations = operations[places].to_vec();
            commit(store, &lease, Commit { operations, ..Commit::default() }).await;
            assert_index(store).await;
        };
        // Without one, which is how it begins.
        commit(&store, 0..9).await;
        store.keep_claims().await.unwrap();
        assert!(!store.claims_index().await.unwrap().unwrap().is_complete());
        build(&store, 2, 1).await;
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        assert_index(&store).await;
        // Kept by the commits; not while the log is caught up.
        commit(&store, 9..14).await;
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        store.set_durability(false).await.unwrap();
        commit(&store, 14..20).await;
        let behind = store.claims_index().await.unwrap().unwrap();
        assert_eq!((behind.sequence, behind.highest), (14, 20));
        store.set_durability(true).await.unwrap();
        commit(&store, 20..23).await;
        assert_eq!(store.claims_index().await.unwrap().unwrap().sequence, 14, "there is a gap");
        build(&store, 1, 1000).await;
        commit(&store, 23..25).await;
        assert_eq!(store.claims_index().await.unwrap().unwrap().sequence, 25);
        store.release(lease.clone()).await.unwrap();
        drop(store);
        // A process that does not keep it leaves it behind.
        let store = Store::open(&place.url).await.unwrap();
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let commit = async |store: &Store, places: std::ops::Range<usize>| {
            let operations = operations[places].to_vec();
            self::commit(store, &lease, Commit { operations, ..Commit::default() }).await;
            assert_index(store).await;
        };
        commit(&store, 25..30).await;
        assert_eq!(store.claims_index().await.unwrap().unwrap().sequence, 25);
        store.keep_claims().await.unwrap();
        build(&store, 1, 2).await;
        commit(&store, 30..count).await;
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        assert_found(&store).await;
    }
}

/// Commits of any kind in any order, with builders in between: what is said to be in the index is.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_passed_over() {
    for seed in 0..6 {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let mut operations = told(60 + seed, 10);
        // Some have no number at first, some come late, some far ahead.
        let mut unnumbered: Vec<StoredOperation> = Vec::new();
        for operation in &mut operations {
            if random.random_bool(0.2) {
                let without = StoredOperation { sequence: None, ..operation.clone() };
                unnumbered.push(without);
                operation.sequence = operation.sequence.map(|sequence| sequence + 1000);
            }
        }
        let renumbered: Vec<StoredOperation> =
            operations.extract_if(.., |of| of.sequence > Some(1000)).collect();
        for place in operations.len() / 3..operations.len() / 2 {
            let other = random.random_range(0..operations.len());
            operations.swap(place, other);
        }
        for place in places().await {
            let mut store = Store::open(&place.url).await.unwrap();
            let (mut lease, _) = store.follow(UPSTREAM).await.unwrap();
            let mut left = operations.clone();
            left.reverse();
            let (mut without, mut numbers) = (unnumbered.clone(), renumbered.clone());
            let mut held_without: Vec<StoredOperation> = Vec::new();
            while !left.is_empty() || !without.is_empty() {
                match random.random_range(0..8) {
                    0 => store.keep_claims().await.unwrap(),
                    1 | 2 => store.build_claims(random.random_range(1..9)).await.unwrap(),
                    3 => store.set_durability(random.random_bool(0.5)).await.unwrap(),
                    4 => {
                        store.release(lease).await.unwrap();
                        store = Store::open(&place.url).await.unwrap();
                        lease = store.follow(UPSTREAM).await.unwrap().0;
                    }
                    _ => {
                        let count = random.random_range(1..5).min(left.len());
                        let mut new = left.split_off(left.len() - count);
                        if random.random_bool(0.3) {
                            let count = random.random_range(0..4).min(without.len());
                            let more = without.split_off(without.len() - count);
                            held_without.extend(more.iter().cloned());
                            new.extend(more);
                        }
                        new.shuffle(&mut random);
                        let mut numbered = Vec::new();
                        if random.random_bool(0.3) {
                            held_without.retain(|held| {
                                let is_it = |of: &StoredOperation| {
                                    (of.did, of.created_at) == (held.did, held.created_at)
                                };
                                let fresh = new.iter().any(is_it);
                                match numbers.iter().position(is_it).filter(|_| !fresh) {
                                    Some(at) => {
                                        let of = numbers.swap_remove(at);
                                        let number = of.sequence.unwrap();
                                        numbered.push((of.did, of.created_at, number));
                                        false
                                    }
                                    None => true,
                                }
                            });
                        }
                        let new = Commit { operations: new, numbered, ..Commit::default() };
                        commit(&store, &lease, new).await;
                    }
                }
                assert_index(&store).await;
            }
            store.keep_claims().await.unwrap();
            for _ in 0..200 {
                if store.claims_index().await.unwrap().unwrap().is_complete() {
                    break;
                }
                store.build_claims(3).await.unwrap();
                assert_index(&store).await;
            }
            assert!(store.claims_index().await.unwrap().unwrap().is_complete());
            assert_index(&store).await;
            assert_found(&store).await;
        }
    }
}

/// Operations that come late, into the part of the log that the builder is reading just then.
#[tokio::test(flavor = "multi_thread")]
async fn a_builder_and_a_follower_at_once() {
    let mut operations = told(81, 500);
    for seed in 0..8 {
        operations.shuffle(&mut ChaCha20Rng::seed_from_u64(seed));
        let (early, late) = operations.split_at(operations.len() - 60);
        for place in places().await {
            let store = Store::open(&place.url).await.unwrap();
            let (lease, _) = store.follow(UPSTREAM).await.unwrap();
            commit(&store, &lease, Commit { operations: early.to_vec(), ..Commit::default() })
                .await;
            store.keep_claims().await.unwrap();
            store.set_durability(false).await.unwrap();
            let building = tokio::spawn({
                let store = store.clone();
                async move {
                    loop {
                        store.build_claims(1).await.unwrap();
                    }
                }
            });
            for operation in late {
                let operations = vec![operation.clone()];
                commit(&store, &lease, Commit { operations, ..Commit::default() }).await;
            }
            building.abort();
            assert!(building.await.unwrap_err().is_cancelled());
            assert_index(&store).await;
            build(&store, 5, 10_000).await;
            assert!(store.claims_index().await.unwrap().unwrap().is_complete());
            assert_index(&store).await;
        }
    }
}

/// What is found to be wrong with the index. The story's times of receipt and signers are not those
/// of a follower, which is told as well.
async fn damages(store: &Store) -> usize {
    let mut damages = Vec::new();
    fsck::check(store, &PlainVerifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    damages.iter().filter(|damage| damage.reason.contains("index of claims")).count()
}

/// Asks for JSON.
async fn ask(replica: &Replica, path: &str) -> (u16, Json) {
    let answer = replica.get(path).await;
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

/// `(did, role, from, until, nullified)` of each claim.
fn rows(body: &Json) -> Vec<(String, String, String, Option<String>, bool)> {
    let text = |claim: &Json, name: &str| claim[name].as_str().map(str::to_owned);
    let row = |claim: &Json| {
        let from = text(claim, "from").unwrap();
        let (did, role) = (text(claim, "did").unwrap(), text(claim, "role").unwrap());
        (did, role, from, text(claim, "until"), claim["nullified"].as_bool().unwrap())
    };
    body["claims"].as_array().unwrap().iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_looked_up_with_their_times() {
    let mut story = Story::seeded(71);
    let (thief, recovery) = (story.k256(), story.recovery.clone());
    let alice = story.create().handle("Alice.example.com").accepted();
    let moved = story.update(&alice).host("https://PDS2.example.com/x").accepted();
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    story.update(&alice).signed_by(&thief).handle("bob.example.com").accepted();
    let back = story.after(&moved).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    let bob = story.create().handle("bob.example.com").accepted();
    let renamed = story.update(&bob).handle("robert.example.com").accepted();
    let by = back.created_at;
    let operations: Vec<_> = story
        .log()
        .iter()
        .map(|told| StoredOperation {
            nullified_by: told.nullified_in_the_end.then_some(by),
            ..stored(told)
        })
        .collect();
    for place in places().await {
        let mut replica =
            Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
        let (status, body) = ask(&replica, "/_lookup?handle=alice.example.com").await;
        assert_eq!(status, 501);
        assert!(body["message"].as_str().unwrap().contains("--index"), "{body}");
        let page = replica.get("/explore?q=alice.example.com").await;
        assert!(page.status == 404 && page.text().contains("--index"), "{}", page.text());

        replica.commit(operations[..3].to_vec()).await;
        replica.state.store.keep_claims().await.unwrap();
        let (status, body) = ask(&replica, "/_lookup?handle=alice.example.com").await;
        assert_eq!((status, &body["complete"], &body["sequence"]), (200, &json!(false), &json!(0)));
        let page = replica.get("/explore?q=nobody.example.com").await;
        assert!(page.status == 404 && page.text().contains("being built"));
        build(&replica.state.store, 2, 1000).await;
        replica.commit(operations[3..].to_vec()).await;
        let (_, body) = ask(&replica, "/_lookup?handle=nobody.example").await;
        assert_eq!(body["complete"], false, "the log was never read to its end");
        replica.caught_up();

        let (status, body) = ask(&replica, "/_lookup?handle=@ALICE.example.com").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({
                "complete": true, "sequence": 7, "next": null,
                "claims": [{
                    "did": alice.did, "kind": "handle", "value": "alice.example.com",
                    "role": "alsoKnownAs/0", "from": alice.created_at.to_string(), "until": null,
                    "cid": alice.cid, "nullified": false,
                }],
            })
        );
        let bobs = |current: &str| format!("/_lookup?handle=bob.example.com{current}");
        let (_, body) = ask(&replica, &bobs("")).await;
        let mut found = rows(&body);
        found.sort_by_key(|row| row.2.clone());
        let at = |told: &Generated| told.created_at.clone();
        let role = || "alsoKnownAs/0".to_owned();
        let thieving = &story.log()[3];
        assert_eq!(
            found,
            [
                (alice.did.clone(), role(), at(thieving), Some(back.created_at.to_string()), true),
                (
                    bob.did.clone(),
                    role(),
                    bob.created_at.to_string(),
                    Some(renamed.created_at.to_string()),
                    false
                ),
            ]
        );
        assert_eq!(rows(&ask(&replica, &bobs("&current=true")).await.1).len(), 0);
        assert_eq!(rows(&ask(&replica, &bobs("&current=false")).await.1).len(), 2);
        let (_, body) = ask(&replica, "/_lookup?host=https://pds2.example.com&current=true").await;
        assert_eq!(rows(&body).len(), 1);
        // Also as it stands in a DID document, in whichever base.
        let multikey = thief.did_key().trim_start_matches("did:key:");
        let in_base_64 = multibase::encode(Base::Base64Url, multibase::decode(multikey).unwrap().1);
        for key in [thief.did_key(), multikey, &in_base_64] {
            let (_, body) = ask(&replica, &format!("/_lookup?key={key}")).await;
            assert_eq!(rows(&body)[0].1, "rotationKeys/0", "{key}");
        }
        // Page by page: each identity once.
        let key = recovery.did_key();
        let (mut dids, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/_lookup?key={key}&limit=1{cursor}");
            let (_, body) = ask(&replica, &path).await;
            dids.extend(rows(&body).into_iter().map(|row| row.0));
            match body["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        dids.dedup();
        let mut both = vec![alice.did.clone(), bob.did.clone()];
        both.sort_by_key(|did| did.parse::<Did>().unwrap());
        assert_eq!(dids, both);

        for bad in [
            "",
            "?handle=a&host=b",
            "?handle=at://",
            "?handle=a&handle=b",
            "?handle=a&limit=0",
            "?handle=a&limit=x",
            "?handle=a&cursor=x",
            "?handle=a&current=x",
        ] {
            let (status, body) = ask(&replica, &format!("/_lookup{bad}")).await;
            assert_eq!(status, 400, "{bad}: {body}");
        }

        let page = replica.get("/explore?q=bob.example.com").await;
        assert_eq!(page.status, 200);
        let text = page.text();
        assert!(text.contains("Once claimed as a handle") && text.contains("nullified"), "{text}");
        assert!(text.contains(&format!("/explore/{}", bob.did)));
        let page = replica.get("/explore?q=pds.example.com").await;
        let now = page.text().find("Named as the host").unwrap();
        assert!(now < page.text().find("Once named as the host").unwrap());
        let page = replica.get("/explore?q=%3Cscript%3E%22").await;
        assert!(page.status == 404 && page.text().contains("Nobody claims that"));
        assert!(!page.text().contains("<script"));
        assert_eq!(replica.get("/").await.status, 200);
        assert_eq!(damages(&replica.state.store).await, 0);
        // A row that is gone is a claim that is not found.
        let sql = "DELETE FROM claims WHERE pair = (SELECT max(pair) FROM claims)";
        match place.url.strip_prefix("sqlite://") {
            Some(path) => rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(),
            None => Client::connect(&place.url).await.run(sql).await,
        }
        assert!(damages(&replica.state.store).await > 0);
    }
}

/// A replica as a process of its own.
fn serve(url: &str, upstream: &str, index: &str) -> Child {
    program(&[])
        .args(["serve", "--listen", "127.0.0.1:0", "--upstream-requests-per-minute", "0"])
        .args(["--audit-requests-per-minute", "0", "--read-through", "off", "--log", "error"])
        .args(["--database", url, "--upstream", upstream])
        .env("PLC_INDEX", index)
        .spawn()
        .unwrap()
}

async fn wait_for(store: &Store, cursor: i64, indexed: bool) {
    let begun = Instant::now();
    loop {
        let source = store.source().await.unwrap();
        let index = store.claims_index().await.unwrap();
        let complete = index.is_some_and(|index| index.is_complete());
        if source.is_some_and(|source| source.cursor >= cursor) && complete >= indexed {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "not there within a minute: {index:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One that has kept an index from the beginning; and one that had none, then one, and was killed
/// again and again: both have what a scan of the log says.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_survives_its_process() {
    let log = lives_with_attacks(72, 400);
    let last = log.last().unwrap().seq;
    for (calm, killed) in places().await.into_iter().zip(places().await) {
        let upstream = FakeUpstream::start([]).await;
        let mut telling = log.iter().cloned();
        let mut steady = serve(&calm.url, &upstream.url(), "on");
        upstream.append_all(telling.by_ref().take(100));
        let stores =
            [Store::open(&calm.url).await.unwrap(), Store::open(&killed.url).await.unwrap()];
        let mut without = serve(&killed.url, &upstream.url(), "off");
        wait_for(&stores[1], 50, false).await;
        without.kill().unwrap();
        without.wait().unwrap();
        for kill in 0..4 {
            let index = if kill == 2 { "off" } else { "on" };
            let mut child = serve(&killed.url, &upstream.url(), index);
            upstream.append_all(telling.by_ref().take(40));
            tokio::time::sleep(Duration::from_millis(300 + 400 * kill)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            assert_index(&stores[1]).await;
        }
        upstream.append_all(telling);
        let mut finished = serve(&killed.url, &upstream.url(), "on");
        let mut pairs = Vec::new();
        for store in &stores {
            // What is refused at the end moves the cursor too.
            wait_for(store, last, true).await;
            assert_index(store).await;
            assert_found(store).await;
            pairs.push(store.claims_index().await.unwrap().unwrap().pairs);
        }
        assert_eq!(pairs[0], pairs[1]);
        for child in [&mut steady, &mut finished] {
            Command::new("kill").arg(child.id().to_string()).status().unwrap();
            assert!(child.wait().unwrap().success());
        }
    }
}
