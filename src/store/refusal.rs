//! Refused operations, kept as they were received.

use bytes::Bytes;
use did_plc::{Cid, Timestamp};

/// An operation that was refused, to be kept as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRefusal {
    /// The DID as the line stated it, whatever it looks like; empty when it stated none.
    pub did: String,
    /// The sequence number that was stated.
    pub sequence: Option<i64>,
    /// The CID computed from the operation, when it could be.
    pub cid: Option<Cid>,
    /// The refusal's name (`signature-invalid`), [`did_plc::Refusal::kind`].
    pub kind: String,
    /// What was expected and what came, for a person.
    pub detail: String,
    /// The operation that has to be accepted before this one is judged again.
    pub awaits: Option<Cid>,
    /// The bytes as received: a line of an export, or a message of the stream. The same bytes are
    /// kept once.
    pub line: Bytes,
}

/// A kept refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRefusal {
    /// Number of the record, ascending in the order of receipt.
    pub id: i64,
    /// What is kept.
    pub refusal: NewRefusal,
    /// When it was first received.
    pub received_at: Timestamp,
    /// When it was judged again and accepted after all.
    pub accepted_at: Option<Timestamp>,
}

impl StoredRefusal {
    /// As it is listed for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let NewRefusal { did, sequence, cid, kind, detail, awaits, line } = &self.refusal;
        serde_json::json!({
            "id": self.id,
            "receivedAt": self.received_at.to_string(),
            "kind": kind,
            "expected": detail,
            "did": did,
            "sequence": sequence,
            "cid": cid.map(|cid| cid.to_string()),
            "awaits": awaits.map(|cid| cid.to_string()),
            "acceptedAt": self.accepted_at.map(|at| at.to_string()),
            "received": String::from_utf8_lossy(line),
        })
    }
}

/// What became of a kept refusal that was judged again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejudged {
    /// Accepted: its operation is among [`Commit::operations`].
    Accepted { id: i64 },
    /// Refused for another reason, which replaces the one on record.
    Refused { id: i64, kind: String, detail: String, awaits: Option<Cid> },
}
