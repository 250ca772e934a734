//! One comparison of what we hold of an identity with what a peer says, and its record.

use std::sync::Arc;

use metrics::counter;

use super::clock::latest;
use super::diff::{Comparison, Difference, FOUND_BY_COMPARISON, compare};
use super::peer::{Peer, PeerError, PeerLog};
use crate::clock::now;
use crate::store::{
    DivergenceKind, NewDivergence, Noted, Store, StoreError, StoredDivergence, StoredOperation,
    audit_log,
};
use did_plc::signature::Verifier;
use did_plc::{Did, History, Timestamp};

/// Bytes of a log that is kept as evidence; of a longer one, which none in sight comes near, only
/// the difference itself is recorded.
const MAX_EVIDENCE: usize = 1 << 20;

/// Compares a store with peers.
#[derive(Clone)]
pub struct Checker {
    /// What we hold.
    pub store: Store,
    /// Who checks signatures.
    pub verifier: Arc<dyn Verifier>,
}

/// How far a comparison goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The audit log: one request.
    Log,
    /// The newest operation and the document too: three requests.
    Everything,
}

/// What was found about one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedIdentity {
    /// Whose logs were compared.
    pub did: Did,
    /// What is not the same in them.
    pub comparison: Comparison,
    /// Our side: an audit log.
    pub ours: String,
    /// Their side as received.
    pub theirs: String,
    depth: Depth,
}

/// A comparison that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Because of the peer.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Because of our store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Checker {
    /// Asks a peer about an identity and compares. What they say is read first, so that it is
    /// never ahead of what we hold by the time that the question takes.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub async fn check(
        &self,
        peer: &Peer,
        did: Did,
        depth: Depth,
        horizon: Timestamp,
    ) -> Result<CheckedIdentity, CheckError> {
        let mut theirs = peer.ask(did, &self.verifier).await?;
        if depth == Depth::Everything {
            peer.ask_further(&mut theirs).await?;
        }
        self.compare(&theirs, horizon, depth).await
    }

    /// Compares a peer's log with what we hold.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn compare(
        &self,
        theirs: &PeerLog,
        horizon: Timestamp,
        depth: Depth,
    ) -> Result<CheckedIdentity, CheckError> {
        let stored = self.store.history(&theirs.history.did).await?;
        Ok(self.compare_stored(theirs, &stored, horizon, depth))
    }

    /// The same for operations that were read from the store before.
    pub fn compare_stored(
        &self,
        theirs: &PeerLog,
        stored: &[StoredOperation],
        horizon: Timestamp,
        depth: Depth,
    ) -> CheckedIdentity {
        let did = theirs.history.did;
        let received = stored.iter().map(StoredOperation::as_received);
        let history = History::verified(did, received, &*self.verifier);
        CheckedIdentity {
            did,
            comparison: compare(&history, &theirs.as_theirs(latest()), horizon),
            ours: audit_log(stored),
            theirs: String::from_utf8_lossy(&theirs.evidence).into_owned(),
            depth,
        }
    }

    /// Records what was found, and closes what is not there any more.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn note(&self, source: &str, found: &CheckedIdentity) -> Result<Noted, StoreError> {
        let seen = found.divergences(source);
        let covered = found.covered();
        let did = found.did.to_string();
        if seen.is_empty()
            && self.store.divergences(Some(&did), None, Some(true), 0, 1).await?.is_empty()
        {
            return Ok(Noted::default());
        }
        let noted = self.note_seen(source, &did, &covered, &seen).await?;
        for new in &noted.opened {
            let detail = found.detail(new);
            tracing::warn!(
                did,
                subject = new.subject,
                source,
                "divergence: {}: {detail}",
                new.kind
            );
        }
        Ok(noted)
    }

    /// Records what is seen of these kinds about an identity, closes what is not, and counts both.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(super) async fn note_seen(
        &self,
        source: &str,
        did: &str,
        covered: &[&str],
        seen: &[NewDivergence],
    ) -> Result<Noted, StoreError> {
        let noted = self.store.note_divergences(source, did, covered, seen, now()).await?;
        for new in &noted.opened {
            counter!("plc_divergences_total", "kind" => new.kind.clone()).increment(1);
        }
        count_closed(source, did, noted.closed);
        Ok(noted)
    }

    /// Closes one record: what it says is gone.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(super) async fn close(&self, record: &StoredDivergence) -> Result<(), StoreError> {
        self.store.close_divergence(record.id, now()).await?;
        count_closed(&record.divergence.source, &record.divergence.did, 1);
        Ok(())
    }
}

impl CheckedIdentity {
    /// As they are recorded.
    pub fn divergences(&self, source: &str) -> Vec<NewDivergence> {
        let evidence = |text: &String| (text.len() <= MAX_EVIDENCE).then(|| text.clone());
        let new = |difference: &Difference| NewDivergence {
            source: source.to_owned(),
            did: self.did.to_string(),
            kind: difference.kind.name().to_owned(),
            subject: difference.subject.clone(),
            ours: evidence(&self.ours),
            theirs: evidence(&self.theirs),
        };
        self.comparison.differences.iter().map(new).collect()
    }

    /// The kinds that would have been found: an open record of another says nothing.
    fn covered(&self) -> Vec<&'static str> {
        let would_be_found = |kind: &&DivergenceKind| match kind {
            // Audit logs have no sequence numbers.
            DivergenceKind::OtherSequence => false,
            DivergenceKind::OtherHead | DivergenceKind::OtherDocument => {
                self.depth == Depth::Everything
            }
            _ => true,
        };
        let found = FOUND_BY_COMPARISON.iter().filter(would_be_found);
        found.map(|kind| kind.name()).collect()
    }

    fn detail(&self, new: &NewDivergence) -> &str {
        let same =
            |found: &&Difference| found.kind.name() == new.kind && found.subject == new.subject;
        let found = self.comparison.differences.iter().find(same);
        found.map_or("", |found| &found.detail)
    }
}

fn count_closed(source: &str, did: &str, closed: usize) {
    if closed > 0 {
        counter!("plc_divergences_closed_total").increment(closed as u64);
        tracing::info!(did, source, closed, "divergences that are gone");
    }
}
