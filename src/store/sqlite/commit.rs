//! A commit: everything that follows from a batch, in one transaction.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rusqlite::{Transaction, params};

use super::error::damaged;
use super::prefix::{Entry, Prefix};
use super::recent::{Extent, Recent};
use super::{Shared, divergences, refusals, unsettled};
use crate::store::codec::Packer;
use crate::store::news;
use crate::store::{
    Commit, Lease, NewDivergence, Noted, Rewritten, StoreError, StoredOperation, Word,
};
use did_plc::{Did, Timestamp};

/// Operations that wait for the index of identities before they are brought into it. Each page of
/// the index is then written once for many of them; waiting, they take 12 MB of memory, and
/// a new process reads them from the log in 0.2 s.
const MAX_RECENT: usize = 1 << 19;
/// Operations that one transaction brings into the index: it is a few times what the write-ahead
/// log holds before it is copied.
const INDEXED_AT_ONCE: usize = 1 << 15;

const POSITION: &str = "SELECT cursor, unnumbered FROM sources";

/// What was read again above a cursor that is put back is another log's.
const ADVANCE: &str = "UPDATE sources SET
    cursor = ?1,
    cursor_cid = CASE WHEN cursor = ?1 THEN cursor_cid ELSE ?6 END,
    caught_up_at = CASE WHEN ?2 THEN coalesce(caught_up_at, ?3) ELSE caught_up_at END,
    renumbering = renumbering AND NOT ?2,
    operations = operations + ?4,
    identities = identities + ?5,
    unnumbered = ?7,
    commits = commits + 1,
    committed_in = epoch,
    word = coalesce(?8, word),
    second_reading = min(second_reading, ?1),
    round = min(round, ?1)";

const NOTE: &str = "INSERT OR REPLACE INTO commits (slot, number, epoch, told)
    SELECT commits % ?1, commits, epoch, ?2 FROM sources";

const INSERT: &str = "INSERT INTO operations
    (sequence, did, created_at, signer, nullified_by, received_at, operation)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const DELETE: &str = "DELETE FROM operations WHERE sequence = ?1 AND did = ?2";

const RENUMBERED: &str = "UPDATE sources SET renumbered = renumbered + 1";

/// Those that came out of order are there already when a new process brings them in again.
const INDEX: &str = "INSERT OR IGNORE INTO chains (prefix, sequence) VALUES (?1, ?2)";

const UNINDEX: &str = "DELETE FROM chains WHERE prefix = ?1 AND sequence = ?2";

const INDEXED: &str = "UPDATE sources SET indexed = ?1";

const SEQUENCES_OF: &str = "SELECT sequence FROM chains WHERE prefix = ?1";

const IS_IT: &str = "SELECT 1 FROM operations WHERE sequence = ?1 AND did = ?2 AND created_at = ?3";

const NULLIFY: &str = "UPDATE operations SET nullified_by = ?2 WHERE sequence = ?1";

const NUMBER: &str = "UPDATE operations SET sequence = ?2 WHERE sequence = ?1";

const INTERN: &str = "INSERT INTO interned (id, text) VALUES (?1, ?2)";

const OPEN_DIVERGENCES_OF: &str = "SELECT id, kind, subject FROM divergences
    WHERE did = ?1 AND source = ?2 AND closed_at IS NULL";

const CLOSE_DIVERGENCE: &str = "UPDATE divergences SET closed_at = ?2 WHERE id = ?1";

/// What a transaction changes in memory.
#[derive(Debug)]
struct Effects<'a> {
    recent: &'a Recent,
    /// Entries at the end of the log, which wait for the index. They are there before the
    /// transaction is committed, and taken back if it is not.
    added: Vec<Entry>,
    /// Entries of rows below zero that are not used any more, and never again by another identity. The log
    /// ends where it did without them.
    given_up: Vec<Entry>,
    /// Entries of rows above zero that went to another identity, or away, and of the row at the end of the log if
    /// that went away, whatever its number: the log may end before it now, which who has read its end has to know.
    taken_away: Vec<Entry>,
    /// The log after it.
    extent: Extent,
}

impl<'a> Effects<'a> {
    /// None yet.
    fn on(recent: &'a Recent) -> Effects<'a> {
        let (added, given_up, taken_away) = (Vec::new(), Vec::new(), Vec::new());
        Effects { recent, added, given_up, taken_away, extent: recent.extent() }
    }

    /// COMMIT. If it fails, nothing has changed.
    fn commit(mut self, transaction: Transaction) -> Result<(), StoreError> {
        let recent = self.recent;
        if self.taken_away.is_empty() {
            transaction.commit()?;
            recent.committed(self.extent.highest);
        } else {
            recent.take_away(&self.taken_away, self.extent, || Ok(transaction.commit()?))?;
        }
        self.added.clear();
        recent.remove(&self.given_up);
        Ok(())
    }
}

impl Drop for Effects<'_> {
    fn drop(&mut self) {
        self.recent.remove(&self.added);
    }
}

/// An operation and the row that it is put in: its number, or a place below zero.
type Placed<'a> = (i64, &'a StoredOperation);

/// Gives rows to operations.
struct Places {
    /// The place of the next operation without a number.
    unnumbered: i64,
}

impl Places {
    /// The row of an operation. One without a number takes a place that its identity has given up, or else
    /// a new one.
    fn place<'a>(
        &mut self,
        operation: &'a StoredOperation,
        given_up: &mut impl Iterator<Item = i64>,
    ) -> Result<Placed<'a>, StoreError> {
        let row = match operation.sequence {
            Some(sequence) if sequence > 0 => sequence,
            Some(other) => return Err(damaged("the commit", format!("the number {other}"))),
            None => given_up.next().unwrap_or_else(|| {
                self.unnumbered += 1;
                self.unnumbered - 1
            }),
        };
        if self.unnumbered > 0 {
            let reason = "there are too many operations without a number";
            return Err(damaged("table operations", reason));
        }
        Ok((row, operation))
    }
}

impl Shared {
    /// See [`crate::store::Store::commit`]. A crash before COMMIT leaves nothing of it behind, after
    /// it everything; what is remembered here is read again by the next process.
    pub(super) fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        if self.recent.len() >= MAX_RECENT {
            self.index_recent(lease)?;
        }
        let mut writer = self.writer();
        let (transaction, packer) = writer.transaction(lease)?;
        // What a commit that panicked has left.
        packer.rolled_back();
        let mut effects = Effects::on(&self.recent);
        let committed = self
            .write_commit(&transaction, packer, commit, &mut effects)
            .and_then(|()| effects.commit(transaction));
        match &committed {
            Ok(()) => packer.committed(),
            Err(_) => packer.rolled_back(),
        }
        committed
    }

    /// See [`crate::store::Store::note_divergences`].
    pub(super) fn note_divergences(
        &self,
        source: &str,
        did: &str,
        covered: &[&str],
        seen: &[NewDivergence],
        now: Timestamp,
    ) -> Result<Noted, StoreError> {
        let mut writer = self.writer();
        let transaction = writer.bare_transaction()?;
        let open: Vec<(i64, String, String)> = transaction
            .prepare_cached(OPEN_DIVERGENCES_OF)?
            .query_map(params![did, source], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let (noted, closed) = Noted::between(&open, covered, seen);
        let bound = self.divergence_bytes.load(Ordering::Relaxed);
        divergences::write(&transaction, seen, now.millis(), bound)?;
        for id in closed {
            transaction.prepare_cached(CLOSE_DIVERGENCE)?.execute(params![id, now.millis()])?;
        }
        transaction.commit()?;
        Ok(noted)
    }

    /// See [`crate::store::Store::close_divergence`].
    pub(super) fn close_divergence(&self, id: i64, now: Timestamp) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let transaction = writer.bare_transaction()?;
        transaction.prepare_cached(CLOSE_DIVERGENCE)?.execute(params![id, now.millis()])?;
        transaction.commit()?;
        Ok(())
    }

    fn write_commit(
        &self,
        transaction: &Transaction,
        packer: &mut Packer,
        commit: &Commit,
        effects: &mut Effects<'_>,
    ) -> Result<(), StoreError> {
        let mut places = position(transaction, commit.cursor_before)?;
        let highest_before = effects.extent.highest;
        self.write_operations(transaction, packer, commit, &mut places, effects)?;
        self.nullify(transaction, &commit.nullified)?;
        self.number(transaction, &commit.numbered, effects)?;
        self.claim(transaction, commit, highest_before, effects.extent.highest)?;
        unsettled::write(transaction, commit)?;
        intern(transaction, packer)?;
        refusals::write(transaction, commit, self.refusal_limits.get())?;
        let bound = self.divergence_bytes.load(Ordering::Relaxed);
        divergences::write(transaction, &commit.divergences, commit.received_at_millis, bound)?;
        advance(transaction, commit, &places)?;
        if !effects.taken_away.is_empty() {
            transaction.prepare_cached(RENUMBERED)?.execute([])?;
            effects.extent = Extent::read(transaction)?;
        }
        Ok(())
    }

    /// Replaces what is rewritten, and adds what is new.
    fn write_operations(
        &self,
        transaction: &Transaction,
        packer: &mut Packer,
        commit: &Commit,
        places: &mut Places,
        effects: &mut Effects<'_>,
    ) -> Result<(), StoreError> {
        let mut placed: Vec<Placed<'_>> = Vec::with_capacity(commit.operations.len());
        let mut before: BTreeSet<Entry> = BTreeSet::new();
        let highest = effects.extent.highest;
        // All of them before anything is put in: a number may go from one to another.
        for rewritten in &commit.rewritten {
            let rows = self.delete(transaction, rewritten)?;
            before.extend(rows.iter().map(|&row| (Prefix::of(&rewritten.did), row)));
            let mut given_up = rows.into_iter().filter(|row| *row < 0);
            for operation in &rewritten.operations {
                placed.push(places.place(operation, &mut given_up)?);
            }
        }
        let mut operations: Vec<_> = commit.operations.iter().collect();
        operations.sort_by_key(|new| (new.sequence, new.created_at));
        for operation in operations {
            placed.push(places.place(operation, &mut std::iter::empty())?);
        }
        if !commit.rewritten.is_empty() {
            placed.sort_unstable_by_key(|(row, _)| *row);
        }
        insert(transaction, packer, &placed)?;
        let mut entries: Vec<Entry> =
            placed.iter().map(|(row, operation)| (Prefix::of(&operation.did), *row)).collect();
        if !before.is_empty() {
            // What is where it was is known to readers already.
            entries.retain(|entry| !before.remove(entry));
            for (prefix, row) in before {
                transaction.prepare_cached(UNINDEX)?.execute((prefix, row))?;
                let gone = match row > 0 || row == highest {
                    true => &mut effects.taken_away,
                    false => &mut effects.given_up,
                };
                gone.push((prefix, row));
            }
        }
        self.enter(transaction, entries, effects)
    }

    /// Deletes all operations of an identity; the rows that they had.
    fn delete(
        &self,
        transaction: &Transaction,
        rewritten: &Rewritten,
    ) -> Result<Vec<i64>, StoreError> {
        let Rewritten { did, stored, .. } = rewritten;
        let mut rows = self.rows_under(transaction, Prefix::of(did))?;
        rows.sort_unstable();
        rows.dedup();
        let mut delete = transaction.prepare_cached(DELETE)?;
        let mut deleted = Vec::with_capacity(*stored);
        for row in rows {
            if delete.execute((row, did.as_bytes()))? > 0 {
                deleted.push(row);
            }
        }
        if deleted.len() != *stored {
            let reason = format!("{} operations where {stored} were known", deleted.len());
            return Err(damaged(did, reason));
        }
        Ok(deleted)
    }

    /// Makes operations known to readers: those at the end of the log here, the others in the
    /// index. Ascending by number.
    fn enter(
        &self,
        transaction: &Transaction,
        mut entries: Vec<Entry>,
        effects: &mut Effects<'_>,
    ) -> Result<(), StoreError> {
        let highest = effects.extent.highest;
        let inside = entries.partition_point(|entry| entry.1 <= highest);
        let at_end = entries.split_off(inside);
        entries.sort_unstable();
        for (prefix, sequence) in entries {
            transaction.prepare_cached(INDEX)?.execute((prefix, sequence))?;
        }
        effects.extent.highest = at_end.last().map_or(highest, |last| last.1);
        effects.added.extend(&at_end);
        self.recent.add(&at_end);
        Ok(())
    }

    fn nullify(
        &self,
        transaction: &Transaction,
        nullified: &[(Did, Timestamp, Timestamp)],
    ) -> Result<(), StoreError> {
        for (did, created_at, by) in nullified {
            let sequence = self.sequence_of(transaction, did, *created_at)?;
            transaction.prepare_cached(NULLIFY)?.execute((sequence, by.millis()))?;
        }
        Ok(())
    }

    fn number(
        &self,
        transaction: &Transaction,
        numbered: &[(Did, Timestamp, i64)],
        effects: &mut Effects<'_>,
    ) -> Result<(), StoreError> {
        let mut entries = Vec::with_capacity(numbered.len());
        for (did, created_at, number) in numbered {
            let old = self.sequence_of(transaction, did, *created_at)?;
            if old > 0 {
                let reason = format!("it has the number {old}, and was to be given {number}");
                return Err(damaged(format!("{did}, operation of {created_at}"), reason));
            }
            transaction.prepare_cached(NUMBER)?.execute((old, number))?;
            let prefix = Prefix::of(did);
            transaction.prepare_cached(UNINDEX)?.execute((prefix, old))?;
            effects.given_up.push((prefix, old));
            entries.push((prefix, *number));
        }
        entries.sort_unstable_by_key(|entry| entry.1);
        self.enter(transaction, entries, effects)
    }

    /// Where the operation is that was judged to be there.
    fn sequence_of(
        &self,
        transaction: &Transaction,
        did: &Did,
        created_at: Timestamp,
    ) -> Result<i64, StoreError> {
        let sequences = self.rows_under(transaction, Prefix::of(did))?;
        let mut is_it = transaction.prepare_cached(IS_IT)?;
        for sequence in sequences {
            if is_it.exists((sequence, did.as_bytes(), created_at.millis()))? {
                return Ok(sequence);
            }
        }
        Err(damaged(format!("{did}, operation of {created_at}"), "it is not there"))
    }

    /// Where operations of a prefix are, some perhaps twice, and others perhaps not any more.
    fn rows_under(
        &self,
        transaction: &Transaction,
        prefix: Prefix,
    ) -> Result<Vec<i64>, StoreError> {
        let mut rows: Vec<i64> = transaction
            .prepare_cached(SEQUENCES_OF)?
            .query_map([prefix], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        rows.extend(self.recent.find(&[prefix]).iter().map(|entry| entry.1));
        Ok(rows)
    }

    /// Brings what is remembered here into the index. A crash in the middle leaves entries that
    /// are in the index and, by the extent, not yet: they are found once, and brought in again.
    pub(super) fn index_recent(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let entries = self.recent.all();
        let mut left = entries.chunks(INDEXED_AT_ONCE).peekable();
        while let Some(entries) = left.next() {
            let (transaction, _) = writer.transaction(lease)?;
            let mut index = transaction.prepare_cached(INDEX)?;
            for entry in entries {
                index.execute(*entry)?;
            }
            if left.peek().is_none() {
                let highest = self.recent.extent().highest;
                transaction.prepare_cached(INDEXED)?.execute([highest])?;
            }
            drop(index);
            transaction.commit()?;
        }
        self.recent.indexed();
        Ok(())
    }
}

/// Where the log ends, for a commit that starts from this cursor.
fn position(transaction: &Transaction, expected: i64) -> Result<Places, StoreError> {
    let (cursor, unnumbered): (i64, i64) = transaction
        .prepare_cached(POSITION)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if cursor == expected {
        return Ok(Places { unnumbered });
    }
    Err(StoreError::LostLease(format!(
        "the cursor is {cursor}, but this commit starts from {expected}"
    )))
}

/// In the order of the log, so that its end grows.
fn insert(
    transaction: &Transaction,
    packer: &mut Packer,
    placed: &[Placed<'_>],
) -> Result<(), StoreError> {
    let mut insert = transaction.prepare_cached(INSERT)?;
    for (row, new) in placed {
        insert.execute(params![
            row,
            new.did.as_bytes(),
            new.created_at.millis(),
            new.signer,
            new.nullified_by.map(Timestamp::millis),
            new.received_at.millis(),
            packer.pack(&new.signed),
        ])?;
    }
    Ok(())
}

/// The texts that were given a number while this batch was packed.
fn intern(transaction: &Transaction, packer: &Packer) -> Result<(), StoreError> {
    for new in packer.new_texts() {
        transaction.prepare_cached(INTERN)?.execute(new)?;
    }
    Ok(())
}

fn advance(transaction: &Transaction, commit: &Commit, places: &Places) -> Result<(), StoreError> {
    transaction.prepare_cached(ADVANCE)?.execute(params![
        commit.cursor_after,
        commit.caught_up,
        commit.received_at_millis,
        commit.more_operations(),
        commit.more_identities(),
        commit.cursor_cid,
        places.unnumbered,
        commit.word.as_ref().map(Word::text),
    ])?;
    let told = news::listed(commit.told());
    transaction.prepare_cached(NOTE)?.execute(params![news::KEPT, told])?;
    Ok(())
}
