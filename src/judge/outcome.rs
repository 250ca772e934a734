//! What follows from the verdicts on a batch: one [`Commit`], and nothing decided any more.

use ahash::{AHashMap, AHashSet};
use bytes::Bytes;

use super::cut::Part;
use super::verdict::{Candidate, Group, Judged, LineRef};
use crate::store::{Commit, DivergenceKind, NewDivergence, NewRefusal, Rejudged, StoredOperation};
use did_plc::chain::Restated;
use did_plc::entry::Undecodable;
use did_plc::{Did, Refusal, Timestamp, Verdict};

/// A batch that only has to be written.
#[derive(Debug)]
pub struct Prepared {
    /// Its number.
    pub batch: u64,
    /// What is to be written.
    pub commit: Commit,
    /// How many lines came again.
    pub known: usize,
}

impl Prepared {
    /// Takes the batch that was judged after this one into the same transaction.
    pub fn join(&mut self, next: Prepared) {
        let Commit {
            cursor_before: _,
            cursor_after,
            cursor_cid,
            operations,
            nullified,
            numbered,
            refusals,
            rejudged,
            divergences,
            received_at_millis,
            caught_up,
        } = next.commit;
        self.batch = next.batch;
        self.known += next.known;
        if cursor_after != self.commit.cursor_after {
            self.commit.cursor_cid = cursor_cid;
        }
        self.commit.cursor_after = cursor_after;
        self.commit.operations.extend(operations);
        self.commit.nullified.extend(nullified);
        self.commit.numbered.extend(numbered);
        self.commit.refusals.extend(refusals);
        self.commit.rejudged.extend(rejudged);
        self.commit.divergences.extend(divergences);
        self.commit.received_at_millis = received_at_millis;
        self.commit.caught_up = caught_up;
    }
}

/// Collects what a batch changes.
pub(super) struct Assembly {
    lines: Vec<Bytes>,
    upstream: String,
    received_at: Timestamp,
    /// Of what came live: no `createdAt` should be before this.
    backdated_before: Option<Timestamp>,
    commit: Commit,
    known: usize,
    /// (identity, `created_at`) of what this batch adds.
    added: AHashSet<(Did, Timestamp)>,
    /// (identity, nullified, nullified by), wherever the nullified operation is.
    nullified: Vec<(Did, Timestamp, Timestamp)>,
}

impl Assembly {
    /// Begins with the lines that cannot be judged, and returns the operations of the others. Operations that
    /// came live should not be dated before `backdated_before`.
    pub(super) fn begin(
        part: Part,
        upstream: String,
        backdated_before: Option<Timestamp>,
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
            upstream,
            received_at: part.received_at,
            backdated_before,
            commit,
            known: 0,
            added: AHashSet::new(),
            nullified: Vec::new(),
        };
        let mut candidates = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            match entry {
                Ok(received) => candidates.push(Candidate::new(index, received)),
                Err(undecodable) => assembly.keep_undecodable(index, undecodable),
            }
        }
        (assembly, candidates)
    }

    fn keep_undecodable(&mut self, index: usize, undecodable: Undecodable) {
        let Undecodable { did, sequence, refusal, .. } = undecodable;
        self.commit.refusals.push(NewRefusal {
            did,
            sequence,
            cid: None,
            kind: refusal.kind().to_owned(),
            detail: refusal.to_string(),
            awaits: None,
            line: kept_copy(&self.lines[index]),
        });
    }

    /// Takes in what follows from a verdict. `groups` have the chains as they are with all of the batch.
    pub(super) fn add(&mut self, judged: Judged, groups: &AHashMap<Did, &Group>) {
        let Judged { candidate, verdict } = judged;
        match verdict {
            Verdict::Accepted(acceptance) => {
                let did = candidate.received.did;
                for nullified in &acceptance.nullifies {
                    self.nullified.push((did, *nullified, candidate.received.created_at));
                }
                self.accept(candidate, acceptance.signer, groups);
            }
            Verdict::Known(restated) => self.note_known(candidate, restated, groups),
            Verdict::Refused(refusal) => self.refuse(&candidate, &refusal),
        }
    }

    fn accept(&mut self, candidate: Candidate, signer: u16, groups: &AHashMap<Did, &Group>) {
        self.note_backdated(&candidate);
        let received = candidate.received;
        // Something later in the batch may have nullified it already: the chain knows.
        let link = groups.get(&received.did).and_then(|group| group.chain.find(&received.cid));
        self.added.insert((received.did, received.created_at));
        self.commit.operations.push(StoredOperation {
            did: received.did,
            created_at: received.created_at,
            sequence: received.sequence,
            signed: received.signed,
            signer,
            nullified_by: link.and_then(|link| link.nullified_by),
            received_at: self.received_at,
        });
        if let LineRef::Kept(id) = candidate.line {
            self.commit.rejudged.push(Rejudged::Accepted { id });
        }
    }

    /// Records an operation that came live with an old time. It is accepted all the same.
    fn note_backdated(&mut self, candidate: &Candidate) {
        let is_old = |before| candidate.received.created_at < before;
        let is_new_line = matches!(candidate.line, LineRef::New(_));
        if is_new_line && self.backdated_before.is_some_and(is_old) {
            self.diverge(DivergenceKind::Backdated, candidate);
        }
    }

    /// An operation that is here already: only what was stated otherwise is of interest.
    fn note_known(
        &mut self,
        candidate: Candidate,
        restated: Restated,
        groups: &AHashMap<Did, &Group>,
    ) {
        self.known += 1;
        let received = &candidate.received;
        let held = groups.get(&received.did).and_then(|group| group.chain.find(&received.cid));
        let Some(held) = held else { return };
        // What a line says of a number that another operation has stays refused, whether it has just
        // come or was kept earlier.
        match (restated.numbered, restated.number_held_by, candidate.line) {
            (Some(sequence), Some(holder), _) => {
                self.refuse(&candidate, &Refusal::SequenceConflict { sequence, holder });
            }
            (numbered, _, line) => {
                let numbered = numbered.map(|number| (received.did, held.created_at, number));
                self.commit.numbered.extend(numbered);
                if let LineRef::Kept(id) = line {
                    self.commit.rejudged.push(Rejudged::Accepted { id });
                }
            }
        }
        for kind in DivergenceKind::of_restated(&restated) {
            self.diverge(kind, &candidate);
        }
    }

    /// Records that the line of a candidate does not agree with what is held. Our side of a record is the
    /// identity's whole log, which is added at the end.
    fn diverge(&mut self, kind: DivergenceKind, candidate: &Candidate) {
        let theirs = match candidate.line {
            LineRef::New(index) => String::from_utf8(self.lines[index].to_vec()).ok(),
            LineRef::Kept(_) => None,
        };
        self.commit.divergences.push(NewDivergence {
            source: self.upstream.clone(),
            did: candidate.received.did.to_string(),
            kind: kind.name().to_owned(),
            subject: candidate.received.cid.to_string(),
            ours: None,
            theirs,
        });
    }

    fn refuse(&mut self, candidate: &Candidate, refusal: &Refusal) {
        let kind = refusal.kind().to_owned();
        let detail = refusal.to_string();
        let awaits = refusal.awaits();
        match candidate.line {
            LineRef::Kept(id) => {
                self.commit.rejudged.push(Rejudged::Refused { id, kind, detail, awaits });
            }
            LineRef::New(index) => self.commit.refusals.push(NewRefusal {
                did: candidate.received.did.to_string(),
                sequence: candidate.received.sequence,
                cid: Some(candidate.received.cid),
                kind,
                detail,
                awaits,
                line: kept_copy(&self.lines[index]),
            }),
        }
    }

    /// All that the batch with this number changes.
    pub(super) fn finish(mut self, batch: u64) -> Prepared {
        let added = &self.added;
        self.commit.nullified = self
            .nullified
            .into_iter()
            .filter(|(did, at, _)| !added.contains(&(*did, *at)))
            .collect();
        Prepared { batch, commit: self.commit, known: self.known }
    }
}

/// A copy of a line: as a slice it would keep the whole page that it came in.
fn kept_copy(line: &Bytes) -> Bytes {
    Bytes::copy_from_slice(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::decode::Decoded;
    use did_plc::chain::Link;
    use did_plc::entry::Received;
    use did_plc::{Chain, Cid};

    /// A line kept earlier with an operation that another line brought meanwhile.
    #[test]
    fn a_kept_line_gets_one_verdict() {
        let (did, cid, holder) = (Did::from_bytes([1; 15]), Cid::of(b"it"), Cid::of(b"holder"));
        let created_at = Timestamp::from_millis(5);
        let link = Link {
            cid,
            created_at,
            sequence: None,
            rotation_keys: Box::new([]),
            tombstone: false,
            signer: 0,
            nullified_by: None,
        };
        let group = Group { chain: Chain::from_links(vec![link]), candidates: Vec::new() };
        let groups = AHashMap::from_iter([(did, &group)]);
        let judged = |number_held_by| Judged {
            candidate: Candidate {
                line: LineRef::Kept(7),
                received: Received {
                    did,
                    cid,
                    stated_cid: None,
                    created_at,
                    sequence: Some(3),
                    nullified: None,
                    received_at: None,
                    signed: Bytes::new(),
                },
                number_held_by,
            },
            verdict: Verdict::Known(Restated {
                numbered: Some(3),
                number_held_by,
                ..Restated::default()
            }),
        };
        let commit = |number_held_by| {
            let part = Part {
                cursor_cid: None,
                decoded: Decoded::default(),
                received_at: created_at,
                cursor_before: 0,
                cursor_after: 0,
                caught_up: false,
                live: false,
            };
            let (mut assembly, _) = Assembly::begin(part, String::new(), None);
            assembly.add(judged(number_held_by), &groups);
            assembly.finish(1).commit
        };

        let free = commit(None);
        assert_eq!(free.rejudged, [Rejudged::Accepted { id: 7 }]);
        assert_eq!(free.numbered, [(did, created_at, 3)]);
        let taken = commit(Some(holder));
        assert_eq!(taken.numbered, []);
        let refusal = Refusal::SequenceConflict { sequence: 3, holder };
        let (kind, detail) = (refusal.kind().to_owned(), refusal.to_string());
        assert_eq!(taken.rejudged, [Rejudged::Refused { id: 7, kind, detail, awaits: None }]);
    }
}
