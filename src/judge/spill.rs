//! All chains of a log that is in no store: those met recently in memory, the others in a temporary
//! database.

use rusqlite::{Connection, OptionalExtension, params};

use super::chains::ChainCache;
use super::temporary::{self, SpillError};
use did_plc::chain::{Chain, Link};
use did_plc::{Cid, Did, Timestamp};

/// All chains so far, of which as many stay in memory as it has room for.
#[derive(Debug)]
pub struct SpillingChains {
    recent: ChainCache,
    spilled: Option<Spilled>,
}

/// What was met of an identity so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Met {
    /// Its chain, empty when nothing of it was accepted.
    Chain(Chain),
    /// It is judged as a whole in the end: no chain is kept of it.
    Late,
}

/// The chains that are in the temporary database.
#[derive(Debug)]
struct Spilled {
    connection: Connection,
    /// A bit for each [`mark`] that is there: most of a log are new identities, which need not be
    /// looked up then.
    marks: Vec<u64>,
}

impl SpillingChains {
    /// None yet; so many bytes of memory for those met recently.
    pub fn with_room_for(max_bytes: usize) -> SpillingChains {
        SpillingChains { recent: ChainCache::with_room_for(max_bytes), spilled: None }
    }

    /// Takes out what is kept of an identity: a chain to be judged against and put back.
    ///
    /// # Errors
    ///
    /// When the temporary database fails, here and below.
    pub fn take(&mut self, did: &Did) -> Result<Met, SpillError> {
        let kept = match self.recent.take(did) {
            None => self.spilled(did)?,
            recent => recent,
        };
        Ok(match kept {
            Some(chain) if stands_for_late(&chain) => Met::Late,
            kept => Met::Chain(kept.unwrap_or_default()),
        })
    }

    /// Whether an identity is judged as a whole in the end.
    pub fn is_late(&self, did: &Did) -> Result<bool, SpillError> {
        match self.recent.get(did) {
            Some(recent) => Ok(stands_for_late(recent)),
            None => Ok(self.spilled(did)?.is_some_and(|kept| stands_for_late(&kept))),
        }
    }

    /// Puts a chain in.
    pub fn put(&mut self, did: Did, chain: Chain) -> Result<(), SpillError> {
        if chain.links().is_empty() {
            return Ok(());
        }
        self.keep(did, chain)
    }

    /// Puts in that an identity is judged as a whole in the end.
    pub fn put_late(&mut self, did: Did) -> Result<(), SpillError> {
        self.keep(did, Chain::default())
    }

    fn spilled(&self, did: &Did) -> Result<Option<Chain>, SpillError> {
        match self.spilled.as_ref().filter(|spilled| spilled.has_mark(did)) {
            Some(spilled) => spilled.get(did),
            None => Ok(None),
        }
    }

    fn keep(&mut self, did: Did, chain: Chain) -> Result<(), SpillError> {
        // Nothing is committed here, so that no chain has to wait for it.
        self.recent.put(did, chain, 0);
        if self.recent.is_over() { self.spill() } else { Ok(()) }
    }

    /// Moves the half not met for longest into the temporary database.
    fn spill(&mut self) -> Result<(), SpillError> {
        let mut spilled = match self.spilled.take() {
            Some(spilled) => spilled,
            None => Spilled::open()?,
        };
        spilled.connection.execute_batch("BEGIN")?;
        while let Some((did, chain)) = self.recent.pop_beyond(2) {
            spilled.put(&did, &chain)?;
        }
        spilled.connection.execute_batch("COMMIT")?;
        self.spilled = Some(spilled);
        Ok(())
    }
}

/// No chain without links is kept but to say this.
fn stands_for_late(kept: &Chain) -> bool {
    kept.links().is_empty()
}

/// Bits of an identity that [`Spilled::marks`] goes by: 2 MB, 32 MB in all shares, and at 50
/// million identities four of five new ones are still told from the old.
const MARK_BITS: usize = 24;
/// Memory of a temporary database, in kB: 64 MB in all shares.
const SPILLED_CACHE: u32 = 4 << 10;

const SCHEMA: &str =
    "CREATE TABLE chains (did BLOB PRIMARY KEY, links BLOB NOT NULL) WITHOUT ROWID";

/// The first bits of an identity, which are as random as a hash.
fn mark(did: &Did) -> usize {
    let bytes = did.as_bytes();
    let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    first as usize >> (32 - MARK_BITS)
}

impl Spilled {
    fn open() -> Result<Spilled, SpillError> {
        let connection = temporary::open(SCHEMA, SPILLED_CACHE)?;
        Ok(Spilled { connection, marks: vec![0; 1 << (MARK_BITS - 6)] })
    }

    fn has_mark(&self, did: &Did) -> bool {
        let mark = mark(did);
        self.marks[mark >> 6] >> (mark & 63) & 1 == 1
    }

    fn get(&self, did: &Did) -> Result<Option<Chain>, SpillError> {
        let bytes: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT links FROM chains WHERE did = ?1")?
            .query_row([did.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(bytes.map(|bytes| Chain::from_links(read_links(&bytes))))
    }

    fn put(&mut self, did: &Did, chain: &Chain) -> Result<(), SpillError> {
        let mark = mark(did);
        self.marks[mark >> 6] |= 1 << (mark & 63);
        self.connection
            .prepare_cached("REPLACE INTO chains (did, links) VALUES (?1, ?2)")?
            .execute(params![did.as_bytes(), write_links(chain.links())])?;
        Ok(())
    }
}

/// Links in a form that only [`read_links`] reads, in the same run of the program.
fn write_links(links: &[Link]) -> Vec<u8> {
    let mut out = Vec::with_capacity(links.len() * 192);
    for link in links {
        out.extend_from_slice(link.cid.digest());
        out.extend_from_slice(&link.created_at.millis().to_le_bytes());
        out.extend_from_slice(&link.sequence.unwrap_or(0).to_le_bytes());
        let nullified_by = link.nullified_by.map_or(i64::MIN, Timestamp::millis);
        out.extend_from_slice(&nullified_by.to_le_bytes());
        out.extend_from_slice(&link.signer.to_le_bytes());
        out.push(u8::from(link.tombstone));
        out.extend_from_slice(&(link.rotation_keys.len() as u32).to_le_bytes());
        for key in &link.rotation_keys {
            out.extend_from_slice(&(key.len() as u32).to_le_bytes());
            out.extend_from_slice(key.as_bytes());
        }
    }
    out
}

fn read_links(mut bytes: &[u8]) -> Vec<Link> {
    let mut links = Vec::new();
    while !bytes.is_empty() {
        let Some(link) = read_link(&mut bytes) else { break };
        links.push(link);
    }
    links
}

fn read_link(bytes: &mut &[u8]) -> Option<Link> {
    let cid = Cid::from_digest(take(bytes)?);
    let created_at = Timestamp::from_millis(i64::from_le_bytes(take(bytes)?));
    let sequence = Some(i64::from_le_bytes(take(bytes)?)).filter(|&number| number != 0);
    let nullified_by = Some(i64::from_le_bytes(take(bytes)?))
        .filter(|&millis| millis != i64::MIN)
        .map(Timestamp::from_millis);
    let signer = u16::from_le_bytes(take(bytes)?);
    let tombstone = take::<1>(bytes)? == [1];
    let keys = u32::from_le_bytes(take(bytes)?);
    let rotation_keys = (0..keys)
        .map(|_| {
            let length = u32::from_le_bytes(take(bytes)?) as usize;
            let (key, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            String::from_utf8(key.to_vec()).ok().map(String::into_boxed_str)
        })
        .collect::<Option<_>>()?;
    Some(Link { cid, created_at, sequence, rotation_keys, tombstone, signer, nullified_by })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: usize = 10 << 20;

    fn link(n: u8) -> Link {
        Link {
            cid: Cid::of(&[n]),
            created_at: Timestamp::from_millis(i64::from(n)),
            sequence: (n.is_multiple_of(2)).then_some(i64::from(n) + 1),
            rotation_keys: (0..n % 4).map(|k| format!("key {k}").into_boxed_str()).collect(),
            tombstone: n.is_multiple_of(5),
            signer: u16::from(n),
            nullified_by: (n.is_multiple_of(3)).then_some(Timestamp::from_millis(-1)),
        }
    }

    #[test]
    fn chains_come_back_from_the_temporary_database() {
        let links: Vec<Link> = (0..50).map(link).collect();
        assert_eq!(read_links(&write_links(&links)), links);

        let mut chains = SpillingChains::with_room_for(MAX_BYTES);
        let did = |n: u32| {
            let mut bytes = [7; 15];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            Did::from_bytes(bytes)
        };
        let many: Vec<Link> = (0..=255).map(link).collect();
        let chain = Chain::from_links(many.clone());
        let identities = (MAX_BYTES / chain.bytes() * 2) as u32;
        for n in 0..identities {
            chains.put(did(n), chain.clone()).unwrap();
        }
        assert!(chains.spilled.is_some() && !chains.recent.is_over());
        for n in [0, identities / 2, identities - 1] {
            assert_eq!(chains.take(&did(n)).unwrap(), Met::Chain(chain.clone()));
        }
        assert_eq!(chains.take(&did(identities)).unwrap(), Met::Chain(Chain::default()));

        // One operation whose keys, without a letter, take all the room.
        let keys = vec![Box::default(); MAX_BYTES / size_of::<Box<str>>()].into();
        let vast = Chain::from_links(vec![Link { rotation_keys: keys, ..link(1) }]);
        chains.put(did(identities), vast.clone()).unwrap();
        assert!(chains.recent.take(&did(identities)).is_none());
        assert_eq!(chains.take(&did(identities)).unwrap(), Met::Chain(vast));
    }

    #[test]
    fn what_is_late_stays_late() {
        let mut chains = SpillingChains::with_room_for(1 << 10);
        let did = |n: u8| Did::from_bytes([n; 15]);
        chains.put(did(1), Chain::from_links(vec![link(1)])).unwrap();
        assert!(!chains.is_late(&did(1)).unwrap() && !chains.is_late(&did(2)).unwrap());
        // Its chain may be in the temporary database already.
        for n in 2..50 {
            chains.put(did(n), Chain::from_links(vec![link(n)])).unwrap();
        }
        assert!(chains.recent.get(&did(1)).is_none());
        for late in [1, 49, 60] {
            chains.put_late(did(late)).unwrap();
            assert!(chains.is_late(&did(late)).unwrap());
        }
        for n in 100..150 {
            chains.put(did(n), Chain::from_links(vec![link(n)])).unwrap();
        }
        for late in [1, 49, 60] {
            assert!(chains.recent.get(&did(late)).is_none() && chains.is_late(&did(late)).unwrap());
            assert_eq!(chains.take(&did(late)).unwrap(), Met::Late);
        }
        assert!(!chains.is_late(&did(100)).unwrap() && !chains.is_late(&did(2)).unwrap());
    }
}
