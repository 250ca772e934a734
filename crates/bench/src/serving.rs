//! What a replica that is up to date does under load: lookups, audit logs, pages of the export.

use std::net::SocketAddr;

use anyhow::{Context, ensure};

use crate::load::{self, Outcome};
use crate::report::{Goal, Report, goal, megabytes};
use crate::scope::Backend;
use crate::stand::{Replica, START, Stand};
use crate::turns::{Each, Program, by_turns};
use crate::{say, wrk};

/// Connections that ask for pages of the export.
const EXPORT_CONNECTIONS: u64 = 4;
/// Load before the load that is measured.
const WARM_UP_SECONDS: u64 = 2;
/// Identities that have ended answer 404: of a hundred about one has.
const MOST_OTHER_ANSWERS: f64 = 0.02;

/// Replicas under load, each on its own store.
struct Serving<'a> {
    stand: &'a Stand<'a>,
    backend: Backend,
    replicas: Each<Replica>,
}

/// What load came to, and what it cost the replica.
struct Loaded {
    outcome: Outcome,
    /// Microseconds of the replica's processor time an answer.
    processor: f64,
}

/// Measures all that is wanted of it.
pub fn measure(
    stand: &Stand<'_>,
    backend: Backend,
    databases: &Each<String>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let _upstream = stand.start_upstream()?;
    let replicas = Each::of(stand.is_compared(), |program| {
        let database = databases.get(program).context("a program without a database")?;
        let mut replica = stand.start_replica(program, database)?;
        replica.wait_for(stand.scope.operations, START)?;
        anyhow::Ok(replica)
    })?;
    let serving = Serving { stand, backend, replicas };
    let lookup = match backend {
        Backend::Sqlite => goal(20_000.0, 40_000.0),
        Backend::Postgres => goal(15_000.0, 30_000.0),
    };
    let audit = goal(10_000.0, 20_000.0);
    for (task, suffix, goal) in [("lookup", "", lookup), ("audit", "/log/audit", audit)] {
        if stand.scope.wants(task, Some(backend)) {
            serving.look_up(suffix, goal, report)?;
        }
    }
    if stand.scope.wants("export", Some(backend)) {
        serving.export(report)?;
    }
    let memory =
        serving.replicas.map(|replica| vec![megabytes(replica.process.usage().peak_memory)]);
    report.row("peak memory while serving", Some(backend), "MB", None, memory);
    let Each { measured, against } = serving.replicas;
    measured.process.end()?;
    against.map_or(Ok(()), |replica| replica.process.end())
}

impl Serving<'_> {
    fn look_up(&self, suffix: &str, goal: Option<Goal>, report: &mut Report) -> anyhow::Result<()> {
        let (name, scope) = (format!("`GET /{{did}}{suffix}`"), self.stand.scope);
        let backend = Some(self.backend);
        Each::of(self.stand.is_compared(), |program| {
            self.loaded(program, |replica| self.ask(replica, suffix, WARM_UP_SECONDS))
        })?;
        let loaded = by_turns(self.stand.is_compared(), scope.runs, |program, run| {
            say(&format!("{name} on {}, run {run}", self.backend.name()));
            self.loaded(program, |replica| self.ask(replica, suffix, scope.seconds))
        })?;
        let rates = loaded.values(|loaded| loaded.outcome.requests_per_second);
        report.row(&name, backend, "/s", goal, rates);
        let processor = loaded.values(|loaded| loaded.processor);
        report.row(
            &format!("{name}, processor time of the replica"),
            backend,
            "µs",
            None,
            processor,
        );
        let p50 = loaded.values(|loaded| loaded.outcome.p50_milliseconds);
        report.row(&format!("{name}, p50"), backend, "ms", None, p50);
        let p99 = loaded.values(|loaded| loaded.outcome.p99_milliseconds);
        report.row(&format!("{name}, p99"), backend, "ms", None, p99);
        Ok(())
    }

    fn export(&self, report: &mut Report) -> anyhow::Result<()> {
        let scope = self.stand.scope;
        // All pages are full.
        let operations = scope.operations.saturating_sub(1_000).to_string();
        let path = "/export?after={after}&count=1000";
        let more = ["--operations", &*operations];
        let loaded = by_turns(self.stand.is_compared(), scope.runs, |program, run| {
            say(&format!("export pages from {}, run {run}", self.backend.name()));
            let loaded = self.loaded(program, |replica| {
                self.stand.load(replica, path, EXPORT_CONNECTIONS, scope.seconds, &more)
            })?;
            ensure!(loaded.outcome.others == 0, "{} pages were refused", loaded.outcome.others);
            Ok(loaded)
        })?;
        let (name, backend) = ("`/export` pages", Some(self.backend));
        let rates = loaded.values(|loaded| loaded.outcome.megabytes_per_second);
        report.row(name, backend, "MB/s", goal(150.0, 400.0), rates);
        let processor = loaded.values(|loaded| loaded.processor);
        report.row(
            &format!("{name}, processor time of the replica"),
            backend,
            "µs",
            None,
            processor,
        );
        Ok(())
    }

    /// Puts load on a program's replica.
    fn loaded(
        &self,
        program: Program,
        load: impl FnOnce(SocketAddr) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<Loaded> {
        let replica = self.replicas.get(program).context("a program without a replica")?;
        let before = replica.process.usage().processor;
        let outcome = load(replica.address)?;
        let used = replica.process.usage().processor - before;
        let processor = used * 1e6 / outcome.requests as f64;
        Ok(Loaded { outcome, processor })
    }

    /// Asks for random identities. Fails when the answers are not those of a full store.
    fn ask(&self, replica: SocketAddr, suffix: &str, seconds: u64) -> anyhow::Result<Outcome> {
        let (dids, connections) = (&self.stand.dids, self.stand.scope.connections);
        let outcome: load::Outcome = if self.stand.scope.wrk {
            wrk::run(replica, dids, suffix, connections, seconds)?
        } else {
            let path = format!("/{{did}}{suffix}");
            let more = ["--dids", &dids.to_string_lossy()];
            self.stand.load(replica, &path, connections, seconds, &more)?
        };
        let others = outcome.others as f64 / outcome.requests as f64;
        ensure!(others < MOST_OTHER_ANSWERS, "{:.1} % of the answers are not 200", others * 100.0);
        Ok(outcome)
    }
}
