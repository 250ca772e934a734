//! What happens in a plan: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use plc_testkit::fake_upstream::LogEntry;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::link::{CommitFate, Cut};
use super::service::Settings;
use super::upstream::failures;
use crate::follow::lives_with_attacks;
use crate::healing::MISFORTUNES;

/// Operations of a log, about.
const OPERATIONS: usize = 120;
/// Logs that there are.
const LOGS: u64 = 4;
/// Seconds; and how many times as long the longest is.
const SHORTEST_STORM: f64 = 120.0;
const LONGEST_STORM: f64 = 75.0;
/// What came in a longer one is read for the second time in it.
const READ_ONCE: Duration = Duration::from_secs(40 * 60);
/// Steps in which a log grows.
const STEPS: usize = 24;

/// Something that is wrong for a while.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The upstream tells something else: one of [`MISFORTUNES`].
    Told(usize),
    /// It fails: one of [`failures`].
    Failing(usize),
    /// It is not there.
    Away,
    /// The database cannot be reached.
    Unreachable,
    /// Each statement takes so long.
    Slow(Duration),
    /// Nothing gets through to the database, or back, and no connection ends.
    Stalled,
    /// What becomes of commits.
    Commits(CommitFate),
    /// There is no room on its disk.
    Full,
}

/// Something that happens at a moment.
#[derive(Debug, Clone)]
pub enum Blow {
    /// A process is gone after so many turns of everybody, and is started again so much later.
    Crash { process: usize, turns: u32, back_after: Duration },
    /// A process is told to end, and is started again so much later.
    Restart { process: usize, back_after: Duration },
    /// Somebody else locks the tables, for so long by the clock of the machine.
    Lock(Duration),
    /// The clock is put forward or back.
    Jump { seconds: i64 },
    /// All connections to the database are cut.
    Disconnect,
    /// One is cut at a message to come.
    Cut(Cut),
    /// The upstream closes its streams.
    CloseStreams,
}

/// When something is wrong.
#[derive(Debug, Clone)]
pub struct Spell {
    pub begins: Duration,
    pub ends: Duration,
    pub trouble: Trouble,
    /// The process whose way to the database it is; none for all.
    pub process: Option<usize>,
}

/// All that happens.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub on_postgres: bool,
    /// Nothing is wrong after this.
    pub storm: Duration,
    pub settings: Settings,
    /// Processes that want to follow.
    pub processes: usize,
    /// Whether there is a second upstream, with which nothing is ever wrong.
    pub second: bool,
    pub spells: Vec<Spell>,
    pub blows: Vec<(Duration, Blow)>,
    /// Whether what is whole is watched until everything was read twice.
    pub reads_twice: bool,
    /// When the upstream is restored from a backup, if it is.
    pub restored: Option<Duration>,
    /// When the upstream's log grows.
    steps: Vec<Duration>,
    log: u64,
}

/// What the upstream has, and when.
pub struct Telling {
    pub at_start: Vec<LogEntry>,
    pub growth: Vec<(Duration, Growth)>,
}

/// A step of its growth.
pub enum Growth {
    More(Vec<LogEntry>),
    /// These in place of everything after a number.
    Instead(i64, Vec<LogEntry>),
}

impl Growth {
    fn len(&self) -> usize {
        match self {
            Growth::More(entries) | Growth::Instead(_, entries) => entries.len(),
        }
    }
}

impl Telling {
    /// What it has at last, and before that what it had when it was restored from a backup, if it was.
    pub fn logs(&self) -> Vec<Vec<LogEntry>> {
        let mut logs = Vec::new();
        let mut log = self.at_start.clone();
        for (_, growth) in &self.growth {
            match growth {
                Growth::More(entries) => log.extend(entries.iter().cloned()),
                Growth::Instead(after, entries) => {
                    logs.push(log.clone());
                    log.retain(|entry| entry.seq <= *after);
                    log.extend(entries.iter().cloned());
                }
            }
        }
        logs.push(log);
        logs
    }
}

impl Plan {
    /// The plan of this seed. Of five three are on SQLite.
    pub fn seeded(seed: u64) -> Plan {
        let on_postgres = seed % 5 >= 3;
        let mut draw = Draw::new(ChaCha20Rng::seed_from_u64(seed), on_postgres);
        let mut spells: Vec<Spell> =
            (0..draw.random.random_range(1..6)).map(|_| draw.spell()).collect();
        let mut blows: Vec<(Duration, Blow)> =
            (0..draw.random.random_range(0..5)).map(|_| (draw.moment(), draw.blow())).collect();
        let restored = draw.random.random_bool(0.12).then(|| draw.moment());
        let Draw { mut random, storm, processes, steps, .. } = draw;
        let random = &mut random;
        let settings = Settings {
            page: *[1000, 1000, 40, 7].choose(random).unwrap(),
            fast_signatures: random.random_bool(0.2),
            audit: random.random_bool(0.2),
            claims: random.random_bool(0.1),
            read_through: random.random_bool(0.2),
        };
        if spells.iter().any(|spell| matches!(spell.trouble, Trouble::Told(_))) {
            // What was read wrongly is to be read again when the truth is told.
            for (_, blow) in &mut blows {
                if let Blow::Jump { seconds } = blow {
                    *seconds = (*seconds).clamp(-3_600, 300);
                }
            }
        }
        if storm > READ_ONCE {
            // What is told wrongly both times is believed; none lasts so long by itself.
            let mut told = 0;
            spells.retain(|spell| {
                told += usize::from(matches!(spell.trouble, Trouble::Told(_)));
                told <= 1 || !matches!(spell.trouble, Trouble::Told(_))
            });
        }
        blows.sort_by_key(|(at, _)| *at);
        let reads_twice = random.random_bool(0.3);
        if restored.is_some() {
            // Nobody can tell what is lost there from what was told wrongly.
            spells.retain(|spell| !matches!(spell.trouble, Trouble::Told(_)));
        }
        Plan {
            seed,
            on_postgres,
            storm,
            settings,
            processes,
            // Each backend has some.
            second: seed % 7 >= 5,
            spells,
            blows,
            reads_twice,
            restored,
            steps,
            log: random.random_range(0..LOGS),
        }
    }

    /// What the upstream has.
    pub fn telling(&self) -> Telling {
        let random = &mut ChaCha20Rng::seed_from_u64(self.seed ^ 0x7e11);
        let log = lives_with_attacks(self.log, OPERATIONS);
        let (at_start, late) = log.split_at(random.random_range(0..OPERATIONS));
        let steps = late.chunks(late.len().div_ceil(STEPS)).map(<[LogEntry]>::to_vec);
        let mut growth: Vec<(Duration, Growth)> =
            self.steps.iter().copied().zip(steps.map(Growth::More)).collect();
        if let Some(at) = self.restored {
            let told = growth.partition_point(|(time, _)| *time <= at);
            let after = growth.split_off(told);
            let has = at_start.len() + growth.iter().map(|(_, growth)| growth.len()).sum::<usize>();
            let kept = random.random_range(0..=has);
            // Others are born then, and are given the numbers of those that are lost.
            let other = lives_with_attacks(LOGS + self.log, 2 * OPERATIONS);
            let mut other = other.into_iter().zip(kept as i64 + 1..);
            let mut next = |count| {
                let some = other.by_ref().take(count);
                some.map(|(entry, seq)| LogEntry { seq, ..entry }).collect::<Vec<_>>()
            };
            // Usually fewer than are lost.
            let first = next(random.random_range(0..has - kept + 10));
            growth.push((at, Growth::Instead(kept as i64, first)));
            let later = after.into_iter().map(|(at, step)| (at, Growth::More(next(step.len()))));
            growth.extend(later);
        }
        Telling { at_start: at_start.to_vec(), growth }
    }

    /// Whether what the upstream tells is true at all times, though it may not come.
    pub fn is_told_truly(&self) -> bool {
        !self.spells.iter().any(|spell| matches!(spell.trouble, Trouble::Told(_)))
    }

    /// Whether it states wrong times of true operations: by them true ones are refused.
    pub fn is_misdated(&self) -> bool {
        self.spells.iter().any(|spell| match spell.trouble {
            Trouble::Told(index) => {
                let name = MISFORTUNES[index].name;
                name.contains("times") || name.contains("damaged")
            }
            _ => false,
        })
    }

    /// By how much the clock is put back in all, and forward.
    pub fn jumps(&self) -> Duration {
        let jumps = self.blows.iter().map(|(_, blow)| match blow {
            Blow::Jump { seconds } => seconds.unsigned_abs(),
            _ => 0,
        });
        Duration::from_secs(jumps.sum())
    }
}

/// Draws what happens.
struct Draw {
    random: ChaCha20Rng,
    on_postgres: bool,
    storm: Duration,
    processes: usize,
    steps: Vec<Duration>,
}

impl Draw {
    fn new(mut random: ChaCha20Rng, on_postgres: bool) -> Draw {
        // Most are short.
        let storm = Duration::from_secs_f64(SHORTEST_STORM * LONGEST_STORM.powf(random.random()));
        let processes = if random.random_bool(0.25) { 2 } else { 1 };
        let mut steps: Vec<Duration> = (0..STEPS).map(|_| storm.mul_f64(random.random())).collect();
        steps.sort();
        Draw { random, on_postgres, storm, processes, steps }
    }

    /// Any moment of the storm, or one in which something has just come.
    fn moment(&mut self) -> Duration {
        let random = &mut self.random;
        match random.random_bool(0.5) {
            true => self.storm.mul_f64(random.random()),
            false => {
                let step = *self.steps.choose(random).unwrap();
                let after = Duration::from_secs_f64(random.random_range(0.0..0.5));
                (step + after).min(self.storm)
            }
        }
    }

    fn spell(&mut self) -> Spell {
        let begins = self.moment();
        let trouble = self.trouble();
        let random = &mut self.random;
        // Some are short, some last.
        let lasts = Duration::from_secs_f64(0.2 * 6_000_f64.powf(random.random()));
        Spell {
            begins,
            ends: (begins + lasts).min(self.storm),
            trouble,
            process: random.random_bool(0.5).then(|| random.random_range(0..self.processes)),
        }
    }

    fn trouble(&mut self) -> Trouble {
        let random = &mut self.random;
        match random.random_range(0..if self.on_postgres { 14 } else { 8 }) {
            0..3 => Trouble::Told(random.random_range(0..MISFORTUNES.len())),
            3..6 => Trouble::Failing(random.random_range(0..failures().len())),
            6 => Trouble::Away,
            7 => Trouble::Full,
            8 => Trouble::Unreachable,
            9 => Trouble::Stalled,
            10 => Trouble::Slow(Duration::from_millis(random.random_range(10..3_000))),
            _ => Trouble::Commits(match random.random_range(0..3) {
                0 => CommitFate::Lost,
                1 => CommitFate::Unanswered,
                _ => CommitFate::Late(Duration::from_secs(random.random_range(1..60))),
            }),
        }
    }

    fn blow(&mut self) -> Blow {
        let random = &mut self.random;
        let back_after = Duration::from_secs_f64(random.random_range(0.0..30.0));
        match random.random_range(0..if self.on_postgres { 12 } else { 8 }) {
            0..4 => {
                let turns = 3_000_f64.powf(random.random()) as u32;
                let process = random.random_range(0..self.processes);
                Blow::Crash { process, turns, back_after }
            }
            4 => Blow::Jump { seconds: random.random_range(-86_400..86_400) },
            5 => Blow::CloseStreams,
            6 => Blow::Restart { process: random.random_range(0..self.processes), back_after },
            7 => Blow::Lock(Duration::from_millis(match random.random_range(0..10) {
                // Longer than SQLite is patient.
                0 => 5_500,
                _ => random.random_range(1..400),
            })),
            8 => Blow::Disconnect,
            _ => Blow::Cut(Cut {
                after_messages: random.random_range(0..60),
                last_arrives: random.random(),
            }),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = if self.on_postgres { "Postgres" } else { "SQLite" };
        writeln!(
            f,
            "plan {} on {backend}: {:?} of faults, {} process(es), {} upstream(s), {:?}",
            self.seed,
            self.storm,
            self.processes,
            1 + usize::from(self.second),
            self.settings
        )?;
        for Spell { begins, ends, trouble, .. } in &self.spells {
            match trouble {
                Trouble::Told(index) => {
                    writeln!(f, "  {begins:?} to {ends:?}: {}", MISFORTUNES[*index].name)?;
                }
                Trouble::Failing(index) => {
                    writeln!(f, "  {begins:?} to {ends:?}: {}", failures()[*index].0)?;
                }
                other => writeln!(f, "  {begins:?} to {ends:?}: {other:?}")?,
            }
        }
        for (at, blow) in &self.blows {
            writeln!(f, "  {at:?}: {blow:?}")?;
        }
        if let Some(at) = self.restored {
            writeln!(f, "  {at:?}: the upstream is restored from a backup")?;
        }
        Ok(())
    }
}
