//! What is looked at every second, and said every minute.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::trend::{Allowed, Trend};
use crate::child::{Held, health};
use crate::clients::failures::Failures;
use crate::clients::lookups::{Lookups, Window};
use crate::clients::readers::Readers;
use crate::report::{megabytes, number, quantile};
use crate::scope::Backend;
use crate::stand::{Replica, Stand};
use crate::upstream::Upstream;

/// How often something is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two values of a trend.
const TREND: u64 = 5;
/// Caches fill at first, and what is kept for readers that fall behind, which is two minutes of the log: so much
/// of the time at most is left out of the trends, and a third of it.
const WARM_UP: Duration = Duration::from_secs(180);
/// Memory that each replica may grow by, in megabytes. On SQLite an hour at 200 operations a second brings some 30 of
/// them by itself: what is not in the index of identities yet is known in memory, up to half a million operations.
const MEMORY: Allowed = Allowed { per_hour: 48.0, in_all: 16.0 };
/// The same for open descriptors. Slow readers come and go.
const DESCRIPTORS: Allowed = Allowed { per_hour: 20.0, in_all: 8.0 };

/// All that runs.
pub struct Watched<'a> {
    pub stand: &'a Stand<'a>,
    pub backend: Backend,
    pub upstream: Upstream,
    pub replica: Replica,
    pub follower: Replica,
    pub readers: Readers,
    pub lookups: Lookups,
    pub failures: std::sync::Arc<Failures>,
}

/// How many operations each one lacks that the upstream has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Behind {
    pub replica: u64,
    pub follower: u64,
    /// The last of those that read at once.
    pub readers: u64,
}

impl Behind {
    /// The one that lacks most.
    pub fn most(&self) -> u64 {
        self.replica.max(self.follower).max(self.readers)
    }

    /// The more of both.
    pub fn or_more(&self, other: &Behind) -> Behind {
        Behind {
            replica: self.replica.max(other.replica),
            follower: self.follower.max(other.follower),
            readers: self.readers.max(other.readers),
        }
    }
}

/// What a second was like.
pub struct Second {
    pub window: Window,
    /// 99 of a hundred lookups were faster.
    pub p99: u32,
    pub behind: Behind,
}

impl Watched<'_> {
    /// Looks at what has happened since it was looked at last.
    pub async fn look(&mut self) -> anyhow::Result<Second> {
        self.replica.process.check()?;
        self.follower.process.check()?;
        let mut window = self.lookups.take();
        window.microseconds.sort_unstable();
        let p99 = quantile(&window.microseconds, 0.99);
        Ok(Second { p99, behind: self.behind().await?, window })
    }

    /// A replica that does not say how far it is has failed to answer a request, and is not counted as behind.
    async fn behind(&self) -> anyhow::Result<Behind> {
        let present = self.upstream.present();
        let readers = present.saturating_sub(self.readers.slowest());
        let (replica, follower) = (self.replica.address, self.follower.address);
        // The upstream is served on this thread meanwhile.
        let healths = tokio::task::spawn_blocking(move || [health(replica), health(follower)]);
        let [replica, follower] = healths.await?.map(|health| match health {
            Ok(health) => present.saturating_sub(health.sequence),
            Err(error) => {
                self.failures.add(format!("a replica does not say how it is: {error:#}"));
                0
            }
        });
        Ok(Behind { replica, follower, readers })
    }
}

/// Looks that come by the clock.
pub fn looks() -> Interval {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// What was seen over the time.
#[derive(Default)]
pub struct Seen {
    /// All latencies.
    pub window: Window,
    /// The p99 of each second.
    pub seconds: Vec<u32>,
    /// The most at any look.
    pub behind: Behind,
    trends: [Trend; 4],
}

/// What the trends are of, how it is written, and how much each may grow.
const TRENDS: [(&str, &str, Allowed); 4] = [
    ("memory of the replica", "MB", MEMORY),
    ("memory of the follower", "MB", MEMORY),
    ("open descriptors of the replica", "", DESCRIPTORS),
    ("open descriptors of the follower", "", DESCRIPTORS),
];

impl Seen {
    /// The trends in words, each with its bound; what is beyond it goes to `complaints`.
    pub fn trends(&self, complaints: &mut Vec<String>) -> Vec<String> {
        let mut said = Vec::new();
        for ((name, unit, allowed), trend) in TRENDS.iter().zip(&self.trends) {
            let Some(slope) = trend.per_hour() else { continue };
            let bound = trend.bound(*allowed);
            let words = format!("{name}: {slope:+.1} {unit} an hour (bound {bound:.0})");
            if slope > bound {
                complaints.push(words.clone());
            }
            said.push(words);
        }
        said
    }
}

/// The head of the table of minutes.
pub fn print_head() {
    println!(
        "\n| minute | lookups | p50 ms | p99 ms | max ms | failed | replica MB | files | follower MB | files | Postgres \
         MB | operations | behind | follower behind | readers behind | readers put off | load |"
    );
    println!("| ---: {}|", "| ---: ".repeat(16));
}

/// Looks for so long, and says every minute what was seen.
pub async fn watch(watched: &mut Watched<'_>, time: Duration) -> anyhow::Result<Seen> {
    let (begun, mut looks) = (Instant::now(), looks());
    let warm_up = WARM_UP.min(time / 3);
    let (mut seen, mut minute, mut behind, mut count) =
        (Seen::default(), Window::default(), Behind::default(), 0);
    looks.tick().await;
    while begun.elapsed() < time {
        looks.tick().await;
        let second = watched.look().await?;
        seen.seconds.push(second.p99);
        behind = behind.or_more(&second.behind);
        minute.extend(second.window);
        count += 1;
        let now = begun.elapsed();
        let held = (watched.replica.process.held()?, watched.follower.process.held()?);
        if count % TREND == 0 && now >= warm_up {
            let (replica, follower) = held;
            let values = [
                megabytes(replica.memory),
                megabytes(follower.memory),
                replica.descriptors as f64,
                follower.descriptors as f64,
            ];
            seen.trends.iter_mut().zip(values).for_each(|(trend, value)| trend.add(now, value));
        }
        if count % 60 == 0 || now >= time {
            minute.microseconds.sort_unstable();
            print_minute(watched, now, &minute, behind, held);
            seen.behind = seen.behind.or_more(&std::mem::take(&mut behind));
            seen.window.extend(std::mem::take(&mut minute));
        }
    }
    seen.window.microseconds.sort_unstable();
    Ok(seen)
}

fn print_minute(
    watched: &Watched<'_>,
    at: Duration,
    minute: &Window,
    behind: Behind,
    (replica, follower): (Held, Held),
) {
    let milliseconds = |share| number(f64::from(quantile(&minute.microseconds, share)) / 1e3);
    let database = watched.stand.database_usage(watched.backend);
    let database = database.map_or_else(|| "–".to_owned(), |(memory, _)| number(megabytes(memory)));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "| {:.1} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        at.as_secs_f64() / 60.0,
        minute.answered(),
        milliseconds(0.5),
        milliseconds(0.99),
        milliseconds(1.0),
        watched.failures.count() + minute.put_off,
        number(megabytes(replica.memory)),
        replica.descriptors,
        number(megabytes(follower.memory)),
        follower.descriptors,
        database,
        watched.upstream.present(),
        behind.replica,
        behind.follower,
        behind.readers,
        watched.readers.returned(),
        load.split(' ').next().unwrap_or_default(),
    );
}
