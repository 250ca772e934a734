//! What the upstream that is followed states and does not fit is asked for elsewhere before it is passed: so that one
//! that lies is left before anything of it is stored, and what one line lacks comes in its order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::fetch::fetch_lines;
use crate::clock;
use crate::judge::{BatchJudge, Course, Cut, Decoded, Lines, NotJson};
use crate::store::{Commit, DivergenceKind, Store, StoreError};
use crate::upstream::{ExportClient, MAX_LINES, Priority};
use did_plc::Timestamp;
use did_plc::signature::Verifier;

/// How far `createdAt` may go back from one operation to the next, as they come at the upstream's present: transactions
/// of the directory do not end in the order in which they began.
const OUT_OF_ORDER: Duration = Duration::from_secs(60);

/// Lines of the upstream that is followed of which some do not fit: nothing of them was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// They come after this number.
    pub after: i64,
    /// The cursor after them.
    pub through: i64,
    /// How they came.
    pub course: Course,
    /// The latest `createdAt` before them.
    pub latest: Option<Timestamp>,
}

/// What others say of them.
#[derive(Debug)]
pub enum Finding {
    /// Nothing yet: who answers has not come as far, or what did not fit has come well now.
    Unknown,
    /// Nothing better, or nobody can be asked.
    Same,
    /// These lines up to this number, with so many less that do not fit.
    Better { lines: Lines, through: i64, by: usize },
}

/// How many of what comes of lines does not fit: what is refused, and what differs from what was stated before. That
/// something comes late says nothing: all of it does where the upstream stood still.
pub fn misfits(commit: &Commit) -> usize {
    let backdated = DivergenceKind::Backdated.name();
    let differences = commit.divergences.iter().filter(|difference| difference.kind != backdated);
    commit.refusals.len() + differences.count()
}

/// How many lines are dated well before one that came before them, and the latest time afterwards. Who reads the past
/// meets all kinds of them, and is not told: it is told of those that reach the present.
pub fn out_of_order(
    lines: &Lines,
    mut latest: Option<Timestamp>,
    is_present: bool,
) -> (usize, Option<Timestamp>) {
    let mut count = 0;
    for received in lines.decoded.entries().iter().flatten() {
        let is_old = latest.is_some_and(|latest| received.created_at < latest - OUT_OF_ORDER);
        count += usize::from(is_old && is_present);
        // One from the future would make all that follow look old.
        latest = latest.max(Some(received.created_at.min(lines.received_at)));
    }
    (count, latest)
}

/// Asks the upstream that is followed once more, and the others.
pub struct Inquiry<'a> {
    pub store: &'a Store,
    pub verifier: &'a Arc<dyn Verifier>,
    /// The one that is followed.
    pub followed: &'a ExportClient,
    /// In the order in which they are asked.
    pub others: &'a [ExportClient],
}

impl Inquiry<'_> {
    /// What was damaged on its way comes well when it is fetched once more. Nothing is written.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn ask(&self, suspect: Suspect) -> Result<Finding, StoreError> {
        let Some(stated) = fetch(self.followed, suspect).await else {
            return Ok(Finding::Unknown);
        };
        let end = stated.cursor_after(suspect.after);
        if self.weigh(self.followed, stated.clone(), suspect).await? == 0 {
            return Ok(Finding::Unknown);
        }
        let mut finding = Finding::Same;
        for other in self.others {
            let Some(mut lines) = fetch(other, suspect).await else { continue };
            lines.retain_up_to(end);
            // What both of them have come to.
            let through = lines.cursor_after(suspect.after).min(end);
            let mut stated = stated.clone();
            stated.retain_up_to(through);
            // What another one does not state, though it has come further, it may have refused as we would.
            let theirs = lines.numbers();
            if through <= suspect.after || !stated.numbers().is_subset(&theirs) {
                finding = Finding::Unknown;
                continue;
            }
            let misfits = self.weigh(self.followed, stated, suspect).await?;
            let of_other = self.weigh(other, lines.clone(), suspect).await?;
            if of_other < misfits {
                let mut lines = lines_of(lines, Course::Elsewhere);
                lines.source = Some(other.base().into());
                return Ok(Finding::Better { lines, through, by: misfits - of_other });
            }
            if through < end {
                finding = Finding::Unknown;
            }
        }
        Ok(finding)
    }

    /// How many of these lines do not fit, judged on top of what is stored.
    async fn weigh(
        &self,
        of: &ExportClient,
        decoded: Decoded,
        suspect: Suspect,
    ) -> Result<usize, StoreError> {
        let (store, verifier) = (self.store.clone(), Arc::clone(self.verifier));
        let (_, committed) = watch::channel(0);
        let mut judge = BatchJudge::new(store, verifier, of.base().to_owned(), committed).await?;
        let lines = lines_of(decoded, suspect.course);
        let (out_of_order, _) = out_of_order(&lines, suspect.latest, true);
        let Cut { part, .. } = Cut::of(lines, suspect.after, NotJson::Keep, true);
        let prepared = judge.judge(part, &[]).await?;
        Ok(misfits(&prepared.commit) + out_of_order)
    }
}

/// What one states there; none where it cannot be asked.
async fn fetch(client: &ExportClient, suspect: Suspect) -> Option<Decoded> {
    let count = usize::try_from(suspect.through - suspect.after).unwrap_or(1).clamp(1, MAX_LINES);
    let fetched = fetch_lines(client, suspect.after, count, Priority::Following).await;
    let fetched = fetched.inspect_err(|fault| {
        tracing::debug!(upstream = client.base(), "no answer about what does not fit: {fault}");
    });
    let mut lines = fetched.ok()?;
    lines.retain_up_to(suspect.through.max(suspect.after + 1));
    Some(lines)
}

fn lines_of(decoded: Decoded, course: Course) -> Lines {
    Lines { decoded, received_at: clock::now(), caught_up: false, course, source: None }
}
