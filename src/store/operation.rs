//! Accepted operations, as they are written and as they are read back.

use bytes::Bytes;
use did_plc::entry::{Logged, Received};
use did_plc::history::HeldOperation;
use did_plc::{Cid, Did, Timestamp, order};

/// An accepted operation, as it is written and as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOperation {
    /// The identity that it belongs to.
    pub did: Did,
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// The directory's sequence number; none for operations that only a legacy dump had.
    pub sequence: Option<i64>,
    /// The signed DAG-CBOR. Its SHA-256 is the CID.
    pub signed: Bytes,
    /// Index of the rotation key that signed it, in the list that was in force.
    pub signer: u16,
    /// `created_at` of the operation of the same identity that nullified it.
    pub nullified_by: Option<Timestamp>,
    /// When the batch that brought it arrived here.
    pub received_at: Timestamp,
}

impl StoredOperation {
    /// The CID of its signed bytes.
    pub fn cid(&self) -> Cid {
        Cid::of(&self.signed)
    }

    /// As it was received, to be judged again.
    pub fn as_received(&self) -> Received {
        Received {
            did: self.did,
            cid: self.cid(),
            stated_cid: None,
            created_at: self.created_at,
            sequence: self.sequence,
            nullified: Some(self.nullified_by.is_some()),
            // Read-through has zero for what was never received.
            received_at: Some(self.received_at).filter(|at| at.millis() > 0),
            signed: self.signed.clone(),
        }
    }

    /// With what came of it when it was verified, to be put in its place in a history.
    pub fn as_held(&self) -> HeldOperation {
        let received = self.as_received();
        HeldOperation { received, signer: self.signer, nullified_by: self.nullified_by }
    }

    /// As an entry of the log to be written; `cid` is [`StoredOperation::cid`].
    pub fn logged<'a>(&'a self, cid: &'a Cid) -> Logged<'a> {
        Logged {
            did: &self.did,
            cid,
            created_at: self.created_at,
            sequence: self.sequence,
            nullified: self.nullified_by.is_some(),
            signed: &self.signed,
        }
    }
}

/// Puts whole histories in the order of their DIDs, and the operations of each in the order in which they are
/// judged.
pub(super) fn sort_histories(operations: &mut Vec<StoredOperation>) {
    let place = |operation: &StoredOperation| (operation.did, operation.created_at);
    if !operations.is_sorted_by_key(place) {
        operations.sort_by_key(place);
    }
    if operations.is_sorted_by(|a, b| place(a) < place(b)) {
        return;
    }
    // Some have equal times.
    let mut rest = std::mem::take(operations).into_iter().peekable();
    while let Some(first) = rest.next() {
        let did = first.did;
        let mut history = vec![first];
        while let Some(next) = rest.next_if(|next| next.did == did) {
            history.push(next);
        }
        order::sort(&mut history, |operation| operation.created_at, |operation| &operation.signed);
        operations.append(&mut history);
    }
}

/// The head of a history that stands in its order: the last operation that is not nullified.
pub(super) fn head_of(history: Vec<StoredOperation>) -> Option<StoredOperation> {
    history.into_iter().rfind(|operation| operation.nullified_by.is_none())
}

/// Operations of one identity as its audit log, JSON, which `verify` reads: our side of a difference.
pub fn audit_log(stored: &[StoredOperation]) -> String {
    let mut out = vec![b'['];
    for (index, operation) in stored.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let begun = out.len();
        // What cannot be written is damaged here; `fsck` says so, the evidence lacks it.
        if operation.logged(&operation.cid()).write_audit(&mut out).is_err() {
            out.truncate(begun);
            out.extend_from_slice(b"null");
        }
    }
    out.push(b']');
    String::from_utf8(out).unwrap_or_default()
}
