//! A commit: everything that follows from a batch, in one transaction.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{TryFutureExt, try_join};
use sha2::{Digest, Sha256};
use tokio_postgres::types::ToSql;
use tokio_postgres::{CopyInSink, Row};

use super::Postgres;
use super::connection::Session;
use super::copy::{COPY, copy};
use super::error::query_error;
use super::write::LEASE;
use super::{claims, rows};
use crate::store::codec::{Packer, is_genesis};
use crate::store::{
    Commit, Lease, NewDivergence, NewRefusal, Noted, Rejudged, StoreError, StoredOperation,
};
use did_plc::{Cid, Did, Timestamp};

/// Locks the row and compares what the commit rests on: no row, no right to write. The index of
/// claims moves with the cursor when it is complete and kept ($9) so; what it has then, and where
/// the log has ended before this commit, say which operations the commit adds to it.
const ADVANCE: &str = "UPDATE sources SET
        cursor = $3,
        cursor_cid = CASE WHEN cursor = $3 THEN cursor_cid ELSE $11 END,
        lease_until = clock_timestamp() + make_interval(secs => $4),
        caught_up_at = CASE WHEN $5 THEN coalesce(caught_up_at, $6) ELSE caught_up_at END,
        operations = operations + $7,
        identities = identities + $8,
        claimed = CASE WHEN $9 AND claimed >= coalesce((SELECT max(sequence) FROM operations), 0)
            THEN greatest(claimed, $10) ELSE claimed END
    WHERE epoch = $1 AND cursor = $2
    RETURNING CASE WHEN claimed IS NOT NULL
        THEN greatest(claimed, (SELECT max(sequence) FROM operations)) END";

/// For the transaction that is under way, whatever it began with.
const DURABLE: &str = "SET LOCAL synchronous_commit = on";

const INTERN: &str =
    "INSERT INTO interned (id, text) SELECT * FROM unnest($1::int4[], $2::bytea[])";

const NULLIFY: &str = "UPDATE operations o SET nullified_by = new.nullified_by
    FROM unnest($1::bytea[], $2::int8[], $3::int8[]) AS new (did, created_at, nullified_by)
    WHERE o.did = new.did AND o.created_at = new.created_at";

const NUMBER: &str = "UPDATE operations o SET sequence = new.sequence
    FROM unnest($1::bytea[], $2::int8[], $3::int8[]) AS new (did, created_at, sequence)
    WHERE o.did = new.did AND o.created_at = new.created_at AND o.sequence IS NULL";

const REFUSE: &str = "INSERT INTO refusals
        (did, sequence, cid, kind, detail, awaits, line, line_digest, received_at)
    SELECT *, $9 FROM unnest($1::bytea[], $2::int8[], $3::bytea[], $4::text[], $5::bytea[],
        $6::bytea[], $7::bytea[], $8::bytea[])
    ON CONFLICT (line_digest) DO NOTHING";

const ACCEPT_REFUSALS: &str = "UPDATE refusals SET accepted_at = $2 WHERE id = ANY($1)";

const REFUSE_AGAIN: &str = "UPDATE refusals r
    SET kind = new.kind, detail = new.detail, awaits = new.awaits
    FROM unnest($1::int8[], $2::text[], $3::bytea[], $4::bytea[]) AS new (id, kind, detail, awaits)
    WHERE r.id = new.id";

/// One that was closed and is seen again is open again, with what is seen now: what was seen then
/// may be something else. One that is open keeps what it was opened with.
const DIVERGE: &str = "INSERT INTO divergences
        (source, did, kind, subject, ours, theirs, identity, first_seen, last_seen)
    SELECT *, $8, $8 FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::bytea[], $5::bytea[],
        $6::bytea[], $7::bytea[])
    ON CONFLICT (identity) DO UPDATE SET last_seen = excluded.last_seen, closed_at = NULL,
        ours = CASE WHEN divergences.closed_at IS NULL THEN divergences.ours ELSE excluded.ours END,
        theirs = CASE WHEN divergences.closed_at IS NULL THEN divergences.theirs
            ELSE excluded.theirs END";

const OPEN_DIVERGENCES_OF: &str = "SELECT id, kind, subject FROM divergences
    WHERE did = $1 AND source = $2 AND closed_at IS NULL";

const CLOSE_DIVERGENCES: &str = "UPDATE divergences SET closed_at = $2 WHERE id = ANY($1)";

pub(super) const STATEMENTS: &[&str] = &[
    ADVANCE,
    COPY,
    INTERN,
    NULLIFY,
    NUMBER,
    REFUSE,
    ACCEPT_REFUSALS,
    REFUSE_AGAIN,
    DIVERGE,
    OPEN_DIVERGENCES_OF,
    CLOSE_DIVERGENCES,
];

impl Postgres {
    /// See [`crate::store::Store::commit`].
    ///
    /// Three round trips: begin, compare, start copying; the rows and what else there is; COMMIT.
    pub async fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        let writer = &self.writer;
        let mut turn = writer.turn.lock().await;
        // Whatever fails or is dropped before COMMIT takes the session with it, and the server
        // rolls back.
        let session = writer.link.take().await?;
        let mut packer = match turn.take() {
            Some(packer) => packer,
            None => writer.packer(&session).await?,
        };
        let live = writer.live.load(Ordering::Relaxed);
        let keeps_claims = live && writer.keeps_claims.load(Ordering::Relaxed);
        let (advanced, sink) = begin(&session, lease, commit, live, keeps_claims).await?;
        let Some(row) = advanced else {
            drop((sink, session));
            return Err(self.lost_lease(lease, commit).await?);
        };
        if let Some(sink) = sink {
            copy(sink, &in_order(&commit.operations), &mut packer).await?;
        }
        if let Some(to) = rows::column("sources", &row, 0)? {
            claims::claim(&session, commit, to).await?;
        }
        try_join!(
            intern(&session, &packer),
            nullify(&session, &commit.nullified),
            number(&session, &commit.numbered),
            refuse(&session, &commit.refusals, commit.received_at_millis),
            rejudge(&session, &commit.rejudged, commit.received_at_millis),
            diverge(&session, &commit.divergences, commit.received_at_millis),
        )?;
        writer.end(session).await?;
        packer.committed();
        *turn = Some(packer);
        Ok(())
    }

    /// See [`crate::store::Store::note_divergences`]. A crash between the statements leaves records
    /// open that the next comparison closes.
    pub async fn note_divergences(
        &self,
        source: &str,
        did: &str,
        covered: &[&str],
        seen: &[NewDivergence],
        now: Timestamp,
    ) -> Result<Noted, StoreError> {
        let _turn = self.writer.turn.lock().await;
        let session = self.writer.link.session().await?;
        let rows =
            session.query(OPEN_DIVERGENCES_OF, &[&did.as_bytes(), &source.as_bytes()]).await?;
        let open = rows.iter().map(rows::open_divergence).collect::<Result<Vec<_>, _>>()?;
        let (noted, closed) = Noted::between(&open, covered, seen);
        diverge(&session, seen, now.millis()).await?;
        if !closed.is_empty() {
            session.execute(CLOSE_DIVERGENCES, &[&closed, &now.millis()]).await?;
        }
        Ok(noted)
    }

    /// See [`crate::store::Store::close_divergence`].
    pub async fn close_divergence(&self, id: i64, now: Timestamp) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let session = self.writer.link.session().await?;
        session.execute(CLOSE_DIVERGENCES, &[&vec![id], &now.millis()]).await?;
        Ok(())
    }

    /// Who writes now, for a commit that found another epoch or cursor than its own. The commit has
    /// its turn still, so that a doubt about an earlier one cannot be waited out here; and it need
    /// not be, since the comparison has waited for the row.
    async fn lost_lease(&self, lease: &Lease, commit: &Commit) -> Result<StoreError, StoreError> {
        let now = match self.committed_source().await? {
            Some(now) => format!("the epoch is {} and the cursor {}", now.epoch, now.cursor),
            None => "nothing is followed".to_owned(),
        };
        Ok(StoreError::LostLease(format!(
            "{now}, but this commit is of epoch {} and starts from {}",
            lease.epoch, commit.cursor_before
        )))
    }
}

/// Begins, compares and moves the cursor, and starts the copy if there is one. No row when the
/// lease or the cursor is not what the commit rests on.
async fn begin(
    session: &Session,
    lease: &Lease,
    commit: &Commit,
    live: bool,
    keeps_claims: bool,
) -> Result<(Option<Row>, Option<CopyInSink<Bytes>>), StoreError> {
    // While catching up, what a crash of the server takes back is fetched again; cursor
    // and operations still agree. Texts that are given a number make the commit durable.
    let begin = if live { "BEGIN" } else { "BEGIN; SET LOCAL synchronous_commit = off" };
    let operations = commit.operations.len() as i64;
    let identities = commit.operations.iter().filter(|new| is_genesis(&new.signed)).count() as i64;
    let lease_seconds = LEASE.as_secs_f64();
    let added = commit.operations.iter().filter_map(|new| new.sequence);
    let numbered = commit.numbered.iter().map(|(_, _, number)| *number);
    let highest = added.chain(numbered).max().unwrap_or(0);
    let cursor_cid = commit.cursor_cid.as_ref().map(|cid| cid.as_bytes());
    let parameters: [&(dyn ToSql + Sync); 11] = [
        &lease.epoch,
        &commit.cursor_before,
        &commit.cursor_after,
        &lease_seconds,
        &commit.caught_up,
        &commit.received_at_millis,
        &operations,
        &identities,
        &keeps_claims,
        &highest,
        &cursor_cid,
    ];
    let copying = async {
        if commit.operations.is_empty() {
            return Ok(None);
        }
        session.client.copy_in(session.statement(COPY)?).await.map(Some).map_err(query_error)
    };
    let ((), advanced, sink) = try_join!(
        session.client.batch_execute(begin).map_err(query_error),
        session.query_opt(ADVANCE, &parameters),
        copying,
    )?;
    Ok((advanced, sink))
}

/// As exports read them: rows that are read together lie together, and the indexes on number and
/// time grow at their end.
fn in_order(operations: &[StoredOperation]) -> Vec<&StoredOperation> {
    let mut ordered: Vec<_> = operations.iter().collect();
    ordered.sort_by_key(|new| (new.sequence.unwrap_or(i64::MAX), new.created_at));
    ordered
}

/// The texts that were given a number while this batch was packed. With such the commit is durable
/// also while catching up: this process goes on to refer to these numbers, and a crash of the
/// server that took them back would let them be given to other texts.
async fn intern(session: &Session, packer: &Packer) -> Result<(), StoreError> {
    let (numbers, texts): (Vec<_>, Vec<_>) =
        packer.new_texts().map(|(number, text)| (number as i32, text.as_bytes())).unzip();
    if numbers.is_empty() {
        return Ok(());
    }
    session.client.batch_execute(DURABLE).await.map_err(query_error)?;
    session.execute(INTERN, &[&numbers, &texts]).await?;
    Ok(())
}

async fn nullify(
    session: &Session,
    nullified: &[(Did, Timestamp, Timestamp)],
) -> Result<(), StoreError> {
    if nullified.is_empty() {
        return Ok(());
    }
    let (dids, times): (Vec<_>, Vec<_>) = keys(nullified);
    let by: Vec<i64> = nullified.iter().map(|(_, _, by)| by.millis()).collect();
    let changed = session.execute(NULLIFY, &[&dids, &times, &by]).await?;
    all_there(changed, nullified.len(), "to be nullified")
}

async fn number(session: &Session, numbered: &[(Did, Timestamp, i64)]) -> Result<(), StoreError> {
    if numbered.is_empty() {
        return Ok(());
    }
    let (dids, times): (Vec<_>, Vec<_>) = keys(numbered);
    let numbers: Vec<i64> = numbered.iter().map(|(_, _, number)| *number).collect();
    let changed = session.execute(NUMBER, &[&dids, &times, &numbers]).await?;
    all_there(changed, numbered.len(), "without a number")
}

fn keys<T>(rows: &[(Did, Timestamp, T)]) -> (Vec<&[u8]>, Vec<i64>) {
    rows.iter().map(|(did, time, _)| (did.as_bytes().as_slice(), time.millis())).unzip()
}

/// A row that was judged to be there and is not: judgement and table disagree.
fn all_there(changed: u64, expected: usize, what: &str) -> Result<(), StoreError> {
    if changed == expected as u64 {
        return Ok(());
    }
    Err(StoreError::Damaged {
        place: "table operations".to_owned(),
        reason: format!("{changed} operations {what} where {expected} were known"),
    })
}

async fn refuse(
    session: &Session,
    refusals: &[NewRefusal],
    received_at: i64,
) -> Result<(), StoreError> {
    if refusals.is_empty() {
        return Ok(());
    }
    let all = || refusals.iter();
    let dids: Vec<_> = all().map(|new| new.did.as_bytes()).collect();
    let sequences: Vec<_> = all().map(|new| new.sequence).collect();
    let cids: Vec<_> = all().map(|new| new.cid.as_ref().map(digest)).collect();
    let kinds: Vec<_> = all().map(|new| new.kind.as_str()).collect();
    let details: Vec<_> = all().map(|new| new.detail.as_bytes()).collect();
    let awaits: Vec<_> = all().map(|new| new.awaits.as_ref().map(digest)).collect();
    let lines: Vec<_> = all().map(|new| &new.line[..]).collect();
    let digests: Vec<_> = all().map(|new| Sha256::digest(&new.line).to_vec()).collect();
    session
        .execute(
            REFUSE,
            &[&dids, &sequences, &cids, &kinds, &details, &awaits, &lines, &digests, &received_at],
        )
        .await?;
    Ok(())
}

async fn rejudge(
    session: &Session,
    rejudged: &[Rejudged],
    received_at: i64,
) -> Result<(), StoreError> {
    let mut accepted = Vec::new();
    let (mut ids, mut kinds, mut details, mut waiting) = (vec![], vec![], vec![], vec![]);
    for verdict in rejudged {
        match verdict {
            Rejudged::Accepted { id } => accepted.push(*id),
            Rejudged::Refused { id, kind, detail, awaits } => {
                ids.push(*id);
                kinds.push(kind.as_str());
                details.push(detail.as_bytes());
                waiting.push(awaits.as_ref().map(digest));
            }
        }
    }
    if !accepted.is_empty() {
        session.execute(ACCEPT_REFUSALS, &[&accepted, &received_at]).await?;
    }
    if !ids.is_empty() {
        session.execute(REFUSE_AGAIN, &[&ids, &kinds, &details, &waiting]).await?;
    }
    Ok(())
}

async fn diverge(
    session: &Session,
    divergences: &[NewDivergence],
    seen_at: i64,
) -> Result<(), StoreError> {
    // One statement cannot touch a record twice. The order is kept: it is that of the numbers.
    let mut seen = HashSet::new();
    let distinct: Vec<_> = divergences
        .iter()
        .map(|new| (identity(new), new))
        .filter(|(identity, _)| seen.insert(*identity))
        .collect();
    if distinct.is_empty() {
        return Ok(());
    }
    let all = || distinct.iter().map(|(_, new)| new);
    let sources: Vec<_> = all().map(|new| new.source.as_bytes()).collect();
    let dids: Vec<_> = all().map(|new| new.did.as_bytes()).collect();
    let kinds: Vec<_> = all().map(|new| new.kind.as_str()).collect();
    let subjects: Vec<_> = all().map(|new| new.subject.as_bytes()).collect();
    let ours: Vec<_> = all().map(|new| new.ours.as_ref().map(String::as_bytes)).collect();
    let theirs: Vec<_> = all().map(|new| new.theirs.as_ref().map(String::as_bytes)).collect();
    let identities: Vec<_> = distinct.iter().map(|(identity, _)| identity.as_slice()).collect();
    session
        .execute(
            DIVERGE,
            &[&sources, &dids, &kinds, &subjects, &ours, &theirs, &identities, &seen_at],
        )
        .await?;
    Ok(())
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

fn digest(cid: &Cid) -> &[u8] {
    cid.digest()
}
