//! What differs on a server's export alone: its audit logs may not show it, so that what a sweep has
//! seen there is asked for again at the export itself.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::check::{CheckError, CheckedIdentity, Checker, Depth};
use super::peer::{PeerError, PeerLog};
use super::suspect::{Order, Suspicion};
use crate::store::{DivergenceKind, StoredOperation};
use crate::upstream::{ExportClient, MAX_LINES, Priority, UpstreamFault};
use did_plc::entry::{Received, Undecodable};
use did_plc::{Did, History, Timestamp};

/// The export of a server, in the order in which it was swept.
#[derive(Debug, Clone)]
pub struct SweptExport {
    /// Who is asked.
    pub client: ExportClient,
    /// How its pages are asked for.
    pub order: Order,
}

impl SweptExport {
    /// Asks again for what looked different, without what the comparison of the whole identity named
    /// already. What still differs is found as if their export were their log.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub async fn check(
        &self,
        checker: &Checker,
        found: &CheckedIdentity,
        suspicions: &[Suspicion],
        horizon: Timestamp,
    ) -> Result<Option<CheckedIdentity>, CheckError> {
        // These two are about other answers than a log.
        let of_log =
            |kind| !matches!(kind, DivergenceKind::OtherHead | DivergenceKind::OtherDocument);
        let named = |cid: &str| {
            let mut differences = found.comparison.differences.iter();
            differences.any(|one| one.subject == cid && of_log(one.kind))
        };
        let open = || suspicions.iter().filter(|suspicion| !named(&suspicion.cid));
        let cids: BTreeSet<&str> = open().map(|suspicion| &*suspicion.cid).collect();
        if cids.is_empty() {
            return Ok(None);
        }
        let places: BTreeSet<i64> = open().map(|suspicion| suspicion.at).collect();
        let lines = self.lines_about(found.did, &cids, places).await?;
        let mut there = self.compare(checker, found.did, &cids, &lines, horizon).await?;
        let differences = &mut there.comparison.differences;
        // Their order is that of the times and numbers, which are compared themselves.
        differences.retain(|one| one.kind != DivergenceKind::OtherOrder && !named(&one.subject));
        for difference in differences.iter_mut() {
            difference.detail = format!("on their export: {}", difference.detail);
        }
        Ok((!differences.is_empty()).then_some(there))
    }

    /// Their lines about these operations, as they stand at these places now.
    async fn lines_about(
        &self,
        did: Did,
        cids: &BTreeSet<&str>,
        places: BTreeSet<i64>,
    ) -> Result<Vec<Bytes>, PeerError> {
        let mut lines: Vec<Bytes> = Vec::new();
        for at in places {
            let page = self.lines_from(at).await?;
            for line in page.iter().filter(|line| states(line, did, cids)) {
                if !lines.contains(line) {
                    // A copy: the line is a slice of a whole page.
                    lines.push(Bytes::copy_from_slice(line));
                }
            }
        }
        Ok(lines)
    }

    async fn lines_from(&self, at: i64) -> Result<Vec<Bytes>, UpstreamFault> {
        match self.order {
            Order::Sequence => self.client.lines(at - 1, 1, Priority::Aside).await,
            Order::Time => {
                let before = Timestamp::from_millis(at - 1);
                // Others of the same millisecond may come before the one in question.
                self.client.lines(before, MAX_LINES, Priority::Aside).await
            }
        }
    }

    /// Compares with a log that is ours, except for what looked different: of that, their lines.
    /// What of ours is newer than the horizon may not be on their side yet.
    async fn compare(
        &self,
        checker: &Checker,
        did: Did,
        cids: &BTreeSet<&str>,
        lines: &[Bytes],
        horizon: Timestamp,
    ) -> Result<CheckedIdentity, CheckError> {
        let verifier = &*checker.verifier;
        let mut theirs = PeerLog::of_lines(did, lines, verifier);
        let stored = checker.store.history(&did).await?;
        let undoubted = stored.iter().filter(|held| {
            held.created_at <= horizon && !cids.contains(held.cid().to_string().as_str())
        });
        let mut log: Vec<Received> = undoubted.map(StoredOperation::as_received).collect();
        log.extend(theirs.history.entries.drain(..).map(|entry| entry.received));
        log.sort_by_key(|received| received.created_at);
        theirs.history.entries = History::verified(did, log, verifier).entries;
        Ok(checker.compare_stored(&theirs, &stored, horizon, Depth::Log))
    }
}

/// Whether a line states one of these operations of an identity, by the bytes or by the CID that
/// it names.
fn states(line: &[u8], did: Did, cids: &BTreeSet<&str>) -> bool {
    match Received::decode(line) {
        Ok(read) => {
            let stated = read.stated_cid.as_deref();
            let is_one = cids.contains(read.cid.to_string().as_str());
            read.did == did && (is_one || stated.is_some_and(|stated| cids.contains(stated)))
        }
        Err(Undecodable { did: named, cid, .. }) => {
            named.parse() == Ok(did) && cids.contains(cid.as_str())
        }
    }
}
