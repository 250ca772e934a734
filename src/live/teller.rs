//! Tells of each commit, whoever has made it: the clients of the stream which operations are new, and, in a process that only
//! reads, the status how far the log is.
//!
//! It does so from what the commits themselves have noted, read back from the store, in the follower as in every reader: so
//! who follows may change, and a commit's outcome stay unknown for a while, without a client missing anything or being told
//! of it twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::status::{Role, Status};
use crate::store::{Changes, CommitId, Store, StoreError};

/// How often the follower's process looks without being asked to. Its own commits ask; one of unknown outcome may become known
/// later.
const FOLLOWER_LOOKS: Duration = Duration::from_secs(5);
/// First and longest pause after the store was not available.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Looks at a store until the shutdown.
pub async fn tell(store: Store, feed: Arc<Feed>, status: Arc<Status>, shutdown: CancellationToken) {
    let told = status.commit();
    let mut teller = Teller { changes: store.changes(), store, feed, status, told };
    shutdown.run_until_cancelled(teller.run()).await;
}

struct Teller {
    store: Store,
    feed: Arc<Feed>,
    status: Arc<Status>,
    changes: Changes,
    /// The last commit that was told of.
    told: CommitId,
}

/// Why it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody has said that there may be something new.
    Told,
    /// It is time to.
    Time,
}

impl Teller {
    async fn run(&mut self) {
        let mut pause = PAUSES.0;
        let mut cause = Cause::Told;
        loop {
            let before = self.told;
            match self.look().await {
                Ok(()) => {
                    pause = PAUSES.0;
                    if cause == Cause::Time && self.told != before {
                        self.changes.missed();
                    }
                    cause = self.next_cause().await;
                }
                Err(error) => {
                    // Whoever asks the store for something else is told of it too.
                    tracing::debug!("what was committed cannot be read: {error}");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    async fn next_cause(&mut self) -> Cause {
        let reads = self.status.role() == Role::Reader;
        if !reads {
            self.changes.rest();
        }
        tokio::select! {
            () = self.feed.woken() => Cause::Told,
            said = self.changes.next(), if reads => if said { Cause::Told } else { Cause::Time },
            () = sleep(FOLLOWER_LOOKS), if !reads => Cause::Told,
        }
    }

    /// Looks what was committed since the last time, and tells of it.
    async fn look(&mut self) -> Result<(), StoreError> {
        // Borrowed apart from the rest.
        let feed = Arc::clone(&self.feed);
        let looking = feed.looking();
        let Some(source) = self.store.committed_source().await? else {
            looking.done();
            return Ok(());
        };
        if self.status.role() == Role::Reader {
            self.status.learn(&source);
        }
        // Who subscribes after the source was read finds all of it in the store.
        if source.commit != self.told && self.feed.subscribers() == 0 {
            self.told = source.commit;
        }
        while self.told != source.commit {
            match self.store.news(self.told).await {
                Ok(Some(news)) => {
                    news.commits.iter().for_each(|operations| self.feed.publish(operations));
                    self.told = news.through;
                    if news.through == news.last {
                        break;
                    }
                }
                Ok(None) => {
                    tracing::debug!(?self.told, "too much has come to be told; clients come back");
                    self.interrupt(source.commit);
                }
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!("{error}; stream clients are sent back to their cursors");
                    self.interrupt(source.commit);
                }
                Err(error) => return Err(error),
            }
        }
        looking.done();
        Ok(())
    }

    /// Sends all clients back to their cursors, by which they find what they were not told of.
    fn interrupt(&mut self, commit: CommitId) {
        self.feed.interrupt();
        self.told = commit;
    }
}
