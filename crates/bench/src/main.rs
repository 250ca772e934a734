//! Measures what docs/PERFORMANCE.md says, on this machine, with one command.
//!
//! What is measured are child processes of the program `plc-replica`, as users run it; the upstream
//! that they follow and the load that they answer are processes of their own too, so that memory and
//! processor time can be told apart. Runs on Linux, whose `/proc` it reads.

mod archive;
mod cgroup;
mod child;
mod clients;
mod endure;
mod fleet;
mod follow;
mod http;
mod index;
mod load;
mod log;
mod postgres;
mod report;
mod rows;
mod scope;
mod serving;
mod socket;
mod stages;
mod stand;
mod stream;
mod turns;
mod upstream;
mod wrk;

use std::process::ExitCode;

use clap::Parser;

/// As in the replica: some of the stages are measured in this process.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measure speed, size and memory of plc-replica, and print them as a table.
///
/// Makes a log (kept for the next time), follows it into each database, and measures the rows of
/// the table in docs/PERFORMANCE.md. Takes half an hour with the defaults; `--operations 100000 --runs 1`
/// gives a first idea in a minute. With `--against FILE` a second program is measured on the same log,
/// run by run by turns with the first.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    scope: scope::Scope,
}

/// What the benchmark is put together from, to be used by itself; how long all of it is endured, and what happens to
/// clients when something dies.
#[derive(Debug, clap::Subcommand)]
enum Part {
    Generate(log::Args),
    Archive(archive::Args),
    Upstream(upstream::Args),
    Load(load::Args),
    Stream(stream::Args),
    Endure(endure::Args),
    Fleet(fleet::Args),
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("plc-bench: {}", plc_replica::commands::sentence(&error));
            ExitCode::from(2)
        }
    }
}

/// Starts runtimes where they are needed.
fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.part {
        None => rows::run(&arguments.scope),
        Some(Part::Generate(args)) => log::run(args),
        Some(Part::Archive(args)) => archive::run(args),
        Some(Part::Upstream(args)) => upstream::run(args),
        Some(Part::Load(args)) => load::run(args),
        Some(Part::Stream(args)) => stream::run(args),
        Some(Part::Endure(args)) => endure::run(args),
        Some(Part::Fleet(args)) => fleet::run(args),
    }
}

/// Says what is being measured.
fn say(what: &str) {
    eprintln!("bench: {what}");
}
