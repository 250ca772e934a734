//! Who writes, one at a time, and what is remembered between commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::migrations;
use super::pool::{Lent, Pool};
use super::rows::{SourceRow, sources};
use super::strings::Strings;
use crate::store::codec::Packer;
use crate::store::divergence::DIVERGENCE_BYTES;
use crate::store::refusal::SharedLimits;
use crate::store::{Source, StoreError};

/// How long a follower that says nothing is believed to be alive: the others take over after this. Several renewals, which
/// come every few seconds, have to fail.
pub(in crate::store) const LEASE: Duration = Duration::from_secs(10);

/// Who writes, and what is remembered between commits.
pub(super) struct Writer {
    strings: Arc<Strings>,
    pub(super) pool: Arc<Pool>,
    /// The last migration of the version that writes.
    pub(super) version: i64,
    /// Held by whoever writes: one at a time. The packer is there when everything that it
    /// has packed is committed; otherwise the next commit makes one from what is.
    pub(super) turn: Mutex<Option<Packer>>,
    /// What COMMIT waits for: the disk (live), or nothing.
    pub(super) live: AtomicBool,
    /// Whether commits keep the index of claims when it is complete.
    pub(super) keeps_claims: AtomicBool,
    pub(super) refusal_limits: SharedLimits,
    /// Bytes that differences may take.
    pub(super) divergence_bytes: AtomicU64,
    /// A COMMIT was sent and nobody knows what became of it.
    pub(super) in_doubt: AtomicBool,
    /// The backend of which it was said last that it has locked the row of the source; 0 before.
    pub(super) locked_by: AtomicI32,
}

/// Leaves a mark behind unless the outcome became known, also when its future is dropped.
struct Doubt<'a>(Option<&'a AtomicBool>);

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(in_doubt) = self.0 {
            in_doubt.store(true, Ordering::Release);
        }
    }
}

impl Writer {
    pub(super) fn new(pool: Arc<Pool>, strings: Arc<Strings>, version: i64) -> Writer {
        Writer {
            strings,
            pool,
            version,
            turn: Mutex::default(),
            live: AtomicBool::new(true),
            keeps_claims: AtomicBool::new(false),
            refusal_limits: SharedLimits::default(),
            divergence_bytes: AtomicU64::new(DIVERGENCE_BYTES),
            in_doubt: AtomicBool::new(false),
            locked_by: AtomicI32::new(0),
        }
    }

    /// A transaction of somebody who does not have the lease; `sql` is BEGIN and what is set for it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Outdated`] where the tables are of a newer version.
    pub(super) async fn bare_transaction(&self, sql: &'static str) -> Result<Lent, StoreError> {
        let mut connection = self.pool.lend().await?;
        connection.begin(sql).await?;
        migrations::hold(&mut connection, self.version).await?;
        Ok(connection)
    }

    /// The source, read so that a commit of unknown outcome is over; `None` when there is none in
    /// doubt and any connection will do.
    pub(super) async fn source_after_doubt(&self) -> Result<Option<Option<Source>>, StoreError> {
        if !self.in_doubt.load(Ordering::Acquire) {
            return Ok(None);
        }
        let _turn = self.turn.lock().await;
        let source = settled_source(&mut self.pool.lend().await?).await?;
        self.in_doubt.store(false, Ordering::Release);
        Ok(Some(source))
    }

    /// A packer that knows every text that is committed, also by a transaction of unknown outcome.
    pub(super) async fn packer(&self, connection: &mut Lent) -> Result<Packer, StoreError> {
        settled_source(connection).await?;
        self.strings.packer(connection).await
    }

    /// COMMIT.
    pub(super) async fn end(&self, connection: Lent) -> Result<(), StoreError> {
        let mut doubt = Doubt(Some(&self.in_doubt));
        // A crash of ours from here on leaves all of the transaction behind, or nothing.
        let ended = connection.commit().await;
        if !matches!(ended, Err(StoreError::OutcomeUnknown(_))) {
            doubt.0 = None;
        }
        ended
    }
}

/// The source. Waits for a transaction on its row that may still be under way on a connection that
/// broke.
async fn settled_source(connection: &mut Lent) -> Result<Option<Source>, StoreError> {
    let source = sources!("SELECT ", " FROM sources FOR UPDATE");
    connection.first(source).await?.map(Source::try_from).transpose()
}
