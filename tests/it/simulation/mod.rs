//! The whole service under plans of faults that are drawn from seeds, in time that is driven: what is held in the end
//! is what is held without faults, and what was shown on the way was true.
//!
//! `PLC_PLAN=17 cargo test --test it simulation` runs the plan of one seed and says what happens in it;
//! `PLC_PLANS=5000` those of so many seeds, `PLC_PLANS=5000..9000` those from one to another one.

mod database;
mod link;
mod plan;
mod service;
mod stalled;
mod time;
mod upstream;
mod witness;

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use did_plc::signature::PlainVerifier;
use plc_replica::audit::fsck;
use plc_replica::store::{DivergenceKind, Store};
use plc_testkit::fake_upstream::LogEntry;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::database::Database;
use self::link::{Link, LinkTrouble};
use self::plan::{Blow, Growth, Plan, Telling, Trouble};
use self::service::Service;
use self::time::{Time, UnderWay};
use self::upstream::Upstream;
use self::witness::{Truth, Witness};
use crate::healing::{Row, honest, rows};

/// Plans that are run unless more are asked for.
const PLANS: u64 = 100;
/// Until when everything is whole after the last fault: what was read first is read again after an hour.
const HEALED: Duration = Duration::from_secs(3 * 60 * 60);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_secs(120);
/// How often the database server looks at the time. A lease runs for three times as long.
const SERVER_CLOCK: Duration = Duration::from_secs(5);
/// Requests a minute of a process when nothing is wrong: whether the upstream has the same log, and each page once more.
const QUIET: f64 = 3.0;
/// The same with the comparison of identities.
const QUIET_WITH_AUDIT: f64 = QUIET + 14.0;
/// How long what is whole is watched until all of it was read twice.
const READ_TWICE: Duration = Duration::from_secs(75 * 60);

#[test]
fn simulation() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::new());
    let begun = std::time::Instant::now();
    // What waits for the database server leaves room for another one.
    let threads = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Err(failure) = run(seed) {
                        failed.lock().unwrap().push((seed, failure));
                    }
                }
            });
        }
    });
    let (plans, took) = (seeds.end - seeds.start, begun.elapsed());
    println!("{plans} plans in {took:.1?}, {:?} kB at most", peak_memory());
    let failed = failed.into_inner().unwrap();
    for (seed, failure) in &failed {
        println!(
            "{failure}\nagain by: PLC_PLAN={seed} cargo test --test it simulation -- --nocapture\n"
        );
    }
    let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds.is_empty(), "{} of {plans} plans fail: {seeds:?}", seeds.len());
}

/// Kilobytes that this process had at most, where the system says it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The seeds that are asked for.
fn seeds() -> Range<u64> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text} is no number"));
    if let Ok(seed) = std::env::var("PLC_PLAN") {
        return number(&seed)..number(&seed) + 1;
    }
    match std::env::var("PLC_PLANS") {
        Ok(plans) => match plans.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => 0..number(&plans),
        },
        Err(_) => 0..PLANS,
    }
}

/// Runs the plan of a seed; what is wrong, with what happened.
fn run(seed: u64) -> Result<(), String> {
    let begun = std::time::Instant::now();
    let plan = Plan::seeded(seed);
    let log = Arc::new(Mutex::new(Vec::new()));
    let result = catch_unwind(AssertUnwindSafe(|| {
        let telling = plan.telling();
        let logs = telling.logs().into_iter().map(|log| {
            let rows = rows_of(&log);
            (log, rows)
        });
        let truth = Truth::of(&logs.collect::<Vec<_>>());
        let database = simulate(&plan, telling, &truth, &log)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(is_sound(&database.url_afterwards()));
        Ok(())
    }));
    let wrong = match result {
        Ok(Ok(())) => None,
        Ok(Err(wrong)) => Some(wrong),
        Err(panic) => Some(said(&*panic)),
    };
    if std::env::var_os("PLC_PLAN").is_some() {
        println!("{plan}{}", String::from_utf8_lossy(&log.lock().unwrap()));
    }
    println!(
        "plan {seed}: {:.2?} {}",
        begun.elapsed(),
        wrong.as_deref().unwrap_or("ok").lines().next().unwrap_or_default()
    );
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let log = log.lock().unwrap();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            Err(format!("{plan}{}\n  wrong: {wrong}", last.join("\n")))
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// What a log comes to without faults. Many plans have the same.
fn rows_of(log: &[LogEntry]) -> BTreeMap<i64, Row> {
    type Known = HashMap<Vec<String>, BTreeMap<i64, Row>>;
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let key: Vec<String> = log.iter().map(|entry| entry.cid.clone()).collect();
    if let Some(rows) = KNOWN.lock().unwrap().get_or_insert_default().get(&key) {
        return rows.clone();
    }
    if log.is_empty() {
        return BTreeMap::new();
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rows = runtime.block_on(honest(log));
    KNOWN.lock().unwrap().get_or_insert_default().insert(key, rows.clone());
    rows
}

/// Everything that a plan plays with.
struct World<'a> {
    plan: &'a Plan,
    time: Time,
    database: tokio::sync::Mutex<Database>,
    upstream: tokio::sync::Mutex<Upstream>,
    upstream_url: String,
    /// By process; none while it is gone.
    processes: RefCell<Vec<Option<Service>>>,
    /// The way of each process to the database, and the URL by it.
    ways: Vec<(Option<Link>, String)>,
    /// Spells that last, by their numbers.
    lasting: RefCell<BTreeMap<usize, Trouble>>,
}

fn simulate(
    plan: &Plan,
    telling: Telling,
    truth: &Truth,
    log: &Arc<Mutex<Vec<u8>>>,
) -> Result<Database, String> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let simulated = LocalSet::new().block_on(&runtime, async {
        let under_way = Arc::new(UnderWay::default());
        let database = match plan.on_postgres {
            true => Database::postgres(&under_way).await,
            false => Some(Database::sqlite()),
        };
        // Without a server these plans are run on SQLite too.
        let mut database = database.unwrap_or_else(Database::sqlite);
        let mut ways = Vec::new();
        for _ in 0..plan.processes {
            ways.push(database.way(&under_way).await);
        }
        let time = Time::begin();
        let _logging = logging(&time, log);
        database.tell_time(&time).await;
        let upstream = Upstream::start(&telling.at_start, plan.seed).await;
        let world = World {
            plan,
            upstream_url: upstream.fake.url(),
            time: time.clone(),
            database: database.into(),
            upstream: upstream.into(),
            processes: RefCell::new((0..plan.processes).map(|_| None).collect()),
            ways,
            lasting: RefCell::default(),
        };
        let witness = Witness::new(plan, truth);
        let told = tokio::select! {
            never = time.drive(under_way) => match never {},
            never = witness.ask(plan.seed, || world.addresses()) => match never {},
            never = witness.listen(plan.seed, || world.addresses()) => match never {},
            never = stalled::stall(plan.seed, || world.addresses()) => match never {},
            never = world.tell_time() => match never {},
            told = world.go(&telling, truth, &witness) => told,
        };
        told.map(|()| world.database.into_inner())
    });
    runtime.shutdown_timeout(Duration::from_secs(20));
    simulated
}

/// What is logged on this thread goes to `log`.
fn logging(time: &Time, log: &Arc<Mutex<Vec<u8>>>) -> tracing::subscriber::DefaultGuard {
    let log = Arc::clone(log);
    let begun = Instant::now() - time.passed();
    let level = if std::env::var_os("PLC_PLAN").is_some() {
        "plc_replica=debug"
    } else {
        "plc_replica=info"
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_ansi(false)
        .with_timer(Passed(begun))
        .with_writer(move || Writer(Arc::clone(&log)))
        .finish();
    tracing::subscriber::set_default(subscriber)
}

/// Writes to what is shared.
struct Writer(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Times of log lines are those of the plan.
struct Passed(Instant);

impl tracing_subscriber::fmt::time::FormatTime for Passed {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>9.2}", self.0.elapsed().as_secs_f64())
    }
}

/// What happens at a moment.
enum Moment<'a> {
    Begins(usize),
    Ends(usize),
    Blow(&'a Blow),
    Grows(usize),
}

impl World<'_> {
    fn addresses(&self) -> Vec<SocketAddr> {
        self.processes.borrow().iter().flatten().map(Service::address).collect()
    }

    async fn tell_time(&self) -> ! {
        loop {
            self.database.lock().await.tell_time(&self.time).await;
            sleep(SERVER_CLOCK).await;
        }
    }

    fn start(&self, process: usize) {
        let service =
            Service::start(&self.plan.settings, &self.ways[process].1, &self.upstream_url);
        self.processes.borrow_mut()[process] = Some(service);
    }

    async fn go(
        &self,
        telling: &Telling,
        truth: &Truth,
        witness: &Witness<'_>,
    ) -> Result<(), String> {
        for process in 0..self.plan.processes {
            self.start(process);
        }
        self.storm(telling).await;
        tracing::info!("simulation: nothing is wrong any more");
        for process in 0..self.plan.processes {
            if self.processes.borrow()[process].is_none() {
                self.start(process);
            }
        }
        witness.quiet.set(true);
        let quiet_since = Instant::now();
        self.heals(truth).await?;
        if self.plan.reads_twice {
            sleep(READ_TWICE).await;
            self.heals(truth).await?;
            self.misses_nothing().await?;
        }
        let wrong = witness.wrong();
        if let Some(first) = wrong.first() {
            return Err(format!(
                "{} answers are wrong: {first}\n{}",
                wrong.len(),
                wrong
                    .iter()
                    .take(12)
                    .map(|w| w.chars().take(300).collect::<String>())
                    .collect::<Vec<_>>()
                    .join("\n")
            ));
        }
        self.has_all_that_was_shown(witness).await?;
        self.asked_within_bounds(quiet_since).await?;
        let (asked, answered, streamed) = witness.counts();
        let hours = self.time.passed().as_secs_f64() / 3600.0;
        let requests = self.upstream.lock().await.fake.asked().len();
        println!(
            "plan {}: {hours:.2} h, {requests} requests, {asked} asked, {answered} answered, {streamed} streamed",
            self.plan.seed
        );
        for service in self.processes.take().into_iter().flatten() {
            if service.has_ended() {
                return Err("a process has ended by itself".to_owned());
            }
            service.end().await;
        }
        Ok(())
    }

    /// Everything that is to happen, each at its time.
    async fn storm(&self, telling: &Telling) {
        let mut moments: Vec<(Duration, Moment<'_>)> = Vec::new();
        for (number, spell) in self.plan.spells.iter().enumerate() {
            moments.push((spell.begins, Moment::Begins(number)));
            moments.push((spell.ends, Moment::Ends(number)));
        }
        moments.extend(self.plan.blows.iter().map(|(at, blow)| (*at, Moment::Blow(blow))));
        moments
            .extend(telling.growth.iter().enumerate().map(|(n, (at, _))| (*at, Moment::Grows(n))));
        moments.sort_by_key(|(at, _)| *at);
        let begun = Instant::now();
        let mut back: Vec<(Instant, usize)> = Vec::new();
        for (at, moment) in moments {
            let at = begun + at;
            // Those that are to be back by then.
            back.sort();
            while let Some(&(when, process)) = back.first().filter(|(when, _)| *when <= at) {
                back.remove(0);
                sleep_until(when).await;
                self.start(process);
            }
            sleep_until(at).await;
            match moment {
                Moment::Begins(number) => self.begin(number).await,
                Moment::Ends(number) => self.end(number).await,
                Moment::Grows(number) => {
                    let upstream = self.upstream.lock().await;
                    match &telling.growth[number].1 {
                        Growth::More(entries) => upstream.fake.append_all(entries.clone()),
                        Growth::Instead(after, entries) => {
                            tracing::info!("simulation: the upstream is restored up to {after}");
                            upstream.fake.replace_after(*after, entries.clone());
                            upstream.fake.close_streams(1012, "restart");
                        }
                    }
                }
                Moment::Blow(Blow::Crash { turns, back_after }) => {
                    for _ in 0..*turns {
                        tokio::task::yield_now().await;
                    }
                    let process = (*turns as usize) % self.plan.processes;
                    let crashed = self.processes.borrow_mut()[process].take();
                    if let Some(service) = crashed {
                        tracing::info!(process, "simulation: a crash");
                        service.crash().await;
                        back.push((Instant::now() + *back_after, process));
                    }
                }
                Moment::Blow(Blow::Restart { process, back_after }) => {
                    let ended = self.processes.borrow_mut()[*process].take();
                    if let Some(service) = ended {
                        tracing::info!(process, "simulation: an end in order");
                        service.end().await;
                        back.push((Instant::now() + *back_after, *process));
                    }
                }
                Moment::Blow(blow) => self.strike(blow).await,
            }
        }
        sleep_until(begun + self.plan.storm).await;
    }

    async fn begin(&self, number: usize) {
        let trouble = &self.plan.spells[number].trouble;
        tracing::info!("simulation: spell {number} begins: {trouble:?}");
        self.upstream.lock().await.begin(number, trouble).await;
        if matches!(trouble, Trouble::Full) {
            self.database.lock().await.set_full(true).await;
        }
        self.lasting.borrow_mut().insert(number, trouble.clone());
        self.set_link_trouble();
    }

    async fn end(&self, number: usize) {
        tracing::info!("simulation: spell {number} ends");
        self.upstream.lock().await.end(number).await;
        self.lasting.borrow_mut().remove(&number);
        let full = self.lasting.borrow().values().any(|trouble| matches!(trouble, Trouble::Full));
        if !full {
            self.database.lock().await.set_full(false).await;
        }
        self.set_link_trouble();
    }

    /// What all that lasts means for the ways to the database.
    fn set_link_trouble(&self) {
        for (process, (link, _)) in self.ways.iter().enumerate() {
            let mut all = LinkTrouble::default();
            for (number, trouble) in self.lasting.borrow().iter() {
                if self.plan.spells[*number].process.is_some_and(|of| of != process) {
                    continue;
                }
                match trouble {
                    Trouble::Unreachable => all.closed = true,
                    Trouble::Stalled => all.stalled = true,
                    Trouble::Slow(delay) => all.delay = Some(*delay),
                    Trouble::Commits(fate) => all.commit = *fate,
                    _ => {}
                }
            }
            if let Some(link) = link {
                link.set_trouble(all);
            }
        }
    }

    async fn strike(&self, blow: &Blow) {
        tracing::info!("simulation: {blow:?}");
        match blow {
            Blow::Crash { .. } | Blow::Restart { .. } => {}
            Blow::Lock(lasts) => self.database.lock().await.lock(*lasts),
            Blow::Jump { seconds } => self.time.jump(*seconds),
            Blow::Disconnect => self.links().for_each(Link::cut),
            Blow::Cut(cut) => self.links().for_each(|link| link.cut_at(*cut)),
            Blow::CloseStreams => self.upstream.lock().await.fake.close_streams(1012, "restart"),
        }
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.ways.iter().filter_map(|(link, _)| link.as_ref())
    }

    /// Waits until what is held is what is true.
    async fn heals(&self, truth: &Truth) -> Result<(), String> {
        let begun = Instant::now();
        let store = self.database.lock().await.look().await;
        loop {
            if self.processes.borrow().iter().flatten().any(Service::has_ended) {
                let ended = self.processes.take().into_iter().flatten().find(Service::has_ended);
                let why = match ended {
                    Some(service) => service.why().await,
                    None => String::new(),
                };
                return Err(format!("a process has ended by itself: {why}"));
            }
            let held = rows(&store).await;
            if truth.is(&held) {
                return Ok(());
            }
            if begun.elapsed() > HEALED + self.plan.jumps() {
                let missing: Vec<_> = truth
                    .rows
                    .iter()
                    .filter(|(number, row)| held.get(number) != Some(row))
                    .collect();
                let more: Vec<_> = held
                    .iter()
                    .filter(|(number, row)| truth.rows.get(number) != Some(row))
                    .collect();
                return Err(format!(
                    "not whole {HEALED:?} after the last fault: {} of {} are missing or other, {} are too much:\n{:#?}\n{:#?}",
                    missing.len(),
                    truth.rows.len(),
                    more.len(),
                    &missing[..missing.len().min(3)],
                    &more[..more.len().min(3)]
                ));
            }
            sleep(LOOK).await;
        }
    }

    /// Of an upstream that has everything nothing is said to be missing.
    async fn misses_nothing(&self) -> Result<(), String> {
        if self.plan.restored.is_some() {
            return Ok(());
        }
        let store = self.database.lock().await.look().await;
        let kind = DivergenceKind::MissingInExport.name();
        let missing = store.divergences(None, Some(kind), Some(true), 0, 10).await;
        match missing.map_err(|error| error.to_string())? {
            missing if missing.is_empty() => Ok(()),
            missing => Err(format!("is said to be missing: {missing:#?}")),
        }
    }

    async fn has_all_that_was_shown(&self, witness: &Witness<'_>) -> Result<(), String> {
        let store = self.database.lock().await.look().await;
        for (did, cids) in witness.shown() {
            let history =
                store.history(&did.parse().unwrap()).await.map_err(|error| error.to_string())?;
            for cid in cids {
                if !history.iter().any(|held| held.cid().to_string() == cid) {
                    return Err(format!("{cid} of {did} was shown, and is lost"));
                }
            }
        }
        Ok(())
    }

    /// No minute saw more requests than each process may send in one, and when nothing is wrong any more few are sent.
    async fn asked_within_bounds(&self, quiet_since: Instant) -> Result<(), String> {
        let asked = self.upstream.lock().await.fake.asked();
        let crashes = self
            .plan
            .blows
            .iter()
            .filter(|(_, blow)| matches!(blow, Blow::Crash { .. } | Blow::Restart { .. }))
            .count();
        let most = self.plan.processes * service::REQUESTS_PER_MINUTE as usize + 1 + crashes;
        for (at, first) in asked.iter().enumerate() {
            let within = asked[at..]
                .iter()
                .take_while(|it| it.at - first.at < Duration::from_secs(60))
                .count();
            if within > most {
                return Err(format!("{within} requests within a minute"));
            }
        }
        let minutes = quiet_since.elapsed().as_secs_f64() / 60.0;
        let a_minute = if self.plan.settings.audit { QUIET_WITH_AUDIT } else { QUIET };
        let most = 100.0 + minutes * a_minute * self.plan.processes as f64;
        let quiet = asked.iter().filter(|asked| asked.at >= quiet_since).count();
        match quiet as f64 > most {
            true => Err(format!(
                "{quiet} requests within {minutes:.0} minutes in which nothing is wrong"
            )),
            false => Ok(()),
        }
    }
}

async fn is_sound(url: &str) {
    let store = Store::open_existing(url).await.unwrap();
    let mut damages = Vec::new();
    fsck::check(&store, &PlainVerifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    assert_eq!(damages, []);
}
