//! Whether an upstream has the log that is held here: the newest numbers and CIDs up to the cursor, each verified when
//! it came, are compared with what it states under those numbers.

use std::time::Duration;

use super::fetch::fetch_through;
use crate::clock;
use crate::judge::{Decoded, Position};
use crate::store::{Store, StoreError, StoredOperation};
use crate::upstream::{ExportClient, Priority, UpstreamFault};
use did_plc::Timestamp;

/// Pairs of a number and a CID that must be the same: some 20 kB of lines, which each upstream is asked for every minute.
const COMPARED: usize = 30;

/// What an upstream has of what is held here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// All of it; and this number comes next there, if there is more.
    Same { next: Option<i64> },
    /// Nothing from this number on, which was received here so long ago; whether that is all that was compared.
    Lacks { from: i64, received_ago: Duration, is_all: bool },
    /// Under this number something else.
    Differs(Difference),
}

/// What two state under one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The number.
    pub sequence: i64,
    /// The CID that is held under it.
    pub ours: String,
    /// The one that is stated; none where it goes on above that number.
    pub theirs: Option<String>,
    /// The line that states it.
    pub line: Option<String>,
}

/// The newest operations that are held up to the cursor, in ascending order, and the cursor.
#[derive(Debug, Clone, Default)]
pub struct Newest {
    cursor: i64,
    held: Vec<StoredOperation>,
}

impl Newest {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn read(store: &Store) -> Result<Newest, StoreError> {
        let cursor = store.source().await?.map_or(0, |source| source.cursor);
        let after = (cursor - COMPARED as i64).max(0);
        let mut held = store.export_by_sequence(after, COMPARED).await?;
        let is_read = |held: &StoredOperation| held.sequence.is_some_and(|it| it <= cursor);
        held.retain(is_read);
        if held.is_empty() {
            // Where there are gaps between the numbers.
            held = store.latest(COMPARED).await?;
            held.retain(is_read);
            held.reverse();
        }
        Ok(Newest { cursor, held })
    }

    /// Everything up to this number was read.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Asks an upstream for them, and for what comes next.
    ///
    /// # Errors
    ///
    /// Those of the upstream.
    pub async fn ask(&self, client: &ExportClient) -> Result<Agreement, UpstreamFault> {
        let first = self.held.first().and_then(|held| held.sequence);
        let after = first.map_or(self.cursor, |first| first - 1);
        let lines = fetch_through(client, after, self.cursor, Priority::Following).await?;
        Ok(self.compare(&lines, clock::now()))
    }

    fn compare(&self, lines: &Decoded, now: Timestamp) -> Agreement {
        let highest = lines.numbers().into_iter().max().unwrap_or(0);
        for held in &self.held {
            let Some(sequence) = held.sequence else { continue };
            let ours = held.cid().to_string();
            let theirs = lines.position_at(sequence);
            if theirs == Some(Position { sequence, cid: Some(ours.clone()) }) {
                continue;
            }
            if theirs.is_none() && highest < sequence {
                let received_ago = now.since(held.received_at);
                let is_all =
                    self.held.first().is_some_and(|first| first.sequence == Some(sequence));
                return Agreement::Lacks { from: sequence, received_ago, is_all };
            }
            let theirs = theirs.map(|theirs| theirs.cid.unwrap_or_default());
            let line =
                lines.line_at(sequence).map(|line| String::from_utf8_lossy(line).into_owned());
            return Agreement::Differs(Difference { sequence, ours, theirs, line });
        }
        let next = lines.numbers().into_iter().filter(|number| *number > self.cursor).min();
        Agreement::Same { next }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference { sequence, ours, theirs, .. } = self;
        match theirs {
            Some(theirs) => {
                write!(formatter, "states {theirs} under number {sequence}, where {ours} is held")
            }
            None => write!(formatter, "has nothing under number {sequence}, where {ours} is held"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use plc_testkit::builder::Story;
    use plc_testkit::fake_upstream::LogEntry;

    fn log() -> Vec<LogEntry> {
        let mut story = Story::seeded(3);
        (0..4).for_each(|_| drop(story.create().accepted()));
        story.log().iter().map(LogEntry::from).collect()
    }

    async fn decoded(log: &[LogEntry]) -> Decoded {
        Decoded::from_lines(log.iter().map(|it| Bytes::from(it.sequenced())).collect()).await
    }

    async fn newest(log: &[LogEntry]) -> Newest {
        let lines = decoded(log).await;
        let held = lines.entries().iter().flatten().map(|received| StoredOperation {
            did: received.did,
            created_at: received.created_at,
            sequence: received.sequence,
            signed: received.signed.clone(),
            signer: 0,
            nullified_by: None,
            received_at: Timestamp::from_millis(1_000),
        });
        Newest { cursor: log.last().unwrap().seq, held: held.collect() }
    }

    #[tokio::test]
    async fn what_is_stated_is_the_same_or_less_or_other() {
        let log = log();
        let newest = newest(&log[..3]).await;
        let now = Timestamp::from_millis(61_000);
        let compare = async |stated: &[LogEntry]| newest.compare(&decoded(stated).await, now);
        assert_eq!(compare(&log[..3]).await, Agreement::Same { next: None });
        assert_eq!(compare(&log).await, Agreement::Same { next: Some(4) });
        let received_ago = Duration::from_secs(60);
        assert_eq!(
            compare(&log[..2]).await,
            Agreement::Lacks { from: 3, received_ago, is_all: false }
        );
        assert_eq!(compare(&[]).await, Agreement::Lacks { from: 1, received_ago, is_all: true });
        let differs = |sequence: i64, theirs: Option<&LogEntry>| {
            Agreement::Differs(Difference {
                sequence,
                ours: log[sequence as usize - 1].cid.clone(),
                theirs: theirs.map(|theirs| theirs.cid.clone()),
                line: theirs.map(LogEntry::sequenced),
            })
        };
        let without = [log[0].clone(), log[2].clone()];
        assert_eq!(compare(&without).await, differs(2, None));
        let other = LogEntry { seq: 2, ..log[3].clone() };
        let with_other = [log[0].clone(), other.clone(), log[2].clone()];
        assert_eq!(compare(&with_other).await, differs(2, Some(&other)));
        // The operation is the same, and its CID is stated to be another one.
        let changed = LogEntry { cid: log[3].cid.clone(), ..log[1].clone() };
        let with_changed = [log[0].clone(), changed.clone(), log[2].clone()];
        assert_eq!(compare(&with_changed).await, differs(2, Some(&changed)));
        // Nothing is held yet: whoever answers has the same.
        assert_eq!(
            Newest::default().compare(&decoded(&[]).await, now),
            Agreement::Same { next: None }
        );
    }
}
