//! A commit: everything that follows from a batch, in one transaction.

use rusqlite::{OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::Shared;
use super::error::damaged;
use super::recent::{Entry, Prefix, Recent};
use crate::store::codec::{Packer, is_genesis};
use crate::store::{Commit, Lease, NewDivergence, NewRefusal, Noted, Rejudged, StoreError};
use did_plc::{Did, Timestamp};

/// Operations that wait for the index of identities before they are brought into it. Each page of
/// the index is then written once for many of them; waiting, they take 12 MB of memory, and
/// a new process reads them from the log in 0.2 s.
const MAX_RECENT: usize = 1 << 19;
/// Operations that one transaction brings into the index: it is a few times what the write-ahead
/// log holds before it is copied.
const INDEXED_AT_ONCE: usize = 1 << 15;
/// Where the numbers of operations without a number begin: enough of them below zero, and each in
/// four bytes.
const FIRST_UNNUMBERED: i64 = -(1 << 31);

const CURSOR: &str = "SELECT cursor FROM sources";

const ADVANCE: &str = "UPDATE sources SET
    cursor = ?1,
    cursor_cid = CASE WHEN cursor = ?1 THEN cursor_cid ELSE ?6 END,
    caught_up_at = CASE WHEN ?2 THEN coalesce(caught_up_at, ?3) ELSE caught_up_at END,
    operations = operations + ?4,
    identities = identities + ?5";

const INSERT: &str = "INSERT INTO operations
    (sequence, did, created_at, signer, nullified_by, received_at, operation)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const LAST_UNNUMBERED: &str = "SELECT max(sequence) FROM operations WHERE sequence < 0";

/// Those that came out of order are there already when a new process brings them in again.
const INDEX: &str = "INSERT OR IGNORE INTO chains (prefix, sequence) VALUES (?1, ?2)";

const UNINDEX: &str = "DELETE FROM chains WHERE prefix = ?1 AND sequence = ?2";

const INDEXED: &str = "UPDATE sources SET indexed = ?1";

const SEQUENCES_OF: &str = "SELECT sequence FROM chains WHERE prefix = ?1";

const IS_IT: &str = "SELECT 1 FROM operations WHERE sequence = ?1 AND did = ?2 AND created_at = ?3";

const NULLIFY: &str = "UPDATE operations SET nullified_by = ?2 WHERE sequence = ?1";

const NUMBER: &str = "UPDATE operations SET sequence = ?2 WHERE sequence = ?1";

const INTERN: &str = "INSERT INTO interned (id, text) VALUES (?1, ?2)";

const REFUSE: &str = "INSERT INTO refusals
    (did, sequence, cid, kind, detail, awaits, received_at, line_digest, line)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (line_digest) DO NOTHING";

const ACCEPT_REFUSAL: &str = "UPDATE refusals SET accepted_at = ?2 WHERE id = ?1";

const REFUSE_AGAIN: &str = "UPDATE refusals SET kind = ?2, detail = ?3, awaits = ?4 WHERE id = ?1";

/// One that was closed and is seen again is open again, with what is seen now: what was seen then
/// may be something else. One that is open keeps what it was opened with.
const DIVERGE: &str = "INSERT INTO divergences
    (source, did, kind, subject, ours, theirs, first_seen, last_seen)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
    ON CONFLICT (did, kind, subject, source)
    DO UPDATE SET last_seen = excluded.last_seen, closed_at = NULL,
        ours = iif(closed_at IS NULL, ours, excluded.ours),
        theirs = iif(closed_at IS NULL, theirs, excluded.theirs)";

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
    /// Entries of numbers that are not used any more.
    removed: Vec<Entry>,
    /// The highest number of an operation.
    highest: i64,
}

impl Effects<'_> {
    fn committed(mut self) {
        self.added.clear();
        self.recent.remove(&self.removed);
        self.recent.committed(self.highest);
    }
}

impl Drop for Effects<'_> {
    fn drop(&mut self) {
        self.recent.remove(&self.added);
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
        let recent = &self.recent;
        let highest = recent.extent().highest;
        let mut effects = Effects { recent, added: Vec::new(), removed: Vec::new(), highest };
        let committed = self
            .write_commit(&transaction, packer, commit, &mut effects)
            .and_then(|()| Ok(transaction.commit()?));
        match &committed {
            Ok(()) => {
                packer.committed();
                effects.committed();
            }
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
        diverge(&transaction, seen, now.millis())?;
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
        check_cursor(transaction, commit.cursor_before)?;
        let highest_before = effects.highest;
        self.insert_operations(transaction, packer, commit, effects)?;
        self.nullify(transaction, &commit.nullified)?;
        self.number(transaction, &commit.numbered, effects)?;
        self.claim(transaction, commit, highest_before, effects.highest)?;
        intern(transaction, packer)?;
        refuse(transaction, &commit.refusals, commit.received_at_millis)?;
        rejudge(transaction, &commit.rejudged, commit.received_at_millis)?;
        diverge(transaction, &commit.divergences, commit.received_at_millis)?;
        advance(transaction, commit)
    }

    fn insert_operations(
        &self,
        transaction: &Transaction,
        packer: &mut Packer,
        commit: &Commit,
        effects: &mut Effects<'_>,
    ) -> Result<(), StoreError> {
        // In the order of the log, so that its end grows.
        let mut operations: Vec<_> = commit.operations.iter().collect();
        operations.sort_by_key(|new| (new.sequence, new.created_at));
        let mut unnumbered = match operations.first() {
            Some(first) if first.sequence.is_none() => next_unnumbered(transaction)?,
            _ => FIRST_UNNUMBERED,
        };
        let mut entries = Vec::with_capacity(operations.len());
        let mut insert = transaction.prepare_cached(INSERT)?;
        for new in operations {
            let sequence = match new.sequence {
                Some(sequence) if sequence > 0 => sequence,
                Some(other) => return Err(damaged("the commit", format!("the number {other}"))),
                None => {
                    unnumbered += 1;
                    unnumbered - 1
                }
            };
            insert.execute(params![
                sequence,
                new.did.as_bytes(),
                new.created_at.millis(),
                new.signer,
                new.nullified_by.map(Timestamp::millis),
                new.received_at.millis(),
                packer.pack(&new.signed),
            ])?;
            entries.push((Prefix::of(&new.did), sequence));
        }
        self.enter(transaction, entries, effects)
    }

    /// Makes operations known to readers: those at the end of the log here, the others in the
    /// index. Ascending by number.
    fn enter(
        &self,
        transaction: &Transaction,
        mut entries: Vec<Entry>,
        effects: &mut Effects<'_>,
    ) -> Result<(), StoreError> {
        let inside = entries.partition_point(|entry| entry.1 <= effects.highest);
        let at_end = entries.split_off(inside);
        entries.sort_unstable();
        for (prefix, sequence) in entries {
            transaction.prepare_cached(INDEX)?.execute((prefix, sequence))?;
        }
        effects.highest = at_end.last().map_or(effects.highest, |last| last.1);
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
            effects.removed.push((prefix, old));
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
        let prefix = Prefix::of(did);
        let mut sequences: Vec<i64> = transaction
            .prepare_cached(SEQUENCES_OF)?
            .query_map([prefix], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        sequences.extend(self.recent.find(&[prefix]).iter().map(|entry| entry.1));
        let mut is_it = transaction.prepare_cached(IS_IT)?;
        for sequence in sequences {
            if is_it.exists((sequence, did.as_bytes(), created_at.millis()))? {
                return Ok(sequence);
            }
        }
        Err(damaged(format!("{did}, operation of {created_at}"), "it is not there"))
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

fn check_cursor(transaction: &Transaction, expected: i64) -> Result<(), StoreError> {
    let cursor: i64 = transaction.prepare_cached(CURSOR)?.query_row([], |row| row.get(0))?;
    if cursor == expected {
        return Ok(());
    }
    Err(StoreError::LostLease(format!(
        "the cursor is {cursor}, but this commit starts from {expected}"
    )))
}

/// The next number for operations that have none, ascending as the others are.
fn next_unnumbered(transaction: &Transaction) -> Result<i64, StoreError> {
    let last: Option<i64> = transaction
        .prepare_cached(LAST_UNNUMBERED)?
        .query_row([], |row| row.get(0))
        .optional()?
        .flatten();
    match last.map_or(FIRST_UNNUMBERED, |last| last + 1) {
        0 => Err(damaged("table operations", "there are too many operations without a number")),
        next => Ok(next),
    }
}

/// The texts that were given a number while this batch was packed.
fn intern(transaction: &Transaction, packer: &Packer) -> Result<(), StoreError> {
    for new in packer.new_texts() {
        transaction.prepare_cached(INTERN)?.execute(new)?;
    }
    Ok(())
}

fn refuse(transaction: &Transaction, refusals: &[NewRefusal], at: i64) -> Result<(), StoreError> {
    for new in refusals {
        transaction.prepare_cached(REFUSE)?.execute(params![
            new.did,
            new.sequence,
            new.cid.as_ref().map(|cid| cid.digest()),
            new.kind,
            new.detail,
            new.awaits.as_ref().map(|cid| cid.digest()),
            at,
            Sha256::digest(&new.line).as_slice(),
            &new.line[..],
        ])?;
    }
    Ok(())
}

fn rejudge(transaction: &Transaction, rejudged: &[Rejudged], at: i64) -> Result<(), StoreError> {
    for rejudged in rejudged {
        match rejudged {
            Rejudged::Accepted { id } => {
                transaction.prepare_cached(ACCEPT_REFUSAL)?.execute((id, at))?;
            }
            Rejudged::Refused { id, kind, detail, awaits } => {
                let awaits = awaits.as_ref().map(|cid| cid.digest());
                transaction
                    .prepare_cached(REFUSE_AGAIN)?
                    .execute(params![id, kind, detail, awaits])?;
            }
        }
    }
    Ok(())
}

fn diverge(
    transaction: &Transaction,
    divergences: &[NewDivergence],
    at: i64,
) -> Result<(), StoreError> {
    for new in divergences {
        let NewDivergence { source, did, kind, subject, ours, theirs } = new;
        transaction
            .prepare_cached(DIVERGE)?
            .execute(params![source, did, kind, subject, ours, theirs, at])?;
    }
    Ok(())
}

fn advance(transaction: &Transaction, commit: &Commit) -> Result<(), StoreError> {
    let identities = commit.operations.iter().filter(|new| is_genesis(&new.signed)).count();
    transaction.prepare_cached(ADVANCE)?.execute(params![
        commit.cursor_after,
        commit.caught_up,
        commit.received_at_millis,
        commit.operations.len() as i64,
        identities as i64,
        commit.cursor_cid,
    ])?;
    Ok(())
}
