//! The history of one identity: its operations in their order, who signed each and with what
//! authority, what each changed and nullified, what nullified it, and what can still be undone.
//!
//! There are two ways to one. *Verified*: every signature is checked on the way, so that nothing
//! has to be believed but the times ([`History::of_audit_log`], [`History::of_lines`],
//! [`History::verified`]). *As held*: for who has verified the operations before and remembers what
//! came of it ([`History::as_held`]).
//!
//! ```
//! use did_plc::history::History;
//! use did_plc::signature::PlainVerifier;
//! # let mut story = plc_testkit::builder::Story::seeded(1);
//! # let alice = story.create().accepted();
//! # story.update(&alice).handle("alice.example.com").accepted();
//! # let body = plc_testkit::audit_log(story.log());
//!
//! // `body` is what a directory answers at `/{did}/log/audit`.
//! let history = History::of_audit_log(alice.did.parse()?, body.as_bytes(), &PlainVerifier)?;
//! assert!(history.is_clean());
//! for (index, entry) in history.entries.iter().enumerate() {
//!     let signer = history.signer_key(index).unwrap_or("nobody who may");
//!     println!("{} signed by {signer}", entry.received.created_at);
//!     for change in history.changes(index) {
//!         println!("    {change}");
//!     }
//!     if let Some(contestable) = history.contestable(index) {
//!         println!("    can be undone until {}", contestable.until);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod remark;
mod source;

pub use self::remark::Remark;
pub use self::source::{HeldOperation, NotALog};

use super::chain::RECOVERY_WINDOW;
use super::change::Change;
use super::cid::Cid;
use super::did::Did;
use super::entry::{Received, Undecodable};
use super::operation::{Operation, OperationKind};
use super::refusal::Refusal;
use super::timestamp::Timestamp;

/// A whole log of one identity, and what is to be made of it. Its entries are known by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Whose history it is.
    pub did: Did,
    /// The operations in the order in which they are judged, that of their times.
    pub entries: Vec<HistoryEntry>,
    /// What stands in the log and is no operation.
    pub unreadable: Vec<Undecodable>,
}

/// An operation in its place in a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The operation as it is stated.
    pub received: Received,
    /// Its place among the operations of the log as it was stated, from 0.
    pub place: usize,
    /// Whether it is accepted.
    pub judgement: Judgement,
    /// Index of the entry that its `prev` names; none of a genesis operation, and where there is no
    /// such entry.
    pub prev: Option<usize>,
    /// Index of the accepted entry that nullified it.
    pub nullified_by: Option<usize>,
    /// Indices of the entries that it nullified, ascending.
    pub nullifies: Vec<usize>,
}

/// What became of an operation in a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It is the next of its chain.
    Accepted {
        /// Index of the rotation key that signed it, from 0, which has the highest authority, in
        /// the list that was in force ([`History::keys_in_force`]).
        signer: u16,
    },
    /// The same operation stands in the log before.
    Repeated,
    /// It is refused.
    Refused(Refusal),
}

/// How an operation in force can still be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contestable {
    /// Until when, that millisecond included.
    pub until: Timestamp,
    /// Index of the entry that can be nullified until then: the operation itself, or one that it
    /// builds on and goes with.
    pub entry: usize,
    /// How many rotation keys can do that: the first ones of those that were in force for that entry.
    pub keys: u16,
}

impl HistoryEntry {
    fn new(received: Received, place: usize, judgement: Judgement) -> HistoryEntry {
        HistoryEntry {
            received,
            place,
            judgement,
            prev: None,
            nullified_by: None,
            nullifies: Vec::new(),
        }
    }

    /// Its content; none when the bytes are no operation, which it is refused for.
    pub fn operation(&self) -> Option<Operation<'_>> {
        Operation::read(&self.received.signed).ok()
    }

    /// Whether it ends the identity.
    pub fn is_tombstone(&self) -> bool {
        self.operation().is_some_and(|operation| operation.kind() == OperationKind::Tombstone)
    }

    /// Index of the rotation key that signed it; none of what is not accepted.
    pub fn signer(&self) -> Option<u16> {
        match self.judgement {
            Judgement::Accepted { signer } => Some(signer),
            Judgement::Repeated | Judgement::Refused(_) => None,
        }
    }

    /// What is to be remarked on it, accepted or not.
    pub fn remark(&self) -> Option<Remark> {
        Remark::on(&self.operation()?)
    }

    /// Why it is refused, if it is.
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.judgement {
            Judgement::Refused(refusal) => Some(refusal),
            Judgement::Accepted { .. } | Judgement::Repeated => None,
        }
    }

    /// Whether it is accepted and nothing in the history nullified it.
    pub fn is_in_force(&self) -> bool {
        self.signer().is_some() && self.nullified_by.is_none()
    }
}

impl History {
    /// Whether nothing at all was stated.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.unreadable.is_empty()
    }

    /// Whether everything was readable, accepted and there once, and every stated flag is what it
    /// should be.
    pub fn is_clean(&self) -> bool {
        let agrees = |entry: &HistoryEntry| {
            let nullified = entry.nullified_by.is_some();
            entry.signer().is_some()
                && entry.received.nullified.is_none_or(|flag| flag == nullified)
        };
        self.unreadable.is_empty() && self.entries.iter().all(agrees)
    }

    /// The entry of this operation.
    pub fn find(&self, cid: &Cid) -> Option<&HistoryEntry> {
        self.entries.iter().find(|entry| entry.received.cid == *cid)
    }

    /// The entries in the order in which the log states them.
    pub fn in_stated_order(&self) -> Vec<&HistoryEntry> {
        let mut entries: Vec<&HistoryEntry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| entry.place);
        entries
    }

    /// The newest operation in force.
    pub fn head(&self) -> Option<&HistoryEntry> {
        self.entries.iter().rev().find(|entry| entry.is_in_force())
    }

    /// The newest operation that is not stated to be nullified; where no flags are stated, the
    /// newest in force.
    pub fn stated_head(&self) -> Option<&HistoryEntry> {
        let stands = |entry: &&HistoryEntry| {
            entry.received.nullified.map_or(entry.is_in_force(), |flag| !flag)
        };
        self.in_stated_order().into_iter().rev().find(stands)
    }

    /// The head and what it builds on, newest first: the chain in force.
    pub fn in_force(&self) -> impl Iterator<Item = &HistoryEntry> {
        std::iter::successors(self.head(), |entry| Some(&self.entries[entry.prev?]))
    }

    /// The operation whose content is in force: the head, or, when that is a tombstone, what was
    /// said last.
    pub fn content(&self) -> Option<&HistoryEntry> {
        self.in_force().find(|entry| !entry.is_tombstone())
    }

    /// Since when the chain in force has said what the head says, of what `part` takes from an
    /// operation.
    pub fn since<'a, T: PartialEq>(
        &'a self,
        part: impl Fn(&Operation<'a>) -> T,
    ) -> Option<Timestamp> {
        let said = |entry: &'a HistoryEntry| entry.operation().map(|operation| part(&operation));
        let now = said(self.head()?);
        let same = self.in_force().take_while(|entry| said(entry) == now);
        same.last().map(|entry| entry.received.created_at)
    }

    /// The rotation keys by which an entry had to be signed, in order of authority: those of the
    /// operation that its `prev` names, of a genesis operation its own.
    pub fn keys_in_force(&self, index: usize) -> Vec<&str> {
        let from = self.entries[index].prev.unwrap_or(index);
        self.entries[from]
            .operation()
            .map(|operation| operation.rotation_keys())
            .unwrap_or_default()
    }

    /// The rotation key that signed an entry, a `did:key`; none of what is not accepted.
    pub fn signer_key(&self, index: usize) -> Option<&str> {
        let signer = self.entries[index].signer()?;
        self.keys_in_force(index).get(usize::from(signer)).copied()
    }

    /// What an entry changed of what the operation before it in its chain said; empty when it cannot
    /// be read.
    pub fn changes(&self, index: usize) -> Vec<Change> {
        let entry = &self.entries[index];
        let Some(operation) = entry.operation() else { return Vec::new() };
        let before = entry.prev.and_then(|prev| self.entries[prev].operation());
        Change::between(before.as_ref(), &operation)
    }

    /// How an entry in force can be undone, and until when: a key of higher authority than its
    /// signer can nullify it within 72 hours, and nullifies with it all that builds on it. So what
    /// was signed by the highest key is as contestable as what it builds on. A genesis operation
    /// cannot be nullified.
    ///
    /// Whether that time is over is for the caller to compare.
    pub fn contestable(&self, index: usize) -> Option<Contestable> {
        if !self.entries[index].is_in_force() {
            return None;
        }
        // The nearest one has the most time left, since what comes later in a chain is dated later.
        std::iter::successors(Some(index), |at| self.entries[*at].prev).find_map(|at| {
            let entry = &self.entries[at];
            let keys = entry.signer().filter(|signer| *signer > 0)?;
            let until = entry.received.created_at + RECOVERY_WINDOW;
            entry.prev.is_some().then_some(Contestable { until, entry: at, keys })
        })
    }
}
