//! What a sweep saw on a server's export that differs from what we hold, and that the server's
//! audit log may not show: asked again at the export itself.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::check::{CheckError, Checker, Depth, Found};
use super::diff::Kind;
use super::history::{History, Statement};
use super::peer::{PeerError, Told};
use super::sweep::Order;
use crate::upstream::{ExportClient, Priority, UpstreamFault};
use did_plc::entry::{Entry, Received};
use did_plc::{Did, Timestamp};

/// Doubts that are kept of one identity. More of them would add nothing to what is reported: that
/// the export tells another history of it.
pub const MAX_DOUBTS: usize = 32;
/// Lines that are asked for by time, the most that the directory gives: others of the same
/// millisecond may come before the one in question.
const PAGE: usize = 1000;

/// An operation that their export states otherwise than we do, or that one side lacks there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Doubt {
    /// Its CID; where it could not be read, the one that was stated.
    pub cid: String,
    /// Where in the sweep's order their export stated it; where it did not, our place.
    pub at: i64,
}

/// The export of a server, as it was swept.
#[derive(Debug, Clone)]
pub struct Export {
    /// Who is asked.
    pub client: ExportClient,
    /// How its pages are asked for.
    pub order: Order,
}

impl Export {
    /// Asks again for what was in doubt, without what the comparison of the whole identity named
    /// already. What still differs is found as if their export were their log.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub async fn check(
        &self,
        checker: &Checker,
        found: &Found,
        doubts: &[Doubt],
        horizon: Timestamp,
    ) -> Result<Option<Found>, CheckError> {
        // These two are about other answers than a log.
        let of_log = |kind| !matches!(kind, Kind::OtherHead | Kind::OtherDocument);
        let named = |cid: &str| {
            let mut differences = found.comparison.differences.iter();
            differences.any(|one| one.subject == cid && of_log(one.kind))
        };
        let open: Vec<&Doubt> = doubts.iter().filter(|doubt| !named(&doubt.cid)).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let cids: BTreeSet<&str> = open.iter().map(|doubt| &*doubt.cid).collect();
        let places: BTreeSet<i64> = open.iter().map(|doubt| doubt.at).collect();
        let mut lines: Vec<Bytes> = Vec::new();
        for at in places {
            let page = self.lines_from(at).await.map_err(PeerError::from)?;
            for line in page.iter().filter(|line| states(line, found.did, &cids)) {
                if !lines.contains(line) {
                    // A copy: the line is a slice of a whole page.
                    lines.push(Bytes::copy_from_slice(line));
                }
            }
        }
        let mut there = self.compare(checker, found.did, &cids, &lines, horizon).await?;
        let differences = &mut there.comparison.differences;
        // Their order is that of the times and numbers, which are compared themselves.
        differences.retain(|one| one.kind != Kind::OtherOrder && !named(&one.subject));
        for difference in differences.iter_mut() {
            difference.detail = format!("on their export: {}", difference.detail);
        }
        Ok((!differences.is_empty()).then_some(there))
    }

    async fn lines_from(&self, at: i64) -> Result<Vec<Bytes>, UpstreamFault> {
        match self.order {
            Order::Sequence => self.client.lines(at - 1, 1, Priority::Aside).await,
            Order::Time => {
                let before = Timestamp::from_millis(at - 1);
                self.client.lines(before, PAGE, Priority::Aside).await
            }
        }
    }

    /// Compares with a log that is ours, except for what is in doubt: of that, their lines. What
    /// of ours is newer than the horizon may not be on their side yet.
    async fn compare(
        &self,
        checker: &Checker,
        did: Did,
        cids: &BTreeSet<&str>,
        lines: &[Bytes],
        horizon: Timestamp,
    ) -> Result<Found, CheckError> {
        let verifier = &*checker.verifier;
        let mut told = Told::of_lines(did, lines, verifier);
        let stored = checker.store.history(&did).await?;
        let undoubted = stored.iter().filter(|held| {
            held.created_at <= horizon && !cids.contains(held.cid().to_string().as_str())
        });
        let mut statements: Vec<Statement> = undoubted.cloned().map(Statement::from).collect();
        statements.extend(told.history.steps.drain(..).map(|step| step.stated));
        statements.sort_by_key(|stated| stated.created_at);
        told.history.steps = History::verify(did, statements, verifier).steps;
        Ok(checker.compare_stored(&told, stored, horizon, Depth::Log))
    }
}

/// Whether a line states one of these operations of an identity, by the bytes or by the CID that
/// it names.
fn states(line: &[u8], did: Did, cids: &BTreeSet<&str>) -> bool {
    let entry = str::from_utf8(line).ok().and_then(|line| Entry::read(line).ok());
    let Some(entry) = entry.filter(|entry| entry.did.parse() == Ok(did)) else { return false };
    cids.contains(&*entry.cid)
        || Received::decode(line).is_ok_and(|read| cids.contains(read.cid.to_string().as_str()))
}
