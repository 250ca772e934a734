//! The service as `serve` runs it, in this process: follower, server and what else works beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use did_plc::signature::{PlainVerifier, Verifier};
use plc_curve::{FastVerifier, Tables};
use plc_replica::audit::{Checker, Peer, Watch, WatchSettings};
use plc_replica::follow::{
    DoubtSettings, Follower, RereadingSettings, SwitchSettings, keep_claims_index,
};
use plc_replica::live::{Feed, Status};
use plc_replica::reads::Reads;
use plc_replica::serve::{self, ReadThrough, ServeSettings, ServeState};
use plc_replica::store::{Store, StoreError};
use plc_replica::upstream::{ExportClient, Limits};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What a plan sets otherwise than by default.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Lines of a page.
    pub page: usize,
    pub fast_signatures: bool,
    pub audit: bool,
    pub claims: bool,
    pub read_through: bool,
}

/// Requests a minute that an upstream is sent at most: the default of `serve`.
pub const REQUESTS_PER_MINUTE: u32 = 100;
/// Those of the audit: the default of `serve`.
const AUDIT_REQUESTS_PER_MINUTE: u32 = 12;
/// Streams go back to the beginning of any log.
const STREAM_CATCH_UP: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How long the end is waited for: as systemd does.
const GOODBYE: Duration = Duration::from_secs(90);
/// As `serve` waits for its database.
const PAUSE: Duration = Duration::from_secs(1);

/// A service that runs.
pub struct Service {
    follower: JoinHandle<Result<(), String>>,
    shutdown: CancellationToken,
    address: SocketAddr,
}

impl Service {
    /// Starts it on this database and these upstreams.
    pub fn start(settings: &Settings, database: &str, upstreams: &[String]) -> Service {
        let shutdown = CancellationToken::new();
        // As `serve` does it: who connects before the database is there waits.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let run = run(
            settings.clone(),
            database.to_owned(),
            upstreams.to_vec(),
            TcpListener::from_std(listener).unwrap(),
            shutdown.clone(),
        );
        Service { follower: tokio::task::spawn_local(run), shutdown, address }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has ended by itself, which it never may.
    pub fn has_ended(&self) -> bool {
        self.follower.is_finished()
    }

    /// Why it has ended by itself.
    pub async fn why(self) -> String {
        match self.follower.await {
            Ok(Ok(())) => "in order".to_owned(),
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        }
    }

    /// Drops what follows where it waits, as a crash does; the server is told to end.
    pub async fn crash(self) {
        self.follower.abort();
        let ended = self.follower.await;
        assert!(ended.is_err_and(|error| error.is_cancelled()), "it has ended before the crash");
        self.shutdown.cancel();
    }

    /// Ends it in order, and as a supervisor does where that takes too long.
    pub async fn end(mut self) {
        self.shutdown.cancel();
        match timeout(GOODBYE, &mut self.follower).await {
            Ok(ended) => ended.expect("it has panicked").expect("it ends in order"),
            Err(_) => self.follower.abort(),
        }
    }
}

async fn run(
    settings: Settings,
    database: String,
    upstreams: Vec<String>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let limits = Limits { page: settings.page, ..Limits::default() };
    let client = |url: &String| {
        ExportClient::new(url, REQUESTS_PER_MINUTE, "simulation", limits.clone()).unwrap()
    };
    let upstreams: Vec<ExportClient> = upstreams.iter().map(client).collect();
    let opening = open(&database, &upstreams);
    let Some(opened) = shutdown.run_until_cancelled(opening).await else { return Ok(()) };
    let (store, status) = opened?;
    let verifier: Arc<dyn Verifier> = match settings.fast_signatures {
        true => Arc::new(FastVerifier::new(Tables::On)),
        false => Arc::new(PlainVerifier),
    };
    let follower = Follower {
        store: store.clone(),
        upstreams,
        switching: SwitchSettings::default(),
        verifier: Arc::clone(&verifier),
        feed: Arc::new(Feed::new()),
        status: Arc::new(status),
        rereading: RereadingSettings::default(),
        doubts: DoubtSettings::default(),
        comes_first: false,
    };
    if settings.audit {
        let checker = Checker { store: store.clone(), verifier: Arc::clone(&verifier) };
        let peers = follower.upstreams.iter().cloned().map(Peer::Server).collect();
        let watching = WatchSettings::per_minute(AUDIT_REQUESTS_PER_MINUTE);
        let watch = Watch::new(checker, peers, Arc::clone(&follower.status), watching);
        tokio::spawn(watch.run(shutdown.clone()));
    }
    if settings.claims {
        let status = Arc::clone(&follower.status);
        tokio::spawn(keep_claims_index(store.clone(), status, shutdown.clone()));
    }
    let status = Arc::clone(&follower.status);
    let state = ServeState {
        reads: Arc::new(Reads::new(store.clone(), Arc::clone(&status), Vec::new())),
        store,
        feed: Arc::clone(&follower.feed),
        status,
        upstream: settings.read_through.then(|| {
            let (status, verifier) = (Arc::clone(&follower.status), Arc::clone(&verifier));
            Arc::new(ReadThrough::new(&follower.upstreams, &[], status, verifier))
        }),
        forward: None,
        verifier,
        settings: ServeSettings { stream_catch_up: STREAM_CATCH_UP, ..ServeSettings::default() },
    };
    let server = tokio::spawn(serve::run(listener, state, shutdown.clone()));
    follower.run(shutdown).await.map_err(|error| error.to_string())?;
    server.await.map_err(|error| error.to_string())
}

/// Opens the store, and waits for a database that is away.
async fn open(database: &str, upstreams: &[ExportClient]) -> Result<(Store, Status), String> {
    loop {
        let opened = async {
            let store = Store::open(database).await?;
            let bases = upstreams.iter().map(ExportClient::base);
            let status = Status::of_store(bases, &store).await?;
            Ok((store, status))
        };
        match opened.await {
            Ok(opened) => return Ok(opened),
            Err(StoreError::Unavailable(_)) => sleep(PAUSE).await,
            Err(error) => return Err(format!("at start: {error}")),
        }
    }
}
