//! The table of interned texts, as this process knows it.

use std::sync::Arc;

use tokio_postgres::Row;

use super::connection::{Link, Session};
use super::rows;
use crate::store::StoreError;
use crate::store::codec::{Interned, Packer};

/// Rows that are made into operations where they were received; more of them, which take
/// milliseconds, on a thread that nobody else waits for.
const READ_INLINE: usize = 128;

const INTERNED_FROM: &str = "SELECT id, text FROM interned WHERE id >= $1 ORDER BY id";

/// What a connection that reads the table prepares.
pub(super) const STATEMENTS: &[&str] = &[INTERNED_FROM];

/// The texts, for whoever reads or writes operations.
pub(super) struct Strings {
    link: Arc<Link>,
    known: Interned,
}

impl Strings {
    /// Knows nothing yet: what is met first is loaded then.
    pub(super) fn new(link: Arc<Link>) -> Strings {
        Strings { link, known: Interned::default() }
    }

    /// Makes something of rows. When it is `damaged`, the rows may name texts that another process
    /// has given a number since the last look into the table: looks again, and makes it once more if
    /// there is something new.
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
        let made = run(work.clone(), self.known.clone()).await?;
        if damaged(&made) && self.load(&*self.link.session().await?).await? {
            return run(work, self.known.clone()).await;
        }
        Ok(made)
    }

    /// A packer that goes on from the texts that are committed.
    pub(super) async fn packer(&self, session: &Session) -> Result<Packer, StoreError> {
        self.load(session).await?;
        Ok(Packer::new(self.known.clone()))
    }

    /// Loads what is new in the table; true if there was something.
    async fn load(&self, session: &Session) -> Result<bool, StoreError> {
        let first = i32::try_from(self.known.len()).unwrap_or(i32::MAX);
        let rows = session.query(INTERNED_FROM, &[&first]).await?;
        for row in &rows {
            let number: i32 = rows::column("interned", row, 0)?;
            let text = rows::text("interned", row, 1)?;
            // A negative number is refused as one that is never given.
            self.known.insert(number as u32, &text).map_err(|damage| StoreError::Damaged {
                place: format!("table interned, number {number}"),
                reason: damage.to_string(),
            })?;
        }
        Ok(!rows.is_empty())
    }
}

async fn run<T, M>(work: Arc<(Vec<Row>, M)>, known: Interned) -> Result<T, StoreError>
where
    T: Send + 'static,
    M: Fn(&[Row], &Interned) -> T + Send + Sync + 'static,
{
    if work.0.len() <= READ_INLINE {
        return Ok(work.1(&work.0, &known));
    }
    tokio::task::spawn_blocking(move || work.1(&work.0, &known))
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))
}
