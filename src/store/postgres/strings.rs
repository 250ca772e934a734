//! The table of interned strings, as readers know it.

use std::sync::{Arc, RwLock};

use bytes::Bytes;
use tokio_postgres::Row;

use super::connection::Link;
use crate::store::StoreError;

/// Stand-in.
#[derive(Debug, Clone, Default)]
pub(super) struct Interned;

impl Interned {
    pub(super) fn unpack(&self, packed: &[u8]) -> Result<Bytes, String> {
        match packed.split_first() {
            Some((0, signed)) => Ok(Bytes::copy_from_slice(signed)),
            _ => Err("unknown codec".to_owned()),
        }
    }
}

/// Rows that are made into operations where they were received; more of them, which take
/// milliseconds, on a thread that nobody else waits for.
const READ_INLINE: usize = 128;

pub(super) struct Strings {
    link: Arc<Link>,
    known: RwLock<Interned>,
}

impl Strings {
    pub(super) fn new(link: Arc<Link>) -> Strings {
        Strings { link, known: RwLock::default() }
    }

    fn known(&self) -> Interned {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    async fn reload(&self) -> Result<bool, StoreError> {
        self.link.session().await?;
        Ok(false)
    }

    /// Makes something of rows. When it is `damaged`, the rows may name strings that were interned after
    /// the last look into the table: looks again, and makes it once more if there is something new.
    pub(super) async fn read<T, M>(
        &self,
        rows: Vec<Row>,
        make: M,
        damaged: fn(&T) -> bool,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        M: Fn(&[Row], &Interned) -> T + Send + Sync + 'static,
    {
        let work = Arc::new((rows, make));
        let made = run(work.clone(), self.known()).await?;
        if damaged(&made) && self.reload().await? {
            return run(work, self.known()).await;
        }
        Ok(made)
    }
}

async fn run<T, M>(work: Arc<(Vec<Row>, M)>, known: Interned) -> Result<T, StoreError>
where
    T: Send + 'static,
    M: Fn(&[Row], &Interned) -> T + Send + Sync + 'static,
{
    let (rows, make) = &*work;
    if rows.len() <= READ_INLINE {
        return Ok(make(rows, &known));
    }
    let work = work.clone();
    tokio::task::spawn_blocking(move || work.1(&work.0, &known))
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))
}
