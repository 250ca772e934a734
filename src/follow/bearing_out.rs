//! What the upstream that is followed states otherwise than it did: another one that still states what is held bears
//! that out, and refutes it.

use tokio::sync::mpsc;

use super::again::AgainError;
use super::fetch::{contradicts, fetch_through};
use super::missing::lacking_in;
use super::reader::Event;
use crate::judge::Decoded;
use crate::store::StoredOperation;
use crate::upstream::{ExportClient, Priority};

/// The followed upstream states these lines of what is after one number and up to another one, where something else is
/// `held`. If another upstream has what is held, nothing of them is to be taken in, and the session ends. Without others
/// they stand.
///
/// # Errors
///
/// [`AgainError::Gone`] when the session ends.
pub async fn refuse_unless_borne_out(
    events: &mpsc::Sender<Event>,
    others: &[ExportClient],
    (after, through): (i64, i64),
    lines: &Decoded,
    held: &[StoredOperation],
) -> Result<(), AgainError> {
    if others.is_empty() {
        return Ok(());
    }
    let held: Vec<StoredOperation> =
        held.iter().filter(|it| it.sequence.is_some_and(|it| it <= through)).cloned().collect();
    if is_the_same(lines, &held, through) {
        return Ok(());
    }
    for other in others {
        match fetch_through(other, after, through, Priority::Aside).await {
            Ok(theirs) if is_the_same(&theirs, &held, through) => {
                let reason = format!(
                    "states otherwise than before what is after number {after}, and {} does not",
                    other.base()
                );
                // The session ends with it, or has ended.
                events.send(Event::Refuted { reason }).await.ok();
                events.closed().await;
                return Err(AgainError::Gone);
            }
            Ok(_) => {}
            Err(fault) => {
                tracing::debug!(upstream = other.base(), "cannot be asked what it states: {fault}");
            }
        }
    }
    Ok(())
}

/// Whether these lines state all of what is held up to a number, and nothing else for it.
fn is_the_same(lines: &Decoded, held: &[StoredOperation], through: i64) -> bool {
    !contradicts(lines, held) && lacking_in(lines, held, through).is_empty()
}
