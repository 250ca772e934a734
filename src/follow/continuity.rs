//! Whether the upstream still has the log that was read from it. One that was restored from a backup and has
//! grown past the cursor since cannot be told by its numbers: it is asked for lines that it gave us.

use tokio::sync::watch;
use tokio::time::Instant;

use crate::judge::{Decoded, Position};
use crate::store::Source;
use crate::upstream::{ExportClient, Priority, UpstreamFault};

/// How often in a row an upstream has to say that our cursor is in its future, or that the last
/// operation it gave us is not there: one of several servers behind one name may be some operations
/// behind the others.
pub const REWINDS: u32 = 3;

/// What is known of the log that is read.
#[derive(Debug)]
pub struct Continuity {
    client: ExportClient,
    /// What the upstream stated for the cursor's number.
    last: Option<Position>,
    /// What that was when the upstream was asked for it last. What took the place of the log
    /// unnoticed since then, without a fault in between, does not have it.
    anchor: Option<Position>,
    /// When the upstream was asked last; none while the answer is in doubt, as it is after every fault.
    asked: Option<Instant>,
    /// How often in a row the upstream did not have what it gave us.
    missing: u32,
    /// Whether it is out of doubt, for who asks for what was read already.
    confirmed: watch::Sender<bool>,
}

/// What came of asking.
#[derive(Debug)]
pub enum Shared {
    /// It still has the log.
    All,
    /// It cannot be told yet.
    Unknown(UpstreamFault),
    /// It has nothing of what it gave us from this number on, and that stays so.
    Before(i64),
}

/// What an upstream's export says beside its stream.
#[derive(Debug)]
pub struct Beside {
    /// Whether it still has the line that was asked for.
    pub has_it: bool,
    /// The number of the line after that one; none at the end.
    pub next: Option<i64>,
}

impl Continuity {
    /// Of the log that was read up to the cursor of this source.
    pub fn of_source(
        client: ExportClient,
        source: &Source,
        confirmed: watch::Sender<bool>,
    ) -> Continuity {
        let last = source.cursor_cid.clone();
        let last = last.map(|cid| Position { sequence: source.cursor, cid: Some(cid) });
        Continuity { client, anchor: last.clone(), last, asked: None, missing: 0, confirmed }
    }

    /// Remembers what was read up to this cursor.
    pub fn remember(&mut self, read: &Decoded, cursor: i64) {
        if let Some(position) = read.position_at(cursor) {
            self.last = Some(position);
        }
    }

    /// Something went wrong: who was away may come back from a backup.
    pub fn put_in_doubt(&mut self) {
        self.asked = None;
        self.confirmed.send_replace(false);
    }

    /// Whether the upstream is to be asked: it is in doubt, or nothing was wrong for so long.
    pub fn is_due(&self) -> bool {
        self.asked.is_none_or(|at| at.elapsed() >= self.client.limits().check_shared)
    }

    /// Asks for all that is known. To be asked after the fetching: a log that still has what it gave us had it
    /// when the page was made.
    pub async fn ask(&mut self) -> Shared {
        let mut positions: Vec<Position> = self.anchor.iter().chain(&self.last).cloned().collect();
        positions.dedup();
        for position in positions {
            let sequence = position.sequence;
            match has(self.client.clone(), position).await {
                Ok(true) => continue,
                Ok(false) => self.missing += 1,
                // Nothing is taken before it is known.
                Err(fault) => return Shared::Unknown(fault),
            }
            if self.missing < REWINDS {
                return Shared::Unknown(UpstreamFault::GoneBack { sequence });
            }
            return Shared::Before(sequence);
        }
        self.set_confirmed();
        Shared::All
    }

    /// The same question for a stream that is read on meanwhile: about the anchor only, and what comes after it. None
    /// when there is nothing to ask for.
    pub fn question(
        &mut self,
    ) -> Option<impl Future<Output = Result<Beside, UpstreamFault>> + use<>> {
        let Some(anchor) = self.anchor.clone() else {
            self.set_confirmed();
            return None;
        };
        self.asked = Some(Instant::now());
        Some(beside(self.client.clone(), anchor))
    }

    /// The upstream still has what it gave us.
    pub fn set_confirmed(&mut self) {
        self.asked = Some(Instant::now());
        self.anchor = self.last.clone();
        self.missing = 0;
        self.confirmed.send_replace(true);
    }

    /// The upstream does not have the anchor any more: what came since is of another log.
    pub fn fall_back_to_anchor(&mut self) -> UpstreamFault {
        self.last = self.anchor.clone();
        self.confirmed.send_replace(false);
        let sequence = self.last.as_ref().map_or(0, |last| last.sequence);
        UpstreamFault::GoneBack { sequence }
    }
}

/// Whether the upstream still has the line that it stated at this position.
async fn has(client: ExportClient, position: Position) -> Result<bool, UpstreamFault> {
    let line = client.first_from(position.sequence, Priority::Following).await?;
    Ok(line.and_then(|line| Position::of_line(&line)) == Some(position))
}

/// Whether the upstream still has the line that it stated at this position, and what comes after it.
async fn beside(client: ExportClient, position: Position) -> Result<Beside, UpstreamFault> {
    let lines = client.lines_from(position.sequence, 2, Priority::Following).await?;
    let mut stated = lines.iter().map(|line| Position::of_line(line));
    let has_it = stated.next().flatten() == Some(position);
    Ok(Beside { has_it, next: stated.next().flatten().map(|next| next.sequence) })
}
