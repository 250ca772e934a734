//! A fleet under load: one thing after the other goes wrong, and it is quiet before and after.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use did_plc::entry::Entry;
use plc_testkit::telling::Telling;
use tokio::time::{Instant, sleep};

use super::Args;
use super::failure::Failure;
use super::phase::{Bounds, Phase, print_head};
use super::promise::ByPromise;
use super::stand::Fleet;
use super::watch::Watch;
use crate::clients::failures::Failures;
use crate::clients::lookups::Lookups;
use crate::clients::questions::Identities;
use crate::clients::readers::{Clients, Readers};
use crate::log::{Kept, Log};
use crate::upstream::Upstream;

/// How long it may take until all is as before.
const RECOVERY: Duration = Duration::from_secs(60);
/// What was said is with everybody after this when all is as before.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// What a busy machine may add to that while it is quiet.
const BUSY: Duration = Duration::from_secs(2);
/// Between two looks whether all is as before.
const LOOK: Duration = Duration::from_millis(200);

/// The fleet, its clients, and what they have seen.
pub struct Scenario<'a> {
    args: &'a Args,
    fleet: Fleet,
    upstream: Upstream,
    watch: Watch,
    readers: Arc<Vec<Readers>>,
    lookups: Lookups,
    /// What lookups have met.
    asked: Arc<Failures>,
    /// What clients of the stream have met.
    streamed: Arc<Failures>,
    complaints: Vec<String>,
}

impl Scenario<'_> {
    /// Has clients come to a fleet, and the upstream say more all the time.
    pub async fn start<'a>(
        args: &'a Args,
        fleet: Fleet,
        upstream: Upstream,
        log: &Kept,
    ) -> anyhow::Result<Scenario<'a>> {
        let (told, lines) = (Arc::new(Telling::default()), Log::open(&log.path)?);
        (1..=args.operations).try_for_each(|sequence| note(&told, &lines, sequence))?;
        wait_for("the fleet", || fleet.unwell()).await?;

        let (asked, streamed) = (Arc::<Failures>::default(), Arc::<Failures>::default());
        let clients = Clients { steady: 0, slow: 0, returning: args.clients };
        let servers: Vec<SocketAddr> =
            fleet.members().map(|member| member.address).chain([fleet.proxy_address]).collect();
        let mut readers = Vec::new();
        for server in servers {
            readers.push(Readers::start(server, clients, args.operations, &streamed).await?);
        }
        let readers = Arc::new(readers);
        let watch = Watch::start(&told, &readers);
        let identities = Arc::new(Identities::read(&log.path)?);
        let judge = Arc::new(ByPromise(Arc::clone(&told)));
        let (growing, rate) = (upstream.clone(), args.rate);
        tokio::spawn(async move {
            // A line that cannot be read is not served either.
            growing.grow(rate, u64::MAX, |next| drop(note(&told, &lines, next))).await;
        });
        let (proxy, rate, held) = (fleet.proxy_address, args.lookups, watch.held());
        let lookups = Lookups::start(proxy, rate, &identities, held, judge, &asked);
        let complaints = Vec::new();
        Ok(Scenario { args, fleet, upstream, watch, readers, lookups, asked, streamed, complaints })
    }

    /// All of it; what was not as it has to be.
    pub async fn play(mut self) -> anyhow::Result<Vec<String>> {
        print_head();
        self.rest().await?;
        for failure in Failure::ALL {
            if failure == Failure::Network && !self.fleet.network.is_own {
                println!(
                    "| {}: left out, no network namespaces can be made here |",
                    failure.name()
                );
                continue;
            }
            self.suffer(failure).await?;
            self.rest().await?;
        }
        self.end().await
    }

    /// Nothing goes wrong.
    async fn rest(&mut self) -> anyhow::Result<()> {
        let bounds = Bounds {
            without_following: ON_ITS_WAY + BUSY,
            stream_lacks: Some(ON_ITS_WAY + BUSY),
            slowest: self.args.slowest,
            may_return: false,
        };
        let quiet = Duration::from_secs(self.args.quiet);
        self.phase("nothing", bounds, async |_| {
            sleep(quiet).await;
            Ok(())
        })
        .await
    }

    async fn suffer(&mut self, failure: Failure) -> anyhow::Result<()> {
        let away = Duration::from_secs(self.args.away);
        let bounds = Bounds {
            without_following: failure.most_without_following(away),
            stream_lacks: None,
            slowest: self.args.slowest,
            may_return: true,
        };
        self.phase(failure.name(), bounds, async |fleet| failure.happen(fleet, away).await).await
    }

    /// Something happens. What is seen meanwhile, and until all is as before, is a row of the table.
    async fn phase(
        &mut self,
        name: &'static str,
        bounds: Bounds,
        happens: impl AsyncFnOnce(&mut Fleet) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (returned, disordered) = (self.returned(), self.streamed.count());
        drop((self.lookups.take(), self.watch.take()));
        happens(&mut self.fleet).await?;
        let mended = Instant::now();
        self.fleet.check()?;
        if let Err(error) = self.is_as_before().await {
            self.complaints.push(format!("{name}: {error:#}"));
        }
        let mut window = self.lookups.take();
        window.microseconds.sort_unstable();
        let phase = Phase {
            name,
            took: begun.elapsed(),
            recovered: mended.elapsed(),
            window,
            lacking: self.watch.take(),
            returned: self.returned() - returned,
            disordered: self.streamed.count() - disordered,
        };
        phase.print();
        self.complaints.extend(phase.complaints(bounds));
        Ok(())
    }

    /// Waits until everybody is well, and has what was said.
    async fn is_as_before(&self) -> anyhow::Result<()> {
        let (fleet, watch) = (&self.fleet, &self.watch);
        wait_for("all to be as before", || {
            let lacking = watch.now().last > ON_ITS_WAY;
            fleet.unwell().or(lacking.then_some("a client of the stream"))
        })
        .await
    }

    fn returned(&self) -> u64 {
        self.readers.iter().map(Readers::returned).sum()
    }

    /// Everybody gets to the last operation, and the database is whole.
    async fn end(self) -> anyhow::Result<Vec<String>> {
        let Scenario {
            fleet,
            upstream,
            watch,
            readers,
            lookups,
            asked,
            streamed,
            mut complaints,
            ..
        } = self;
        drop((lookups, watch));
        let last = upstream.present();
        ensure!(last < upstream.operations(), "the log is too short for how long it took");
        while Arc::strong_count(&readers) > 1 {
            // Who was watching is about to end.
            sleep(LOOK).await;
        }
        for readers in Arc::into_inner(readers).context("somebody still looks")? {
            readers.end(last).await;
        }
        if let Err(error) = fleet.check_database() {
            complaints.push(format!("{error:#}"));
        }
        for (what, failures) in [("lookups", asked), ("streams", streamed)] {
            if failures.count() > 0 {
                complaints.push(format!("{what}: {} failures, the first:", failures.count()));
                complaints.extend(failures.first());
            }
        }
        Ok(complaints)
    }
}

/// Takes down that the upstream says an operation now.
fn note(told: &Telling, lines: &Log, sequence: u64) -> anyhow::Result<()> {
    let line = String::from_utf8(lines.lines(sequence - 1, sequence)?)?;
    let entry = Entry::read(line.trim_end())?;
    told.note(&entry.did, &entry.cid, sequence as i64);
    Ok(())
}

/// Waits until nobody is named any more.
async fn wait_for(
    what: &str,
    mut lacks: impl FnMut() -> Option<&'static str>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while let Some(who) = lacks() {
        ensure!(begun.elapsed() < RECOVERY, "waited {RECOVERY:?} in vain for {what}: {who}");
        sleep(LOOK).await;
    }
    Ok(())
}
