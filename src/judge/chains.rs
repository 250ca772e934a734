//! The chains of identities met recently, in bounded memory. What becomes of those that find no room any more
//! is for the owner: the store has them, or they are spilled into a file
//! ([`SpillingChains`](super::SpillingChains)).

use ahash::{AHashSet, RandomState};
use lru::LruCache;

use crate::store::{StoreError, StoredOperation};
use did_plc::chain::{Chain, Link};
use did_plc::signature::{Signature, Signed, Verifier};
use did_plc::{Did, Operation};

/// What an identity takes beside its chain: its place in the list and in the table, half of which
/// may be empty.
const IDENTITY: usize = 160;

/// A bounded cache of chains.
#[derive(Debug)]
pub struct ChainCache {
    chains: LruCache<Did, Held, RandomState>,
    bytes: usize,
    max_bytes: usize,
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

impl ChainCache {
    /// An empty one that is to take so many bytes of memory. A link with two rotation keys takes about 300.
    pub fn with_room_for(max_bytes: usize) -> ChainCache {
        ChainCache {
            chains: LruCache::unbounded_with_hasher(RandomState::new()),
            bytes: 0,
            max_bytes,
            committed: 0,
        }
    }

    /// Takes a chain out, to be judged against and put back; none when it is not here.
    pub fn take(&mut self, did: &Did) -> Option<Chain> {
        let held = self.chains.pop(did)?;
        self.bytes -= held.bytes;
        Some(held.chain)
    }

    /// Looks at a chain, which counts as no use of it.
    pub fn get(&self, did: &Did) -> Option<&Chain> {
        self.chains.peek(did).map(|held| &held.chain)
    }

    /// Puts a chain in that batch `changed_by` may have changed.
    pub fn put(&mut self, did: Did, chain: Chain, changed_by: u64) {
        let bytes = IDENTITY + chain.bytes();
        self.bytes += bytes;
        if let Some((_, replaced)) = self.chains.push(did, Held { chain, bytes, changed_by }) {
            self.bytes -= replaced.bytes;
        }
    }

    /// Learns that the batches up to this one are in the store.
    pub fn note_committed(&mut self, batch: u64) {
        self.committed = batch;
    }

    /// Whether it takes more room than it should.
    pub fn is_over(&self) -> bool {
        self.bytes > self.max_bytes
    }

    /// Takes out the chain not asked for longest while all take more than one `share`th of the room. It ends at
    /// one with operations that are not committed yet: only this cache knows them, and those asked for later have
    /// been changed later.
    pub fn pop_beyond(&mut self, share: usize) -> Option<(Did, Chain)> {
        if self.bytes <= self.max_bytes / share {
            return None;
        }
        let (_, oldest) = self.chains.peek_lru()?;
        if oldest.changed_by > self.committed {
            return None;
        }
        let (did, oldest) = self.chains.pop_lru()?;
        self.bytes -= oldest.bytes;
        Some((did, oldest.chain))
    }
}

/// The chains of stored operations that stand by identity, and those of each in the order in which they were
/// judged.
///
/// # Errors
///
/// [`StoreError::Damaged`] when an operation cannot be read.
pub fn from_stored(operations: &[StoredOperation]) -> Result<Vec<(Did, Chain)>, StoreError> {
    operations
        .chunk_by(|a, b| a.did == b.did)
        .map(|history| Ok((history[0].did, chain_of(history)?)))
        .collect()
}

/// The chain of one identity's stored operations, in the order in which they were judged.
///
/// # Errors
///
/// [`StoreError::Damaged`] when an operation cannot be read.
pub fn chain_of(history: &[StoredOperation]) -> Result<Chain, StoreError> {
    history.iter().map(link).collect::<Result<_, _>>().map(Chain::from_links)
}

fn link(stored: &StoredOperation) -> Result<Link, StoreError> {
    let operation = read(stored)?;
    let link = Link::new(&stored.as_received(), &operation, stored.signer);
    Ok(Link { nullified_by: stored.nullified_by, ..link })
}

fn read(stored: &StoredOperation) -> Result<Operation<'_>, StoreError> {
    Operation::read(&stored.signed).map_err(|error| damaged(stored, error.to_string()))
}

fn damaged(stored: &StoredOperation, reason: String) -> StoreError {
    StoreError::Damaged { place: format!("{} at {}", stored.did, stored.created_at), reason }
}

/// The chain of one identity's stored operations, after a look at whether they are what was verified: the
/// identity has its name from its genesis operation, and every other operation names the CID of one that is here.
/// So a byte that has changed shows, but in an operation that no other one names ([`check_last`]).
///
/// # Errors
///
/// [`StoreError::Damaged`] where they are not.
pub fn of_identity(did: Did, operations: &[StoredOperation]) -> Result<Chain, StoreError> {
    let chain = chain_of(operations)?;
    for (stored, link) in operations.iter().zip(chain.links()) {
        let is_sound = match read(stored)?.prev_cid() {
            Some(prev) => chain.find(&prev).is_some(),
            None => Did::of_genesis_digest(link.cid.digest()) == did,
        };
        if !is_sound {
            let reason = "it is not what was verified: what it builds on is not here";
            return Err(damaged(stored, reason.to_owned()));
        }
    }
    Ok(chain)
}

/// Checks the signatures of the operations of such a chain that no other one names.
///
/// # Errors
///
/// [`StoreError::Damaged`] where one is not that of the key that made it.
pub fn check_last(
    chain: &Chain,
    operations: &[StoredOperation],
    verifier: &dyn Verifier,
) -> Result<(), StoreError> {
    let mut named = AHashSet::with_capacity(operations.len());
    for stored in operations {
        named.extend(read(stored)?.prev_cid());
    }
    for (stored, link) in operations.iter().zip(chain.links()) {
        if named.contains(&link.cid) {
            continue;
        }
        let operation = read(stored)?;
        let prev = operation.prev_cid().and_then(|prev| chain.find(&prev));
        // A genesis operation is signed by a key of its own.
        let keys = &prev.unwrap_or(link).rotation_keys;
        let signature = Signature::parse(operation.sig());
        let is_signed =
            keys.get(usize::from(stored.signer)).zip(signature).is_some_and(|(key, signature)| {
                let signed = Signed { digest: operation.signing_digest(), signature };
                verifier.find_signer(&[key], &signed).is_ok_and(|signer| signer.is_some())
            });
        if !is_signed {
            let reason = "it is not what was verified: its signature does not fit it";
            return Err(damaged(stored, reason.to_owned()));
        }
    }
    Ok(())
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
        let max_bytes = 1 << 20;
        let mut chains = ChainCache::with_room_for(max_bytes);
        let put = |chains: &mut ChainCache, n, chain, changed_by| {
            chains.put(did(n), chain, changed_by);
            while chains.pop_beyond(1).is_some() {}
        };
        // Keys without a letter count too.
        let half = max_bytes / 2 / (chain(1).bytes() - chain(0).bytes());
        put(&mut chains, 1, chain(half), 1);
        put(&mut chains, 2, chain(half), 2);
        put(&mut chains, 3, chain(half), 3);
        assert_eq!(chains.chains.len(), 3, "nothing is committed");
        chains.note_committed(1);
        put(&mut chains, 4, chain(1), 3);
        assert!(chains.take(&did(1)).is_none());
        assert!(chains.take(&did(2)).is_some());
        chains.note_committed(3);
        put(&mut chains, 2, chain(half), 3);
        assert!(chains.take(&did(3)).is_none());
        assert!(chains.take(&did(2)).is_some());
        assert!(chains.take(&did(4)).is_some());
        assert_eq!(chains.bytes, 0);
    }
}
