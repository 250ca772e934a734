//! What is to be made of a set of operations, worked out in the slow and obvious way, from their JSON and
//! apart from the rules that are tested with it.

use std::collections::BTreeMap;

use did_plc::Timestamp;
use did_plc::signature::{PlainVerifier, Signature, Signed, Verifier};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Generated;
use super::so_far::RECOVERY_WINDOW;
use super::wire::dag_cbor;

/// What is to be made of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is accepted: the index of the key that signed it, and when what nullified it was created.
    Accepted { signer: usize, nullified_by: Option<Timestamp> },
    /// It is refused.
    Refused,
}

struct Accepted {
    cid: String,
    time: Timestamp,
    keys: Vec<String>,
    tombstone: bool,
    signer: usize,
    nullified_by: Option<Timestamp>,
}

/// The outcome for each CID among statements of one identity, in any order and any number of times. Each
/// operation is stated with one time.
pub fn outcomes(statements: &[Generated]) -> BTreeMap<String, Outcome> {
    let mut left: BTreeMap<String, &Generated> =
        statements.iter().map(|statement| (statement.cid.clone(), statement)).collect();
    let mut accepted: Vec<Accepted> = Vec::new();
    let mut outcomes = BTreeMap::new();
    while let Some(next) = next(&left, statements) {
        let Some(statement) = left.remove(&next) else { break };
        if let Some(new) = judge(statement, &mut accepted) {
            accepted.push(new);
        } else {
            outcomes.insert(next, Outcome::Refused);
        }
    }
    outcomes.extend(accepted.into_iter().map(|is| {
        (is.cid, Outcome::Accepted { signer: is.signer, nullified_by: is.nullified_by })
    }));
    outcomes
}

/// The one that is judged next: the earliest; of several one whose `prev` is not among them; of several the one
/// whose `prev` is the earliest; of several the one with the lowest digest.
fn next(left: &BTreeMap<String, &Generated>, all: &[Generated]) -> Option<String> {
    let time = |statement: &Generated| statement.created_at.parse::<Timestamp>().ok();
    let earliest = left.values().filter_map(|statement| time(statement)).min()?;
    let tied: Vec<&&Generated> =
        left.values().filter(|statement| time(statement) == Some(earliest)).collect();
    let waits = |statement: &Generated| {
        let prev = field(&parsed(statement), "prev");
        tied.iter().any(|other| Some(&other.cid) == prev.as_ref())
    };
    let free = tied.iter().filter(|statement| !waits(statement));
    let time_of_prev = |statement: &Generated| {
        let prev = field(&parsed(statement), "prev");
        let known = all.iter().find(|other| Some(&other.cid) == prev.as_ref());
        // Where none is known it comes last.
        known.and_then(time).map_or(i64::MAX, Timestamp::millis)
    };
    free.min_by_key(|statement| (time_of_prev(statement), Sha256::digest(&statement.signed)))
        .map(|one| one.cid.clone())
}

fn judge(statement: &Generated, accepted: &mut [Accepted]) -> Option<Accepted> {
    let operation = parsed(statement);
    let time: Timestamp = statement.created_at.parse().ok()?;
    let keys = rotation_keys(&operation);
    let tombstone = field(&operation, "type")? == "plc_tombstone";
    let new = |signer| Accepted {
        cid: statement.cid.clone(),
        time,
        keys: keys.clone(),
        tombstone,
        signer,
        nullified_by: None,
    };
    let Some(prev) = field(&operation, "prev") else {
        let is_own = did_of(&statement.signed) == statement.did;
        let may = accepted.is_empty() && is_own && !tombstone;
        return may.then(|| signer(&operation, &keys)).flatten().map(new);
    };
    let at = accepted.iter().position(|before| before.cid == prev)?;
    if accepted[at].nullified_by.is_some() || accepted[at].tombstone {
        return None;
    }
    let overruled: Vec<usize> =
        (at + 1..accepted.len()).filter(|&later| accepted[later].nullified_by.is_none()).collect();
    let mut allowed = accepted[at].keys.clone();
    if let Some(&first) = overruled.first() {
        allowed.truncate(accepted[first].signer);
        if time > accepted[first].time + RECOVERY_WINDOW {
            return None;
        }
    }
    let signer = signer(&operation, &allowed)?;
    for index in overruled {
        accepted[index].nullified_by = Some(time);
    }
    Some(new(signer))
}

fn signer(operation: &Value, keys: &[String]) -> Option<usize> {
    let signature = Signature::parse(&field(operation, "sig")?)?;
    let mut unsigned = operation.clone();
    unsigned.as_object_mut()?.remove("sig");
    let digest = Sha256::digest(dag_cbor(&unsigned)).into();
    for (index, key) in keys.iter().enumerate() {
        // A key that is none ends the trial.
        let signed = Signed { digest, signature };
        if PlainVerifier.find_signer(&[key], &signed).ok()?.is_some() {
            return Some(index);
        }
    }
    None
}

fn rotation_keys(operation: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match operation.get("rotationKeys").and_then(Value::as_array) {
        Some(keys) => keys.iter().filter_map(text).collect(),
        None => ["recoveryKey", "signingKey"]
            .into_iter()
            .filter_map(|name| operation.get(name).and_then(text))
            .collect(),
    }
}

fn did_of(signed: &[u8]) -> String {
    did_plc::Did::of_genesis(signed).to_string()
}

fn parsed(statement: &Generated) -> Value {
    serde_json::from_str(&statement.operation_json).unwrap_or_default()
}

fn field(operation: &Value, name: &str) -> Option<String> {
    operation.get(name).and_then(Value::as_str).map(str::to_owned)
}
