//! Judging a log that is read from a file, from its first line to its last, in bounded memory:
//! the chains of identities not met for long go to a temporary database.
//!
//! No identity has to do with another, so that they are dealt out to a number of shares that are
//! worked on side by side.

use std::collections::BTreeMap;

use ahash::{AHashMap, RandomState};
use bytes::Bytes;
use lru::LruCache;
use rayon::prelude::*;
use rusqlite::{Connection, OptionalExtension, params};

use crate::judge::{self, Candidate, Group, Judged, Place};
use crate::store::DivergenceKind;
use did_plc::chain::{Chain, Link, Restated};
use did_plc::entry::{Received, Undecodable};
use did_plc::signature::Verifier;
use did_plc::{Cid, Did, Timestamp, Verdict};

/// Shares that the identities are dealt out to: enough for the cores of most machines.
const SHARES: usize = 16;
/// Memory of the chains that a share keeps there, 160 MB in all: about 400,000 operations. The rest
/// is in its temporary database.
const MAX_BYTES: usize = 10 << 20;
/// What an identity takes there beside its chain: its place in the list and in the table, half of
/// which may be empty.
const IDENTITY: usize = 160;

/// A line that was not accepted, that says otherwise than an earlier one, or whose flag is wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Number of the line, or of the element of an audit log, from 1.
    pub line: u64,
    /// The DID as stated.
    pub did: String,
    /// The CID, computed where it could be.
    pub cid: String,
    /// The refusal's name, that of a restated [`DivergenceKind`], or `nullified-flag`.
    pub kind: String,
    /// What was expected.
    pub expected: String,
}

/// What came of a whole log.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Lines that were read.
    pub operations: u64,
    /// Different identities with an accepted operation.
    pub identities: u64,
    /// Operations that were accepted.
    pub accepted: u64,
    /// Lines with an operation that was there before.
    pub repeated: u64,
    /// Those of them that say otherwise than the line before.
    pub restated: u64,
    /// Lines that were refused, by the refusal's name.
    pub refused: BTreeMap<String, u64>,
    /// Operations whose stated `nullified` flag is not what the log leads to.
    pub wrong_flags: u64,
}

impl Summary {
    /// Whether everything was accepted and every statement agrees.
    pub fn is_clean(&self) -> bool {
        self.refused.is_empty() && self.restated == 0 && self.wrong_flags == 0
    }
}

/// The temporary database failed.
#[derive(Debug, thiserror::Error)]
#[error("the temporary database for what does not fit into memory failed: {0}")]
pub struct SpillError(#[from] rusqlite::Error);

/// Judges a log block by block.
pub struct OfflineJudge<'a> {
    verifier: &'a dyn Verifier,
    shares: Vec<Share>,
    /// Of all shares.
    summary: Summary,
}

/// Some of the identities.
#[derive(Default)]
struct Share {
    chains: Chains,
    /// Operations stated to be nullified, until something in the log nullifies them.
    stated_nullified: AHashMap<(Did, Timestamp), (u64, Cid)>,
}

/// What came of a share of a block.
#[derive(Default)]
struct Outcome {
    findings: Vec<Finding>,
    new_identities: u64,
    accepted: u64,
    repeated: u64,
    restated: u64,
    wrong_flags: u64,
}

impl<'a> OfflineJudge<'a> {
    /// A judge that has seen nothing.
    pub fn new(verifier: &'a dyn Verifier) -> OfflineJudge<'a> {
        let shares = (0..SHARES).map(|_| Share::default()).collect();
        OfflineJudge { verifier, shares, summary: Summary::default() }
    }

    /// Judges the next lines of the log, each with its number; what is wrong with them, in order.
    ///
    /// # Errors
    ///
    /// When the temporary database fails.
    pub fn judge(&mut self, block: &[(u64, Bytes)]) -> Result<Vec<Finding>, SpillError> {
        let lines: Vec<Bytes> = block.iter().map(|(_, line)| line.clone()).collect();
        let mut findings = Vec::new();
        let mut dealt: Vec<Vec<Candidate>> = self.shares.iter().map(|_| Vec::new()).collect();
        for (index, decoded) in judge::decode(&lines).into_iter().enumerate() {
            match decoded {
                Ok(received) => dealt[share_of(&received.did)].push(Candidate {
                    place: Place::Line(index),
                    received,
                    number_held_by: None,
                }),
                Err(undecodable) => findings.push(undecodable_finding(block[index].0, undecodable)),
            }
        }
        let verifier = self.verifier;
        let outcomes: Vec<Outcome> = self
            .shares
            .par_iter_mut()
            .zip(dealt)
            .map(|(share, candidates)| share.judge(block, candidates, verifier))
            .collect::<Result<_, _>>()?;
        self.summary.operations += block.len() as u64;
        for outcome in outcomes {
            self.summary.identities += outcome.new_identities;
            self.summary.accepted += outcome.accepted;
            self.summary.repeated += outcome.repeated;
            self.summary.restated += outcome.restated;
            self.summary.wrong_flags += outcome.wrong_flags;
            findings.extend(outcome.findings);
        }
        for finding in findings.iter().filter(|finding| is_refusal(&finding.kind)) {
            *self.summary.refused.entry(finding.kind.clone()).or_default() += 1;
        }
        findings.sort_by_key(|finding| finding.line);
        Ok(findings)
    }

    /// Ends the log: flags that nothing in it bore out, and the summary.
    pub fn finish(mut self) -> (Vec<Finding>, Summary) {
        let stated = self.shares.into_iter().flat_map(|share| share.stated_nullified);
        let mut findings: Vec<Finding> = stated
            .map(|((did, _), (line, cid))| Finding {
                line,
                did: did.to_string(),
                cid: cid.to_string(),
                kind: WRONG_FLAG.to_owned(),
                expected: "stated to be nullified, and nothing in the log nullifies it".to_owned(),
            })
            .collect();
        findings.sort_by_key(|finding| finding.line);
        self.summary.wrong_flags += findings.len() as u64;
        (findings, self.summary)
    }
}

/// By the last bits of an identity, which are as random as a hash; [`mark`] goes by the first.
fn share_of(did: &Did) -> usize {
    let [.., last] = did.as_bytes();
    usize::from(*last) % SHARES
}

impl Share {
    fn judge(
        &mut self,
        block: &[(u64, Bytes)],
        candidates: Vec<Candidate>,
        verifier: &dyn Verifier,
    ) -> Result<Outcome, SpillError> {
        let mut groups = judge::group(candidates.into_iter());
        for (did, group) in &mut groups {
            group.chain = self.chains.take(did)?;
        }
        let unknown = |groups: &[(Did, Group)]| {
            groups.iter().filter(|(_, group)| group.chain.links().is_empty()).count() as u64
        };
        let before = unknown(&groups);
        let judged = judge::judge(&mut groups, verifier);
        let mut outcome =
            Outcome { new_identities: before - unknown(&groups), ..Outcome::default() };
        for judged in judged {
            let Place::Line(index) = judged.candidate.place else { continue };
            self.note(block[index].0, judged, &mut outcome);
        }
        for (did, Group { chain, .. }) in groups {
            self.chains.put(did, chain)?;
        }
        Ok(outcome)
    }

    fn note(&mut self, line: u64, judged: Judged, outcome: &mut Outcome) {
        let received = judged.candidate.received;
        match judged.verdict {
            Verdict::Accepted(acceptance) => {
                outcome.accepted += 1;
                if received.nullified == Some(true) {
                    self.stated_nullified
                        .insert((received.did, received.created_at), (line, received.cid));
                }
                let unstated: Vec<Timestamp> = acceptance
                    .nullifies
                    .into_iter()
                    .filter(|at| self.stated_nullified.remove(&(received.did, *at)).is_none())
                    .collect();
                // Logs without flags state nothing that could be wrong.
                if received.nullified.is_none() || unstated.is_empty() {
                    return;
                }
                outcome.wrong_flags += unstated.len() as u64;
                let times: Vec<String> = unstated.iter().map(Timestamp::to_string).collect();
                outcome.findings.push(Finding {
                    line,
                    did: received.did.to_string(),
                    cid: received.cid.to_string(),
                    kind: WRONG_FLAG.to_owned(),
                    expected: format!(
                        "this operation nullifies what was accepted at {}, stated not to be",
                        times.join(" and ")
                    ),
                });
            }
            Verdict::Known(restated) => {
                outcome.repeated += 1;
                if !restated.agrees() {
                    outcome.restated += 1;
                    outcome.findings.extend(restated_findings(line, &received, &restated));
                }
            }
            Verdict::Refused(refusal) => outcome.findings.push(Finding {
                line,
                did: received.did.to_string(),
                cid: received.cid.to_string(),
                kind: refusal.kind().to_owned(),
                expected: refusal.to_string(),
            }),
        }
    }
}

const WRONG_FLAG: &str = "nullified-flag";

fn is_refusal(kind: &str) -> bool {
    kind != WRONG_FLAG && DivergenceKind::of_name(kind).is_none()
}

/// What a line says otherwise than the one that brought its operation.
fn restated_findings(
    line: u64,
    received: &Received,
    restated: &Restated,
) -> impl Iterator<Item = Finding> {
    let expected = |kind| match kind {
        DivergenceKind::RestatedCid => {
            restated.cid.as_ref().map(|stated| format!("the CID of this operation, not {stated}"))
        }
        DivergenceKind::RestatedCreatedAt => {
            let held = restated.created_at;
            held.map(|held| format!("{held} as before, not {}", received.created_at))
        }
        _ => restated
            .sequence
            .zip(received.sequence)
            .map(|(held, stated)| format!("sequence number {held} as before, not {stated}")),
    };
    let (did, cid) = (received.did.to_string(), received.cid.to_string());
    DivergenceKind::of_restated(restated).filter_map(move |kind| {
        let (did, cid, expected) = (did.clone(), cid.clone(), expected(kind)?);
        Some(Finding { line, did, cid, kind: kind.name().to_owned(), expected })
    })
}

fn undecodable_finding(line: u64, undecodable: Undecodable) -> Finding {
    let Undecodable { did, cid, refusal, .. } = undecodable;
    Finding { line, did, cid, kind: refusal.kind().to_owned(), expected: refusal.to_string() }
}

/// All chains of a share so far.
struct Chains {
    /// Each with what it takes.
    recent: LruCache<Did, (Chain, usize), RandomState>,
    bytes: usize,
    spilled: Option<Spilled>,
}

/// The chains that are in the temporary database.
struct Spilled {
    connection: Connection,
    /// A bit for each [`mark`] that is there: most of a log are new identities, which need not be
    /// looked up then.
    marks: Vec<u64>,
}

impl Default for Chains {
    fn default() -> Chains {
        Chains {
            recent: LruCache::unbounded_with_hasher(RandomState::new()),
            bytes: 0,
            spilled: None,
        }
    }
}

impl Chains {
    fn take(&mut self, did: &Did) -> Result<Chain, SpillError> {
        if let Some((chain, bytes)) = self.recent.pop(did) {
            self.bytes -= bytes;
            return Ok(chain);
        }
        let Some(spilled) = self.spilled.as_ref().filter(|spilled| spilled.has_mark(did)) else {
            return Ok(Chain::default());
        };
        let bytes: Option<Vec<u8>> = spilled
            .connection
            .prepare_cached("SELECT links FROM chains WHERE did = ?1")?
            .query_row([did.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(bytes.map(|bytes| Chain::from_links(read_links(&bytes))).unwrap_or_default())
    }

    fn put(&mut self, did: Did, chain: Chain) -> Result<(), SpillError> {
        if chain.links().is_empty() {
            return Ok(());
        }
        let bytes = IDENTITY + chain.bytes();
        self.bytes += bytes;
        self.recent.push(did, (chain, bytes));
        if self.bytes > MAX_BYTES {
            self.spill()?;
        }
        Ok(())
    }

    /// Moves the half not met for longest into the temporary database.
    fn spill(&mut self) -> Result<(), SpillError> {
        let mut spilled = match self.spilled.take() {
            Some(spilled) => spilled,
            None => Spilled::open()?,
        };
        spilled.connection.execute_batch("BEGIN")?;
        while self.bytes > MAX_BYTES / 2 {
            let Some((did, (chain, bytes))) = self.recent.pop_lru() else { break };
            self.bytes -= bytes;
            spilled.put(&did, &chain)?;
        }
        spilled.connection.execute_batch("COMMIT")?;
        self.spilled = Some(spilled);
        Ok(())
    }
}

/// Bits of an identity that [`Spilled::marks`] goes by: 2 MB, 32 MB in all shares, and at 50
/// million identities four of five new ones are still told from the old.
const MARK_BITS: usize = 24;
/// Memory of a temporary database, in kB: 64 MB in all shares.
const SPILLED_CACHE: u32 = 4 << 10;

/// The first bits of an identity, which are as random as a hash.
fn mark(did: &Did) -> usize {
    let bytes = did.as_bytes();
    let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    first as usize >> (32 - MARK_BITS)
}

impl Spilled {
    /// A database without a name: SQLite keeps it in a temporary file that is gone when it is
    /// closed.
    fn open() -> Result<Spilled, SpillError> {
        let connection = Connection::open("")?;
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{SPILLED_CACHE};
             CREATE TABLE chains (did BLOB PRIMARY KEY, links BLOB NOT NULL) WITHOUT ROWID;",
        ))?;
        Ok(Spilled { connection, marks: vec![0; 1 << (MARK_BITS - 6)] })
    }

    fn has_mark(&self, did: &Did) -> bool {
        let mark = mark(did);
        self.marks[mark >> 6] >> (mark & 63) & 1 == 1
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
    use did_plc::signature::PlainVerifier;
    use plc_testkit::Generated;
    use plc_testkit::builder::Story;

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
    fn a_line_that_comes_again_and_says_otherwise_is_found() {
        let mut story = Story::seeded(1);
        story.create().accepted();
        let honest = &story.log()[0];
        let later = "2030-01-01T00:00:00.000Z".to_owned();
        let moved = Generated { seq: honest.seq + 1, created_at: later, ..honest.clone() };
        let renamed = Generated { cid: Cid::of(b"another").to_string(), ..honest.clone() };
        let block: Vec<(u64, Bytes)> = (1..)
            .zip([honest, honest, &moved, &renamed])
            .map(|(number, entry)| (number, entry.sequenced_line().into()))
            .collect();
        let mut judge = OfflineJudge::new(&PlainVerifier);
        let findings = judge.judge(&block).unwrap();
        let found: Vec<_> = findings.iter().map(|found| (found.line, &*found.kind)).collect();
        assert_eq!(
            found,
            [(3, "restated-created-at"), (3, "restated-sequence"), (4, "restated-cid")]
        );
        let (_, summary) = judge.finish();
        assert_eq!((summary.accepted, summary.repeated, summary.restated), (1, 3, 2));
        assert!(summary.refused.is_empty() && !summary.is_clean());
    }

    #[test]
    fn chains_come_back_from_the_temporary_database() {
        let links: Vec<Link> = (0..50).map(link).collect();
        assert_eq!(read_links(&write_links(&links)), links);

        let mut chains = Chains::default();
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
        assert!(chains.spilled.is_some() && chains.bytes <= MAX_BYTES);
        for n in [0, identities / 2, identities - 1] {
            assert_eq!(chains.take(&did(n)).unwrap().links(), many);
        }
        assert!(chains.take(&did(identities)).unwrap().links().is_empty());

        // One operation whose keys, without a letter, take all the room.
        let keys = vec![Box::default(); MAX_BYTES / size_of::<Box<str>>()].into();
        let vast = Chain::from_links(vec![Link { rotation_keys: keys, ..link(1) }]);
        chains.put(did(identities), vast.clone()).unwrap();
        assert!(chains.recent.is_empty() && chains.bytes == 0);
        assert_eq!(chains.take(&did(identities)).unwrap(), vast);
    }
}
