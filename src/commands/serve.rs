//! `plc-replica serve`: follow an upstream and serve what it has.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::greeting::Greeting;
use crate::audit::{Checker, Peer, Watch, WatchSettings};
use crate::follow::{
    DoubtSettings, Follower, RereadingSettings, SwitchSettings, keep_claims_index,
};
use crate::live::{Feed, Role, Status};
use crate::publish::{self, KeepSettings};
use crate::reads::{self, Reads};
use crate::serve::{self, Caching, ReadThrough, ServeSettings, ServeState};
use crate::store::{Standby, Store, StoreError};
use crate::upstream::{ExportClient, Limits};
use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Follow a directory, verify every operation, and serve the log (the default).
///
/// Reads the directory's export from where the database ends, then its live stream, and answers
/// what the directory answers on the same paths. SIGTERM and SIGINT end it in order.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
    #[command(flatten)]
    reads: super::reads::ReadArgs,
    /// Directory or replica to follow: an http:// or https:// URL. Given several times, or with commas between the
    /// URLs: others with the same log, in order of preference. The first that is well is followed, and the next one while
    /// it is away, behind or refuted; one with other numbers, or none, by time while there is no other. `--upstream-requests-per-minute` is for each.
    #[arg(
        long,
        env = "PLC_UPSTREAM",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "https://plc.directory"
    )]
    upstream: Vec<String>,
    #[command(flatten)]
    request_rate: super::RequestRate,
    /// Whether this process takes operations in. Of those on one database one does at a time; the others, which read, serve all
    /// the same as it does. `auto`: when nobody else does; it takes over from one that has died, and leaves the lease for two
    /// seconds to one that comes back. `on`: it comes first: it does not wait these two seconds, and warns while another one
    /// follows. `off`: never; it writes nothing into the database, for which the right to read is enough.
    #[arg(
        long,
        env = "PLC_FOLLOW",
        value_name = "on|off|auto",
        default_value = "auto",
        value_parser = clap::builder::PossibleValuesParser::new(["on", "off", "auto"])
    )]
    follow: String,
    /// Address and port to serve on.
    #[arg(
        long,
        env = "PLC_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:2582",
        value_parser = super::values::socket_address
    )]
    listen: SocketAddr,
    /// Address and port to serve `/metrics` on; none without it.
    #[arg(
        long,
        env = "PLC_METRICS_LISTEN",
        value_name = "ADDRESS",
        value_parser = super::values::socket_address
    )]
    metrics_listen: Option<SocketAddr>,
    /// `/_ready` answers 200 only while the log is less than this behind the upstream.
    #[arg(long, env = "PLC_READY_LAG_SECONDS", value_name = "SECONDS", default_value_t = 60)]
    ready_lag_seconds: u64,
    /// How long it is served on after SIGTERM or SIGINT, while `/_ready` says 503 already and connections are not kept: as
    /// long as a proxy takes to see that. Then stream clients are told, and what is in hand is answered, within 8 seconds.
    /// Another process may follow as soon as the signal has come.
    #[arg(long, env = "PLC_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 0)]
    drain_seconds: u64,
    /// A stream client whose next operation is older than this is closed with `OutdatedCursor`.
    #[arg(
        long,
        env = "PLC_STREAM_CATCH_UP_SECONDS",
        value_name = "SECONDS",
        default_value_t = 7 * 24 * 60 * 60
    )]
    stream_catch_up_seconds: u64,
    /// Identities a minute that are compared with the upstream in the background; 0 for none. Most
    /// take one request, and all requests but those for pages share a quarter of the upstream's
    /// budget.
    #[arg(
        long,
        env = "PLC_AUDIT_REQUESTS_PER_MINUTE",
        value_name = "REQUESTS",
        default_value_t = 12
    )]
    audit_requests_per_minute: u32,
    /// The log is read a second time behind the follower: each page at least so many minutes after it was
    /// read first. What is missing here is taken in, what the upstream states otherwise is recorded.
    #[arg(
        long,
        env = "PLC_SECOND_READING_MINUTES",
        value_name = "MINUTES",
        default_value_t = 60.0,
        value_parser = super::values::not_negative
    )]
    second_reading_minutes: f64,
    /// In how many days the whole log is read again, over and over; 0 for never. It takes a request
    /// for 1,000 operations, out of the quarter of the upstream's budget that is not for following.
    #[arg(
        long,
        env = "PLC_REREADING_DAYS",
        value_name = "DAYS",
        default_value_t = 30.0,
        value_parser = super::values::not_negative
    )]
    rereading_days: f64,
    /// Other directories or replicas, with commas between their URLs, that are never followed. They are asked for the
    /// audit log of an identity when something of it is lacking and no upstream has it, and, with read-through, of one
    /// that no upstream knows, as those of a test network. What they answer is verified like everything else. Each of
    /// them is sent a quarter of `--upstream-requests-per-minute` at most.
    #[arg(
        long,
        env = "PLC_ALSO_ASK",
        hide_env_values = true,
        value_name = "URLS",
        value_delimiter = ','
    )]
    also_ask: Vec<String>,
    /// Ask the upstream for an identity that is not here, and where a client asks for it with
    /// `Cache-Control: no-cache`. What it answers is verified in full, and not stored.
    #[arg(
        long,
        env = "PLC_READ_THROUGH",
        value_name = "on|off",
        default_value = "on",
        action = clap::ArgAction::Set,
        value_parser = super::values::switch()
    )]
    read_through: bool,
    /// Keep an index of claims, for `/_lookup` and the explorer's search: which identities ever named
    /// a handle, a host or a key. It is built beside the follower from what is stored, and takes about
    /// a third more room on SQLite, and as much again on Postgres. Without the setting it stays as it
    /// is, and is completed when it is set again.
    #[arg(
        long,
        env = "PLC_INDEX",
        value_name = "on|off",
        default_value = "off",
        default_missing_value = "on",
        num_args = 0..=1,
        action = clap::ArgAction::Set,
        value_parser = super::values::switch()
    )]
    index: bool,
    /// Keep the log in this folder as a snapshot, for a web server to publish (docs/SNAPSHOTS.md); nowhere without it. It
    /// begins when the log has been read to its end once.
    #[arg(long, env = "PLC_SNAPSHOTS", value_name = "DIR")]
    snapshots: Option<PathBuf>,
    /// Minutes between two looks at what is new for it. The last file, which is not full, gives way to a longer one each
    /// time, and one of the others is compared with the log.
    #[arg(
        long,
        env = "PLC_SNAPSHOT_MINUTES",
        value_name = "MINUTES",
        default_value_t = 10.0,
        value_parser = super::values::not_negative
    )]
    snapshot_minutes: f64,
    /// Seconds for which a cache before the replica may give what it said of an identity without asking again, and as
    /// long again while it asks (`max-age`, `stale-while-revalidate`). With 0 it asks every time, which costs a 304. An
    /// answer from a cache keeps its `PLC-As-Of`.
    #[arg(long, env = "PLC_CACHE_SECONDS", value_name = "SECONDS", default_value_t = 0)]
    cache_seconds: u32,
    /// Seconds for which it may go on with that while the replica cannot be reached (`stale-if-error`). It takes
    /// `--cache-seconds`.
    #[arg(long, env = "PLC_CACHE_ERROR_SECONDS", value_name = "SECONDS", default_value_t = 86_400)]
    cache_error_seconds: u32,
    #[command(flatten)]
    records: super::KeptRecords,
    #[command(flatten)]
    limits: super::limits::LimitArgs,
    #[command(flatten)]
    writes: super::writes::WriteArgs,
    #[command(flatten)]
    signatures: super::Signatures,
    #[command(flatten)]
    logging: super::logging::Logging,
}

/// First and longest pause while the database cannot be reached at start.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Seconds of a day.
const DAY: f64 = 24.0 * 60.0 * 60.0;

impl Args {
    /// Starts logging as it is asked for.
    pub fn start_logging(&self) {
        self.logging.start();
    }

    /// Who can be followed, in order of preference.
    fn upstreams(&self) -> anyhow::Result<Vec<ExportClient>> {
        let clients = self.clients("--upstream", &self.upstream)?;
        let bases: Vec<&str> = clients.iter().map(ExportClient::base).collect();
        if let Some(twice) = bases.iter().enumerate().find(|(at, base)| bases[..*at].contains(base))
        {
            anyhow::bail!("--upstream: {} is given twice", twice.1);
        }
        Ok(clients)
    }

    /// Each with a budget of its own.
    fn clients(&self, flag: &str, urls: &[String]) -> anyhow::Result<Vec<ExportClient>> {
        let client = |url: &String| {
            let (rate, limits) = (self.request_rate.per_minute, Limits::default());
            ExportClient::new(url, rate, super::USER_AGENT, limits)
                .map_err(|error| anyhow::anyhow!("{flag}: {error}"))
        };
        urls.iter().map(client).collect()
    }

    fn rereading(&self) -> RereadingSettings {
        let days = self.rereading_days;
        RereadingSettings {
            second_after: Duration::from_secs_f64(self.second_reading_minutes * 60.0),
            round: (days > 0.0).then(|| Duration::from_secs_f64(days * DAY)),
        }
    }
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let upstreams = args.upstreams()?;
    let others = args.clients("--also-ask", &args.also_ask)?;
    if let Some(address) = args.metrics_listen {
        super::metrics::listen(address).await?;
    }
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| super::failure::cannot_listen("--listen", args.listen))?;
    let shutdown = on_signals()?;
    outlive_full_files()?;

    let bases: Vec<&str> = upstreams.iter().map(ExportClient::base).collect();
    let opened = open(&args, &bases, &shutdown).await?;
    let Some(Opened { store, status, reads, standbys }) = opened else {
        return Ok(ExitCode::SUCCESS);
    };
    args.records.limit(&store);
    let database = super::settings::without_password(&args.database.url);
    if args.logging.is_for_a_person() {
        let greeting = Greeting {
            listen: listener.local_addr()?,
            database: &database,
            operations: store.statistics().await?.operations,
            directories: &bases,
            caught_up: status.caught_up(),
            may_follow: args.follow != "off",
        };
        // That nobody reads it is no reason not to serve.
        let _ = io::stderr().write_all(greeting.lines().as_bytes());
    }
    tracing::info!(
        listen = %args.listen,
        upstream = bases.join(", "),
        database,
        follow = args.follow,
        cursor = status.sequence(),
        "serving"
    );
    let follower = Follower {
        status,
        feed: Arc::new(Feed::new()),
        verifier: args.signatures.verifier(),
        upstreams,
        switching: SwitchSettings::default(),
        store,
        rereading: args.rereading(),
        doubts: DoubtSettings { others, ..DoubtSettings::default() },
        comes_first: args.follow == "on",
    };
    let most = args.reads.most();
    // Until nothing is served any more.
    let ending = CancellationToken::new();
    let watching = tokio::spawn(reads::watch(Arc::clone(&reads), standbys, most, ending.clone()));
    let worked = work(args, follower, reads, listener, shutdown).await;
    ending.cancel();
    watching.await?;
    worked?;
    tracing::info!("ended in order");
    Ok(ExitCode::SUCCESS)
}

/// Serves, and beside that follows, compares with the upstream, and keeps the index and the snapshot, until the shutdown.
async fn work(
    args: Args,
    follower: Follower,
    reads: Arc<Reads>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut beside = JoinSet::new();
    let (status, feed) = (Arc::clone(&follower.status), Arc::clone(&follower.feed));
    let settings = WatchSettings::per_minute(args.audit_requests_per_minute);
    let watching = watch(&follower);
    beside.spawn(while_following(Arc::clone(&status), shutdown.clone(), move |ending| {
        watching(settings).run(ending)
    }));
    if args.index {
        let (store, of_store) = (follower.store.clone(), Arc::clone(&status));
        beside.spawn(while_following(Arc::clone(&status), shutdown.clone(), move |ending| {
            keep_claims_index(store.clone(), Arc::clone(&of_store), ending)
        }));
    }
    if let Some(folder) = args.snapshots.clone() {
        let every = Duration::from_secs_f64(args.snapshot_minutes * 60.0);
        let settings = KeepSettings { folder, every };
        let (store, status) = (follower.store.clone(), Arc::clone(&status));
        beside.spawn(publish::keep(store, status, settings, shutdown.clone()));
    }
    let follows = args.follow != "off";
    beside.spawn(serve::run(listener, state(args, &follower, reads)?, shutdown.clone()));
    let followed = match follows {
        true => follower.run(shutdown.clone()).await,
        false => {
            shutdown.cancelled().await;
            Ok(())
        }
    };
    // What is served until the end is what another process takes in.
    status.set_reading();
    feed.wake();
    // Where following has ended for good there is nothing to serve for.
    shutdown.cancel();
    while let Some(ended) = beside.join_next().await {
        ended?;
    }
    Ok(followed?)
}

/// Does something while this process follows, and anew when it follows again, until the shutdown or until it has nothing more
/// to do.
async fn while_following<W: Future<Output = ()>>(
    status: Arc<Status>,
    shutdown: CancellationToken,
    work: impl Fn(CancellationToken) -> W,
) {
    let mut roles = status.roles();
    loop {
        let follows = async { roles.wait_for(|role| *role == Role::Follower).await.is_ok() };
        if shutdown.run_until_cancelled(follows).await != Some(true) {
            return;
        }
        let ending = shutdown.child_token();
        let mut working = pin!(work(ending.clone()));
        tokio::select! {
            () = &mut working => return,
            _ = roles.wait_for(|role| *role == Role::Reader) => {}
        }
        ending.cancel();
        working.await;
    }
}

/// What compares the log with the upstream in the background.
fn watch(follower: &Follower) -> impl Fn(WatchSettings) -> Watch + use<> {
    let (store, verifier) = (follower.store.clone(), Arc::clone(&follower.verifier));
    let (upstreams, status) = (follower.upstreams.clone(), Arc::clone(&follower.status));
    move |settings| {
        let checker = Checker { store: store.clone(), verifier: Arc::clone(&verifier) };
        let upstreams = upstreams.iter().cloned().map(Peer::Server).collect();
        Watch::new(checker, upstreams, Arc::clone(&status), settings)
    }
}

/// What the server answers from.
fn state(args: Args, follower: &Follower, reads: Arc<Reads>) -> anyhow::Result<ServeState> {
    let read_through = args.read_through.then(|| {
        let (status, verifier) = (Arc::clone(&follower.status), Arc::clone(&follower.verifier));
        let others = &follower.doubts.others;
        Arc::new(ReadThrough::new(&follower.upstreams, others, status, verifier))
    });
    Ok(ServeState {
        store: follower.store.clone(),
        reads,
        feed: Arc::clone(&follower.feed),
        status: Arc::clone(&follower.status),
        verifier: Arc::clone(&follower.verifier),
        upstream: read_through,
        // Writes go to the one that is preferred, whoever is followed meanwhile.
        forward: match follower.upstreams.first() {
            Some(preferred) => args.writes.forward(preferred)?,
            None => None,
        },
        settings: ServeSettings {
            ready_lag: Duration::from_secs(args.ready_lag_seconds),
            stream_catch_up: Duration::from_secs(args.stream_catch_up_seconds),
            caching: Caching {
                fresh: Duration::from_secs(args.cache_seconds.into()),
                unreachable: Duration::from_secs(args.cache_error_seconds.into()),
            },
            drain: Duration::from_secs(args.drain_seconds),
            limits: args.limits.into(),
        },
    })
}

/// What was opened.
struct Opened {
    store: Store,
    status: Arc<Status>,
    reads: Arc<Reads>,
    standbys: Vec<Standby>,
}

/// Opens the store and reads how far it is, waiting for a database that is not there yet; `None` when asked to end.
async fn open(
    args: &Args,
    upstreams: &[&str],
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Opened>> {
    let mut pause = PAUSES.0;
    let mut said = false;
    loop {
        match open_once(args, upstreams).await {
            Ok(opened) => {
                if said {
                    tracing::info!("the database is there");
                }
                return Ok(Some(opened));
            }
            Err(StoreError::Unavailable(reason)) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        "the database is unavailable: {reason}; retried until it is there"
                    );
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSES.1),
        }
    }
}

async fn open_once(args: &Args, upstreams: &[&str]) -> Result<Opened, StoreError> {
    let url = &args.database.url;
    let store = match args.follow == "off" {
        true => Store::open_to_read(url).await?,
        false => Store::open(url).await?,
    };
    let status = Arc::new(Status::of_store(upstreams.iter().copied(), &store).await?);
    let (reads, standbys) = args.reads.open(&store, &status).await?;
    Ok(Opened { store, status, reads, standbys })
}

/// Has the process go on when a file may not become larger: writing fails then, as on a full disk, which is waited
/// out while serving goes on. Unless somebody takes the signal it ends the process.
fn outlive_full_files() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    /// The number of the signal on all systems that this program runs on.
    const SIGXFSZ: i32 = 25;
    // Taken from here on, though nobody waits for it.
    signal(SignalKind::from_raw(SIGXFSZ)).map(drop)?;
    Ok(())
}

/// Cancelled by SIGTERM and SIGINT.
fn on_signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: finishing what is in hand");
        cancelled.cancel();
    });
    Ok(shutdown)
}
