//! What the upstream's export lacks of that which it gave us: neither under the number that we hold it under, nor under
//! another one.

use ahash::{AHashMap, AHashSet};

use super::fetch::fetch_lines;
use crate::clock;
use crate::judge::Decoded;
use crate::store::{DivergenceKind, NewDivergence, Store, StoreError, StoredOperation, audit_log};
use crate::upstream::{ExportClient, MAX_LINES, Priority, UpstreamFault};
use did_plc::{Cid, Timestamp};

/// Operations that may have another number now, at most: some 10 MB. What finds no room waits for a later round.
const MAX_MOVED: usize = 100_000;

/// What was missing under its number in an earlier round.
#[derive(Debug, Default)]
pub struct Missing {
    /// By number and CID the round in which it was missing first, though the export by time may have it. If it has another
    /// number there, that one is read before a round has passed, and is held then.
    moved: AHashMap<(i64, Cid), i64>,
}

impl Missing {
    /// Those of what a page lacks that the export does not have at all; `round` is the number of the round.
    ///
    /// # Errors
    ///
    /// When the upstream could not be asked.
    pub async fn confirm(
        &mut self,
        client: &ExportClient,
        lacking: Vec<StoredOperation>,
        round: i64,
    ) -> Result<Vec<StoredOperation>, UpstreamFault> {
        // Within a round each page was read, and none of this waits any more.
        self.moved.retain(|_, since| *since + 1 >= round);
        let (mut missing, unknown): (Vec<_>, Vec<_>) =
            lacking.into_iter().partition(|it| self.since(it).is_some_and(|since| since < round));
        let (absent, elsewhere) = by_time(client, unknown).await?;
        for operation in elsewhere {
            if self.moved.len() < MAX_MOVED
                && let Some(number) = operation.sequence
            {
                self.moved.entry((number, operation.cid())).or_insert(round);
            }
        }
        missing.extend(absent);
        Ok(missing)
    }

    /// The numbers and CIDs of those that may have another number there, which no page has stated yet.
    pub fn into_moved(self) -> impl Iterator<Item = (i64, Cid)> {
        self.moved.into_keys()
    }

    fn since(&self, operation: &StoredOperation) -> Option<i64> {
        self.moved.get(&(operation.sequence?, operation.cid())).copied()
    }
}

/// What is held under a number up to `end`, and stated in a page neither under that number nor under another one.
pub fn lacking_in(page: &Decoded, held: &[StoredOperation], end: i64) -> Vec<StoredOperation> {
    let numbers = page.numbers();
    let cids: AHashSet<Cid> = page.entries().iter().flatten().map(|stated| stated.cid).collect();
    let is_lacking = |operation: &&StoredOperation| {
        let number = operation.sequence.filter(|&number| number <= end);
        number.is_some_and(|number| !numbers.contains(&number)) && !cids.contains(&operation.cid())
    };
    held.iter().filter(is_lacking).cloned().collect()
}

/// Those that the export by time lacks, and those that it has or may have. It is asked about many with one request.
async fn by_time(
    client: &ExportClient,
    mut unknown: Vec<StoredOperation>,
) -> Result<(Vec<StoredOperation>, Vec<StoredOperation>), UpstreamFault> {
    unknown.sort_by_key(|operation| operation.created_at);
    let (mut absent, mut present) = (Vec::new(), Vec::new());
    while let Some(first) = unknown.first() {
        let before = Timestamp::from_millis(first.created_at.millis() - 1);
        let lines = match fetch_lines(client, before, MAX_LINES, Priority::Aside).await {
            Ok(lines) => lines,
            // An upstream without an export by time: it is told by a whole round.
            Err(UpstreamFault::UnexpectedStatus { .. }) => {
                present.append(&mut unknown);
                break;
            }
            Err(fault) => return Err(fault),
        };
        let there: AHashSet<Cid> = lines.entries().iter().flatten().map(|it| it.cid).collect();
        // What is later than the last line may come in the next page; the first one does not.
        let last = lines.entries().iter().flatten().map(|it| it.created_at).max();
        let read = unknown.partition_point(|it| last.is_some_and(|last| it.created_at < last));
        for operation in unknown.drain(..read.max(1)) {
            let side = if there.contains(&operation.cid()) { &mut present } else { &mut absent };
            side.push(operation);
        }
    }
    Ok((absent, present))
}

/// Records that the export of an upstream lacks an operation that it gave us. Returns whether that was not on record
/// before. A crash before this leaves it to the next reading.
///
/// # Errors
///
/// Those of the store.
pub async fn record_missing(
    store: &Store,
    upstream: &str,
    operation: &StoredOperation,
) -> Result<bool, StoreError> {
    let did = operation.did.to_string();
    let record = NewDivergence {
        source: upstream.to_owned(),
        did: did.clone(),
        kind: DivergenceKind::MissingInExport.name().to_owned(),
        subject: operation.cid().to_string(),
        ours: Some(audit_log(&store.history(&operation.did).await?)),
        theirs: None,
    };
    let noted = store.note_divergences(upstream, &did, &[], &[record], clock::now()).await?;
    let is_new = !noted.opened.is_empty();
    if is_new {
        let sequence = operation.sequence;
        tracing::warn!(did, sequence, "the upstream's export lacks an operation that it gave us");
    }
    Ok(is_new)
}
