//! The whole service under plans of faults that are drawn from seeds, in time that is driven: what is held in the end
//! is what is held without faults, and what was shown on the way was true.
//!
//! `PLC_PLAN=17 cargo test --test it simulation -- --nocapture` runs the plan of one seed and says what happens in it;
//! `PLC_PLANS=5000` those of so many seeds, `PLC_PLANS=5000..9000` those from one to another one.

mod checks;
mod database;
mod link;
mod log;
mod plan;
mod service;
mod stalled;
mod time;
mod upstream;
mod witness;
mod world;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plc_testkit::fake_upstream::LogEntry;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use self::checks::is_sound;
use self::log::Log;
use self::plan::Plan;
use self::time::UnderWay;
use self::witness::{Truth, Witness};
use self::world::World;
use crate::healing::{Row, honest};

/// Plans that are run unless more are asked for.
const PLANS: u64 = 100;
/// Lines of what the service has said that are shown of a plan that fails.
const LAST_LINES: usize = 60;
/// Time for what still runs on threads when a plan is over.
const ENDING: Duration = Duration::from_secs(20);
/// Kilobytes that the process may have at most: the test itself, and each plan that runs at the same time.
const MOST_MEMORY: (u64, u64) = (100_000, 75_000);

#[test]
fn simulation() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::new());
    let begun = Instant::now();
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
                        println!(
                            "{failure}\nagain by: PLC_PLAN={seed} cargo test --test it simulation -- --nocapture\n"
                        );
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let (plans, took) = (seeds.end - seeds.start, begun.elapsed());
    let memory = peak_memory().unwrap_or_default();
    println!("{plans} plans in {took:.1?}, {memory} kB at most");
    let failed: Vec<u64> = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {plans} plans fail: {failed:?}", failed.len());
    // Other tests have memory of their own.
    if std::env::var_os("PLC_PLANS").is_some() {
        let (itself, of_each) = MOST_MEMORY;
        assert!(memory < itself + of_each * threads as u64, "{memory} kB at most");
    }
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

/// Runs the plan of a seed; what is wrong, with what has happened.
fn run(seed: u64) -> Result<(), String> {
    let begun = Instant::now();
    let alone = std::env::var_os("PLC_PLAN").is_some();
    let (plan, log) = (Plan::seeded(seed), Log::default());
    let wrong = match catch_unwind(AssertUnwindSafe(|| simulate(&plan, &log, alone))) {
        Ok(Ok(said)) => {
            println!("plan {seed}: {said}, in {:.2?}", begun.elapsed());
            None
        }
        Ok(Err(wrong)) => Some(wrong),
        Err(panic) => Some(said(&*panic)),
    };
    let log = log.text();
    if alone {
        println!("{plan}{log}");
    }
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            Err(format!("{plan}{last}\n  wrong: {wrong}"))
        }
    }
}

/// Runs a plan; some figures of it.
fn simulate(plan: &Plan, log: &Log, in_detail: bool) -> Result<String, String> {
    let telling = plan.telling();
    let logs = telling.logs().into_iter().map(|log| {
        let rows = rows_of(&log);
        (log, rows)
    });
    let truth = Truth::of(&logs.collect::<Vec<_>>());
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let simulated = LocalSet::new().block_on(&runtime, async {
        let under_way = Arc::new(UnderWay::default());
        let world = World::before(plan, &telling, &under_way).await;
        let _logging = log.take_down(&world.time, in_detail);
        let witness = Witness::new(plan, &truth);
        let played = async {
            world.play(&telling).await;
            witness.quiet.set(true);
            world.check(&truth, &witness).await
        };
        tokio::select! {
            never = world.time.drive(under_way) => match never {},
            never = world.tell_time() => match never {},
            never = witness.ask(plan.seed, || world.addresses()) => match never {},
            never = witness.listen(plan.seed, || world.addresses()) => match never {},
            never = stalled::stall(plan.seed, || world.addresses()) => match never {},
            played = played => played?,
        }
        let requests = world.upstream.lock().await.fake.asked().len();
        let hours = world.time.passed().as_secs_f64() / 3600.0;
        let said = format!("{hours:.2} h, {requests} requests, {}", witness.figures());
        Ok::<_, String>((said, world.database.into_inner()))
    });
    runtime.shutdown_timeout(ENDING);
    let (said, database) = simulated?;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(is_sound(&database.url_afterwards()));
    Ok(said)
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
