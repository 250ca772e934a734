//! Verdicts on a batch of operations: grouped by identity, each group judged in parallel against its
//! chain. CPU only; who calls brings the chains.

use std::collections::hash_map::Entry as MapEntry;

use ahash::AHashMap;
use rayon::prelude::*;

use did_plc::entry::Received;
use did_plc::signature::Verifier;
use did_plc::{Chain, Did, Verdict, order};

/// Identities that one thread judges in a row.
const GROUP_CHUNK: usize = 4;

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
    /// The line of the batch that brought it, by its index there.
    pub line: usize,
    /// The operation.
    pub received: Received,
}

/// A candidate and its verdict.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The candidate.
    pub candidate: Candidate,
    /// What was decided.
    pub verdict: Verdict,
}

impl Judged {
    /// Whether the operation had no number before this line: it is new, or was without one.
    pub fn has_no_number(&self) -> bool {
        match &self.verdict {
            Verdict::Known(restated) => restated.numbered.is_some(),
            Verdict::Accepted(_) | Verdict::Refused(_) => true,
        }
    }
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
    groups
        .par_iter_mut()
        .with_min_len(GROUP_CHUNK)
        .flat_map_iter(|(_, group)| group.judge(verifier))
        .collect()
}

/// The verdicts on each of the groups that were [judged](judge), in the order of the groups.
pub fn by_identity(judged: &[Judged]) -> impl Iterator<Item = &[Judged]> {
    judged.chunk_by(|one, next| one.candidate.received.did == next.candidate.received.did)
}

impl Group {
    /// Whether everything that is new comes after all that was judged of the identity, and one later
    /// than the other: then what is in the chain stays as it is, whatever the verdicts.
    pub fn is_in_order(&self) -> bool {
        let links = self.chain.links();
        if !links.is_sorted_by(|a, b| a.created_at < b.created_at) {
            return false;
        }
        let mut latest = links.last().map(|link| link.created_at);
        // One later than the other.
        let mut new: Vec<&Received> = Vec::new();
        for Candidate { received, .. } in &self.candidates {
            if let Some(held) = self.chain.find(&received.cid) {
                if held.sequence.is_some_and(|held| received.sequence.is_some_and(|it| it != held))
                {
                    return false;
                }
                continue;
            }
            if latest.is_some_and(|latest| received.created_at <= latest) {
                let before = new.binary_search_by_key(&received.created_at, |new| new.created_at);
                if before.is_ok_and(|before| is_the_same_statement(new[before], received)) {
                    continue;
                }
                return false;
            }
            latest = Some(received.created_at);
            new.push(received);
        }
        true
    }

    /// Whether everything that is in the chain already is stated with the time that it has there.
    pub fn agrees_on_times(&self) -> bool {
        self.candidates.iter().all(|Candidate { received, .. }| {
            let held = self.chain.find(&received.cid);
            let is_other = held.is_some_and(|held| held.created_at != received.created_at);
            // A line that is not what it says states no time either.
            !is_other || received.stated_cid.is_some()
        })
    }

    /// Judges the candidates in the order of their times.
    fn judge(&mut self, verifier: &dyn Verifier) -> Vec<Judged> {
        let mut candidates = std::mem::take(&mut self.candidates);
        order::sort(
            &mut candidates,
            |candidate| candidate.received.created_at,
            |candidate| &candidate.received.signed,
        );
        let judged = candidates.into_iter().map(|candidate| {
            let verdict = self.chain.take(&candidate.received, verifier);
            Judged { candidate, verdict }
        });
        let mut judged: Vec<Judged> = judged.collect();
        for Judged { candidate, verdict } in &mut judged {
            if let Verdict::Refused(refusal) = verdict {
                *refusal = self.chain.explain(&candidate.received, refusal.clone());
            }
        }
        judged
    }
}

fn is_the_same_statement(one: &Received, other: &Received) -> bool {
    one.cid == other.cid
        && one.created_at == other.created_at
        && one.sequence == other.sequence
        && one.stated_cid == other.stated_cid
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::chain::Link;
    use did_plc::{Cid, Timestamp};

    fn statement(cid: u64, second: i64, number: i64) -> Received {
        let signed = cid.to_be_bytes().to_vec();
        Received {
            did: Did::from_bytes([0; 15]),
            cid: Cid::of(&signed),
            stated_cid: None,
            created_at: Timestamp::from_millis(1000 * second),
            sequence: Some(number),
            nullified: None,
            received_at: None,
            signed: signed.into(),
        }
    }

    fn link(of: Received) -> Link {
        Link {
            cid: of.cid,
            created_at: of.created_at,
            sequence: of.sequence,
            rotation_keys: Box::default(),
            tombstone: false,
            signer: 0,
            nullified_by: None,
        }
    }

    fn is_in_order(held: &[Received], come: &[Received]) -> bool {
        let candidates = come.iter().cloned().enumerate();
        let group = Group {
            chain: Chain::from_links(held.iter().cloned().map(link).collect()),
            candidates: candidates.map(|(line, received)| Candidate { line, received }).collect(),
        };
        group.is_in_order()
    }

    #[test]
    fn what_is_stated_twice_is_in_order_where_it_is_stated_alike() {
        let held = [statement(1, 1, 1), statement(2, 2, 2)];
        let [third, fourth, fifth] = [3, 4, 5].map(|n| statement(n, n as i64, n as i64));
        let come = |more: &[Received]| {
            let come = [&[third.clone(), fourth.clone(), fifth.clone()], more].concat();
            is_in_order(&held, &come)
        };
        assert!(come(&[]));
        assert!(come(&[third.clone(), fifth.clone(), fourth.clone(), held[0].clone()]));
        assert!(come(&[fourth.clone(), statement(6, 6, 6), fourth.clone()]));
        // With another number, time, or CID.
        assert!(!come(&[statement(4, 4, 9)]));
        assert!(!come(&[statement(1, 1, 9)]));
        assert!(!come(&[statement(4, 3, 4)]));
        assert!(!come(&[statement(9, 4, 4)]));
        assert!(!come(&[Received { stated_cid: Some("other".into()), ..fourth.clone() }]));
        // Later than what is held, or not.
        assert!(!come(&[statement(6, 2, 6)]));
        assert!(!is_in_order(&held, &[statement(3, 2, 3)]));
        assert!(!is_in_order(&[held[1].clone(), held[0].clone()], std::slice::from_ref(&third)));
    }

    #[test]
    fn a_long_identity_takes_no_time_that_grows_with_its_square() {
        let length = 20_000;
        let told: Vec<Received> = (0..length).map(|n| statement(n, n as i64, n as i64)).collect();
        let (held, new) = told.split_at(told.len() / 2);
        let begun = std::time::Instant::now();
        assert!(is_in_order(held, &[held, new, new].concat()));
        // A tenth of that is more than it takes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    }
}
