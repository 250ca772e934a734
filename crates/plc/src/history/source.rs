//! The ways to a [`History`].

use serde_json::value::RawValue;

use super::{History, HistoryEntry, Judgement};
use crate::chain::{Acceptance, Chain, Verdict};
use crate::cid::Cid;
use crate::did::Did;
use crate::entry::{Received, Undecodable, without_mark};
use crate::operation::{Malformed, Operation};
use crate::order;
use crate::refusal::Refusal;
use crate::signature::Verifier;
use crate::timestamp::Timestamp;

/// An operation that was verified before, and what came of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOperation {
    /// The operation as it was received.
    pub received: Received,
    /// Index of the rotation key that signed it, in the list that was in force.
    pub signer: u16,
    /// `created_at` of the operation that nullified it.
    pub nullified_by: Option<Timestamp>,
}

/// The body is no audit log.
#[derive(Debug, thiserror::Error)]
#[error("not an audit log: {0}")]
pub struct NotALog(#[from] serde_json::Error);

impl History {
    /// Judges the operations of one identity in the order of their times ([`order`]), whatever the order in
    /// which they are stated.
    pub fn verified(
        did: Did,
        log: impl IntoIterator<Item = Received>,
        verifier: &dyn Verifier,
    ) -> History {
        let mut history = History { did, entries: Vec::new(), unreadable: Vec::new() };
        let mut log: Vec<(usize, Received)> = log.into_iter().enumerate().collect();
        order::sort(
            &mut log,
            |(_, received)| received.created_at,
            |(_, received)| &received.signed,
        );
        let mut chain = Chain::default();
        for (place, received) in log {
            let (judgement, nullifies) = match chain.take(&received, verifier) {
                Verdict::Accepted(Acceptance { signer, nullifies }) => {
                    (Judgement::Accepted { signer }, history.nullify(&nullifies))
                }
                Verdict::Known(_) => (Judgement::Repeated, Vec::new()),
                Verdict::Refused(refusal) => (Judgement::Refused(refusal), Vec::new()),
            };
            let entry = HistoryEntry::new(received, place, judgement);
            history.entries.push(HistoryEntry { nullifies, ..entry });
        }
        for HistoryEntry { received, judgement, .. } in &mut history.entries {
            if let Judgement::Refused(refusal) = judgement {
                *refusal = chain.explain(received, refusal.clone());
            }
        }
        history.find_prevs();
        history
    }

    /// Judges lines or elements in any envelope. Those of other identities and those that carry no
    /// operation are left out; what cannot be read is in [`History::unreadable`].
    pub fn of_lines<'a>(
        did: Did,
        lines: impl IntoIterator<Item = &'a [u8]>,
        verifier: &dyn Verifier,
    ) -> History {
        let decoded = lines.into_iter().map(Received::decode);
        let of_others =
            |entry: &Result<Received, _>| entry.as_ref().is_ok_and(|received| received.did != did);
        History::of_decoded(did, decoded.filter(|entry| !of_others(entry)), verifier)
    }

    /// Judges the body of `/{did}/log/audit`. An entry of another identity does not belong there, and
    /// is in [`History::unreadable`].
    ///
    /// # Errors
    ///
    /// When it is not a JSON array.
    pub fn of_audit_log(
        did: Did,
        body: &[u8],
        verifier: &dyn Verifier,
    ) -> Result<History, NotALog> {
        let elements: Vec<&RawValue> = serde_json::from_slice(without_mark(body))?;
        let decoded = elements.iter().map(|element| Received::decode(element.get().as_bytes()));
        let own = decoded.map(|entry| match entry {
            Ok(received) if received.did != did => Err(Undecodable::in_log_of(&did, received)),
            entry => entry,
        });
        Ok(History::of_decoded(did, own, verifier))
    }

    fn of_decoded(
        did: Did,
        entries: impl Iterator<Item = Result<Received, Undecodable>>,
        verifier: &dyn Verifier,
    ) -> History {
        let mut log = Vec::new();
        let mut unreadable = Vec::new();
        for entry in entries {
            match entry {
                Ok(received) => log.push(received),
                Err(Undecodable { refusal: Refusal::UnknownType { .. }, .. }) => {}
                Err(undecodable) => unreadable.push(undecodable),
            }
        }
        History { unreadable, ..History::verified(did, log, verifier) }
    }

    /// Puts operations of one identity that were verified before, and stand in the order in which they were
    /// judged, in their places. No signature is checked.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the bytes of one are no operation: they are not what was verified.
    pub fn as_held(
        did: Did,
        log: impl IntoIterator<Item = HeldOperation>,
    ) -> Result<History, Malformed> {
        let mut history = History { did, entries: Vec::new(), unreadable: Vec::new() };
        let mut nullified = Vec::new();
        for (index, held) in log.into_iter().enumerate() {
            Operation::read(&held.received.signed)?;
            nullified.extend(held.nullified_by.map(|by| (index, by)));
            let judgement = Judgement::Accepted { signer: held.signer };
            history.entries.push(HistoryEntry::new(held.received, index, judgement));
        }
        history.find_prevs();
        for (index, by) in nullified {
            let by = history.nullifier(index, by);
            history.entries[index].nullified_by = by;
            if let Some(by) = by {
                history.entries[by].nullifies.push(index);
            }
        }
        Ok(history)
    }

    /// The entry of this time that nullified another one: it builds on what stands before that.
    fn nullifier(&self, nullified: usize, time: Timestamp) -> Option<usize> {
        let first = self.entries.partition_point(|entry| entry.received.created_at < time);
        let after = first.max(nullified + 1)..self.entries.len();
        let mut of_time =
            after.take_while(|&index| self.entries[index].received.created_at == time);
        of_time.find(|&index| self.entries[index].prev.is_some_and(|prev| prev < nullified))
    }

    /// Marks accepted entries, which are in their order, as nullified by the entry that comes next.
    /// Their indices.
    fn nullify(&mut self, cids: &[Cid]) -> Vec<usize> {
        let next = self.entries.len();
        let mut nullified = Vec::with_capacity(cids.len());
        let mut left = cids.iter().peekable();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let is_it = |cid: &&Cid| **cid == entry.received.cid;
            if entry.signer().is_some() && left.next_if(is_it).is_some() {
                entry.nullified_by = Some(next);
                nullified.push(index);
            }
        }
        nullified
    }

    fn find_prevs(&mut self) {
        for index in 0..self.entries.len() {
            self.entries[index].prev = self.find_prev(index);
        }
    }

    /// Usually it is the entry before; in a log that is out of order it may stand behind.
    fn find_prev(&self, index: usize) -> Option<usize> {
        let prev = self.entries[index].operation()?.prev_cid()?;
        let is_prev = |entry: &HistoryEntry| {
            entry.received.cid == prev && !matches!(entry.judgement, Judgement::Repeated)
        };
        let (before, behind) = self.entries.split_at(index);
        let found = before.iter().rposition(is_prev);
        found.or_else(|| Some(index + behind.iter().position(is_prev)?))
    }
}
