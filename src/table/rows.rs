//! From operations to rows.

use did_plc::operation::Malformed;
use did_plc::{Did, History, Operation};
use rayon::prelude::*;

use super::row::Row;
use crate::blocking;
use crate::store::{Store, StoreError, StoredOperation};

/// The rows of operations, in their order. Who signed an operation, and what nullified it, is in the history of its
/// identity, which is read for it; a genesis says by itself who signed it. What is not in the log any more when that is
/// read has no row.
///
/// # Errors
///
/// Those of the store; [`StoreError::Damaged`] for an operation that is not what was verified.
pub async fn rows(store: &Store, operations: Vec<StoredOperation>) -> Result<Vec<Row>, StoreError> {
    let mut dids: Vec<Did> =
        operations.iter().filter(|of| !stands_alone(of)).map(|of| of.did).collect();
    dids.sort_unstable();
    dids.dedup();
    let held = if dids.is_empty() { Vec::new() } else { store.histories(&dids).await? };
    blocking::run("decoding operations", move || {
        // In the order of the DIDs, as they are read.
        let histories: Vec<History> =
            held.par_chunk_by(|a, b| a.did == b.did).map(history).collect::<Result<_, _>>()?;
        let found = |operation: &StoredOperation| match histories
            .binary_search_by_key(&operation.did, |history| history.did)
        {
            Ok(at) => row(&histories[at], operation),
            Err(_) => row(&history(std::slice::from_ref(operation))?, operation),
        };
        operations.par_iter().filter_map(|operation| found(operation).transpose()).collect()
    })
    .await
}

/// Whether its row follows from the operation alone.
fn stands_alone(stored: &StoredOperation) -> bool {
    let is_genesis =
        Operation::read(&stored.signed).is_ok_and(|operation| operation.prev().is_none());
    is_genesis && stored.nullified_by.is_none()
}

fn history(held: &[StoredOperation]) -> Result<History, StoreError> {
    History::as_held(held[0].did, held.iter().map(StoredOperation::as_held))
        .map_err(|error| damaged(&held[0], &error))
}

fn row(history: &History, operation: &StoredOperation) -> Result<Option<Row>, StoreError> {
    let cid = operation.cid();
    let index = history.entries.iter().position(|entry| entry.received.cid == cid);
    let row = index.map(|index| Row::of(history, index)).transpose();
    row.map_err(|error| damaged(operation, &error))
}

fn damaged(stored: &StoredOperation, error: &Malformed) -> StoreError {
    StoreError::Damaged {
        place: format!("{}, operation of {}", stored.did, stored.created_at),
        reason: error.to_string(),
    }
}
