//! From received lines to verdicts, a batch at a time: decoded in parallel, grouped by identity,
//! each group judged in parallel against its chain. CPU only; who calls brings the chains.

use std::collections::hash_map::Entry as MapEntry;

use ahash::AHashMap;
use bytes::Bytes;
use rayon::prelude::*;

use did_plc::entry::{Received, Undecodable};
use did_plc::signature::Verifier;
use did_plc::{Chain, Cid, Did, Operation, Verdict};

/// Decodes lines on all cores, in their order.
pub fn decode(lines: &[Bytes]) -> Vec<Result<Received, Undecodable>> {
    lines.par_iter().with_min_len(DECODE_CHUNK).map(|line| Received::decode(line)).collect()
}

/// Lines that one thread decodes in a row: some tens of microseconds, so that handing out work
/// costs little beside it.
const DECODE_CHUNK: usize = 32;

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
    /// What the caller knows it by.
    pub place: Place,
    /// The operation.
    pub received: Received,
    /// Another operation that holds the same sequence number.
    pub number_held_by: Option<Cid>,
}

/// Where a candidate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Index of the line in the batch.
    Line(usize),
    /// A refusal kept earlier, by its number, that is judged again when its `prev` is accepted.
    Kept(i64),
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
    let mut claims = Claims::of(groups);
    for (_, group) in groups.iter_mut() {
        // One after the other: whether a claim stands depends on those before it.
        if claims.concern(group) {
            judged.extend(group.judge(verifier, &mut claims));
        }
    }
    judged.par_extend(
        groups
            .par_iter_mut()
            .with_min_len(GROUP_CHUNK)
            .flat_map_iter(|(_, group)| group.judge(verifier, &mut Claims::default())),
    );
    judged
}

/// The numbers that several operations of a batch claim, each with the one that has it by now.
///
/// Lines claim each number once, since a batch is cut where they do not; refusals that were kept
/// earlier come to be judged with any lines.
#[derive(Debug, Default)]
struct Claims(AHashMap<i64, Option<(Did, Cid)>>);

impl Claims {
    fn of(groups: &[(Did, Group)]) -> Claims {
        let candidates = || groups.iter().flat_map(|(_, group)| &group.candidates);
        if !candidates().any(|candidate| matches!(candidate.place, Place::Kept(_))) {
            return Claims::default();
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
        Claims(contested)
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
    fn judge(&mut self, verifier: &dyn Verifier, claims: &mut Claims) -> Vec<Judged> {
        let mut judged = Vec::with_capacity(self.candidates.len());
        let (kept, arriving): (Vec<_>, Vec<_>) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition(|candidate| matches!(candidate.place, Place::Kept(_)));
        // Each with the operation that it waits for.
        let mut waiting: Vec<(Cid, Candidate)> =
            kept.into_iter().filter_map(|kept| Some((prev(&kept.received)?, kept))).collect();
        for candidate in arriving {
            let mut next = Some(candidate);
            while let Some(candidate) = next.take() {
                let verdict = self.take(&candidate, verifier, claims);
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
        for candidate in left.filter(|left| matches!(left.place, Place::Line(_))) {
            let verdict = self.take(&candidate, verifier, claims);
            judged.push(Judged { candidate, verdict });
        }
        judged
    }

    fn take(
        &mut self,
        candidate: &Candidate,
        verifier: &dyn Verifier,
        claims: &mut Claims,
    ) -> Verdict {
        let received = &candidate.received;
        let holder = || candidate.number_held_by.or_else(|| claims.claim(received));
        self.chain.take(received, verifier, holder)
    }
}

/// The operation that `prev` names.
fn prev(received: &Received) -> Option<Cid> {
    Operation::read(&received.signed).ok()?.prev()?.parse().ok()
}
