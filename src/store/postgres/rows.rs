//! Rows as they are read: back into what was written.

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::store::codec::{Interned, unpack};
use crate::store::{
    NewDivergence, NewRefusal, Source, StoreError, StoredDivergence, StoredOperation, StoredRefusal,
};
use did_plc::{Cid, Did, Timestamp};

/// The columns of [`operation`], in its order. The DID is the first; a gathered lookup has the place
/// of its identity there instead.
macro_rules! operation_columns {
    () => {
        "created_at, sequence, nullified_by, received_at, signer, operation"
    };
}

/// The columns of [`refusal`], in its order.
macro_rules! refusal_columns {
    () => {
        "id, did, sequence, cid, kind, detail, awaits, line, received_at, accepted_at"
    };
}

/// The columns of [`divergence`], in its order.
macro_rules! divergence_columns {
    () => {
        "id, source, did, kind, subject, ours, theirs, first_seen, last_seen, closed_at"
    };
}

pub(super) use {divergence_columns, operation_columns, refusal_columns};

/// Damage in `table`: a value that this program would not have written.
fn damaged(place: impl ToString, reason: impl ToString) -> StoreError {
    StoreError::Damaged { place: place.to_string(), reason: reason.to_string() }
}

/// A column of a row, by its place.
pub(super) fn column<'a, T: FromSql<'a>>(
    table: &str,
    row: &'a Row,
    at: usize,
) -> Result<T, StoreError> {
    row.try_get(at).map_err(|error| damaged(format!("table {table}"), error))
}

fn time(table: &str, row: &Row, at: usize) -> Result<Timestamp, StoreError> {
    column(table, row, at).map(Timestamp::from_millis)
}

fn optional_time(table: &str, row: &Row, at: usize) -> Result<Option<Timestamp>, StoreError> {
    Ok(column::<Option<i64>>(table, row, at)?.map(Timestamp::from_millis))
}

/// Strings of strangers are stored as bytes; we wrote UTF-8.
pub(super) fn text(table: &str, row: &Row, at: usize) -> Result<String, StoreError> {
    let bytes: Vec<u8> = column(table, row, at)?;
    String::from_utf8(bytes).map_err(|error| damaged(format!("table {table}"), error))
}

fn optional_text(table: &str, row: &Row, at: usize) -> Result<Option<String>, StoreError> {
    match column::<Option<&[u8]>>(table, row, at)? {
        Some(_) => text(table, row, at).map(Some),
        None => Ok(None),
    }
}

/// A CID from its digest.
pub(super) fn cid(table: &str, row: &Row, at: usize) -> Result<Cid, StoreError> {
    let digest: &[u8] = column(table, row, at)?;
    Cid::from_slice(digest)
        .ok_or_else(|| damaged(format!("table {table}"), "a digest that is not of 32 bytes"))
}

fn optional_cid(table: &str, row: &Row, at: usize) -> Result<Option<Cid>, StoreError> {
    match column::<Option<&[u8]>>(table, row, at)? {
        Some(_) => cid(table, row, at).map(Some),
        None => Ok(None),
    }
}

/// The DID in the first column.
pub(super) fn did(row: &Row) -> Result<Did, StoreError> {
    let bytes: &[u8] = column("operations", row, 0)?;
    Did::from_slice(bytes)
        .ok_or_else(|| damaged("table operations", "a DID that is not of 15 bytes"))
}

/// An operation of `did`.
pub(super) fn operation(
    did: Did,
    row: &Row,
    known: &Interned,
) -> Result<StoredOperation, StoreError> {
    const TABLE: &str = "operations";
    let created_at = time(TABLE, row, 1)?;
    let signer: i16 = column(TABLE, row, 5)?;
    let of_operation =
        |reason: String| damaged(format!("{did}, operation of {created_at}"), reason);
    Ok(StoredOperation {
        did,
        created_at,
        sequence: column(TABLE, row, 2)?,
        nullified_by: optional_time(TABLE, row, 3)?,
        received_at: time(TABLE, row, 4)?,
        signer: u16::try_from(signer)
            .map_err(|_| of_operation(format!("{signer} as the index of its key")))?,
        signed: unpack(column(TABLE, row, 6)?, known)
            .map_err(|damage| of_operation(damage.to_string()))?,
    })
}

pub(super) fn refusal(row: &Row) -> Result<StoredRefusal, StoreError> {
    const TABLE: &str = "refusals";
    Ok(StoredRefusal {
        id: column(TABLE, row, 0)?,
        refusal: NewRefusal {
            did: text(TABLE, row, 1)?,
            sequence: column(TABLE, row, 2)?,
            cid: optional_cid(TABLE, row, 3)?,
            kind: column(TABLE, row, 4)?,
            detail: text(TABLE, row, 5)?,
            awaits: optional_cid(TABLE, row, 6)?,
            line: Bytes::copy_from_slice(column(TABLE, row, 7)?),
        },
        received_at: time(TABLE, row, 8)?,
        accepted_at: optional_time(TABLE, row, 9)?,
    })
}

pub(super) fn divergence(row: &Row) -> Result<StoredDivergence, StoreError> {
    const TABLE: &str = "divergences";
    Ok(StoredDivergence {
        id: column(TABLE, row, 0)?,
        divergence: NewDivergence {
            source: text(TABLE, row, 1)?,
            did: text(TABLE, row, 2)?,
            kind: column(TABLE, row, 3)?,
            subject: text(TABLE, row, 4)?,
            ours: optional_text(TABLE, row, 5)?,
            theirs: optional_text(TABLE, row, 6)?,
        },
        first_seen: time(TABLE, row, 7)?,
        last_seen: time(TABLE, row, 8)?,
        closed_at: optional_time(TABLE, row, 9)?,
    })
}

/// From `id, kind, subject`.
pub(super) fn open_divergence(row: &Row) -> Result<(i64, String, String), StoreError> {
    const TABLE: &str = "divergences";
    Ok((column(TABLE, row, 0)?, column(TABLE, row, 1)?, text(TABLE, row, 2)?))
}

/// From `upstream, cursor, epoch, caught_up_at, cursor_cid`.
pub(super) fn source(row: &Row) -> Result<Source, StoreError> {
    const TABLE: &str = "sources";
    Ok(Source {
        upstream: column(TABLE, row, 0)?,
        cursor: column(TABLE, row, 1)?,
        epoch: column(TABLE, row, 2)?,
        caught_up_at: optional_time(TABLE, row, 3)?,
        cursor_cid: optional_text(TABLE, row, 4)?,
    })
}
