//! The chains of identities met recently, in bounded memory. A chain with operations that are
//! verified and not yet committed stays whatever else comes: the store does not know them yet.

use ahash::RandomState;
use lru::LruCache;

use crate::store::{StoreError, StoredOperation};
use did_plc::chain::{Chain, Link};
use did_plc::{Did, Operation};

/// Memory of the chains that are kept. A link with two rotation keys takes about 300 bytes, so these
/// are some 100,000 operations; most updates follow soon upon what they update.
const MAX_BYTES: usize = 32 << 20;
/// What an identity takes beside its chain: its place in the list and in the table, half of which
/// may be empty.
const IDENTITY: usize = 160;

/// A bounded cache of chains.
#[derive(Debug)]
pub struct Chains {
    chains: LruCache<Did, Held, RandomState>,
    bytes: usize,
    /// Batches up to this number are committed.
    committed: u64,
}

#[derive(Debug)]
struct Held {
    chain: Chain,
    /// What both take.
    bytes: usize,
    /// The last batch that changed it.
    changed_by: u64,
}

impl Default for Chains {
    fn default() -> Chains {
        Chains {
            chains: LruCache::unbounded_with_hasher(RandomState::new()),
            bytes: 0,
            committed: 0,
        }
    }
}

impl Chains {
    /// Takes a chain out, to be judged against and put back; `None` when the store must be asked.
    pub fn take(&mut self, did: &Did) -> Option<Chain> {
        let held = self.chains.pop(did)?;
        self.bytes -= held.bytes;
        Some(held.chain)
    }

    /// Puts a chain in that batch `changed_by` may have changed.
    pub fn put(&mut self, did: Did, chain: Chain, changed_by: u64) {
        let bytes = IDENTITY + chain.bytes();
        self.bytes += bytes;
        if let Some((_, replaced)) = self.chains.push(did, Held { chain, bytes, changed_by }) {
            self.bytes -= replaced.bytes;
        }
        self.evict();
    }

    /// Learns that the batches up to this one are in the store.
    pub fn committed(&mut self, batch: u64) {
        self.committed = batch;
    }

    /// Drops the chains not asked for longest. It stops at one that is not committed yet: those
    /// asked for later have been changed later.
    fn evict(&mut self) {
        while self.bytes > MAX_BYTES {
            match self.chains.peek_lru() {
                Some((_, oldest)) if oldest.changed_by <= self.committed => {
                    if let Some((_, oldest)) = self.chains.pop_lru() {
                        self.bytes -= oldest.bytes;
                    }
                }
                _ => break,
            }
        }
    }
}

/// The chains of stored operations that stand in the order of (identity, `created_at`).
///
/// # Errors
///
/// [`StoreError::Damaged`] when an operation cannot be read.
pub fn from_stored(operations: &[StoredOperation]) -> Result<Vec<(Did, Chain)>, StoreError> {
    operations
        .chunk_by(|a, b| a.did == b.did)
        .map(|history| {
            let links = history.iter().map(link).collect::<Result<_, _>>()?;
            Ok((history[0].did, Chain::from_links(links)))
        })
        .collect()
}

fn link(stored: &StoredOperation) -> Result<Link, StoreError> {
    let operation = Operation::read(&stored.signed).map_err(|error| StoreError::Damaged {
        place: format!("{} at {}", stored.did, stored.created_at),
        reason: error.to_string(),
    })?;
    let link = Link::new(&stored.as_received(), &operation, stored.signer);
    Ok(Link { nullified_by: stored.nullified_by, ..link })
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::Timestamp;

    /// A chain of one operation with so many keys.
    fn chain(keys: usize) -> Chain {
        Chain::from_links(vec![Link {
            cid: did_plc::Cid::of(b"genesis"),
            created_at: Timestamp::from_millis(0),
            sequence: None,
            rotation_keys: vec![Box::default(); keys].into(),
            tombstone: false,
            signer: 0,
            nullified_by: None,
        }])
    }

    fn did(n: u8) -> Did {
        Did::from_bytes([n; 15])
    }

    #[test]
    fn the_oldest_go_first_and_uncommitted_ones_stay() {
        let mut chains = Chains::default();
        // Keys without a letter count too.
        let half = MAX_BYTES / 2 / (chain(1).bytes() - chain(0).bytes());
        chains.put(did(1), chain(half), 1);
        chains.put(did(2), chain(half), 2);
        chains.put(did(3), chain(half), 3);
        assert_eq!(chains.chains.len(), 3, "nothing is committed");
        chains.committed(1);
        chains.put(did(4), chain(1), 3);
        assert!(chains.take(&did(1)).is_none());
        assert!(chains.take(&did(2)).is_some());
        chains.committed(3);
        chains.put(did(2), chain(half), 3);
        assert!(chains.take(&did(3)).is_none());
        assert!(chains.take(&did(2)).is_some());
        assert!(chains.take(&did(4)).is_some());
        assert_eq!(chains.bytes, 0);
    }
}
