//! Rows as they are read: back into what was written.

use bytes::Bytes;
use rusqlite::{Connection, Row};

use super::error::damaged;
use crate::store::codec::{Damage, Interned, unpack};
use crate::store::{
    ByTime, CommitId, NewDivergence, NewRefusal, Rereading, Source, StoreError, StoredDivergence,
    StoredOperation, StoredRefusal, Word,
};
use did_plc::{Cid, Did, Timestamp};

/// The columns of [`operation`], in its order.
macro_rules! operation_columns {
    () => {
        "o.sequence, o.did, o.created_at, o.signer, o.nullified_by, o.received_at, o.operation"
    };
}

/// The columns of [`refusal`], in its order.
macro_rules! refusal_columns {
    () => {
        "id, did, sequence, cid, kind, detail, source, key, line, received_at, accepted_at, asked, ask_at"
    };
}

/// The columns of [`divergence`], in its order.
macro_rules! divergence_columns {
    () => {
        "id, source, did, kind, subject, ours, theirs, first_seen, last_seen, closed_at"
    };
}

/// The columns of [`source`], in its order.
macro_rules! source_columns {
    () => {
        "upstream, cursor, epoch, caught_up_at, cursor_cid, second_reading, round, round_began_at, rounds,
         renumbering, forgotten_up_to, by_time, by_time_read, by_time_second, commits, committed_in, word"
    };
}

/// How many columns an operation has.
pub(super) const COLUMNS: usize = 7;

pub(super) use {divergence_columns, operation_columns, refusal_columns, source_columns};

/// The DID in a column, whatever its length.
pub(super) fn did_bytes<'a>(row: &'a Row, at: usize) -> Result<&'a [u8], StoreError> {
    Ok(row.get_ref(at)?.as_blob().map_err(rusqlite::Error::from)?)
}

/// `created_at` of an operation.
pub(super) fn created_at(row: &Row) -> Result<Timestamp, StoreError> {
    Ok(Timestamp::from_millis(row.get(2)?))
}

/// Whether an operation is nullified.
pub(super) fn is_nullified(row: &Row) -> Result<bool, StoreError> {
    Ok(row.get::<_, Option<i64>>(4)?.is_some())
}

/// An operation. The connection, in the transaction of the row, is asked for texts that another
/// process has given a number since they were last read.
pub(super) fn operation(
    row: &Row,
    connection: &Connection,
    interned: &Interned,
) -> Result<StoredOperation, StoreError> {
    let sequence: i64 = row.get(0)?;
    let did = Did::from_slice(did_bytes(row, 1)?)
        .ok_or_else(|| damaged(format!("operation {sequence}"), "a DID that is not of 15 bytes"))?;
    let created_at = created_at(row)?;
    let packed = row.get_ref(6)?.as_blob().map_err(rusqlite::Error::from)?;
    let signed = match unpack(packed, interned) {
        Err(Damage::UnknownNumber(_)) => {
            load_interned(connection, interned)?;
            unpack(packed, interned)
        }
        unpacked => unpacked,
    };
    let nullified_by: Option<i64> = row.get(4)?;
    Ok(StoredOperation {
        did,
        created_at,
        sequence: (sequence > 0).then_some(sequence),
        signed: signed
            .map_err(|damage| damaged(format!("{did}, operation of {created_at}"), damage))?,
        signer: row.get(3)?,
        nullified_by: nullified_by.map(Timestamp::from_millis),
        received_at: Timestamp::from_millis(row.get(5)?),
    })
}

/// Reads the texts that have been given a number since this was last done.
pub(super) fn load_interned(
    connection: &Connection,
    interned: &Interned,
) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT id, text FROM interned WHERE id >= ?1 ORDER BY id")?;
    let mut rows = statement.query([interned.len()])?;
    while let Some(row) = rows.next()? {
        let text = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        interned.insert(row.get(0)?, text).map_err(|damage| damaged("table interned", damage))?;
    }
    Ok(())
}

pub(super) fn source(row: &Row) -> rusqlite::Result<Source> {
    Ok(Source {
        upstream: row.get(0)?,
        cursor: row.get(1)?,
        epoch: row.get(2)?,
        caught_up_at: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis),
        cursor_cid: row.get(4)?,
        rereading: Rereading {
            second: row.get(5)?,
            round: row.get(6)?,
            round_began_at: row.get::<_, Option<i64>>(7)?.map(Timestamp::from_millis),
            rounds: row.get(8)?,
        },
        renumbering: row.get(9)?,
        forgotten_up_to: row.get(10)?,
        by_time: match row.get::<_, Option<String>>(11)? {
            Some(upstream) => Some(ByTime {
                upstream,
                read: Timestamp::from_millis(row.get(12)?),
                second: Timestamp::from_millis(row.get(13)?),
            }),
            None => None,
        },
        commit: CommitId { number: row.get(14)?, epoch: row.get(15)? },
        word: row.get::<_, Option<String>>(16)?.as_deref().and_then(Word::read),
    })
}

pub(super) fn refusal(row: &Row) -> rusqlite::Result<StoredRefusal> {
    let line: Vec<u8> = row.get(8)?;
    Ok(StoredRefusal {
        id: row.get(0)?,
        refusal: NewRefusal {
            did: row.get(1)?,
            sequence: row.get(2)?,
            cid: row.get::<_, Option<[u8; 32]>>(3)?.map(Cid::from_digest),
            kind: row.get(4)?,
            detail: row.get(5)?,
            source: row.get(6)?,
            key: row.get(7)?,
            line: Bytes::from(line),
        },
        received_at: Timestamp::from_millis(row.get(9)?),
        accepted_at: row.get::<_, Option<i64>>(10)?.map(Timestamp::from_millis),
        asked: row.get(11)?,
        ask_at: row.get::<_, Option<i64>>(12)?.map(Timestamp::from_millis),
    })
}

pub(super) fn divergence(row: &Row) -> rusqlite::Result<StoredDivergence> {
    Ok(StoredDivergence {
        id: row.get(0)?,
        divergence: NewDivergence {
            source: row.get(1)?,
            did: row.get(2)?,
            kind: row.get(3)?,
            subject: row.get(4)?,
            ours: row.get(5)?,
            theirs: row.get(6)?,
        },
        first_seen: Timestamp::from_millis(row.get(7)?),
        last_seen: Timestamp::from_millis(row.get(8)?),
        closed_at: row.get::<_, Option<i64>>(9)?.map(Timestamp::from_millis),
    })
}
