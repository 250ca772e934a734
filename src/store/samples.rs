//! What the tests of both backends store.

use bytes::Bytes;
use did_plc::Timestamp;
use plc_testkit::builder::Story;

use super::{Commit, Rewritten, StoredOperation};

/// The operations that a story has told, as a store holds them.
pub(super) fn stored(story: &Story) -> Vec<StoredOperation> {
    let one = |entry: &plc_testkit::Generated| StoredOperation {
        did: entry.did.parse().unwrap(),
        created_at: entry.created_at.parse().unwrap(),
        sequence: Some(entry.seq),
        signed: Bytes::from(entry.signed.clone()),
        signer: 0,
        nullified_by: None,
        received_at: Timestamp::from_millis(0),
    };
    story.log().iter().map(one).collect()
}

/// Identities with one operation each.
pub(super) fn geneses(identities: usize) -> Vec<StoredOperation> {
    let mut story = Story::seeded(5);
    for _ in 0..identities {
        story.create().accepted();
    }
    stored(&story)
}

/// A commit that leaves the cursor where it is.
pub(super) fn commit_of(operations: &[StoredOperation], rewritten: Vec<Rewritten>) -> Commit {
    Commit { operations: operations.to_vec(), rewritten, ..Commit::default() }
}

/// What takes the number away from an operation that is the only one of its identity.
pub(super) fn without_number(of: &StoredOperation) -> Rewritten {
    let operations = vec![StoredOperation { sequence: None, ..of.clone() }];
    Rewritten { did: of.did, stored: 1, stored_geneses: 1, operations }
}
