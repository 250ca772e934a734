//! Operations that are submitted to the fake upstream: it takes what the directory takes, and refuses the rest in
//! the directory's words.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use did_plc::chain::Chain;
use did_plc::entry::Received;
use did_plc::json::write_operation;
use did_plc::signature::PlainVerifier;
use did_plc::submission::{RateLimits, Rejection, Submission, SubmissionLimits};
use did_plc::{Did, Refusal, Timestamp};

use super::entry::LogEntry;
use super::state::{Shared, Story};
use crate::wire::json_string;

/// What is answered to an operation: the status, the media type and the body.
pub(super) type Verdict = (u16, &'static str, String);

/// Takes an operation into the log, or refuses it.
pub(super) fn submit(shared: &Arc<Shared>, did: &str, body: &Bytes) -> Verdict {
    let taken = {
        let mut story = shared.story();
        take(&mut story, did, body)
    };
    match taken {
        Ok(()) => {
            shared.version.send_modify(|version| *version += 1);
            (200, "text/plain; charset=utf-8", "OK".to_owned())
        }
        Err(rejection) => {
            let message = json_string(&rejection.to_string());
            (400, "application/json; charset=utf-8", format!(r#"{{"message":{message}}}"#))
        }
    }
}

fn take(story: &mut Story, did: &str, body: &Bytes) -> Result<(), Rejection> {
    let text = String::from_utf8_lossy(body);
    let submission = Submission::read(&text, &SubmissionLimits::default())?;
    let Ok(known) = did.replace("%3A", ":").parse::<Did>() else {
        let refusal = Refusal::GenesisMismatch { derived: submission.creates() };
        return Err(submission.words_for(&refusal));
    };
    let chain = chain(story, &known);
    let last = chain.links().last().map(|link| link.created_at + Duration::from_millis(1));
    let now = Timestamp::from(SystemTime::now());
    let now = last.map_or(now, |last| last.max(now));
    let acceptance = submission
        .judge(known, chain.clone(), now, &PlainVerifier)
        .map_err(|refusal| submission.words_for(&refusal))?;
    if acceptance.nullifies.is_empty() {
        RateLimits::default().check(&chain, now)?;
    }
    let nullified: Vec<String> = acceptance.nullifies.iter().map(ToString::to_string).collect();
    let of_identity = |entry: &&mut LogEntry| entry.did == known.to_string();
    for entry in story.entries_mut().filter(of_identity) {
        entry.nullified |= nullified.contains(&entry.cid);
    }
    let mut operation = Vec::new();
    write_operation(submission.signed(), &mut operation).unwrap();
    let entry = LogEntry {
        did: known.to_string(),
        cid: submission.cid().to_string(),
        seq: story.entries().map(|entry| entry.seq).max().unwrap_or(0) + 1,
        created_at: now.to_string(),
        operation: String::from_utf8(operation).unwrap(),
        nullified: false,
    };
    match story.withholds {
        true => story.withheld.push(entry),
        false => story.push(entry),
    }
    Ok(())
}

/// What it has of an identity.
fn chain(story: &Story, did: &Did) -> Chain {
    let of_identity = |entry: &&LogEntry| entry.did == did.to_string();
    let mut entries: Vec<&LogEntry> = story.entries().filter(of_identity).collect();
    entries.sort_by_key(|entry| &entry.created_at);
    let mut chain = Chain::default();
    for entry in entries {
        if let Ok(received) = Received::decode(entry.sequenced().as_bytes()) {
            chain.take(&received, &PlainVerifier);
        }
    }
    chain
}
