//! Logs in which everything may happen to an identity, what the model makes of them, and the lines in which they may
//! come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use did_plc::Timestamp;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::Generated;
use super::builder::{RECOVERY_WINDOW, Story, Told};
use super::keys::SigningKey;
use super::set_model::{Outcome, outcomes};
use super::so_far::told;

/// Tells what happens to one identity: updates, forks, thefts, recoveries in time and too late, tombstones,
/// forgeries, orphans, and operations of one millisecond. Nobody says how any of it ends.
pub fn tell(story: &mut Story, random: &mut impl Rng) {
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

/// A log in which so much happens to each of so many identities.
pub fn log(story: &mut Story, random: &mut impl Rng, identities: usize) -> Vec<Generated> {
    for _ in 0..identities {
        tell(story, random);
    }
    let mut seen = BTreeSet::new();
    let told =
        story.log().iter().filter(|entry| seen.insert((entry.did.clone(), entry.cid.clone())));
    told.cloned().collect()
}

/// What is held of an identity: each operation with its CID, time, number, signer and what nullified it.
pub type Rows = Vec<(String, Timestamp, Option<i64>, usize, Option<Timestamp>)>;

/// What the model makes of a log: what is held of each identity, and the CIDs that are refused.
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
            let statement = statements.iter().find(|statement| statement.cid == cid);
            match (outcome, statement) {
                (Outcome::Accepted { signer, nullified_by }, Some(statement)) => {
                    let time = told(statement).created_at;
                    held.push((cid, time, Some(statement.seq), signer, nullified_by));
                }
                _ => {
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

/// The lines of a log in any order, some of them many times, in any envelope, with some among them that were
/// damaged on their way: they state the CID of another operation, and a number of none.
pub fn shuffled(log: &[Generated], random: &mut impl Rng) -> Vec<String> {
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
    lines
}
