//! Pages of an export by time, and where each leads.

use std::time::Duration;

use super::fetch::fetch_lines;
use crate::clock;
use crate::judge::Decoded;
use crate::upstream::{ExportClient, Priority, UpstreamFault};
use did_plc::Timestamp;

/// The smallest difference of two times.
const MOMENT: Duration = Duration::from_millis(1);

/// A page of what was created after a time.
#[derive(Debug)]
pub struct Page {
    /// Its lines.
    pub lines: Decoded,
    /// Where the next one begins; none at the end of the log.
    pub next: Option<Timestamp>,
    /// Up to this time all was read; none where the page does not say so.
    pub read: Option<Timestamp>,
}

/// What is known of the pages of one upstream.
#[derive(Debug)]
pub struct Pages {
    /// Lines to ask for.
    asked: usize,
    /// The most lines that a page had: an upstream may give fewer than it is asked for.
    longest: usize,
}

impl Pages {
    /// Nothing yet; so many lines are asked for.
    pub fn new(asked: usize) -> Pages {
        Pages { asked, longest: 0 }
    }

    /// The page after a time.
    ///
    /// # Errors
    ///
    /// Those of the upstream; [`UpstreamFault::NotAnExport`] where no line of a full page can be read, and
    /// [`UpstreamFault::NotAdvancing`] where all of them are of before the time.
    pub async fn fetch(
        &mut self,
        client: &ExportClient,
        after: Timestamp,
        priority: Priority,
    ) -> Result<Page, UpstreamFault> {
        let lines = fetch_lines(client, after, self.asked, priority).await?;
        self.read(lines, after, clock::now())
    }

    /// What these lines are a page of, which came now after this time.
    ///
    /// # Errors
    ///
    /// The last two of these.
    pub fn read(
        &mut self,
        lines: Decoded,
        after: Timestamp,
        now: Timestamp,
    ) -> Result<Page, UpstreamFault> {
        let count = lines.len();
        // One from the future would have all that is still to come passed over.
        let last = lines.latest_until(now);
        let latest = lines.latest_until(Timestamp::from_millis(i64::MAX));
        let leads = |time: &Timestamp| *time - MOMENT > after;
        let leads_on = latest.as_ref().is_some_and(leads);
        let is_end = count < self.asked && (count < self.longest || !leads_on);
        self.longest = self.longest.max(count);
        if is_end {
            return Ok(Page { lines, next: None, read: last });
        }
        if let Some(time) = last.filter(leads) {
            // Of that moment there may be more.
            return Ok(Page { lines, next: Some(time - MOMENT), read: Some(time - MOMENT) });
        }
        if let Some(time) = latest.filter(leads) {
            return Ok(Page { lines, next: Some(time - MOMENT), read: None });
        }
        if latest.is_none() {
            let line = lines.lines().first().map(|line| line.slice(..line.len().min(60)));
            let beginning = String::from_utf8_lossy(&line.unwrap_or_default()).into_owned();
            return Err(UpstreamFault::NotAnExport { beginning });
        }
        let at = after + MOMENT;
        if latest < Some(at) {
            return Err(UpstreamFault::NotAdvancing { after: after.millis() });
        }
        tracing::warn!(
            upstream_gives = count,
            "so many operations have the time {at} that the export by time cannot give all of them: what it leaves out \
             cannot be asked for"
        );
        Ok(Page { lines, next: Some(at), read: last.map(|_| at) })
    }
}
