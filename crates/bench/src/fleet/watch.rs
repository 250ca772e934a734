//! How long what was said takes to be served, all the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use did_plc::Timestamp;
use plc_testkit::telling::Telling;
use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::clients::readers::Readers;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// For how long the oldest operation has been said that somebody lacks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lacking {
    /// That everybody lacks: it is not followed, as far as anybody can see.
    pub all: Duration,
    /// That the last client of the stream lacks.
    pub last: Duration,
}

impl Lacking {
    fn or_longer(self, other: Lacking) -> Lacking {
        Lacking { all: self.all.max(other.all), last: self.last.max(other.last) }
    }
}

#[derive(Debug, Default)]
struct Seen {
    now: Lacking,
    longest: Lacking,
}

/// Looks at clients of the stream until this is dropped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    /// What all of them have: this may be asked for.
    held: Arc<AtomicU64>,
    looking: JoinHandle<()>,
}

impl Watch {
    /// Begins to look at these.
    pub fn start(told: &Arc<Telling>, readers: &Arc<Vec<Readers>>) -> Watch {
        let (_, last) = first_and_last(readers);
        let (seen, held) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicU64::new(last)));
        let looking = tokio::spawn(look(
            Arc::clone(told),
            Arc::clone(readers),
            Arc::clone(&seen),
            Arc::clone(&held),
        ));
        Watch { seen, held, looking }
    }

    /// The last operation that all clients have.
    pub fn held(&self) -> &Arc<AtomicU64> {
        &self.held
    }

    /// At the last look.
    pub fn now(&self) -> Lacking {
        lock(&self.seen).now
    }

    /// The longest since this was asked last.
    pub fn take(&self) -> Lacking {
        std::mem::take(&mut lock(&self.seen).longest)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

async fn look(
    told: Arc<Telling>,
    readers: Arc<Vec<Readers>>,
    seen: Arc<Mutex<Seen>>,
    held: Arc<AtomicU64>,
) {
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        let (first, last) = first_and_last(&readers);
        held.store(last, Ordering::Relaxed);
        let time = Timestamp::from(SystemTime::now());
        let since = |at| time.since(at);
        let lacking =
            |position: u64| told.next_after(position as i64).map_or(Duration::ZERO, since);
        let now = Lacking { all: lacking(first), last: lacking(last) };
        let mut seen = lock(&seen);
        *seen = Seen { now, longest: seen.longest.or_longer(now) };
    }
}

/// The last operation that anybody has, and the last that everybody has.
fn first_and_last(readers: &[Readers]) -> (u64, u64) {
    let positions: Vec<u64> = readers.iter().flat_map(Readers::positions).collect();
    let first = positions.iter().copied().max().unwrap_or(0);
    (first, positions.iter().copied().min().unwrap_or(0))
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
