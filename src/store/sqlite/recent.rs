//! The operations at the end of the log that the index of identities does not have yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rusqlite::{Connection, OptionalExtension};

use super::entries::Entries;
use super::error::damaged;
use super::prefix::{Entry, Prefix};
use crate::store::StoreError;
use did_plc::Did;

/// How much of the log there is, and how much of it is in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Commits that took a number away from an identity, or the end of the log.
    pub(super) renumbered: i64,
    /// Operations up to this number are in the index.
    pub(super) indexed: i64,
    /// The highest number of an operation; not less than `indexed`, so that what comes under a number below that goes
    /// into the index also when the number has been used before and no longer is.
    pub(super) highest: i64,
}

impl Extent {
    /// That of the transaction of this connection.
    pub(super) fn read(connection: &Connection) -> Result<Extent, StoreError> {
        let mut statement = connection.prepare_cached(
            "SELECT renumbered, indexed, (SELECT max(sequence) FROM operations) FROM sources",
        )?;
        let found = statement
            .query_row([], |row| {
                let (indexed, highest): (i64, Option<i64>) = (row.get(1)?, row.get(2)?);
                let highest = highest.map_or(indexed, |highest| highest.max(indexed));
                Ok(Extent { renumbered: row.get(0)?, indexed, highest })
            })
            .optional()?;
        Ok(found.unwrap_or(Extent::NONE))
    }

    /// That of an empty log.
    const NONE: Extent = Extent { renumbered: 0, indexed: i64::MIN, highest: i64::MIN };

    /// Whether it is that of an earlier commit than the other, or of the same.
    fn is_not_after(&self, other: &Extent) -> bool {
        // Without a number or the end of the log taken away, which is counted, the rest only grows.
        self.renumbered < other.renumbered
            || self.renumbered == other.renumbered
                && self.indexed <= other.indexed
                && self.highest <= other.highest
    }
}

/// The entries above [`Extent::indexed`], shared by the writer and all readers.
///
/// A reader looks here and then into the database, where commits happen meanwhile. The writer
/// adds entries *before* it commits their operations: what a reader finds here and not in its
/// transaction is not there for it. [`Recent::version`] moves with each change, so that a reader
/// whose transaction may have begun after a commit that it has not seen here looks again.
///
/// A number that goes from one identity to another is under the old one's entry here and has the new one's operation in
/// the database, or the other way round, unless both change at once. So the rare commit that takes numbers away is
/// made while nobody can look here ([`Recent::take_away`]).
#[derive(Debug)]
pub(super) struct Recent {
    version: AtomicU64,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    extent: Extent,
    entries: Entries,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent {
            version: AtomicU64::new(0),
            state: RwLock::new(State { extent: Extent::NONE, entries: Entries::default() }),
        }
    }
}

/// The right to change [`State`]. The version moves at its end, while nobody else can look: who has asked for it
/// before that, and looks after it, looks again. Where the database shows the change before its end, the version
/// moves at its beginning too ([`Recent::take_away`]).
struct Changing<'a> {
    version: &'a AtomicU64,
    state: RwLockWriteGuard<'a, State>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recent {
    /// Moves with every change.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> Changing<'_> {
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        Changing { version: &self.version, state }
    }

    /// The numbers of the operations of these identities, and of some others that share a prefix.
    pub(super) fn find(&self, prefixes: &[Prefix]) -> Vec<Entry> {
        let state = self.state();
        let of = |&prefix| {
            let from = state.entries.from((prefix, i64::MIN));
            from.take_while(move |entry| entry.0 == prefix)
        };
        prefixes.iter().flat_map(of).collect()
    }

    /// The first `limit` entries from a prefix on, and the rest of those that share the last one's
    /// prefix.
    pub(super) fn from(&self, first: Prefix, limit: usize) -> Vec<Entry> {
        let state = self.state();
        let mut found: Vec<Entry> = Vec::new();
        for entry in state.entries.from((first, i64::MIN)) {
            if found.len() >= limit && found.last().is_some_and(|last| last.0 != entry.0) {
                break;
            }
            found.push(entry);
        }
        found
    }

    pub(super) fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// All entries, for the index.
    pub(super) fn all(&self) -> Vec<Entry> {
        self.state().entries.iter().collect()
    }

    pub(super) fn extent(&self) -> Extent {
        self.state().extent
    }

    /// Before the commit of these operations.
    pub(super) fn add(&self, entries: &[Entry]) {
        // In pieces, between which readers have their turn.
        for entries in entries.chunks(512) {
            self.change().state.entries.extend(entries.iter().copied());
        }
    }

    /// After that commit, or instead of it.
    pub(super) fn remove(&self, entries: &[Entry]) {
        // As after most commits: nobody need wait for that, or look again.
        if entries.is_empty() {
            return;
        }
        let mut changing = self.change();
        for entry in entries {
            changing.state.entries.remove(entry);
        }
    }

    /// After the commit of operations up to this number.
    pub(super) fn committed(&self, highest: i64) {
        let mut changing = self.change();
        let extent = &mut changing.state.extent;
        extent.highest = extent.highest.max(highest);
    }

    /// Makes a commit that takes the rows of these entries away from their identities, after which the log has
    /// this extent. Readers of identities wait for it; when it fails nothing has changed.
    pub(super) fn take_away(
        &self,
        entries: &[Entry],
        extent: Extent,
        commit: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut changing = self.change();
        // Who has looked here before the change may find it in the database before it has ended here.
        self.version.fetch_add(1, Ordering::SeqCst);
        commit()?;
        for entry in entries {
            changing.state.entries.remove(entry);
        }
        changing.state.extent = extent;
        Ok(())
    }

    /// After the commit that brought all entries into the index.
    pub(super) fn indexed(&self) {
        let mut changing = self.change();
        let state = &mut *changing.state;
        state.extent.indexed = state.extent.highest;
        state.entries.clear();
    }

    /// Reads what has been written by another process, in the transaction of `connection`. False
    /// when that transaction is older than what is known here: begin a new one.
    pub(super) fn catch_up(&self, connection: &Connection) -> Result<bool, StoreError> {
        let now = Extent::read(connection)?;
        let known = self.extent();
        if now == known {
            return Ok(true);
        }
        if !known.is_not_after(&now) {
            return Ok(false);
        }
        let mut changing = self.change();
        let state = &mut *changing.state;
        if state.extent != known {
            return Ok(false);
        }
        // Which entries went when numbers were taken away is not to be seen in what has come since: then all of them
        // are read again.
        let is_anew = now.renumbered != known.renumbered;
        let from = if is_anew { now.indexed } else { known.highest.max(now.indexed) };
        let mut statement = connection
            .prepare_cached("SELECT sequence, did FROM operations WHERE sequence > ?1")?;
        let mut rows = statement.query([from])?;
        let mut fresh = Vec::new();
        while let Some(row) = rows.next()? {
            let sequence: i64 = row.get(0)?;
            let did = Did::from_slice(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)
                .ok_or_else(|| {
                    damaged(format!("operation {sequence}"), "a DID that is not of 15 bytes")
                })?;
            fresh.push((Prefix::of(&did), sequence));
        }
        state.entries.retain(|&(_, sequence)| !is_anew && sequence > now.indexed);
        state.entries.extend(fresh);
        state.extent = now;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has looked here before it, and into the database after it, looks again.
    #[test]
    fn numbers_are_taken_away_under_another_version() {
        let recent = Recent::default();
        let before = recent.version();
        let mut committed = None;
        let commit = || {
            committed = Some(recent.version());
            Ok(())
        };
        recent.take_away(&[], Extent::NONE, commit).unwrap();
        let committed = committed.unwrap();
        assert!(before < committed && committed < recent.version());
    }

    #[test]
    fn nobody_looks_again_for_what_has_not_changed() {
        let recent = Recent::default();
        let before = recent.version();
        recent.remove(&[]);
        assert_eq!(recent.version(), before);
    }
}
