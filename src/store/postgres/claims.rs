//! The index of claims in this backend; see [`crate::store::claims`].

use std::sync::atomic::Ordering;

use tokio_postgres::Row;

use super::Postgres;
use super::connection::Session;
use super::error::query_error;
use super::read::UNNUMBERED;
use super::rows;
use crate::store::claims::{self, Claimants, ClaimsIndex};
use crate::store::{Commit, StoreError, StoredOperation};
use did_plc::claim::Value;
use did_plc::{Did, Timestamp};

/// Operations that are read at once.
const READ: usize = 4_096;
/// Pairs that one transaction adds: a tenth of a second in which no batch is committed.
const ADDED_AT_ONCE: usize = 1 << 14;
/// Operations that the last transaction of a step takes in under the lock: more than come while a
/// step is written, so that the builder gets to the end.
const TAIL: usize = 1_024;

/// Stands for the operations without a number, which are first.
const UNNUMBERED_FIRST: i64 = -1;

const INDEX: &str = "SELECT claimed, coalesce((SELECT max(sequence) FROM operations), 0), claims
    FROM sources WHERE claimed IS NOT NULL";

const BEGIN: &str = "UPDATE sources SET claimed = $1 WHERE claimed IS NULL";

/// The lock that commits take, before anything is added: nobody who holds one waits for the other.
const LOCK: &str = "SELECT claimed FROM sources FOR UPDATE";

const ADD: &str = "WITH new AS (
        INSERT INTO claims SELECT * FROM unnest($1::int8[]) ON CONFLICT DO NOTHING RETURNING 1)
    UPDATE sources SET claims = claims + (SELECT count(*) FROM new)";

const MOVE: &str = "UPDATE sources SET claimed = $1";

/// A row for each identity under each pair, and one for a pair without any.
const CLAIMANTS: &str = r"SELECT c.pair, o.did
    FROM (SELECT pair FROM claims WHERE pair >= $1 AND pair <= $2 ORDER BY pair LIMIT $3) c
    LEFT JOIN LATERAL (
        SELECT DISTINCT did FROM operations
        WHERE did >= substring(int8send(c.pair) FROM 5)
            AND did <= substring(int8send(c.pair) FROM 5) || '\xffffffffffffffffffffff'::bytea
        ORDER BY did) o ON true
    ORDER BY c.pair";

const ABSENT: &str = "SELECT asked.pair FROM unnest($1::int8[]) AS asked (pair)
    WHERE NOT EXISTS (SELECT 1 FROM claims c WHERE c.pair = asked.pair)";

/// What connections that read prepare.
pub(super) const READING: &[&str] = &[INDEX, CLAIMANTS, ABSENT];

/// What the connection that commits prepares.
pub(super) const COMMITTING: &[&str] = &[ADD];

/// What the connection of the builder prepares.
pub(super) const BUILDING: &[&str] = &[BEGIN, LOCK, ADD, MOVE];

/// No commit waits for the disk: what a crash of the server takes back is the last of it, and built
/// again.
const TRANSACTION: &str = "BEGIN; SET LOCAL synchronous_commit = off";

/// Adds what a commit adds to the index by itself, on its session: everything up to `to`.
pub(super) async fn claim(session: &Session, commit: &Commit, to: i64) -> Result<(), StoreError> {
    add(session, &claims::pairs_up_to(&commit.operations, to)?).await
}

/// Adds pairs, which stand in their order, in the transaction that holds the lock.
async fn add(session: &Session, pairs: &[i64]) -> Result<(), StoreError> {
    if !pairs.is_empty() {
        session.execute(ADD, &[&pairs]).await?;
    }
    Ok(())
}

impl Postgres {
    /// See [`crate::store::Store::keep_claims`].
    pub async fn keep_claims(&self) -> Result<(), StoreError> {
        self.writer.keeps_claims.store(true, Ordering::Relaxed);
        self.builder.session().await?.execute(BEGIN, &[&UNNUMBERED_FIRST]).await?;
        Ok(())
    }

    /// See [`crate::store::Store::claims_index`].
    pub async fn claims_index(&self) -> Result<Option<ClaimsIndex>, StoreError> {
        let row = self.pages().await?.query_opt(INDEX, &[]).await?;
        row.as_ref().map(claims_index).transpose()
    }

    /// See [`crate::store::Store::build_claims`]. A crash leaves pairs behind that are written
    /// again.
    pub async fn build_claims(&self, limit: usize) -> Result<(), StoreError> {
        let Some(index) = self.claims_index().await? else { return Ok(()) };
        if !index.begun {
            return self.build_unnumbered().await;
        }
        let (mut to, mut read, mut pairs) = (index.sequence, 0, Vec::new());
        while read < limit {
            let page = self.export_by_sequence(to, READ).await?;
            let Some(last) = page.last().and_then(|last| last.sequence) else { break };
            to = last;
            read += page.len();
            pairs.extend(pairs_of(page).await?);
        }
        pairs.sort_unstable();
        pairs.dedup();
        self.add_pieces(&pairs).await?;
        self.move_claims(index.sequence, to).await
    }

    /// Brings in the operations without a number. Those that come meanwhile bring themselves in.
    async fn build_unnumbered(&self) -> Result<(), StoreError> {
        let mut after = (Did::from_bytes([0; 15]), Timestamp::from_millis(i64::MIN));
        loop {
            let place = (after.0.as_bytes().as_slice(), after.1.millis());
            let limit = READ as i64;
            let page = self.operations(UNNUMBERED, &[&place.0, &place.1, &limit]).await?;
            let Some(last) = page.last() else { break };
            after = (last.did, last.created_at);
            self.add_pieces(&pairs_of(page).await?).await?;
        }
        self.move_claims(UNNUMBERED_FIRST, 0).await
    }

    async fn add_pieces(&self, pairs: &[i64]) -> Result<(), StoreError> {
        for pairs in pairs.chunks(ADDED_AT_ONCE) {
            let session = self.builder.take().await?;
            session.client.batch_execute(TRANSACTION).await.map_err(query_error)?;
            session.query_opt(LOCK, &[]).await?;
            add(&session, pairs).await?;
            session.client.batch_execute("COMMIT").await.map_err(query_error)?;
            self.builder.give_back(session).await;
        }
        Ok(())
    }

    /// Moves the place of the index, with what has come behind it meanwhile.
    async fn move_claims(&self, from: i64, to: i64) -> Result<(), StoreError> {
        let session = self.builder.take().await?;
        session.client.batch_execute(TRANSACTION).await.map_err(query_error)?;
        let row = session.query_opt(LOCK, &[]).await?;
        let claimed: Option<i64> = match &row {
            Some(row) => rows::column("sources", row, 0)?,
            None => None,
        };
        if claimed == Some(from) {
            // By another connection, which sees what was committed before the lock was ours.
            let tail = self.export_by_sequence(to, TAIL).await?;
            let to = tail.last().and_then(|last| last.sequence).unwrap_or(to);
            add(&session, &pairs_of(tail).await?).await?;
            session.execute(MOVE, &[&to]).await?;
        }
        // Otherwise another builder was here, and there is nothing to commit.
        session.client.batch_execute("COMMIT").await.map_err(query_error)?;
        self.builder.give_back(session).await;
        Ok(())
    }

    /// See [`crate::store::Store::claimants`].
    pub async fn claimants(
        &self,
        value: &Value<'_>,
        after: Option<Did>,
        limit: usize,
    ) -> Result<Claimants, StoreError> {
        let (first, last) = claims::range(value, after.as_ref());
        let parameters = [&first, &last, &(limit as i64)];
        let session = self.pages().await?;
        let rows = session.query(CLAIMANTS, &parameters.map(|number| number as _)).await?;
        let (mut pairs, mut dids) = (Vec::<i64>::new(), Vec::new());
        for row in &rows {
            pairs.push(rows::column("claims", row, 0)?);
            let did: Option<&[u8]> = rows::column("operations", row, 1)?;
            dids.extend(did.and_then(Did::from_slice).filter(|did| Some(*did) > after));
        }
        pairs.dedup();
        dids.sort_unstable();
        Ok(Claimants { dids, next: claims::end_of_page(&pairs, limit) })
    }

    /// See [`crate::store::Store::absent_claims`].
    pub async fn absent_claims(&self, pairs: &[i64]) -> Result<Vec<i64>, StoreError> {
        let rows = self.pages().await?.query(ABSENT, &[&pairs]).await?;
        rows.iter().map(|row| rows::column("claims", row, 0)).collect()
    }
}

/// From `claimed`, the highest sequence number, `claims`.
fn claims_index(row: &Row) -> Result<ClaimsIndex, StoreError> {
    const TABLE: &str = "sources";
    let claimed: i64 = rows::column(TABLE, row, 0)?;
    Ok(ClaimsIndex {
        sequence: claimed.max(0),
        highest: rows::column(TABLE, row, 1)?,
        begun: claimed >= 0,
        pairs: rows::column::<i64>(TABLE, row, 2)?.unsigned_abs(),
    })
}

/// The pairs of a page, on a thread that nobody else waits for.
async fn pairs_of(operations: Vec<StoredOperation>) -> Result<Vec<i64>, StoreError> {
    match tokio::task::spawn_blocking(move || claims::pairs(&operations)).await {
        Ok(pairs) => pairs,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        },
    }
}
