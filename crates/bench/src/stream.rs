//! Clients of the live stream, and how long an operation takes from the upstream through the
//! replica to each of them. Upstream and clients are one process, so that one clock measures.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::child::{health, wait_until};
use crate::log::Log;
use crate::report::quantile;
use crate::socket::Client;
use crate::upstream::Upstream;

/// How long the replica may take to catch up before the clients come.
const CATCH_UP: Duration = Duration::from_secs(600);
/// How long the last operation may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
/// After this a replica with enough time has turned from pages to the stream.
const SETTLE: Duration = Duration::from_secs(3);

/// Measure the stream of a replica that follows this process; prints latencies as JSON.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The log.
    #[arg(long)]
    log: PathBuf,
    /// How many operations there are at first.
    #[arg(long)]
    operations: u64,
    /// Address and port where the replica's upstream is to be.
    #[arg(long)]
    upstream: SocketAddr,
    /// Address and port of the replica.
    #[arg(long)]
    replica: SocketAddr,
    /// Clients.
    #[arg(long, default_value_t = 1_000)]
    clients: usize,
    /// Operations that are added each second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Operations that are added in all.
    #[arg(long, default_value_t = 4_000)]
    added: u64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub p50_milliseconds: f64,
    pub p99_milliseconds: f64,
    pub longest_milliseconds: f64,
    /// Messages that all clients received.
    pub messages: u64,
    /// Clients that missed one, got one twice, or were sent away.
    pub failed_clients: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = Log::open(&args.log)?;
    ensure!(
        log.operations() >= args.operations + args.added,
        "--log has {} operations, --operations and --added ask for more",
        log.operations()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(measure(args, log))?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args, log: Log) -> anyhow::Result<Outcome> {
    let upstream = Upstream::new(log, Some(args.operations));
    let serving = tokio::spawn(upstream.clone().serve(args.upstream));
    let (replica, operations) = (args.replica, args.operations);
    let caught_up = tokio::task::spawn_blocking(move || {
        let there = || health(replica).is_ok_and(|health| health.sequence >= operations);
        wait_until(CATCH_UP, || Ok(there()))
    });
    tokio::select! {
        served = serving => bail!("the upstream has ended: {served:?}"),
        caught_up = caught_up => caught_up??,
    };
    tokio::time::sleep(SETTLE).await;

    let clock = Arc::new(Clock::new(args.operations + 1, args.added));
    let mut clients = JoinSet::new();
    for _ in 0..args.clients {
        let client = Client::connect(replica, None).await?;
        clients.spawn(follow(client, Arc::clone(&clock)));
    }
    upstream.grow(args.rate, args.added, |sequence| clock.set_sent(sequence)).await;
    Ok(collect(clients, args.clients).await)
}

/// Waits for the clients, though not for ever.
async fn collect(mut clients: JoinSet<anyhow::Result<Vec<u32>>>, expected: usize) -> Outcome {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut microseconds = Vec::new();
    let mut complete = 0;
    while let Ok(Some(client)) = tokio::time::timeout_at(deadline, clients.join_next()).await {
        match client {
            Ok(Ok(latencies)) => {
                complete += 1;
                microseconds.extend(latencies);
            }
            Ok(Err(error)) => eprintln!("a client of the stream: {error:#}"),
            Err(error) => eprintln!("a client of the stream: {error}"),
        }
    }
    microseconds.sort_unstable();
    let milliseconds = |share| f64::from(quantile(&microseconds, share)) / 1e3;
    Outcome {
        p50_milliseconds: milliseconds(0.5),
        p99_milliseconds: milliseconds(0.99),
        longest_milliseconds: milliseconds(1.0),
        messages: microseconds.len() as u64,
        failed_clients: expected - complete,
    }
}

/// When each operation was added.
struct Clock {
    begun: Instant,
    first: u64,
    microseconds: Vec<AtomicU64>,
}

impl Clock {
    fn new(first: u64, operations: u64) -> Clock {
        let microseconds = (0..operations).map(|_| AtomicU64::new(0)).collect();
        Clock { begun: Instant::now(), first, microseconds }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    fn set_sent(&self, sequence: u64) {
        if let Some(sent) = self.microseconds.get((sequence - self.first) as usize) {
            sent.store(self.now(), Ordering::Relaxed);
        }
    }
}

/// Receives every operation that is added, each once and in order; how many microseconds each one took.
async fn follow(mut client: Client, clock: Arc<Clock>) -> anyhow::Result<Vec<u32>> {
    let mut latencies = Vec::with_capacity(clock.microseconds.len());
    while latencies.len() < clock.microseconds.len() {
        let sequence = client.next().await?;
        let expected = clock.first + latencies.len() as u64;
        ensure!(sequence == expected, "got {sequence} instead of {expected}");
        let sent = clock.microseconds[latencies.len()].load(Ordering::Relaxed);
        latencies.push(clock.now().saturating_sub(sent) as u32);
    }
    Ok(latencies)
}
