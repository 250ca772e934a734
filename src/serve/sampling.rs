//! The figures of the last hour, and those that cost a question to the store: taken in the background,
//! so that no page and no scrape waits for them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::live::Status;
use crate::store::{Statistics, Store};

use crate::clock::now;

/// How often gauges are set: as often as they are scraped, or more.
const INTERVAL: Duration = Duration::from_secs(5);
/// Samples between two looks at the store, which are a minute of the sparkline each.
const SAMPLES_A_MINUTE: u32 = 12;
/// Minutes that are remembered, and the one that they are counted from.
const MINUTES: usize = 61;
/// How long the store may take for its figures; they are asked for again a minute later.
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(20);
/// A store that has its figures this quickly is asked at every sample: a small one, whose figures
/// change most to the eye.
const QUICK: Duration = Duration::from_millis(20);

/// The figures, as they were last taken.
#[derive(Debug, Default)]
pub struct Samples {
    latest: Mutex<Sample>,
}

/// What was taken last.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The sequence number at the end of each of the last minutes, the newest last.
    pub sequences: VecDeque<i64>,
    /// What the store holds.
    pub statistics: Option<Statistics>,
}

impl Samples {
    /// As last taken.
    pub fn latest(&self) -> Sample {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Sample)) {
        change(&mut self.latest.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn add_minute(&self, sequence: i64) {
        self.change(|latest| {
            latest.sequences.push_back(sequence);
            if latest.sequences.len() > MINUTES {
                latest.sequences.pop_front();
            }
        });
    }
}

/// Takes the figures of a store and its follower until the shutdown.
pub struct Sampling<'a> {
    /// Where they go.
    pub samples: &'a Samples,
    /// The store.
    pub store: &'a Store,
    /// How far the follower is.
    pub status: &'a Status,
    /// When it is to end.
    pub shutdown: &'a CancellationToken,
}

impl Sampling<'_> {
    /// Takes them at every interval.
    pub async fn run(&self) {
        let mut intervals = interval(INTERVAL);
        intervals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0u32;
        let mut quick = false;
        while self.shutdown.run_until_cancelled(intervals.tick()).await.is_some() {
            self.status.state_metrics(now());
            self.store.load().state_metrics();
            let is_minute = count.is_multiple_of(SAMPLES_A_MINUTE);
            if is_minute {
                self.samples.add_minute(self.status.sequence());
            }
            if is_minute || quick {
                let began = Instant::now();
                self.count_store().await;
                quick = began.elapsed() < QUICK;
            }
            count = count.wrapping_add(1);
        }
    }

    /// What cannot be counted stays as it was.
    async fn count_store(&self) {
        let read = timeout(STATISTICS_TIMEOUT, self.store.statistics());
        let read = self.shutdown.run_until_cancelled(read).await;
        if let Some(Ok(Ok(statistics))) = read {
            statistics.state_metrics();
            self.samples.change(|latest| latest.statistics = Some(statistics));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_remembered() {
        let samples = Samples::default();
        for minute in 0..100 {
            samples.add_minute(minute);
        }
        let latest = samples.latest();
        assert_eq!((latest.sequences.len(), latest.sequences.back()), (MINUTES, Some(&99)));
    }
}
