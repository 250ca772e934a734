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
    /// It does not allow what is asked of it.
    Denied,
    /// Another follower writes.
    Taken,
}

impl Cause {
    /// What is done about it.
    const fn remedy(self) -> &'static str {
        match self {
            Cause::Away => "retried until it is back",
            Cause::Denied => "retried until it is allowed",
            Cause::Taken => "waiting for it to end",
        }
    }

    /// How it is said that it is over.
    const fn end(self) -> &'static str {
        match self {
            Cause::Away => "the database is back",
            Cause::Denied => "the database allows it again",
            Cause::Taken => "no other follower writes to it any more",
        }
    }
}

impl Pauses {
    /// None so far; all of them end with the shutdown.
    pub fn until(shutdown: CancellationToken) -> Pauses {
        Pauses { shutdown, next: STORE_PAUSES.0, said: None, until_commit: false }
    }

    /// Waits out what may pass, and returns what may not. Of a database that is `sought` it is logged by the store
    /// that it is away.
    pub async fn wait_out(
        &mut self,
        error: StoreError,
        during: During,
        sought: bool,
    ) -> Result<(), FollowError> {
        self.until_commit |= during == During::Session;
        match error {
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) if sought => {
                tracing::debug!("{error}; {}", Cause::Away.remedy());
            }
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) => {
                self.say(&error, Cause::Away);
            }
            StoreError::Denied(_) => self.say(&error, Cause::Denied),
            // Who asks for the lease next is told more.
            StoreError::LostLease(_) | StoreError::Outdated(_) => self.say(&error, Cause::Taken),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What ends is what was told of: a database that was never away does not come back.
    #[tokio::test]
    async fn each_end_is_that_of_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let file = Arc::new(std::fs::File::create(&log).unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(file).with_ansi(false).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let over = CancellationToken::new();
        over.cancel();
        let mut pauses = Pauses::until(over);
        let mut said_up_to = 0;
        for (error, begin, end) in [
            (StoreError::Unavailable("x".to_owned()), "until it is back", "the database is back"),
            (
                StoreError::Denied("x".to_owned()),
                "until it is allowed",
                "the database allows it again",
            ),
            (StoreError::LostLease("x".to_owned()), "waiting for it", "no other follower writes"),
        ] {
            for _ in 0..3 {
                pauses.wait_out(error.clone(), During::Session, false).await.unwrap();
            }
            // That the next session begins is not the end of it.
            pauses.begun();
            pauses.committed();
            pauses.committed();
            let all = std::fs::read_to_string(&log).unwrap();
            let said: Vec<&str> = all[said_up_to..].lines().collect();
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(said[0].contains(begin) && said[1].contains(end), "{said:?}");
            said_up_to = all.len();
        }
        // The store has said it.
        let away = StoreError::Unavailable("x".to_owned());
        pauses.wait_out(away, During::Session, true).await.unwrap();
        pauses.committed();
        assert_eq!(std::fs::read_to_string(&log).unwrap().len(), said_up_to);
        let unusable = StoreError::Unusable("x".to_owned());
        assert!(pauses.wait_out(unusable, During::Beginning, false).await.is_err());
    }
}
