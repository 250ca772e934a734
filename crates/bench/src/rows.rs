//! The rows of the table: each is measured by itself, on one database after the other.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::follow::{Quantity, follow};
use crate::log::Log;
use crate::report::{Machine, Report, goal, megabytes};
use crate::scope::{Backend, Scope};
use crate::stand::{LIVE, Stand, outcome};
use crate::turns::{Each, Program, by_turns};
use crate::{index, postgres, say, serving, stages, stream, wrk};

/// Operations of one measurement of the stream: twenty seconds at 200 a second. Ten such
/// measurements are what the log has to spare.
const STREAMED: u64 = LIVE / 10;
/// Clients of the stream, and operations a second.
const STREAM_LOAD: (u64, u64) = (1_000, 200);
/// Rows that are measured on one store.
const STORED: [&str; 6] = ["follow", "fsck", "lookup", "audit", "export", "stream"];

/// Runs the command.
pub fn run(scope: &Scope) -> anyhow::Result<ExitCode> {
    ensure!(!scope.wrk || wrk::is_installed(), "--wrk: the program `wrk` is not installed");
    let report = Bench::new(scope)?.measure()?;
    match scope.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.markdown()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A benchmark that is under way.
struct Bench<'a> {
    scope: &'a Scope,
    stand: Stand<'a>,
    report: Report,
}

impl<'a> Bench<'a> {
    fn new(scope: &'a Scope) -> anyhow::Result<Bench<'a>> {
        let stand = Stand::new(scope, LIVE)?;
        let report = Report {
            machine: Machine::here(),
            log: stand.log.profile.clone(),
            settings: scope.settings(),
            rows: Vec::new(),
            stages: Vec::new(),
            processor: Vec::new(),
            against: scope.against.clone(),
            skipped: Vec::new(),
        };
        Ok(Bench { scope, stand, report })
    }

    fn measure(mut self) -> anyhow::Result<Report> {
        if self.scope.wants("stages", None) {
            say("stages");
            let _upstream = self.stand.start_upstream()?;
            self.report.stages = stages::measure(
                &Log::open(&self.stand.log.path)?,
                self.scope.operations,
                self.stand.upstream,
                &*self.scope.signatures.verifier(),
            )?;
        }
        if self.scope.wants("verify", None) {
            self.verify()?;
        }
        for backend in [Backend::Sqlite, Backend::Postgres] {
            if !self.scope.wants_any(backend) {
                continue;
            }
            if self.stand.prepare(backend)? {
                self.measure_on(backend)?;
            } else {
                self.report.skipped.push(postgres::ABSENT.to_owned());
            }
        }
        Ok(self.report)
    }

    fn measure_on(&mut self, backend: Backend) -> anyhow::Result<()> {
        let wants = |task| self.scope.wants(task, Some(backend));
        if STORED.iter().any(|task| wants(task)) {
            self.measure_store(backend)?;
        }
        if self.scope.wants("index", Some(backend)) {
            self.index(backend)?;
        }
        Ok(())
    }

    fn measure_store(&mut self, backend: Backend) -> anyhow::Result<()> {
        let wants = |task| self.scope.wants(task, Some(backend));
        let databases = self.fill(backend, wants("follow"))?;
        if wants("fsck") {
            self.fsck(backend, &databases)?;
        }
        if wants("lookup") || wants("audit") || wants("export") {
            serving::measure(&self.stand, backend, &databases, &mut self.report)?;
        }
        if wants("stream") {
            self.stream(backend, &databases)?;
        }
        Ok(())
    }

    /// Measures each program once a run.
    fn by_turns<T>(
        &mut self,
        what: &str,
        mut measure: impl FnMut(&mut Stand<'a>, Program, u64) -> anyhow::Result<T>,
    ) -> anyhow::Result<Each<Vec<T>>> {
        by_turns(self.stand.is_compared(), self.scope.runs, |program, run| {
            say(&format!("{what}, run {run}"));
            measure(&mut self.stand, program, run)
        })
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        let file = self.stand.log.path.to_string_lossy().into_owned();
        let ended = self.by_turns("verify", |stand, program, _| {
            stand.run(program, &["verify", "--json", &file])
        })?;
        let operations = (self.scope.operations + LIVE) as f64;
        let rates = ended.values(|ended| operations / ended.seconds);
        self.report.row("`verify` of a file", None, "op/s", goal(40_000.0, 60_000.0), rates);
        let memory = ended.values(|ended| megabytes(ended.usage.peak_memory));
        self.report.row("peak memory of `verify`", None, "MB", None, memory);
        Ok(())
    }

    fn fsck(&mut self, backend: Backend, databases: &Each<String>) -> anyhow::Result<()> {
        let what = format!("fsck on {}", backend.name());
        let ended = self.by_turns(&what, |stand, program, _| {
            stand.run(program, &["fsck", "--json", "--database", of(databases, program)?])
        })?;
        let operations = self.scope.operations as f64;
        let rates = ended.values(|ended| operations / ended.seconds);
        let goal = goal(35_000.0, 55_000.0);
        self.report.row("`fsck` of a store", Some(backend), "op/s", goal, rates);
        let memory = ended.values(|ended| megabytes(ended.usage.peak_memory));
        self.report.row("peak memory of `fsck`", Some(backend), "MB", None, memory);
        Ok(())
    }

    /// Follows the log into an empty database: as often as asked when that is a row, once when
    /// the other rows need a store. Each program's last database is theirs.
    fn fill(&mut self, backend: Backend, is_row: bool) -> anyhow::Result<Each<String>> {
        let _upstream = self.stand.start_upstream()?;
        let runs = if is_row { self.scope.runs } else { 1 };
        let filled = by_turns(self.stand.is_compared(), runs, |program, run| {
            say(&format!("follow into {}, run {run}", backend.name()));
            let database = self.stand.fresh(backend, program)?;
            let measured = follow(&self.stand, backend, program, &database)?;
            Ok((database, measured))
        })?;
        if is_row {
            let quantities = filled
                .map(|runs| runs.iter().map(|(_, measured)| measured.clone()).collect::<Vec<_>>());
            self.follow_rows(backend, &quantities);
        }
        let last = filled.map(|runs| runs.last().map(|(database, _)| database.clone()));
        Each::of(self.stand.is_compared(), |program| {
            last.get(program).cloned().flatten().context("a program that followed nothing")
        })
    }

    fn follow_rows(&mut self, backend: Backend, runs: &Each<Vec<BTreeMap<Quantity, f64>>>) {
        let quantities: BTreeMap<&Quantity, f64> =
            runs.measured.iter().flatten().map(|(quantity, value)| (quantity, *value)).collect();
        for quantity in quantities.into_keys() {
            // Not every run has all of them: a log may be taken in between two looks.
            let mut values = runs.map(|runs| -> Vec<f64> {
                runs.iter().filter_map(|run| run.get(quantity).copied()).collect()
            });
            values.against = values.against.filter(|values| !values.is_empty());
            let (name, unit, goal) = quantity.shown(backend);
            self.report.row(name, Some(backend), unit, goal, values);
            if let (Quantity::Processor, Some(row)) = (quantity, self.report.rows.last()) {
                self.report.processor.push((backend.name(), row.median));
            }
        }
    }

    fn stream(&mut self, backend: Backend, databases: &Each<String>) -> anyhow::Result<()> {
        let what = format!("stream from {}", backend.name());
        let operations = self.scope.operations;
        let outcomes = self.by_turns(&what, |stand, program, run| {
            let database = of(databases, program)?;
            streamed(stand, program, database, operations + (run - 1) * STREAMED)
        })?;
        let name = format!("stream to {} clients at {} op/s", STREAM_LOAD.0, STREAM_LOAD.1);
        let p50 = outcomes.values(|outcome| outcome.p50_milliseconds);
        self.report.row(&format!("{name}, p50"), Some(backend), "ms", None, p50);
        let p99 = outcomes.values(|outcome| outcome.p99_milliseconds);
        let goal = goal(250.0, 100.0);
        self.report.row(&format!("{name}, p99"), Some(backend), "ms", goal, p99);
        Ok(())
    }

    fn index(&mut self, backend: Backend) -> anyhow::Result<()> {
        let what = format!("index of claims on {}", backend.name());
        let measured =
            self.by_turns(&what, |stand, program, _| index::measure(stand, backend, program))?;
        let values = |of: fn(&index::Measured) -> f64| measured.values(of);
        for (name, unit, values) in [
            ("index of claims, built from a store", "op/s", values(|run| run.built)),
            ("index of claims, an operation on disk", "bytes", values(|run| run.bytes)),
            ("follow with `--index`, until it is complete", "op/s", values(|run| run.followed)),
            ("the same without", "op/s", values(|run| run.followed_without)),
            ("`GET /_lookup?handle=`", "/s", values(|run| run.lookups.requests_per_second)),
            ("`GET /_lookup?handle=`, p99", "ms", values(|run| run.lookups.p99_milliseconds)),
        ] {
            self.report.row(name, Some(backend), unit, None, values);
        }
        Ok(())
    }
}

/// A program's database.
fn of(databases: &Each<String>, program: Program) -> anyhow::Result<&str> {
    Ok(databases.get(program).context("a program without a database")?)
}

/// What the clients of a program's stream see while the operations after this number are added.
fn streamed(
    stand: &Stand<'_>,
    program: Program,
    database: &str,
    operations: u64,
) -> anyhow::Result<stream::Outcome> {
    let replica = stand.start_replica(program, database)?;
    let file = stand.log.path.to_string_lossy();
    let (operations, added) = (operations.to_string(), STREAMED.to_string());
    let (upstream, address) = (stand.upstream.to_string(), replica.address.to_string());
    let (clients, rate) = (STREAM_LOAD.0.to_string(), STREAM_LOAD.1.to_string());
    let mut arguments = vec!["stream", "--log", &file, "--clients", &clients];
    arguments.extend(["--operations", &operations, "--rate", &rate, "--added", &added]);
    arguments.extend(["--upstream", &upstream, "--replica", &address]);
    let outcome: stream::Outcome = outcome(&arguments)?;
    ensure!(outcome.failed_clients == 0, "{} clients failed", outcome.failed_clients);
    replica.process.end()?;
    Ok(outcome)
}
