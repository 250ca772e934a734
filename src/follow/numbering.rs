//! Which numbers an upstream's export has: it is found out by looking at what it answers.

use super::fetch::{fetch_lines, fetch_to_believe};
use crate::judge::Decoded;
use crate::upstream::{ExportClient, Priority, UpstreamFault};
use did_plc::Timestamp;

/// Lines by which it is told.
const TO_TELL_BY: usize = 2;

/// Everything was created after this.
pub const BEGINNING: Timestamp = Timestamp::from_millis(0);

/// The numbers that an upstream states for what is held here, which say how it is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// Those that are held, or there is nothing yet that they could be compared with: it is followed by number.
    Ours,
    /// Others: it is followed by time.
    Own,
    /// None, as in the export before there were numbers: it is followed by time.
    Absent,
}

impl Numbering {
    /// Whether it is followed by number.
    pub fn is_ours(self) -> bool {
        self == Numbering::Ours
    }
}

/// Whether the export of an upstream states numbers; none where that cannot be told, since it is empty.
///
/// # Errors
///
/// Those of the upstream.
pub async fn states_numbers(client: &ExportClient) -> Result<Option<bool>, UpstreamFault> {
    // That there are none is believed if it is said twice: a line may be damaged on its way.
    fetch_to_believe(|| ask(client), |stated| *stated == Some(false)).await
}

async fn ask(client: &ExportClient) -> Result<Option<bool>, UpstreamFault> {
    let lines = match fetch_lines(client, 0, TO_TELL_BY, Priority::Following).await {
        Ok(lines) if !lines.is_empty() => lines,
        // One that knows of times only may take the number for none, and a replica of such a one has no line with one.
        Ok(_) | Err(UpstreamFault::UnexpectedStatus { .. }) => {
            fetch_lines(client, BEGINNING, TO_TELL_BY, Priority::Following).await?
        }
        Err(fault) => return Err(fault),
    };
    let is_numbered = !lines.numbers().is_empty();
    Ok((is_numbered || is_unnumbered(&lines)).then_some(is_numbered))
}

/// Whether these are entries of a log, and none has a number.
pub fn is_unnumbered(lines: &Decoded) -> bool {
    lines.numbers().is_empty() && lines.entries().iter().any(Result::is_ok)
}

/// Whether a fault may be all that an upstream without numbers says to who asks for what comes after one.
pub fn may_know_no_numbers(fault: &UpstreamFault) -> bool {
    matches!(
        fault,
        UpstreamFault::NotAdvancing { .. }
            | UpstreamFault::UnexpectedStatus { .. }
            | UpstreamFault::ServerError { status: 500, .. }
    )
}
