//! What lookups, and telling readers of commits, take of the processor in each part of a fleet.
//!
//! The machine has as many cores as it has: so it is said what something costs, and not how many of it there can be.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::sleep;

use super::Args;
use super::stand::Fleet;
use crate::clients::readers::{Clients, Readers};
use crate::load;
use crate::log;
use crate::postgres::processor_of;
use crate::report::number;
use crate::stand::outcome;
use crate::upstream::Upstream;

/// Operations that are told a second.
const RATE: u32 = 200;
/// After something was started, and before it is measured.
const SETTLE: Duration = Duration::from_secs(3);
/// Requests at a time: one alone, and as many as share their queries.
const AT_A_TIME: [u64; 2] = [1, 32];

/// Seconds of processor time of each part so far.
#[derive(Debug, Clone, Copy)]
struct Used {
    follower: f64,
    primary: f64,
    standby: f64,
    reader: f64,
}

impl Used {
    fn so_far(fleet: &Fleet) -> Used {
        Used {
            follower: fleet.follower.processor(),
            primary: processor_of(fleet.primary.process()),
            standby: processor_of(fleet.standby.process()),
            reader: fleet.readers[0].processor(),
        }
    }

    fn since(self, before: Used) -> Used {
        Used {
            follower: self.follower - before.follower,
            primary: self.primary - before.primary,
            standby: self.standby - before.standby,
            reader: self.reader - before.reader,
        }
    }

    /// Microseconds of each part for each of so many, as cells of a table.
    fn for_each(self, count: u64) -> String {
        let parts = [self.follower, self.primary, self.standby, self.reader];
        parts.map(|seconds| number((seconds * 1e6 / count as f64).max(0.0))).join(" | ")
    }
}

/// How a fleet reads.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// There are no readers.
    None,
    /// Both from the primary, where they are notified of commits.
    Primary,
    /// Lookups from the standby, and of commits they are notified by the primary.
    Both,
    /// From the standby alone, which they ask for commits.
    Standby,
}

impl Reading {
    const ALL: [Reading; 4] = [Reading::None, Reading::Primary, Reading::Both, Reading::Standby];

    const fn name(self) -> &'static str {
        match self {
            Reading::None => "no reader",
            Reading::Primary => "two readers on the primary",
            Reading::Both => "two readers on the primary and the standby",
            Reading::Standby => "two readers on the standby alone",
        }
    }

    fn database(self, fleet: &Fleet) -> Option<Vec<String>> {
        match self {
            Reading::None => None,
            Reading::Primary => Some(fleet.reading_alone(&fleet.primary)),
            Reading::Both => Some(fleet.reading()),
            Reading::Standby => Some(fleet.reading_alone(&fleet.standby)),
        }
    }

    /// Has the readers of a fleet read so, and nobody else wait for anything.
    async fn begin(self, fleet: &mut Fleet) -> anyhow::Result<()> {
        fleet.spare.end()?;
        let database = self.database(fleet);
        for reader in &mut fleet.readers {
            reader.end()?;
            if let Some(database) = &database {
                reader.start(database)?;
            }
        }
        sleep(SETTLE).await;
        Ok(())
    }
}

/// Measures all of it, each for so many seconds, and prints it.
pub async fn measure(
    args: &Args,
    mut fleet: Fleet,
    upstream: &Upstream,
    log: &log::Kept,
) -> anyhow::Result<()> {
    let dids = log::kept_dids(&log.path, args.operations)?;
    let dids = dids.to_string_lossy();
    println!(
        "\nMicroseconds of processor time for a lookup (`GET /{{did}}` of a random identity):\n"
    );
    println!("| readers | requests at a time | a second | follower | primary | standby | reader |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for reading in [Reading::Primary, Reading::Both] {
        reading.begin(&mut fleet).await?;
        for at_a_time in AT_A_TIME {
            lookups(args, &fleet, reading, &dids, at_a_time).await?;
        }
    }
    operations(args, &mut fleet, upstream).await
}

async fn lookups(
    args: &Args,
    fleet: &Fleet,
    reading: Reading,
    dids: &str,
    at_a_time: u64,
) -> anyhow::Result<()> {
    let (server, connections) = (fleet.readers[0].address.to_string(), at_a_time.to_string());
    let seconds = args.away.to_string();
    let arguments = ["load", "--server", &server, "--dids", dids, "--connections", &connections];
    let arguments = [&arguments[..], &["--seconds", &seconds]].concat();
    // What is kept in memory is kept.
    outcome::<load::Outcome>(&arguments)?;
    let idle = used_in(args, fleet).await;
    let before = Used::so_far(fleet);
    let loaded: load::Outcome = outcome(&arguments)?;
    let used = Used::so_far(fleet).since(before).since(idle);
    ensure!(loaded.requests > 0, "nothing was answered");
    println!(
        "| {} | {at_a_time} | {} | {} |",
        reading.name(),
        number(loaded.requests_per_second),
        used.for_each(loaded.requests)
    );
    Ok(())
}

/// What operations cost, beyond what time costs by itself, which is measured before any come. A client of the stream of each
/// process is told of them.
async fn operations(args: &Args, fleet: &mut Fleet, upstream: &Upstream) -> anyhow::Result<()> {
    println!("\nMicroseconds of processor time for a second in which nothing happens:\n");
    println!("| readers | follower | primary | standby | a reader |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let mut idle = Vec::new();
    for reading in Reading::ALL {
        reading.begin(fleet).await?;
        let _clients = listen(fleet, upstream.present()).await?;
        let used = used_in(args, fleet).await;
        println!("| {} | {} |", reading.name(), used.for_each(args.away));
        idle.push(used);
    }
    let growing = upstream.clone();
    tokio::spawn(async move { growing.grow(RATE, u64::MAX, |_| {}).await });
    println!("\nMicroseconds of processor time for an operation, at {RATE} a second:\n");
    println!("| readers | follower | primary | standby | a reader |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for (reading, idle) in Reading::ALL.into_iter().zip(idle) {
        reading.begin(fleet).await?;
        let _clients = listen(fleet, upstream.present()).await?;
        let before = upstream.present();
        let used = used_in(args, fleet).await.since(idle);
        println!("| {} | {} |", reading.name(), used.for_each(upstream.present() - before));
    }
    Ok(())
}

/// A client of the stream of each process that runs, until it is dropped.
async fn listen(fleet: &Fleet, after: u64) -> anyhow::Result<Vec<Readers>> {
    let one = Clients { steady: 0, slow: 0, returning: 1 };
    let mut clients = Vec::new();
    for member in fleet.members().filter(|member| member.runs()) {
        clients.push(Readers::start(member.address, one, after, &Arc::default()).await?);
    }
    Ok(clients)
}

/// What is used in the time that is measured.
async fn used_in(args: &Args, fleet: &Fleet) -> Used {
    let before = Used::so_far(fleet);
    sleep(Duration::from_secs(args.away)).await;
    Used::so_far(fleet).since(before)
}
