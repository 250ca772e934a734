//! What the primary promised when, so that it is known what a standby promises that is so far.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::freshness::Freshness;
use crate::store::Replayed;

/// Numbers that are remembered: with ten looks a second at least a minute and a half, longer than a standby is read from
/// that is behind. What is older is not known.
const MOST: usize = 1024;

/// The numbers that the primary has reached, each with the most that it promised there.
#[derive(Debug, Default)]
pub struct Trail {
    steps: VecDeque<Step>,
}

#[derive(Debug)]
struct Step {
    /// When it was seen first.
    at: Instant,
    freshness: Freshness,
}

/// What is known of a standby that has replayed up to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it promises.
    pub freshness: Freshness,
    /// For how long the primary has had something that is not replayed; none where that is longer than is remembered.
    pub lag: Option<Duration>,
}

impl Trail {
    /// The primary promises this now. To be called before a standby is asked how far it is: what it has replayed then
    /// is at least what was promised, where the number is the same.
    pub fn note(&mut self, at: Instant, freshness: Freshness) {
        match self.steps.back_mut() {
            Some(last) if last.freshness.sequence == freshness.sequence => {
                last.freshness = freshness
            }
            _ => self.steps.push_back(Step { at, freshness }),
        }
        if self.steps.len() > MOST {
            self.steps.pop_front();
        }
    }

    /// A standby has replayed this. Something may be missing there that has not moved the cursor: so it promises no more
    /// than what it has replayed says itself.
    pub fn place(&self, now: Instant, replayed: Replayed) -> Place {
        let mut place = self.place_of_cursor(now, replayed.cursor);
        place.freshness.as_of = place.freshness.as_of.min(replayed.as_of);
        place
    }

    /// It has replayed up to this number.
    fn place_of_cursor(&self, now: Instant, replayed: i64) -> Place {
        let reached = self.steps.iter().rposition(|step| step.freshness.sequence <= replayed);
        let Some(reached) = reached else {
            let freshness = Freshness { sequence: replayed, as_of: None, caught_up: false };
            return Place { freshness, lag: None };
        };
        let next = self.steps.get(reached + 1);
        let lag = next.map_or(Duration::ZERO, |next| now.saturating_duration_since(next.at));
        Place { freshness: self.steps[reached].freshness, lag: Some(lag) }
    }
}

#[cfg(test)]
mod tests {
    use did_plc::Timestamp;

    use super::*;

    fn promised(sequence: i64, as_of: i64) -> Freshness {
        let as_of = Some(Timestamp::from_millis(as_of));
        Freshness { sequence, as_of, caught_up: true }
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_promises_what_the_primary_did_when_it_was_so_far() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut trail = Trail::default();
        trail.note(after(0), promised(10, 1_000));
        trail.note(after(1), promised(10, 2_000));
        trail.note(after(2), promised(12, 3_000));
        trail.note(after(3), promised(15, 4_000));
        trail.note(after(4), promised(15, 5_000));
        let replayed = |cursor| Replayed { cursor, as_of: Some(Timestamp::from_millis(9_000)) };
        let place = |cursor| trail.place(after(5), replayed(cursor));
        let is = |freshness, lag| Place { freshness, lag: Some(Duration::from_secs(lag)) };
        // All of it, and more than was known when it was asked.
        assert_eq!(place(15), is(promised(15, 5_000), 0));
        assert_eq!(place(16), is(promised(15, 5_000), 0));
        // Something is missing since it was first seen.
        assert_eq!(place(14), is(promised(12, 3_000), 2));
        assert_eq!(place(12), is(promised(12, 3_000), 2));
        assert_eq!(place(10), is(promised(10, 2_000), 3));
        // Before the beginning nothing is known but the number.
        let unknown = Freshness { sequence: 9, as_of: None, caught_up: false };
        assert_eq!(place(9), Place { freshness: unknown, lag: None });
        // The cursor stands still, and what is committed meanwhile is not replayed.
        let said = |as_of| {
            let as_of = Some(Timestamp::from_millis(as_of));
            trail.place(after(5), Replayed { cursor: 15, as_of })
        };
        assert_eq!(said(4_500), is(promised(15, 4_500), 0));
        assert_eq!(said(9_000), is(promised(15, 5_000), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_that_is_set_back_and_a_long_way() {
        let now = Instant::now();
        let mut trail = Trail::default();
        trail.note(now, promised(100, 1_000));
        trail.note(now, promised(90, 2_000));
        // It has not been set back there yet: no more than now is promised.
        let at = |cursor| Replayed { cursor, as_of: Some(Timestamp::from_millis(1 << 40)) };
        assert_eq!(trail.place(now, at(100)).freshness, promised(90, 2_000));
        for number in 200..200 + 2 * MOST as i64 {
            trail.note(now, promised(number, number));
        }
        assert_eq!(trail.steps.len(), MOST);
        assert_eq!(trail.place(now, at(200)).lag, None);
    }
}
