//! What a story has told so far.

use std::time::Duration;

use did_plc::{Cid, Timestamp};
use serde_json::{Map, Value};

use super::{Expected, Generated};

/// How long an operation can be overruled, the last millisecond included. Not the constant of the rules: it is
/// stated a second time, so that stories and the model of a set check what the rules say.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(72 * 3600);
/// 2024-01-01T00:00:00.000Z, when stories begin.
pub const BEGINNING: Timestamp = Timestamp::from_millis(1_704_067_200_000);

/// An entry that was told: of which identity, which operation, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The identity.
    pub did: String,
    /// The operation.
    pub cid: String,
    /// Its `createdAt`.
    pub created_at: Timestamp,
}

/// The log up to now, and when that is.
#[derive(Debug)]
pub struct SoFar {
    /// The time of the newest entry.
    pub now: Timestamp,
    /// All entries, numbered from 1.
    pub log: Vec<Generated>,
    /// The operation of each entry of `log`, without its signature.
    pub operations: Vec<Map<String, Value>>,
}

impl Default for SoFar {
    fn default() -> SoFar {
        SoFar { now: BEGINNING, log: Vec::new(), operations: Vec::new() }
    }
}

impl SoFar {
    /// Adds an entry, and what it means for those before it.
    pub fn tell(&mut self, entry: Generated, operation: Map<String, Value>, at: Timestamp) {
        self.now = self.now.max(at);
        if entry.expected == Expected::Accepted {
            let prev = operation.get("prev").and_then(Value::as_str);
            let prev = prev.map(as_specified);
            let chain =
                |other: &Generated| other.did == entry.did && other.expected == Expected::Accepted;
            // From the end: what is told next mostly follows something recent.
            let index = prev.and_then(|prev| {
                self.log.iter().rposition(|other| other.cid == prev && chain(other))
            });
            let since = index.map_or(self.log.len(), |index| index + 1);
            // Whatever the identity did since `prev` is overruled.
            for other in self.log[since..].iter_mut().filter(|other| chain(other)) {
                other.nullified_in_the_end = true;
            }
        }
        self.log.push(entry);
        self.operations.push(operation);
    }
}

/// What `prev` says, in the spelling in which entries state their CID; as it is when it is no CID.
pub fn as_specified(prev: &str) -> String {
    Cid::of_any_spelling(prev).map_or_else(|| prev.to_owned(), |cid| cid.to_string())
}

/// What a story says of an entry.
pub fn told(entry: &Generated) -> Told {
    let created_at = entry.created_at.parse().unwrap_or(BEGINNING);
    Told { did: entry.did.clone(), cid: entry.cid.clone(), created_at }
}
