//! The rows of the table: each is measured by itself, on one database after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::ensure;

use crate::follow::{Quantity, follow};
use crate::log::Log;
use crate::report::{Goal, Machine, Report, Row, goal, megabytes};
use crate::scope::{Backend, Scope};
use crate::stand::{LIVE, START, Stand, outcome};
use crate::{index, load, postgres, stages, stream, wrk};

/// Operations of one measurement of the stream: twenty seconds at 200 a second. Ten such
/// measurements are what the log has to spare.
const STREAMED: u64 = LIVE / 10;
/// Clients of the stream, and operations a second.
const STREAM_LOAD: (u64, u64) = (1_000, 200);
/// Connections that ask for pages of the export.
const EXPORT_CONNECTIONS: u64 = 4;
/// Load before the load that is measured.
const WARM_UP_SECONDS: u64 = 2;
/// Rows that are measured on one store.
const STORED: [&str; 6] = ["follow", "fsck", "lookup", "audit", "export", "stream"];
/// Identities that have ended answer 404: of a hundred about one has.
const MOST_OTHER_ANSWERS: f64 = 0.02;

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
        let stand = Stand::new(scope)?;
        let report = Report {
            machine: Machine::here(),
            log: stand.log.profile.clone(),
            settings: scope.settings(),
            rows: Vec::new(),
            stages: Vec::new(),
            processor: Vec::new(),
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
        let database = self.fill(backend, wants("follow"))?;
        if wants("fsck") {
            self.fsck(backend, &database)?;
        }
        if wants("lookup") || wants("audit") || wants("export") {
            self.serve(backend, &database)?;
        }
        if wants("stream") {
            self.stream(backend, &database)?;
        }
        Ok(())
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        let (mut rates, mut memory) = (Vec::new(), Vec::new());
        let file = self.stand.log.path.to_string_lossy().into_owned();
        for run in 1..=self.scope.runs {
            say(&format!("verify, run {run}"));
            let ended = self.stand.run(&["verify", "--json", &file])?;
            rates.push((self.scope.operations + LIVE) as f64 / ended.seconds);
            memory.push(megabytes(ended.usage.peak_memory));
        }
        self.row("`verify` of a file", None, "op/s", goal(40_000.0, 60_000.0), rates);
        self.row("peak memory of `verify`", None, "MB", None, memory);
        Ok(())
    }

    fn fsck(&mut self, backend: Backend, database: &str) -> anyhow::Result<()> {
        let (mut rates, mut memory) = (Vec::new(), Vec::new());
        for run in 1..=self.scope.runs {
            say(&format!("fsck on {}, run {run}", backend.name()));
            let ended = self.stand.run(&["fsck", "--json", "--database", database])?;
            rates.push(self.scope.operations as f64 / ended.seconds);
            memory.push(megabytes(ended.usage.peak_memory));
        }
        self.row("`fsck` of a store", Some(backend), "op/s", goal(35_000.0, 55_000.0), rates);
        self.row("peak memory of `fsck`", Some(backend), "MB", None, memory);
        Ok(())
    }

    /// Follows the log into an empty database: as often as asked when that is a row, once when
    /// the other rows need a store. The last database is theirs.
    fn fill(&mut self, backend: Backend, is_row: bool) -> anyhow::Result<String> {
        let _upstream = self.stand.start_upstream()?;
        let mut measured: BTreeMap<Quantity, Vec<f64>> = BTreeMap::new();
        let mut database = String::new();
        for run in 1..=if is_row { self.scope.runs } else { 1 } {
            say(&format!("follow into {}, run {run}", backend.name()));
            database = self.stand.fresh(backend)?;
            for (quantity, value) in follow(&self.stand, backend, &database)? {
                measured.entry(quantity).or_default().push(value);
            }
        }
        for (quantity, values) in measured.into_iter().filter(|_| is_row) {
            let (name, unit, goal) = quantity.shown(backend);
            self.row(name, Some(backend), unit, goal, values);
            if let (Quantity::Processor, Some(row)) = (quantity, self.report.rows.last()) {
                self.report.processor.push((backend.name(), row.median));
            }
        }
        Ok(database)
    }

    /// Lookups, audit logs and export pages of a replica that is up to date.
    fn serve(&mut self, backend: Backend, database: &str) -> anyhow::Result<()> {
        let _upstream = self.stand.start_upstream()?;
        let mut replica = self.stand.start_replica(database)?;
        replica.wait_for(self.scope.operations, START)?;
        let lookup = match backend {
            Backend::Sqlite => goal(20_000.0, 40_000.0),
            Backend::Postgres => goal(15_000.0, 30_000.0),
        };
        let audit = goal(10_000.0, 20_000.0);
        for (task, suffix, goal) in [("lookup", "", lookup), ("audit", "/log/audit", audit)] {
            if self.scope.wants(task, Some(backend)) {
                self.look_up(backend, replica.address, suffix, goal)?;
            }
        }
        if self.scope.wants("export", Some(backend)) {
            self.export(backend, replica.address)?;
        }
        let memory = vec![megabytes(replica.process.usage().peak_memory)];
        self.row("peak memory while serving", Some(backend), "MB", None, memory);
        replica.process.end()
    }

    fn look_up(
        &mut self,
        backend: Backend,
        replica: SocketAddr,
        suffix: &str,
        goal: Option<Goal>,
    ) -> anyhow::Result<()> {
        let name = format!("`GET /{{did}}{suffix}`");
        say(&format!("{name} on {}", backend.name()));
        self.ask(replica, suffix, WARM_UP_SECONDS)?;
        let outcomes = (0..self.scope.runs)
            .map(|_| self.ask(replica, suffix, self.scope.seconds))
            .collect::<Result<Vec<_>, _>>()?;
        let values = |of: fn(&load::Outcome) -> f64| outcomes.iter().map(of).collect();
        self.row(&name, Some(backend), "/s", goal, values(|outcome| outcome.requests_per_second));
        let p50 = values(|outcome| outcome.p50_milliseconds);
        self.row(&format!("{name}, p50"), Some(backend), "ms", None, p50);
        let p99 = values(|outcome| outcome.p99_milliseconds);
        self.row(&format!("{name}, p99"), Some(backend), "ms", None, p99);
        Ok(())
    }

    /// Asks for random identities. Fails when the answers are not those of a full store.
    fn ask(
        &self,
        replica: SocketAddr,
        suffix: &str,
        seconds: u64,
    ) -> anyhow::Result<load::Outcome> {
        let (dids, connections) = (&self.stand.dids, self.scope.connections);
        let outcome = if self.scope.wrk {
            wrk::run(replica, dids, suffix, connections, seconds)?
        } else {
            let path = format!("/{{did}}{suffix}");
            let more = ["--dids", &dids.to_string_lossy()];
            self.stand.load(replica, &path, connections, seconds, &more)?
        };
        let others = outcome.others as f64 / (outcome.requests_per_second * seconds as f64);
        ensure!(others < MOST_OTHER_ANSWERS, "{:.1} % of the answers are not 200", others * 100.0);
        Ok(outcome)
    }

    fn export(&mut self, backend: Backend, replica: SocketAddr) -> anyhow::Result<()> {
        say(&format!("export pages from {}", backend.name()));
        // All pages are full.
        let operations = self.scope.operations.saturating_sub(1_000).to_string();
        let path = "/export?after={after}&count=1000";
        let mut rates = Vec::new();
        for _ in 0..self.scope.runs {
            let more = ["--operations", &*operations];
            let seconds = self.scope.seconds;
            let outcome = self.stand.load(replica, path, EXPORT_CONNECTIONS, seconds, &more)?;
            ensure!(outcome.others == 0, "{} pages were refused", outcome.others);
            rates.push(outcome.megabytes_per_second);
        }
        self.row("`/export` pages", Some(backend), "MB/s", goal(150.0, 400.0), rates);
        Ok(())
    }

    fn stream(&mut self, backend: Backend, database: &str) -> anyhow::Result<()> {
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for run in 0..self.scope.runs {
            say(&format!("stream from {}, run {}", backend.name(), run + 1));
            let replica = self.stand.start_replica(database)?;
            let file = self.stand.log.path.to_string_lossy();
            let operations = (self.scope.operations + run * STREAMED).to_string();
            let (upstream, address) =
                (self.stand.upstream.to_string(), replica.address.to_string());
            let (clients, rate) = (STREAM_LOAD.0.to_string(), STREAM_LOAD.1.to_string());
            let added = STREAMED.to_string();
            let mut arguments = vec!["stream", "--log", &file, "--clients", &clients];
            arguments.extend(["--operations", &operations, "--rate", &rate, "--added", &added]);
            arguments.extend(["--upstream", &upstream, "--replica", &address]);
            let outcome: stream::Outcome = outcome(&arguments)?;
            ensure!(outcome.failed_clients == 0, "{} clients failed", outcome.failed_clients);
            p50.push(outcome.p50_milliseconds);
            p99.push(outcome.p99_milliseconds);
            replica.process.end()?;
        }
        let name = format!("stream to {} clients at {} op/s", STREAM_LOAD.0, STREAM_LOAD.1);
        self.row(&format!("{name}, p50"), Some(backend), "ms", None, p50);
        self.row(&format!("{name}, p99"), Some(backend), "ms", goal(250.0, 100.0), p99);
        Ok(())
    }

    fn index(&mut self, backend: Backend) -> anyhow::Result<()> {
        let mut measured = Vec::new();
        for run in 1..=self.scope.runs {
            say(&format!("index of claims on {}, run {run}", backend.name()));
            measured.push(index::measure(&mut self.stand, backend)?);
        }
        let values = |of: fn(&index::Measured) -> f64| measured.iter().map(of).collect();
        for (name, unit, values) in [
            ("index of claims, built from a store", "op/s", values(|run| run.built)),
            ("index of claims, an operation on disk", "bytes", values(|run| run.bytes)),
            ("follow with `--index`, until it is complete", "op/s", values(|run| run.followed)),
            ("the same without", "op/s", values(|run| run.followed_without)),
            ("`GET /_lookup?handle=`", "/s", values(|run| run.lookups.requests_per_second)),
            ("`GET /_lookup?handle=`, p99", "ms", values(|run| run.lookups.p99_milliseconds)),
        ] {
            self.row(name, Some(backend), unit, None, values);
        }
        Ok(())
    }

    fn row(
        &mut self,
        name: &str,
        backend: Option<Backend>,
        unit: &'static str,
        goal: Option<Goal>,
        values: Vec<f64>,
    ) {
        self.report.rows.push(Row::new(name, backend.map(Backend::name), unit, goal, values));
    }
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}
