//! A full sweep: our log and another side by side, stretch by stretch, in one order.
//!
//! A stretch is a page of the other side's export, or a block of a dump. What is not exactly the
//! same on both sides makes its identity a suspect, and only suspects are then compared in full:
//! a sweep may suspect too many, never too few.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc;

use ahash::AHashMap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::peer::{Peer, PeerError};
use crate::judge;
use crate::plc::entry::{Received, Undecodable};
use crate::plc::{Cid, Did, Timestamp};
use crate::store::{Store, StoreError, StoredOperation};
use crate::upstream::{Dump, DumpError, ExportClient, Priority, UpstreamFault};

/// Operations that are read from the store at once, and lines of a page: the most that the
/// directory gives.
const PAGE: usize = 1000;
/// Blocks of a dump that wait while others are compared; a block is about a megabyte.
const BLOCKS_AHEAD: usize = 2;

/// The order in which both sides are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// By `createdAt`. What is compared includes the nullified flags.
    Time,
    /// By sequence number, where both sides have the same. What is compared includes the number.
    Sequence,
}

/// Where a sweep is and what it has found: all that is needed to go on with it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// The order.
    pub order: Order,
    /// Everything up to this time (milliseconds since 1970) or number has been compared.
    pub after: i64,
    /// The last time or number to compare.
    pub until: i64,
    /// Operations of ours that were compared.
    pub compared: u64,
    /// Identities to be compared in full, as text.
    pub suspects: BTreeSet<String>,
    /// Lines of theirs that name no identity.
    pub unreadable: u64,
    /// The latest `createdAt` of theirs, in milliseconds.
    pub latest: i64,
}

/// A sweep that cannot go on (yet).
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Because of the other side.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Because of our store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<UpstreamFault> for SweepError {
    fn from(fault: UpstreamFault) -> SweepError {
        SweepError::Peer(fault.into())
    }
}

impl From<DumpError> for SweepError {
    fn from(error: DumpError) -> SweepError {
        SweepError::Peer(error.into())
    }
}

/// Where stretches of the other side's log come from.
pub enum Pages {
    /// A server, asked page by page.
    Server(ExportClient),
    /// A dump that is read on a thread of its own.
    Dump {
        /// The blocks.
        blocks: mpsc::Receiver<Result<Vec<Bytes>, DumpError>>,
        /// Lines at the end of the stretch before: more with the same key may follow.
        carried: Vec<Bytes>,
    },
}

impl Pages {
    /// Those of a peer.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn of(peer: &Peer) -> Result<Pages, DumpError> {
        match peer {
            Peer::Server(client) => Ok(Pages::Server(client.clone())),
            Peer::File(path) => Ok(Pages::Dump { blocks: read(path)?, carried: Vec::new() }),
        }
    }

    /// The next lines, and whether there are more after them; beyond the end none.
    async fn next(&mut self, sweep: &Sweep) -> Result<(Vec<Bytes>, bool), SweepError> {
        match self {
            Pages::Server(client) => {
                let after = match sweep.order {
                    Order::Sequence => sweep.after.to_string(),
                    Order::Time => Timestamp::from_millis(sweep.after).to_string(),
                };
                let lines = client.lines(after, PAGE, Priority::Aside).await?;
                let more = lines.len() >= PAGE;
                Ok((lines, more))
            }
            Pages::Dump { blocks, carried } => {
                let mut lines = std::mem::take(carried);
                // The thread that reads is ahead most of the time; the wait is that of a disk.
                match tokio::task::block_in_place(|| blocks.recv()) {
                    Ok(block) => {
                        lines.extend(block?);
                        Ok((lines, true))
                    }
                    Err(_) => Ok((lines, false)),
                }
            }
        }
    }

    fn carry(&mut self, lines: impl Iterator<Item = Bytes>) {
        if let Pages::Dump { carried, .. } = self {
            carried.extend(lines);
        }
    }
}

fn read(path: &Path) -> Result<mpsc::Receiver<Result<Vec<Bytes>, DumpError>>, DumpError> {
    let dump = Dump::open(path)?;
    let (sender, blocks) = mpsc::sync_channel(BLOCKS_AHEAD);
    std::thread::spawn(move || {
        for block in dump {
            let lines = block.map(|block| block.into_iter().map(|(_, line)| line).collect());
            if sender.send(lines).is_err() {
                break;
            }
        }
    });
    Ok(blocks)
}

/// One operation as a side states it, as far as a sweep compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stated {
    created_at: i64,
    sequence: Option<i64>,
    nullified: Option<bool>,
}

impl Stated {
    /// Whether nothing that both state differs.
    fn agrees(&self, other: &Stated) -> bool {
        fn same<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.zip(other).is_none_or(|(one, other)| one == other)
        }
        self.created_at == other.created_at
            && same(self.sequence, other.sequence)
            && same(self.nullified, other.nullified)
    }
}

impl Sweep {
    /// A sweep of everything after a time or number and up to another.
    pub fn new(order: Order, after: i64, until: i64) -> Sweep {
        Sweep {
            order,
            after,
            until,
            compared: 0,
            suspects: BTreeSet::new(),
            unreadable: 0,
            latest: i64::MIN,
        }
    }

    /// Whether everything was compared.
    pub fn is_done(&self) -> bool {
        self.after >= self.until
    }

    /// Compares the next stretch.
    ///
    /// # Errors
    ///
    /// [`SweepError`]; of a server, the same stretch can be tried again.
    pub async fn step(&mut self, store: &Store, pages: &mut Pages) -> Result<(), SweepError> {
        let (lines, more) = pages.next(self).await?;
        let decoded = judge::decode(&lines);
        let keys: Vec<Option<i64>> =
            decoded.iter().map(|line| line.as_ref().ok().and_then(|read| self.key(read))).collect();
        let end = self.end_of_stretch(&keys, more);
        let mut theirs = AHashMap::with_capacity(lines.len());
        for (decoded, key) in decoded.iter().zip(&keys) {
            // What comes before its turn is a suspect, since nothing of ours is beside it.
            match decoded {
                Ok(read) if key.is_some_and(|key| key > end) => {
                    self.latest = self.latest.max(read.created_at.millis());
                }
                Ok(read) => self.note(read, *key, &mut theirs),
                Err(Undecodable::Refused { did, .. }) if did.parse::<Did>().is_ok() => {
                    self.suspects.insert(did.clone());
                }
                Err(_) => self.unreadable += 1,
            }
        }
        self.compare_ours(store, end, &mut theirs).await?;
        self.suspects.extend(theirs.into_keys().map(|(did, _)| did.to_string()));
        let later = lines.into_iter().zip(keys).filter(|(_, key)| key.is_some_and(|key| key > end));
        pages.carry(later.map(|(line, _)| line));
        self.after = if more { end.max(self.after) } else { self.until };
        Ok(())
    }

    fn key(&self, received: &Received) -> Option<i64> {
        match self.order {
            Order::Time => Some(received.created_at.millis()),
            Order::Sequence => received.sequence,
        }
    }

    /// Up to where both sides are known. Where more follows, other operations of the same
    /// millisecond may.
    fn end_of_stretch(&self, keys: &[Option<i64>], more: bool) -> i64 {
        let last = keys.iter().flatten().max().copied();
        let end = match (more, last, self.order) {
            (false, ..) | (_, None, _) => self.until,
            (true, Some(last), Order::Sequence) => last,
            // A page of nothing but one millisecond cannot be told apart by time.
            (true, Some(last), Order::Time) if last - 1 > self.after => last - 1,
            (true, Some(last), Order::Time) => last,
        };
        end.min(self.until)
    }

    fn note(
        &mut self,
        read: &Received,
        key: Option<i64>,
        theirs: &mut AHashMap<(Did, Cid), Stated>,
    ) {
        self.latest = self.latest.max(read.created_at.millis());
        let stated = Stated {
            created_at: read.created_at.millis(),
            sequence: read.sequence.filter(|_| self.order == Order::Sequence),
            nullified: read.nullified,
        };
        let in_order = key.is_some_and(|key| key > self.after);
        let repeated = theirs.insert((read.did, read.cid), stated).is_some();
        if read.stated_cid.is_some() || repeated || !in_order {
            self.suspects.insert(read.did.to_string());
        }
    }

    async fn compare_ours(
        &mut self,
        store: &Store,
        end: i64,
        theirs: &mut AHashMap<(Did, Cid), Stated>,
    ) -> Result<(), StoreError> {
        let mut from = self.after;
        while from < end {
            let (held, next) = self.read_ours(store, from, end).await?;
            for operation in held {
                self.compared += 1;
                let ours = Stated {
                    created_at: operation.created_at.millis(),
                    sequence: operation.sequence.filter(|_| self.order == Order::Sequence),
                    nullified: Some(operation.nullified_by.is_some()),
                };
                let there = theirs.remove(&(operation.did, operation.cid()));
                if !there.is_some_and(|there| there.agrees(&ours)) {
                    self.suspects.insert(operation.did.to_string());
                }
            }
            from = next;
        }
        Ok(())
    }

    /// Operations of ours after `from` and up to `end`, and from where to go on.
    async fn read_ours(
        &self,
        store: &Store,
        from: i64,
        end: i64,
    ) -> Result<(Vec<StoredOperation>, i64), StoreError> {
        let (mut held, key): (_, fn(&StoredOperation) -> i64) = match self.order {
            Order::Sequence => (store.export_by_sequence(from, PAGE).await?, |operation| {
                operation.sequence.unwrap_or(0)
            }),
            Order::Time => (
                store.export_by_time(Some(Timestamp::from_millis(from)), PAGE).await?,
                |operation| operation.created_at.millis(),
            ),
        };
        let full = held.len() == PAGE;
        let last = held.last().map_or(end, key);
        let next = match (full, self.order) {
            (false, _) => end,
            (true, Order::Sequence) => last,
            (true, Order::Time) if last - 1 > from => last - 1,
            (true, Order::Time) => last,
        };
        let next = next.min(end);
        held.retain(|operation| key(operation) <= next);
        Ok((held, next))
    }
}
