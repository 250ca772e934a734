//! A fleet of which one part after the other is killed, stopped and cut off, under load: what its clients notice.
//!
//! Everything runs on one machine. Where network namespaces can be made, primary and readers are on two machines of their
//! own as far as the network is concerned. This process is the upstream and all of the clients.

mod costs;
mod failure;
mod network;
mod phase;
mod promise;
mod scenario;
mod stand;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use plc_testkit::postgres::programs;

use self::failure::Failure;
use self::network::{Network, enter_own};
use self::scenario::Scenario;
use self::stand::Fleet;
use crate::child::free_address;
use crate::log::{self, Log};
use crate::report::Machine;
use crate::stand::measured_program;
use crate::upstream::Upstream;
use crate::{postgres, say};

/// Seconds of live operations beyond those of the phases: until everybody is there, and while all recovers.
const SPARE: u64 = 600;

/// Kill, stop and cut off one part of a fleet after the other, under load; ends with 1 where clients notice more than they
/// may.
///
/// A primary, a hot standby, a follower and a spare one, two readers behind nginx as `ops/fleet` has them; lookups by the
/// clock through nginx, and clients of the stream of each process and of nginx. No answer may be older than it says, no
/// operation may be lost or come twice, and no lookup may fail. Needs Postgres and nginx; the network is cut where this
/// program may make network namespaces, for which it has to be root.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The shortest form: everything is away for seconds.
    #[arg(long)]
    short: bool,
    /// Measure instead what lookups and operations cost each part, for `--away` seconds at a time.
    #[arg(long)]
    costs: bool,
    /// Seconds for which something is away.
    #[arg(long, default_value_t = 30, default_value_if("short", "true", "3"))]
    away: u64,
    /// Seconds before and after, in which nothing goes wrong.
    #[arg(long, default_value_t = 10, default_value_if("short", "true", "2"))]
    quiet: u64,
    /// Operations that there are before it begins.
    #[arg(long, default_value_t = 5_000)]
    operations: u64,
    /// Operations that are added each second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Lookups that are due each second.
    #[arg(long, default_value_t = 500)]
    lookups: u32,
    /// Clients of the stream of each process, and of nginx.
    #[arg(long, default_value_t = 5)]
    clients: u64,
    /// The bound of the slowest lookup, in milliseconds.
    #[arg(long, default_value_t = 5_000.0)]
    slowest: f64,
    /// Decides every byte of the log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for the log, which stays.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// The replica; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    replica: Option<PathBuf>,
    /// What the replicas log.
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    log: String,
}

impl Args {
    /// Operations that the log needs beyond those of the beginning.
    fn live(&self) -> u64 {
        let phases = Failure::ALL.len() as u64 * (self.away + self.quiet);
        (phases + SPARE) * u64::from(self.rate)
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.rate > 0 && args.lookups > 0 && args.clients > 0, "nothing is asked for");
    ensure!(programs().is_some(), postgres::ABSENT);
    enter_own()?;
    let directory = args.directory.clone().unwrap_or_else(log::usual_directory);
    let kept = log::kept(&directory, args.seed, args.operations + args.live())?;
    let program = measured_program(args.replica.as_ref())?;
    let network = Network::new()?;
    // Not one of them: what is done to the fleet takes this thread, and clients go on on others meanwhile.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let upstream = Upstream::new(Log::open(&kept.path)?, Some(args.operations));
    let address = SocketAddr::new(network.here, free_address()?.port());
    runtime.spawn(upstream.clone().serve(address));
    say("a fleet reads the log");
    let fleet = Fleet::start(network, program, address, &args.log)?;
    print_what_runs(args, &fleet, &kept);
    if args.costs {
        runtime.block_on(costs::measure(args, fleet, &upstream, &kept))?;
        return Ok(ExitCode::SUCCESS);
    }
    let complaints = runtime
        .block_on(async { Scenario::start(args, fleet, upstream, &kept).await?.play().await })?;
    if complaints.is_empty() {
        println!("\nAll bounds were kept.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nNot kept:");
    complaints.iter().for_each(|complaint| println!("- {complaint}"));
    Ok(ExitCode::FAILURE)
}

fn print_what_runs(args: &Args, fleet: &Fleet, kept: &log::Kept) {
    let Machine { processor, cores, memory_megabytes, .. } = Machine::here();
    println!(
        "A primary and a standby, a follower and a spare one, two readers behind nginx, {}; on {cores} cores of \
         {processor} with {memory_megabytes} MB, clients and upstream too. {} operations at first, then {} a second; {} \
         lookups a second by the clock; {} clients of the stream of each process and of nginx.",
        match fleet.network.is_own {
            true => "in networks of their own",
            false => "in one network",
        },
        args.operations,
        args.rate,
        args.lookups,
        args.clients,
    );
    println!("Log: {}.", kept.profile);
}
