//! Whether the only upstream, where it is another one than before, has the log that the store holds the beginning of.

use tokio_util::sync::CancellationToken;

use super::agreement::{Agreement, AskError, Difference, Newest};
use super::error::FollowError;
use super::numbering::Numbering;
use crate::live::{Mode, Status};
use crate::store::{Lease, Source, Store};
use crate::upstream::{Backoff, ExportClient, UpstreamFault};

/// A comparison of an upstream with a store.
pub struct SameLog<'a> {
    /// What holds the log.
    pub store: &'a Store,
    /// Who is to be followed.
    pub client: &'a ExportClient,
    /// Where it is said that the upstream is waited for.
    pub status: &'a Status,
    /// The end of waiting.
    pub shutdown: &'a CancellationToken,
}

impl SameLog<'_> {
    /// Makes sure that this is the upstream of before, or one with the same log: under the same numbers, so that the store
    /// remembers it as its own, or without any. None when asked to end while the upstream could not be reached. A crash
    /// leaves the upstream of before, and the comparison is made again.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub async fn ensure(
        &self,
        lease: &Lease,
        source: &Source,
    ) -> Result<Option<Numbering>, FollowError> {
        if source.upstream == self.client.base() {
            return Ok(Some(Numbering::Ours));
        }
        if source.cursor > 0 || source.by_time.is_some() {
            match self.compare(source).await? {
                Some(Numbering::Ours) => {}
                other => return Ok(other),
            }
            let (from, to) = (&source.upstream, self.client.base());
            tracing::info!(from, to, "another upstream with the same log");
        }
        self.store.set_upstream(lease, self.client.base()).await?;
        Ok(Some(Numbering::Ours))
    }

    /// Compares it until there is an answer; none when asked to end before.
    async fn compare(&self, source: &Source) -> Result<Option<Numbering>, FollowError> {
        let before = &source.upstream;
        let by_time = source.by_time.as_ref();
        let was_read_by_time = by_time.is_some_and(|it| it.upstream == self.client.base());
        let mut said = None;
        let mut backoff = Backoff::new(self.client.limits());
        let mut differs = None;
        loop {
            let newest = Newest::read(self.store).await?;
            let fault = match newest.ask(self.store, self.client, false).await {
                Ok(Agreement::Same { .. }) => return Ok(Some(Numbering::Ours)),
                // It was read by time before it had any.
                Ok(Agreement::SameByCid(Numbering::Own)) if was_read_by_time => {
                    return Ok(Some(Numbering::Own));
                }
                Ok(Agreement::SameByCid(Numbering::Own)) => {
                    let (sequence, ours) = newest.last().unwrap_or_default();
                    let other = Difference { sequence, ours, theirs: None, line: None };
                    return Err(self.is_other(other, before));
                }
                Ok(Agreement::SameByCid(numbering)) => return Ok(Some(numbering)),
                // It may lack something for a while, or for good: then nothing is read, and what is held is served.
                Ok(Agreement::Differs(_)) if was_read_by_time => UpstreamFault::FutureCursor,
                // What was damaged on its way is not so twice.
                Ok(Agreement::Differs(difference)) if differs.as_ref() == Some(&difference) => {
                    return Err(self.is_other(difference, before));
                }
                Ok(Agreement::Differs(difference)) => {
                    differs = Some(difference);
                    continue;
                }
                // A mirror that is behind gets there.
                Ok(Agreement::Lacks { .. }) => UpstreamFault::FutureCursor,
                Err(AskError::Upstream(fault)) => fault,
                Err(AskError::Store(error)) => return Err(error.into()),
            };
            self.status.set_mode(Mode::Waiting);
            if said.replace(fault.kind()) != Some(fault.kind()) {
                tracing::warn!(
                    "another upstream than before cannot be compared with what we hold: {fault}; asked again until it can"
                );
            }
            let pause = tokio::time::sleep(backoff.after(&fault));
            if self.shutdown.run_until_cancelled(pause).await.is_none() {
                return Ok(None);
            }
        }
    }

    fn is_other(&self, difference: Difference, before: &str) -> FollowError {
        let Difference { sequence, ours, theirs, .. } = difference;
        FollowError::OtherUpstream {
            given: self.client.base().to_owned(),
            remembered: before.to_owned(),
            sequence,
            ours,
            theirs: theirs.unwrap_or_else(|| "nothing of it".to_owned()),
        }
    }
}
