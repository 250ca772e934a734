//! Whether an upstream has the log that is held here: the newest numbers and CIDs up to the cursor, each verified when
//! it came, are compared with what it states under those numbers; and by CID alone where its numbers are its own, or it
//! has none.

use std::time::Duration;

use ahash::AHashSet;

use super::by_cid::{self, ByCid};
use super::fetch::{fetch_audit_log, fetch_through, lacks};
use super::numbering::{Numbering, is_unnumbered, may_know_no_numbers, states_numbers};
use crate::clock;
use crate::judge::{Decoded, Position};
use crate::store::{Store, StoreError, StoredOperation};
use crate::upstream::{ExportClient, Priority, UpstreamFault};
use did_plc::Timestamp;
use did_plc::entry::Received;

/// Pairs of a number and a CID that must be the same: some 20 kB of lines, which each upstream is asked for every minute.
const COMPARED: usize = 30;
/// Lines among those that may be wrong in themselves: as many within an hour do not refute an upstream either.
const MOST_WRONG: usize = 2;
/// What was read by time ends with what was created so shortly before.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// Operations of that time that are read.
const OF_WINDOW: usize = 1_000;

/// What an upstream has of what is held here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// All of it; and this number comes next there, if there is more.
    Same { next: Option<i64> },
    /// All of it by its CIDs, under numbers of its own or without any.
    SameByCid(Numbering),
    /// Nothing from this number on, which was received here so long ago; whether that is all that was compared, and by which
    /// numbers it was.
    Lacks { from: i64, received_ago: Duration, is_all: bool, numbering: Numbering },
    /// Under this number something else.
    Differs(Difference),
}

/// What two state under one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The number; 0 where there are none.
    pub sequence: i64,
    /// The CID that is held under it.
    pub ours: String,
    /// The one that is stated; none where it goes on above that number.
    pub theirs: Option<String>,
    /// The line that states it.
    pub line: Option<String>,
}

/// The newest operations that are held, in ascending order, and the cursor.
#[derive(Debug, Clone, Default)]
pub struct Newest {
    /// The upstream whose numbers are held.
    upstream: String,
    cursor: i64,
    /// Those with a number up to the cursor; where there are none, those that were read by time.
    held: Vec<StoredOperation>,
    /// One that came long before them.
    earlier: Option<StoredOperation>,
}

impl Newest {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn read(store: &Store) -> Result<Newest, StoreError> {
        let source = store.source().await?;
        let cursor = source.as_ref().map_or(0, |source| source.cursor);
        let upstream = source.as_ref().map_or(String::new(), |source| source.upstream.clone());
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
        if held.is_empty()
            && let Some(by_time) = source.and_then(|source| source.by_time)
        {
            held = store.export_by_time(Some(by_time.read - WINDOW), OF_WINDOW).await?;
            held.drain(..held.len().saturating_sub(COMPARED));
            // The ones that they may have are of no use while the log was not read by number.
            held.iter_mut().for_each(|held| held.sequence = None);
        }
        let earlier = store.export_by_sequence(cursor / 2, 1).await?.pop();
        Ok(Newest { upstream, cursor, held, earlier })
    }

    /// Everything up to this number was read.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// About when the last of them were created; none where none is held. Half of them may be dated wrongly.
    pub fn created_at(&self) -> Option<Timestamp> {
        let mut times: Vec<Timestamp> = self.held.iter().map(|held| held.created_at).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// The last of them: its number, 0 where it has none, and its CID.
    pub fn last(&self) -> Option<(i64, String)> {
        let last = self.held.last()?;
        Some((last.sequence.unwrap_or(0), last.cid().to_string()))
    }

    /// Asks an upstream for them, and for what comes next. Where others are stated than are held it is asked by CID, unless
    /// it `has_stated_ours`, or is the one whose numbers are held: then other ones are no numbers of its own.
    ///
    /// # Errors
    ///
    /// Those of the upstream and of the store.
    pub async fn ask(
        &self,
        store: &Store,
        client: &ExportClient,
        has_stated_ours: bool,
    ) -> Result<Agreement, AskError> {
        let may_have_own = !has_stated_ours && client.base() != self.upstream;
        let is_numbered = |held: &StoredOperation| held.sequence.is_some();
        let first = self.held.first().filter(|held| is_numbered(held)).and_then(|it| it.sequence);
        let after = first.map_or(self.cursor, |first| first - 1);
        let lines = match fetch_through(client, after, self.cursor, Priority::Following).await {
            Err(fault) if may_know_no_numbers(&fault) => {
                if states_numbers(client).await? != Some(false) {
                    return Err(fault.into());
                }
                return self.ask_by_cid(client, Numbering::Absent).await;
            }
            lines => lines?,
        };
        let may_be_absent = is_unnumbered(&lines) || lines.is_empty() && !has_stated_ours;
        if may_be_absent && states_numbers(client).await? == Some(false) {
            return self.ask_by_cid(client, Numbering::Absent).await;
        }
        if !self.held.iter().all(is_numbered) {
            // There is nothing that its numbers could be compared with.
            return match self.ask_by_cid(client, Numbering::Ours).await? {
                Agreement::SameByCid(_) => Ok(self.compare(&lines, clock::now(), &AHashSet::new())),
                other => Ok(other),
            };
        }
        let agreement = self.compare_lines(store, &lines).await?;
        let is_other = match &agreement {
            Agreement::Differs(_) => true,
            Agreement::Lacks { is_all, .. } => *is_all,
            Agreement::Same { .. } | Agreement::SameByCid(_) => false,
        };
        if !(is_other && may_have_own) {
            return Ok(agreement);
        }
        match self.ask_by_cid(client, Numbering::Own).await? {
            // The first of it says more.
            Agreement::Differs(_) => Ok(agreement),
            by_cid => Ok(by_cid),
        }
    }

    /// Asks an upstream for them by their CIDs.
    async fn ask_by_cid(
        &self,
        client: &ExportClient,
        numbering: Numbering,
    ) -> Result<Agreement, AskError> {
        Ok(match by_cid::look_for(client, &self.held).await? {
            ByCid::All => Agreement::SameByCid(numbering),
            ByCid::EndsBefore(first) => {
                let received_ago = clock::now().since(first.received_at);
                let from = first.sequence.unwrap_or(0);
                Agreement::Lacks { from, received_ago, is_all: false, numbering }
            }
            ByCid::Ended if self.has_earlier(client).await? => {
                let first = self.held.first();
                let received_ago =
                    first.map_or(Duration::ZERO, |first| clock::now().since(first.received_at));
                let from = first.and_then(|first| first.sequence).unwrap_or(0);
                Agreement::Lacks { from, received_ago, is_all: true, numbering }
            }
            ByCid::Lacks | ByCid::Ended => {
                let ours = self.last().map(|(_, cid)| cid).unwrap_or_default();
                Agreement::Differs(Difference { sequence: 0, ours, theirs: None, line: None })
            }
        })
    }

    /// Whether an upstream that has nothing as new has what came long before.
    async fn has_earlier(&self, client: &ExportClient) -> Result<bool, UpstreamFault> {
        let Some(earlier) = &self.earlier else { return Ok(false) };
        let log = fetch_audit_log(client, &earlier.did).await?;
        Ok(log.is_some_and(|log| lacks(&log, std::slice::from_ref(earlier)) == 0))
    }

    /// Compares lines by their numbers. A line that is wrong in itself is no other log, if there are few of them.
    async fn compare_lines(&self, store: &Store, lines: &Decoded) -> Result<Agreement, StoreError> {
        let mut wrong = AHashSet::new();
        loop {
            let agreement = self.compare(lines, clock::now(), &wrong);
            let Agreement::Differs(difference) = &agreement else { return Ok(agreement) };
            if wrong.len() >= MOST_WRONG || !is_wrong(store, difference, lines).await? {
                return Ok(agreement);
            }
            wrong.insert(difference.sequence);
        }
    }

    fn compare(&self, lines: &Decoded, now: Timestamp, wrong: &AHashSet<i64>) -> Agreement {
        let highest = lines.numbers().into_iter().max().unwrap_or(0);
        for held in &self.held {
            let Some(sequence) = held.sequence else { continue };
            let ours = held.cid().to_string();
            let theirs = lines.position_at(sequence);
            if theirs == Some(Position { sequence, cid: Some(ours.clone()) })
                || wrong.contains(&sequence)
            {
                continue;
            }
            if theirs.is_none() && highest < sequence {
                let received_ago = now.since(held.received_at);
                let is_all =
                    self.held.first().is_some_and(|first| first.sequence == Some(sequence));
                let numbering = Numbering::Ours;
                return Agreement::Lacks { from: sequence, received_ago, is_all, numbering };
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

/// Whether what is stated in place of what is held is no operation: it cannot be read, is not what it is stated to be,
/// or was refused here.
async fn is_wrong(
    store: &Store,
    difference: &Difference,
    lines: &Decoded,
) -> Result<bool, StoreError> {
    let Some(line) = &difference.line else {
        // The number itself may be what cannot be read.
        return Ok(lines.entries().iter().any(|entry| match entry {
            Ok(_) => false,
            Err(undecodable) => undecodable.sequence.is_none(),
        }));
    };
    let Ok(received) = Received::decode(line.as_bytes()) else { return Ok(true) };
    if received.stated_cid.is_some() {
        return Ok(true);
    }
    let refused = store.standing_refusals(&[received.did]).await?;
    Ok(refused.iter().any(|kept| kept.refusal.cid == Some(received.cid)))
}

/// Why it could not be told.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Because of the upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference { sequence, ours, theirs, .. } = self;
        match theirs {
            _ if *sequence == 0 => write!(formatter, "does not have {ours}, which is held"),
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
        Newest { cursor: log.last().unwrap().seq, held: held.collect(), ..Newest::default() }
    }

    #[tokio::test]
    async fn what_is_stated_is_the_same_or_less_or_other() {
        let log = log();
        let newest = newest(&log[..3]).await;
        let now = Timestamp::from_millis(61_000);
        let compare = async |stated: &[LogEntry]| {
            newest.compare(&decoded(stated).await, now, &AHashSet::new())
        };
        assert_eq!(compare(&log[..3]).await, Agreement::Same { next: None });
        assert_eq!(compare(&log).await, Agreement::Same { next: Some(4) });
        let received_ago = Duration::from_secs(60);
        let numbering = Numbering::Ours;
        let lacks = |from, is_all| Agreement::Lacks { from, received_ago, is_all, numbering };
        assert_eq!(compare(&log[..2]).await, lacks(3, false));
        assert_eq!(compare(&[]).await, lacks(1, true));
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
            Newest::default().compare(&decoded(&[]).await, now, &AHashSet::new()),
            Agreement::Same { next: None }
        );
    }
}
