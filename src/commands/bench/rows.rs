//! The rows of the table: each is measured by itself, on one database after the other.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cgroup::Bound;
use super::child::{Ended, Process, free_address, health, run_to_end, wait_until};
use super::log::{self, Log};
use super::report::{Goal, Machine, Report, Row};
use super::{http, load, postgres, stages, stream, wrk};

/// Operations that the log has beyond those that are followed: what the stream brings.
const LIVE: u64 = 40_000;
/// Operations of one measurement of the stream: twenty seconds at 200 a second.
const STREAMED: u64 = 4_000;
/// Clients of the stream, and operations a second.
const STREAM_LOAD: (u64, u64) = (1_000, 200);
/// Connections that ask for pages of the export.
const EXPORT_CONNECTIONS: u64 = 4;
/// Load before the load that is measured.
const WARM_UP_SECONDS: u64 = 2;
/// A follower that is slower than this many operations a second is not waited for.
const SLOWEST: u64 = 1_000;
/// How long a server may take to listen.
const START: Duration = Duration::from_secs(60);
/// How often it is looked at what Postgres uses; looking costs milliseconds.
const POSTGRES_LOOK: Duration = Duration::from_millis(500);

/// What is measured, and of how much.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Operations of the log.
    #[arg(long, default_value_t = 2_000_000)]
    operations: u64,
    /// Times that each row is measured; the median is reported.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10))]
    runs: u64,
    /// Decides every byte of the log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rows to measure: stages, verify, follow, fsck, lookup, audit, export, stream; of one
    /// database only as `follow-sqlite` or `follow-postgres`.
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    only: Vec<Choice>,
    /// Directory for the log, which stays, and for the databases, which do not.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// A Postgres server in which databases may be created; by default one is started.
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// A setting of the Postgres that is started, such as `shared_buffers=512MB`. Repeatable.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "postgres")]
    postgres_setting: Vec<String>,
    /// Connections that ask for identities.
    #[arg(long, default_value_t = 32)]
    connections: u64,
    /// Seconds of each measurement under load.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Make the load for lookups with `wrk`, which has to be installed.
    #[arg(long)]
    wrk: bool,
    /// Hold the replica, and Postgres with it, to so much memory, page cache included.
    #[arg(long, value_name = "MEGABYTES")]
    memory_limit: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    signatures: crate::commands::Signatures,
}

/// A database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Sqlite => "SQLite",
            Backend::Postgres => "Postgres",
        }
    }
}

/// A row of `--only`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice {
    task: &'static str,
    backend: Option<Backend>,
}

/// Those that need no database, then the others in the order in which they are measured. The
/// stream is last, since it adds to the store.
const TASKS: [&str; 8] =
    ["stages", "verify", "follow", "fsck", "lookup", "audit", "export", "stream"];

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let (task, backend) = match text.split_once('-') {
            None => (text, None),
            Some((task, "sqlite")) => (task, Some(Backend::Sqlite)),
            Some((task, "postgres")) => (task, Some(Backend::Postgres)),
            Some(_) => return Err("the databases are `sqlite` and `postgres`".to_owned()),
        };
        let task = TASKS.into_iter().find(|known| *known == task);
        let task = task.ok_or_else(|| format!("the rows are {}", TASKS.join(", ")))?;
        Ok(Choice { task, backend })
    }
}

impl Args {
    fn wants(&self, task: &str, backend: Option<Backend>) -> bool {
        let matches = |choice: &Choice| {
            choice.task == task
                && (backend.is_none() || choice.backend.is_none() || choice.backend == backend)
        };
        self.only.is_empty() || self.only.iter().any(matches)
    }

    fn wants_any(&self, backend: Backend) -> bool {
        TASKS[2..].iter().any(|task| self.wants(task, Some(backend)))
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.wrk {
        ensure!(wrk::is_installed(), "--wrk: the program `wrk` is not installed");
    }
    let report = Bench::new(args)?.measure()?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.markdown()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A benchmark that is under way.
struct Bench<'a> {
    args: &'a Args,
    log: log::Kept,
    dids: PathBuf,
    work: Work,
    bound: Option<Bound>,
    /// Where the upstream of every follower is, one after the other.
    upstream: SocketAddr,
    server: Option<postgres::Server>,
    report: Report,
}

/// Directory of the databases; gone at the end.
struct Work(PathBuf);

impl Work {
    fn new(directory: &Path) -> anyhow::Result<Work> {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.join(format!("work-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        // Postgres runs as another user when this program is run by root.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?;
        Ok(Work(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> anyhow::Result<Bench<'a>> {
        let directory = args
            .directory
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join("plc-replica-bench"));
        let log = log::kept(&directory, args.seed, args.operations + LIVE)?;
        let dids = log::kept_dids(&log.path, args.operations)?;
        let directory = directory.canonicalize()?;
        let report = Report {
            machine: Machine::here(),
            log: log.profile.clone(),
            settings: settings(args),
            rows: Vec::new(),
            stages: Vec::new(),
            processor: Vec::new(),
            skipped: Vec::new(),
        };
        Ok(Bench {
            args,
            log,
            dids,
            work: Work::new(&directory)?,
            bound: args.memory_limit.map(Bound::new).transpose()?,
            upstream: free_address()?,
            server: None,
            report,
        })
    }

    fn measure(mut self) -> anyhow::Result<Report> {
        if self.args.wants("stages", None) {
            let _upstream = self.start_upstream()?;
            say("stages");
            self.report.stages = stages::measure(
                &Log::open(&self.log.path)?,
                self.upstream,
                &*self.args.signatures.verifier(),
            )?;
        }
        if self.args.wants("verify", None) {
            self.verify()?;
        }
        for backend in [Backend::Sqlite, Backend::Postgres] {
            if self.args.wants_any(backend) && self.is_there(backend)? {
                self.measure_on(backend)?;
            }
        }
        Ok(self.report)
    }

    /// Makes sure that there is such a database.
    fn is_there(&mut self, backend: Backend) -> anyhow::Result<bool> {
        if backend == Backend::Sqlite {
            return Ok(true);
        }
        self.server = match &self.args.postgres {
            Some(url) => Some(postgres::Server::existing(url)),
            None => postgres::Server::start(&self.work.0, &self.args.postgres_setting)?,
        };
        match (&self.server, &self.bound) {
            (Some(server), Some(bound)) => server.bind(bound)?,
            (Some(_), None) => {}
            (None, _) => self.report.skipped.push(postgres::ABSENT.to_owned()),
        }
        Ok(self.server.is_some())
    }

    fn measure_on(&mut self, backend: Backend) -> anyhow::Result<()> {
        let wants = |task| self.args.wants(task, Some(backend));
        // The others need a store that is filled.
        let runs = if wants("follow") { self.args.runs } else { 1 };
        let database = self.follow(backend, runs, wants("follow"))?;
        if self.args.wants("fsck", Some(backend)) {
            self.fsck(backend, &database)?;
        }
        if ["lookup", "audit", "export"].iter().any(|task| self.args.wants(task, Some(backend))) {
            self.serve_and_load(backend, &database)?;
        }
        if self.args.wants("stream", Some(backend)) {
            self.stream(backend, &database)?;
        }
        Ok(())
    }

    fn verify(&mut self) -> anyhow::Result<()> {
        let (mut rates, mut memory) = (Vec::new(), Vec::new());
        let file = self.log.path.to_string_lossy().into_owned();
        for run in 1..=self.args.runs {
            say(&format!("verify, run {run}"));
            let ended = self.run(&["verify", "--json", &file])?;
            rates.push((self.args.operations + LIVE) as f64 / ended.seconds);
            memory.push(megabytes(ended.usage.peak_memory));
        }
        self.row("verify of a file", None, "op/s", goal(40_000.0, 60_000.0), rates);
        self.row("peak memory of verify", None, "MB", None, memory);
        Ok(())
    }

    fn fsck(&mut self, backend: Backend, database: &str) -> anyhow::Result<()> {
        let (mut rates, mut memory) = (Vec::new(), Vec::new());
        for run in 1..=self.args.runs {
            say(&format!("fsck on {}, run {run}", backend.name()));
            let ended = self.run(&["fsck", "--json", "--database", database])?;
            rates.push(self.args.operations as f64 / ended.seconds);
            memory.push(megabytes(ended.usage.peak_memory));
        }
        self.row("`fsck` of a store", Some(backend), "op/s", goal(35_000.0, 55_000.0), rates);
        self.row("peak memory of `fsck`", Some(backend), "MB", None, memory);
        Ok(())
    }

    /// Fills a database as often as asked, each time a new one; the last one.
    fn follow(&mut self, backend: Backend, runs: u64, counts: bool) -> anyhow::Result<String> {
        let _upstream = self.start_upstream()?;
        let mut measured: BTreeMap<Quantity, Vec<f64>> = BTreeMap::new();
        let mut database = String::new();
        for run in 1..=runs {
            say(&format!("follow into {}, run {run}", backend.name()));
            database = self.fresh(backend)?;
            for (quantity, value) in self.follow_once(backend, &database)? {
                measured.entry(quantity).or_default().push(value);
            }
        }
        for (quantity, values) in measured.into_iter().filter(|_| counts) {
            let (name, unit, goal) = quantity.shown(backend);
            self.row(name, Some(backend), unit, goal, values);
            if let (Quantity::Processor, Some(row)) = (quantity, self.report.rows.last()) {
                self.report.processor.push((backend.name(), row.median));
            }
        }
        Ok(database)
    }

    fn follow_once(
        &self,
        backend: Backend,
        database: &str,
    ) -> anyhow::Result<Vec<(Quantity, f64)>> {
        let operations = self.args.operations;
        let before = self.postgres_usage(backend);
        let begun = Instant::now();
        let (mut serve, replica, metrics) = self.start_serve(database)?;
        let (mut first, mut postgres_memory) = (None, 0);
        let mut looked = Instant::now();
        let patience = START + Duration::from_secs(operations / SLOWEST);
        wait_until(patience, || {
            serve.check()?;
            if looked.elapsed() > POSTGRES_LOOK {
                looked = Instant::now();
                let memory = self.postgres_usage(backend).map_or(0, |(memory, _)| memory);
                postgres_memory = postgres_memory.max(memory);
            }
            let sequence = health(replica)?.sequence;
            if sequence > 0 {
                first.get_or_insert((Instant::now(), sequence));
            }
            Ok(sequence >= operations)
        })
        .context("the replica does not get to the end of the log")?;
        let seconds = begun.elapsed().as_secs_f64();
        let (first_at, first_sequence) = first.unwrap_or((begun, 0));
        let usage = serve.usage();
        let each = 1e6 / operations as f64;
        let mut measured = vec![
            (Quantity::Rate, operations as f64 / seconds),
            (Quantity::Memory, megabytes(usage.peak_memory)),
            (Quantity::Processor, usage.processor * each),
        ];
        // A log that is taken in between two looks has no rate of its own.
        if first_sequence < operations {
            let rest = (operations - first_sequence) as f64;
            measured.push((Quantity::InnerRate, rest / first_at.elapsed().as_secs_f64()));
        }
        if let Some((_, processor)) = self.postgres_usage(backend) {
            let processor = processor - before.map_or(0.0, |(_, before)| before);
            measured.push((Quantity::PostgresMemory, megabytes(postgres_memory)));
            measured.push((Quantity::PostgresProcessor, processor * each));
        }
        for (stage, seconds) in stage_seconds(metrics)? {
            measured.push((Quantity::Stage(stage), seconds * each));
        }
        serve.end()?;
        measured.push((Quantity::Bytes, size(backend, database)? as f64 / operations as f64));
        Ok(measured)
    }

    /// Lookups, audit logs and export pages of a replica that is up to date.
    fn serve_and_load(&mut self, backend: Backend, database: &str) -> anyhow::Result<()> {
        let _upstream = self.start_upstream()?;
        let (serve, replica, _) = self.start_serve(database)?;
        wait_until(START, || Ok(health(replica)?.sequence >= self.args.operations))?;
        let lookup = match backend {
            Backend::Sqlite => goal(20_000.0, 40_000.0),
            Backend::Postgres => goal(15_000.0, 30_000.0),
        };
        for (task, suffix, goal) in
            [("lookup", "", lookup), ("audit", "/log/audit", goal(10_000.0, 20_000.0))]
        {
            if self.args.wants(task, Some(backend)) {
                self.look_up(backend, replica, suffix, goal)?;
            }
        }
        if self.args.wants("export", Some(backend)) {
            self.export(backend, replica)?;
        }
        let memory = vec![megabytes(serve.usage().peak_memory)];
        self.row("peak memory while serving", Some(backend), "MB", None, memory);
        serve.end()
    }

    fn look_up(
        &mut self,
        backend: Backend,
        replica: SocketAddr,
        suffix: &str,
        goal: Option<Goal>,
    ) -> anyhow::Result<()> {
        let connections = self.args.connections;
        let ask = |seconds: u64| -> anyhow::Result<load::Outcome> {
            let outcome = if self.args.wrk {
                wrk::run(replica, &self.dids, suffix, connections, seconds)?
            } else {
                let path = format!("/{{did}}{suffix}");
                let dids = self.dids.to_string_lossy();
                self.load(replica, &path, connections, seconds, &["--dids", &dids])?
            };
            Ok(outcome)
        };
        let name = format!("`GET /{{did}}{suffix}`");
        say(&format!("{name} on {}", backend.name()));
        ask(WARM_UP_SECONDS)?;
        let outcomes =
            (0..self.args.runs).map(|_| ask(self.args.seconds)).collect::<Result<Vec<_>, _>>()?;
        // Identities that have ended answer 404 on the first path, and there are few of them.
        let others: u64 = outcomes.iter().map(|outcome| outcome.others).sum();
        let all: f64 = outcomes.iter().map(|outcome| outcome.requests_per_second).sum();
        let share = others as f64 / (all * self.args.seconds as f64);
        ensure!(share < 0.02, "{:.1} % of the answers were no documents", 100.0 * share);
        let rates = outcomes.iter().map(|outcome| outcome.requests_per_second).collect();
        self.row(&name, Some(backend), "/s", goal, rates);
        let p50 = outcomes.iter().map(|outcome| outcome.p50_milliseconds).collect();
        self.row(&format!("{name}, p50"), Some(backend), "ms", None, p50);
        let p99 = outcomes.iter().map(|outcome| outcome.p99_milliseconds).collect();
        self.row(&format!("{name}, p99"), Some(backend), "ms", None, p99);
        Ok(())
    }

    fn export(&mut self, backend: Backend, replica: SocketAddr) -> anyhow::Result<()> {
        say(&format!("export pages from {}", backend.name()));
        let operations = self.args.operations.saturating_sub(1_000).to_string();
        let arguments = ["--operations", &*operations];
        let path = "/export?after={after}&count=1000";
        let mut rates = Vec::new();
        for _ in 0..self.args.runs {
            let seconds = self.args.seconds;
            let outcome = self.load(replica, path, EXPORT_CONNECTIONS, seconds, &arguments)?;
            ensure!(outcome.others == 0, "{} pages were refused", outcome.others);
            rates.push(outcome.megabytes_per_second);
        }
        self.row("`/export` pages", Some(backend), "MB/s", goal(150.0, 400.0), rates);
        Ok(())
    }

    fn load(
        &self,
        replica: SocketAddr,
        path: &str,
        connections: u64,
        seconds: u64,
        more: &[&str],
    ) -> anyhow::Result<load::Outcome> {
        let (server, connections) = (replica.to_string(), connections.to_string());
        let seconds = seconds.to_string();
        let mut arguments = vec!["bench", "load", "--server", &server, "--path", path];
        arguments.extend(["--connections", &connections, "--seconds", &seconds]);
        arguments.extend(more);
        outcome(&arguments)
    }

    fn stream(&mut self, backend: Backend, database: &str) -> anyhow::Result<()> {
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for run in 0..self.args.runs {
            say(&format!("stream from {}, run {}", backend.name(), run + 1));
            let (serve, replica, _) = self.start_serve(database)?;
            let file = self.log.path.to_string_lossy();
            let operations = (self.args.operations + run * STREAMED).to_string();
            let (upstream, replica) = (self.upstream.to_string(), replica.to_string());
            let (clients, rate) = (STREAM_LOAD.0.to_string(), STREAM_LOAD.1.to_string());
            let added = STREAMED.to_string();
            let mut arguments = vec!["bench", "stream", "--log", &file, "--clients", &clients];
            arguments.extend(["--operations", &operations, "--rate", &rate, "--added", &added]);
            arguments.extend(["--upstream", &upstream, "--replica", &replica]);
            let outcome: stream::Outcome = outcome(&arguments)?;
            ensure!(outcome.failed_clients == 0, "{} clients failed", outcome.failed_clients);
            p50.push(outcome.p50_milliseconds);
            p99.push(outcome.p99_milliseconds);
            serve.end()?;
        }
        let name = format!("stream to {} clients at {} op/s", STREAM_LOAD.0, STREAM_LOAD.1);
        self.row(&format!("{name}, p50"), Some(backend), "ms", None, p50);
        self.row(&format!("{name}, p99"), Some(backend), "ms", goal(250.0, 100.0), p99);
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

    /// Runs a measured subcommand to its end.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let tables = &*self.args.signatures.signature_tables;
        let arguments = [arguments, &["--signature-tables", tables]].concat();
        let ended = run_to_end(&arguments, self.cgroup())?;
        ensure!(ended.status.success(), "`{}`: {}", arguments.join(" "), ended.output);
        Ok(ended)
    }

    fn cgroup(&self) -> Option<&Path> {
        self.bound.as_ref().map(Bound::path)
    }

    fn start_upstream(&self) -> anyhow::Result<Process> {
        let (file, listen) = (self.log.path.to_string_lossy(), self.upstream.to_string());
        let operations = self.args.operations.to_string();
        let arguments =
            ["bench", "upstream", "--log", &file, "--listen", &listen, "--operations", &operations];
        let mut process = Process::start(&arguments, None)?;
        wait_until(START, || {
            process.check()?;
            Ok(http::get(self.upstream, "/export?count=1")?.0 == 200)
        })?;
        Ok(process)
    }

    /// A replica, and where it and its metrics listen.
    fn start_serve(&self, database: &str) -> anyhow::Result<(Process, SocketAddr, SocketAddr)> {
        let (replica, metrics) = (free_address()?, free_address()?);
        let upstream = format!("http://{}", self.upstream);
        let (listen, metrics_listen) = (replica.to_string(), metrics.to_string());
        let mut arguments = vec!["serve", "--database", database, "--upstream", &upstream];
        arguments.extend(["--listen", &listen, "--metrics-listen", &metrics_listen]);
        arguments.extend(["--upstream-requests-per-minute", "0", "--log", "warn"]);
        arguments.extend(["--signature-tables", &self.args.signatures.signature_tables]);
        Ok((Process::start(&arguments, self.cgroup())?, replica, metrics))
    }

    /// A database with nothing in it, in the place of the one before.
    fn fresh(&mut self, backend: Backend) -> anyhow::Result<String> {
        match (backend, &mut self.server) {
            (Backend::Postgres, Some(server)) => server.fresh(),
            (Backend::Postgres, None) => bail!(postgres::ABSENT),
            (Backend::Sqlite, _) => {
                let directory = self.work.0.join("sqlite");
                if directory.exists() {
                    fs::remove_dir_all(&directory)?;
                }
                fs::create_dir(&directory)?;
                Ok(format!("sqlite://{}", directory.join("plc.db").display()))
            }
        }
    }

    fn postgres_usage(&self, backend: Backend) -> Option<(u64, f64)> {
        let server = self.server.as_ref().filter(|_| backend == Backend::Postgres)?;
        server.usage()
    }
}

/// What is measured while following.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    Rate,
    InnerRate,
    Memory,
    PostgresMemory,
    Bytes,
    Processor,
    PostgresProcessor,
    /// Elapsed time of a stage that the replica measures itself.
    Stage(String),
}

impl Quantity {
    /// Its name, its unit, and what is to be reached.
    fn shown(&self, backend: Backend) -> (&str, &'static str, Option<Goal>) {
        let sqlite = backend == Backend::Sqlite;
        match self {
            Quantity::Rate if sqlite => ("follow", "op/s", goal(30_000.0, 45_000.0)),
            Quantity::Rate => ("follow", "op/s", goal(25_000.0, 40_000.0)),
            Quantity::InnerRate => ("follow, from the first commit seen on", "op/s", None),
            Quantity::Memory => ("peak memory while following", "MB", goal(300.0, 150.0)),
            Quantity::PostgresMemory => ("peak memory of Postgres itself", "MB", None),
            Quantity::Bytes if sqlite => ("an operation on disk", "bytes", goal(280.0, 220.0)),
            Quantity::Bytes => ("an operation on disk", "bytes", goal(330.0, 270.0)),
            Quantity::Processor => ("processor time an operation", "µs", None),
            Quantity::PostgresProcessor => ("processor time in Postgres itself", "µs", None),
            Quantity::Stage(name) => (name, "µs", None),
        }
    }
}

fn goal(least: f64, aim: f64) -> Option<Goal> {
    Some(Goal { least, aim })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What the reader of the figures has to know.
fn settings(args: &Args) -> Vec<String> {
    let mut settings = vec![format!(
        "{} operations followed, {} runs, {} connections for lookups.",
        args.operations, args.runs, args.connections
    )];
    if !args.postgres_setting.is_empty() {
        settings.push(format!("Postgres with {}.", args.postgres_setting.join(", ")));
    }
    if let Some(limit) = args.memory_limit {
        settings.push(format!("Memory, page cache included, held to {limit} MB."));
    }
    settings
}

/// Bytes of a database with all that belongs to it, once what is pending is written.
fn size(backend: Backend, database: &str) -> anyhow::Result<u64> {
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

/// Runs a part of the benchmark; what it prints.
fn outcome<T: DeserializeOwned + Serialize>(arguments: &[&str]) -> anyhow::Result<T> {
    let ended = run_to_end(arguments, None)?;
    ensure!(ended.status.success(), "`{}`: {}", arguments.join(" "), ended.status);
    serde_json::from_str(ended.output.trim()).context("a part of the benchmark said nothing")
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}
