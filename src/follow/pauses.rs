//! Pauses while the store is away: said once, not a thousand times.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::FollowError;
use crate::store::StoreError;

/// First and longest pause after the store was not available.
const STORE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// The pauses of one follower, each twice as long as the one before until something is written again.
#[derive(Debug)]
pub struct Pauses {
    shutdown: CancellationToken,
    next: Duration,
    /// What is waited for, as it was logged.
    said: Option<Cause>,
    /// Whether a session has failed that had begun: that the next one begins says nothing then.
    until_commit: bool,
}

/// When an error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    /// While the lease was taken.
    Beginning,
    /// In a session, or what comes before it under the lease.
    Session,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The database cannot be reached, or cannot write.
    Away,
    /// Another follower writes.
    Taken,
}

impl Cause {
    /// What is done about it.
    const fn remedy(self) -> &'static str {
        match self {
            Cause::Away => "retried until it is back",
            Cause::Taken => "waiting for it to end",
        }
    }

    /// How it is said that it is over.
    const fn end(self) -> &'static str {
        match self {
            Cause::Away => "the database is back",
            Cause::Taken => "this follower writes now",
        }
    }
}

impl Pauses {
    /// None so far; all of them end with the shutdown.
    pub fn until(shutdown: CancellationToken) -> Pauses {
        Pauses { shutdown, next: STORE_PAUSES.0, said: None, until_commit: false }
    }

    /// Waits out what may pass, and returns what may not.
    pub async fn wait_out(&mut self, error: StoreError, during: During) -> Result<(), FollowError> {
        self.until_commit |= during == During::Session;
        match error {
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) => {
                self.say(&error, Cause::Away);
            }
            StoreError::LostLease(_) => self.say(&error, Cause::Taken),
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

    /// Logs what is waited for, once until it is over.
    fn say(&mut self, error: &StoreError, cause: Cause) {
        let remedy = cause.remedy();
        match self.said.replace(cause) == Some(cause) {
            true => tracing::debug!("{error}; {remedy}"),
            false => tracing::warn!("{error}; {remedy}"),
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

    /// A session has begun, which ends the pauses unless one has failed after that.
    pub fn begun(&mut self) {
        if !self.until_commit {
            self.end();
        }
    }

    /// Something was committed, so that the next pause is a first one. Nothing less ends the pauses of a
    /// session that failed: a full disk can be read from, and a lease be taken on it.
    pub fn committed(&mut self) {
        self.until_commit = false;
        self.end();
    }

    fn end(&mut self) {
        if let Some(cause) = self.said.take() {
            tracing::info!("{}", cause.end());
        }
        self.next = STORE_PAUSES.0;
    }
}
