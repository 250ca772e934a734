//! Looks again and again how far the standbys are, and whether the primary answers.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::gauge;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::freshness::Freshness;
use super::picture::Reads;
use super::standby::{Seen, Standby};
use super::trail::{Place, Trail};
use crate::store::{self, Presence, Store, StoreError};

/// Between two looks. What is answered is stated to be older by as much at most; a look takes a standby some 50 µs.
const LOOK: Duration = Duration::from_millis(100);
/// A standby that has not said by then how far it is, is gone: with a look before it, within a second. So is a primary that
/// has not answered.
const PATIENCE: Duration = Duration::from_millis(700);

/// Watches these standbys, which are those of `reads` in their order, until the shutdown. One is in use while it is not
/// further behind than `most`.
pub async fn watch(
    reads: Arc<Reads>,
    standbys: Vec<store::Standby>,
    most: Duration,
    shutdown: CancellationToken,
) {
    let watching = reads.standbys().iter().zip(standbys).map(|(standby, asked)| {
        let watched = Watched {
            standby: Arc::clone(standby),
            asked,
            most,
            trail: Trail::default(),
            said: None,
        };
        watched.run(&reads)
    });
    let watching = futures::future::join_all(watching);
    let presence = reads.primary().conversation().store.presence().filter(|_| reads.has_standbys());
    let all = async {
        match presence {
            Some(presence) => drop(tokio::join!(watching, watch_primary(&reads, presence))),
            None => drop(watching.await),
        }
    };
    shutdown.run_until_cancelled(all).await;
}

/// Looks whether the primary answers. One that refuses, or is not there, says so by itself to whoever asks.
async fn watch_primary(reads: &Reads, mut presence: Presence) {
    let mut looks = looks();
    loop {
        looks.tick().await;
        match timeout(PATIENCE, presence.ask()).await {
            Ok(Ok(())) => reads.primary().set_answering(|| Store::Postgres(presence.store())),
            Ok(Err(_)) => {}
            Err(_) => reads.primary().set_silent(),
        }
    }
}

fn looks() -> Interval {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// One of them.
struct Watched {
    standby: Arc<Standby>,
    asked: store::Standby,
    most: Duration,
    trail: Trail,
    /// Why it is not in use, as it was said; none where it is.
    said: Option<String>,
}

impl Watched {
    async fn run(mut self, reads: &Reads) {
        let mut looks = looks();
        loop {
            looks.tick().await;
            // In this order: what is promised now is there with so many commits, and was replayed where the standby has as
            // many afterwards.
            let freshness = Freshness::now(reads.status());
            self.trail.note(Instant::now(), reads.status().commits(), freshness);
            match timeout(PATIENCE, self.asked.replayed()).await {
                Ok(Ok(replayed)) => self.is_at(self.trail.place(Instant::now(), replayed)),
                Ok(Err(error)) => self.is_gone(error),
                Err(_) => {
                    let millis = PATIENCE.as_millis();
                    let reason = format!("{} has not answered for {millis} ms", self.standby.name);
                    self.is_gone(StoreError::Unavailable(reason));
                }
            }
        }
    }

    /// It answers, and is so far.
    fn is_at(&mut self, place: Place) {
        let seen = Seen::at(place, self.most);
        match self.standby.answering() {
            Some(answering) => answering.set_seen(seen),
            None => self.standby.set_answering(Store::Postgres(self.asked.store()), seen),
        }
        if let Some(lag) = place.lag {
            let name = self.standby.name.clone();
            gauge!("plc_read_database_lag_seconds", "database" => name).set(lag.as_secs_f64());
        }
        match seen.behind {
            false => self.is_in_use(),
            true => self.is_left_out(format!(
                "it has not replayed what the primary has had for more than {} s",
                self.most.as_secs_f64()
            )),
        }
    }

    fn is_gone(&mut self, error: StoreError) {
        self.standby.set_gone();
        match error {
            StoreError::Unavailable(reason) => self.is_left_out(reason),
            // That does not pass by itself: it is said whatever was said before.
            StoreError::Unusable(reason) if self.said.as_ref() != Some(&reason) => {
                self.said = None;
                self.is_left_out(reason);
            }
            error => self.is_left_out(error.to_string()),
        }
    }

    fn is_in_use(&mut self) {
        self.state_in_use(1.0);
        if self.said.take().is_some() {
            tracing::info!(database = self.standby.name, "a read database is in use again");
        }
    }

    fn is_left_out(&mut self, reason: String) {
        self.state_in_use(0.0);
        if self.said.is_none() {
            tracing::warn!(
                database = self.standby.name,
                reason,
                "a read database is left out until it is back"
            );
            self.said = Some(reason);
        }
    }

    fn state_in_use(&self, value: f64) {
        gauge!("plc_read_database_in_use", "database" => self.standby.name.clone()).set(value);
    }
}
