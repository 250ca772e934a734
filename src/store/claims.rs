//! The index of claims: which identities ever claimed a handle, a host or a key.
//!
//! It holds *pairs* of a value and an identity, both shortened, and so only names candidates. What
//! a candidate claimed from when until when is read from its operations ([`did_plc::claim`]).
//! A pair is never wrong in a way that matters: writing one again changes nothing, and one too many
//! costs a look at an identity.
//!
//! The index is optional and built while operations come in. How far it is, the *position*, is stored
//! beside the follower's cursor, and this holds after every commit, with or without the setting:
//! the claims of every operation that has no sequence number, or one up to the position, are
//! in the index (of those without a number, once [`ClaimsIndex::begun`]). The operations
//! after the position are for the builder. It reads them without a lock, which is why
//! a commit adds at once what does not come at the end of the log: the builder may have passed it.
//! What comes at the end is added by its commit when the position is at the end, and moves it.
//!
//! A number can go from one operation to another, or away, and the end of the log with it. What gets a number up
//! to the position is added by that commit like what is new. A builder that has read beyond the position meanwhile
//! cannot know what has come behind it since: it leaves the position where it is, and the next step reads again.

use super::{Commit, StoreError, StoredOperation};
use did_plc::claim::{Value, claims};
use did_plc::{Did, Operation};

/// Bytes of a DID in a pair.
const PREFIX_LENGTH: usize = 4;

/// How far the index of claims is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimsIndex {
    /// It has the operations up to this sequence number; zero before the first.
    pub sequence: i64,
    /// The highest sequence number that an operation holds.
    pub highest: i64,
    /// Whether it has the operations without a number.
    pub begun: bool,
    /// Its rows.
    pub pairs: u64,
}

impl ClaimsIndex {
    /// Whether it has every operation.
    pub fn is_complete(&self) -> bool {
        self.begun && self.sequence >= self.highest
    }

    /// Sequence numbers that it does not have yet.
    pub fn behind(&self) -> i64 {
        // The highest number can have gone away.
        (self.highest - self.sequence).max(0)
    }
}

/// Identities that may have claimed a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimants {
    /// In the order of their bytes. Some may have claimed another value, or nothing.
    pub dids: Vec<Did>,
    /// After which there may be more; none at the end.
    pub next: Option<Did>,
}

/// The pairs of some operations, ascending, each once.
///
/// # Errors
///
/// [`StoreError::Damaged`] when an operation cannot be read.
pub fn pairs<'a>(
    operations: impl IntoIterator<Item = &'a StoredOperation>,
) -> Result<Vec<i64>, StoreError> {
    let mut pairs = Vec::new();
    for stored in operations {
        let operation = Operation::read(&stored.signed).map_err(|error| StoreError::Damaged {
            place: format!("{}, operation of {}", stored.did, stored.created_at),
            reason: error.to_string(),
        })?;
        pairs.extend(claims(&operation).iter().map(|(value, _)| pair(value, &stored.did)));
    }
    pairs.sort_unstable();
    pairs.dedup();
    Ok(pairs)
}

/// The pairs of what a commit adds to the index by itself: of operations without a number, and of
/// those up to one.
pub(super) fn pairs_up_to(commit: &Commit, to: i64) -> Result<Vec<i64>, StoreError> {
    pairs(commit.written().filter(|new| new.sequence.is_none_or(|sequence| sequence <= to)))
}

/// The pairs of a value are all numbers between two; those after a DID begin with the one that it
/// may share with others.
pub(super) fn range(value: &Value<'_>, after: Option<&Did>) -> (i64, i64) {
    let first = pair(value, after.unwrap_or(&Did::from_bytes([0; 15])));
    (first, pair(value, &Did::from_bytes([0xff; 15])))
}

fn pair(value: &Value<'_>, did: &Did) -> i64 {
    let mut bytes = [0; 2 * PREFIX_LENGTH];
    bytes[..PREFIX_LENGTH].copy_from_slice(&value.hash().to_be_bytes());
    bytes[PREFIX_LENGTH..].copy_from_slice(&did.as_bytes()[..PREFIX_LENGTH]);
    i64::from_be_bytes(bytes)
}

/// The first and the last DID that there can be of a pair.
pub(super) fn dids(pair: i64) -> (Did, Did) {
    let mut dids = ([0; 15], [0xff; 15]);
    let prefix = &pair.to_be_bytes()[PREFIX_LENGTH..];
    dids.0[..PREFIX_LENGTH].copy_from_slice(prefix);
    dids.1[..PREFIX_LENGTH].copy_from_slice(prefix);
    (Did::from_bytes(dids.0), Did::from_bytes(dids.1))
}

/// Where a page of pairs ends, when there were as many as asked for.
pub(super) fn end_of_page(pairs: &[i64], limit: usize) -> Option<Did> {
    pairs.last().filter(|_| pairs.len() >= limit).map(|&last| dids(last).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::claim::ClaimKind;

    #[test]
    fn a_pair_names_its_value_and_its_identity() {
        let value = Value::asked(ClaimKind::Handle, "alice.example.com").unwrap();
        for first in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = [7; 15];
            bytes[0] = first;
            let did = Did::from_bytes(bytes);
            let pair = pair(&value, &did);
            let (lowest, highest) = dids(pair);
            assert!(lowest <= did && did <= highest);
            let (begin, end) = range(&value, None);
            assert!(begin <= pair && pair <= end);
            assert_eq!(range(&value, Some(&did)).0, pair);
            assert_eq!(end_of_page(&[pair], 1), Some(highest));
            assert_eq!(end_of_page(&[pair], 2), None);
        }
    }
}
