//! The table of interned texts, as this process knows it.

use std::sync::Arc;

use super::pool::{Lent, Pool};
use super::rows::text;
use crate::blocking;
use crate::store::StoreError;
use crate::store::codec::{Interned, Packer};

/// Rows that are made into operations where they were received; more of them, which take
/// milliseconds, on a thread that nobody else waits for.
const READ_INLINE: usize = 128;

/// The texts, for whoever reads or writes operations.
pub(super) struct Strings {
    pool: Arc<Pool>,
    known: Interned,
}

impl Strings {
    /// Knows nothing yet: what is met first is loaded then.
    pub(super) fn new(pool: Arc<Pool>) -> Strings {
        Strings { pool, known: Interned::default() }
    }

    /// Makes something of rows. When it is `damaged`, the rows may name texts that another process
    /// has given a number since the last look into the table: looks again, and makes it once more if
    /// there is something new.
    pub(super) async fn read<R, T, M>(
        &self,
        rows: Vec<R>,
        make: M,
        damaged: fn(&T) -> bool,
    ) -> Result<T, StoreError>
    where
        R: Send + Sync + 'static,
        T: Send + 'static,
        M: Fn(&[R], &Interned) -> T + Send + Sync + 'static,
    {
        let work = Arc::new((rows, make));
        let known_before = self.known.len();
        let made = run(work.clone(), self.known.clone()).await;
        if !damaged(&made) {
            return Ok(made);
        }
        self.load(&mut self.pool.lend().await?).await?;
        // Whoever has looked at the same time may have been the one to find it.
        if self.known.len() == known_before {
            return Ok(made);
        }
        Ok(run(work, self.known.clone()).await)
    }

    /// A packer that goes on from the texts that are committed.
    pub(super) async fn packer(&self, connection: &mut Lent) -> Result<Packer, StoreError> {
        self.load(connection).await?;
        Ok(Packer::new(self.known.clone()))
    }

    /// Loads what is new in the table.
    async fn load(&self, connection: &mut Lent) -> Result<(), StoreError> {
        let first = i32::try_from(self.known.len()).unwrap_or(i32::MAX);
        let new = sqlx::query!("SELECT id, text FROM interned WHERE id >= $1 ORDER BY id", first);
        for row in connection.all(new).await? {
            let text = text("interned", row.text)?;
            // A negative number is refused as one that is never given.
            self.known.insert(row.id as u32, &text).map_err(|damage| StoreError::Damaged {
                place: format!("table interned, number {}", row.id),
                reason: damage.to_string(),
            })?;
        }
        Ok(())
    }
}

async fn run<R, T, M>(work: Arc<(Vec<R>, M)>, known: Interned) -> T
where
    R: Send + Sync + 'static,
    T: Send + 'static,
    M: Fn(&[R], &Interned) -> T + Send + Sync + 'static,
{
    if work.0.len() <= READ_INLINE {
        return work.1(&work.0, &known);
    }
    blocking::run("reading rows", move || work.1(&work.0, &known)).await
}
