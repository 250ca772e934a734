//! What was refused: how it is kept, found, and forgotten when there is too much of it.

use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};

use super::read::all;
use super::rows::{self, refusal_columns};
use super::{Shared, Sqlite};
use crate::store::refusal::{Head, MOST_REFUSED_AFTER};
use crate::store::room::{self, Kept, Oldest, Owner, Room};
use crate::store::{
    Asked, Commit, Lease, NewRefusal, RefusalKey, RefusalLimits, StoreError, StoredOperation,
    StoredRefusal,
};
use did_plc::{Did, Timestamp};

const ALL: &str =
    concat!("SELECT ", refusal_columns!(), " FROM refusals WHERE id > ?1 ORDER BY id LIMIT ?2");

const OF_DID: &str = concat!(
    "SELECT ",
    refusal_columns!(),
    " FROM refusals WHERE did = ?3 AND id > ?1 ORDER BY id LIMIT ?2"
);

const STANDING_OF: &str = concat!(
    "SELECT ",
    refusal_columns!(),
    " FROM refusals WHERE did = ?1 AND accepted_at IS NULL ORDER BY id"
);

const STILL_REFUSED: &str =
    concat!("SELECT ", refusal_columns!(), " FROM refusals WHERE id = ?1 AND accepted_at IS NULL");

const AFTER: &str = "SELECT count(*) FROM (SELECT 1 FROM refusals
    WHERE did = ?1 AND accepted_at IS NULL AND (stated_at > ?2 OR sequence > ?3
        OR stated_at IS NULL AND (sequence IS NULL OR ?3 IS NULL))
    LIMIT ?4)";

const STANDING: &str =
    "SELECT id, did FROM refusals WHERE accepted_at IS NULL AND id > ?1 ORDER BY id LIMIT ?2";

const DOUBTFUL: &str = concat!(
    "SELECT ",
    refusal_columns!(),
    " FROM refusals WHERE ask_at <= ?1 AND accepted_at IS NULL ORDER BY ask_at, id LIMIT ?2"
);

const LIFT: &str = "UPDATE refusals SET accepted_at = ?2, ask_at = NULL
    WHERE key = ?1 AND accepted_at IS NULL";

const NOTE_ASKED: &str = "UPDATE refusals SET
    asked = asked + 1,
    accepted_at = iif(?2, coalesce(accepted_at, ?3), accepted_at),
    ask_at = iif(?2 OR accepted_at IS NOT NULL, NULL, ?4)
    WHERE id = ?1";

const BYTES_OF_KEY: &str = "SELECT bytes FROM refusals WHERE key = ?1";

/// What is refused again after it was lifted is asked about anew, as if it never had been.
const REFUSE: &str = "INSERT INTO refusals
    (did, sequence, cid, kind, detail, source, stated_at, received_at, ask_at, key, line)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?9, ?10)
    ON CONFLICT (key) DO UPDATE SET
        sequence = coalesce(excluded.sequence, sequence),
        kind = excluded.kind, detail = excluded.detail,
        asked = iif(accepted_at IS NULL, asked, 0),
        ask_at = iif(accepted_at IS NULL, ask_at, excluded.ask_at), accepted_at = NULL
    RETURNING id, bytes";

const BYTES_OF_DID: &str = "SELECT coalesce(sum(bytes), 0) FROM refusals WHERE did = ?1";

const BYTES: &str = "SELECT refused_bytes FROM sources";

const COUNT: &str = "UPDATE sources SET
    refused_bytes = refused_bytes + ?1, forgotten = forgotten + ?2,
    forgotten_up_to = iif(?3 > coalesce(forgotten_up_to, 0), ?3, forgotten_up_to)";

const OLDEST_OF_DID: &str = "SELECT id, bytes FROM refusals WHERE did = :did AND id <> :except
    AND (:source IS NULL OR source = :source) AND (:kind IS NULL OR kind = :kind)
    ORDER BY id LIMIT :page";

const OLDEST_OF_KIND: &str = "SELECT id, bytes FROM refusals
    WHERE source = ?2 AND kind = ?3 AND id <> ?1 ORDER BY id LIMIT ?4";

/// The kinds of a source, one after the other by the index.
const NEXT_KIND: &str = "SELECT min(kind) FROM refusals WHERE source = ?1 AND kind > ?2";

const OLDEST: &str = "SELECT id, bytes FROM refusals WHERE id <> ?1 ORDER BY id LIMIT ?2";

const FORGET: &str = "DELETE FROM refusals WHERE id = ?1 RETURNING sequence";

/// Writes what a commit says of refusals, and makes room for those that it brings.
pub(super) fn write(
    transaction: &Transaction,
    commit: &Commit,
    limits: RefusalLimits,
) -> Result<(), StoreError> {
    lift(transaction, &commit.lifted, commit.received_at_millis)?;
    if commit.refusals.is_empty() {
        return Ok(());
    }
    let mut kept = Vec::with_capacity(commit.refusals.len());
    for new in &commit.refusals {
        kept.push(keep(transaction, new, commit.received_at_millis)?);
    }
    make_room(transaction, &kept, limits)
}

fn lift(transaction: &Transaction, keys: &[RefusalKey], at: i64) -> Result<(), StoreError> {
    for key in keys {
        transaction.prepare_cached(LIFT)?.execute((key, at))?;
    }
    Ok(())
}

fn keep<'a>(
    transaction: &Transaction,
    new: &'a NewRefusal,
    at: i64,
) -> Result<Kept<'a>, StoreError> {
    let before: Option<i64> = transaction
        .prepare_cached(BYTES_OF_KEY)?
        .query_row([new.key], |row| row.get(0))
        .optional()?;
    let (id, bytes): (i64, i64) = transaction.prepare_cached(REFUSE)?.query_row(
        params![
            new.did,
            new.sequence,
            new.cid.as_ref().map(|cid| cid.digest()),
            new.kind,
            new.detail,
            new.source,
            new.stated_at().map(Timestamp::millis),
            at,
            new.key,
            &new.line[..],
        ],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let NewRefusal { did, source, kind, .. } = new;
    Ok(Kept { did, source, kind, id, bytes: bytes - before.unwrap_or(0) })
}

/// First in the room of each identity, then in that of all.
fn make_room(
    transaction: &Transaction,
    kept: &[Kept],
    limits: RefusalLimits,
) -> Result<(), StoreError> {
    let brought: i64 = kept.iter().map(|one| one.bytes).sum();
    let (mut forgotten, mut freed) = (0, 0);
    let mut up_to: Option<i64> = None;
    for (did, kept) in room::by_identity(kept) {
        let held: i64 =
            transaction.prepare_cached(BYTES_OF_DID)?.query_row([did], |row| row.get(0))?;
        let brought: i64 = kept.iter().map(|one| one.bytes).sum();
        let owner = Owner::Identity(did);
        let mut room = Room::new(owner, kept, held - brought, limits.of_identity);
        up_to = up_to.max(forget(transaction, &mut room)?);
        forgotten += room.forgotten;
        freed += room.freed;
    }
    let held: i64 = transaction.prepare_cached(BYTES)?.query_row([], |row| row.get(0))?;
    let mut room = Room::new(Owner::All, kept.iter().copied(), held - freed, limits.in_all);
    up_to = up_to.max(forget(transaction, &mut room)?);
    forgotten += room.forgotten;
    freed += room.freed;
    transaction.prepare_cached(COUNT)?.execute((brought - freed, forgotten, up_to))?;
    Ok(())
}

/// The highest number of those that go is returned.
fn forget(transaction: &Transaction, room: &mut Room) -> Result<Option<i64>, StoreError> {
    let mut up_to: Option<i64> = None;
    while let Some(question) = room.next() {
        for id in room.forget(&oldest(transaction, question)?) {
            let number = transaction.prepare_cached(FORGET)?.query_row([id], |row| row.get(0))?;
            up_to = up_to.max(number);
        }
    }
    Ok(up_to)
}

fn oldest(transaction: &Transaction, of: Oldest) -> Result<Vec<(i64, i64)>, StoreError> {
    let row = |row: &Row| Ok((row.get(0)?, row.get(1)?));
    let Oldest { owner, source, kind, except } = of;
    match (owner, source, kind) {
        (Owner::Identity(did), ..) => all(
            transaction,
            OLDEST_OF_DID,
            named_params! {
                ":did": did, ":except": except, ":source": source, ":kind": kind, ":page": room::PAGE,
            },
            row,
        ),
        (Owner::All, Some(source), Some(kind)) => {
            all(transaction, OLDEST_OF_KIND, (except, source, kind, room::PAGE), row)
        }
        (Owner::All, Some(source), None) => oldest_of_source(transaction, source, except),
        (Owner::All, None, _) => all(transaction, OLDEST, (except, room::PAGE), row),
    }
}

fn oldest_of_source(
    transaction: &Transaction,
    source: &str,
    except: i64,
) -> Result<Vec<(i64, i64)>, StoreError> {
    let mut next_kind = transaction.prepare_cached(NEXT_KIND)?;
    let mut kind = String::new();
    let mut oldest: Vec<(i64, i64)> = Vec::new();
    while let Some(next) = next_kind.query_row((source, &kind), |row| row.get(0))? {
        kind = next;
        let of_kind = (except, source, &kind, room::PAGE);
        let row = |row: &Row| Ok((row.get(0)?, row.get(1)?));
        oldest.extend(all::<(i64, i64)>(transaction, OLDEST_OF_KIND, of_kind, row)?);
    }
    oldest.sort_unstable();
    oldest.truncate(room::PAGE as usize);
    Ok(oldest)
}

impl Shared {
    fn note_asked(&self, lease: &Lease, asked: &[Asked], now: Timestamp) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let (transaction, _) = writer.transaction(lease)?;
        for Asked { id, accepted, ask_at } in asked {
            let ask_at = ask_at.map(Timestamp::millis);
            transaction.prepare_cached(NOTE_ASKED)?.execute((
                id,
                accepted,
                now.millis(),
                ask_at,
            ))?;
        }
        Ok(transaction.commit()?)
    }
}

impl Sqlite {
    /// See [`crate::store::Store::limit_refusals`].
    pub fn limit_refusals(&self, limits: RefusalLimits) {
        self.shared.refusal_limits.set(limits);
    }

    /// See [`crate::store::Store::note_asked`].
    pub async fn note_asked(
        &self,
        lease: &Lease,
        asked: &[Asked],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (lease, asked) = (lease.clone(), asked.to_vec());
        self.write("noting what came of asking", move |shared| {
            shared.note_asked(&lease, &asked, now)
        })
        .await
    }

    /// See [`crate::store::Store::refusals`].
    pub async fn refusals(
        &self,
        did: Option<&str>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        let did = did.map(str::to_owned);
        let limit = limit as i64;
        self.long_read("reading refusals", move |shared| {
            shared.readers.with(|connection| match did {
                None => all(connection, ALL, (after_id, limit), rows::refusal),
                Some(did) => all(connection, OF_DID, (after_id, limit, did), rows::refusal),
            })
        })
        .await
    }

    /// See [`crate::store::Store::standing_refusals`].
    pub async fn standing_refusals(&self, dids: &[Did]) -> Result<Vec<StoredRefusal>, StoreError> {
        let mut dids = dids.to_vec();
        dids.sort_unstable();
        dids.dedup();
        self.long_read("reading refusals that stand", move |shared| {
            shared.readers.with(|connection| {
                let mut refusals = Vec::new();
                for did in &dids {
                    let of_did = [did.to_string()];
                    refusals.extend(all(connection, STANDING_OF, of_did, rows::refusal)?);
                }
                refusals.sort_by_key(|refusal: &StoredRefusal| refusal.id);
                Ok(refusals)
            })
        })
        .await
    }

    /// See [`crate::store::Store::still_refused`].
    pub async fn still_refused(&self, ids: &[i64]) -> Result<Vec<StoredRefusal>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        self.long_read("reading which refusals stand", move |shared| {
            shared.readers.with(|connection| {
                let mut refusals = Vec::with_capacity(ids.len());
                for id in &ids {
                    refusals.extend(all(connection, STILL_REFUSED, [id], rows::refusal)?);
                }
                Ok(refusals)
            })
        })
        .await
    }

    /// See [`crate::store::Store::refused_after`].
    pub async fn refused_after(
        &self,
        did: &Did,
        head: Option<&StoredOperation>,
    ) -> Result<usize, StoreError> {
        let head = Head::of(head);
        let of = (did.to_string(), head.created_at, head.sequence, MOST_REFUSED_AFTER);
        self.shared.readers.with(|connection| {
            let mut after = connection.prepare_cached(AFTER)?;
            Ok(after.query_row(of, |row| row.get::<_, i64>(0))? as usize)
        })
    }

    /// See [`crate::store::Store::refused_identities`].
    pub async fn refused_identities(
        &self,
        after_id: i64,
        limit: usize,
    ) -> Result<(Vec<String>, i64), StoreError> {
        let limit = limit as i64;
        self.long_read("reading which identities were refused", move |shared| {
            let standing: Vec<(i64, String)> = shared.readers.with(|connection| {
                let row = |row: &Row| Ok((row.get(0)?, row.get(1)?));
                all(connection, STANDING, (after_id, limit), row)
            })?;
            let last = standing.last().map_or(after_id, |last| last.0);
            let mut dids: Vec<String> = standing.into_iter().map(|(_, did)| did).collect();
            dids.sort_unstable();
            dids.dedup();
            Ok((dids, last))
        })
        .await
    }

    /// See [`crate::store::Store::doubtful`].
    pub async fn doubtful(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        let limit = limit as i64;
        self.long_read("reading what is doubtful", move |shared| {
            shared
                .readers
                .with(|connection| all(connection, DOUBTFUL, (now.millis(), limit), rows::refusal))
        })
        .await
    }
}
