//! Pauses while the store is away: said once, not a thousand times.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::FollowError;
use crate::store::StoreError;

/// First and longest pause after the store was not available.
const STORE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// The pauses of one follower, each twice as long as the one before until all is well again.
#[derive(Debug)]
pub struct Pauses {
    shutdown: CancellationToken,
    next: Duration,
    said: Option<Said>,
}

/// What the log said of a pause, until it says that it is over.
#[derive(Debug)]
struct Said {
    sentence: String,
    /// How that is said.
    end: &'static str,
}

impl Pauses {
    /// None so far; all of them end with the shutdown.
    pub fn until(shutdown: CancellationToken) -> Pauses {
        Pauses { shutdown, next: STORE_PAUSES.0, said: None }
    }

    /// Waits out what may pass, and returns what may not.
    pub async fn wait_out(&mut self, error: StoreError) -> Result<(), FollowError> {
        match error {
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) => {
                self.say(&error, "retried until it is back", "the database is back");
            }
            StoreError::Denied(_) => {
                self.say(&error, "retried until it is allowed", "the database allows it again");
            }
            StoreError::LostLease(_) => {
                self.say(
                    &error,
                    "waiting for it to end",
                    "no other follower writes to it any more",
                );
            }
            StoreError::Damaged { .. } => {
                metrics::gauge!("plc_store_damaged").set(1.0);
                tracing::error!(
                    "{error}; nothing more is taken in until it is mended (see `fsck`), serving goes on"
                );
                self.shutdown.cancelled().await;
            }
            StoreError::Unusable(_) => return Err(FollowError::Store(error)),
        }
        self.sleep().await;
        Ok(())
    }

    fn say(&mut self, error: &StoreError, what: &str, end: &'static str) {
        let sentence = error.to_string();
        if self.said.as_ref().is_none_or(|said| said.sentence != sentence) {
            tracing::warn!("{sentence}; {what}");
            self.said = Some(Said { sentence, end });
        }
    }

    /// The next pause.
    pub async fn sleep(&mut self) {
        let pause = self.next;
        self.next = (pause * 2).min(STORE_PAUSES.1);
        self.sleep_for(pause).await;
    }

    /// A pause of this length.
    pub async fn sleep_for(&self, pause: Duration) {
        self.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
    }

    /// All is well: the next pause is a first one.
    pub fn reset(&mut self) {
        if let Some(Said { end, .. }) = self.said.take() {
            tracing::info!("{end}");
        }
        self.next = STORE_PAUSES.0;
    }
}
