//! Doubts: what was refused may have been damaged on its way, or have come before what it builds on. The
//! upstream is asked about each refusal once more, and again after ever longer pauses while that may still help.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::again::{self, AgainError};
use super::fetch::fetch_lines;
use super::reader::{Event, Gone};
use crate::judge::{Course, Decoded};
use crate::store::{Asked, Lease, NewRefusal, Store, StoredRefusal};
use crate::upstream::{Backoff, ExportClient, Priority, UpstreamFault};
use did_plc::refusal::UNKNOWN_TYPE;
use did_plc::{Did, Refusal};

/// Refusals that are asked about in one go.
const AT_ONCE: usize = 1_000;

/// When the upstream is asked about what was refused.
#[derive(Debug, Clone)]
pub struct DoubtSettings {
    /// How often it is looked whether there is something to ask about.
    pub look: Duration,
    /// The pauses after the first question, the second, and so on; after the last nothing is expected any
    /// more, and what is missing is found by reading everything again.
    pub pauses: Vec<Duration>,
    /// Who else is asked for the audit log of an identity, in turn, when what it lacks is not the upstream's.
    pub others: Vec<ExportClient>,
}

impl Default for DoubtSettings {
    fn default() -> DoubtSettings {
        let pauses = [10, 60, 600, 3_600, 6 * 3_600, 24 * 3_600].map(Duration::from_secs);
        DoubtSettings { look: Duration::from_secs(5), pauses: pauses.to_vec(), others: Vec::new() }
    }
}

/// Asks an upstream about what was refused.
pub struct Doubts {
    /// Where the refusals are.
    pub store: Store,
    /// Who is asked.
    pub client: ExportClient,
    /// By which right it is recorded what came of that.
    pub lease: Lease,
    /// Who judges what comes.
    pub events: mpsc::Sender<Event>,
    /// Whether the upstream has the log that was read from it. Of another one nothing is taken in here: its
    /// numbers would hide where it begins.
    pub same_log: watch::Receiver<bool>,
    /// When to ask.
    pub settings: DoubtSettings,
}

impl Doubts {
    /// Asks until the session ends.
    pub async fn run(mut self) -> Gone {
        let mut backoff = Backoff::new(self.client.limits());
        loop {
            if again::wait_for(&mut self.same_log).await.is_err() {
                return Gone;
            }
            let pause = match self.settle().await {
                Ok(()) => {
                    backoff.reset();
                    self.settings.look
                }
                Err(AgainError::Gone) => return Gone,
                Err(AgainError::Upstream(fault)) => backoff.after(&fault),
                Err(AgainError::Store(error)) => {
                    tracing::debug!("what is doubtful could not be told: {error}");
                    self.settings.look
                }
            };
            if self.events.is_closed() {
                return Gone;
            }
            sleep(pause).await;
        }
    }

    /// Asks about everything that is due by now. A crash leaves it due.
    async fn settle(&self) -> Result<(), AgainError> {
        let now = again::now();
        loop {
            let due = self.store.doubtful(now, AT_ONCE).await?;
            if due.is_empty() {
                return Ok(());
            }
            self.ask_by_number(&due).await?;
            for source in std::iter::once(&self.client).chain(&self.settings.others) {
                let standing = self.standing(&due).await?;
                self.ask_by_identity(&standing, source).await?;
            }
            self.note(&due).await?;
        }
    }

    /// Reads again where the refused lines stood: many of one page with one request.
    async fn ask_by_number(&self, due: &[StoredRefusal]) -> Result<(), AgainError> {
        let page = self.client.limits().page as i64;
        let mut numbers: Vec<i64> = due.iter().filter_map(|doubt| doubt.refusal.sequence).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut rest = &numbers[..];
        while let Some(&first) = rest.first() {
            let here = rest.partition_point(|&number| number < first.saturating_add(page));
            let last = rest[here - 1];
            let count = usize::try_from(last - first + 1).unwrap_or(1);
            let mut decoded = fetch_lines(&self.client, first - 1, count, Priority::Aside).await?;
            decoded.retain_up_to(last);
            self.take_in(decoded).await?;
            rest = &rest[here..];
        }
        Ok(())
    }

    /// Reads the audit logs of identities of which something is lacking, or which the refused line names
    /// without a number. One that cannot be had counts as asked for: the others do not wait for it.
    async fn ask_by_identity(
        &self,
        standing: &[StoredRefusal],
        source: &ExportClient,
    ) -> Result<(), AgainError> {
        let mut dids: Vec<Did> = standing
            .iter()
            .filter(|doubt| doubt.refusal.sequence.is_none() || lacks_prev(doubt))
            .filter_map(|doubt| doubt.refusal.did.parse().ok())
            .collect();
        dids.sort_unstable();
        dids.dedup();
        for did in dids {
            let log = match source.audit_log(&did).await {
                Ok(Some(log)) => log,
                Ok(None) => continue,
                // Whoever is away now is asked the next time.
                Err(UpstreamFault::Unreachable { .. } | UpstreamFault::RateLimited { .. }) => break,
                Err(fault) => {
                    tracing::debug!(%did, "its audit log cannot be had: {fault}");
                    continue;
                }
            };
            // One that is none counts as asked for, too.
            let Ok(decoded) = Decoded::from_audit_log(&log).await else { continue };
            if source.base() == self.client.base() {
                self.take_in(decoded).await?;
            } else if !decoded.is_empty() {
                let (course, source) = (Course::Elsewhere, Some(source.base().into()));
                again::take_in(&self.events, decoded, course, source).await?;
            }
        }
        Ok(())
    }

    async fn take_in(&self, decoded: Decoded) -> Result<(), AgainError> {
        if !decoded.is_empty() {
            again::take_in(&self.events, decoded, Course::Again, None).await?;
        }
        Ok(())
    }

    /// Records what came of asking.
    async fn note(&self, due: &[StoredRefusal]) -> Result<(), AgainError> {
        let numbers: Vec<i64> = due.iter().filter_map(|doubt| doubt.refusal.sequence).collect();
        let held = self.store.sequences(&numbers).await?.into_iter();
        let held: BTreeMap<i64, Did> =
            held.filter_map(|operation| Some((operation.sequence?, operation.did))).collect();
        let standing = self.standing(due).await?;
        let now = again::now();
        let asked: Vec<Asked> = due
            .iter()
            .filter(|doubt| standing.iter().any(|standing| standing.id == doubt.id))
            .map(|doubt| {
                // The line was another rendering of what has its number now.
                let accepted = is_of_line(doubt)
                    && doubt.refusal.sequence.is_some_and(|number| held.contains_key(&number));
                let pause = self.settings.pauses.get(doubt.asked.unsigned_abs() as usize);
                let may_help = is_of_line(doubt) && !is_of_other_type(doubt) || lacks_prev(doubt);
                let again = !accepted && may_help;
                let ask_at = pause.filter(|_| again).map(|pause| now + *pause);
                Asked { id: doubt.id, accepted, ask_at }
            })
            .collect();
        let healed = due.len() - asked.iter().filter(|asked| !asked.accepted).count();
        self.store.note_asked(&self.lease, &asked, now).await?;
        tracing::info!(asked = due.len(), accepted = healed, "asked again about what was refused");
        metrics::counter!("plc_doubts_asked_total").increment(due.len() as u64);
        metrics::counter!("plc_doubts_healed_total").increment(healed as u64);
        Ok(())
    }

    /// Those of them that still stand, after what came was judged.
    async fn standing(&self, due: &[StoredRefusal]) -> Result<Vec<StoredRefusal>, AgainError> {
        let mut standing = Vec::new();
        for doubt in due {
            let now = self.store.refusals(None, doubt.id - 1, 1).await?;
            let is_it = |kept: &StoredRefusal| kept.id == doubt.id && kept.accepted_at.is_none();
            standing.extend(now.into_iter().find(is_it));
        }
        Ok(standing)
    }
}

/// Whether the line is refused, and not an operation that could be judged.
fn is_of_line(doubt: &StoredRefusal) -> bool {
    let refusal = &doubt.refusal;
    refusal.key == NewRefusal::key_of_line(&refusal.line)
}

/// Whether it is a whole line of a type that carries no operation, as the upstream may have from now on.
fn is_of_other_type(doubt: &StoredRefusal) -> bool {
    doubt.refusal.kind == UNKNOWN_TYPE
}

/// Whether all that is wrong is that something before it is not there.
fn lacks_prev(doubt: &StoredRefusal) -> bool {
    Refusal::kind_lacks_prev(&doubt.refusal.kind)
}
