//! Verdicts on a batch of operations: grouped by identity, each group judged in parallel against its
//! chain. CPU only; who calls brings the chains.

use std::collections::hash_map::Entry as MapEntry;

use ahash::AHashMap;
use rayon::prelude::*;

use did_plc::entry::Received;
use did_plc::signature::Verifier;
use did_plc::{Chain, Cid, Did, Operation, Verdict};

/// The operations of one identity in a batch, and its chain before them.
#[derive(Debug, Default)]
pub struct Group {
    /// The chain; after judging with what was accepted.
    pub chain: Chain,
    /// Candidates in the order of receipt.
    pub candidates: Vec<Candidate>,
}

/// An operation to be judged.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The line that brought it.
    pub line: LineRef,
    /// The operation.
    pub received: Received,
    /// Another operation that holds the same sequence number.
    pub number_held_by: Option<Cid>,
}

/// Which line brought a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineRef {
    /// One of the batch, by its index there.
    New(usize),
    /// One that was refused earlier and kept, by the number of its record. It is judged again when its
    /// `prev` is accepted.
    Kept(i64),
}

impl Candidate {
    /// The operation of a line of the batch.
    pub fn new(index: usize, received: Received) -> Candidate {
        Candidate { line: LineRef::New(index), received, number_held_by: None }
    }

    /// The operation of a refusal that was kept earlier under this number.
    pub fn kept(id: i64, received: Received) -> Candidate {
        Candidate { line: LineRef::Kept(id), received, number_held_by: None }
    }

    fn is_kept(&self) -> bool {
        matches!(self.line, LineRef::Kept(_))
    }
}

/// A candidate and its verdict.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The candidate.
    pub candidate: Candidate,
    /// What was decided.
    pub verdict: Verdict,
}

/// Groups candidates by identity, in the order in which the identities first appear.
pub fn group(candidates: impl Iterator<Item = Candidate>) -> Vec<(Did, Group)> {
    let mut places: AHashMap<Did, usize> = AHashMap::new();
    let mut groups: Vec<(Did, Group)> = Vec::new();
    for candidate in candidates {
        let did = candidate.received.did;
        let at = match places.entry(did) {
            MapEntry::Occupied(place) => *place.get(),
            MapEntry::Vacant(place) => {
                groups.push((did, Group::default()));
                *place.insert(groups.len() - 1)
            }
        };
        groups[at].1.candidates.push(candidate);
    }
    groups
}

/// Judges all groups on all cores. Each group's chain ends up with what was accepted of it, and
/// its candidates move into the answer.
pub fn judge(groups: &mut [(Did, Group)], verifier: &dyn Verifier) -> Vec<Judged> {
    let mut judged = Vec::new();
    let mut numbers = ContestedNumbers::of(groups);
    for (_, group) in groups.iter_mut() {
        // One after the other: whether a claim stands depends on those before it.
        if numbers.concern(group) {
            judged.extend(group.judge(verifier, &mut numbers));
        }
    }
    judged.par_extend(
        groups
            .par_iter_mut()
            .with_min_len(GROUP_CHUNK)
            .flat_map_iter(|(_, group)| group.judge(verifier, &mut ContestedNumbers::default())),
    );
    judged
}

/// The numbers that several operations of a batch claim, each with the one that has it by now.
///
/// Lines claim each number once, since a batch is cut where they do not; refusals that were kept
/// earlier come to be judged with any lines.
#[derive(Debug, Default)]
struct ContestedNumbers(AHashMap<i64, Option<(Did, Cid)>>);

impl ContestedNumbers {
    fn of(groups: &[(Did, Group)]) -> ContestedNumbers {
        let candidates = || groups.iter().flat_map(|(_, group)| &group.candidates);
        if !candidates().any(|candidate| candidate.is_kept()) {
            return ContestedNumbers::default();
        }
        let mut first = AHashMap::new();
        let mut contested = AHashMap::new();
        for Candidate { received, .. } in candidates() {
            let Some(number) = received.sequence else { continue };
            let claim = (received.did, received.cid);
            if *first.entry(number).or_insert(claim) != claim {
                contested.insert(number, None);
            }
        }
        ContestedNumbers(contested)
    }

    /// Whether one of these numbers is claimed in the group.
    fn concern(&self, group: &Group) -> bool {
        let mut numbers =
            group.candidates.iter().filter_map(|candidate| candidate.received.sequence);
        !self.0.is_empty() && numbers.any(|number| self.0.contains_key(&number))
    }

    /// Gives an operation the number that it claims, unless another one has it, which is returned.
    fn claim(&mut self, received: &Received) -> Option<Cid> {
        let place = self.0.get_mut(&received.sequence?)?;
        let claim = (received.did, received.cid);
        let holder = *place.get_or_insert(claim);
        (holder != claim).then_some(holder.1)
    }
}

/// Identities that one thread judges in a row.
const GROUP_CHUNK: usize = 4;

impl Group {
    /// Judges the candidates in turn. One that is refused because its `prev` is not here is
    /// judged again as soon as that `prev` is accepted, whether it came with this batch or was
    /// kept from an earlier one.
    fn judge(&mut self, verifier: &dyn Verifier, numbers: &mut ContestedNumbers) -> Vec<Judged> {
        let mut judged = Vec::with_capacity(self.candidates.len());
        let (kept, arriving): (Vec<_>, Vec<_>) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition(|candidate| candidate.is_kept());
        // Each with the operation that it waits for.
        let mut waiting: Vec<(Cid, Candidate)> =
            kept.into_iter().filter_map(|kept| Some((prev(&kept.received)?, kept))).collect();
        for candidate in arriving {
            let mut next = Some(candidate);
            while let Some(candidate) = next.take() {
                let verdict = self.take(&candidate, verifier, numbers);
                let awaited = match &verdict {
                    Verdict::Refused(refusal) => refusal.awaits(),
                    _ => None,
                };
                if let Some(awaited) = awaited {
                    waiting.push((awaited, candidate));
                    break;
                }
                judged.push(Judged { candidate, verdict });
                // Whatever waited for something that is in the chain now is judged again.
                let freed = waiting.iter().position(|(prev, _)| self.chain.find(prev).is_some());
                next = freed.map(|at| waiting.remove(at).1);
            }
        }
        // What still waits has been judged for the last time here. A kept one that nothing freed
        // stays as it is on record.
        let left = waiting.into_iter().map(|(_, left)| left);
        for candidate in left.filter(|left| !left.is_kept()) {
            let verdict = self.take(&candidate, verifier, numbers);
            judged.push(Judged { candidate, verdict });
        }
        judged
    }

    fn take(
        &mut self,
        candidate: &Candidate,
        verifier: &dyn Verifier,
        numbers: &mut ContestedNumbers,
    ) -> Verdict {
        let received = &candidate.received;
        let holder = || candidate.number_held_by.or_else(|| numbers.claim(received));
        self.chain.take(received, verifier, holder)
    }
}

/// The operation that `prev` names.
fn prev(received: &Received) -> Option<Cid> {
    Operation::read(&received.signed).ok()?.prev()?.parse().ok()
}
