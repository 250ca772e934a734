//! Asking the upstream once more for what was read already: lines that are judged beside what is followed, and
//! what comes of them.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};

use super::reader::{Event, Gone};
use crate::judge::{Course, Decoded, Lines};
use crate::store::StoreError;
use crate::upstream::UpstreamFault;
use did_plc::Timestamp;

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

/// The time of this moment.
pub fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
