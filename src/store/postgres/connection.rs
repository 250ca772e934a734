//! Connections to the server that come back by themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, RowStream, Statement};

use super::error::{connect_error, query_error};
use super::tls::Encryption;
use crate::store::StoreError;

/// How long a request may wait for a connection to be made; more and its client is better told.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Wait after the first failed attempt, doubled up to [`LONGEST_BACK_OFF`]. Requests in between
/// are told at once that the database is away.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// So that a database that is back is noticed within seconds.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
/// A peer that has vanished without a word is given up after this time without an answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the server is, and whether it was there when last asked.
#[derive(Debug)]
pub(super) struct Server {
    config: Config,
    encryption: Encryption,
    away: AtomicBool,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
}

impl Server {
    /// Reads a `postgres://` URL, with libpq's `sslmode` and `sslrootcert`.
    pub(super) fn new(url: &str) -> Result<Server, StoreError> {
        let (url, encryption) = Encryption::from_url(url)?;
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            let reason = reason.unwrap_or_else(|| error.to_string());
            StoreError::Unusable(format!(
                "the setting --database is not a Postgres URL: {reason}; \
                 it looks like postgres://USER:PASSWORD@HOST:5432/NAME"
            ))
        })?;
        config.ssl_mode(encryption.mode());
        if config.get_application_name().is_none() {
            config.application_name("plc-replica");
        }
        config.keepalives_idle(PEER_TIMEOUT).tcp_user_timeout(PEER_TIMEOUT);
        Ok(Server { config, encryption, away: AtomicBool::new(false), open: Arc::default() })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connects, applies `settings` (SQL) and prepares `statements`. That the server is away, and
    /// that it is back, is logged once for all connections.
    pub(super) async fn connect(
        &self,
        settings: &str,
        statements: &[&[&'static str]],
    ) -> Result<Session, StoreError> {
        let result = self.connect_once(settings, statements).await;
        match &result {
            Ok(_) if self.away.swap(false, Ordering::Relaxed) => {
                tracing::info!("the database is back");
            }
            Err(error) if !self.away.swap(true, Ordering::Relaxed) => {
                tracing::warn!("{error}; trying again until it is back");
            }
            _ => {}
        }
        result
    }

    /// The same, and nothing is logged.
    pub(super) async fn connect_once(
        &self,
        settings: &str,
        statements: &[&[&'static str]],
    ) -> Result<Session, StoreError> {
        let attempt = timeout(CONNECT_TIMEOUT, self.try_connect(settings, statements)).await;
        attempt.unwrap_or_else(|_| {
            let seconds = CONNECT_TIMEOUT.as_secs();
            Err(StoreError::Unavailable(format!("no connection within {seconds} s")))
        })
    }

    async fn try_connect(
        &self,
        settings: &str,
        statements: &[&[&'static str]],
    ) -> Result<Session, StoreError> {
        let client = match self.encryption.connector() {
            None => {
                let (client, connection) =
                    self.config.connect(NoTls).await.map_err(connect_error)?;
                tokio::spawn(drive(connection, Arc::clone(&self.open)));
                client
            }
            Some(connector) => {
                let (client, connection) =
                    self.config.connect(connector).await.map_err(connect_error)?;
                tokio::spawn(drive(connection, Arc::clone(&self.open)));
                client
            }
        };
        client.batch_execute(settings).await.map_err(query_error)?;
        let prepare = async |sql| Ok((sql, client.prepare(sql).await?));
        let statements =
            try_join_all(statements.iter().copied().flatten().map(|sql| prepare(*sql)))
                .await
                .map_err(query_error)?;
        Ok(Session { client, statements: statements.into_iter().collect() })
    }
}

/// Runs a connection to its end, which its client notices by itself.
async fn drive(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>>,
    open: Arc<AtomicUsize>,
) {
    open.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = connection.await {
        tracing::debug!("a connection to the database ended: {error}");
    }
    open.fetch_sub(1, Ordering::Relaxed);
}

/// A connection with its prepared statements. Requests are pipelined: any number may wait for
/// their answers at a time, which come in the order of the requests.
pub(super) struct Session {
    pub(super) client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Session {
    /// The prepared form of a statement that the session was made with.
    pub(super) fn statement(&self, sql: &'static str) -> Result<&Statement, StoreError> {
        self.statements.get(sql).ok_or_else(|| {
            StoreError::Unavailable(format!("a statement was never prepared: {sql}"))
        })
    }

    pub(super) async fn query(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StoreError> {
        self.client.query(self.statement(sql)?, parameters).await.map_err(query_error)
    }

    pub(super) async fn query_opt(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, StoreError> {
        self.client.query_opt(self.statement(sql)?, parameters).await.map_err(query_error)
    }

    /// Rows one after the other. Until the last one is read, all that is asked on this connection
    /// after it waits.
    pub(super) async fn stream(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<RowStream, StoreError> {
        let parameters = parameters.iter().copied();
        self.client.query_raw(self.statement(sql)?, parameters).await.map_err(query_error)
    }

    /// Number of rows that the statement changed.
    pub(super) async fn execute(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, StoreError> {
        self.client.execute(self.statement(sql)?, parameters).await.map_err(query_error)
    }
}

/// One place for a session, filled again when the session has broken.
pub(super) struct Link {
    server: Arc<Server>,
    settings: &'static str,
    statements: &'static [&'static [&'static str]],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    /// Attempts that have failed since the last one that did not.
    failures: u32,
    /// No attempt before this time, and why the last one failed.
    pause: Option<(Instant, StoreError)>,
}

impl Link {
    /// Not connected before it is first used.
    pub(super) fn new(
        server: Arc<Server>,
        settings: &'static str,
        statements: &'static [&'static [&'static str]],
    ) -> Link {
        Link { server, settings, statements, state: Mutex::default() }
    }

    /// The session, connecting if there is none. While the server is away, one request in each
    /// back-off waits for an attempt and the others fail at once.
    pub(super) async fn session(&self) -> Result<Arc<Session>, StoreError> {
        let mut state = self.state.lock().await;
        if let Some(session) = &state.session
            && !session.client.is_closed()
        {
            return Ok(session.clone());
        }
        state.session = None;
        if let Some((until, reason)) = &state.pause
            && Instant::now() < *until
        {
            return Err(reason.clone());
        }
        match self.server.connect(self.settings, self.statements).await {
            Ok(session) => {
                let session = Arc::new(session);
                *state = State { session: Some(session.clone()), ..State::default() };
                Ok(session)
            }
            Err(error) => {
                let doubled = FIRST_BACK_OFF.saturating_mul(1 << state.failures.min(10));
                state.failures += 1;
                state.pause = Some((Instant::now() + doubled.min(LONGEST_BACK_OFF), error.clone()));
                Err(error)
            }
        }
    }

    /// Whether somebody is using the session, or it is being made.
    pub(super) fn is_busy(&self) -> bool {
        self.state.try_lock().map_or(true, |state| {
            state.session.as_ref().is_some_and(|session| Arc::strong_count(session) > 1)
        })
    }

    /// The session, which then is not shared until it is given back: if it is dropped, the server
    /// rolls back what was under way on it.
    pub(super) async fn take(&self) -> Result<Arc<Session>, StoreError> {
        let session = self.session().await?;
        self.state.lock().await.session = None;
        Ok(session)
    }

    pub(super) async fn give_back(&self, session: Arc<Session>) {
        self.state.lock().await.session = Some(session);
    }
}
