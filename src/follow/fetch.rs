//! What is asked for by itself, beside the pages that are read on: lines of the export, audit logs, and whether what
//! comes is to be believed.

use std::fmt::Display;

use ahash::{AHashMap, AHashSet};

use crate::judge::Decoded;
use crate::store::StoredOperation;
use crate::upstream::{ExportClient, MAX_LINES, Priority, UpstreamFault};
use did_plc::{Cid, Did};

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

/// Requests for some lines of the export: who is asked may give fewer at once than it is asked for.
const REQUESTS: usize = 4;

/// All lines of the export after one number and up to another one, with those after it that come with them.
pub async fn fetch_through(
    client: &ExportClient,
    mut after: i64,
    through: i64,
    priority: Priority,
) -> Result<Decoded, UpstreamFault> {
    let mut lines = Decoded::default();
    for _ in 0..REQUESTS {
        // One more tells whether there is more.
        let count = usize::try_from(through - after + 1).unwrap_or(1).min(MAX_LINES);
        let more = fetch_lines(client, after, count, priority).await?;
        let read_to = more.cursor_after(after);
        lines.extend(more);
        if read_to <= after || read_to > through {
            break;
        }
        after = read_to;
    }
    Ok(lines)
}

/// The audit log of an identity; none when they do not know it.
pub async fn fetch_audit_log(
    client: &ExportClient,
    did: &Did,
) -> Result<Option<Decoded>, UpstreamFault> {
    match client.audit_log(did).await? {
        Some(log) => Ok(Some(Decoded::from_audit_log(&log).await?)),
        None => Ok(None),
    }
}

/// The audit log of an identity, to be believed; none when they do not know it. `held` is the whole history that is held
/// of it.
pub async fn fetch_believed_audit_log(
    client: &ExportClient,
    did: &Did,
    held: &[StoredOperation],
) -> Result<Option<Decoded>, UpstreamFault> {
    let differs = |log: &Option<Decoded>| match log {
        Some(log) => contradicts(log, held) || lacks(log, held) > 0,
        None => !held.is_empty(),
    };
    fetch_to_believe(async || fetch_audit_log(client, did).await, differs).await
}

/// How many of these operations nothing is stated of.
pub fn lacks(stated: &Decoded, held: &[StoredOperation]) -> usize {
    let stated: AHashSet<Cid> = stated.entries().iter().flatten().map(|it| it.cid).collect();
    held.iter().filter(|held| !stated.contains(&held.cid())).count()
}

/// What is fetched to be compared with what is held, and believed. What contradicts that may have been damaged on its
/// way: it is fetched a second time, and believed if it is the same both times. Whoever takes in what was read before
/// asks for it in this way: from the line of a page that was damaged in one digit follow a record of a difference,
/// another time or another number.
///
/// # Errors
///
/// Those of `fetch`; [`UpstreamFault::Truncated`] when it was not the same both times.
pub(crate) async fn fetch_to_believe<T, F>(
    fetch: impl Fn() -> F,
    contradicts: impl FnOnce(&T) -> bool,
) -> Result<T, UpstreamFault>
where
    T: PartialEq,
    F: Future<Output = Result<T, UpstreamFault>>,
{
    let first = fetch().await?;
    if !contradicts(&first) || fetch().await? == first {
        return Ok(first);
    }
    Err(UpstreamFault::Truncated { reason: "what was fetched twice is not the same".to_owned() })
}

/// Whether of an operation that is held another CID, time or number is stated, or its number for another one.
pub(crate) fn contradicts(stated: &Decoded, held: &[StoredOperation]) -> bool {
    let by_name: AHashMap<(Did, Cid), &StoredOperation> =
        held.iter().map(|held| ((held.did, held.cid()), held)).collect();
    let by_number: AHashMap<i64, (Did, Cid)> =
        by_name.iter().filter_map(|(name, held)| Some((held.sequence?, *name))).collect();
    stated.entries().iter().flatten().any(|stated| {
        let name = (stated.did, stated.cid);
        let held = by_name.get(&name);
        let holder = stated.sequence.and_then(|number| by_number.get(&number));
        let has_other_number =
            |held: Option<i64>| held.zip(stated.sequence).is_some_and(|(a, b)| a != b);
        holder.is_some_and(|holder| *holder != name)
            || held.is_some_and(|held| {
                stated.stated_cid.is_some()
                    || stated.created_at != held.created_at
                    || has_other_number(held.sequence)
            })
    })
}
