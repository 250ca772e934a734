//! Whether an upstream has what is held here under whatever numbers: it is looked for by CID in its export by time, and
//! what is not met there in the audit logs of its identities.

use std::cmp::Reverse;
use std::time::Duration;

use ahash::AHashSet;

use super::fetch::{fetch_audit_log, fetch_lines, lacks};
use crate::clock;
use crate::store::StoredOperation;
use crate::upstream::{ExportClient, MAX_LINES, Priority, UpstreamFault};
use did_plc::Cid;

/// Requests for the export by time: what is looked for came within a few pages.
const PAGES: usize = 4;
/// Requests for audit logs of what was not met.
const AUDIT_LOGS: usize = 3;
/// What was created so shortly before the end of a log may be in it a moment later: transactions of the directory do not
/// end in the order in which they began.
const OUT_OF_ORDER: Duration = Duration::from_secs(60);

/// What an upstream has of operations that are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByCid {
    /// All of them.
    All,
    /// Its log ends before this one, which is the first that it lacks.
    EndsBefore(Box<StoredOperation>),
    /// Nothing there is as new as they are.
    Ended,
    /// It lacks one of them, or all.
    Lacks,
}

/// Looks for these operations there, apart from those that were created well before the others.
///
/// # Errors
///
/// Those of the upstream.
pub async fn look_for(
    client: &ExportClient,
    held: &[StoredOperation],
) -> Result<ByCid, UpstreamFault> {
    let mut sought: Vec<&StoredOperation> = held.iter().collect();
    sought.sort_by_key(|operation| Reverse(operation.created_at));
    // One that is dated back would have years of the log read.
    sought.truncate(sought.len().div_ceil(2));
    let Some(first) = sought.last().map(|first| first.created_at) else { return Ok(ByCid::All) };
    let count = sought.len();
    let before = Duration::from_millis(1);
    let mut after = first - before;
    for _ in 0..PAGES {
        let lines = fetch_lines(client, after, MAX_LINES, Priority::Following).await?;
        let there: AHashSet<Cid> = lines.entries().iter().flatten().map(|it| it.cid).collect();
        sought.retain(|operation| !there.contains(&operation.cid()));
        if sought.is_empty() {
            return Ok(ByCid::All);
        }
        match lines.latest_until(clock::now()).filter(|last| *last - before > after) {
            // Of one moment there may be more in the next page.
            Some(last) => after = last - before,
            // What is dated into the future says nothing of how far it is.
            None if sought.len() == count
                && lines.latest_until(clock::now()).is_none_or(|last| last <= first) =>
            {
                return Ok(ByCid::Ended);
            }
            None => {
                let is_new = sought.iter().all(|it| it.created_at > after - OUT_OF_ORDER);
                let first = sought.pop().filter(|_| is_new && sought.len() + 1 < count);
                return Ok(
                    first.map_or(ByCid::Lacks, |first| ByCid::EndsBefore(Box::new(first.clone())))
                );
            }
        }
    }
    // One that is dated into the future is beyond all pages.
    for operation in sought.into_iter().take(AUDIT_LOGS) {
        match fetch_audit_log(client, &operation.did).await? {
            Some(log) if lacks(&log, std::slice::from_ref(operation)) == 0 => {}
            _ => return Ok(ByCid::Lacks),
        }
    }
    Ok(ByCid::All)
}
