//! Taking a dump into a store, by the same way as what is followed.

use std::sync::Arc;

use super::direct::DirectIntake;
use super::lease::{self, while_renewing};
use crate::judge::{Course, Decoded};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::{Dump, DumpError, DumpReader};
use did_plc::signature::Verifier;

/// A dump is taken into this store.
pub struct Import<'a> {
    /// Where operations go.
    pub store: &'a Store,
    /// The upstream that the dump was made from, without a slash at its end.
    pub upstream: &'a str,
    /// Who checks signatures.
    pub verifier: Arc<dyn Verifier>,
}

/// What came of a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Lines that were read.
    pub lines: usize,
    /// Operations that are new in the store.
    pub accepted: usize,
    /// Lines with an operation that was there before.
    pub known: usize,
    /// Lines that were refused and kept.
    pub refused: usize,
    /// Lines that state no identity, and so are no entry of a log.
    pub unreadable: usize,
}

/// A dump that was not taken in to its end. What came before is in the store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Because of the dump.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Import<'_> {
    /// Takes in all of a dump as the one follower of the store, and tells `progress` after each block. A crash
    /// leaves the blocks that were committed; the dump can be taken in again.
    ///
    /// # Errors
    ///
    /// [`ImportError`]; [`StoreError::LostLease`] while somebody follows.
    pub async fn run(&self, dump: Dump, progress: impl FnMut()) -> Result<Imported, ImportError> {
        let (lease, source) = lease::take(self.store, self.upstream).await?;
        self.store.set_durability(false).await?;
        let work = self.take_in(&lease, &source, dump, progress);
        // The dump may come slowly, and the lease does not wait for it.
        let imported = while_renewing(self.store, &lease, work).await;
        self.store.set_durability(true).await?;
        self.store.release(lease).await?;
        imported
    }

    async fn take_in(
        &self,
        lease: &Lease,
        source: &Source,
        dump: Dump,
        mut progress: impl FnMut(),
    ) -> Result<Imported, ImportError> {
        let verifier = Arc::clone(&self.verifier);
        let mut intake =
            DirectIntake::new(self.store, (lease, source), verifier, dump.name()).await?;
        let mut blocks = DumpReader::start(dump);
        let mut imported = Imported::default();
        let mut continues = None;
        while let Some(block) = blocks.next().await {
            let lines = block?.into_iter().map(|(_, line)| line).collect();
            let decoded = Decoded::from_lines(lines).await;
            imported.lines += decoded.len();
            imported.unreadable += decoded.unreadable();
            let continues = *continues.get_or_insert_with(|| {
                // The dump leaves no gap after the stored cursor.
                let cursor = intake.cursor();
                decoded.first_number().is_some_and(|first| first <= cursor.saturating_add(1))
            });
            let prepared = intake.take(decoded, Course::Elsewhere, continues).await?;
            imported.accepted += prepared.accepted;
            imported.known += prepared.known;
            imported.refused += prepared.commit.refusals.len();
            progress();
        }
        Ok(imported)
    }
}
