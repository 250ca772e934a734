//! What follows from the verdicts on a batch: one [`Commit`], and nothing decided any more.

use ahash::{AHashMap, AHashSet};
use bytes::Bytes;

use super::cut::Part;
use super::numbers::Numbers;
use super::verdict::{Candidate, Group, Judged};
use super::whole::{Origin, Statement, Whole};
use crate::store::codec::is_genesis;
use crate::store::{
    Commit, DivergenceKind, NewDivergence, NewRefusal, RefusalKey, Rewritten, StoredOperation,
    Unsettled,
};
use did_plc::chain::Restated;
use did_plc::entry::{Received, Undecodable};
use did_plc::{Cid, Did, Refusal, Timestamp, Verdict};

/// A batch that only has to be written.
#[derive(Debug)]
pub struct Prepared {
    /// Its number.
    pub batch: u64,
    /// What is to be written.
    pub commit: Commit,
    /// How many operations are new in the store.
    pub accepted: usize,
    /// How many lines came again.
    pub known: usize,
}

impl Prepared {
    /// Takes the batch that was judged after this one into the same transaction. Gives it back where it
    /// rewrites an identity, or changes one that this batch rewrites.
    pub fn join(&mut self, next: Prepared) -> Option<Prepared> {
        if !self.commit.rewritten.is_empty() || !next.commit.rewritten.is_empty() {
            return Some(next);
        }
        let Commit {
            cursor_before: _,
            cursor_after,
            cursor_cid,
            operations,
            nullified,
            numbered,
            rewritten: _,
            late: _,
            unsettled: _,
            refusals,
            lifted,
            divergences,
            received_at_millis,
            caught_up,
            word: _,
        } = next.commit;
        self.batch = next.batch;
        self.accepted += next.accepted;
        self.known += next.known;
        let moves = cursor_after != self.commit.cursor_after;
        // What is read again, as in a gap, does not move the cursor and says nothing of the upstream's present: it
        // stays reached, as of the time when it was.
        if moves || caught_up || !self.commit.caught_up {
            self.commit.caught_up = caught_up;
            self.commit.received_at_millis = received_at_millis;
        }
        if moves {
            self.commit.cursor_cid = cursor_cid;
        }
        self.commit.cursor_after = cursor_after;
        self.commit.operations.extend(operations);
        self.commit.nullified.extend(nullified);
        self.commit.numbered.extend(numbered);
        self.commit.refusals.extend(refusals);
        self.commit.lifted.extend(lifted);
        self.commit.divergences.extend(divergences);
        None
    }
}

/// Collects what a batch changes.
pub(super) struct Assembly {
    lines: Vec<Bytes>,
    /// Who states the lines.
    source: String,
    received_at: Timestamp,
    /// Of what came live: no `createdAt` should be before this.
    backdated_before: Option<Timestamp>,
    /// Other numbers than those that are stored are no difference.
    numbers_may_differ: bool,
    commit: Commit,
    accepted: usize,
    known: usize,
    /// Where each refusal of this batch is among those of the commit.
    refused: AHashMap<RefusalKey, usize>,
    /// (identity, `created_at`) of what this batch adds in order.
    added: AHashSet<(Did, Timestamp)>,
    /// The numbers of what is held otherwise than before, and whether at another time.
    unsettled: AHashMap<i64, bool>,
    /// (identity, nullified, nullified by), wherever the nullified operation is.
    nullified: Vec<(Did, Timestamp, Timestamp)>,
}

impl Assembly {
    /// Begins with the lines that cannot be judged, and returns the operations of the others. Operations that
    /// came live should not be dated before `backdated_before`; while `renumbering`, and in what does not come from
    /// the upstream, other numbers than those that are stored are no difference.
    pub(super) fn begin(
        part: Part,
        source: String,
        backdated_before: Option<Timestamp>,
        renumbering: bool,
    ) -> (Assembly, Vec<Candidate>) {
        let (lines, entries) = part.decoded.into_lines_and_entries();
        let commit = Commit {
            cursor_before: part.cursor_before,
            cursor_after: part.cursor_after,
            cursor_cid: part.cursor_cid,
            received_at_millis: part.received_at.millis(),
            caught_up: part.caught_up,
            operations: Vec::with_capacity(lines.len()),
            ..Commit::default()
        };
        let mut assembly = Assembly {
            lines,
            source,
            received_at: part.received_at,
            backdated_before,
            numbers_may_differ: renumbering || !part.course.states_numbers(),
            commit,
            accepted: 0,
            known: 0,
            refused: AHashMap::new(),
            added: AHashSet::new(),
            unsettled: AHashMap::new(),
            nullified: Vec::new(),
        };
        let mut candidates = Vec::with_capacity(entries.len());
        for (line, entry) in entries.into_iter().enumerate() {
            match entry {
                Ok(received) => candidates.push(Candidate { line, received }),
                Err(undecodable) => assembly.keep_undecodable(line, undecodable),
            }
        }
        (assembly, candidates)
    }

    /// Keeps a refusal once, with the number that was stated last.
    fn keep_refusal(&mut self, new: NewRefusal) {
        match self.refused.get(&new.key) {
            Some(&index) => {
                let before = self.commit.refusals[index].sequence;
                let sequence = new.sequence.or(before);
                self.commit.refusals[index] = NewRefusal { sequence, ..new };
            }
            None => {
                self.refused.insert(new.key, self.commit.refusals.len());
                self.commit.refusals.push(new);
            }
        }
    }

    fn keep_undecodable(&mut self, line: usize, undecodable: Undecodable) {
        let Undecodable { did, sequence, refusal, .. } = undecodable;
        let line = &self.lines[line];
        self.keep_refusal(NewRefusal {
            key: NewRefusal::key_of_line(line),
            source: self.source.clone(),
            did,
            sequence,
            cid: None,
            kind: refusal.kind().to_owned(),
            detail: refusal.to_string(),
            line: kept_copy(line),
        });
    }

    /// Takes in what follows from a verdict on something that came in its order. `groups` have the chains as
    /// they are with all of the batch: the number that an operation has there is the one that is written. Where it
    /// has none of what was stated, `numbers` say who has.
    pub(super) fn add(
        &mut self,
        judged: Judged,
        groups: &AHashMap<Did, &Group>,
        numbers: Option<&Numbers>,
    ) {
        let Judged { candidate, verdict } = judged;
        let received = &candidate.received;
        let chain = groups.get(&received.did).map(|group| &group.chain);
        let link = chain.and_then(|chain| chain.find(&received.cid));
        match verdict {
            Verdict::Accepted(acceptance) => {
                for nullified in &acceptance.nullifies {
                    let link = chain.and_then(|chain| chain.find(nullified));
                    self.nullified.extend(
                        link.map(|link| (received.did, link.created_at, received.created_at)),
                    );
                }
                let (sequence, nullified_by) =
                    link.map_or((None, None), |link| (link.sequence, link.nullified_by));
                self.note_backdated(&candidate);
                let lost = received.sequence.filter(|_| sequence.is_none());
                if let (Some(number), Some(numbers)) = (lost, numbers) {
                    let line = numbers.line(number);
                    self.diverge(DivergenceKind::RestatedSequence, received, line);
                }
                self.accept(candidate.received, acceptance.signer, sequence, nullified_by);
            }
            Verdict::Known(restated) => {
                // What is new in this batch is written with its number.
                let is_stored =
                    link.filter(|link| !self.added.contains(&(received.did, link.created_at)));
                let numbered = is_stored.filter(|_| restated.numbered.is_some());
                self.commit.numbered.extend(
                    numbered.and_then(|link| Some((received.did, link.created_at, link.sequence?))),
                );
                self.note_known(&candidate, &restated);
            }
            Verdict::Refused(refusal) => self.refuse_line(&candidate, &refusal),
        }
    }

    fn accept(
        &mut self,
        received: Received,
        signer: u16,
        sequence: Option<i64>,
        nullified_by: Option<Timestamp>,
    ) {
        self.accepted += 1;
        self.added.insert((received.did, received.created_at));
        self.commit.operations.push(StoredOperation {
            did: received.did,
            created_at: received.created_at,
            sequence,
            signed: received.signed,
            signer,
            nullified_by,
            received_at: self.received_at,
        });
    }

    /// Takes in what follows from judging an identity as a whole: the numbers of its chain as well.
    pub(super) fn add_whole(&mut self, whole: &mut Whole, numbers: &Numbers) {
        for candidate in &whole.accepted {
            self.note_backdated(candidate);
        }
        for (candidate, restated) in &whole.restated {
            self.note_known(candidate, restated);
        }
        for (statement, refusal) in std::mem::take(&mut whole.refused) {
            self.refuse(statement, &refusal);
        }
        self.commit.lifted.append(&mut whole.lifted);
        for row in &mut whole.operations {
            let cid = row.cid();
            let number = numbers.number((row.did, cid), row.sequence);
            if row.sequence.is_some() && number.is_none() {
                self.note_lost_number(row, cid, numbers);
            }
            row.sequence = number;
            whole.chain.set_number(&cid, number);
        }
        self.rewrite(whole);
    }

    /// Puts the rows of an identity in place of those that are stored, if they differ.
    fn rewrite(&mut self, whole: &Whole) {
        if whole.operations == whole.stored {
            return;
        }
        let stored: AHashMap<Cid, &StoredOperation> =
            whole.stored.iter().map(|row| (row.cid(), row)).collect();
        let is_new = |row: &&StoredOperation| !stored.contains_key(&row.cid());
        self.accepted += whole.operations.iter().filter(is_new).count();
        // One that has lost its number and gets one back is among them, and comes twice to who was there before the
        // loss: who came in between was sent it under no number, and would never have it otherwise.
        let is_late = |row: &&StoredOperation| {
            stored.get(&row.cid()).is_none_or(|before| before.sequence.is_none())
        };
        let late = whole.operations.iter().filter(is_late).filter_map(|row| row.sequence);
        self.commit.late.extend(late);
        if !self.numbers_may_differ {
            self.unsettle(whole);
        }
        self.commit.rewritten.push(Rewritten {
            did: whole.did,
            stored: whole.stored.len(),
            stored_geneses: whole.stored.iter().filter(|row| is_genesis(&row.signed)).count(),
            operations: whole.operations.clone(),
        });
    }

    /// Notes under which numbers something is held otherwise from now on: what is stated there is to be read once more.
    /// What does not verify any more, at the time that is stated now, is among it.
    fn unsettle(&mut self, whole: &Whole) {
        let now: AHashMap<Cid, &StoredOperation> =
            whole.operations.iter().map(|row| (row.cid(), row)).collect();
        for before in &whole.stored {
            let Some(number) = before.sequence else { continue };
            let now = now.get(&before.cid());
            let times = now.is_none_or(|now| now.created_at != before.created_at);
            let other = now.map_or(before.sequence, |now| now.sequence);
            if times || other != before.sequence {
                for number in [Some(number), other].into_iter().flatten() {
                    *self.unsettled.entry(number).or_default() |= times;
                }
            }
        }
    }

    /// Records an operation that came live with an old time. It is accepted all the same.
    fn note_backdated(&mut self, candidate: &Candidate) {
        let is_old = |before| candidate.received.created_at < before;
        if self.backdated_before.is_some_and(is_old) {
            self.diverge(DivergenceKind::Backdated, &candidate.received, Some(candidate.line));
        }
    }

    /// An operation that is here already: only what was stated otherwise is of interest.
    fn note_known(&mut self, candidate: &Candidate, restated: &Restated) {
        self.known += 1;
        for kind in DivergenceKind::of_restated(restated) {
            self.diverge(kind, &candidate.received, Some(candidate.line));
        }
    }

    /// Records that the number of an operation is stated for another one now.
    fn note_lost_number(&mut self, row: &StoredOperation, cid: Cid, numbers: &Numbers) {
        let line = row.sequence.and_then(|number| numbers.line(number));
        let received = Received { cid, ..row.as_received() };
        self.diverge(DivergenceKind::RestatedSequence, &received, line);
    }

    /// Records that a line does not agree with what is held. Our side of a record is the identity's whole log,
    /// which is added at the end.
    fn diverge(&mut self, kind: DivergenceKind, of: &Received, line: Option<usize>) {
        if self.numbers_may_differ && kind == DivergenceKind::RestatedSequence {
            return;
        }
        let line = line.and_then(|line| self.lines.get(line));
        self.commit.divergences.push(NewDivergence {
            source: self.source.clone(),
            did: of.did.to_string(),
            kind: kind.name().to_owned(),
            subject: of.cid.to_string(),
            ours: None,
            theirs: line.and_then(|line| String::from_utf8(line.to_vec()).ok()),
        });
    }

    fn refuse_line(&mut self, candidate: &Candidate, refusal: &Refusal) {
        let origin = Origin::Line(candidate.line);
        let statement = Statement { received: candidate.received.clone(), origin };
        self.refuse(statement, refusal);
    }

    fn refuse(&mut self, statement: Statement, refusal: &Refusal) {
        let Statement { received, origin } = statement;
        let (key, line) = match origin {
            // Its bytes say more than an operation that is not the one it is stated to be.
            Origin::Line(line) if received.stated_cid.is_some() => {
                let line = &self.lines[line];
                (NewRefusal::key_of_line(line), kept_copy(line))
            }
            Origin::Line(_) | Origin::Stored(_) | Origin::Refused(_) => {
                (NewRefusal::key_of_operation(&received), NewRefusal::line_of_operation(&received))
            }
        };
        self.keep_refusal(NewRefusal {
            key,
            source: self.source.clone(),
            did: received.did.to_string(),
            sequence: received.sequence,
            cid: Some(received.cid),
            kind: refusal.kind().to_owned(),
            detail: refusal.to_string(),
            line,
        });
    }

    /// All that the batch with this number changes.
    pub(super) fn finish(mut self, batch: u64) -> Prepared {
        let added = &self.added;
        self.commit.nullified = self
            .nullified
            .into_iter()
            .filter(|(did, at, _)| !added.contains(&(*did, *at)))
            .collect();
        let unsettled = self.unsettled.into_iter();
        self.commit.unsettled =
            unsettled.map(|(number, times)| Unsettled { number, times }).collect();
        Prepared { batch, commit: self.commit, accepted: self.accepted, known: self.known }
    }
}

/// A copy of a line: as a slice it would keep the whole page that it came in.
fn kept_copy(line: &Bytes) -> Bytes {
    Bytes::copy_from_slice(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(cursor: (i64, i64), caught_up: bool, received_at_millis: i64) -> Prepared {
        let (cursor_before, cursor_after) = cursor;
        let commit = Commit {
            cursor_before,
            cursor_after,
            caught_up,
            received_at_millis,
            ..Commit::default()
        };
        Prepared { batch: 1, commit, accepted: 0, known: 0 }
    }

    #[test]
    fn what_was_left_out_before_the_present_does_not_lead_away_from_it() {
        let joined = |first: Prepared, next: Prepared| {
            let mut joined = first;
            assert!(joined.join(next).is_none());
            (joined.commit.caught_up, joined.commit.received_at_millis)
        };
        let there = || prepared((0, 5), true, 100);
        let not_there = || prepared((0, 5), false, 100);
        // Lines read again leave the cursor where it is.
        assert_eq!(joined(there(), prepared((5, 5), false, 200)), (true, 100));
        assert_eq!(joined(there(), prepared((5, 5), true, 200)), (true, 200));
        assert_eq!(joined(not_there(), prepared((5, 5), false, 200)), (false, 200));
        // There is more than the first has reached.
        assert_eq!(joined(there(), prepared((5, 9), false, 200)), (false, 200));
        assert_eq!(joined(not_there(), prepared((5, 9), true, 200)), (true, 200));
    }
}
