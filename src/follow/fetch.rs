//! Lines of the export that are asked for by themselves, beside the pages that are read on.

use std::fmt::Display;

use crate::judge::Decoded;
use crate::upstream::{ExportClient, Priority, UpstreamFault};

/// How often lines are fetched of which one is not JSON, before that is kept as it is.
pub const NOT_JSON_ATTEMPTS: u32 = 3;
/// So many lines are asked for at least: whether it is an export cannot be told by one that may be damaged.
const TO_TELL_BY: usize = 2;

/// The lines of the export after a number or a time, at most so many. What is not JSON may have been damaged on its
/// way, and is fetched again; what stays so is what they have.
pub async fn fetch_lines(
    client: &ExportClient,
    after: impl Display,
    count: usize,
    priority: Priority,
) -> Result<Decoded, UpstreamFault> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut lines = client.lines(&after, count.max(TO_TELL_BY), priority).await?;
        lines.truncate(count);
        let decoded = Decoded::from_lines(lines).await;
        if decoded.first_damaged().is_none() || attempts >= NOT_JSON_ATTEMPTS {
            return Ok(decoded);
        }
    }
}
