//! Keeps the index of claims complete: builds it from the stored log while operations come in, and
//! hands over to the commits when it has met them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::live::{Mode, Status};
use crate::store::claims::ClaimsIndex;
use crate::store::{Store, StoreError};

/// Operations of a step: sorted together, so that each page of the index is written once for many of
/// them. Their pairs take some 40 MB.
const STEP: usize = 1 << 19;
/// Between two looks at how far the index is behind.
const LOOK: Duration = Duration::from_millis(250);
/// Pause after the store was not available.
const PAUSE: Duration = Duration::from_secs(5);
/// How often progress is logged.
const PROGRESS: Duration = Duration::from_secs(10);

/// Builds what is lacking, and looks now and then whether something is: while the log is read for
/// the first time, and after another process has followed without an index. A crash at any point leaves
/// an index that says how far it is, and the next process goes on from there.
pub async fn keep(store: Store, status: Arc<Status>, shutdown: CancellationToken) {
    let mut building = None;
    // Whether it is logged already that there is something to be waited for.
    let mut said = false;
    loop {
        let step = shutdown.run_until_cancelled(step(&store, &status, &mut building)).await;
        let pause = match step {
            None => return,
            Some(Ok(more)) => {
                if std::mem::take(&mut said) {
                    tracing::info!("the index of claims goes on");
                }
                match more {
                    true => continue,
                    false => LOOK,
                }
            }
            Some(Err(StoreError::Unavailable(reason) | StoreError::Denied(reason))) => {
                if !store.is_sought() && !std::mem::replace(&mut said, true) {
                    tracing::warn!("the index of claims has to wait: {reason}");
                }
                PAUSE
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the index of claims cannot be completed");
                return;
            }
        };
        if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// True when there is more to be done at once.
async fn step(
    store: &Store,
    status: &Status,
    building: &mut Option<Building>,
) -> Result<bool, StoreError> {
    let Some(before) = store.claims_index().await? else {
        store.keep_claims().await?;
        return Ok(store.claims_index().await?.is_some());
    };
    if building.is_none() {
        // An index of an earlier process is there already; its commits are not ours.
        store.keep_claims().await?;
    }
    let building = building.get_or_insert_with(|| Building::begin(&before));
    if before.is_complete() {
        building.complete(&before);
        return Ok(false);
    }
    let behind = before.highest - before.sequence;
    if status.mode() == Mode::CatchingUp && before.begun && behind < STEP as i64 {
        // Soon it is worth a step.
        return Ok(false);
    }
    building.step(&before);
    store.build_claims(STEP).await?;
    let Some(after) = store.claims_index().await? else { return Ok(false) };
    building.progress(&after);
    Ok((after.sequence, after.begun) != (before.sequence, before.begun))
}

/// What is said of the work.
struct Building {
    began: Instant,
    from: i64,
    said: Instant,
    /// Whether the index was complete at the last look.
    complete: bool,
}

impl Building {
    fn begin(index: &ClaimsIndex) -> Building {
        let complete = index.is_complete();
        if !complete {
            let (sequence, highest) = (index.sequence, index.highest);
            tracing::info!(sequence, highest, "the index of claims is being built");
        }
        Building { began: Instant::now(), from: index.sequence, said: Instant::now(), complete }
    }

    /// Before a step: one after the index was complete is the first of new work.
    fn step(&mut self, index: &ClaimsIndex) {
        if std::mem::replace(&mut self.complete, false) {
            let now = Instant::now();
            (self.began, self.said, self.from) = (now, now, index.sequence);
        }
    }

    /// A line now and then.
    fn progress(&mut self, index: &ClaimsIndex) {
        if self.said.elapsed() < PROGRESS {
            return;
        }
        self.said = Instant::now();
        let rate = (index.sequence - self.from) as f64 / self.began.elapsed().as_secs_f64();
        let left = (index.highest - index.sequence) as f64 / rate.max(1.0);
        tracing::info!(
            sequence = index.sequence,
            highest = index.highest,
            rate = rate.round(),
            seconds_left = left.round(),
            "building the index of claims"
        );
    }

    fn complete(&mut self, index: &ClaimsIndex) {
        if std::mem::replace(&mut self.complete, true) {
            return;
        }
        let seconds = (self.began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let (sequence, pairs) = (index.sequence, index.pairs);
        tracing::info!(sequence, pairs, seconds, "the index of claims is complete");
    }
}
