//! Time that is driven: hours pass in seconds, and the clock on the wall may jump.
//!
//! All of a plan but the database server runs on one thread, by tokio's paused clock: when nobody there has anything
//! to do it goes on to what is due next, and it stands still while a thread works for them. What is on its way
//! through a socket is nobody's work, so something is due every [`STEP`]: no more than this passes at a time. While
//! the database server works, a step takes [`REAL_STEP`] at least.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use did_plc::Timestamp;
use plc_replica::clock;
use tokio::time::{Instant, sleep};

/// What passes at a time.
const STEP: Duration = Duration::from_millis(100);
/// How long a step takes while the database server works: it is some twenty times slower than ours. A plan in which a
/// statement waits for a lock that another one of ours holds goes on all the same.
const REAL_STEP: Duration = Duration::from_millis(5);
/// How long a plan may take, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the clock shows at the beginning.
const BEGINNING: &str = "2026-06-01T00:00:00Z";

/// Statements that the database server is working on.
#[derive(Debug, Default)]
pub struct UnderWay {
    count: Mutex<usize>,
    less: Condvar,
}

impl UnderWay {
    pub fn add(&self) {
        *self.count.lock().unwrap() += 1;
    }

    pub fn subtract(&self, ended: usize) {
        *self.count.lock().unwrap() -= ended;
        self.less.notify_all();
    }

    fn is_nothing(&self) -> bool {
        *self.count.lock().unwrap() == 0
    }

    /// Waits until nothing is under way, for no longer than a step.
    fn wait(&self) {
        let count = self.count.lock().unwrap();
        drop(self.less.wait_timeout_while(count, REAL_STEP, |count| *count > 0).unwrap());
    }
}

/// The time of a plan, on the thread on which this was made.
#[derive(Debug, Clone)]
pub struct Time {
    begun: Instant,
    jumped: Rc<Cell<i64>>,
}

impl Time {
    /// Stops the clock of this runtime, and drives the one on the wall.
    pub fn begin() -> Time {
        tokio::time::pause();
        let time = Time { begun: Instant::now(), jumped: Rc::default() };
        let shown = time.clone();
        clock::drive(move || shown.on_the_wall());
        time
    }

    /// What has passed.
    pub fn passed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn on_the_wall(&self) -> Timestamp {
        let right = self.right();
        Timestamp::from_millis(right.millis() + self.jumped.get())
    }

    /// What a clock shows that does not jump.
    pub fn right(&self) -> Timestamp {
        let beginning: Timestamp = BEGINNING.parse().unwrap();
        beginning + self.passed()
    }

    /// The clock on the wall is put forward by so many seconds, or back.
    pub fn jump(&self, seconds: i64) {
        self.jumped.set(self.jumped.get() + seconds * 1_000);
    }

    /// Has the time pass for as long as this is polled.
    pub async fn drive(&self, under_way: Arc<UnderWay>) -> ! {
        let begun = std::time::Instant::now();
        loop {
            if !under_way.is_nothing() {
                let under_way = Arc::clone(&under_way);
                tokio::task::spawn_blocking(move || under_way.wait()).await.unwrap();
            }
            sleep(STEP).await;
            assert!(begun.elapsed() < PATIENCE, "the plan takes longer than {PATIENCE:?}");
        }
    }
}
