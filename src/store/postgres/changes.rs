//! How a process learns that another one has committed: by a notification, and by asking now and then beneath it. Where there
//! are no notifications, as on a standby, by asking often.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::time::{Instant, sleep, timeout};

use super::open::Postgres;
use super::pool::Pool;

/// What commits are notified on. Another log in the same database has the same: whoever is told too much looks once more.
pub(super) const CHANNEL: &str = "plc_replica";

/// How often is asked where notifications come.
const BENEATH: Duration = Duration::from_secs(1);
/// How often is asked where none come, so that a commit is seen well within 100 ms.
const ASK: Duration = Duration::from_millis(50);
/// How long they are not tried again for: a standby may become a primary.
const AGAIN: Duration = Duration::from_secs(30);

/// Tells when another process may have committed something.
pub struct Changes {
    pool: Arc<Pool>,
    listener: Option<PgListener>,
    /// Until then it is not tried to listen.
    deaf_until: Option<Instant>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("listens", &self.listener.is_some()).finish_non_exhaustive()
    }
}

impl Postgres {
    /// See [`crate::store::Store::changes`].
    pub fn changes(&self) -> Changes {
        Changes { pool: self.news.clone(), listener: None, deaf_until: None }
    }
}

impl Changes {
    /// See [`crate::store::Changes::next`].
    pub async fn next(&mut self) -> bool {
        if let Some(listener) = &mut self.listener {
            match timeout(BENEATH, listener.try_recv()).await {
                Err(_) => return false,
                Ok(Ok(Some(_))) => {
                    // One look is enough for all of them.
                    while listener.next_buffered().is_some() {}
                    return true;
                }
                // The connection has broken.
                Ok(Ok(None) | Err(_)) => self.listener = None,
            }
        }
        if self.deaf_until.is_none_or(|until| until <= Instant::now()) {
            self.deaf_until = Some(Instant::now() + AGAIN);
            self.listener = self.pool.listen(CHANNEL).await.ok();
            if self.listener.is_some() {
                self.deaf_until = None;
                // What was committed before this is notified to nobody.
                return true;
            }
        }
        sleep(ASK).await;
        true
    }

    /// See [`crate::store::Changes::missed`].
    pub fn missed(&mut self) {
        if self.listener.take().is_some() {
            tracing::debug!("a commit was not notified; it is asked for commits instead");
            self.deaf_until = Some(Instant::now() + AGAIN);
        }
    }

    /// See [`crate::store::Changes::rest`].
    pub fn rest(&mut self) {
        self.listener = None;
    }
}
