//! What a replica endures: all that its clients do at once for as long as is asked, and then five times what it takes.
//!
//! Everything runs on one machine: the replica, another one that follows it, and this process, which is the upstream
//! and all of the clients.

mod overload;
mod trend;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use plc_replica::commands::Signatures;
use tokio::time::Instant;

use self::overload::{Plan, overload};
use self::watch::{Watched, watch};
use crate::child::{processor, wait_until};
use crate::clients::failures::Failures;
use crate::clients::lookups::{ByStatus, Lookups};
use crate::clients::questions::Identities;
use crate::clients::readers::{Clients, Readers};
use crate::http::get;
use crate::log::Log;
use crate::report::{Machine, number, quantile};
use crate::scope::{Backend, Scope};
use crate::stand::{Replica, Stand};
use crate::turns::Program;
use crate::upstream::Upstream;
use crate::{postgres, say};

/// How long a replica may take to read the log for the first time.
const CATCH_UP: Duration = Duration::from_secs(600);
/// How long the last operation may take to get to both replicas.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds of live operations beyond what is asked for: the overload's beginning, and the recovery.
const SPARE: u64 = 180;

/// Let clients of every kind use a replica for an hour and more; ends with 1 where a bound is not kept.
///
/// Live operations, lookups by the clock, clients of the stream of which some are slow, and a second replica that
/// follows the first, all at once; no request may fail, memory and open files may not grow. Then there are five times
/// as many clients as the replica answers at a time: the rest is to be put off, what is new taken in as ever, and all
/// is to be as before within seconds. Prints a line each minute.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// How long.
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// The database of both replicas.
    #[arg(long, value_enum, default_value = "sqlite")]
    database: Backend,
    /// Operations that both have before it begins.
    #[arg(long, default_value_t = 300_000)]
    operations: u64,
    /// Operations that are added each second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Lookups that are due each second.
    #[arg(long, default_value_t = 2_000)]
    lookups: u32,
    /// Clients of the stream.
    #[arg(long, default_value_t = 300)]
    clients: u64,
    /// Those of them that read slowly; half of these so slowly that they are sent away.
    #[arg(long, default_value_t = 50)]
    slow: u64,
    /// Requests that the replica answers at a time: five times as many clients have to find room on this machine.
    #[arg(long, default_value_t = 1_000)]
    at_a_time: u64,
    /// Seconds of the overload.
    #[arg(long, default_value_t = 20)]
    overload_seconds: u64,
    /// The bound of the p99 of all lookups by the clock, in milliseconds, before the overload.
    #[arg(long, default_value_t = 250.0)]
    p99: f64,
    /// Seconds that anybody may be behind the upstream; twice as many under overload.
    #[arg(long, default_value_t = 5)]
    behind: u64,
    /// Seconds after the overload in which all has to be as before.
    #[arg(long, default_value_t = 10)]
    recovery: u64,
    /// Decides every byte of the log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for the log, which stays, and for the databases, which do not.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// A Postgres server in which databases may be created; by default one is started.
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// The replica; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    replica: Option<PathBuf>,
    #[command(flatten)]
    signatures: Signatures,
}

impl Args {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }

    fn most_behind(&self) -> u64 {
        self.behind * u64::from(self.rate)
    }

    /// What the stand needs to know.
    fn scope(&self) -> Scope {
        Scope {
            operations: self.operations,
            runs: 1,
            seed: self.seed,
            only: Vec::new(),
            directory: self.directory.clone(),
            postgres: self.postgres.clone(),
            postgres_setting: Vec::new(),
            connections: 0,
            seconds: 0,
            wrk: false,
            memory_limit: None,
            replica: self.replica.clone(),
            against: None,
            json: false,
            signatures: Signatures { signature_tables: self.signatures.signature_tables },
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.minutes > 0.0 && args.rate > 0 && args.lookups > 0, "nothing is asked for");
    let scope = args.scope();
    let seconds = args.time().as_secs() + args.overload_seconds + SPARE;
    let mut stand = Stand::new(&scope, seconds * u64::from(args.rate))?;
    ensure!(stand.prepare(args.database)?, postgres::ABSENT);
    // The second database is that of the follower.
    let databases = [Program::Measured, Program::Against]
        .map(|program| stand.fresh(args.database, program))
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    // One thread: the clients take as little of the machine as they can.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut complaints = runtime.block_on(endure(args, &stand, &databases))?;
    for database in &databases {
        say("checking a database");
        if let Err(error) = stand.run(Program::Measured, &["fsck", "--database", database]) {
            complaints.push(format!("{error:#}"));
        }
    }
    if complaints.is_empty() {
        println!("- `fsck` finds both databases whole\n\nAll bounds were kept.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nNot kept:");
    complaints.iter().for_each(|complaint| println!("- {complaint}"));
    Ok(ExitCode::FAILURE)
}

/// All of it; what was not as it has to be.
async fn endure(
    args: &Args,
    stand: &Stand<'_>,
    databases: &[String],
) -> anyhow::Result<Vec<String>> {
    let identities = Arc::new(Identities::read(&stand.log.path)?);
    let log = Log::open(&stand.log.path)?;
    let upstream = Upstream::new(log, Some(args.operations));
    let serving = tokio::spawn(upstream.clone().serve(stand.upstream));
    let (replica, follower) = tokio::select! {
        served = serving => anyhow::bail!("the upstream has ended: {served:?}"),
        started = start(args, stand, databases) => started?,
    };
    print_what_runs(args, stand);

    let failures = Arc::new(Failures::default());
    let growing = tokio::spawn({
        let (upstream, rate) = (upstream.clone(), args.rate);
        async move { upstream.grow(rate, u64::MAX, |_| {}).await }
    });
    let address = replica.address;
    let clients =
        Clients { steady: args.clients.saturating_sub(args.slow), slow: args.slow, returning: 0 };
    let readers = Readers::start(address, clients, args.operations, &failures).await?;
    let held = readers.held();
    let judge = Arc::new(ByStatus);
    let lookups = Lookups::start(address, args.lookups, &identities, &held, judge, &failures);
    let (backend, begun) = (args.database, Instant::now());
    let mut watched =
        Watched { stand, backend, upstream, replica, follower, readers, lookups, failures };

    let mut complaints = Vec::new();
    watch::print_head();
    let seen = watch(&mut watched, args.time()).await?;
    println!();
    seen.trends(&mut complaints).iter().for_each(|trend| println!("- {trend}"));
    complain_of_lookups(args, &seen, &mut complaints);
    let own = processor(std::process::id()).unwrap_or(0.0) / begun.elapsed().as_secs_f64();
    println!("- upstream and clients took {:.0} % of one core", own * 100.0);

    let mut usual = seen.seconds.clone();
    usual.sort_unstable();
    let plan = Plan {
        at_a_time: args.at_a_time,
        seconds: args.overload_seconds,
        usual: quantile(&usual, 0.5),
        most_behind: 2 * args.most_behind(),
        recovery: Duration::from_secs(args.recovery),
    };
    let overloaded = overload(&mut watched, &plan, &mut complaints).await?;
    overloaded.iter().for_each(|line| println!("- {line}"));

    growing.abort();
    end(watched, &mut complaints).await?;
    Ok(complaints)
}

/// Starts both replicas, and waits until they have what there is.
async fn start(
    args: &Args,
    stand: &Stand<'_>,
    databases: &[String],
) -> anyhow::Result<(Replica, Replica)> {
    let at_a_time = args.at_a_time.to_string();
    let settings = ["--max-requests", &at_a_time];
    say("the replica reads the log");
    let replica = stand.start_replica_with(Program::Measured, &databases[0], &settings)?;
    ready(replica.address, args.operations).await?;
    say("the follower reads it from the replica");
    let follower =
        stand.start_follower(Program::Measured, &databases[1], replica.address, &settings)?;
    ready(follower.address, args.operations).await?;
    Ok((replica, follower))
}

/// Waits until a replica has so many operations and says that it is ready.
async fn ready(replica: SocketAddr, operations: u64) -> anyhow::Result<()> {
    let waiting = tokio::task::spawn_blocking(move || {
        wait_until(CATCH_UP, || {
            let is_ready = get(replica, "/_ready").is_ok_and(|(status, _)| status == 200);
            Ok(is_ready && has(replica, operations))
        })
    });
    waiting.await?
}

fn has(replica: SocketAddr, operations: u64) -> bool {
    crate::child::health(replica).is_ok_and(|health| health.sequence >= operations)
}

fn print_what_runs(args: &Args, stand: &Stand<'_>) {
    let Machine { processor, cores, memory_megabytes, .. } = Machine::here();
    println!(
        "{} minutes on {}, on {cores} cores of {processor} with {memory_megabytes} MB. {} operations at first, then {} a \
         second; {} lookups a second by the clock; {} clients of the stream, {} of them slow; a replica that follows \
         the first. All of it, upstream and clients too, on the same cores. The replica answers {} requests at a time.",
        args.minutes,
        args.database.name(),
        args.operations,
        args.rate,
        args.lookups,
        args.clients,
        args.slow,
        args.at_a_time,
    );
    println!("Log: {}.", stand.log.profile);
}

/// What the lookups were like, and what is to be said against it.
fn complain_of_lookups(args: &Args, seen: &watch::Seen, complaints: &mut Vec<String>) {
    let milliseconds = |share| f64::from(quantile(&seen.window.microseconds, share)) / 1e3;
    println!(
        "- {} lookups: p50 {} ms, p99 {} ms (bound {}), max {} ms; at most {} operations behind (bound {})",
        seen.window.answered(),
        number(milliseconds(0.5)),
        number(milliseconds(0.99)),
        number(args.p99),
        number(milliseconds(1.0)),
        seen.behind.most(),
        args.most_behind(),
    );
    if milliseconds(0.99) > args.p99 {
        complaints.push(format!("the p99 is above {} ms", number(args.p99)));
    }
    let asked = f64::from(args.lookups) * args.time().as_secs_f64();
    if (seen.window.answered() as f64) < 0.98 * asked {
        complaints
            .push(format!("of {asked:.0} lookups only {} were answered", seen.window.answered()));
    }
    if seen.window.put_off > 0 {
        complaints
            .push(format!("{} lookups were put off without an overload", seen.window.put_off));
    }
    if seen.behind.most() > args.most_behind() {
        complaints.push(format!("something was behind: {:?}", seen.behind));
    }
}

/// Ends it in order: everybody gets to the last operation.
async fn end(watched: Watched<'_>, complaints: &mut Vec<String>) -> anyhow::Result<()> {
    let Watched { upstream, replica, follower, readers, lookups, failures, .. } = watched;
    drop(lookups);
    let last = upstream.present();
    ensure!(last < upstream.operations(), "the log is too short for what was asked");
    let (addresses, returned) = ([replica.address, follower.address], readers.returned());
    readers.end(last).await;
    let waiting = tokio::task::spawn_blocking(move || {
        wait_until(PATIENCE, || Ok(addresses.iter().all(|address| has(*address, last))))
    });
    if let Err(error) = waiting.await? {
        complaints.push(format!("a replica does not get to the last operation: {error:#}"));
    }
    println!("- slow readers were sent away {returned} times and came back");
    if failures.count() == 0 {
        println!(
            "- each request was answered; each reader had every operation up to {last}, in order"
        );
    } else {
        complaints.push(format!("{} failures, the first of which were:", failures.count()));
        complaints.extend(failures.first());
    }
    // The upstream is served on this thread until they have ended.
    tokio::task::spawn_blocking(move || {
        follower.process.end()?;
        replica.process.end()
    })
    .await?
}
