//! When to ask: the budget of requests that all who ask one upstream share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Of the budget, what is not following gets at most one request in this many: looking things up
/// for clients and auditing must not starve the following, whatever clients ask for.
pub const ASIDE_SHARE: u32 = 4;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Pages and the opening of streams.
    Following,
    /// Audit: with read-through, at most a quarter of the budget.
    Aside,
    /// Read-through. However much clients ask for, audit and it take turns.
    ReadThrough,
    /// What clients write. It takes turns with following: somebody waits for it, and how much of it there is has a
    /// limit of its own.
    Writing,
}

/// The requests that one upstream may be sent, shared by all who send any.
///
/// Requests are spaced evenly, so that no window of time ever sees more than its share: with 100 a
/// minute, one every 600 ms. Following waits in turn with what clients write, and with at most one request of the
/// others.
#[derive(Debug)]
pub struct RequestBudget {
    /// Time between two requests; zero for no limit.
    interval: Duration,
    /// Held by the one who waits for the next slot; the others queue here in the order of arrival.
    gate: tokio::sync::Mutex<()>,
    /// As [`RequestBudget::gate`], before it, for all but following: when the next one may go.
    aside: tokio::sync::Mutex<Instant>,
    /// As [`RequestBudget::aside`], before it, for [`Priority::ReadThrough`]: of all that clients ask
    /// for one request at a time queues there with the others.
    read_through: tokio::sync::Mutex<()>,
    /// No request before this.
    next: Mutex<Instant>,
}

impl RequestBudget {
    /// A budget of so many requests a minute; 0 for no limit.
    pub fn per_minute(requests: u32) -> RequestBudget {
        let minute = Duration::from_secs(60);
        let now = Instant::now();
        RequestBudget {
            interval: minute.checked_div(requests).unwrap_or(Duration::ZERO),
            gate: tokio::sync::Mutex::new(()),
            aside: tokio::sync::Mutex::new(now),
            read_through: tokio::sync::Mutex::new(()),
            next: Mutex::new(now),
        }
    }

    /// How many requests may be sent a minute; none without a limit.
    pub fn requests_per_minute(&self) -> Option<f64> {
        (!self.interval.is_zero()).then(|| 60.0 / self.interval.as_secs_f64())
    }

    /// Waits until a request may be sent. Who gives up waiting (drops the future) has taken
    /// nothing.
    pub async fn acquire(&self, priority: Priority) {
        match priority {
            Priority::Following | Priority::Writing => self.take_slot().await,
            Priority::Aside => self.take_slot_aside().await,
            Priority::ReadThrough => {
                let _gate = self.read_through.lock().await;
                self.take_slot_aside().await;
            }
        }
    }

    /// Lets nobody send anything for this long: the upstream asked for it.
    pub fn hold(&self, duration: Duration) {
        let mut next = self.next();
        *next = (*next).max(Instant::now() + duration);
    }

    async fn take_slot_aside(&self) {
        let mut next_aside = self.aside.lock().await;
        sleep_until(*next_aside).await;
        self.take_slot().await;
        *next_aside = Instant::now() + self.interval * ASIDE_SHARE;
    }

    async fn take_slot(&self) {
        let _gate = self.gate.lock().await;
        loop {
            let slot = *self.next();
            let now = Instant::now();
            if now >= slot {
                // From when it really is sent, not from when it could have been: a late one
                // never draws the next one nearer. `hold` may have moved the slot meanwhile.
                let mut next = self.next();
                *next = (*next).max(now + self.interval);
                return;
            }
            sleep_until(slot).await;
        }
    }

    /// An instant is whole whoever panicked while holding it.
    fn next(&self) -> MutexGuard<'_, Instant> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What is sent in half a second at this many requests a minute by senders without a pause.
    async fn sent<const N: usize>(per_minute: u32, priorities: [Priority; N]) -> Vec<Priority> {
        let budget = Arc::new(RequestBudget::per_minute(per_minute));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let senders = priorities.map(|priority| {
            let (budget, sent) = (Arc::clone(&budget), Arc::clone(&sent));
            tokio::spawn(async move {
                loop {
                    budget.acquire(priority).await;
                    sent.lock().unwrap().push(priority);
                }
            })
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        senders.iter().for_each(|sender| sender.abort());
        std::mem::take(&mut sent.lock().unwrap())
    }

    fn count(sent: &[Priority], of: Priority) -> usize {
        sent.iter().filter(|&&priority| priority == of).count()
    }

    /// 50 requests a second (20 ms apart).
    #[tokio::test(start_paused = true)]
    async fn requests_are_spaced_and_the_others_get_a_quarter() {
        let sent = sent(3000, [Priority::Following, Priority::Aside, Priority::ReadThrough]).await;
        assert!((25..=26).contains(&sent.len()), "{} requests", sent.len());
        let following = count(&sent, Priority::Following);
        let aside = sent.len() - following;
        assert!((5..=7).contains(&aside), "{aside} of {}", sent.len());
        assert!(following >= 2 * aside, "{aside} of {}", sent.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_clients_leaves_every_second_turn_to_the_audit() {
        let mut priorities = [Priority::ReadThrough; 9];
        priorities[8] = Priority::Aside;
        // One aside every 8 ms.
        let sent = sent(30_000, priorities).await;
        let (audit, clients) = (count(&sent, Priority::Aside), count(&sent, Priority::ReadThrough));
        assert!(audit >= 2 && audit.abs_diff(clients) <= 1, "{audit} and {clients}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_sends_while_it_is_held() {
        let budget = RequestBudget::per_minute(0);
        let start = Instant::now();
        budget.acquire(Priority::Aside).await;
        budget.hold(Duration::from_millis(60));
        budget.acquire(Priority::Following).await;
        assert!(start.elapsed() >= Duration::from_millis(60));
    }
}
