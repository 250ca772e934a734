//! The connection that writes, and the lease that gives the right to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::Postgres;
use super::connection::{Link, Server, Session};
use super::error::{commit_error, query_error};
use super::strings::{self, Strings};
use super::{claims, commit, rows};
use crate::store::codec::Packer;
use crate::store::{Lease, Source, StoreError};

/// How long a follower that says nothing is believed to be alive. Several renewals, which come
/// every few seconds, have to fail; an operator who restarts one that crashed waits this long.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// For the connection that writes. As for those that read, plans must not depend on statistics. A follower
/// that is frozen in the middle of a transaction keeps others out no longer than its lease.
pub(super) const SETTINGS: &str = "
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET jit = off;
    SET lock_timeout = '20s';
    SET idle_in_transaction_session_timeout = '15s'";

const CREATE_SOURCE: &str = "INSERT INTO sources (upstream) VALUES ($1) ON CONFLICT DO NOTHING";

/// Durable whatever the connection's setting: an epoch that a crash of the server took back would
/// be given out twice.
const DURABLY: &str = "BEGIN; SET LOCAL synchronous_commit = on";

const TAKE_LEASE: &str = "UPDATE sources
    SET epoch = epoch + 1, lease_until = clock_timestamp() + make_interval(secs => $1)
    WHERE lease_until IS NULL OR lease_until < clock_timestamp()
    RETURNING upstream, cursor, epoch, caught_up_at, cursor_cid";

const LEASE_LEFT: &str =
    "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 FROM sources";

const RENEW: &str = "UPDATE sources
    SET lease_until = clock_timestamp() + make_interval(secs => $2) WHERE epoch = $1";

const RELEASE: &str = "UPDATE sources SET lease_until = NULL WHERE epoch = $1";

const SET_UPSTREAM: &str = "UPDATE sources SET upstream = $2 WHERE epoch = $1";

/// Waits for a transaction on the row that may still be under way on a connection that broke.
const SOURCE_SETTLED: &str =
    "SELECT upstream, cursor, epoch, caught_up_at, cursor_cid FROM sources FOR UPDATE";

const STATEMENTS: &[&str] =
    &[CREATE_SOURCE, TAKE_LEASE, LEASE_LEFT, RENEW, RELEASE, SET_UPSTREAM, SOURCE_SETTLED];

/// The one connection that writes, and what it remembers between commits.
pub(super) struct Writer {
    pub(super) strings: Arc<Strings>,
    pub(super) link: Link,
    /// Held by whoever uses the connection: one at a time. The packer is there when everything that it
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
    pub(super) fn new(server: Arc<Server>, strings: Arc<Strings>) -> Writer {
        Writer {
            strings,
            link: Link::new(
                server,
                SETTINGS,
                &[STATEMENTS, commit::STATEMENTS, claims::COMMITTING, strings::STATEMENTS],
            ),
            turn: Mutex::default(),
            live: AtomicBool::new(true),
            keeps_claims: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
        }
    }

    /// Whether somebody is writing.
    pub(super) fn is_busy(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// The source, read so that a commit of unknown outcome is over; `None` when there is none in
    /// doubt and any connection will do.
    pub(super) async fn source_after_doubt(&self) -> Result<Option<Option<Source>>, StoreError> {
        if !self.in_doubt.load(Ordering::Acquire) {
            return Ok(None);
        }
        let _turn = self.turn.lock().await;
        let row = self.link.session().await?.query_opt(SOURCE_SETTLED, &[]).await?;
        let source = row.as_ref().map(rows::source).transpose()?;
        self.in_doubt.store(false, Ordering::Release);
        Ok(Some(source))
    }

    /// A packer that knows every text that is committed, also by a transaction of unknown outcome.
    pub(super) async fn packer(&self, session: &Session) -> Result<Packer, StoreError> {
        session.query_opt(SOURCE_SETTLED, &[]).await?;
        self.strings.packer(session).await
    }

    /// COMMIT on a session that was taken; gives it back when the outcome is known.
    pub(super) async fn end(&self, session: Arc<Session>) -> Result<(), StoreError> {
        let mut doubt = Doubt(Some(&self.in_doubt));
        // A crash of ours from here on leaves all of the transaction behind, or nothing.
        let ended = session.client.batch_execute("COMMIT").await.map_err(commit_error);
        if !matches!(ended, Err(StoreError::OutcomeUnknown(_))) {
            doubt.0 = None;
        }
        ended?;
        self.link.give_back(session).await;
        Ok(())
    }
}

impl Postgres {
    /// See [`crate::store::Store::follow`].
    pub async fn follow(&self, upstream: &str) -> Result<(Lease, Source), StoreError> {
        let writer = &self.writer;
        let mut packer = writer.turn.lock().await;
        // Whoever wrote in between may have given numbers to texts.
        *packer = None;
        let session = writer.link.take().await?;
        // On its own: a crash after it leaves a source that nobody follows yet.
        session.execute(CREATE_SOURCE, &[&upstream]).await?;
        session.client.batch_execute(DURABLY).await.map_err(query_error)?;
        let Some(row) = session.query_opt(TAKE_LEASE, &[&LEASE.as_secs_f64()]).await? else {
            let left = session.query_opt(LEASE_LEFT, &[]).await?;
            let left = match &left {
                Some(row) => rows::column::<Option<f64>>("sources", row, 0)?.unwrap_or_default(),
                None => 0.0,
            };
            return Err(StoreError::LostLease(format!(
                "its lease runs for another {:.0} s",
                left.max(0.0).ceil()
            )));
        };
        let source = rows::source(&row)?;
        // The row was waited for: whatever was under way on it is over.
        writer.in_doubt.store(false, Ordering::Release);
        writer.end(session).await?;
        Ok((Lease { epoch: source.epoch }, source))
    }

    /// See [`crate::store::Store::renew`].
    pub async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let session = self.writer.link.session().await?;
        match session.execute(RENEW, &[&lease.epoch, &LEASE.as_secs_f64()]).await? {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }

    /// See [`crate::store::Store::release`].
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        self.writer.link.session().await?.execute(RELEASE, &[&lease.epoch]).await?;
        Ok(())
    }

    /// See [`crate::store::Store::set_upstream`].
    pub async fn set_upstream(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let session = self.writer.link.session().await?;
        match session.execute(SET_UPSTREAM, &[&lease.epoch, &upstream]).await? {
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
