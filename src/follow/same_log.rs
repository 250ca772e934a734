//! Whether another upstream than before has the log that the store holds the beginning of.

use tokio_util::sync::CancellationToken;

use super::error::FollowError;
use crate::judge::Position;
use crate::live::{Mode, Status};
use crate::store::{Lease, Source, Store, StoredOperation};
use crate::upstream::{Backoff, ExportClient, Priority, UpstreamFault};
use bytes::Bytes;
use did_plc::Refusal;
use did_plc::entry::{Received, Undecodable};

/// (Sequence number, CID) pairs that must agree when another upstream is to be followed.
const COMPARED: usize = 10;

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
    /// Makes sure that this is the upstream of before, or one with the same log, which the store then remembers
    /// as its own. False when asked to end while the upstream could not be reached. A crash leaves the upstream
    /// of before, and the comparison is made again.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub async fn ensure(&self, lease: &Lease, source: &Source) -> Result<bool, FollowError> {
        if source.upstream == self.client.base() {
            return Ok(true);
        }
        if source.cursor > 0 {
            // The oldest first: another log is told from one that is merely some operations behind.
            for operation in self.store.latest(COMPARED).await?.iter().rev() {
                if !self.has(operation, &source.upstream).await? {
                    return Ok(false);
                }
            }
            let (from, to) = (&source.upstream, self.client.base());
            tracing::info!(from, to, "another upstream with the same log");
        }
        self.store.set_upstream(lease, self.client.base()).await?;
        Ok(true)
    }

    /// Makes sure that the upstream has this operation under its number. False when asked to end before.
    async fn has(&self, operation: &StoredOperation, before: &str) -> Result<bool, FollowError> {
        let Some(sequence) = operation.sequence else { return Ok(true) };
        let Some(line) = self.line_at(sequence).await else { return Ok(false) };
        let theirs = Position::of_line(&line).filter(|theirs| theirs.sequence == sequence);
        let theirs = theirs.and_then(|theirs| theirs.cid);
        let ours = operation.cid().to_string();
        if theirs.as_ref() == Some(&ours) {
            return Ok(true);
        }
        Err(FollowError::OtherUpstream {
            given: self.client.base().to_owned(),
            remembered: before.to_owned(),
            sequence,
            ours,
            theirs: theirs.unwrap_or_else(|| "nothing".to_owned()),
        })
    }

    /// The upstream's line at this number, or the next one: asked for until there is one; none when
    /// asked to end before.
    async fn line_at(&self, sequence: i64) -> Option<Bytes> {
        let mut said = None;
        let mut backoff = Backoff::new(self.client.limits());
        loop {
            let fault = match self.ask(sequence).await {
                Ok(line) => return Some(line),
                Err(fault) => fault,
            };
            self.status.set_mode(Mode::Waiting);
            if said.replace(fault.kind()) != Some(fault.kind()) {
                tracing::warn!(
                    "another upstream than before cannot be compared with what we hold: {fault}; asked again until it can"
                );
            }
            let pause = tokio::time::sleep(backoff.after(&fault));
            self.shutdown.run_until_cancelled(pause).await?;
        }
    }

    async fn ask(&self, sequence: i64) -> Result<Bytes, UpstreamFault> {
        let line = self.client.lines(sequence - 1, 1, Priority::Following).await?.pop();
        // A mirror that is behind gets there.
        let line = line.ok_or(UpstreamFault::FutureCursor)?;
        match Received::decode(&line) {
            // What was cut on its way says nothing about the log.
            Err(Undecodable { refusal: Refusal::NotJson { .. }, .. }) => {
                Err(UpstreamFault::Truncated { reason: "its only line is not JSON".to_owned() })
            }
            _ => Ok(line),
        }
    }
}
