//! How fast the log is read, and how long that will take.

use std::time::Duration;

use tokio::time::Instant;

/// The rate is that of this much time at least, and of twice as much at most: a page comes every 600 ms, or not for a
/// minute.
const WINDOW: Duration = Duration::from_secs(60);

/// How fast sequence numbers go by.
#[derive(Debug)]
pub(super) struct Pace {
    /// When a number was reached, some time ago.
    from: (Instant, i64),
    /// The same, later.
    later: (Instant, i64),
    /// The last one.
    last: (Instant, i64),
}

/// What is to be read, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlook {
    /// The last sequence number of the upstream.
    pub head: i64,
    /// How much of that is committed, of 100.
    pub percent: f64,
    /// Sequence numbers a second, lately; none at the beginning.
    pub rate: Option<f64>,
    /// Until all is read, at this rate.
    pub left: Option<Duration>,
}

impl Pace {
    /// At a number from which it is read on.
    pub fn from(now: Instant, sequence: i64) -> Pace {
        Pace { from: (now, sequence), later: (now, sequence), last: (now, sequence) }
    }

    /// Everything up to this number is committed.
    pub fn reach(&mut self, now: Instant, sequence: i64) {
        if sequence < self.last.1 {
            *self = Pace::from(now, sequence);
        }
        if now.duration_since(self.later.0) >= WINDOW {
            self.from = std::mem::replace(&mut self.later, self.last);
        }
        self.last = (now, sequence);
    }

    fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.from.0).as_secs_f64();
        (self.last.0 > self.from.0 && seconds >= 1.0)
            .then(|| (self.last.1 - self.from.1) as f64 / seconds)
    }

    /// How it looks with an upstream whose last number is this.
    pub fn outlook(&self, now: Instant, head: i64) -> Outlook {
        let reached = self.last.1;
        let rate = self.rate(now);
        let left = rate.filter(|rate| *rate > 0.0).and_then(|rate| {
            Duration::try_from_secs_f64((head - reached).max(0) as f64 / rate).ok()
        });
        let percent = (reached as f64 / head.max(1) as f64 * 100.0).clamp(0.0, 100.0);
        Outlook { head, percent, rate, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minutes() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut pace = Pace::from(begun, 1_000);
        let outlook = pace.outlook(at(5), 101_000);
        assert_eq!((outlook.rate, outlook.left), (None, None));
        for second in 1..=600 {
            pace.reach(at(second), 1_000 + 100 * i64::try_from(second).unwrap());
        }
        let outlook = pace.outlook(at(600), 101_000);
        assert_eq!(outlook.rate, Some(100.0));
        assert_eq!(outlook.left, Some(Duration::from_secs(400)));
        assert_eq!(outlook.percent.round(), 60.0);
        // Ten times as fast for two minutes: what was before that is of no interest.
        for second in 601..=730 {
            pace.reach(at(second), 61_000 + 1_000 * (i64::try_from(second).unwrap() - 600));
        }
        let rate = pace.outlook(at(730), 1_000_000).rate.unwrap();
        assert!((900.0..=1_000.0).contains(&rate), "{rate}");
        // Nothing comes any more.
        let rate = pace.outlook(at(1_000), 1_000_000).rate.unwrap();
        assert!(rate < 400.0, "{rate}");
        // Read again from an earlier number on.
        pace.reach(at(1_001), 7);
        let outlook = pace.outlook(at(1_003), 14);
        assert_eq!((outlook.rate, outlook.percent), (None, 50.0));
    }
}
