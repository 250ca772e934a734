//! Who writes, and the lease that gives the right to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::Postgres;
use super::pool::{Lent, Pool};
use super::rows::SourceRow;
use super::strings::Strings;
use crate::store::codec::Packer;
use crate::store::{Lease, Source, StoreError};

/// How long a follower that says nothing is believed to be alive. Several renewals, which come
/// every few seconds, have to fail; an operator who restarts one that crashed waits this long.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// For connections that write. As for those that read, plans must not depend on statistics. A follower
/// that is frozen in the middle of a transaction keeps others out no longer than its lease.
pub(super) const SETTINGS: &str = "
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET jit = off;
    SET lock_timeout = '20s';
    SET idle_in_transaction_session_timeout = '15s'";

/// Durable whatever the connection's setting: an epoch that a crash of the server took back would
/// be given out twice.
const DURABLY: &str = "BEGIN; SET LOCAL synchronous_commit = on";

/// Who writes, and what is remembered between commits.
pub(super) struct Writer {
    strings: Arc<Strings>,
    pub(super) pool: Arc<Pool>,
    /// Held by whoever writes: one at a time. The packer is there when everything that it
    /// has packed is committed; otherwise the next commit makes one from what is.
    pub(super) turn: Mutex<Option<Packer>>,
    /// What COMMIT waits for: the disk (live), or nothing.
    pub(super) live: AtomicBool,
    /// Whether commits keep the index of claims when it is complete.
    pub(super) keeps_claims: AtomicBool,
    /// A COMMIT was sent and nobody knows what became of it.
    in_doubt: AtomicBool,
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
    pub(super) fn new(pool: Arc<Pool>, strings: Arc<Strings>) -> Writer {
        Writer {
            strings,
            pool,
            turn: Mutex::default(),
            live: AtomicBool::new(true),
            keeps_claims: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
        }
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
    let source = sqlx::query_as!(
        SourceRow,
        "SELECT upstream, cursor, epoch, caught_up_at, cursor_cid FROM sources FOR UPDATE"
    );
    connection.first(source).await?.map(Source::try_from).transpose()
}

impl Postgres {
    /// See [`crate::store::Store::follow`].
    pub async fn follow(&self, upstream: &str) -> Result<(Lease, Source), StoreError> {
        let writer = &self.writer;
        let mut packer = writer.turn.lock().await;
        // Whoever wrote in between may have given numbers to texts.
        *packer = None;
        let mut connection = writer.pool.lend().await?;
        // On its own: a crash after it leaves a source that nobody follows yet.
        let create = sqlx::query!(
            "INSERT INTO sources (upstream) VALUES ($1) ON CONFLICT DO NOTHING",
            upstream
        );
        connection.execute(create).await?;
        connection.begin(DURABLY).await?;
        let take = sqlx::query_as!(
            SourceRow,
            "UPDATE sources
             SET epoch = epoch + 1, lease_until = clock_timestamp() + make_interval(secs => $1)
             WHERE lease_until IS NULL OR lease_until < clock_timestamp()
             RETURNING upstream, cursor, epoch, caught_up_at, cursor_cid",
            LEASE.as_secs_f64()
        );
        let Some(source) = connection.first(take).await? else {
            let left = sqlx::query!(
                r#"SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 AS seconds
                   FROM sources"#
            );
            let left = connection.first(left).await?.and_then(|row| row.seconds);
            return Err(StoreError::LostLease(format!(
                "its lease runs for another {:.0} s",
                left.unwrap_or_default().max(0.0).ceil()
            )));
        };
        // The row was waited for: whatever was under way on it is over.
        writer.in_doubt.store(false, Ordering::Release);
        writer.end(connection).await?;
        let source = Source::try_from(source)?;
        Ok((Lease { epoch: source.epoch }, source))
    }

    /// See [`crate::store::Store::renew`].
    pub async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let renew = sqlx::query!(
            "UPDATE sources SET lease_until = clock_timestamp() + make_interval(secs => $2)
             WHERE epoch = $1",
            lease.epoch,
            LEASE.as_secs_f64()
        );
        match self.writer.pool.lend().await?.execute(renew).await? {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }

    /// See [`crate::store::Store::release`].
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let release =
            sqlx::query!("UPDATE sources SET lease_until = NULL WHERE epoch = $1", lease.epoch);
        self.writer.pool.lend().await?.execute(release).await?;
        Ok(())
    }

    /// See [`crate::store::Store::set_upstream`].
    pub async fn set_upstream(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let set = sqlx::query!(
            "UPDATE sources SET upstream = $2 WHERE epoch = $1",
            lease.epoch,
            upstream
        );
        match self.writer.pool.lend().await?.execute(set).await? {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }

    /// See [`crate::store::Store::set_durability`].
    pub async fn set_durability(&self, live: bool) -> Result<(), StoreError> {
        self.writer.live.store(live, Ordering::Relaxed);
        Ok(())
    }
}

fn over(lease: &Lease) -> StoreError {
    StoreError::LostLease(format!("epoch {} is over", lease.epoch))
}
