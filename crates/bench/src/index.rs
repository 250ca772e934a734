//! The index of claims: how long it takes to build, what it takes of the disk and of following, and
//! how fast it answers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::child::wait_until;
use crate::follow::{SLOWEST, size};
use crate::load::Outcome;
use crate::log::kept_handles;
use crate::scope::Backend;
use crate::stand::{START, Stand};
use crate::turns::Program;
use crate::{http, stand};

/// What one run has measured.
pub struct Measured {
    /// Operations a second that were brought into the index, from a store that had none.
    pub built: f64,
    /// Bytes of the index by operation.
    pub bytes: f64,
    /// Operations a second from an empty database to the last commit and a complete index.
    pub followed: f64,
    /// The same without an index.
    pub followed_without: f64,
    /// Look-ups of random handles.
    pub lookups: Outcome,
}

/// Measures one run. Leaves a database with an index behind.
pub fn measure(
    stand: &mut Stand<'_>,
    backend: Backend,
    program: Program,
) -> anyhow::Result<Measured> {
    let _upstream = stand.start_upstream()?;
    let operations = stand.scope.operations as f64;
    let database = stand.fresh(backend, program)?;
    let without = follow(stand, program, &database, false)?;
    let before = size(backend, &database)?;

    let mut replica = stand.start_replica_with(program, &database, &["--index"])?;
    let mut begun = None;
    complete(&mut replica, stand.scope.operations, &mut begun)?;
    let built = begun.context("the index was never seen to begin")?.elapsed();
    let handles = kept_handles(&stand.log.path, stand.scope.operations)?;
    let more = ["--dids", &handles.to_string_lossy()];
    let (connections, seconds) = (stand.scope.connections, stand.scope.seconds);
    let lookups =
        stand.load(replica.address, "/_lookup?handle={did}", connections, seconds, &more)?;
    ensure!(lookups.others == 0, "{} look-ups were refused", lookups.others);
    replica.process.end()?;
    let bytes = size(backend, &database)?.saturating_sub(before) as f64 / operations;

    let database = stand.fresh(backend, program)?;
    let with = follow(stand, program, &database, true)?;
    Ok(Measured {
        built: operations / built.as_secs_f64(),
        bytes,
        followed: operations / with.as_secs_f64(),
        followed_without: operations / without.as_secs_f64(),
        lookups,
    })
}

/// How long it takes from the start of the process to the last commit, and to a complete index.
fn follow(
    stand: &Stand<'_>,
    program: Program,
    database: &str,
    index: bool,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let operations = stand.scope.operations;
    let more: &[&str] = if index { &["--index"] } else { &[] };
    let mut replica = stand.start_replica_with(program, database, more)?;
    replica.wait_for(operations, START + Duration::from_secs(operations / SLOWEST))?;
    if index {
        complete(&mut replica, operations, &mut None)?;
    }
    let took = begun.elapsed();
    replica.process.end()?;
    Ok(took)
}

/// Waits for a complete index; `begun` is when it was first seen.
fn complete(
    replica: &mut stand::Replica,
    operations: u64,
    begun: &mut Option<Instant>,
) -> anyhow::Result<()> {
    wait_until(START + Duration::from_secs(operations / SLOWEST), || {
        replica.process.check()?;
        let index = state(replica.address)?;
        if index.is_some() {
            begun.get_or_insert_with(Instant::now);
        }
        Ok(index == Some(true))
    })
    .context("the index does not get complete")
}

/// Whether there is an index, and whether that is complete.
fn state(replica: SocketAddr) -> anyhow::Result<Option<bool>> {
    #[derive(serde::Deserialize)]
    struct Page {
        complete: bool,
    }
    match http::get(replica, "/_lookup?handle=nobody.example") {
        Ok((200, body)) => Ok(Some(serde_json::from_slice::<Page>(&body)?.complete)),
        _ => Ok(None),
    }
}
