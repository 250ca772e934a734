//! How new operations are written: few by INSERT, many by COPY, whose binary stream is written by
//! hand, so that rows go off while the next ones are packed.

use bytes::{BufMut, BytesMut};
use did_plc::Timestamp;
use sqlx::postgres::PgConnection;

use super::error::query_error;
use super::pool::{Lent, within};
use crate::store::codec::Packer;
use crate::store::{StoreError, StoredOperation};

/// Up to so many are inserted. COPY is two more answers to wait for, and over TCP the driver (sqlx 0.9.0,
/// which leaves Nagle's algorithm on) lets its last message wait for an acknowledgement that the server
/// delays by 40 ms: nothing for thousands of operations, too long for the few of a moment.
const FEW: usize = 64;

/// Fixed columns first; see the migration.
const COPY: &str = "COPY operations
    (created_at, sequence, nullified_by, received_at, signer, did, operation)
    FROM STDIN (FORMAT binary)";
const COLUMNS: i16 = 7;

/// Signature of the format, no flags, no header extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: i16 = -1;
/// Length that stands for NULL.
const NULL: i32 = -1;

/// Bytes that are sent at a time: some hundreds of rows, a millisecond of packing, in which the
/// server works on those before.
const PIECE: usize = 64 * 1024;

/// Writes all operations in the given order.
pub(super) async fn insert(
    connection: &mut Lent,
    operations: &[&StoredOperation],
    packer: &mut Packer,
) -> Result<(), StoreError> {
    if operations.len() <= FEW {
        return insert_few(connection, operations, packer).await;
    }
    let copied = copy(connection.begun(), operations, packer).await;
    connection.ended(copied).map_err(query_error)
}

async fn insert_few(
    connection: &mut Lent,
    operations: &[&StoredOperation],
    packer: &mut Packer,
) -> Result<(), StoreError> {
    if operations.is_empty() {
        return Ok(());
    }
    let all = || operations.iter();
    let created_at: Vec<_> = all().map(|new| new.created_at.millis()).collect();
    let sequences: Vec<_> = all().map(|new| new.sequence).collect();
    let nullified_by: Vec<_> = all().map(|new| new.nullified_by.map(Timestamp::millis)).collect();
    let received_at: Vec<_> = all().map(|new| new.received_at.millis()).collect();
    let signers: Vec<_> = all().map(|new| signer(new)).collect();
    let dids: Vec<_> = all().map(|new| *new.did.as_bytes()).collect();
    let packed: Vec<_> = all().map(|new| packer.pack(&new.signed)).collect();
    let insert = sqlx::query!(
        "INSERT INTO operations
            (created_at, sequence, nullified_by, received_at, signer, did, operation)
         SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::int2[],
            $6::bytea[], $7::bytea[])",
        &created_at,
        sequences as _,
        nullified_by as _,
        &received_at,
        &signers,
        dids as _,
        &packed
    );
    connection.execute(insert).await?;
    Ok(())
}

async fn copy(
    connection: &mut PgConnection,
    operations: &[&StoredOperation],
    packer: &mut Packer,
) -> sqlx::Result<()> {
    let mut sink = within(connection.copy_in_raw(COPY)).await?;
    let mut piece = BytesMut::with_capacity(PIECE + PIECE / 4);
    piece.put_slice(HEADER);
    for operation in operations {
        put_row(&mut piece, operation, packer);
        if piece.len() >= PIECE {
            within(sink.send(&piece[..])).await?;
            piece.clear();
        }
    }
    piece.put_i16(TRAILER);
    within(sink.send(&piece[..])).await?;
    within(sink.finish()).await?;
    Ok(())
}

fn put_row(out: &mut BytesMut, operation: &StoredOperation, packer: &mut Packer) {
    out.put_i16(COLUMNS);
    put_int8(out, Some(operation.created_at.millis()));
    put_int8(out, operation.sequence);
    put_int8(out, operation.nullified_by.map(|time| time.millis()));
    put_int8(out, Some(operation.received_at.millis()));
    out.put_i32(2);
    out.put_i16(signer(operation));
    put_bytes(out, operation.did.as_bytes());
    put_bytes(out, &packer.pack(&operation.signed));
}

/// An index above 32,767 would be a list of keys that no operation has room for.
fn signer(operation: &StoredOperation) -> i16 {
    i16::try_from(operation.signer).unwrap_or(i16::MAX)
}

fn put_int8(out: &mut BytesMut, value: Option<i64>) {
    match value {
        Some(value) => {
            out.put_i32(8);
            out.put_i64(value);
        }
        None => out.put_i32(NULL),
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    // The server's own limit on a field (1 GiB) is far below what i32 cannot hold.
    out.put_i32(bytes.len() as i32);
    out.put_slice(bytes);
}
