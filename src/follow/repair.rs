//! Repair on demand: what the second reading and the doubts do by themselves, for some identities or for all,
//! at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::sleep;

use super::direct::DirectIntake;
use super::fetch::NOT_JSON_ATTEMPTS;
use super::lease::while_renewing;
use crate::judge::{Course, Decoded, Prepared};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::{Backoff, Dump, DumpError, DumpReader, ExportClient, Page, UpstreamFault};
use did_plc::Did;
use did_plc::signature::Verifier;

/// How often the upstream is asked for one thing before the repair is given up: with the pauses in between some
/// minutes.
const ATTEMPTS: usize = 8;

/// Looks for what is missing in a store, and takes it in.
pub struct Repair<'a> {
    /// The store. Nobody else follows into it meanwhile.
    pub store: &'a Store,
    /// Who is asked: the upstream that the store follows.
    pub client: &'a ExportClient,
    /// Who checks signatures.
    pub verifier: Arc<dyn Verifier>,
}

/// Where to look.
pub enum Extent {
    /// The audit logs of these identities.
    Identities(Vec<Did>),
    /// A file that somebody has dumped.
    File(Dump),
    /// The whole export.
    All,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Lines that were compared.
    pub lines: usize,
    /// Operations that were missing here, for each identity. They are here now.
    pub missing: BTreeMap<Did, usize>,
    /// What was refused: the identity as the line states it, and why.
    pub refused: Vec<(String, String)>,
    /// Differences that were recorded: the identity, and the kind.
    pub differences: Vec<(String, String)>,
    /// Identities that the upstream does not know, and how many operations of each are here.
    pub unknown: Vec<(Did, usize)>,
}

impl Repaired {
    /// Whether nothing was missing, refused, different or unknown.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty()
            && self.refused.is_empty()
            && self.differences.is_empty()
            && self.unknown.is_empty()
    }

    fn add(&mut self, lines: usize, prepared: &Prepared) {
        self.lines += lines;
        let commit = &prepared.commit;
        for operation in &commit.operations {
            *self.missing.entry(operation.did).or_default() += 1;
        }
        for rewritten in &commit.rewritten {
            let more = rewritten.operations.len().saturating_sub(rewritten.stored);
            if more > 0 {
                *self.missing.entry(rewritten.did).or_default() += more;
            }
        }
        let refused = commit.refusals.iter();
        self.refused
            .extend(refused.map(|new| (new.did.clone(), format!("{}: {}", new.kind, new.detail))));
        let differences = commit.divergences.iter();
        self.differences.extend(differences.map(|new| (new.did.clone(), new.kind.clone())));
    }
}

/// A repair that did not come to its end. What was found before is in the store.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Because of the upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    /// Because of the file.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Repair<'_> {
    /// Looks there, as the one follower of the store. What is found is added to `found`, also where the repair
    /// fails in the end. Tells `progress` how far it is: identities, or the last sequence number.
    ///
    /// # Errors
    ///
    /// [`RepairError`]; [`StoreError::LostLease`] while somebody follows.
    pub async fn run(
        &self,
        extent: Extent,
        found: &mut Repaired,
        progress: impl FnMut(u64),
    ) -> Result<(), RepairError> {
        let (lease, source) = self.store.follow(self.client.base()).await?;
        let work = self.look(&lease, &source, extent, found, progress);
        let repaired = while_renewing(self.store, &lease, work).await;
        // One that cannot be given back runs out by itself.
        self.store.release(lease).await.ok();
        repaired
    }

    async fn look(
        &self,
        lease: &Lease,
        source: &Source,
        extent: Extent,
        found: &mut Repaired,
        progress: impl FnMut(u64),
    ) -> Result<(), RepairError> {
        let stated_by = match &extent {
            Extent::File(dump) => dump.name(),
            Extent::Identities(_) | Extent::All => self.client.base(),
        };
        let verifier = Arc::clone(&self.verifier);
        let intake = DirectIntake::new(self.store, (lease, source), verifier, stated_by).await?;
        match extent {
            Extent::Identities(dids) => self.identities(intake, dids, found, progress).await,
            Extent::File(dump) => Repair::file(intake, dump, found, progress).await,
            Extent::All => self.all(intake, source.cursor, found, progress).await,
        }
    }

    async fn identities(
        &self,
        mut intake: DirectIntake<'_>,
        dids: Vec<Did>,
        found: &mut Repaired,
        mut progress: impl FnMut(u64),
    ) -> Result<(), RepairError> {
        for (done, did) in (1..).zip(dids) {
            match self.patiently(async || self.audit_log(&did).await).await? {
                Some(decoded) => {
                    let lines = decoded.len();
                    let prepared = intake.take(decoded, Course::Second, false).await?;
                    found.add(lines, &prepared);
                }
                None => found.unknown.push((did, self.store.history(&did).await?.len())),
            }
            progress(done);
        }
        Ok(())
    }

    async fn audit_log(&self, did: &Did) -> Result<Option<Decoded>, UpstreamFault> {
        match self.client.audit_log(did).await? {
            Some(log) => Ok(Some(Decoded::from_audit_log(&log).await?)),
            None => Ok(None),
        }
    }

    async fn file(
        mut intake: DirectIntake<'_>,
        dump: Dump,
        found: &mut Repaired,
        mut progress: impl FnMut(u64),
    ) -> Result<(), RepairError> {
        let position = dump.progress();
        let mut blocks = DumpReader::start(dump);
        while let Some(block) = blocks.next().await {
            let lines = block?.into_iter().map(|(_, line)| line).collect();
            let decoded = Decoded::from_lines(lines).await;
            let lines = decoded.len();
            let prepared = intake.take(decoded, Course::Elsewhere, false).await?;
            found.add(lines, &prepared);
            progress(position.read());
        }
        Ok(())
    }

    /// Everything up to the cursor: what comes after it is for the follower.
    async fn all(
        &self,
        mut intake: DirectIntake<'_>,
        cursor: i64,
        found: &mut Repaired,
        mut progress: impl FnMut(u64),
    ) -> Result<(), RepairError> {
        let mut after = 0;
        while after < cursor {
            let (mut decoded, near_end, end) = self.page(after).await?;
            decoded.retain_up_to(cursor);
            let next = decoded.cursor_after(after);
            let lines = decoded.len();
            let prepared = intake.take(decoded, Course::Second, false).await?;
            found.add(lines, &prepared);
            if near_end || end > cursor {
                break;
            }
            if next <= after {
                return Err(UpstreamFault::NotAdvancing { after }.into());
            }
            after = next;
            progress(after.unsigned_abs());
        }
        Ok(())
    }

    /// The lines after a number, whether there are no more, and the cursor after them. What is not JSON may have
    /// been damaged on its way, and is fetched again.
    async fn page(&self, after: i64) -> Result<(Decoded, bool, i64), UpstreamFault> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let page = self.patiently(async || self.client.page(after).await).await?;
            let Page { mut lines, tail, near_end, next, .. } = page.believed();
            // No page comes after this one for it.
            lines.extend(tail.filter(|_| near_end));
            let decoded = Decoded::from_lines(lines).await;
            if decoded.first_damaged().is_none() || attempts >= NOT_JSON_ATTEMPTS {
                return Ok((decoded, near_end, next));
            }
        }
    }

    /// Asks the upstream, several times where that is called for.
    async fn patiently<T>(
        &self,
        ask: impl AsyncFn() -> Result<T, UpstreamFault>,
    ) -> Result<T, UpstreamFault> {
        let mut backoff = Backoff::new(self.client.limits());
        for _ in 1..ATTEMPTS {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(fault) => {
                    tracing::warn!("{fault}; asked again");
                    sleep(backoff.after(&fault)).await;
                }
            }
        }
        ask().await
    }
}
