//! Repair on demand: what the second reading and the doubts do by themselves, for some identities or for all,
//! at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::direct::DirectIntake;
use super::lease::while_renewing;
use crate::judge::{Course, Decoded, Prepared};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::{Dump, DumpError, DumpReader, ExportClient, Priority, UpstreamFault};
use did_plc::Did;
use did_plc::signature::Verifier;

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
    /// Identities that the upstream does not know.
    pub unknown: Vec<Did>,
}

impl Repaired {
    /// Whether nothing was missing, refused or different.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.refused.is_empty() && self.differences.is_empty()
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
    /// Looks there, as the one follower of the store. Tells `progress` how far it is: identities, or the last
    /// sequence number.
    ///
    /// # Errors
    ///
    /// [`RepairError`]; [`StoreError::LostLease`] while somebody follows.
    pub async fn run(
        &self,
        extent: Extent,
        progress: impl FnMut(u64),
    ) -> Result<Repaired, RepairError> {
        let (lease, source) = self.store.follow(self.client.base()).await?;
        let work = self.look(&lease, &source, extent, progress);
        let repaired = while_renewing(self.store, &lease, work).await;
        self.store.release(lease).await?;
        repaired
    }

    async fn look(
        &self,
        lease: &Lease,
        source: &Source,
        extent: Extent,
        progress: impl FnMut(u64),
    ) -> Result<Repaired, RepairError> {
        let (verifier, upstream) = (Arc::clone(&self.verifier), self.client.base());
        let intake = DirectIntake::new(self.store, (lease, source), verifier, upstream).await?;
        match extent {
            Extent::Identities(dids) => self.identities(intake, dids, progress).await,
            Extent::File(dump) => Repair::file(intake, dump, progress).await,
            Extent::All => self.all(intake, source.cursor, progress).await,
        }
    }

    async fn identities(
        &self,
        mut intake: DirectIntake<'_>,
        dids: Vec<Did>,
        mut progress: impl FnMut(u64),
    ) -> Result<Repaired, RepairError> {
        let mut repaired = Repaired::default();
        for (done, did) in (1..).zip(dids) {
            match self.client.audit_log(&did).await? {
                Some(log) => {
                    let decoded = Decoded::from_audit_log(&log).await;
                    let lines = decoded.len();
                    let prepared = intake.take(decoded, Course::Again, false).await?;
                    repaired.add(lines, &prepared);
                }
                None => repaired.unknown.push(did),
            }
            progress(done);
        }
        Ok(repaired)
    }

    async fn file(
        mut intake: DirectIntake<'_>,
        dump: Dump,
        mut progress: impl FnMut(u64),
    ) -> Result<Repaired, RepairError> {
        let position = dump.progress();
        let mut blocks = DumpReader::start(dump);
        let mut repaired = Repaired::default();
        while let Some(block) = blocks.next().await {
            let lines = block?.into_iter().map(|(_, line)| line).collect();
            let decoded = Decoded::from_lines(lines).await;
            let lines = decoded.len();
            let prepared = intake.take(decoded, Course::Elsewhere, false).await?;
            repaired.add(lines, &prepared);
            progress(position.read());
        }
        Ok(repaired)
    }

    /// Everything up to the cursor: what comes after it is for the follower.
    async fn all(
        &self,
        mut intake: DirectIntake<'_>,
        cursor: i64,
        mut progress: impl FnMut(u64),
    ) -> Result<Repaired, RepairError> {
        let mut repaired = Repaired::default();
        let count = self.client.limits().page;
        let mut after = 0;
        while after < cursor {
            let lines = self.client.lines(after, count, Priority::Following).await?;
            let is_last = lines.len() < count;
            let mut decoded = Decoded::from_lines(lines).await;
            let next = decoded.cursor_after(after);
            decoded.retain_up_to(cursor);
            let lines = decoded.len();
            let prepared = intake.take(decoded, Course::Again, false).await?;
            repaired.add(lines, &prepared);
            if is_last || next <= after {
                break;
            }
            after = next;
            progress(after.unsigned_abs());
        }
        Ok(repaired)
    }
}
