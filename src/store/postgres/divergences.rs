//! Differences: how they are recorded, and forgotten when there are too many.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::pool::Lent;
use super::refusals::Sized;
use crate::store::room::{self, Kept, Oldest, Owner, Room};
use crate::store::{NewDivergence, StoreError};

/// Records differences, and makes room for them within so many bytes of all.
pub(super) async fn write(
    connection: &mut Lent,
    divergences: &[NewDivergence],
    seen_at: i64,
    bound: u64,
) -> Result<(), StoreError> {
    if divergences.is_empty() {
        return Ok(());
    }
    let held = lock(connection).await?;
    let kept = keep(connection, divergences, seen_at).await?;
    let brought: i64 = kept.iter().map(|one| one.bytes).sum();
    let mut room = Room::new(Owner::All, kept, held, bound);
    while let Some(question) = room.next() {
        let going = room.forget(&oldest(connection, question).await?);
        if !going.is_empty() {
            let forget = sqlx::query!("DELETE FROM divergences WHERE id = ANY($1)", &going);
            connection.execute(forget).await?;
        }
    }
    let count = sqlx::query!(
        "UPDATE sources SET divergence_bytes = divergence_bytes + $1,
            forgotten_divergences = forgotten_divergences + $2",
        brought - room.freed,
        room.forgotten
    );
    connection.execute(count).await?;
    Ok(())
}

/// Locks the source, and tells how many bytes there are. It is locked before any records, as in a commit: of two
/// processes one waits, and neither for the other.
pub(super) async fn lock(connection: &mut Lent) -> Result<i64, StoreError> {
    let held = sqlx::query!("SELECT divergence_bytes FROM sources FOR UPDATE");
    Ok(connection.first(held).await?.map_or(0, |row| row.divergence_bytes))
}

/// A record that was closed and is seen again is open again, with what is seen now: what was seen then
/// may be something else. One that is open keeps what it was opened with.
async fn keep<'a>(
    connection: &mut Lent,
    divergences: &'a [NewDivergence],
    seen_at: i64,
) -> Result<Vec<Kept<'a>>, StoreError> {
    // One statement cannot touch a record twice. The order is kept: it is that of the numbers.
    let mut seen = HashSet::new();
    let distinct: Vec<_> = divergences
        .iter()
        .map(|new| (identity(new), new))
        .filter(|(identity, _)| seen.insert(*identity))
        .collect();
    let all = || distinct.iter().map(|(_, new)| new);
    let sources: Vec<_> = all().map(|new| new.source.as_bytes()).collect();
    let dids: Vec<_> = all().map(|new| new.did.as_bytes()).collect();
    let kinds: Vec<_> = all().map(|new| new.kind.as_str()).collect();
    let subjects: Vec<_> = all().map(|new| new.subject.as_bytes()).collect();
    let ours: Vec<_> = all().map(|new| new.ours.as_ref().map(String::as_bytes)).collect();
    let theirs: Vec<_> = all().map(|new| new.theirs.as_ref().map(String::as_bytes)).collect();
    let identities: Vec<_> = distinct.iter().map(|(identity, _)| identity.as_slice()).collect();
    let diverge = sqlx::query!(
        // The table as it is read beside the insertion is that of before.
        r#"WITH kept AS (INSERT INTO divergences
            (source, did, kind, subject, ours, theirs, identity, first_seen, last_seen)
         SELECT *, $8, $8 FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::bytea[], $5::bytea[],
            $6::bytea[], $7::bytea[])
         ON CONFLICT (identity) DO UPDATE SET last_seen = excluded.last_seen, closed_at = NULL,
            ours = CASE WHEN divergences.closed_at IS NULL THEN divergences.ours
                ELSE excluded.ours END,
            theirs = CASE WHEN divergences.closed_at IS NULL THEN divergences.theirs
                ELSE excluded.theirs END
         RETURNING id, identity, bytes)
         SELECT id AS "id!", identity AS "identity!", bytes - coalesce((
                SELECT before.bytes FROM divergences before
                WHERE before.identity = kept.identity), 0) AS "bytes!"
         FROM kept"#,
        sources as _,
        dids as _,
        kinds as _,
        subjects as _,
        ours as _,
        theirs as _,
        identities as _,
        seen_at
    );
    let rows = connection.all(diverge).await?.into_iter();
    let kept: HashMap<Vec<u8>, (i64, i64)> =
        rows.map(|row| (row.identity, (row.id, row.bytes))).collect();
    let kept = distinct.iter().filter_map(|(identity, new)| {
        let &(id, bytes) = kept.get(identity.as_slice())?;
        Some(Kept { did: &new.did, source: &new.source, kind: &new.kind, id, bytes })
    });
    Ok(kept.collect())
}

async fn oldest(connection: &mut Lent, of: Oldest<'_>) -> Result<Vec<(i64, i64)>, StoreError> {
    let Oldest { source, kind, except, .. } = of;
    let found = match (source, kind) {
        (Some(source), Some(kind)) => {
            // By whole rows, as refusals are: only the index of sources and kinds has this order.
            let of_kind = sqlx::query_as!(
                Sized,
                r#"SELECT id, bytes AS "bytes!" FROM divergences
                   WHERE (source, kind, id) > ($1, $2, (
                        SELECT first.id FROM divergences first
                        WHERE first.source = $1 AND first.kind = $2
                        ORDER BY first.source, first.kind, first.id LIMIT 1))
                    AND (source, kind) <= ($1, $2) AND id <> $3
                   ORDER BY source, kind, id LIMIT $4"#,
                source.as_bytes(),
                kind,
                except,
                room::PAGE
            );
            connection.all(of_kind).await?
        }
        (source, _) => {
            let of_source = sqlx::query_as!(
                Sized,
                r#"SELECT id, bytes AS "bytes!" FROM divergences one
                   WHERE id <> $1 AND ($2::bytea IS NULL OR source = $2)
                    AND EXISTS (SELECT FROM divergences first
                        WHERE first.source = one.source AND first.kind = one.kind AND first.id < one.id)
                   ORDER BY id LIMIT $3"#,
                except,
                source.map(str::as_bytes),
                room::PAGE
            );
            connection.all(of_source).await?
        }
    };
    Ok(found.into_iter().map(|found| (found.id, found.bytes)).collect())
}

/// What makes two divergences one record, in a form that an index takes. Each part is preceded by its length, so
/// that no two sets of parts run together to the same bytes.
fn identity(new: &NewDivergence) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&new.source, &new.did, &new.kind, &new.subject] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
