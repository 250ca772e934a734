//! The lease, which gives one follower the right to write.

use std::sync::atomic::Ordering;
use std::time::Duration;

use did_plc::Timestamp;

use super::open::Postgres;
use super::pool::Lent;
use super::rows::{SourceRow, sources};
use super::writer::LEASE;
use crate::store::{ByTime, Lease, Rereading, Source, StoreError, Word};

/// Durable whatever the connection's setting: an epoch that a crash of the server took back would
/// be given out twice.
const DURABLY: &str = "BEGIN; SET LOCAL synchronous_commit = on";

impl Postgres {
    /// See [`crate::store::Store::follow`].
    pub async fn follow(
        &self,
        upstream: &str,
        free_for: Duration,
    ) -> Result<(Lease, Source), StoreError> {
        let writer = &self.writer;
        let mut packer = writer.turn.lock().await;
        // Whoever wrote in between may have given numbers to texts.
        *packer = None;
        // Who waits for it asks often, and in most cases for this alone.
        if free_for > Duration::ZERO
            && let Some(left) = seconds_left(&mut writer.pool.lend().await?).await?
            && left > -free_for.as_secs_f64()
        {
            return Err(taken(left));
        }
        let mut connection = writer.bare_transaction(DURABLY).await?;
        // Whoever has locked the row, and hangs, may do so for ever: a row that is there is not waited for.
        let create = sqlx::query!(
            "INSERT INTO sources (upstream) SELECT $1 WHERE NOT EXISTS (SELECT FROM sources) ON CONFLICT DO NOTHING",
            upstream
        );
        connection.execute(create).await?;
        let take = sources!(
            "UPDATE sources
             SET epoch = epoch + 1, lease_until = clock_timestamp() + make_interval(secs => $1)
             WHERE id = (SELECT id FROM sources
                 WHERE lease_until IS NULL OR lease_until <= clock_timestamp() - make_interval(secs => $2)
                 FOR UPDATE SKIP LOCKED)
             RETURNING ",
            "",
            LEASE.as_secs_f64(),
            free_for.as_secs_f64()
        );
        let Some(source) = connection.first(take).await? else {
            let left = seconds_left(&mut connection).await?.unwrap_or_default();
            let reason = match left > -free_for.as_secs_f64() {
                true => taken(left),
                false => writer.locked_out(&mut connection).await?,
            };
            // It has changed nothing. Left open it would cost the connection, at every attempt of whoever waits.
            writer.end(connection).await?;
            return Err(reason);
        };
        // The row is ours: whatever was under way on it is over.
        writer.in_doubt.store(false, Ordering::Release);
        writer.end(connection).await?;
        let source = Source::try_from(source)?;
        Ok((Lease { epoch: source.epoch }, source))
    }

    /// See [`crate::store::Store::renew`].
    pub async fn renew(&self, lease: &Lease, word: Option<&Word>) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let renew = sqlx::query!(
            "UPDATE sources SET lease_until = clock_timestamp() + make_interval(secs => $2),
                word = coalesce($3, word)
             WHERE epoch = $1",
            lease.epoch,
            LEASE.as_secs_f64(),
            word.map(Word::text)
        );
        match self.writer.pool.lend().await?.execute(renew).await? {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }

    /// See [`crate::store::Store::release`].
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        // When it ended is of interest to who waits before taking over.
        let release = sqlx::query!(
            "UPDATE sources SET lease_until = clock_timestamp() WHERE epoch = $1",
            lease.epoch
        );
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

    /// See [`crate::store::Store::begin_renumbering`].
    pub async fn begin_renumbering(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let begin = sqlx::query!(
            "WITH settled AS (DELETE FROM unsettled USING sources WHERE epoch = $1)
             UPDATE sources SET upstream = $2, renumbering = true, cursor = 0, cursor_cid = NULL,
                second_reading = 0, round = 0, round_began_at = NULL
             WHERE epoch = $1",
            lease.epoch,
            upstream
        );
        match self.writer.pool.lend().await?.execute(begin).await? {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }

    /// See [`crate::store::Store::set_rereading`].
    pub async fn set_rereading(
        &self,
        lease: &Lease,
        rereading: Rereading,
    ) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let Rereading { second, round, round_began_at, rounds } = rereading;
        let set = sqlx::query!(
            "UPDATE sources SET second_reading = $2, round = $3, round_began_at = $4, rounds = $5
             WHERE epoch = $1",
            lease.epoch,
            second,
            round,
            round_began_at.map(Timestamp::millis),
            rounds
        );
        match self.writer.pool.lend().await?.execute(set).await? {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }

    /// See [`crate::store::Store::set_by_time`].
    pub async fn set_by_time(&self, lease: &Lease, by_time: &ByTime) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let set = sqlx::query!(
            "UPDATE sources SET by_time = $2, by_time_read = $3, by_time_second = $4
             WHERE epoch = $1",
            lease.epoch,
            by_time.upstream,
            by_time.read.millis(),
            by_time.second.millis()
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

/// How long the lease still runs, by the server's clock; less than zero since it has ended, none before the first.
async fn seconds_left(connection: &mut Lent) -> Result<Option<f64>, StoreError> {
    let left = sqlx::query!(
        r#"SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 AS seconds
                   FROM sources"#
    );
    Ok(connection.first(left).await?.and_then(|row| row.seconds))
}

/// The error of a lease that somebody else has, for so many seconds more.
fn taken(left: f64) -> StoreError {
    StoreError::LostLease(match left > 0.0 {
        true => format!("its lease runs for another {:.0} s", left.ceil()),
        false => "its lease has ended only just now".to_owned(),
    })
}

/// The error of a lease that somebody else has taken over.
pub(super) fn over(lease: &Lease) -> StoreError {
    StoreError::LostLease(format!("epoch {} is over", lease.epoch))
}
