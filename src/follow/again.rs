//! Asking the upstream once more for what was read already: lines that are judged beside what is followed, and
//! what comes of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::reader::{Event, Gone};
use crate::clock::now;
use crate::judge::{Course, Decoded, Lines};
use crate::store::{Store, StoreError};
use crate::upstream::UpstreamFault;

/// Why it could not be asked, or what came could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum AgainError {
    /// Because of the upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The session has ended.
    #[error("the session has ended")]
    Gone,
}

impl From<Gone> for AgainError {
    fn from(_: Gone) -> AgainError {
        AgainError::Gone
    }
}

impl AgainError {
    /// Of which kind it is.
    fn kind(&self) -> &'static str {
        match self {
            AgainError::Upstream(fault) => fault.kind(),
            AgainError::Store(_) => "store",
            AgainError::Gone => "gone",
        }
    }
}

/// What was said of asking again, so that a long outage is one line.
#[derive(Debug)]
pub struct Said {
    /// What is done by asking.
    what: &'static str,
    /// Kind of the error that was logged last; none while all is well.
    error: Option<&'static str>,
}

impl Said {
    /// Nothing so far.
    pub fn nothing_of(what: &'static str) -> Said {
        Said { what, error: None }
    }

    /// Logs an error, unless it is the same as before, or the store says it itself.
    pub fn say(&mut self, error: &AgainError, retry_in: Duration, store: &Store) {
        let what = self.what;
        if matches!(error, AgainError::Store(_)) && store.is_sought() {
            tracing::debug!(?retry_in, "{what} does not succeed: {error}");
        } else if self.error.replace(error.kind()) == Some(error.kind()) {
            tracing::debug!(?retry_in, "{what} does not succeed: {error}");
        } else {
            tracing::warn!(?retry_in, "{what} does not succeed: {error}; it is tried again");
        }
    }

    /// Logs that all is well, if it was not.
    pub fn say_well(&mut self) {
        if self.error.take().is_some() {
            tracing::info!("{} succeeds again", self.what);
        }
    }
}

/// Hands lines over to be judged, and waits until what follows from them is committed. `source` states them,
/// where that is not the upstream.
pub async fn take_in(
    events: &mpsc::Sender<Event>,
    decoded: Decoded,
    course: Course,
    source: Option<Arc<str>>,
) -> Result<(), Gone> {
    let lines = Lines { decoded, received_at: now(), caught_up: false, course, source };
    let (committed, receiver) = oneshot::channel();
    events.send(Event::Again { lines, committed }).await.map_err(|_| Gone)?;
    receiver.await.map_err(|_| Gone)
}

/// Waits until the upstream is known to have the log that was read from it.
pub async fn wait_for(same_log: &mut watch::Receiver<bool>) -> Result<(), Gone> {
    same_log.wait_for(|same| *same).await.map(drop).map_err(|_| Gone)
}
