//! Differences: how they are recorded, and forgotten when there are too many.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::read::all;
use crate::store::room::{self, Kept, Oldest, Owner, Room};
use crate::store::{NewDivergence, StoreError};

/// One that was closed and is seen again is open again, with what is seen now: what was seen then
/// may be something else. One that is open keeps what it was opened with.
const DIVERGE: &str = "INSERT INTO divergences
    (source, did, kind, subject, ours, theirs, first_seen, last_seen)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
    ON CONFLICT (did, kind, subject, source)
    DO UPDATE SET last_seen = excluded.last_seen, closed_at = NULL,
        ours = iif(closed_at IS NULL, ours, excluded.ours),
        theirs = iif(closed_at IS NULL, theirs, excluded.theirs)
    RETURNING id, bytes";

const BYTES_OF: &str = "SELECT bytes FROM divergences
    WHERE did = ?1 AND kind = ?2 AND subject = ?3 AND source = ?4";

const BYTES: &str = "SELECT divergence_bytes FROM sources";

const COUNT: &str = "UPDATE sources SET
    divergence_bytes = divergence_bytes + ?1, forgotten_divergences = forgotten_divergences + ?2";

const OLDEST_OF_KIND: &str = "SELECT id, bytes FROM divergences
    WHERE source = ?2 AND kind = ?3 AND id <> ?1
        AND id > (SELECT min(id) FROM divergences WHERE source = ?2 AND kind = ?3)
    ORDER BY id LIMIT ?4";

const OLDEST: &str = "SELECT id, bytes FROM divergences AS one
    WHERE id <> ?1 AND (?2 IS NULL OR source = ?2)
        AND EXISTS (SELECT 1 FROM divergences AS first
            WHERE first.source = one.source AND first.kind = one.kind AND first.id < one.id)
    ORDER BY id LIMIT ?3";

const FORGET: &str = "DELETE FROM divergences WHERE id = ?1";

/// Records differences, and makes room for them within so many bytes of all.
pub(super) fn write(
    transaction: &Transaction,
    divergences: &[NewDivergence],
    at: i64,
    bound: u64,
) -> Result<(), StoreError> {
    if divergences.is_empty() {
        return Ok(());
    }
    let mut kept = Vec::with_capacity(divergences.len());
    for new in divergences {
        kept.push(keep(transaction, new, at)?);
    }
    let brought: i64 = kept.iter().map(|one| one.bytes).sum();
    let held = transaction.prepare_cached(BYTES)?.query_row([], |row| row.get(0)).optional()?;
    let mut room = Room::new(Owner::All, kept, held.unwrap_or(0), bound);
    while let Some(question) = room.next() {
        for id in room.forget(&oldest(transaction, question)?) {
            transaction.prepare_cached(FORGET)?.execute([id])?;
        }
    }
    transaction.prepare_cached(COUNT)?.execute((brought - room.freed, room.forgotten))?;
    Ok(())
}

fn keep<'a>(
    transaction: &Transaction,
    new: &'a NewDivergence,
    at: i64,
) -> Result<Kept<'a>, StoreError> {
    let NewDivergence { source, did, kind, subject, ours, theirs } = new;
    let before: Option<i64> = transaction
        .prepare_cached(BYTES_OF)?
        .query_row((did, kind, subject, source), |row| row.get(0))
        .optional()?;
    let (id, bytes): (i64, i64) = transaction
        .prepare_cached(DIVERGE)?
        .query_row(params![source, did, kind, subject, ours, theirs, at], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    Ok(Kept { did, source, kind, id, bytes: bytes - before.unwrap_or(0) })
}

fn oldest(transaction: &Transaction, of: Oldest) -> Result<Vec<(i64, i64)>, StoreError> {
    let row = |row: &Row| Ok((row.get(0)?, row.get(1)?));
    let Oldest { source, kind, except, .. } = of;
    match (source, kind) {
        (Some(source), Some(kind)) => {
            all(transaction, OLDEST_OF_KIND, (except, source, kind, room::PAGE), row)
        }
        (source, _) => all(transaction, OLDEST, (except, source, room::PAGE), row),
    }
}
