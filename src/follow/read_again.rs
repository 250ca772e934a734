//! A page of the export that is read again, beside what is held of it.

use super::fetch::{contradicts, fetch_lines, fetch_to_believe};
use super::missing::lacking_in;
use crate::judge::Decoded;
use crate::store::StoredOperation;
use crate::upstream::{ExportClient, Priority, UpstreamFault};

/// A page that was read again, and is believed.
#[derive(Debug, PartialEq)]
pub struct ReadAgain {
    /// Its lines.
    pub lines: Decoded,
    /// Up to this number they are all that the upstream has.
    pub end: i64,
}

impl ReadAgain {
    /// Reads one page after a number, of which what is above `through` is left out. `held` is what is held there, as
    /// much as a page takes; what contradicts it is fetched twice.
    ///
    /// # Errors
    ///
    /// Those of the upstream; [`UpstreamFault::Truncated`] when what contradicts what is held was not the same twice.
    pub async fn fetch(
        client: &ExportClient,
        after: i64,
        through: i64,
        held: &[StoredOperation],
    ) -> Result<ReadAgain, UpstreamFault> {
        let is_all = held.len() < client.limits().page;
        let last_held = held.last().and_then(|last| last.sequence);
        let through = if is_all { through } else { through.min(last_held.unwrap_or(through)) };
        let differs = |read: &ReadAgain| {
            contradicts(&read.lines, held) || !lacking_in(&read.lines, held, read.end).is_empty()
        };
        fetch_to_believe(|| ReadAgain::fetch_once(client, after, through), differs).await
    }

    async fn fetch_once(
        client: &ExportClient,
        after: i64,
        through: i64,
    ) -> Result<ReadAgain, UpstreamFault> {
        let count = client.limits().page;
        let mut lines = fetch_lines(client, after, count, Priority::Aside).await?;
        if lines.is_empty() {
            // Only what is empty twice is the end.
            lines = fetch_lines(client, after, count, Priority::Aside).await?;
        }
        let end = match lines.is_empty() {
            true => through,
            false => lines.cursor_after(after).min(through),
        };
        if end <= after {
            return Err(UpstreamFault::NotAdvancing { after });
        }
        lines.retain_up_to(end);
        Ok(ReadAgain { lines, end })
    }
}
