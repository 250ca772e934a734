//! How often an identity may be written.

use super::super::chain::Chain;
use super::super::timestamp::Timestamp;
use super::rejection::{Period, Rejection};

/// How many operations an identity may have in a time before the next one is refused. The default ones are the
/// directory's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Within the last hour.
    pub hour: usize,
    /// Within the last day.
    pub day: usize,
    /// Within the last week.
    pub week: usize,
}

impl Default for RateLimits {
    fn default() -> RateLimits {
        RateLimits { hour: 10, day: 30, week: 100 }
    }
}

impl RateLimits {
    /// Whether one more is taken. What was nullified does not count, and an operation that nullifies something is
    /// not to be asked about: who has stolen a key could keep its owner from recovering.
    ///
    /// # Errors
    ///
    /// [`Rejection::TooOften`].
    pub fn check(&self, chain: &Chain, now: Timestamp) -> Result<(), Rejection> {
        let standing = || chain.links().iter().filter(|link| link.nullified_by.is_none());
        for (period, most) in
            [(Period::Week, self.week), (Period::Day, self.day), (Period::Hour, self.hour)]
        {
            let since = now - period.length();
            if standing().filter(|link| link.created_at > since).count() >= most {
                return Err(Rejection::TooOften { most, period });
            }
        }
        Ok(())
    }
}
