//! Repair on demand: what the second reading and the doubts do by themselves, for some identities or for all,
//! at once.

use std::sync::Arc;

use ahash::AHashSet;
use tokio::sync::watch;
use tokio::time::sleep;

use super::continuity::{Continuity, Shared};
use super::direct::DirectIntake;
use super::fetch::{fetch_believed_audit_log, lacks};
use super::lease::{self, while_renewing};
use super::missing::{Missing, lacking_in, record_missing};
use super::read_again::ReadAgain;
use super::repaired::{Found, Repaired, found_in};
use crate::judge::{Course, Decoded};
use crate::store::{DivergenceKind, Lease, Source, Store, StoreError, StoredOperation};
use crate::upstream::{Backoff, Dump, DumpError, DumpReader, ExportClient, UpstreamFault};
use did_plc::signature::Verifier;
use did_plc::{Cid, Did};

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

/// What comes of it while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Something was found.
    Found(Found),
    /// It has come so far: identities, bytes of the file, or the last sequence number.
    Done(u64),
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
    /// There was nothing in the file that could be compared.
    #[error("{name}: there is no entry of a log in it; nothing was compared")]
    NoEntry {
        /// The file.
        name: String,
    },
    /// The upstream has another log than the one that was read from it.
    #[error(
        "under number {sequence} {upstream} does not have what was read from it any more: it was restored from a backup, \
         or has another log; `serve` finds where that begins, and follows from there"
    )]
    OtherLog {
        /// The upstream.
        upstream: String,
        /// The number.
        sequence: i64,
    },
}

impl Repair<'_> {
    /// Looks there, as the one follower of the store. What is found is told as it is found, and added to `found`, also
    /// where the repair fails in the end.
    ///
    /// # Errors
    ///
    /// [`RepairError`]; [`StoreError::LostLease`] while somebody follows.
    pub async fn run(
        &self,
        extent: Extent,
        found: &mut Repaired,
        tell: impl FnMut(Progress),
    ) -> Result<(), RepairError> {
        let (lease, source) = lease::take(self.store, self.client.base()).await?;
        let work = self.look(&lease, &source, extent, (found, tell));
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
        (found, tell): (&mut Repaired, impl FnMut(Progress)),
    ) -> Result<(), RepairError> {
        let stated_by = match &extent {
            Extent::File(dump) => dump.name(),
            Extent::Identities(_) | Extent::All => self.client.base(),
        };
        let verifier = Arc::clone(&self.verifier);
        let intake = DirectIntake::new(self.store, (lease, source), verifier, stated_by).await?;
        let mut looking = Looking { repair: self, intake, found, tell };
        match extent {
            Extent::File(dump) => looking.through_file(dump).await,
            Extent::Identities(dids) => {
                self.require_same_log(source).await?;
                looking.through_identities(dids).await
            }
            Extent::All => {
                self.require_same_log(source).await?;
                looking.through_pages(source.cursor).await
            }
        }
    }

    /// Makes sure that the upstream still has the log that was read from it: the numbers and times of another one
    /// would be taken over.
    async fn require_same_log(&self, source: &Source) -> Result<(), RepairError> {
        let (confirmed, _) = watch::channel(false);
        let mut continuity = Continuity::of_source(self.client.clone(), source, confirmed);
        let mut backoff = Backoff::new(self.client.limits());
        for attempt in 1.. {
            match continuity.ask().await {
                Shared::All => break,
                Shared::Before(sequence) => {
                    let upstream = self.client.base().to_owned();
                    return Err(RepairError::OtherLog { upstream, sequence });
                }
                Shared::Unknown(fault) if attempt == ATTEMPTS => return Err(fault.into()),
                Shared::Unknown(fault) => sleep(backoff.after(&fault)).await,
            }
        }
        Ok(())
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

/// A repair that goes on.
struct Looking<'a, Tell> {
    repair: &'a Repair<'a>,
    intake: DirectIntake<'a>,
    found: &'a mut Repaired,
    tell: Tell,
}

impl<Tell: FnMut(Progress)> Looking<'_, Tell> {
    fn note(&mut self, found: Found) {
        self.found.add(&found);
        (self.tell)(Progress::Found(found));
    }

    async fn take(&mut self, lines: Decoded, course: Course) -> Result<(), StoreError> {
        let count = lines.len();
        let prepared = self.intake.take(lines, course).await?;
        self.found.lines += count;
        found_in(&prepared.commit).into_iter().for_each(|found| self.note(found));
        Ok(())
    }

    async fn through_identities(&mut self, dids: Vec<Did>) -> Result<(), RepairError> {
        let Repair { store, client, .. } = *self.repair;
        for (done, did) in (1..).zip(dids) {
            let held = store.history(&did).await?;
            let fetch = async || fetch_believed_audit_log(client, &did, &held).await;
            match self.repair.patiently(fetch).await? {
                Some(log) => {
                    let operations = lacks(&log, &held);
                    self.take(log, Course::Second).await?;
                    if operations > 0 {
                        self.note(Found::Lacking { did, operations });
                    }
                }
                None => self.note(Found::Unknown { did, held: held.len() }),
            }
            (self.tell)(Progress::Done(done));
        }
        Ok(())
    }

    async fn through_file(&mut self, dump: Dump) -> Result<(), RepairError> {
        let position = dump.progress();
        let name = dump.name().to_owned();
        let mut blocks = DumpReader::start(dump);
        let mut has_entries = false;
        while let Some(block) = blocks.next().await {
            let lines = block?.into_iter().map(|(_, line)| line).collect();
            let decoded = Decoded::from_lines(lines).await;
            has_entries |= decoded.unreadable() < decoded.len();
            self.take(decoded, Course::Elsewhere).await?;
            (self.tell)(Progress::Done(position.read()));
        }
        if has_entries { Ok(()) } else { Err(RepairError::NoEntry { name }) }
    }

    /// Everything up to the cursor: what comes after it is for the follower.
    async fn through_pages(&mut self, cursor: i64) -> Result<(), RepairError> {
        let Repair { store, client, .. } = *self.repair;
        let mut missing = Missing::default();
        let mut after = 0;
        while after < cursor {
            let held = store.export_by_sequence(after, client.limits().page).await?;
            let fetch = async || ReadAgain::fetch(client, after, cursor, &held).await;
            let ReadAgain { lines, end } = self.repair.patiently(fetch).await?;
            let lacking = lacking_in(&lines, &held, end);
            let absent = missing.confirm(client, lacking, 0).await?;
            self.take(lines, Course::Second).await?;
            self.record_missing(absent).await?;
            after = end;
            (self.tell)(Progress::Done(after.unsigned_abs()));
        }
        // What still has its number now that every page was read is in none of them, whatever the export by time says.
        let moved: AHashSet<(i64, Cid)> = missing.into_moved().collect();
        let numbers: Vec<i64> = moved.iter().map(|(number, _)| *number).collect();
        let mut held = store.sequences(&numbers).await?;
        held.retain(|it| it.sequence.is_some_and(|number| moved.contains(&(number, it.cid()))));
        Ok(self.record_missing(held).await?)
    }

    async fn record_missing(&mut self, missing: Vec<StoredOperation>) -> Result<(), StoreError> {
        let Repair { store, client, .. } = *self.repair;
        for operation in missing {
            if record_missing(store, client.base(), &operation).await? {
                let kind = DivergenceKind::MissingInExport.name().to_owned();
                self.note(Found::Recorded { did: operation.did.to_string(), kind });
            }
        }
        Ok(())
    }
}
