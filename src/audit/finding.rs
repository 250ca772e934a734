//! What is found in a log, line by line, and what it comes to.

use std::collections::BTreeMap;

use crate::store::DivergenceKind;
use did_plc::chain::Restated;
use did_plc::entry::{Received, Undecodable};
use did_plc::history::Remark;
use did_plc::{Cid, Did, Refusal};

/// A line that was not accepted, that says otherwise than an earlier one, whose flag is wrong, or that
/// is remarked on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Number of the line on which it begins, from 1; of several on one line each has one more than the one before.
    pub line: u64,
    /// The DID as stated.
    pub did: String,
    /// The CID, computed where it could be.
    pub cid: String,
    /// The name of the refusal, of a restated [`DivergenceKind`] or of the [`Remark`]; `nullified-flag` or
    /// `not-judged`.
    pub kind: String,
    /// What was expected; of a remark what it says.
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
    /// Those of them that state no identity, and so are no entry of a log.
    pub unreadable: u64,
    /// Operations whose stated `nullified` flag is not what the log leads to.
    pub wrong_flags: u64,
    /// Operations that were accepted and are remarked on.
    pub remarked: u64,
    /// Lines of identities that would have to be judged as a whole, and were judged as they came: the log could not
    /// be read a second time.
    pub as_they_came: u64,
    /// Lines that were not judged, for one of two reasons: an identity that has to be judged as a whole has more of
    /// them than is kept in memory, or nobody read the log a second time.
    pub unjudged: u64,
}

impl Summary {
    /// Adds what came of another part of the log.
    pub(super) fn add(&mut self, part: &Summary) {
        self.operations += part.operations;
        self.unreadable += part.unreadable;
        self.identities += part.identities;
        self.accepted += part.accepted;
        self.repeated += part.repeated;
        self.restated += part.restated;
        self.wrong_flags += part.wrong_flags;
        self.remarked += part.remarked;
        self.as_they_came += part.as_they_came;
        self.unjudged += part.unjudged;
        for (kind, count) in &part.refused {
            *self.refused.entry(kind.clone()).or_default() += count;
        }
    }

    /// Counts a line that was refused.
    pub(super) fn count_refused(&mut self, kind: &str) {
        *self.refused.entry(kind.to_owned()).or_default() += 1;
    }

    /// Whether there was an entry of a log among the lines.
    pub fn has_entries(&self) -> bool {
        self.operations > self.unreadable
    }

    /// Whether everything was judged for certain and accepted, and every statement agrees.
    pub fn is_clean(&self) -> bool {
        let faults = [self.restated, self.wrong_flags, self.as_they_came, self.unjudged];
        self.refused.is_empty() && faults == [0; 4]
    }
}

/// Name of the finding of a flag that the log does not lead to.
const WRONG_FLAG: &str = "nullified-flag";
/// Name of the finding of an identity that has too many lines to be judged.
const NOT_JUDGED: &str = "not-judged";

impl Finding {
    fn new(line: u64, did: &Did, cid: &Cid, (kind, expected): (&str, String)) -> Finding {
        let (did, cid) = (did.to_string(), cid.to_string());
        Finding { line, did, cid, kind: kind.to_owned(), expected }
    }

    /// A line that cannot be judged.
    pub(super) fn undecodable(line: u64, undecodable: Undecodable) -> Finding {
        let Undecodable { did, cid, refusal, .. } = undecodable;
        Finding { line, did, cid, kind: refusal.kind().to_owned(), expected: refusal.to_string() }
    }

    /// An operation that is refused.
    pub(super) fn refused(line: u64, received: &Received, refusal: &Refusal) -> Finding {
        Finding::new(line, &received.did, &received.cid, (refusal.kind(), refusal.to_string()))
    }

    /// What a line says otherwise than the one that brought its operation.
    pub(super) fn restated(
        line: u64,
        received: &Received,
        restated: &Restated,
    ) -> impl Iterator<Item = Finding> {
        let expected = |kind| match kind {
            DivergenceKind::RestatedCid => {
                let stated = restated.cid.as_ref();
                stated.map(|stated| format!("the CID of this operation, not {stated}"))
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
        DivergenceKind::of_restated(restated).filter_map(move |kind| {
            let named = (kind.name(), expected(kind)?);
            Some(Finding::new(line, &received.did, &received.cid, named))
        })
    }

    /// An operation that nullifies others which are stated not to be nullified.
    pub(super) fn nullifies_unstated(line: u64, received: &Received, unstated: &[Cid]) -> Finding {
        let cids: Vec<String> = unstated.iter().map(Cid::to_string).collect();
        let expected = format!("this operation nullifies {}, stated not to be", cids.join(" and "));
        Finding::new(line, &received.did, &received.cid, (WRONG_FLAG, expected))
    }

    /// An operation that is stated to be nullified, of a log in which nothing does so.
    pub(super) fn nothing_nullifies(line: u64, did: &Did, cid: &Cid) -> Finding {
        let expected = "stated to be nullified, and nothing in the log nullifies it".to_owned();
        Finding::new(line, did, cid, (WRONG_FLAG, expected))
    }

    /// Whether it is about a `nullified` flag.
    pub(super) fn is_of_flag(&self) -> bool {
        self.kind == WRONG_FLAG
    }

    /// An identity of which so many lines, of which this is the first, were not judged: they have more bytes.
    pub(super) fn not_judged(line: u64, did: &Did, lines: u64, bytes: usize) -> Finding {
        let expected = format!(
            "at most {} MiB of lines of an identity that has to be judged as a whole; this one has more, and its \
             {lines} lines are not judged",
            bytes >> 20
        );
        let (did, cid) = (did.to_string(), String::new());
        Finding { line, did, cid, kind: NOT_JUDGED.to_owned(), expected }
    }

    /// An operation that is accepted and remarked on.
    pub(super) fn remark(line: u64, received: &Received, remark: &Remark) -> Finding {
        Finding::new(line, &received.did, &received.cid, (remark.kind(), remark.to_string()))
    }

    /// Whether it is no fault.
    pub fn is_remark(&self) -> bool {
        Remark::KINDS.contains(&&*self.kind)
    }
}
