//! Rows as they are read: back into what was written.

use bytes::Bytes;
use did_plc::{Cid, Did, Timestamp};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Type};

use crate::store::codec::{Interned, unpack};
use crate::store::{
    ByTime, CommitId, NewDivergence, NewRefusal, Rereading, Source, StoreError, StoredDivergence,
    StoredOperation, StoredRefusal, Word,
};

/// A query for operations: `FROM` and what follows it. Their DIDs are the rows' keys, or else what
/// stands before `FROM`.
macro_rules! operations {
    (FROM $rest:tt $(, $argument:expr)* $(,)?) => {
        $crate::store::postgres::rows::operations!(
            OfIdentity, r#"did AS "key: _""#, FROM $rest $(, $argument)*
        )
    };
    ($row:ident, $key:tt, FROM $rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $row,
            "SELECT " + $key
                + ", created_at, sequence, nullified_by, received_at, signer, operation FROM "
                + $rest
            $(, $argument)*
        )
    };
}

/// A query for refusals: `FROM` and what follows it.
macro_rules! refusals {
    (FROM $rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            RefusalRow,
            "SELECT id, did, sequence, cid, kind, detail, source, key, line, received_at,
                accepted_at, asked, ask_at FROM " + $rest
            $(, $argument)*
        )
    };
}

/// A statement that yields the source: what stands before its columns, and what after them.
macro_rules! sources {
    ($before:tt, $after:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            SourceRow,
            $before + "upstream, cursor, epoch, caught_up_at, cursor_cid, second_reading, round,
                round_began_at, rounds, renumbering, forgotten_up_to, by_time, by_time_read,
                by_time_second, commits, committed_in, word" + $after
            $(, $argument)*
        )
    };
}

/// A query for divergences: `FROM` and what follows it.
macro_rules! divergences {
    (FROM $rest:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            DivergenceRow,
            "SELECT id, source, did, kind, subject, ours, theirs, first_seen, last_seen, closed_at
             FROM " + $rest
            $(, $argument)*
        )
    };
}

pub(super) use {divergences, operations, refusals, sources};

/// A DID in the 15 bytes that a row has of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct DidBytes(pub(super) Did);

impl Type<Postgres> for DidBytes {
    fn type_info() -> PgTypeInfo {
        <[u8] as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for DidBytes {
    fn decode(value: PgValueRef<'r>) -> Result<DidBytes, BoxDynError> {
        let did = Did::from_slice(<&[u8] as Decode<Postgres>>::decode(value)?);
        did.map(DidBytes).ok_or_else(|| "a DID that is not of 15 bytes".into())
    }
}

/// A row of `operations`, under a key that says whose it is.
pub(super) struct OperationRow<K> {
    pub(super) key: K,
    pub(super) created_at: i64,
    pub(super) sequence: Option<i64>,
    pub(super) nullified_by: Option<i64>,
    pub(super) received_at: i64,
    pub(super) signer: i16,
    pub(super) operation: Vec<u8>,
}

/// Under the DID.
pub(super) type OfIdentity = OperationRow<DidBytes>;

/// Under the place, from 1, that its identity has among those that were asked for.
pub(super) type OfPlace = OperationRow<i64>;

impl<K> OperationRow<K> {
    /// As an operation of `did`.
    pub(super) fn operation(
        &self,
        did: Did,
        known: &Interned,
    ) -> Result<StoredOperation, StoreError> {
        let created_at = Timestamp::from_millis(self.created_at);
        let of_operation =
            |reason: String| damaged(format!("{did}, operation of {created_at}"), reason);
        Ok(StoredOperation {
            did,
            created_at,
            sequence: self.sequence,
            nullified_by: self.nullified_by.map(Timestamp::from_millis),
            received_at: Timestamp::from_millis(self.received_at),
            signer: u16::try_from(self.signer)
                .map_err(|_| of_operation(format!("{} as the index of its key", self.signer)))?,
            signed: unpack(&self.operation, known)
                .map_err(|damage| of_operation(damage.to_string()))?,
        })
    }
}

/// A row of `refusals`.
pub(super) struct RefusalRow {
    pub(super) id: i64,
    pub(super) did: Vec<u8>,
    pub(super) sequence: Option<i64>,
    pub(super) cid: Option<Vec<u8>>,
    pub(super) kind: String,
    pub(super) detail: Vec<u8>,
    pub(super) source: String,
    pub(super) key: Vec<u8>,
    pub(super) line: Vec<u8>,
    pub(super) received_at: i64,
    pub(super) accepted_at: Option<i64>,
    pub(super) asked: i32,
    pub(super) ask_at: Option<i64>,
}

impl TryFrom<RefusalRow> for StoredRefusal {
    type Error = StoreError;

    fn try_from(row: RefusalRow) -> Result<StoredRefusal, StoreError> {
        const TABLE: &str = "refusals";
        Ok(StoredRefusal {
            id: row.id,
            refusal: NewRefusal {
                did: text(TABLE, row.did)?,
                sequence: row.sequence,
                cid: row.cid.map(|digest| cid(TABLE, &digest)).transpose()?,
                kind: row.kind,
                detail: text(TABLE, row.detail)?,
                source: row.source,
                key: row.key.try_into().map_err(|_| {
                    damaged(format!("table {TABLE}"), "a key that is not of 32 bytes")
                })?,
                line: Bytes::from(row.line),
            },
            received_at: Timestamp::from_millis(row.received_at),
            accepted_at: row.accepted_at.map(Timestamp::from_millis),
            asked: row.asked,
            ask_at: row.ask_at.map(Timestamp::from_millis),
        })
    }
}

/// A row of `divergences`.
pub(super) struct DivergenceRow {
    pub(super) id: i64,
    pub(super) source: Vec<u8>,
    pub(super) did: Vec<u8>,
    pub(super) kind: String,
    pub(super) subject: Vec<u8>,
    pub(super) ours: Option<Vec<u8>>,
    pub(super) theirs: Option<Vec<u8>>,
    pub(super) first_seen: i64,
    pub(super) last_seen: i64,
    pub(super) closed_at: Option<i64>,
}

impl TryFrom<DivergenceRow> for StoredDivergence {
    type Error = StoreError;

    fn try_from(row: DivergenceRow) -> Result<StoredDivergence, StoreError> {
        const TABLE: &str = "divergences";
        Ok(StoredDivergence {
            id: row.id,
            divergence: NewDivergence {
                source: text(TABLE, row.source)?,
                did: text(TABLE, row.did)?,
                kind: row.kind,
                subject: text(TABLE, row.subject)?,
                ours: row.ours.map(|bytes| text(TABLE, bytes)).transpose()?,
                theirs: row.theirs.map(|bytes| text(TABLE, bytes)).transpose()?,
            },
            first_seen: Timestamp::from_millis(row.first_seen),
            last_seen: Timestamp::from_millis(row.last_seen),
            closed_at: row.closed_at.map(Timestamp::from_millis),
        })
    }
}

/// The row of `sources`.
pub(super) struct SourceRow {
    pub(super) upstream: String,
    pub(super) cursor: i64,
    pub(super) epoch: i64,
    pub(super) caught_up_at: Option<i64>,
    pub(super) cursor_cid: Option<Vec<u8>>,
    pub(super) second_reading: i64,
    pub(super) round: i64,
    pub(super) round_began_at: Option<i64>,
    pub(super) rounds: i64,
    pub(super) renumbering: bool,
    pub(super) forgotten_up_to: Option<i64>,
    pub(super) by_time: Option<String>,
    pub(super) by_time_read: i64,
    pub(super) by_time_second: i64,
    pub(super) commits: i64,
    pub(super) committed_in: i64,
    pub(super) word: Option<String>,
}

impl TryFrom<SourceRow> for Source {
    type Error = StoreError;

    fn try_from(row: SourceRow) -> Result<Source, StoreError> {
        Ok(Source {
            upstream: row.upstream,
            cursor: row.cursor,
            epoch: row.epoch,
            caught_up_at: row.caught_up_at.map(Timestamp::from_millis),
            cursor_cid: row.cursor_cid.map(|bytes| text("sources", bytes)).transpose()?,
            rereading: Rereading {
                second: row.second_reading,
                round: row.round,
                round_began_at: row.round_began_at.map(Timestamp::from_millis),
                rounds: row.rounds,
            },
            renumbering: row.renumbering,
            forgotten_up_to: row.forgotten_up_to,
            by_time: row.by_time.map(|upstream| ByTime {
                upstream,
                read: Timestamp::from_millis(row.by_time_read),
                second: Timestamp::from_millis(row.by_time_second),
            }),
            commit: CommitId { number: row.commits, epoch: row.committed_in },
            word: row.word.as_deref().and_then(Word::read),
        })
    }
}

/// Strings of strangers are stored as bytes; we wrote UTF-8.
pub(super) fn text(table: &str, bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes).map_err(|error| damaged(format!("table {table}"), error))
}

/// A CID from its digest.
pub(super) fn cid(table: &str, digest: &[u8]) -> Result<Cid, StoreError> {
    Cid::from_slice(digest)
        .ok_or_else(|| damaged(format!("table {table}"), "a digest that is not of 32 bytes"))
}

/// Damage in `place`: a value that this program would not have written.
fn damaged(place: String, reason: impl ToString) -> StoreError {
    StoreError::Damaged { place, reason: reason.to_string() }
}
