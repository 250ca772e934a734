//! Refused operations, kept as they were received.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use did_plc::entry::{Logged, Received, stated_time};
use did_plc::{Cid, Timestamp};
use sha2::{Digest, Sha256};

use super::operation::StoredOperation;

/// How many refusals of an identity are counted for one answer about it, at most.
pub(super) const MOST_REFUSED_AFTER: i64 = 1_000;

/// What a kept refusal is known by: a SHA-256.
pub type RefusalKey = [u8; 32];

/// What was refused, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRefusal {
    /// What it is known by: the same is kept once.
    pub key: RefusalKey,
    /// Who stated it: the URL of an upstream, or the name of a file.
    pub source: String,
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
    /// What was refused: of an operation that could be judged its line as the export by time has it, of
    /// everything else the bytes as received.
    pub line: Bytes,
}

impl NewRefusal {
    /// The key of a line that carries no operation that could be judged: that of its bytes.
    pub fn key_of_line(line: &[u8]) -> RefusalKey {
        let mut digest = Sha256::new();
        digest.update(b"line\n");
        digest.update(line);
        digest.finalize().into()
    }

    /// The key of an operation that was stated with this time, however it was stated: by whom, in which
    /// envelope, under which number. No line has this key, whatever
    /// its bytes: what is hashed begins with another word.
    pub fn key_of_operation(received: &Received) -> RefusalKey {
        let mut digest = Sha256::new();
        digest.update(b"operation\n");
        digest.update(received.did.as_bytes());
        digest.update(received.cid.digest());
        digest.update(received.created_at.millis().to_be_bytes());
        digest.finalize().into()
    }

    /// The time that the line states.
    pub(super) fn stated_at(&self) -> Option<Timestamp> {
        stated_time(&self.line)
    }

    /// The line of an operation as the export by time has it: one form, however it came. What number was
    /// stated is kept beside it.
    pub fn line_of_operation(received: &Received) -> Bytes {
        let logged = Logged {
            did: &received.did,
            cid: &received.cid,
            created_at: received.created_at,
            sequence: None,
            nullified: false,
            signed: &received.signed,
        };
        let mut line = Vec::with_capacity(2 * received.signed.len());
        // What was decoded can be written.
        match logged.write_timestamped(&mut line) {
            Ok(()) => line.into(),
            Err(_) => received.signed.clone(),
        }
    }
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
    /// How often the upstream was asked about it since.
    pub asked: i32,
    /// When it is to be asked (again); none when nothing is expected of that.
    pub ask_at: Option<Timestamp>,
}

impl StoredRefusal {
    /// As it is listed for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let NewRefusal { key: _, source, did, sequence, cid, kind, detail, line } = &self.refusal;
        serde_json::json!({
            "id": self.id,
            "receivedAt": self.received_at.to_string(),
            "kind": kind,
            "expected": detail,
            "source": source,
            "did": did,
            "sequence": sequence,
            "cid": cid.map(|cid| cid.to_string()),
            "acceptedAt": self.accepted_at.map(|at| at.to_string()),
            "received": String::from_utf8_lossy(line),
        })
    }
}

/// What came of asking about a kept refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Number of the record.
    pub id: i64,
    /// What it is about is accepted: the refusal does not stand any more.
    pub accepted: bool,
    /// When to ask again; none when nothing is expected of that.
    pub ask_at: Option<Timestamp>,
}

/// The head of an identity, by which it is said which refusals are of something later.
pub(super) struct Head {
    /// Before all times where there is none.
    pub(super) created_at: i64,
    /// None where there is none.
    pub(super) sequence: Option<i64>,
}

impl Head {
    pub(super) fn of(head: Option<&StoredOperation>) -> Head {
        Head {
            created_at: head.map_or(i64::MIN, |head| head.created_at.millis()),
            sequence: head.and_then(|head| head.sequence),
        }
    }
}

/// How many bytes kept refusals may take. Each counts with its line, its reason, twice the DID that it states, and 300
/// for the rest of its record. What is beyond is forgotten with the commit that brings more: the oldest of the same
/// source and kind first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusalLimits {
    /// Of one identity, as its lines state it.
    pub of_identity: u64,
    /// In all.
    pub in_all: u64,
}

impl Default for RefusalLimits {
    fn default() -> RefusalLimits {
        RefusalLimits { of_identity: 1 << 20, in_all: 256 << 20 }
    }
}

/// The limits of a process, which can be changed while it writes.
#[derive(Debug, Default)]
pub(super) struct SharedLimits(Mutex<RefusalLimits>);

impl SharedLimits {
    pub(super) fn set(&self, limits: RefusalLimits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(super) fn get(&self) -> RefusalLimits {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn no_line_has_the_key_of_an_operation() {
        let received = samples::geneses(1)[0].as_received();
        let mut bytes = received.did.as_bytes().to_vec();
        bytes.extend(received.cid.digest());
        bytes.extend(received.created_at.millis().to_be_bytes());
        let key = NewRefusal::key_of_operation(&received);
        for before in ["", "operation\n", "line\n"] {
            let line = [before.as_bytes(), &bytes].concat();
            assert_ne!(NewRefusal::key_of_line(&line), key, "{before:?}");
        }
    }
}
