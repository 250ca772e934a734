//! Identities judged as a whole: everything that is known of one, in the order of its times, whatever
//! of it came when. This is for what does not come after all that is known already; CPU only.

use ahash::{AHashMap, AHashSet};
use rayon::prelude::*;

use super::chains;
use super::verdict::Candidate;
use crate::store::{NewRefusal, RefusalKey, StoreError, StoredOperation, StoredRefusal};
use did_plc::chain::{Link, Restated};
use did_plc::entry::Received;
use did_plc::signature::Verifier;
use did_plc::{Chain, Cid, Did, Refusal, Timestamp, Verdict, order};

/// What is known of an identity, and what has come of it.
#[derive(Debug)]
pub struct Known {
    /// The identity.
    pub did: Did,
    /// Its operations, as they are stored.
    pub stored: Vec<StoredOperation>,
    /// What was refused of it and still is.
    pub refused: Vec<StoredRefusal>,
    /// What has come, in the order of receipt.
    pub candidates: Vec<Candidate>,
    /// Whether the times that it states are those of the stored operations from now on.
    pub takes_times: bool,
}

/// The times of the stored operations of an identity, by their CIDs.
type Held = AHashMap<Cid, Timestamp>;

/// An identity judged as a whole.
#[derive(Debug)]
pub struct Whole {
    /// The identity.
    pub did: Did,
    /// Its chain, with all that is accepted.
    pub chain: Chain,
    /// The operations that were stored.
    pub stored: Vec<StoredOperation>,
    /// The operations that are accepted, in the order in which they were judged.
    pub operations: Vec<StoredOperation>,
    /// What has come, in the order of receipt.
    pub candidates: Vec<Candidate>,
    /// What has come and is accepted now, and was not before.
    pub accepted: Vec<Candidate>,
    /// What has come and was known, with what is stated otherwise.
    pub restated: Vec<(Candidate, Restated)>,
    /// What is refused, and is not on record with this reason.
    pub refused: Vec<(Statement, Refusal)>,
    /// Refusals on record whose operation is accepted now.
    pub lifted: Vec<RefusalKey>,
    /// Operations among those with a number that was stated when they were refused: the record's number, the
    /// sequence number, and the CID.
    pub freed: Vec<(i64, i64, Cid)>,
}

impl Whole {
    /// An identity with this chain and these operations.
    fn of(did: Did, chain: Chain, operations: Vec<StoredOperation>) -> Whole {
        Whole {
            did,
            chain,
            stored: Vec::new(),
            operations,
            candidates: Vec::new(),
            accepted: Vec::new(),
            restated: Vec::new(),
            refused: Vec::new(),
            lifted: Vec::new(),
            freed: Vec::new(),
        }
    }
}

/// That somebody has stated an operation of the identity.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The operation, and what was stated of it.
    pub received: Received,
    /// Where the statement is.
    pub origin: Origin,
}

/// Where a statement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Among the stored operations, by its index.
    Stored(usize),
    /// Among the refusals on record, by its index.
    Refused(usize),
    /// A line of the batch, by its index there.
    Line(usize),
}

/// Judges identities on all cores. New operations were received at this time.
///
/// # Errors
///
/// [`StoreError::Damaged`] when a stored operation is not what was verified. What is judged is written in place of
/// what is stored: a damaged operation would be refused, and go.
pub fn judge(
    known: Vec<Known>,
    verifier: &dyn Verifier,
    received_at: Timestamp,
) -> Result<Vec<Whole>, StoreError> {
    known.into_par_iter().map(|known| known.judge(verifier, received_at)).collect()
}

impl Known {
    fn held(&self) -> Held {
        self.stored.iter().map(|stored| (stored.cid(), stored.created_at)).collect()
    }

    /// The statements that are judged, in their order.
    ///
    /// What is stored is judged at the time at which it was accepted, whatever else is stated since: that is a
    /// difference to be recorded, but for the second reading. Of what is not stored every time that was
    /// stated counts.
    fn statements(&self, held: &Held) -> Vec<Statement> {
        let stored = self.stored.iter().enumerate().map(|(index, stored)| Statement {
            received: stored.as_received(),
            origin: Origin::Stored(index),
        });
        let mut statements: Vec<Statement> = stored.collect();
        if self.takes_times {
            let stated =
                |Candidate { received, .. }: &Candidate| (received.cid, received.created_at);
            // The one that was stated last, by a line that is what it says.
            let lines = self.candidates.iter().filter(|it| it.received.stated_cid.is_none());
            let stated: AHashMap<Cid, Timestamp> = lines.map(stated).collect();
            for Statement { received, .. } in &mut statements {
                received.created_at =
                    stated.get(&received.cid).copied().unwrap_or(received.created_at);
            }
        }
        let refused = self.refused.iter().enumerate().filter_map(|(index, kept)| {
            let received = Received::decode(&kept.refusal.line).ok()?;
            let received = Received { sequence: kept.refusal.sequence, ..received };
            Some(Statement { received, origin: Origin::Refused(index) })
        });
        let candidates = self.candidates.iter().map(|candidate| Statement {
            received: candidate.received.clone(),
            origin: Origin::Line(candidate.line),
        });
        let new = refused.chain(candidates).filter(|Statement { received, .. }| {
            received.did == self.did
                && received.stated_cid.is_none()
                && !held.contains_key(&received.cid)
        });
        statements.extend(new);
        order::sort(
            &mut statements,
            |statement| statement.received.created_at,
            |statement| &statement.received.signed,
        );
        statements
    }

    /// Whether nothing has come that is not stored with its time, as when only numbers change: no verdict can be
    /// another then.
    fn is_unchanged(&self, held: &Held) -> bool {
        self.candidates.iter().all(|Candidate { received, .. }| {
            held.contains_key(&received.cid) && self.other_time(received, held).is_none()
        })
    }

    fn judge(self, verifier: &dyn Verifier, received_at: Timestamp) -> Result<Whole, StoreError> {
        let held = self.held();
        let chain = chains::of_identity(self.did, &self.stored)?;
        let mut whole = if self.is_unchanged(&held) {
            Whole::of(self.did, chain, self.stored.clone())
        } else {
            chains::check_last(&chain, &self.stored, verifier)?;
            self.judge_statements(&held, verifier, received_at)
        };
        self.note_lifted(&mut whole);
        self.note_candidates(&held, &mut whole);
        Ok(Whole { stored: self.stored, candidates: self.candidates, ..whole })
    }

    fn judge_statements(
        &self,
        held: &Held,
        verifier: &dyn Verifier,
        received_at: Timestamp,
    ) -> Whole {
        let mut chain = Chain::default();
        let judged: Vec<(Statement, Verdict)> = self
            .statements(held)
            .into_iter()
            .map(|statement| {
                let received = &statement.received;
                let verdict = match statement.origin {
                    Origin::Stored(index) => {
                        chain.take_again(received, self.stored[index].signer, verifier)
                    }
                    Origin::Refused(_) | Origin::Line(_) => chain.take(received, verifier),
                };
                (statement, verdict)
            })
            .collect();
        let operations = self.operations(&judged, &chain, received_at);
        let mut whole = Whole::of(self.did, chain, operations);
        let on_record: AHashMap<RefusalKey, &NewRefusal> =
            self.refused.iter().map(|kept| (kept.refusal.key, &kept.refusal)).collect();
        let numbers = self.numbers_stated();
        for (mut statement, verdict) in judged {
            let Verdict::Refused(refusal) = verdict else { continue };
            // At this time it is refused, and at another one it is accepted.
            if whole.chain.find(&statement.received.cid).is_some() {
                continue;
            }
            let number = numbers.get(&statement.received.cid).copied();
            statement.received.sequence = number.or(statement.received.sequence);
            note_refused(statement, refusal, &on_record, &mut whole);
        }
        whole
    }

    /// The rows of what is accepted, in the order of the chain.
    fn operations(
        &self,
        judged: &[(Statement, Verdict)],
        chain: &Chain,
        received_at: Timestamp,
    ) -> Vec<StoredOperation> {
        let accepted = judged.iter().filter_map(|(statement, verdict)| match verdict {
            Verdict::Accepted(acceptance) => Some((statement, acceptance.signer)),
            Verdict::Known(_) | Verdict::Refused(_) => None,
        });
        let rows = accepted.zip(chain.links()).map(|((statement, signer), link)| {
            let received = &statement.received;
            let (sequence, received_at) = match statement.origin {
                Origin::Stored(index) => {
                    (self.stored[index].sequence, self.stored[index].received_at)
                }
                Origin::Refused(_) | Origin::Line(_) => (received.sequence, received_at),
            };
            StoredOperation {
                did: self.did,
                created_at: received.created_at,
                sequence,
                signed: received.signed.clone(),
                signer,
                nullified_by: link.nullified_by,
                received_at,
            }
        });
        rows.collect()
    }

    /// What is accepted lifts its refusals, whatever the time at which it was refused.
    fn note_lifted(&self, whole: &mut Whole) {
        for kept in &self.refused {
            let Ok(received) = Received::decode(&kept.refusal.line) else { continue };
            if received.stated_cid.is_none() && whole.chain.find(&received.cid).is_some() {
                whole.lifted.push(kept.refusal.key);
                let number = kept.refusal.sequence;
                whole.freed.extend(number.map(|number| (kept.id, number, received.cid)));
            }
        }
    }

    /// The numbers that were stated last for operations by what has come.
    fn numbers_stated(&self) -> AHashMap<Cid, i64> {
        let candidates = self.candidates.iter().map(|candidate| &candidate.received);
        let believed = candidates.filter(|received| received.stated_cid.is_none());
        believed.filter_map(|received| Some((received.cid, received.sequence?))).collect()
    }

    /// The time that a stored operation had until now, where another is taken.
    fn other_time(&self, received: &Received, held: &Held) -> Option<Timestamp> {
        let takes_time = self.takes_times && received.stated_cid.is_none();
        let time = *held.get(&received.cid).filter(|_| takes_time)?;
        (time != received.created_at).then_some(time)
    }

    /// What has come, compared with what is accepted.
    fn note_candidates(&self, held: &Held, whole: &mut Whole) {
        let mut new: AHashSet<Cid> = AHashSet::new();
        for candidate in &self.candidates {
            let received = &candidate.received;
            let link = whole.chain.find(&received.cid);
            if let Some(before) = self.other_time(received, held) {
                let now = link.map(|link| Restated::between(link, received)).unwrap_or_default();
                let restated = Restated { created_at: Some(before), ..now };
                whole.restated.push((candidate.clone(), restated));
                continue;
            }
            let is_known = |link: &Link| {
                held.contains_key(&received.cid)
                    || new.contains(&received.cid)
                    || link.created_at != received.created_at
                    || received.stated_cid.is_some()
            };
            match (link, &received.stated_cid) {
                (Some(link), _) if is_known(link) => {
                    let restated = Restated::between(link, received);
                    whole.restated.push((candidate.clone(), restated));
                }
                (Some(_), _) => {
                    new.insert(received.cid);
                    whole.accepted.push(candidate.clone());
                }
                (None, Some(stated)) => {
                    let refusal =
                        Refusal::CidMismatch { stated: stated.clone(), computed: received.cid };
                    let origin = Origin::Line(candidate.line);
                    whole.refused.push((Statement { received: received.clone(), origin }, refusal));
                }
                // It was stored at another time, and is refused there now.
                (None, None) => {
                    let before = held.get(&received.cid).copied();
                    if let Some(before) = before.filter(|before| *before != received.created_at) {
                        let restated = Restated { created_at: Some(before), ..Restated::default() };
                        whole.restated.push((candidate.clone(), restated));
                    }
                }
            }
        }
    }
}

/// `on_record` are the refusals of the identity that stand.
fn note_refused(
    statement: Statement,
    refusal: Refusal,
    on_record: &AHashMap<RefusalKey, &NewRefusal>,
    whole: &mut Whole,
) {
    let refusal = whole.chain.explain(&statement.received, refusal);
    let is_of_line = matches!(statement.origin, Origin::Line(_));
    let key = NewRefusal::key_of_operation(&statement.received);
    let is_on_record = on_record.get(&key).is_some_and(|kept| {
        kept.kind == refusal.kind()
            && kept.detail == refusal.to_string()
            // The number that a line states is taken from all of them.
            && (is_of_line || kept.sequence == statement.received.sequence)
    });
    if !is_on_record {
        whole.refused.push((statement, refusal));
    }
}

#[cfg(test)]
mod tests;
