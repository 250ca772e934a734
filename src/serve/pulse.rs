//! What is worth knowing of the last hour, and figures that cost a question to the store: taken in
//! the background, so that no page and no scrape waits for them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::metrics;
use crate::store::Statistics;

use super::Server;
use super::status::now;

/// How often gauges are set: as often as they are scraped, or more.
const BEAT: Duration = Duration::from_secs(5);
/// Beats between two looks at the store, which are a minute of the sparkline each.
const BEATS_A_MINUTE: u32 = 12;
/// Minutes that are remembered, and the one that they are counted from.
const MINUTES: usize = 61;
/// How long the store may take for its figures; they are asked for again a minute later.
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(20);
/// A store that has its figures this quickly is asked at every beat: a small one, whose figures
/// change most to the eye.
const QUICK: Duration = Duration::from_millis(20);

/// The figures, as they were last taken.
#[derive(Debug, Default)]
pub struct Pulse {
    taken: Mutex<Taken>,
}

/// What was taken.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// The sequence number at the end of each of the last minutes, the newest last.
    pub sequences: VecDeque<i64>,
    /// What the store holds.
    pub statistics: Option<Statistics>,
}

impl Pulse {
    /// As last taken.
    pub fn taken(&self) -> Taken {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Taken)) {
        change(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn minute(&self, sequence: i64) {
        self.change(|taken| {
            taken.sequences.push_back(sequence);
            if taken.sequences.len() > MINUTES {
                taken.sequences.pop_front();
            }
        });
    }
}

/// Takes the figures until the shutdown.
pub async fn beat(server: &Server) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0u32;
    let mut quick = false;
    while server.shutdown.run_until_cancelled(beats.tick()).await.is_some() {
        server.state.status.state_metrics(now());
        server.state.store.load().state_metrics();
        metrics::keys(server.state.verifier.lookups());
        let is_minute = count.is_multiple_of(BEATS_A_MINUTE);
        if is_minute {
            server.pulse.minute(server.state.status.sequence());
        }
        if is_minute || quick {
            let began = Instant::now();
            count_store(server).await;
            quick = began.elapsed() < QUICK;
        }
        count = count.wrapping_add(1);
    }
}

/// What cannot be counted stays as it was.
async fn count_store(server: &Server) {
    let read = timeout(STATISTICS_TIMEOUT, server.state.store.statistics());
    let read = server.shutdown.run_until_cancelled(read).await;
    if let Some(Ok(Ok(statistics))) = read {
        statistics.state_metrics();
        server.pulse.change(|taken| taken.statistics = Some(statistics));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_remembered() {
        let pulse = Pulse::default();
        for minute in 0..100 {
            pulse.minute(minute);
        }
        let taken = pulse.taken();
        assert_eq!((taken.sequences.len(), taken.sequences.back()), (MINUTES, Some(&99)));
    }
}
