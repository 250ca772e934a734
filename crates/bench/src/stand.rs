//! Where everything is measured: the log, the databases, and the processes that are started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;

use crate::cgroup::Bound;
use crate::child::{Ended, Process, free_address, health, run_to_end, this_program, wait_until};
use crate::scope::{Backend, Scope};
use crate::turns::{Each, Program};
use crate::{http, load, log, postgres};

/// Operations that the log of the table has beyond those that are followed: what the stream brings.
pub const LIVE: u64 = 40_000;
/// How long a server may take to listen.
pub const START: Duration = Duration::from_secs(60);

/// All that a measurement needs.
pub struct Stand<'a> {
    pub scope: &'a Scope,
    programs: Each<PathBuf>,
    pub log: log::Kept,
    /// File with the DIDs of the log.
    pub dids: PathBuf,
    /// Where the upstream of every follower is, one after the other.
    pub upstream: SocketAddr,
    work: Work,
    bound: Option<Bound>,
    server: Option<postgres::Server>,
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

/// A replica that was started, and where it and its metrics listen.
pub struct Replica {
    pub process: Process,
    pub address: SocketAddr,
    pub metrics: SocketAddr,
}

impl<'a> Stand<'a> {
    /// Makes the log unless it is there, with so many operations beyond those that are followed.
    pub fn new(scope: &'a Scope, live: u64) -> anyhow::Result<Stand<'a>> {
        let directory = scope.directory.clone().unwrap_or_else(log::usual_directory);
        let log = log::kept(&directory, scope.seed, scope.operations + live)?;
        let measured = measured_program(scope.replica.as_ref())?;
        let against = scope.against.clone();
        if let Some(against) = &against {
            ensure!(against.is_file(), "--against: {} is not there", against.display());
        }
        Ok(Stand {
            scope,
            programs: Each { measured, against },
            dids: log::kept_dids(&log.path, scope.operations)?,
            log,
            upstream: free_address()?,
            work: Work::new(&directory.canonicalize()?)?,
            bound: scope.memory_limit.map(Bound::new).transpose()?,
            server: None,
        })
    }

    /// Makes sure that there is such a database; false when there is none to be had.
    pub fn prepare(&mut self, backend: Backend) -> anyhow::Result<bool> {
        if backend == Backend::Sqlite {
            return Ok(true);
        }
        self.server = match &self.scope.postgres {
            Some(url) => Some(postgres::Server::existing(url)),
            None => postgres::Server::start(&self.work.0, &self.scope.postgres_setting)?,
        };
        if let (Some(server), Some(bound)) = (&self.server, &self.bound) {
            server.bind(bound)?;
        }
        Ok(self.server.is_some())
    }

    /// Whether there are two programs.
    pub fn is_compared(&self) -> bool {
        self.programs.against.is_some()
    }

    fn program(&self, program: Program) -> anyhow::Result<&Path> {
        Ok(self.programs.get(program).context("there is no such program")?)
    }

    /// A database with nothing in it for a program, in the place of the one that it had before.
    pub fn fresh(&mut self, backend: Backend, program: Program) -> anyhow::Result<String> {
        match (backend, &mut self.server) {
            (Backend::Postgres, Some(server)) => server.fresh(program),
            (Backend::Postgres, None) => bail!(postgres::ABSENT),
            (Backend::Sqlite, _) => {
                let directory = self.work.0.join(match program {
                    Program::Measured => "sqlite",
                    Program::Against => "sqlite-against",
                });
                if directory.exists() {
                    fs::remove_dir_all(&directory)?;
                }
                fs::create_dir(&directory)?;
                Ok(format!("sqlite://{}", directory.join("plc.db").display()))
            }
        }
    }

    /// What the database's own processes use: memory in bytes, processor time in seconds. `None`
    /// of a database that has none, or whose are not ours to look at.
    pub fn database_usage(&self, backend: Backend) -> Option<(u64, f64)> {
        self.server.as_ref().filter(|_| backend == Backend::Postgres)?.usage()
    }

    /// Starts the upstream, with the operations that are to be followed.
    pub fn start_upstream(&self) -> anyhow::Result<Process> {
        let (file, listen) = (self.log.path.to_string_lossy(), self.upstream.to_string());
        let operations = self.scope.operations.to_string();
        let arguments =
            ["upstream", "--log", &file, "--listen", &listen, "--operations", &operations];
        let mut process = Process::start(&this_program()?, &arguments, None)?;
        wait_until(START, || {
            process.check()?;
            let page = http::get(self.upstream, "/export?count=1");
            Ok(page.is_ok_and(|(status, _)| status == 200))
        })?;
        Ok(process)
    }

    /// Starts a program's replica.
    pub fn start_replica(&self, program: Program, database: &str) -> anyhow::Result<Replica> {
        self.start_replica_with(program, database, &[])
    }

    /// Starts a program's replica with more settings.
    pub fn start_replica_with(
        &self,
        program: Program,
        database: &str,
        more: &[&str],
    ) -> anyhow::Result<Replica> {
        self.start_follower(program, database, self.upstream, more)
    }

    /// Starts a program's replica of somebody, with more settings.
    pub fn start_follower(
        &self,
        program: Program,
        database: &str,
        upstream: SocketAddr,
        more: &[&str],
    ) -> anyhow::Result<Replica> {
        let (address, metrics) = (free_address()?, free_address()?);
        let upstream = format!("http://{upstream}");
        let (listen, metrics_listen) = (address.to_string(), metrics.to_string());
        let mut arguments = vec!["serve", "--database", database, "--upstream", &upstream];
        arguments.extend(["--listen", &listen, "--metrics-listen", &metrics_listen]);
        // The generated upstream has no audit logs to compare with, and all of its times are old.
        arguments.extend(["--audit-requests-per-minute", "0", "--log", "error"]);
        arguments.extend(["--upstream-requests-per-minute", "0"]);
        arguments.extend(["--signature-tables", self.signature_tables()]);
        arguments.extend(more);
        let process = Process::start(self.program(program)?, &arguments, self.cgroup())?;
        Ok(Replica { process, address, metrics })
    }

    fn signature_tables(&self) -> &'static str {
        if self.scope.signatures.signature_tables { "on" } else { "off" }
    }

    /// Runs a program's subcommand to its end.
    pub fn run(&self, program: Program, arguments: &[&str]) -> anyhow::Result<Ended> {
        let arguments = [arguments, &["--signature-tables", self.signature_tables()]].concat();
        let ended = run_to_end(self.program(program)?, &arguments, self.cgroup())?;
        ensure!(ended.status.success(), "`{}`: {}", arguments.join(" "), ended.output);
        Ok(ended)
    }

    /// Load by a process of its own, on a server.
    pub fn load(
        &self,
        server: SocketAddr,
        path: &str,
        connections: u64,
        seconds: u64,
        more: &[&str],
    ) -> anyhow::Result<load::Outcome> {
        let (server, connections) = (server.to_string(), connections.to_string());
        let seconds = seconds.to_string();
        let mut arguments = vec!["load", "--server", &server, "--path", path];
        arguments.extend(["--connections", &connections, "--seconds", &seconds]);
        arguments.extend(more);
        outcome(&arguments)
    }

    fn cgroup(&self) -> Option<&Path> {
        self.bound.as_ref().map(Bound::path)
    }
}

/// The program that is measured: the one that is named, or the one beside this.
pub fn measured_program(named: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(program) => program.clone(),
        None => this_program()?.with_file_name("plc-replica"),
    };
    ensure!(
        program.is_file(),
        "{} is not there: build it with `cargo build --release`, or name one with --replica",
        program.display()
    );
    Ok(program)
}

impl Replica {
    /// Waits until the last of these operations is committed.
    pub fn wait_for(&mut self, operations: u64, patience: Duration) -> anyhow::Result<()> {
        wait_until(patience, || {
            self.process.check()?;
            Ok(health(self.address).is_ok_and(|health| health.sequence >= operations))
        })
    }
}

/// Runs a part of the benchmark; what it prints.
pub fn outcome<T: DeserializeOwned>(arguments: &[&str]) -> anyhow::Result<T> {
    let ended = run_to_end(&this_program()?, arguments, None)?;
    ensure!(ended.status.success(), "`{}`: {}", arguments.join(" "), ended.status);
    serde_json::from_str(ended.output.trim()).context("a part of the benchmark said nothing")
}
