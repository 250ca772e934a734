//! What the primary promised when, so that it is known what a standby promises that is so far.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::freshness::Freshness;
use crate::store::Replayed;

/// Steps that are remembered: with ten looks a second at least a minute and a half, longer than a standby is read from
/// that is behind. What is older is not known.
const MOST: usize = 1024;

/// How many commits the primary has had, and the most that it promised with so many. By them it is seen what is missing on a
/// standby, also where the cursor stands still: while the log is read again, or something is taken in late.
#[derive(Debug, Default)]
pub struct Trail {
    steps: VecDeque<Step>,
}

#[derive(Debug)]
struct Step {
    /// When it was seen first.
    at: Instant,
    commits: i64,
    freshness: Freshness,
}

/// What is known of a standby that has replayed so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it promises.
    pub freshness: Freshness,
    /// For how long the primary has had something that is not replayed; none where that is longer than is remembered.
    pub lag: Option<Duration>,
}

impl Trail {
    /// The primary promises this now, with so many commits. To be called before a standby is asked how far it is: what it
    /// has replayed then is at least what was promised, where it has as many.
    pub fn note(&mut self, at: Instant, commits: i64, freshness: Freshness) {
        match self.steps.back_mut() {
            Some(last) if last.commits == commits => last.freshness = freshness,
            _ => self.steps.push_back(Step { at, commits, freshness }),
        }
        if self.steps.len() > MOST {
            self.steps.pop_front();
        }
    }

    /// Where a standby is that has replayed this.
    pub fn place(&self, now: Instant, replayed: Replayed) -> Place {
        let reached = self.steps.iter().rposition(|step| step.commits <= replayed.commits);
        let Some(reached) = reached else {
            let sequence = replayed.cursor;
            let freshness = Freshness { sequence, as_of: None, caught_up: false };
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

    fn replayed(commits: i64) -> Replayed {
        Replayed { cursor: 10 * commits, commits }
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_promises_what_the_primary_did_when_it_was_so_far() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut trail = Trail::default();
        trail.note(after(0), 5, promised(50, 1_000));
        trail.note(after(1), 5, promised(50, 2_000));
        trail.note(after(2), 7, promised(60, 3_000));
        // What does not move the cursor may be missing too.
        trail.note(after(3), 8, promised(60, 4_000));
        trail.note(after(4), 8, promised(60, 5_000));
        let place = |commits| trail.place(after(5), replayed(commits));
        let is = |freshness, lag| Place { freshness, lag: Some(Duration::from_secs(lag)) };
        // All of it, and more than was known when it was asked.
        assert_eq!(place(8), is(promised(60, 5_000), 0));
        assert_eq!(place(9), is(promised(60, 5_000), 0));
        // Something is missing since it was first seen.
        assert_eq!(place(7), is(promised(60, 3_000), 2));
        assert_eq!(place(6), is(promised(50, 2_000), 3));
        assert_eq!(place(5), is(promised(50, 2_000), 3));
        // Before the beginning nothing is known but the number.
        let unknown = Freshness { sequence: 40, as_of: None, caught_up: false };
        assert_eq!(place(4), Place { freshness: unknown, lag: None });
    }

    #[tokio::test(start_paused = true)]
    async fn commits_that_are_taken_back_and_a_long_way() {
        let now = Instant::now();
        let mut trail = Trail::default();
        trail.note(now, 10, promised(100, 1_000));
        trail.note(now, 9, promised(90, 2_000));
        // No more than now is promised.
        assert_eq!(trail.place(now, replayed(10)).freshness, promised(90, 2_000));
        for number in 20..20 + 2 * MOST as i64 {
            trail.note(now, number, promised(number, number));
        }
        assert_eq!(trail.steps.len(), MOST);
        assert_eq!(trail.place(now, replayed(20)).lag, None);
    }
}
