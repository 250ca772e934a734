//! What happens in a plan: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use plc_testkit::fake_upstream::LogEntry;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::link::{CommitFate, Cut};
use super::service::Settings;
use crate::follow::lives_with_attacks;
use crate::healing::{MISFORTUNES, failures};

/// Operations of a log, about.
const OPERATIONS: usize = 120;
/// Logs that there are.
const LOGS: u64 = 4;
/// No faults later than this: what is read an hour after it came is read well.
const LONGEST_STORM: u64 = 40 * 60;
/// Steps in which a log grows.
const STEPS: usize = 12;

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
    /// What becomes of commits.
    Commits(CommitFate),
    /// There is no room on its disk.
    Full,
}

/// Something that happens at a moment.
#[derive(Debug, Clone)]
pub enum Blow {
    /// A process is gone after so many turns of everybody, and is started again so much later.
    Crash { turns: u32, back_after: Duration },
    /// The clock is put forward or back.
    Jump { seconds: i64 },
    /// All connections to the database are cut.
    Disconnect,
    /// One is cut at a message to come.
    Cut(Cut),
    /// The upstream closes its streams.
    CloseStreams,
    /// The upstream is restored from a backup.
    Restore,
}

/// When something is wrong.
#[derive(Debug, Clone)]
pub struct Spell {
    pub begins: Duration,
    pub ends: Duration,
    pub trouble: Trouble,
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
    pub spells: Vec<Spell>,
    pub blows: Vec<(Duration, Blow)>,
    /// Whether what is whole is watched until everything was read twice.
    pub reads_twice: bool,
    log: u64,
}

/// What the upstream has, and when.
pub struct Telling {
    pub at_start: Vec<LogEntry>,
    pub growth: Vec<(Duration, Vec<LogEntry>)>,
    /// After which number what is put in place of everything when it is restored.
    pub restored: Option<(i64, Vec<LogEntry>)>,
}

impl Telling {
    /// What it has in the end.
    pub fn in_the_end(&self) -> Vec<LogEntry> {
        let mut log = self.at_start.clone();
        if let Some((after, instead)) = &self.restored {
            log.retain(|entry| entry.seq <= *after);
            log.extend(instead.iter().cloned());
            return log;
        }
        log.extend(self.growth.iter().flat_map(|(_, entries)| entries.iter().cloned()));
        log
    }
}

impl Plan {
    /// The plan of this seed. Of five three are on SQLite.
    pub fn seeded(seed: u64) -> Plan {
        let random = &mut ChaCha20Rng::seed_from_u64(seed);
        let on_postgres = seed % 5 >= 3;
        let storm = Duration::from_secs(random.random_range(120..LONGEST_STORM));
        let settings = Settings {
            page: *[1000, 1000, 40, 7].choose(random).unwrap(),
            fast_signatures: random.random_bool(0.2),
            audit: random.random_bool(0.2),
            claims: random.random_bool(0.2),
            read_through: false,
        };
        let processes = if random.random_bool(0.25) { 2 } else { 1 };
        let log = random.random_range(0..LOGS);
        let spells = (0..random.random_range(1..6))
            .map(|_| Spell::drawn(random, storm, on_postgres))
            .collect();
        let mut blows: Vec<(Duration, Blow)> = (0..random.random_range(0..5))
            .map(|_| (moment(random, storm), Blow::drawn(random, on_postgres)))
            .collect();
        blows.sort_by_key(|(at, _)| *at);
        let reads_twice = random.random_bool(0.3);
        Plan { seed, on_postgres, storm, settings, processes, spells, blows, reads_twice, log }
    }

    /// What the upstream has.
    pub fn telling(&self) -> Telling {
        let random = &mut ChaCha20Rng::seed_from_u64(self.seed ^ 0x7e11);
        let log = lives_with_attacks(self.log, OPERATIONS);
        let (at_start, late) = log.split_at(random.random_range(0..OPERATIONS));
        let mut growth: Vec<(Duration, Vec<LogEntry>)> = late
            .chunks(late.len().div_ceil(STEPS))
            .map(|some| (moment(random, self.storm), some.to_vec()))
            .collect();
        let mut times: Vec<Duration> = growth.iter().map(|(at, _)| *at).collect();
        times.sort();
        growth.iter_mut().zip(times).for_each(|((at, _), time)| *at = time);
        Telling { at_start: at_start.to_vec(), growth, restored: None }
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

/// Any moment of a storm.
fn moment(random: &mut impl Rng, storm: Duration) -> Duration {
    storm.mul_f64(random.random())
}

impl Spell {
    fn drawn(random: &mut impl Rng, storm: Duration, on_postgres: bool) -> Spell {
        let begins = moment(random, storm);
        // Some are short, some last.
        let lasts = Duration::from_secs_f64(0.2 * 6_000_f64.powf(random.random()));
        Spell {
            begins,
            ends: (begins + lasts).min(storm),
            trouble: Trouble::drawn(random, on_postgres),
        }
    }
}

impl Trouble {
    fn drawn(random: &mut impl Rng, on_postgres: bool) -> Trouble {
        match random.random_range(0..if on_postgres { 12 } else { 8 }) {
            0..3 => Trouble::Told(random.random_range(0..MISFORTUNES.len())),
            3..6 => Trouble::Failing(random.random_range(0..failures().len())),
            6 => Trouble::Away,
            7 => Trouble::Full,
            8 => Trouble::Unreachable,
            9 => Trouble::Slow(Duration::from_millis(random.random_range(10..3_000))),
            _ => Trouble::Commits(match random.random_range(0..3) {
                0 => CommitFate::Lost,
                1 => CommitFate::Unanswered,
                _ => CommitFate::Late(Duration::from_secs(random.random_range(1..60))),
            }),
        }
    }
}

impl Blow {
    fn drawn(random: &mut impl Rng, on_postgres: bool) -> Blow {
        match random.random_range(0..if on_postgres { 10 } else { 6 }) {
            0..4 => Blow::Crash {
                turns: random.random_range(0..300),
                back_after: Duration::from_secs_f64(random.random_range(0.0..30.0)),
            },
            // Forward by less: what was read an hour ago must not seem to be.
            4 => Blow::Jump { seconds: random.random_range(-3_600..300) },
            5 => Blow::CloseStreams,
            6 => Blow::Disconnect,
            _ => Blow::Cut(Cut {
                after_messages: random.random_range(0..200),
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
            "plan {} on {backend}: {:?} of faults, {} process(es), {:?}",
            self.seed, self.storm, self.processes, self.settings
        )?;
        for Spell { begins, ends, trouble } in &self.spells {
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
        Ok(())
    }
}
