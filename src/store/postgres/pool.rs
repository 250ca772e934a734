//! Connections that are lent, and come back only when they are sound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{
    PgArguments, PgConnection, PgListener, PgPool, PgPoolOptions, PgRow, Postgres,
};
use sqlx::query::{Map, Query};
use tokio::time::{Instant, timeout};

use super::error::{commit_error, has_ended_connection, query_error};
use super::server::{CONNECT_TIMEOUT, Server};
use crate::store::StoreError;

/// How long a request may wait while all connections are in use: as long as one may be.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that has not answered for so long has vanished without a word: it gives up by itself what
/// takes 30 s to read, or 20 s to lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// For every connection that reads. Plans are made once and kept, though they are made when the
/// tables may still be small or without statistics: there must be no choice but the index that
/// the statement was written for. Compiling such statements costs more than running them.
pub(super) const READING: &str = "
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_sort = off;
    SET jit = off;
    SET default_transaction_read_only = on;
    SET statement_timeout = '30s'";

/// For every connection that writes. As for those that read, plans must not depend on statistics. A follower
/// that is frozen in the middle of a transaction keeps others out no longer than its lease.
pub(super) const WRITING: &str = "
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET jit = off;
    SET lock_timeout = '20s';
    SET idle_in_transaction_session_timeout = '10s'";

/// Connections of one kind, made when they are first needed and again after they have broken.
pub(super) struct Pool {
    server: Arc<Server>,
    pool: PgPool,
    /// Requests that wait for a connection.
    waiting: AtomicUsize,
}

/// One request that waits, until it does no more.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn on(waiting: &AtomicUsize) -> Waiting<'_> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// At most `size` connections, each of which begins with `settings`, which is SQL. None is made yet.
    pub(super) fn new(server: &Arc<Server>, settings: &'static str, size: u32) -> Pool {
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(CONNECT_TIMEOUT)
            // What is prepared on a connection stays: a connection lives until it breaks.
            .idle_timeout(None)
            .max_lifetime(None)
            // Asking a connection whether it is alive takes as long as asking it what is to be asked.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    sqlx::raw_sql(settings).execute(connection).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(server.options().clone());
        Pool { server: server.clone(), pool, waiting: AtomicUsize::new(0) }
    }

    /// Listens to what is notified on a channel, on a connection of this pool.
    pub(super) async fn listen(&self, channel: &str) -> sqlx::Result<PgListener> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.eager_reconnect(false);
        listener.listen(channel).await?;
        Ok(listener)
    }

    /// Where its connections lead to.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Whether it is to be found out whether the server is there.
    pub(super) fn is_server_sought(&self) -> bool {
        self.server.is_suspected()
    }

    /// Requests that wait for a connection.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Connections that are open, and how many of them nobody uses.
    pub(super) fn open_and_idle(&self) -> (usize, usize) {
        (self.pool.size() as usize, self.pool.num_idle())
    }

    /// A connection that nobody else uses. While the server is away this fails at once.
    pub(super) async fn lend(&self) -> Result<Lent, StoreError> {
        let connection = match self.pool.try_acquire() {
            Some(connection) => connection,
            None => self.acquire().await?,
        };
        Ok(Lent {
            connection,
            server: self.server.clone(),
            under_way: false,
            in_transaction: false,
        })
    }

    async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        let _waiting = Waiting::on(&self.waiting);
        let begun = Instant::now();
        loop {
            self.server.is_there().await?;
            match self.pool.acquire().await {
                Ok(connection) => return Ok(connection),
                Err(sqlx::Error::PoolTimedOut) if begun.elapsed() >= BUSY_TIMEOUT => {
                    let seconds = BUSY_TIMEOUT.as_secs();
                    let reason = format!("all connections have been in use for {seconds} s");
                    return Err(StoreError::Unavailable(reason));
                }
                // All are in use, or the server does not answer: that is found out first.
                Err(sqlx::Error::PoolTimedOut) => self.server.suspect(),
                Err(error) => {
                    self.server.suspect();
                    return Err(self.server.connect_error(error));
                }
            }
        }
    }

    /// All rows of a query.
    pub(super) async fn all<O, F>(&self, query: Rows<F>) -> Result<Vec<O>, StoreError>
    where
        F: FnMut(PgRow) -> sqlx::Result<O> + Send,
        O: Send + Unpin,
    {
        self.lend().await?.all(query).await
    }

    /// The first row of a query, if there is one.
    pub(super) async fn first<O, F>(&self, query: Rows<F>) -> Result<Option<O>, StoreError>
    where
        F: FnMut(PgRow) -> sqlx::Result<O> + Send,
        O: Send + Unpin,
    {
        self.lend().await?.first(query).await
    }
}

/// A checked query that returns rows.
pub(super) type Rows<F> = Map<'static, Postgres, F, PgArguments>;

/// A checked statement that returns none.
pub(super) type Statement = Query<'static, Postgres, PgArguments>;

/// A connection that is lent. Dropped at rest it goes back to its pool. Dropped in the middle of
/// something, of a transaction too, or after it has broken, it is closed, and the server rolls back.
pub(super) struct Lent {
    connection: PoolConnection<Postgres>,
    server: Arc<Server>,
    /// Something was asked that is not answered to its end.
    under_way: bool,
    /// There was a BEGIN that no COMMIT has ended.
    in_transaction: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.under_way || self.in_transaction {
            self.connection.close_on_drop();
        }
    }
}

impl Lent {
    /// All rows of a query.
    pub(super) async fn all<O, F>(&mut self, query: Rows<F>) -> Result<Vec<O>, StoreError>
    where
        F: FnMut(PgRow) -> sqlx::Result<O> + Send,
        O: Send + Unpin,
    {
        let answer = within(query.fetch_all(self.begun())).await;
        self.ended(answer).map_err(query_error)
    }

    /// The first row of a query, if there is one.
    pub(super) async fn first<O, F>(&mut self, query: Rows<F>) -> Result<Option<O>, StoreError>
    where
        F: FnMut(PgRow) -> sqlx::Result<O> + Send,
        O: Send + Unpin,
    {
        let answer = within(query.fetch_optional(self.begun())).await;
        self.ended(answer).map_err(query_error)
    }

    /// Rows one after the other. The connection is closed unless [`Lent::ended`] is told that all
    /// were read.
    pub(super) fn stream<'a, O, F>(&'a mut self, query: Rows<F>) -> BoxStream<'a, sqlx::Result<O>>
    where
        F: FnMut(PgRow) -> sqlx::Result<O> + Send + 'a,
        O: Send + Unpin + 'a,
    {
        query.fetch(self.begun())
    }

    /// Number of rows that a statement changed.
    pub(super) async fn execute(&mut self, change: Statement) -> Result<u64, StoreError> {
        let answer = within(change.execute(self.begun())).await;
        self.ended(answer).map(|done| done.rows_affected()).map_err(query_error)
    }

    /// Runs SQL without parameters.
    pub(super) async fn script(&mut self, sql: &'static str) -> Result<(), StoreError> {
        let answer = within(sqlx::raw_sql(sql).execute(self.begun())).await;
        self.ended(answer).map(drop).map_err(query_error)
    }

    /// Begins a transaction; `sql` is BEGIN and what is set for it.
    pub(super) async fn begin(&mut self, sql: &'static str) -> Result<(), StoreError> {
        self.in_transaction = true;
        self.script(sql).await
    }

    /// Ends the transaction with COMMIT.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        let answer = within(sqlx::raw_sql("COMMIT").execute(self.begun())).await;
        self.ended(answer).map_err(commit_error)?;
        self.in_transaction = false;
        Ok(())
    }

    /// The connection, for something that [`Lent::ended`] is told the end of.
    pub(super) fn begun(&mut self) -> &mut PgConnection {
        self.under_way = true;
        &mut self.connection
    }

    /// Takes note of how something ended.
    pub(super) fn ended<T>(&mut self, answer: sqlx::Result<T>) -> sqlx::Result<T> {
        self.under_way = answer.as_ref().is_err_and(has_ended_connection);
        if self.under_way {
            self.server.suspect();
        }
        answer
    }
}

/// What the server answers, unless it has vanished.
pub(super) async fn within<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| {
        let seconds = ANSWER_TIMEOUT.as_secs();
        let reason = format!("the server has not answered for {seconds} s");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, reason).into())
    })
}
