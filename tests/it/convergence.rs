//! What the store holds depends on what exists, and not on how it came: any order, any batches, any number of
//! times, in any envelope, with the process killed in between, on both backends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use did_plc::Timestamp;
use did_plc::signature::Verifier;
use plc_curve::{FastVerifier, Tables};
use plc_replica::judge::{BatchJudge, Course, Cut, Decoded, Lines, NotJson};
use plc_replica::store::{NewRefusal, Store, StoredOperation};
use plc_testkit::Generated;
use plc_testkit::builder::{RECOVERY_WINDOW, Story, Told};
use plc_testkit::keys::SigningKey;
use plc_testkit::set_model::{Outcome, outcomes};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::sync::watch;

use crate::contract::Place;

const UPSTREAM: &str = "https://plc.example";
/// Identities whose stories are told at once, in one log.
const IDENTITIES: usize = 120;
/// How often that log is shuffled for each backend, unless PLC_SHUFFLES says otherwise: with 420 of them
/// 100,800 stories come in another order than they happened.
const SHUFFLES: usize = 6;

fn shuffles() -> usize {
    std::env::var("PLC_SHUFFLES").ok().and_then(|text| text.parse().ok()).unwrap_or(SHUFFLES)
}

/// Tells what happens to one identity: updates, forks, thefts, recoveries in time and too late, tombstones,
/// forgeries, orphans, and operations of one millisecond. Nobody says how any of it ends.
fn tell(story: &mut Story, random: &mut ChaCha20Rng) {
    let keys: Vec<SigningKey> = (0..3).map(|_| story.k256()).collect();
    let thief = story.k256();
    let genesis = story.create().rotation_keys(&keys).signed_by(&keys[0]).accepted();
    let mut told: Vec<Told> = vec![genesis.clone()];
    for step in 0..random.random_range(0..14) {
        let mut standing = standing(story, &told);
        let head = standing.pop().unwrap_or_else(|| genesis.clone());
        // What is overruled is mostly recent.
        let branch = standing.last().unwrap_or(&head).clone();
        let any = told.choose(random).unwrap_or(&genesis).clone();
        let (prev, recovers) = &match random.random_range(0..8) {
            0 => (any, false),
            1..4 => (branch, true),
            _ => (head, false),
        };
        let minute = Duration::from_secs(60);
        let later = match random.random_range(0..16) {
            0 => Duration::ZERO,
            1 => RECOVERY_WINDOW,
            2 => RECOVERY_WINDOW + Duration::from_millis(1),
            3 => RECOVERY_WINDOW - minute,
            _ => minute * random.random_range(1..600),
        };
        let signer = match random.random_range(0..16) {
            0 => &thief,
            1..3 => &keys[0],
            3..8 if *recovers => &keys[0],
            8..11 => &keys[1],
            _ => &keys[2],
        };
        let mut lists = vec![keys.clone(); 12];
        lists.extend([
            vec![keys[1].clone(), keys[0].clone()],
            vec![thief.clone()],
            vec![keys[2].clone(), thief.clone(), keys[2].clone()],
        ]);
        let list = lists.choose(random).unwrap_or(&keys).clone();
        // Mostly after all that has happened, so that most of it may be accepted.
        let newest = told.iter().max_by_key(|told| told.created_at).unwrap_or(&genesis);
        let any = told.choose(random).unwrap_or(&genesis);
        let since = if random.random_bool(0.8) { newest } else { any }.clone();
        let handle = format!("step{step}.example");
        let draft = match random.random_range(0..20) {
            0 => story.tombstone_after(prev),
            1 => story
                .after(prev)
                .prev("bafyreib7ucpqyrwzqsrkusddepb4ap4ryqu5tk66jamh5hh3bblcvxj4bq"),
            2 => story.after(prev).handle(&handle).forged_signature(),
            3 => story.after(prev).handle(&handle).prev_null(),
            4 => story.after(prev).handle(&handle).padded_signature(),
            _ => story.after(prev).handle(&handle).rotation_keys(&list),
        };
        told.push(draft.signed_by(signer).later_than(&since, later).accepted());
    }
}

/// The operations that stand, as far as has been told.
fn standing(story: &Story, told: &[Told]) -> Vec<Told> {
    let did = &told[0].did;
    let entries: Vec<Generated> =
        story.log().iter().filter(|entry| &entry.did == did).cloned().collect();
    let outcomes = outcomes(&entries);
    let stands = |told: &&Told| {
        matches!(outcomes.get(&told.cid), Some(Outcome::Accepted { nullified_by: None, .. }))
    };
    let mut standing: Vec<Told> = told.iter().filter(stands).cloned().collect();
    standing.sort_by_key(|told| told.created_at);
    standing
}

/// A log of many identities.
pub fn log(seed: u64) -> Vec<Generated> {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    let mut story = Story::seeded(seed);
    for _ in 0..IDENTITIES {
        tell(&mut story, &mut random);
    }
    let mut seen = BTreeSet::new();
    let told =
        story.log().iter().filter(|entry| seen.insert((entry.did.clone(), entry.cid.clone())));
    told.cloned().collect()
}

/// What is held of an identity: each operation with its CID, time, number, signer and what nullified it.
pub type Rows = Vec<(String, Timestamp, Option<i64>, u16, Option<Timestamp>)>;

/// What the model makes of a log.
pub fn modelled(log: &[Generated]) -> (BTreeMap<String, Rows>, BTreeSet<String>) {
    let mut of_each: BTreeMap<&str, Vec<Generated>> = BTreeMap::new();
    for entry in log {
        of_each.entry(&entry.did).or_default().push(entry.clone());
    }
    let mut rows = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for (did, statements) in of_each {
        let mut held = Rows::new();
        for (cid, outcome) in outcomes(&statements) {
            let statement = statements.iter().find(|statement| statement.cid == cid).unwrap();
            match outcome {
                Outcome::Accepted { signer, nullified_by } => held.push((
                    cid,
                    statement.created_at.parse().unwrap(),
                    Some(statement.seq),
                    u16::try_from(signer).unwrap(),
                    nullified_by,
                )),
                Outcome::Refused => {
                    refused.insert(cid);
                }
            }
        }
        if !held.is_empty() {
            held.sort_by_key(|row| (row.1, row.0.clone()));
            rows.insert(did.to_owned(), held);
        }
    }
    (rows, refused)
}

async fn held(store: &Store) -> BTreeMap<String, Rows> {
    let mut rows: BTreeMap<String, Rows> = BTreeMap::new();
    let mut after = None;
    loop {
        let page: Vec<StoredOperation> = store.next_histories(after, 1_000).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.did);
        for operation in page {
            rows.entry(operation.did.to_string()).or_default().push((
                operation.cid().to_string(),
                operation.created_at,
                operation.sequence,
                operation.signer,
                operation.nullified_by,
            ));
        }
    }
    for held in rows.values_mut() {
        held.sort_by_key(|row| (row.1, row.0.clone()));
    }
    rows
}

/// What stands on record as refused: operations. A damaged line is refused where its operation is not known yet, and
/// is a difference where it is.
async fn refused(store: &Store) -> Vec<NewRefusal> {
    let kept = store.refusals(None, 0, 1_000_000).await.unwrap().into_iter();
    let standing = kept.filter(|kept| kept.accepted_at.is_none()).map(|kept| kept.refusal);
    let mut operations: Vec<NewRefusal> =
        standing.filter(|refusal| refusal.kind != "cid-mismatch").collect();
    operations.sort_by_key(|refusal| refusal.key);
    operations
}

/// Takes lines in, in batches of any size, with the process killed now and then: what was judged and not
/// committed is lost, and comes again.
struct Taking {
    place: Place,
    verifier: Arc<dyn Verifier>,
    random: ChaCha20Rng,
}

impl Taking {
    async fn take(&mut self, mut lines: Vec<Bytes>) -> Store {
        lines.reverse();
        'process: loop {
            let store = self.place.open().await;
            let (lease, source) = store.follow(UPSTREAM).await.unwrap();
            let (committed, receiver) = watch::channel(0);
            let verifier = Arc::clone(&self.verifier);
            let mut judge = BatchJudge::new(store.clone(), verifier, UPSTREAM.to_owned(), receiver)
                .await
                .unwrap();
            while !lines.is_empty() {
                let size = *[1, 2, 7, 60, 400].choose(&mut self.random).unwrap();
                let batch = lines.split_off(lines.len().saturating_sub(size));
                let course =
                    if self.random.random_bool(0.5) { Course::Again } else { Course::Elsewhere };
                let decoded = Decoded::from_lines(batch.iter().rev().cloned().collect()).await;
                let received_at = Timestamp::from_millis(1_800_000_000_000);
                let taken = Lines { decoded, received_at, caught_up: false, course, source: None };
                let cut = Cut::of(taken, source.cursor, NotJson::Keep, false);
                let prepared = judge.judge(cut.part).await.unwrap();
                if self.random.random_bool(0.05) {
                    // Killed before the commit: whoever comes next has all of it still to come.
                    lines.extend(batch);
                    store.release(lease).await.unwrap();
                    continue 'process;
                }
                store.commit(&lease, &prepared.commit).await.unwrap();
                committed.send_replace(prepared.batch);
            }
            store.release(lease).await.unwrap();
            return store;
        }
    }
}

/// The lines of a log in any order, some of them many times, in any envelope, with some among them that were
/// damaged on their way: they state the CID of another operation, and a number of none.
fn shuffled(log: &[Generated], random: &mut ChaCha20Rng) -> Vec<Bytes> {
    let mut lines = Vec::new();
    for entry in log {
        let times = if random.random_bool(0.1) { random.random_range(2..5) } else { 1 };
        for time in 0..times {
            // Once at least with its number.
            lines.push(match random.random_range(0..4) {
                0 if time > 0 => entry.timestamped_line(),
                1 if time > 0 => entry.audit_entry(),
                2 => entry.stream_message(),
                _ => entry.sequenced_line(),
            });
        }
    }
    for _ in 0..log.len() / 10 {
        let (Some(entry), Some(other)) = (log.choose(random), log.choose(random)) else { break };
        let seq = entry.seq + 100_000;
        let damaged = Generated { cid: other.cid.clone(), seq, ..entry.clone() };
        if other.cid != entry.cid {
            lines.insert(random.random_range(0..lines.len()), damaged.sequenced_line());
        }
    }
    match random.random_range(0..5) {
        0 => lines.reverse(),
        1 => {}
        _ => lines.shuffle(random),
    }
    lines.into_iter().map(Bytes::from).collect()
}

async fn any_order_leads_to_the_same(place: impl AsyncFn() -> Option<Place>) {
    let verifier: Arc<dyn Verifier> = Arc::new(FastVerifier::new(Tables::On));
    let mut stories = 0;
    let first = std::env::var("PLC_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + shuffles().div_ceil(6) as u64 {
        let log = log(seed);
        let (expected, expected_refused) = modelled(&log);
        let nullified = expected.values().flatten().filter(|row| row.4.is_some()).count();
        let (operations, refusals) = (expected.values().flatten().count(), expected_refused.len());
        assert!(
            nullified > IDENTITIES / 8 && refusals > IDENTITIES / 2 && operations > 2 * IDENTITIES,
            "the stories are too tame: {operations} operations, {nullified} nullified, {refusals} refused"
        );
        let mut first_refused = None;
        for order in 0..6 {
            let mut random = ChaCha20Rng::seed_from_u64(1_000 * seed + order);
            let lines = shuffled(&log, &mut random);
            let Some(place) = place().await else { return };
            let mut taking = Taking { place, verifier: Arc::clone(&verifier), random };
            let store = taking.take(lines).await;
            let held = held(&store).await;
            for (did, rows) in &expected {
                assert_eq!(held.get(did), Some(rows), "{did}, seed {seed}, order {order}");
            }
            assert_eq!(held.len(), expected.len());
            let refused = refused(&store).await;
            let cids = refused.iter().filter_map(|refusal| Some(refusal.cid?.to_string()));
            let cids: BTreeSet<String> = cids.collect();
            assert_eq!(cids, expected_refused, "seed {seed}, order {order}");
            let first = first_refused.get_or_insert_with(|| refused.clone());
            for (refused, first) in refused.iter().zip(&*first) {
                assert_eq!(refused, first, "seed {seed}, order {order}");
            }
            assert_eq!(refused.len(), first.len());
            let mut damages = Vec::new();
            plc_replica::audit::fsck::check(
                &store,
                &*verifier,
                |damage| damages.push(damage),
                |_| (),
            )
            .await
            .unwrap();
            assert_eq!(damages, []);
            stories += IDENTITIES;
        }
    }
    println!("{stories} stories in another order than they happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_leads_to_the_same_on_sqlite() {
    any_order_leads_to_the_same(async || Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_leads_to_the_same_on_postgres() {
    any_order_leads_to_the_same(Place::postgres).await;
}
