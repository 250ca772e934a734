//! Reading: lookups, exports, and what ingest asks before it judges.

use std::pin::pin;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::Postgres;
use super::connection::{Link, Session};
use super::error::query_error;
use super::gather::Ask;
use super::rows::{self, divergence_columns, operation_columns, refusal_columns};
use super::strings::Strings;
use crate::store::codec::Interned;
use crate::store::{
    Source, Statistics, StoreError, StoredDivergence, StoredOperation, StoredRefusal,
};
use did_plc::{Cid, Did, Timestamp};

/// For every connection that reads. Plans are made once and kept, though they are made when the
/// tables may still be small or without statistics: there must be no choice but the index that
/// the statement was written for. Compiling such statements costs more than running them.
pub(super) const SETTINGS: &str = "
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_sort = off;
    SET jit = off;
    SET default_transaction_read_only = on;
    SET statement_timeout = '30s'";

/// Asked by many at a time: one row at most for each place in the array.
const HEADS: &str = concat!(
    "SELECT asked.place, ",
    operation_columns!(),
    " FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (did, place), LATERAL (
        SELECT * FROM operations o WHERE o.did = asked.did AND o.nullified_by IS NULL
        ORDER BY o.created_at DESC LIMIT 1) head"
);

/// Asked by many at a time: any number of rows for each place in the array.
const HISTORIES_OF_PLACES: &str = concat!(
    "SELECT asked.place, ",
    operation_columns!(),
    " FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (did, place), LATERAL (
        SELECT * FROM operations o WHERE o.did = asked.did ORDER BY o.created_at) chain"
);

const HISTORIES: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE did = ANY($1) ORDER BY did, created_at"
);

const EXPORT_BY_SEQUENCE: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE sequence > $1 ORDER BY sequence LIMIT $2"
);

pub(super) const UNNUMBERED: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE sequence IS NULL AND (did, created_at) > ($1, $2)
        ORDER BY did, created_at LIMIT $3"
);

/// By the index's 66 seconds, and by time within them.
const EXPORT_BY_TIME: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE created_at >> 16 >= $1::int8 >> 16 AND created_at > $1
        ORDER BY created_at >> 16, created_at LIMIT $2"
);

const OF_TIME: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE created_at >> 16 = $1::int8 >> 16 AND created_at = $1"
);

const LAST_SEQUENCE: &str = "SELECT max(sequence) FROM operations";

const LATEST: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE sequence IS NOT NULL ORDER BY sequence DESC LIMIT $1"
);

const SEQUENCES: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE sequence = ANY($1) ORDER BY sequence"
);

/// With all of the last identity.
const NEXT_HISTORIES: &str = concat!(
    "SELECT did, ",
    operation_columns!(),
    " FROM operations WHERE did > $1 ORDER BY did FETCH FIRST $2 ROWS WITH TIES"
);

const NEXT_IDENTITY: &str = "SELECT did FROM operations WHERE did > $1 ORDER BY did LIMIT 1";

const SOURCE: &str = "SELECT upstream, cursor, epoch, caught_up_at, cursor_cid FROM sources";

const REFUSALS: &str =
    concat!("SELECT ", refusal_columns!(), " FROM refusals WHERE id > $1 ORDER BY id LIMIT $2");

const REFUSALS_OF: &str = concat!(
    "SELECT ",
    refusal_columns!(),
    " FROM refusals WHERE did = $3 AND id > $1 ORDER BY id LIMIT $2"
);

const REFUSALS_AWAITING: &str = concat!(
    "SELECT ",
    refusal_columns!(),
    " FROM refusals WHERE awaits = ANY($1) AND accepted_at IS NULL ORDER BY id"
);

const AWAITED: &str = "SELECT DISTINCT awaits FROM refusals
    WHERE awaits IS NOT NULL AND accepted_at IS NULL ORDER BY awaits LIMIT $1";

const DIVERGENCES: &str = concat!(
    "SELECT ",
    divergence_columns!(),
    " FROM divergences WHERE id > $1 AND ($3::text IS NULL OR kind = $3)
        AND ($4::bool IS NULL OR (closed_at IS NULL) = $4)
        ORDER BY id LIMIT $2"
);

const DIVERGENCES_OF: &str = concat!(
    "SELECT ",
    divergence_columns!(),
    " FROM divergences WHERE did = $5 AND id > $1 AND ($3::text IS NULL OR kind = $3)
        AND ($4::bool IS NULL OR (closed_at IS NULL) = $4)
        ORDER BY id LIMIT $2"
);

const OPEN_DIVERGENCES: &str = concat!(
    "SELECT ",
    divergence_columns!(),
    " FROM divergences WHERE closed_at IS NULL AND id > $1 AND ($3::text IS NULL OR kind = $3)
        ORDER BY id LIMIT $2"
);

/// Refusals are counted: they are few, or somebody should look. `operations` and `identities` are
/// kept by the commits.
const STATISTICS: &str = "SELECT
    coalesce((SELECT operations FROM sources), 0),
    coalesce((SELECT identities FROM sources), 0),
    (SELECT count(*) FROM refusals WHERE accepted_at IS NULL),
    (SELECT count(*) FROM divergences WHERE closed_at IS NULL),
    pg_database_size(current_database()),
    pg_total_relation_size('claims')";

/// What the connections for lookups prepare.
pub(super) const LOOKUP_STATEMENTS: &[&str] = &[HEADS, HISTORIES_OF_PLACES];

/// What the connections for everything else prepare.
pub(super) const STATEMENTS: &[&str] = &[
    HISTORIES,
    EXPORT_BY_SEQUENCE,
    UNNUMBERED,
    EXPORT_BY_TIME,
    OF_TIME,
    LAST_SEQUENCE,
    LATEST,
    SEQUENCES,
    NEXT_HISTORIES,
    NEXT_IDENTITY,
    SOURCE,
    REFUSALS,
    REFUSALS_OF,
    REFUSALS_AWAITING,
    AWAITED,
    DIVERGENCES,
    DIVERGENCES_OF,
    OPEN_DIVERGENCES,
    STATISTICS,
];

impl Postgres {
    /// See [`crate::store::Store::source`].
    pub async fn source(&self) -> Result<Option<Source>, StoreError> {
        if let Some(source) = self.writer.source_after_doubt().await? {
            return Ok(source);
        }
        self.committed_source().await
    }

    /// The source as it is committed, whatever may be under way.
    pub(super) async fn committed_source(&self) -> Result<Option<Source>, StoreError> {
        let row = self.pages().await?.query_opt(SOURCE, &[]).await?;
        row.as_ref().map(rows::source).transpose()
    }

    /// See [`crate::store::Store::histories`].
    pub async fn histories(&self, dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        let dids: Vec<&[u8]> = dids.iter().map(|did| did.as_bytes().as_slice()).collect();
        let rows = self.ingest.session().await?.query(HISTORIES, &[&dids]).await?;
        unpack(&self.strings, rows).await
    }

    /// See [`crate::store::Store::history`].
    pub async fn history(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        self.histories.lookup(*did).await
    }

    /// See [`crate::store::Store::head`].
    pub async fn head(&self, did: &Did) -> Result<Option<StoredOperation>, StoreError> {
        self.heads.lookup(*did).await
    }

    /// See [`crate::store::Store::export_by_sequence`].
    pub async fn export_by_sequence(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        self.operations(EXPORT_BY_SEQUENCE, &[&after, &count(limit)]).await
    }

    /// See [`crate::store::Store::export_by_time`].
    pub async fn export_by_time(
        &self,
        after: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let after = after.map_or(i64::MIN, Timestamp::millis);
        let asked = count(limit.saturating_add(1));
        let mut operations = self.operations(EXPORT_BY_TIME, &[&after, &asked]).await?;
        let beyond = operations.split_off(limit.min(operations.len()));
        // The page ends within a millisecond: which of its operations come first, their CIDs say,
        // which the database does not know.
        if let (Some(last), Some(beyond)) = (operations.last(), beyond.first())
            && last.created_at == beyond.created_at
        {
            operations.retain(|operation| operation.created_at < beyond.created_at);
            let room = limit - operations.len();
            operations.extend(self.first_of(beyond.created_at, room).await?);
        }
        // Only neighbours of the same millisecond need their CIDs.
        for tied in operations.chunk_by_mut(|a, b| a.created_at == b.created_at) {
            if tied.len() > 1 {
                tied.sort_by_cached_key(|operation| operation.cid().to_ascii());
            }
        }
        Ok(operations)
    }

    /// Of the operations of one millisecond those with the lowest CIDs. However many there are,
    /// twice the number that is asked for is held at a time: the connection waits for who reads.
    async fn first_of(
        &self,
        created_at: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let session = self.pages().await?;
        let mut rows = pin!(session.stream(OF_TIME, &[&created_at.millis()]).await?.fuse());
        let mut lowest = Vec::new();
        loop {
            let some: Vec<Row> =
                rows.as_mut().take(limit).try_collect().await.map_err(query_error)?;
            if some.is_empty() {
                return Ok(lowest);
            }
            lowest.extend(unpack(&self.strings, some).await?);
            lowest.sort_by_cached_key(|operation| operation.cid().to_ascii());
            lowest.truncate(limit);
        }
    }

    /// See [`crate::store::Store::last_sequence`].
    pub async fn last_sequence(&self) -> Result<Option<i64>, StoreError> {
        match self.pages().await?.query_opt(LAST_SEQUENCE, &[]).await? {
            Some(row) => rows::column("operations", &row, 0),
            None => Ok(None),
        }
    }

    /// See [`crate::store::Store::latest`].
    pub async fn latest(&self, limit: usize) -> Result<Vec<StoredOperation>, StoreError> {
        self.operations(LATEST, &[&count(limit)]).await
    }

    /// See [`crate::store::Store::sequences`].
    pub async fn sequences(&self, sequences: &[i64]) -> Result<Vec<StoredOperation>, StoreError> {
        let rows = self.ingest.session().await?.query(SEQUENCES, &[&sequences]).await?;
        unpack(&self.strings, rows).await
    }

    /// See [`crate::store::Store::next_histories`].
    pub async fn next_histories(
        &self,
        after: Option<Did>,
        operations: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let after = first_bytes(&after);
        let limit = count(operations.max(1));
        let mut operations = self.operations(NEXT_HISTORIES, &[&after, &limit]).await?;
        // The index yields them in this order already, but the statement cannot ask for it.
        operations.sort_by_key(|operation| (operation.did, operation.created_at));
        Ok(operations)
    }

    /// See [`crate::store::Store::next_identity`].
    pub async fn next_identity(&self, after: Option<Did>) -> Result<Option<Did>, StoreError> {
        let row = self.pages().await?.query_opt(NEXT_IDENTITY, &[&first_bytes(&after)]).await?;
        row.as_ref().map(rows::did).transpose()
    }

    /// See [`crate::store::Store::refusals`].
    pub async fn refusals(
        &self,
        did: Option<&str>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        let (session, limit) = (self.pages().await?, count(limit));
        let rows = match did {
            Some(did) => session.query(REFUSALS_OF, &[&after_id, &limit, &did.as_bytes()]).await?,
            None => session.query(REFUSALS, &[&after_id, &limit]).await?,
        };
        rows.iter().map(rows::refusal).collect()
    }

    /// See [`crate::store::Store::refusals_awaiting`].
    pub async fn refusals_awaiting(&self, cids: &[Cid]) -> Result<Vec<StoredRefusal>, StoreError> {
        let digests: Vec<&[u8]> = cids.iter().map(|cid| cid.digest().as_slice()).collect();
        let rows = self.ingest.session().await?.query(REFUSALS_AWAITING, &[&digests]).await?;
        rows.iter().map(rows::refusal).collect()
    }

    /// See [`crate::store::Store::awaited`].
    pub async fn awaited(&self, limit: usize) -> Result<Vec<Cid>, StoreError> {
        let rows = self.ingest.session().await?.query(AWAITED, &[&count(limit)]).await?;
        rows.iter().map(|row| rows::cid("refusals", row, 0)).collect()
    }

    /// See [`crate::store::Store::divergences`].
    pub async fn divergences(
        &self,
        did: Option<&str>,
        kind: Option<&str>,
        open: Option<bool>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredDivergence>, StoreError> {
        let (session, limit) = (self.pages().await?, count(limit));
        let rows = match (did.map(str::as_bytes), open) {
            (Some(did), _) => {
                session.query(DIVERGENCES_OF, &[&after_id, &limit, &kind, &open, &did]).await?
            }
            (None, Some(true)) => {
                session.query(OPEN_DIVERGENCES, &[&after_id, &limit, &kind]).await?
            }
            (None, _) => session.query(DIVERGENCES, &[&after_id, &limit, &kind, &open]).await?,
        };
        rows.iter().map(rows::divergence).collect()
    }

    /// See [`crate::store::Store::statistics`].
    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        let rows = self.pages().await?.query(STATISTICS, &[]).await?;
        let number = |at| -> Result<u64, StoreError> {
            let value = match rows.first() {
                Some(row) => rows::column::<i64>("sources", row, at)?,
                None => 0,
            };
            Ok(value.unsigned_abs())
        };
        Ok(Statistics {
            operations: number(0)?,
            identities: number(1)?,
            refusals: number(2)?,
            open_divergences: number(3)?,
            bytes: number(4)?,
            claims: self.claims_index().await?,
            claims_bytes: number(5)?,
        })
    }

    /// A connection for pages: each in turn.
    pub(super) async fn pages(&self) -> Result<Arc<Session>, StoreError> {
        self.pages.next().session().await
    }

    pub(super) async fn operations(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let rows = self.pages().await?.query(sql, parameters).await?;
        unpack(&self.strings, rows).await
    }
}

/// What all DIDs after this one compare greater to; nothing stands before the first.
fn first_bytes(after: &Option<Did>) -> &[u8] {
    after.as_ref().map_or(&[], |did| did.as_bytes())
}

/// A limit, as LIMIT takes it.
fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Rows with the DID in their first column, as operations.
async fn unpack(strings: &Strings, rows: Vec<Row>) -> Result<Vec<StoredOperation>, StoreError> {
    let make = |rows: &[Row], known: &Interned| -> Result<Vec<_>, StoreError> {
        rows.iter().map(|row| rows::operation(rows::did(row)?, row, known)).collect()
    };
    strings.read(rows, make, Result::is_err).await?
}

/// Asks for the heads of many identities.
pub(super) struct Heads(pub(super) Arc<Link>, pub(super) Arc<Strings>);

/// Asks for the histories of many identities.
pub(super) struct Histories(pub(super) Arc<Link>, pub(super) Arc<Strings>);

impl Ask for Heads {
    type Answer = Option<StoredOperation>;

    async fn ask(&self, dids: &[Did]) -> Result<Vec<Result<Self::Answer, StoreError>>, StoreError> {
        let histories = gathered(&self.0, &self.1, HEADS, dids).await?;
        Ok(histories.into_iter().map(|history| Ok(history?.pop())).collect())
    }
}

impl Ask for Histories {
    type Answer = Vec<StoredOperation>;

    async fn ask(&self, dids: &[Did]) -> Result<Vec<Result<Self::Answer, StoreError>>, StoreError> {
        gathered(&self.0, &self.1, HISTORIES_OF_PLACES, dids).await
    }
}

/// Operations for each of `dids`; a damaged row spoils the answer for its identity alone.
async fn gathered(
    link: &Link,
    strings: &Strings,
    sql: &'static str,
    dids: &[Did],
) -> Result<Vec<Result<Vec<StoredOperation>, StoreError>>, StoreError> {
    let keys: Vec<&[u8]> = dids.iter().map(|did| did.as_bytes().as_slice()).collect();
    let rows = link.session().await?.query(sql, &[&keys]).await?;
    let asked = dids.to_vec();
    let make = move |rows: &[Row], known: &Interned| sort_out(&asked, rows, known);
    strings.read(rows, make, |answers| answers.iter().any(Result::is_err)).await
}

/// The rows of a gathered lookup, by the identity that each belongs to.
fn sort_out(
    asked: &[Did],
    rows: &[Row],
    known: &Interned,
) -> Vec<Result<Vec<StoredOperation>, StoreError>> {
    let mut answers: Vec<_> = asked.iter().map(|_| Ok(Vec::new())).collect();
    for row in rows {
        // Places count from 1, and each is one that was asked for.
        let place = row.try_get(0).map_or(0, |place: i64| place as usize);
        let Some((did, answer)) = asked.iter().zip(&mut answers).nth(place.wrapping_sub(1)) else {
            continue;
        };
        match (rows::operation(*did, row, known), answer) {
            (Ok(operation), Ok(history)) => history.push(operation),
            (Err(error), answer) => *answer = Err(error),
            (Ok(_), Err(_)) => {}
        }
    }
    // The nested loop yields each chain in this order already; no plan is bound to.
    for history in answers.iter_mut().flatten() {
        history.sort_by_key(|operation: &StoredOperation| operation.created_at);
    }
    answers
}
