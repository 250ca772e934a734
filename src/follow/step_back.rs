//! An upstream that has gone back: its last number is below our cursor, as after a restore from a
//! backup, or it has used a number for something else since it gave it to us. The last operation
//! that both sides share under one number is found, following resumes there, and what we hold is
//! kept. Where none is shared, and yet the operations are, the numbers are others: all of them are taken over.

use crate::clock;
use crate::judge::{Decoded, Position};
use crate::store::{
    Commit, DivergenceKind, NewDivergence, Store, StoreError, StoredOperation, audit_log,
};
use crate::upstream::{ExportClient, Priority, UpstreamFault};

/// Why the place could not be found (yet).
#[derive(Debug, thiserror::Error)]
pub enum StepBackError {
    /// Because of the upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where following goes on.
#[derive(Debug)]
pub enum Step {
    /// At the last operation that both sides share: the commit that puts the cursor there, with a record of what the
    /// upstream has lost.
    Back(Box<Commit>),
    /// At the beginning, since the upstream has our operations under other numbers.
    Renumber,
    /// At the cursor: there is no going back from it.
    Stay,
}

/// The last operation up to `from` that the upstream has under the number that we hold it under;
/// none when they share nothing. It is looked for backwards in steps that double, so that what it
/// lost once before, farther back, is not met; from there on both logs are the same up to some number
/// and then never again, so that halving finds it.
async fn last_shared(
    store: &Store,
    upstream: &ExportClient,
    from: i64,
) -> Result<Option<StoredOperation>, StepBackError> {
    let (mut low, mut high) = (0, from);
    let (mut shared, mut step) = (None, 0_i64);
    while low < high {
        let place = match shared {
            None => (high - step).max(1),
            // Rounded up, and without a sum that a number near the largest one would overflow.
            Some(_) => high - (high - low) / 2,
        };
        let held = store.export_by_sequence(place - 1, 1).await?.pop();
        let number = held.as_ref().and_then(|operation| operation.sequence);
        let Some((held, number)) = held.zip(number.filter(|number| *number <= high)) else {
            // We hold nothing from there on.
            high = place - 1;
            step = step.saturating_mul(2).saturating_add(1);
            continue;
        };
        let line = upstream.first_from(number, Priority::Following).await?;
        let there = line.and_then(|line| Position::of_line(&line));
        let here = Position { sequence: number, cid: Some(held.cid().to_string()) };
        if there == Some(here) {
            low = number;
            shared = Some(held);
        } else {
            high = place - 1;
            step = step.saturating_mul(2).saturating_add(1);
        }
    }
    Ok(shared)
}

/// Looks for what is shared.
///
/// What both have above the number `from` was read after the upstream had gone back. When it has
/// lost nothing, the cursor is the number of a line that was refused, above all that there is.
///
/// # Errors
///
/// [`StepBackError`].
pub async fn step_back(
    store: &Store,
    upstream: &ExportClient,
    cursor: i64,
    from: i64,
) -> Result<Step, StepBackError> {
    let mut shared = last_shared(store, upstream, from).await?;
    let mut number = number_of(shared.as_ref());
    let mut is_there = false;
    if number == from {
        let given = store.source().await?.and_then(|source| source.cursor_cid);
        let has_it_again =
            from != cursor || given == shared.as_ref().map(|shared| shared.cid().to_string());
        if has_it_again {
            tracing::info!(from, "the upstream has it again");
            return Ok(Step::Stay);
        }
        // What we hold there is not what it gave us first, and was taken in since. What it gave us before that
        // tells where it has gone back to.
        shared = last_shared(store, upstream, from - 1).await?;
        number = number_of(shared.as_ref());
        is_there = true;
    }
    // It may have gone back no further than to say that number better.
    let lost = store.export_by_sequence(number, 1).await?.pop();
    let lost = lost.filter(|lost| !(is_there && lost.sequence == Some(from)));
    let cursor_cid = shared.as_ref().map(|shared| shared.cid().to_string());
    let record = match (shared, lost) {
        (Some(shared), Some(lost)) => Some(record(store, upstream, &shared, &lost).await?),
        // As where the numbers of all that was read were damaged: a record of each would say nothing of its operation.
        (None, Some(lost)) if knows(upstream, &lost).await? => return Ok(Step::Renumber),
        (None, Some(_)) => {
            tracing::error!(
                upstream = upstream.base(),
                "the upstream has nothing of what we hold; it is asked again"
            );
            return Ok(Step::Stay);
        }
        (_, None) if number < cursor => None,
        (_, None) => return Ok(Step::Stay),
    };
    if record.is_some() {
        tracing::error!(
            upstream = upstream.base(),
            cursor,
            shared = number,
            "the upstream has gone back; following resumes at the last operation that both sides have"
        );
    }
    Ok(Step::Back(Box::new(Commit {
        cursor_before: cursor,
        cursor_after: number,
        cursor_cid,
        divergences: record.into_iter().collect(),
        received_at_millis: clock::now().millis(),
        ..Commit::default()
    })))
}

/// Whether the upstream has an operation, under whatever number.
async fn knows(
    upstream: &ExportClient,
    operation: &StoredOperation,
) -> Result<bool, UpstreamFault> {
    let Some(log) = upstream.audit_log(&operation.did).await? else { return Ok(false) };
    let log = Decoded::from_audit_log(&log).await?;
    let cid = operation.cid();
    Ok(log.entries().iter().flatten().any(|stated| stated.cid == cid))
}

fn number_of(operation: Option<&StoredOperation>) -> i64 {
    operation.and_then(|operation| operation.sequence).unwrap_or(0)
}

/// The record of the first operation that the upstream has lost, and of what it has instead.
async fn record(
    store: &Store,
    upstream: &ExportClient,
    shared: &StoredOperation,
    lost: &StoredOperation,
) -> Result<NewDivergence, StepBackError> {
    let number = shared.sequence.unwrap_or(0);
    let theirs = upstream.lines(number, 1, Priority::Following).await?.pop();
    Ok(NewDivergence {
        source: upstream.base().to_owned(),
        did: lost.did.to_string(),
        kind: DivergenceKind::UpstreamRewound.name().to_owned(),
        subject: format!("{number} {}", shared.cid()),
        ours: Some(audit_log(&store.history(&lost.did).await?)),
        theirs: theirs.and_then(|line| String::from_utf8(line.to_vec()).ok()),
    })
}
