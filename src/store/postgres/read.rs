//! Reading: exports, sweeps, and what ingest asks before it judges.

use did_plc::{Did, Timestamp};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use sqlx::postgres::PgRow;

use super::error::query_error;
use super::lookup::keys;
use super::open::{PARALLEL_READS, Postgres};
use super::pool::{Rows, within};
use super::rows::{self, DivergenceRow, OfIdentity, SourceRow, divergences, operations, sources};
use super::strings::Strings;
use crate::store::codec::Interned;
use crate::store::operation::sort_histories;
use crate::store::{Source, StoreError, StoredDivergence, StoredOperation};

/// Histories that are worth a query of their own.
const WORTH_A_READ: usize = 32;

impl Postgres {
    /// See [`crate::store::Store::source`].
    pub async fn source(&self) -> Result<Option<Source>, StoreError> {
        if let Some(source) = self.writer.source_after_doubt().await? {
            return Ok(source);
        }
        self.committed_source().await
    }

    /// See [`crate::store::Store::committed_source`].
    pub async fn committed_source(&self) -> Result<Option<Source>, StoreError> {
        let source = sources!("SELECT ", " FROM sources");
        self.news.first(source).await?.map(Source::try_from).transpose()
    }

    /// See [`crate::store::Store::histories`].
    pub async fn histories(&self, dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        // Where they are not in memory, reading is waiting for the disk, which does several things at a time.
        let share = dids.len().div_ceil(PARALLEL_READS).max(WORTH_A_READ);
        let reads = dids.chunks(share).map(|share| self.histories_of(share));
        let mut operations: Vec<_> = try_join_all(reads).await?.into_iter().flatten().collect();
        sort_histories(&mut operations);
        Ok(operations)
    }

    async fn histories_of(&self, dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        let histories = operations!(
            FROM "operations WHERE did = ANY($1) ORDER BY did, created_at",
            keys(dids) as _
        );
        unpack(&self.strings, self.ingest.all(histories).await?).await
    }

    /// See [`crate::store::Store::history`].
    pub async fn history(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        self.chains.lookup(*did).await
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
        let page = operations!(
            FROM "operations WHERE sequence > $1 ORDER BY sequence LIMIT $2",
            after,
            count(limit)
        );
        self.operations(page).await
    }

    /// See [`crate::store::Store::export_by_time`].
    pub async fn export_by_time(
        &self,
        after: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        // By the index's 66 seconds, and by time within them.
        let page = operations!(
            FROM "operations WHERE created_at >> 16 >= $1::int8 >> 16 AND created_at > $1
                ORDER BY created_at >> 16, created_at LIMIT $2",
            after.map_or(i64::MIN, Timestamp::millis),
            count(limit.saturating_add(1))
        );
        let mut operations = self.operations(page).await?;
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
        let all = operations!(
            FROM "operations WHERE created_at >> 16 = $1::int8 >> 16 AND created_at = $1",
            created_at.millis()
        );
        let mut connection = self.pages.lend().await?;
        let mut rows = connection.stream(all).fuse();
        let mut lowest = Vec::new();
        loop {
            let some = within(rows.by_ref().take(limit).try_collect::<Vec<_>>()).await;
            match some {
                Ok(some) if some.is_empty() => break,
                Ok(some) => lowest.extend(unpack(&self.strings, some).await?),
                Err(error) => {
                    drop(rows);
                    return connection.ended(Err(error)).map_err(query_error);
                }
            }
            lowest.sort_by_cached_key(|operation| operation.cid().to_ascii());
            lowest.truncate(limit);
        }
        drop(rows);
        connection.ended(Ok(lowest)).map_err(query_error)
    }

    /// See [`crate::store::Store::last_sequence`].
    pub async fn last_sequence(&self) -> Result<Option<i64>, StoreError> {
        let last = sqlx::query!("SELECT max(sequence) AS sequence FROM operations");
        Ok(self.pages.first(last).await?.and_then(|row| row.sequence))
    }

    /// See [`crate::store::Store::latest`].
    pub async fn latest(&self, limit: usize) -> Result<Vec<StoredOperation>, StoreError> {
        let latest = operations!(
            FROM "operations WHERE sequence IS NOT NULL ORDER BY sequence DESC LIMIT $1",
            count(limit)
        );
        self.operations(latest).await
    }

    /// See [`crate::store::Store::sequences`].
    pub async fn sequences(&self, sequences: &[i64]) -> Result<Vec<StoredOperation>, StoreError> {
        let holders =
            operations!(FROM "operations WHERE sequence = ANY($1) ORDER BY sequence", sequences);
        unpack(&self.strings, self.ingest.all(holders).await?).await
    }

    /// See [`crate::store::Store::next_histories`].
    pub async fn next_histories(
        &self,
        after: Option<Did>,
        operations: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        // With all of the last identity.
        let next = operations!(
            FROM "operations WHERE did > $1 ORDER BY did FETCH FIRST $2 ROWS WITH TIES",
            first_bytes(&after),
            count(operations.max(1))
        );
        let mut operations = self.operations(next).await?;
        // The index yields them in this order already, but the statement cannot ask for it.
        sort_histories(&mut operations);
        Ok(operations)
    }

    /// See [`crate::store::Store::next_identity`].
    pub async fn next_identity(&self, after: Option<Did>) -> Result<Option<Did>, StoreError> {
        let next = sqlx::query!(
            r#"SELECT did AS "did: rows::DidBytes" FROM operations WHERE did > $1
               ORDER BY did LIMIT 1"#,
            first_bytes(&after)
        );
        Ok(self.pages.first(next).await?.map(|row| row.did.0))
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
        let limit = count(limit);
        // Three statements, since each is planned for the one index that serves it.
        let rows = match (did, open) {
            (Some(did), _) => {
                // OFFSET leaves the index of DIDs alone to choose, as in `Postgres::refusals`.
                let of_did = divergences!(
                    FROM "(SELECT * FROM divergences WHERE did = $5 OFFSET 0) of_did
                        WHERE id > $1 AND ($3::text IS NULL OR kind = $3)
                            AND ($4::bool IS NULL OR (closed_at IS NULL) = $4)
                        ORDER BY id LIMIT $2",
                    after_id,
                    limit,
                    kind,
                    open,
                    did.as_bytes()
                );
                self.pages.all(of_did).await?
            }
            (None, Some(true)) => {
                let open = divergences!(
                    FROM "divergences WHERE closed_at IS NULL AND id > $1
                            AND ($3::text IS NULL OR kind = $3)
                        ORDER BY id LIMIT $2",
                    after_id,
                    limit,
                    kind
                );
                self.pages.all(open).await?
            }
            (None, _) => {
                let all = divergences!(
                    FROM "divergences WHERE id > $1 AND ($3::text IS NULL OR kind = $3)
                            AND ($4::bool IS NULL OR (closed_at IS NULL) = $4)
                        ORDER BY id LIMIT $2",
                    after_id,
                    limit,
                    kind,
                    open
                );
                self.pages.all(all).await?
            }
        };
        rows.into_iter().map(StoredDivergence::try_from).collect()
    }

    /// The operations that a query finds.
    pub(super) async fn operations<F>(
        &self,
        query: Rows<F>,
    ) -> Result<Vec<StoredOperation>, StoreError>
    where
        F: FnMut(PgRow) -> sqlx::Result<OfIdentity> + Send,
    {
        unpack(&self.strings, self.pages.all(query).await?).await
    }
}

/// What all DIDs after this one compare greater to; nothing stands before the first.
fn first_bytes(after: &Option<Did>) -> &[u8] {
    after.as_ref().map_or(&[], |did| did.as_bytes())
}

/// A limit, as LIMIT takes it.
pub(super) fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Rows as operations.
pub(super) async fn unpack(
    strings: &Strings,
    rows: Vec<OfIdentity>,
) -> Result<Vec<StoredOperation>, StoreError> {
    let make = |rows: &[OfIdentity], known: &Interned| -> Result<Vec<_>, StoreError> {
        rows.iter().map(|row| row.operation(row.key.0, known)).collect()
    };
    strings.read(rows, make, Result::is_err).await?
}
