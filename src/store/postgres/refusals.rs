//! What was refused: how it is kept, found, and forgotten when there is too much of it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use did_plc::{Cid, Did, Timestamp};

use super::lease::over;
use super::open::Postgres;
use super::pool::Lent;
use super::read::count;
use super::rows::{self, RefusalRow, refusals};
use crate::store::refusal::{Head, MOST_REFUSED_AFTER};
use crate::store::room::{self, Kept, Oldest, Owner, Room};
use crate::store::{
    Asked, Commit, Lease, NewRefusal, RefusalKey, RefusalLimits, StoreError, StoredOperation,
    StoredRefusal,
};

/// Writes what a commit says of refusals, and makes room for those that it brings.
pub(super) async fn write(
    connection: &mut Lent,
    commit: &Commit,
    limits: RefusalLimits,
) -> Result<(), StoreError> {
    lift(connection, &commit.lifted, commit.received_at_millis).await?;
    if commit.refusals.is_empty() {
        return Ok(());
    }
    let refusals = distinct(&commit.refusals);
    let kept = keep(connection, &refusals, commit.received_at_millis).await?;
    make_room(connection, &kept, limits).await
}

async fn lift(connection: &mut Lent, keys: &[RefusalKey], at: i64) -> Result<(), StoreError> {
    if keys.is_empty() {
        return Ok(());
    }
    let lift = sqlx::query!(
        "UPDATE refusals SET accepted_at = coalesce(accepted_at, $2), ask_at = NULL
         WHERE key = ANY($1)",
        keys as _,
        at
    );
    connection.execute(lift).await?;
    Ok(())
}

/// One statement cannot touch a record twice: of those with the same key the first, with what the last says that is
/// taken over. The order is kept: it is that of the numbers.
fn distinct(refusals: &[NewRefusal]) -> Vec<NewRefusal> {
    let mut distinct: Vec<NewRefusal> = Vec::with_capacity(refusals.len());
    let mut places: HashMap<RefusalKey, usize> = HashMap::with_capacity(refusals.len());
    for new in refusals {
        match places.get(&new.key).and_then(|&place| distinct.get_mut(place)) {
            Some(first) => {
                first.sequence = new.sequence.or(first.sequence);
                first.kind.clone_from(&new.kind);
                first.detail.clone_from(&new.detail);
            }
            None => {
                places.insert(new.key, distinct.len());
                distinct.push(new.clone());
            }
        }
    }
    distinct
}

/// What is refused again after it was lifted is asked about anew, as if it never had been.
async fn keep<'a>(
    connection: &mut Lent,
    refusals: &'a [NewRefusal],
    at: i64,
) -> Result<Vec<Kept<'a>>, StoreError> {
    let all = || refusals.iter();
    let dids: Vec<_> = all().map(|new| new.did.as_bytes()).collect();
    let sequences: Vec<_> = all().map(|new| new.sequence).collect();
    let cids: Vec<_> = all().map(|new| new.cid.as_ref().map(digest)).collect();
    let kinds: Vec<_> = all().map(|new| new.kind.as_str()).collect();
    let details: Vec<_> = all().map(|new| new.detail.as_bytes()).collect();
    let sources: Vec<_> = all().map(|new| new.source.as_str()).collect();
    let lines: Vec<_> = all().map(|new| &new.line[..]).collect();
    let keys: Vec<_> = all().map(|new| new.key).collect();
    let stated_at: Vec<_> = all().map(|new| new.stated_at().map(Timestamp::millis)).collect();
    // The table as it is read here is that of before.
    let keep = sqlx::query!(
        r#"WITH kept AS (
            INSERT INTO refusals
                (did, sequence, cid, kind, detail, source, line, key, stated_at, received_at, ask_at)
            SELECT *, $10, $10 FROM unnest($1::bytea[], $2::int8[], $3::bytea[], $4::text[],
                $5::bytea[], $6::text[], $7::bytea[], $8::bytea[], $9::int8[])
            ON CONFLICT (key) DO UPDATE SET
                sequence = coalesce(excluded.sequence, refusals.sequence),
                kind = excluded.kind, detail = excluded.detail,
                asked = CASE WHEN refusals.accepted_at IS NULL THEN refusals.asked ELSE 0 END,
                ask_at = CASE WHEN refusals.accepted_at IS NULL THEN refusals.ask_at
                    ELSE excluded.ask_at END,
                accepted_at = NULL
            RETURNING id, key, bytes)
         SELECT id AS "id!", key AS "key!", bytes - coalesce((
                SELECT before.bytes FROM refusals before WHERE before.key = kept.key), 0) AS "bytes!"
         FROM kept"#,
        dids as _,
        sequences as _,
        cids as _,
        kinds as _,
        details as _,
        sources as _,
        lines as _,
        keys as _,
        stated_at as _,
        at
    );
    let kept: HashMap<Vec<u8>, (i64, i64)> =
        connection.all(keep).await?.into_iter().map(|row| (row.key, (row.id, row.bytes))).collect();
    let kept = all().filter_map(|new| {
        let &(id, bytes) = kept.get(new.key.as_slice())?;
        Some(Kept { did: &new.did, source: &new.source, kind: &new.kind, id, bytes })
    });
    Ok(kept.collect())
}

/// First in the room of each identity, then in that of all.
async fn make_room(
    connection: &mut Lent,
    kept: &[Kept<'_>],
    limits: RefusalLimits,
) -> Result<(), StoreError> {
    let brought: i64 = kept.iter().map(|one| one.bytes).sum();
    let (mut forgotten, mut freed) = (0, 0);
    let mut up_to: Option<i64> = None;
    let identities = room::by_identity(kept);
    let dids: Vec<&[u8]> = identities.keys().map(|did| did.as_bytes()).collect();
    let held = sqlx::query!(
        r#"SELECT coalesce((
                SELECT sum(r.bytes) FROM refusals r
                WHERE r.did = asked.did), 0)::int8 AS "bytes!"
           FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (did, place) ORDER BY place"#,
        dids as _
    );
    let held = connection.all(held).await?;
    for ((did, kept), held) in identities.into_iter().zip(held) {
        let brought: i64 = kept.iter().map(|one| one.bytes).sum();
        let owner = Owner::Identity(did);
        let mut room = Room::new(owner, kept, held.bytes - brought, limits.of_identity);
        up_to = up_to.max(forget(connection, &mut room).await?);
        forgotten += room.forgotten;
        freed += room.freed;
    }
    let held = connection.first(sqlx::query!("SELECT refused_bytes FROM sources")).await?;
    let held = held.map_or(0, |row| row.refused_bytes) - freed;
    let mut room = Room::new(Owner::All, kept.iter().copied(), held, limits.in_all);
    up_to = up_to.max(forget(connection, &mut room).await?);
    forgotten += room.forgotten;
    freed += room.freed;
    let count = sqlx::query!(
        "UPDATE sources SET refused_bytes = refused_bytes + $1, forgotten = forgotten + $2,
            forgotten_up_to = greatest(forgotten_up_to, $3)",
        brought - freed,
        forgotten,
        up_to
    );
    connection.execute(count).await?;
    Ok(())
}

/// The highest number of those that go is returned.
async fn forget(connection: &mut Lent, room: &mut Room<'_>) -> Result<Option<i64>, StoreError> {
    let mut up_to: Option<i64> = None;
    while let Some(question) = room.next() {
        let going = room.forget(&oldest(connection, question).await?);
        if !going.is_empty() {
            let forget =
                sqlx::query!("DELETE FROM refusals WHERE id = ANY($1) RETURNING sequence", &going);
            for gone in connection.all(forget).await? {
                up_to = up_to.max(gone.sequence);
            }
        }
    }
    Ok(up_to)
}

/// A record and its bytes.
pub(super) struct Sized {
    pub(super) id: i64,
    pub(super) bytes: i64,
}

async fn oldest(connection: &mut Lent, of: Oldest<'_>) -> Result<Vec<(i64, i64)>, StoreError> {
    let Oldest { owner, source, kind, except } = of;
    let found = match (owner, source, kind) {
        (Owner::Identity(did), ..) => {
            // OFFSET leaves the index of DIDs alone to choose, as in `Postgres::refusals`.
            let of_did = sqlx::query_as!(
                Sized,
                r#"SELECT id, bytes FROM (SELECT * FROM refusals WHERE did = $1 OFFSET 0) of_did
                   WHERE id <> $2 AND ($3::text IS NULL OR source = $3) AND ($4::text IS NULL OR kind = $4)
                   ORDER BY id LIMIT $5"#,
                did.as_bytes(),
                except,
                source,
                kind,
                room::PAGE
            );
            connection.all(of_did).await?
        }
        (Owner::All, Some(source), Some(kind)) => {
            // By whole rows, since only the index of sources and kinds has this order: in that of ids alone all
            // other kinds may come before the first of this one.
            let of_kind = sqlx::query_as!(
                Sized,
                r#"SELECT id, bytes AS "bytes!" FROM refusals
                   WHERE (source, kind, id) > ($1, $2, 0) AND (source, kind) <= ($1, $2) AND id <> $3
                   ORDER BY source, kind, id LIMIT $4"#,
                source,
                kind,
                except,
                room::PAGE
            );
            connection.all(of_kind).await?
        }
        (Owner::All, Some(source), None) => {
            // The kinds one after the other by the index, and the oldest of each as above.
            let of_source = sqlx::query_as!(
                Sized,
                r#"WITH RECURSIVE kinds AS (
                    (SELECT kind FROM refusals WHERE source = $1 ORDER BY kind LIMIT 1)
                    UNION ALL
                    SELECT (SELECT r.kind FROM refusals r
                            WHERE r.source = $1 AND r.kind > kinds.kind ORDER BY r.kind LIMIT 1)
                    FROM kinds WHERE kinds.kind IS NOT NULL)
                 SELECT id AS "id!", bytes AS "bytes!" FROM kinds, LATERAL (
                    SELECT id, bytes FROM refusals r
                    WHERE (r.source, r.kind, r.id) > ($1, kinds.kind, 0)
                        AND (r.source, r.kind) <= ($1, kinds.kind) AND r.id <> $2
                    ORDER BY r.source, r.kind, r.id LIMIT $3) of_kind
                 WHERE kinds.kind IS NOT NULL ORDER BY id LIMIT $3"#,
                source,
                except,
                room::PAGE
            );
            connection.all(of_source).await?
        }
        (Owner::All, None, _) => {
            let of_all = sqlx::query_as!(
                Sized,
                r#"SELECT id, bytes AS "bytes!" FROM refusals
                   WHERE id <> $1 ORDER BY id LIMIT $2"#,
                except,
                room::PAGE
            );
            connection.all(of_all).await?
        }
    };
    Ok(found.into_iter().map(|found| (found.id, found.bytes)).collect())
}

fn digest(cid: &Cid) -> &[u8] {
    cid.digest()
}

impl Postgres {
    /// See [`crate::store::Store::limit_refusals`].
    pub fn limit_refusals(&self, limits: RefusalLimits) {
        self.writer.refusal_limits.set(limits);
    }

    /// See [`crate::store::Store::limit_divergences`].
    pub fn limit_divergences(&self, bytes: u64) {
        self.writer.divergence_bytes.store(bytes, Ordering::Relaxed);
    }

    /// See [`crate::store::Store::note_asked`].
    pub async fn note_asked(
        &self,
        lease: &Lease,
        asked: &[Asked],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let mut connection = self.writer.pool.lend().await?;
        connection.begin("BEGIN").await?;
        let held =
            sqlx::query!("SELECT epoch FROM sources WHERE epoch = $1 FOR UPDATE", lease.epoch);
        if connection.first(held).await?.is_none() {
            return Err(over(lease));
        }
        let ids: Vec<_> = asked.iter().map(|one| one.id).collect();
        let accepted: Vec<_> = asked.iter().map(|one| one.accepted).collect();
        let ask_at: Vec<_> = asked.iter().map(|one| one.ask_at.map(Timestamp::millis)).collect();
        let note = sqlx::query!(
            "UPDATE refusals r SET
                asked = asked + 1,
                accepted_at = CASE WHEN new.accepted THEN coalesce(accepted_at, $4)
                    ELSE accepted_at END,
                ask_at = CASE WHEN new.accepted OR accepted_at IS NOT NULL THEN NULL
                    ELSE new.ask_at END
             FROM unnest($1::int8[], $2::bool[], $3::int8[]) AS new (id, accepted, ask_at)
             WHERE r.id = new.id",
            &ids,
            &accepted,
            ask_at as _,
            now.millis()
        );
        connection.execute(note).await?;
        connection.commit().await
    }

    /// See [`crate::store::Store::refusals`].
    pub async fn refusals(
        &self,
        did: Option<&str>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        let limit = count(limit);
        let rows = match did {
            Some(did) => {
                // OFFSET leaves the index of DIDs alone to choose: neither the order nor what else is asked is a reason
                // then to walk through those of all identities.
                let of_did = refusals!(
                    FROM "(SELECT * FROM refusals WHERE did = $3 OFFSET 0) of_did
                        WHERE id > $1 ORDER BY id LIMIT $2",
                    after_id,
                    limit,
                    did.as_bytes()
                );
                self.pages.all(of_did).await?
            }
            None => {
                let all = refusals!(
                    FROM "refusals WHERE id > $1 ORDER BY id LIMIT $2",
                    after_id,
                    limit
                );
                self.pages.all(all).await?
            }
        };
        rows.into_iter().map(StoredRefusal::try_from).collect()
    }

    /// See [`crate::store::Store::standing_refusals`].
    pub async fn standing_refusals(&self, dids: &[Did]) -> Result<Vec<StoredRefusal>, StoreError> {
        let mut dids: Vec<Vec<u8>> = dids.iter().map(|did| did.to_string().into_bytes()).collect();
        dids.sort_unstable();
        dids.dedup();
        // OFFSET leaves the index of DIDs alone to choose, as in `Postgres::refusals`.
        let standing = refusals!(
            FROM "unnest($1::bytea[]) AS asked (asked_did), LATERAL (
                SELECT * FROM refusals r WHERE r.did = asked.asked_did OFFSET 0) of_did
                WHERE of_did.accepted_at IS NULL",
            &dids
        );
        let rows = self.ingest.all(standing).await?;
        let mut refusals: Vec<StoredRefusal> =
            rows.into_iter().map(StoredRefusal::try_from).collect::<Result<_, _>>()?;
        refusals.sort_by_key(|refusal| refusal.id);
        Ok(refusals)
    }

    /// See [`crate::store::Store::still_refused`].
    pub async fn still_refused(&self, ids: &[i64]) -> Result<Vec<StoredRefusal>, StoreError> {
        let standing = refusals!(
            FROM "refusals WHERE id = ANY($1) AND accepted_at IS NULL ORDER BY id",
            ids
        );
        self.ingest.all(standing).await?.into_iter().map(StoredRefusal::try_from).collect()
    }

    /// See [`crate::store::Store::refused_after`].
    pub async fn refused_after(
        &self,
        did: &Did,
        head: Option<&StoredOperation>,
    ) -> Result<usize, StoreError> {
        let (did, head) = (did.to_string(), Head::of(head));
        // OFFSET leaves the index of DIDs alone to choose, as in `Postgres::refusals`.
        let after = sqlx::query!(
            r#"SELECT count(*) AS "count!" FROM (
                SELECT FROM (SELECT * FROM refusals WHERE did = $1 OFFSET 0) of_did
                WHERE accepted_at IS NULL AND (stated_at > $2 OR sequence > $3
                    OR stated_at IS NULL AND (sequence IS NULL OR $3::int8 IS NULL))
                LIMIT $4) counted"#,
            did.as_bytes(),
            head.created_at,
            head.sequence,
            MOST_REFUSED_AFTER
        );
        let counted = self.refused.first(after).await?;
        Ok(counted.map_or(0, |row| row.count as usize))
    }

    /// See [`crate::store::Store::refused_identities`].
    pub async fn refused_identities(
        &self,
        after_id: i64,
        limit: usize,
    ) -> Result<(Vec<String>, i64), StoreError> {
        let standing = sqlx::query!(
            "SELECT id, did FROM refusals WHERE accepted_at IS NULL AND id > $1
             ORDER BY id LIMIT $2",
            after_id,
            count(limit)
        );
        let rows = self.pages.all(standing).await?;
        let last = rows.last().map_or(after_id, |last| last.id);
        let mut dids: Vec<String> = rows
            .into_iter()
            .map(|row| rows::text("refusals", row.did))
            .collect::<Result<_, _>>()?;
        dids.sort_unstable();
        dids.dedup();
        Ok((dids, last))
    }

    /// See [`crate::store::Store::doubtful`].
    pub async fn doubtful(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        let doubtful = refusals!(
            FROM "refusals WHERE ask_at <= $1 AND accepted_at IS NULL
                ORDER BY ask_at, id LIMIT $2",
            now.millis(),
            count(limit)
        );
        self.ingest.all(doubtful).await?.into_iter().map(StoredRefusal::try_from).collect()
    }
}
