//! Lines of the export that are asked for by themselves, beside the pages that are read on.

use crate::judge::Decoded;
use crate::upstream::{ExportClient, Priority, UpstreamFault};

/// How often lines are fetched of which one is not JSON.
const NOT_JSON_ATTEMPTS: u32 = 3;

/// The lines of the export after a number, at most so many. What is not JSON may have been damaged on its way,
/// and is fetched again; what stays so is what they have.
pub async fn fetch_lines(
    client: &ExportClient,
    after: i64,
    count: usize,
    priority: Priority,
) -> Result<Decoded, UpstreamFault> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let decoded = Decoded::from_lines(client.lines(after, count, priority).await?).await;
        if decoded.first_damaged().is_none() || attempts >= NOT_JSON_ATTEMPTS {
            return Ok(decoded);
        }
    }
}
