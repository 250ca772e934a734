//! The history of one identity as it is shown: each operation with the one that its `prev` names,
//! what it changed of that, who signed it, and what became of it.

use crate::store::{StoredDivergence, StoredOperation, StoredRefusal};
use did_plc::chain::RECOVERY_WINDOW;
use did_plc::operation::{Kind, Malformed};
use did_plc::{Change, Cid, Did, Operation, Timestamp};

/// Everything that is held about one identity.
#[derive(Debug, Clone)]
pub struct Held {
    /// The identity.
    pub did: Did,
    /// Its operations by `created_at`, nullified ones included.
    pub operations: Vec<StoredOperation>,
    /// What was refused of it, accepted later or not.
    pub refusals: Vec<StoredRefusal>,
    /// Where somebody said otherwise.
    pub divergences: Vec<StoredDivergence>,
}

/// One operation in its place.
#[derive(Debug)]
pub struct Entry<'a> {
    /// As it is stored.
    pub stored: &'a StoredOperation,
    /// Its CID.
    pub cid: Cid,
    /// Its content.
    pub operation: Operation<'a>,
    /// Index of the entry that `prev` names.
    pub prev: Option<usize>,
    /// What it changed of that.
    pub changes: Vec<Change>,
    /// The rotation key that signed it.
    pub signer: &'a str,
    /// Index of the entry that nullified it.
    pub nullified_by: Option<usize>,
    /// Indices of the entries that it nullified, ascending.
    pub nullifies: Vec<usize>,
}

impl Entry<'_> {
    /// Until when a key of higher authority than its signer can nullify it; none when the highest
    /// signed, when it is a genesis or nullified, or when the time is over.
    pub fn contestable_until(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.stored.created_at + RECOVERY_WINDOW;
        let contestable = self.stored.signer > 0 && self.operation.prev().is_some();
        (contestable && self.nullified_by.is_none() && now <= until).then_some(until)
    }
}

/// The entries of one identity.
#[derive(Debug)]
pub struct Timeline<'a> {
    /// By `created_at`, ascending.
    pub entries: Vec<Entry<'a>>,
}

impl<'a> Timeline<'a> {
    /// Puts the operations of one identity, which are ordered by `created_at`, in their places.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when stored bytes are no operation: the store is damaged.
    pub fn of(operations: &'a [StoredOperation]) -> Result<Timeline<'a>, Malformed> {
        let mut entries: Vec<Entry<'a>> = Vec::with_capacity(operations.len());
        for stored in operations {
            let operation = Operation::read(&stored.signed)?;
            let prev = operation.prev().and_then(|prev| prev.parse::<Cid>().ok());
            let prev = prev.and_then(|prev| entries.iter().rposition(|entry| entry.cid == prev));
            let before = prev.map(|prev| entries[prev].operation);
            let in_force = before.unwrap_or(operation).rotation_keys();
            entries.push(Entry {
                stored,
                cid: stored.cid(),
                operation,
                prev,
                changes: Change::between(before.as_ref(), &operation),
                signer: in_force.get(usize::from(stored.signer)).copied().unwrap_or_default(),
                nullified_by: None,
                nullifies: Vec::new(),
            });
        }
        for index in 0..entries.len() {
            let Some(at) = entries[index].stored.nullified_by else { continue };
            let by = entries.binary_search_by_key(&at, |entry| entry.stored.created_at).ok();
            entries[index].nullified_by = by;
            if let Some(by) = by {
                entries[by].nullifies.push(index);
            }
        }
        Ok(Timeline { entries })
    }

    /// The newest entry that is not nullified.
    pub fn head(&self) -> Option<&Entry<'a>> {
        self.entries.iter().rev().find(|entry| entry.stored.nullified_by.is_none())
    }

    /// The head and what it rests on, newest first.
    pub fn in_force(&self) -> impl Iterator<Item = &Entry<'a>> {
        std::iter::successors(self.head(), |entry| entry.prev.map(|prev| &self.entries[prev]))
    }

    /// Since when the chain in force has said what the head says, of what `part` takes from an
    /// operation.
    pub fn since<T: PartialEq>(&self, part: impl Fn(&Operation<'a>) -> T) -> Option<Timestamp> {
        let now = part(&self.head()?.operation);
        self.in_force()
            .take_while(|entry| part(&entry.operation) == now)
            .last()
            .map(|entry| entry.stored.created_at)
    }

    /// What the head says, or, when it is a tombstone, what was said last.
    pub fn content(&self) -> Option<&Entry<'a>> {
        self.in_force().find(|entry| entry.operation.kind() != Kind::Tombstone)
    }
}
