//! Following a log from its beginning to its end, and what that takes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::child::{health, wait_until};
use crate::report::{Goal, goal, megabytes};
use crate::scope::Backend;
use crate::stand::{START, Stand};
use crate::turns::Program;
use crate::{http, postgres};

/// A follower that is slower than this many operations a second is not waited for.
pub const SLOWEST: u64 = 1_000;
/// How often it is looked at what Postgres uses; looking costs milliseconds.
const DATABASE_LOOK: Duration = Duration::from_millis(500);

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// From the start of the process to the last commit.
    Rate,
    /// From the first commit that was seen to the last.
    InnerRate,
    Memory,
    DatabaseMemory,
    Bytes,
    Processor,
    DatabaseProcessor,
    /// Elapsed time of a stage that the replica measures itself.
    Stage(String),
}

impl Quantity {
    /// Its name, its unit, and what is to be reached.
    pub fn shown(&self, backend: Backend) -> (&str, &'static str, Option<Goal>) {
        let sqlite = backend == Backend::Sqlite;
        match self {
            Quantity::Rate if sqlite => ("follow", "op/s", goal(30_000.0, 45_000.0)),
            Quantity::Rate => ("follow", "op/s", goal(25_000.0, 40_000.0)),
            Quantity::InnerRate => ("follow, from the first commit seen on", "op/s", None),
            Quantity::Memory => ("peak memory while following", "MB", goal(300.0, 150.0)),
            Quantity::DatabaseMemory => ("peak memory of Postgres itself", "MB", None),
            Quantity::Bytes if sqlite => ("an operation on disk", "bytes", goal(280.0, 220.0)),
            Quantity::Bytes => ("an operation on disk", "bytes", goal(330.0, 270.0)),
            Quantity::Processor => ("processor time an operation", "µs", None),
            Quantity::DatabaseProcessor => ("processor time in Postgres itself", "µs", None),
            Quantity::Stage(name) => (name, "µs", None),
        }
    }
}

/// Follows the whole log into an empty database, with an upstream that is there already.
pub fn follow(
    stand: &Stand<'_>,
    backend: Backend,
    program: Program,
    database: &str,
) -> anyhow::Result<BTreeMap<Quantity, f64>> {
    let operations = stand.scope.operations;
    let before = stand.database_usage(backend);
    let begun = Instant::now();
    let mut replica = stand.start_replica(program, database)?;
    let (mut first, mut database_memory, mut looked) = (None, 0, Instant::now());
    let patience = START + Duration::from_secs(operations / SLOWEST);
    wait_until(patience, || {
        replica.process.check()?;
        if looked.elapsed() > DATABASE_LOOK {
            looked = Instant::now();
            let memory = stand.database_usage(backend).map_or(0, |(memory, _)| memory);
            database_memory = database_memory.max(memory);
        }
        let sequence = health(replica.address).map_or(0, |health| health.sequence);
        if sequence > 0 {
            first.get_or_insert((Instant::now(), sequence));
        }
        Ok(sequence >= operations)
    })
    .context("the replica does not get to the end of the log")?;
    let ended = Instant::now();

    let usage = replica.process.usage();
    let each = 1e6 / operations as f64;
    let mut measured = BTreeMap::from([
        (Quantity::Rate, operations as f64 / (ended - begun).as_secs_f64()),
        (Quantity::Memory, megabytes(usage.peak_memory)),
        (Quantity::Processor, usage.processor * each),
    ]);
    // A log that is taken in between two looks has no such rate.
    if let Some((at, sequence)) = first.filter(|(_, sequence)| *sequence < operations) {
        let rest = (operations - sequence) as f64;
        measured.insert(Quantity::InnerRate, rest / (ended - at).as_secs_f64());
    }
    if let Some((_, processor)) = stand.database_usage(backend) {
        let processor = processor - before.map_or(0.0, |(_, before)| before);
        measured.insert(Quantity::DatabaseMemory, megabytes(database_memory));
        measured.insert(Quantity::DatabaseProcessor, processor * each);
    }
    for (stage, seconds) in stage_seconds(replica.metrics)? {
        measured.insert(Quantity::Stage(stage), seconds * each);
    }
    replica.process.end()?;
    measured.insert(Quantity::Bytes, size(backend, database)? as f64 / operations as f64);
    Ok(measured)
}

/// Bytes of a database with all that belongs to it, once what is pending is written.
pub fn size(backend: Backend, database: &str) -> anyhow::Result<u64> {
    if backend == Backend::Postgres {
        return postgres::size(database);
    }
    let path = database.strip_prefix("sqlite://").unwrap_or(database);
    let connection = rusqlite::Connection::open(path)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let sizes = ["", "-wal"].map(|suffix| fs::metadata(format!("{path}{suffix}")));
    Ok(sizes.iter().flatten().map(fs::Metadata::len).sum())
}

/// Seconds of each stage in the metrics of a replica.
fn stage_seconds(metrics: SocketAddr) -> anyhow::Result<Vec<(String, f64)>> {
    let (_, body) = http::get(metrics, "/metrics")?;
    let text = String::from_utf8(body)?;
    let lines = text.lines().filter_map(|line| line.strip_prefix(STAGE_SUM));
    let stages = lines.filter_map(|line| {
        let (stage, seconds) = line.split_once("\"} ")?;
        Some((format!("elapsed in the stage `{stage}`, an operation"), seconds.parse().ok()?))
    });
    Ok(stages.collect())
}

const STAGE_SUM: &str = "plc_ingest_stage_seconds_sum{stage=\"";
