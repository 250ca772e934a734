//! Five times what a replica takes, for a while; and how long it needs afterwards until all is as before.

use std::time::Duration;

use tokio::time::Instant;

use super::watch::{Behind, Watched, looks};
use crate::load;
use crate::report::{number, quantile};
use crate::stand::outcome;

/// How many times what it takes.
const TIMES: u64 = 5;
/// Clients and seconds of the load that shows what it can do.
const CAPACITY: (u64, u64) = (64, 5);
/// All is as before when the p99 of a second is less than this many times what it was, or as short as this.
const AS_BEFORE: (u32, Duration) = (2, Duration::from_millis(25));
/// It is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Identities that have ended answer 404: of a hundred about one has.
const MOST_OTHER_ANSWERS: f64 = 0.02;

/// How it is overloaded.
pub struct Plan {
    /// Requests that the replica answers at a time.
    pub at_a_time: u64,
    pub seconds: u64,
    /// The p99 of a usual second, in microseconds.
    pub usual: u32,
    /// Operations that it may be behind.
    pub most_behind: u64,
    /// How long it may take until all is as before.
    pub recovery: Duration,
}

/// Overloads the replica; what came of it in words, and what should not have happened to `complaints`.
pub async fn overload(
    watched: &mut Watched<'_>,
    plan: &Plan,
    complaints: &mut Vec<String>,
) -> anyhow::Result<Vec<String>> {
    let (connections, seconds) = CAPACITY;
    let (capacity, _) = under(watched, connections, seconds.min(plan.seconds)).await?;
    let clients = TIMES * plan.at_a_time;
    let (outcome, seen) = under(watched, clients, plan.seconds).await?;
    let recovered = recover(watched, plan).await?;

    let others = outcome.others as f64 / outcome.requests.max(1) as f64;
    if others > MOST_OTHER_ANSWERS {
        complaints.push(format!("{:.1} % of the answers are not 200", others * 100.0));
    }
    if outcome.put_off == 0 {
        complaints.push("nothing was put off under overload".to_owned());
    }
    if outcome.requests == 0 {
        complaints.push("nothing was answered under overload".to_owned());
    }
    if seen.behind.most() > plan.most_behind {
        complaints.push(format!("under overload something was behind: {:?}", seen.behind));
    }
    if recovered.is_none_or(|recovered| recovered > plan.recovery) {
        complaints.push(format!("it had not recovered within {:?}", plan.recovery));
    }
    let per_second = |count: u64| number(count as f64 / plan.seconds as f64);
    let milliseconds = |share| number(f64::from(quantile(&seen.microseconds, share)) / 1e3);
    Ok(vec![
        format!(
            "what it can do: {} lookups a second to {connections} clients that ask again at once, beside all the rest",
            number(capacity.requests_per_second)
        ),
        format!(
            "{clients} such clients for {} s, {TIMES} times the {} requests that it answers at a time: {} a second \
             answered (p50 {} ms, p99 {} ms), {} a second put off with 503 or 429",
            plan.seconds,
            plan.at_a_time,
            per_second(outcome.requests),
            number(outcome.p50_milliseconds),
            number(outcome.p99_milliseconds),
            per_second(outcome.put_off),
        ),
        format!(
            "the lookups by the clock meanwhile: {} answered (p50 {} ms, p99 {} ms, max {} ms), {} put off",
            seen.microseconds.len(),
            milliseconds(0.5),
            milliseconds(0.99),
            milliseconds(1.0),
            seen.put_off
        ),
        format!(
            "operations meanwhile: the replica was {} behind at most, the follower {}, the readers {} (bound {})",
            seen.behind.replica, seen.behind.follower, seen.behind.readers, plan.most_behind
        ),
        match recovered {
            Some(recovered) => format!(
                "as before {:.0} s after the end (a second with nothing put off or behind, p99 below {} ms)",
                recovered.as_secs_f64(),
                number(f64::from(plan.as_before()) / 1e3)
            ),
            None => format!("not as before {PATIENCE:?} after the end"),
        },
    ])
}

impl Plan {
    /// The p99 of a second that is as before, in microseconds.
    fn as_before(&self) -> u32 {
        let (times, short) = AS_BEFORE;
        (self.usual * times).max(short.as_micros() as u32)
    }
}

/// What was seen under load.
#[derive(Default)]
struct Seen {
    microseconds: Vec<u32>,
    put_off: u64,
    behind: Behind,
}

/// Looks on while a process of its own asks.
async fn under(
    watched: &mut Watched<'_>,
    clients: u64,
    seconds: u64,
) -> anyhow::Result<(load::Outcome, Seen)> {
    let arguments = [
        ("--server", watched.replica.address.to_string()),
        ("--dids", watched.stand.dids.to_string_lossy().into_owned()),
        ("--connections", clients.to_string()),
        ("--seconds", seconds.to_string()),
    ];
    let mut loading = tokio::task::spawn_blocking(move || {
        let pairs = arguments.iter().flat_map(|(name, value)| [*name, value.as_str()]);
        outcome::<load::Outcome>(&["load"].into_iter().chain(pairs).collect::<Vec<_>>())
    });
    let (mut seen, mut looks) = (Seen::default(), looks());
    loop {
        tokio::select! {
            loaded = &mut loading => {
                seen.microseconds.sort_unstable();
                return Ok((loaded??, seen));
            }
            _ = looks.tick() => {
                let second = watched.look().await?;
                seen.microseconds.extend(second.window.microseconds);
                seen.put_off += second.window.put_off;
                seen.behind = seen.behind.or_more(&second.behind);
            }
        }
    }
}

/// How long it takes until a second is as before.
async fn recover(watched: &mut Watched<'_>, plan: &Plan) -> anyhow::Result<Option<Duration>> {
    let (begun, mut looks) = (Instant::now(), looks());
    looks.tick().await;
    watched.look().await?;
    while begun.elapsed() < PATIENCE {
        looks.tick().await;
        let second = watched.look().await?;
        // A second's operations are on their way in a busy one.
        let as_before = second.p99 <= plan.as_before()
            && second.window.put_off == 0
            && second.window.answered() > 0
            && second.behind.most() <= plan.most_behind / 4;
        if as_before {
            return Ok(Some(begun.elapsed()));
        }
    }
    Ok(None)
}
