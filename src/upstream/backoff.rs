//! How long to wait after a fault.

use std::time::Duration;

use super::fault::UpstreamFault;
use super::limits::Limits;

/// Delays that double with each fault in a row, with jitter, up to a limit; a longer one only
/// where the upstream asks for it.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// With the delays of these limits.
    pub fn new(limits: &Limits) -> Backoff {
        Backoff {
            first: limits.backoff_first,
            longest: limits.backoff_longest,
            next: limits.backoff_first,
        }
    }

    /// How long to wait after this fault.
    pub fn after(&mut self, fault: &UpstreamFault) -> Duration {
        // Between half and all of it: many replicas of one directory that lost it at the same
        // moment do not come back at the same moment.
        let delay = self.next.mul_f64(rand::random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.longest);
        delay.max(fault.retry_after().unwrap_or_default())
    }

    /// All is well again: the next fault is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: UpstreamFault = UpstreamFault::RedirectLoop;

    #[test]
    fn delays_double_up_to_the_limit_and_start_again() {
        let mut backoff = Backoff::new(&Limits::default());
        let mut delays = (0..12).map(|_| backoff.after(&FAULT)).collect::<Vec<_>>();
        assert!(delays[0] >= Duration::from_millis(250) && delays[0] <= Duration::from_millis(500));
        assert!(delays[3] >= Duration::from_secs(2) && delays[3] <= Duration::from_secs(4));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(60)));
        assert!(delays.pop() >= Some(Duration::from_secs(30)));
        backoff.reset();
        assert!(backoff.after(&FAULT) <= Duration::from_millis(500));
    }

    #[test]
    fn the_upstreams_wish_counts_when_it_is_longer() {
        let mut backoff = Backoff::new(&Limits::default());
        let retry_after = Some(Duration::from_secs(100));
        let wish = UpstreamFault::RateLimited { retry_after };
        assert_eq!(backoff.after(&wish), Duration::from_secs(100));
    }
}
