//! Where the server is, and whether it is there.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use url::Url;

use super::error::connect_error;
use crate::store::StoreError;

/// How long a request may wait for a connection to be made; more and its client is better told.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Wait after the first failed attempt, doubled up to [`LONGEST_BACK_OFF`]. Requests in between
/// are told at once that the database is away.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// So that a database that is back is noticed within seconds.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// What `sslmode` may say, from no encryption to a server that has proved its name.
const SSL_MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// The setting that names a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// Where the log is.
    Database,
    /// A hot standby of it. Whether it is there is watched, and told, by who reads from it.
    ReadDatabase,
}

impl Setting {
    const fn name(self) -> &'static str {
        match self {
            Setting::Database => "--database",
            Setting::ReadDatabase => "--read-database",
        }
    }
}

/// A Postgres server, and whether it was there when last asked.
pub(super) struct Server {
    setting: Setting,
    options: PgConnectOptions,
    /// A connection has broken or could not be made, and none has been made since.
    suspected: AtomicBool,
    absence: Mutex<Absence>,
}

#[derive(Default)]
struct Absence {
    /// Attempts that have failed since the last one that did not.
    failures: u32,
    /// No attempt before this time, and why the last one failed.
    pause: Option<(Instant, StoreError)>,
}

impl Server {
    /// Reads a `postgres://` URL.
    pub(super) fn new(url: &str, setting: Setting) -> Result<Server, StoreError> {
        let options = options(url, setting.name())?
            .disable_statement_logging()
            // A pooler between us and the server may not know this setting; we read no such numbers.
            .extra_float_digits(None);
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("plc-replica"),
        };
        Ok(Server {
            setting,
            options,
            suspected: AtomicBool::new(false),
            absence: Mutex::default(),
        })
    }

    /// The same server, of which nothing is suspected.
    pub(super) fn anew(&self) -> Server {
        Server {
            setting: self.setting,
            options: self.options.clone(),
            suspected: AtomicBool::new(false),
            absence: Mutex::default(),
        }
    }

    /// How connections are made.
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// One attempt to connect.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        match timeout(CONNECT_TIMEOUT, self.options.connect()).await {
            Ok(connection) => connection.map_err(|error| self.connect_error(error)),
            Err(_) => {
                let seconds = CONNECT_TIMEOUT.as_secs();
                Err(self.named_in(StoreError::Unavailable(format!("no answer within {seconds} s"))))
            }
        }
    }

    /// What an error of connecting means, with where that was tried.
    pub(super) fn connect_error(&self, error: sqlx::Error) -> StoreError {
        self.named_in(connect_error(error, self.setting.name()))
    }

    fn named_in(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Unavailable(reason) => StoreError::Unavailable(format!(
                "no connection to {}: {reason}; see whether the server runs there, or name another one with {}",
                self.place(),
                self.setting.name()
            )),
            error => error,
        }
    }

    /// Which database on which server, without user and password.
    pub(super) fn place(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        let port = options.get_port();
        match options.get_socket() {
            Some(folder) => format!("{database} in {} (port {port})", folder.display()),
            None => format!("{database} at {}:{port}", options.get_host()),
        }
    }

    /// To be called when a connection broke or could not be made: before anybody waits for another one
    /// it is found out whether the server is there.
    pub(super) fn suspect(&self) {
        self.suspected.store(true, Ordering::Release);
    }

    /// Whether that has not been found out yet.
    pub(super) fn is_suspected(&self) -> bool {
        self.suspected.load(Ordering::Acquire)
    }

    /// Fails at once while the server is away; one caller in each back-off makes an attempt. That the
    /// server is away, and that it is back, is logged once.
    pub(super) async fn is_there(&self) -> Result<(), StoreError> {
        if !self.is_suspected() {
            return Ok(());
        }
        let mut absence = self.absence.lock().await;
        if !self.is_suspected() {
            return Ok(());
        }
        if let Some((until, reason)) = &absence.pause
            && Instant::now() < *until
        {
            return Err(reason.clone());
        }
        match self.connect().await {
            Ok(connection) => {
                if let Some((_, reason)) = &absence.pause {
                    self.say_that_it_is_back(reason);
                }
                *absence = Absence::default();
                self.suspected.store(false, Ordering::Release);
                // Whether it hears that we leave makes no difference.
                let _ = connection.close().await;
                Ok(())
            }
            Err(error) => {
                if absence.failures == 0 {
                    self.say_that_it_is_away(&error);
                }
                let doubled = FIRST_BACK_OFF.saturating_mul(1 << absence.failures.min(10));
                absence.failures += 1;
                absence.pause =
                    Some((Instant::now() + doubled.min(LONGEST_BACK_OFF), error.clone()));
                Err(error)
            }
        }
    }

    fn say_that_it_is_away(&self, error: &StoreError) {
        match (self.setting, error) {
            (Setting::ReadDatabase, _) => {}
            (_, StoreError::Unavailable(_)) => {
                tracing::warn!("{error}; trying again until it is back");
            }
            _ => tracing::warn!("{error}; trying again until it lets us in"),
        }
    }

    fn say_that_it_is_back(&self, reason: &StoreError) {
        match (self.setting, reason) {
            (Setting::ReadDatabase, _) => {}
            (_, StoreError::Unavailable(_)) => tracing::info!("the database is back"),
            _ => tracing::info!("the database lets us in again"),
        }
    }
}

/// Where the environment may name the host.
const HOST_VARIABLES: [&str; 2] = ["PGHOST", "PGHOSTADDR"];

/// Whether a URL says where the server is, in its usual place or in its query, where the folder of a socket can
/// stand.
fn names_host(url: &Url) -> bool {
    let in_query = |(key, value): (Cow<'_, str>, Cow<'_, str>)| {
        matches!(&*key, "host" | "hostaddr") && !value.is_empty()
    };
    url.host_str().is_some_and(|host| !host.is_empty()) || url.query_pairs().any(in_query)
}

/// What the URL says; what the environment (`PGHOST` and others) and `~/.pgpass` say where it says
/// nothing.
fn options(url: &str, setting: &str) -> Result<PgConnectOptions, StoreError> {
    let not_a_url = |reason: String| {
        StoreError::Unusable(format!(
            "the setting {setting} is not a Postgres URL: {reason}; \
             it looks like postgres://USER:PASSWORD@HOST:5432/NAME, or postgres:///NAME?host=FOLDER with the \
             folder of a socket"
        ))
    };
    let parsed = Url::parse(url).map_err(|error| not_a_url(error.to_string()))?;
    if !matches!(parsed.scheme(), "postgres" | "postgresql") {
        return Err(not_a_url(format!("it begins with {}://", parsed.scheme())));
    }
    if !names_host(&parsed) && HOST_VARIABLES.iter().all(|name| std::env::var_os(name).is_none()) {
        return Err(not_a_url("it names no host".to_owned()));
    }
    for (key, value) in parsed.query_pairs() {
        match &*key {
            "sslmode" if !SSL_MODES.contains(&&*value) => {
                return Err(StoreError::Unusable(format!(
                    "the setting {setting} has sslmode={value}; it takes {}",
                    SSL_MODES.join(", ")
                )));
            }
            // Otherwise the first connection would say that something was not found, but not what.
            "sslrootcert" => {
                if let Err(error) = std::fs::File::open(&*value) {
                    return Err(StoreError::Unusable(format!(
                        "the setting {setting} has sslrootcert={value}: {error}"
                    )));
                }
            }
            _ => {}
        }
    }
    PgConnectOptions::from_url(&parsed).map_err(|error| match error {
        sqlx::Error::Configuration(reason) => not_a_url(reason.to_string()),
        error => not_a_url(error.to_string()),
    })
}
