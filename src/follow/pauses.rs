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
                pauses.wait_out(error.clone()).await.unwrap();
            }
            pauses.reset();
            pauses.reset();
            let all = std::fs::read_to_string(&log).unwrap();
            let said: Vec<&str> = all[said_up_to..].lines().collect();
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(said[0].contains(begin) && said[1].contains(end), "{said:?}");
            said_up_to = all.len();
        }
        assert!(pauses.wait_out(StoreError::Unusable("x".to_owned())).await.is_err());
    }
}
