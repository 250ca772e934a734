//! `plc-replica audit`: compare our log with others.

mod questions;
mod report;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use crate::audit::clock::GRACE;
use crate::audit::peer::{Dumped, look_up};
use crate::audit::{
    CheckError, Checker, Depth, NewestOperations, Order, Pages, Peer, PeerError, PeerLog,
    Suspicion, Sweep, SweepError, SweepFile, SweepScope, SweptExport,
};
use crate::blocking;
use crate::store::Store;
use anyhow::{Context, bail};
use did_plc::{Did, Timestamp};
use tokio::time::sleep;

use self::questions::{Answered, Patience, Questions};
use self::report::{Report, Summary};
use super::progress::Meter;
use super::settings::without_password;

/// Compare our log with that of a directory, of other replicas, or with dumps.
///
/// Compares the identities that are named, a random sample, everything that changed in a span of
/// time, or everything. What one side cannot have yet is no difference. Prints a line for each
/// difference; ends with 0 when there is none, with 1 when there is one, and with 2 when the
/// comparison could not be made, or not of every identity, or when there was nothing to compare.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true)))]
pub struct Args {
    /// Identities to compare.
    #[arg(group = "what", value_name = "DID")]
    dids: Vec<Did>,
    /// Compare so many identities, chosen at random.
    #[arg(long, group = "what", value_name = "N", conflicts_with = "dids")]
    sample: Option<usize>,
    /// Compare everything that was accepted after this time: `2024-01-31T12:00:00.000Z`, or a day,
    /// which begins at midnight UTC.
    #[arg(
        long,
        group = "what",
        value_name = "TIME",
        conflicts_with_all = ["dids", "sample"],
        value_parser = time
    )]
    since: Option<Timestamp>,
    /// Compare nothing that was accepted after this time. What is dated later than now cannot have been accepted
    /// then, and is compared all the same.
    #[arg(
        long,
        value_name = "TIME",
        conflicts_with_all = ["dids", "sample", "by_sequence"],
        value_parser = time
    )]
    until: Option<Timestamp>,
    /// Compare everything, both exports side by side.
    #[arg(long, group = "what", conflicts_with_all = ["dids", "sample", "since"])]
    full: bool,
    /// Page by sequence number and not by time: compares the numbers, and no nullified flags.
    #[arg(long, requires = "full")]
    by_sequence: bool,
    /// A directory or replica, or a dump; may be given several times. The upstream without it.
    #[arg(long, env = "PLC_AGAINST", hide_env_values = true, value_name = "URL|FILE")]
    against: Vec<String>,
    /// Requests a minute that each of them is sent at most; 0 for no limit.
    #[arg(long, env = "PLC_REQUESTS_PER_MINUTE", value_name = "REQUESTS", default_value_t = 60)]
    requests_per_minute: u32,
    /// Keep the state of a sweep in this file, and go on from there when it exists. It is removed
    /// when everything has been reported.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print JSON: an object a line for each difference with both sides' entries, and one with the
    /// summary of each comparison.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: super::Database,
    #[command(flatten)]
    signatures: super::Signatures,
}

impl Args {
    /// What a sweep is to compare.
    fn asked(&self) -> SweepScope {
        let order = if self.by_sequence { Order::Sequence } else { Order::Time };
        let [since, until] = [self.since, self.until].map(|at| at.map(Timestamp::millis));
        SweepScope { order, since, until }
    }
}

/// A time, or a day.
fn time(text: &str) -> Result<Timestamp, String> {
    let midnight = format!("{text}T00:00:00.000Z");
    text.parse()
        .or_else(|_| midnight.parse())
        .map_err(|_| "expected 2024-01-31T12:00:00.000Z or 2024-01-31".to_owned())
}

/// Stretches of a sweep between two writings of its state.
const STATE_EVERY: u32 = 20;

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.database.url).await?;
    let verifier = args.signatures.verifier();
    let mut against = args.against.clone();
    if against.is_empty() {
        match store.source().await? {
            Some(source) => against.push(source.upstream),
            None => {
                bail!("{} follows nothing: say --against", without_password(&args.database.url))
            }
        }
    }
    let state = args.state.as_deref().map(SweepFile::open).transpose()?;
    let peer = |place: &String| {
        Peer::new(place, args.requests_per_minute, super::USER_AGENT)
            .map_err(|error| anyhow::anyhow!("--against: {error}"))
    };
    let peers = against.iter().map(peer).collect::<anyhow::Result<Vec<Peer>>>()?;
    if let Some(state) = &state {
        // A state that does not fit is said before hours are spent on another peer.
        peers.iter().try_for_each(|peer| state.begun(&peer.name(), args.asked()).map(drop))?;
    }
    let mut auditor = Auditor {
        checker: Checker { store, verifier: Arc::clone(&verifier) },
        state,
        report: Report { json: args.json, out: io::stdout() },
    };
    let (mut same, mut complete) = (true, true);
    for peer in peers {
        let begun = Instant::now();
        let mut summary = Summary { against: peer.name(), ..Summary::default() };
        auditor.compare(args, &peer, &mut summary).await.with_context(|| peer.name())?;
        summary.seconds = begun.elapsed().as_secs_f64();
        auditor.report.end(&summary)?;
        if let Some(state) = &mut auditor.state {
            state.forget(&summary.against)?;
        }
        same &= summary.differences.is_empty() && summary.unreadable == 0;
        complete &= summary.unanswered == 0;
        if summary.identities + summary.operations == 0 && summary.unreadable == 0 {
            eprintln!("plc-replica: nothing was compared with {}", summary.against);
            complete = false;
        }
    }
    Ok(match (same, complete) {
        (true, true) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(1),
        (true, false) => ExitCode::from(2),
    })
}

/// Identities to compare, and what made them suspects.
type Suspects = Vec<(Did, Vec<Suspicion>)>;

struct Auditor {
    checker: Checker,
    state: Option<SweepFile>,
    report: Report,
}

impl Auditor {
    async fn compare(
        &mut self,
        args: &Args,
        peer: &Peer,
        summary: &mut Summary,
    ) -> anyhow::Result<()> {
        let mut newest = self.newest(peer).await?;
        let plain = |dids: Vec<Did>| dids.into_iter().map(|did| (did, Vec::new())).collect();
        let mut order = Order::Time;
        let suspects: Suspects = match args.sample {
            Some(count) => plain(self.sample(count).await?),
            None if args.dids.is_empty() => {
                let sweep = self.sweep(args, peer, &newest).await?;
                order = sweep.order;
                summary.operations = sweep.compared;
                summary.too_new = sweep.too_new;
                summary.unreadable = sweep.unreadable;
                let suspects = sweep.suspects.into_iter();
                suspects
                    .filter_map(|(did, suspicions)| Some((did.parse().ok()?, suspicions)))
                    .collect()
            }
            None => plain(args.dids.clone()),
        };
        match peer {
            Peer::Server(client) => {
                let export = SweptExport { client: client.clone(), order };
                let questions =
                    Questions { checker: self.checker.clone(), peer, export, unanswered: 0 };
                self.compare_with_server(questions, suspects, &mut newest, summary).await?;
            }
            Peer::File(path) => {
                let dids: Vec<Did> = suspects.into_iter().map(|(did, _)| did).collect();
                self.compare_with_file(path, dids, &mut newest, summary).await?;
            }
        }
        summary.last_words = (summary.set_aside + summary.too_new > 0).then_some(newest);
        Ok(())
    }

    async fn newest(&self, peer: &Peer) -> anyhow::Result<NewestOperations> {
        let mut patience = Patience::default();
        loop {
            match NewestOperations::ask(&self.checker.store, peer).await {
                Err(CheckError::Peer(error)) => patience.wait(error).await?,
                newest => return Ok(newest?),
            }
        }
    }

    /// Different identities, from random places on.
    async fn sample(&self, count: usize) -> anyhow::Result<Vec<Did>> {
        let mut dids = std::collections::BTreeSet::new();
        // Of a small log some places lead to the same identity.
        for _ in 0..count.saturating_mul(20) {
            if dids.len() == count {
                break;
            }
            let place = Did::from_bytes(rand::random());
            dids.extend(self.checker.store.next_identity(Some(place)).await?);
        }
        Ok(dids.into_iter().collect())
    }

    /// Reads both sides next to each other for the identities that differ.
    async fn sweep(
        &mut self,
        args: &Args,
        peer: &Peer,
        newest: &NewestOperations,
    ) -> anyhow::Result<Sweep> {
        let store = &self.checker.store;
        let (name, asked) = (peer.name(), args.asked());
        let total = store.statistics().await?.operations;
        let begun = match &self.state {
            Some(state) => state.begun(&name, asked)?,
            None => None,
        };
        let mut sweep = match begun {
            Some(sweep) => sweep,
            None if args.by_sequence => {
                Sweep::new(Order::Sequence, 0, store.last_sequence().await?.unwrap_or(0))
            }
            None => {
                let since = args.since.map_or(0, Timestamp::millis);
                let until = args.until.map_or(newest.settled, |wish| wish.min(newest.settled));
                Sweep::new(Order::Time, since, until.millis())
            }
        };
        let mut pages = Pages::of(peer)?;
        let meter =
            Meter::operations(&format!("comparing with {name}"), args.full.then_some(total));
        let mut steps = 0;
        let mut patience = Patience::default();
        while !sweep.is_done() {
            match sweep.step(store, &mut pages, newest).await {
                Ok(()) => patience = Patience::default(),
                Err(SweepError::Peer(PeerError::Upstream(fault))) => {
                    patience.wait(fault.into()).await?;
                }
                Err(error) => return Err(error.into()),
            }
            meter.set(sweep.compared);
            steps += 1;
            if let Some(state) = self.state.as_mut().filter(|_| steps % STATE_EVERY == 0) {
                state.keep(&name, asked, &sweep)?;
            }
        }
        meter.finish();
        if let Some(state) = &mut self.state {
            state.keep(&name, asked, &sweep)?;
        }
        Ok(sweep)
    }

    async fn compare_with_server(
        &mut self,
        mut questions: Questions<'_>,
        suspects: Suspects,
        newest: &mut NewestOperations,
        summary: &mut Summary,
    ) -> anyhow::Result<()> {
        let mut again = Vec::new();
        let meter =
            Meter::identities(&format!("asking {}", summary.against), suspects.len() as u64);
        for (asked, (did, suspicions)) in (1..).zip(suspects) {
            match questions.ask(did, &suspicions, newest.horizon(), summary).await? {
                Some(found) if found.log.comparison.set_aside > 0 => again.push((did, suspicions)),
                Some(found) => meter.suspend(|| self.report_all(&found, summary))?,
                None => {}
            }
            meter.set(asked);
        }
        meter.finish();
        if again.is_empty() {
            return Ok(());
        }
        // What was new then is old enough after this, unless one side is behind.
        sleep(GRACE).await;
        *newest = self.newest(questions.peer).await?;
        for (did, suspicions) in again {
            if let Some(found) = questions.ask(did, &suspicions, newest.horizon(), summary).await? {
                summary.set_aside += u64::from(found.log.comparison.set_aside > 0);
                self.report_all(&found, summary)?;
            }
        }
        Ok(())
    }

    /// A dump is read once for all of them; what is newer than the last entry in it, it cannot
    /// have.
    async fn compare_with_file(
        &mut self,
        path: &Path,
        dids: Vec<Did>,
        newest: &mut NewestOperations,
        summary: &mut Summary,
    ) -> anyhow::Result<()> {
        let look_up = || look_up(path, &dids);
        let Dumped { mut lines, latest, unnamed } =
            blocking::run_here("looking identities up in a dump", look_up)?;
        // A sweep has counted them too.
        summary.unreadable = summary.unreadable.max(unnamed);
        newest.theirs = latest;
        for did in dids {
            let entries = lines.remove(&did).unwrap_or_default();
            let theirs = PeerLog::of_lines(did, &entries, &*self.checker.verifier);
            let found = self.checker.compare(&theirs, newest.horizon(), Depth::Log).await?;
            summary.set_aside += u64::from(found.comparison.set_aside > 0);
            summary.identities += 1;
            self.report.differences(&found, summary)?;
        }
        Ok(())
    }

    fn report_all(&mut self, found: &Answered, summary: &mut Summary) -> anyhow::Result<()> {
        summary.identities += 1;
        self.report.differences(&found.log, summary)?;
        found.export.iter().try_for_each(|found| self.report.differences(found, summary))
    }
}
