//! The store on Sqlite.

use super::{
    Commit, Lease, Source, Statistics, StoreError, StoredDivergence, StoredOperation, StoredRefusal,
};
use crate::plc::{Cid, Did, Timestamp};

/// A store on Sqlite.
#[derive(Debug, Clone)]
pub struct Sqlite {}

fn absent() -> StoreError {
    StoreError::Unusable("this build lacks the backend".to_owned())
}

#[allow(missing_docs)]
impl Sqlite {
    pub async fn open(_path: &std::path::Path) -> Result<Sqlite, StoreError> {
        Err(absent())
    }

    pub async fn source(&self) -> Result<Option<Source>, StoreError> {
        Err(absent())
    }

    pub async fn histories(&self, _dids: &[Did]) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn history(&self, _did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn head(&self, _did: &Did) -> Result<Option<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn export_by_sequence(
        &self,
        _after: i64,
        _limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn export_by_time(
        &self,
        _after: Option<Timestamp>,
        _limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn last_sequence(&self) -> Result<Option<i64>, StoreError> {
        Err(absent())
    }

    pub async fn latest(&self, _limit: usize) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn sequences(&self, _sequences: &[i64]) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn refusals(
        &self,
        _did: Option<&str>,
        _after_id: i64,
        _limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        Err(absent())
    }

    pub async fn refusals_awaiting(&self, _cids: &[Cid]) -> Result<Vec<StoredRefusal>, StoreError> {
        Err(absent())
    }

    pub async fn awaited(&self, _limit: usize) -> Result<Vec<Cid>, StoreError> {
        Err(absent())
    }

    pub async fn divergences(
        &self,
        _did: Option<&str>,
        _kind: Option<&str>,
        _open: Option<bool>,
        _after_id: i64,
        _limit: usize,
    ) -> Result<Vec<StoredDivergence>, StoreError> {
        Err(absent())
    }

    pub async fn next_histories(
        &self,
        _after: Option<Did>,
        _operations: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        Err(absent())
    }

    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        Err(absent())
    }

    pub async fn follow(&self, _upstream: &str) -> Result<(Lease, Source), StoreError> {
        Err(absent())
    }

    pub async fn renew(&self, _lease: &Lease) -> Result<(), StoreError> {
        Err(absent())
    }

    pub async fn next_identity(&self, _after: Option<Did>) -> Result<Option<Did>, StoreError> {
        Err(absent())
    }

    pub async fn set_upstream(&self, _lease: &Lease, _upstream: &str) -> Result<(), StoreError> {
        Err(absent())
    }

    pub async fn release(&self, _lease: Lease) -> Result<(), StoreError> {
        Err(absent())
    }

    pub async fn commit(&self, _lease: &Lease, _commit: &Commit) -> Result<(), StoreError> {
        Err(absent())
    }

    pub async fn set_durability(&self, _live: bool) -> Result<(), StoreError> {
        Err(absent())
    }
}
