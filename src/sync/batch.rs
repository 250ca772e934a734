//! One batch: decoded, completed with what the store knows, judged, and turned into a commit.

use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use bytes::Bytes;
use tokio::sync::watch;

use super::assembly::{Assembly, Part, Prepared};
use super::chains::{self, Chains};
use super::stated::Stated;
use crate::cores::on_cores;
use crate::judge::{self, Candidate, Group, Place};
use crate::metrics;
use crate::store::{Commit, Rejudged, Store, StoreError, audit_log};
use did_plc::entry::{Received, Undecodable};
use did_plc::signature::Verifier;
use did_plc::{Cid, Did, Refusal, Timestamp};

/// CIDs that open refusals await, kept in memory to tell at once whether an operation frees one:
/// 32 MB at most. With more than this on record the store is asked for every batch.
const MAX_AWAITED: usize = 1_000_000;

/// How long an operation may take to come here live, clocks that differ included. An upstream that
/// is a replica itself may have stood still for some minutes.
const UNDER_WAY: Duration = Duration::from_secs(10 * 60);
/// How far `createdAt` may go back from one operation to the next: transactions of the directory
/// do not end in the order in which they began.
const OUT_OF_ORDER: Duration = Duration::from_secs(60);

/// Judges batches one after the other, each on top of those before it, committed or not.
pub struct BatchJudge {
    store: Store,
    verifier: Arc<dyn Verifier>,
    upstream: String,
    chains: Chains,
    awaited: Awaited,
    /// No operation that was seen so far has a higher number.
    highest_sequence: i64,
    /// The latest `createdAt` that was accepted so far.
    latest: Option<Timestamp>,
    /// Number of the batch that was judged last.
    judged: u64,
    /// Number of the batch that was committed last.
    committed: watch::Receiver<u64>,
}

/// What open refusals wait for.
struct Awaited {
    cids: AHashSet<Cid>,
    /// There are more than are kept here.
    incomplete: bool,
}

/// Lines to be judged together.
#[derive(Debug, Clone)]
pub struct Lines {
    /// As received.
    pub lines: Vec<Bytes>,
    /// When.
    pub received_at: Timestamp,
    /// Cursor before them.
    pub cursor: i64,
    /// They reach the upstream's present.
    pub caught_up: bool,
    /// They all came by the stream, as they happened.
    pub live: bool,
    /// What to do about a line that is not JSON.
    pub not_json: NotJson,
}

/// What to do about a line that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotJson {
    /// Stop before it: it may have been damaged on its way.
    StopBefore,
    /// Keep it as it is and go on: it has been fetched often enough.
    Keep,
}

/// Lines as far as they can be judged at once.
#[derive(Debug)]
pub struct Parts {
    /// Each to be judged and handed over to be committed before the next one is judged. Usually it
    /// is one; where a sequence number is claimed twice there are more, since whether the second
    /// claim stands depends on the first.
    pub parts: Vec<Part>,
    /// Cursor after them.
    pub cursor: i64,
    /// A line that is not JSON stands after them.
    pub stopped: bool,
    /// One that is not JSON is among them.
    pub kept_damaged: bool,
}

impl BatchJudge {
    /// A judge that knows nothing yet of what is in the store.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn new(
        store: Store,
        verifier: Arc<dyn Verifier>,
        upstream: String,
        committed: watch::Receiver<u64>,
    ) -> Result<BatchJudge, StoreError> {
        let cids = store.awaited(MAX_AWAITED).await?;
        let incomplete = cids.len() == MAX_AWAITED;
        let highest_sequence = store.last_sequence().await?.unwrap_or(0);
        Ok(BatchJudge {
            store,
            verifier,
            upstream,
            chains: Chains::default(),
            awaited: Awaited { cids: cids.into_iter().collect(), incomplete },
            highest_sequence,
            latest: None,
            judged: 0,
            committed,
        })
    }

    /// Decodes lines, and cuts them where they cannot be judged at once.
    pub async fn split(&self, lines: Lines) -> Parts {
        let Lines { lines, received_at, cursor, mut caught_up, live, not_json } = lines;
        let (mut lines, mut decoded) = on_cores(move || {
            let decoded = judge::decode(&lines);
            (lines, decoded)
        })
        .await;
        let damaged = decoded.iter().position(is_not_json);
        let stop = damaged.filter(|_| not_json == NotJson::StopBefore);
        if let Some(stop) = stop {
            lines.truncate(stop);
            decoded.truncate(stop);
            caught_up = false;
        }
        let cursor_after = cursor_after(cursor, decoded.iter().filter_map(number));
        let cursor_cid = Stated::among(&lines, cursor_after).and_then(|stated| stated.cid);
        let ends = ends_of_unique_numbers(&decoded);
        let (mut lines, mut decoded) = (lines.into_iter(), decoded.into_iter());
        let mut from = 0;
        let mut parts = Vec::with_capacity(ends.len());
        for (index, &end) in ends.iter().enumerate() {
            let last = index + 1 == ends.len();
            parts.push(Part {
                lines: lines.by_ref().take(end - from).collect(),
                decoded: decoded.by_ref().take(end - from).collect(),
                received_at,
                cursor_before: cursor,
                // The cursor moves with the last part only: after a crash all of it comes again.
                cursor_after: if last { cursor_after } else { cursor },
                cursor_cid: cursor_cid.clone().filter(|_| last),
                caught_up: caught_up && last,
                live,
            });
            from = end;
        }
        let stopped = stop.is_some();
        Parts { parts, cursor: cursor_after, stopped, kept_damaged: !stopped && damaged.is_some() }
    }

    /// Judges a part. It may wait until what was judged before is committed.
    ///
    /// # Errors
    ///
    /// Those of the store. What was judged before the error must not be relied on any more.
    pub async fn judge(&mut self, mut part: Part) -> Result<Prepared, StoreError> {
        let mut candidates = Vec::with_capacity(part.decoded.len());
        let mut undecodable = Vec::new();
        for (index, decoded) in std::mem::take(&mut part.decoded).into_iter().enumerate() {
            match decoded {
                Ok(received) => candidates.push(Candidate {
                    place: Place::Line(index),
                    received,
                    number_held_by: None,
                }),
                Err(reason) => undecodable.push((index, reason)),
            }
        }
        let backdated_before = part.live.then(|| self.backdated_before(part.received_at));
        let mut assembly = Assembly::new(part, self.upstream.clone(), backdated_before);
        for (index, reason) in undecodable {
            assembly.keep_undecodable(index, reason);
        }
        self.add_freed(&mut candidates).await?;
        self.find_holders_of_numbers(&mut candidates).await?;
        let mut groups = judge::group(candidates.into_iter());
        self.load_chains(&mut groups).await?;

        let verifier = Arc::clone(&self.verifier);
        let (groups, mut judged) = on_cores(move || {
            let judged = judge::judge(&mut groups, &*verifier);
            (groups, judged)
        })
        .await;
        judged.sort_by_key(|judged| match judged.candidate.place {
            Place::Line(index) => (0, index as i64),
            Place::Kept(id) => (1, id),
        });

        let chains: AHashMap<Did, &Group> =
            groups.iter().map(|(did, group)| (*did, group)).collect();
        for judged in judged {
            assembly.add(judged, &chains);
        }
        drop(chains);
        let mut prepared = assembly.finish(self.judged + 1);
        self.add_our_side(&mut prepared.commit).await?;
        self.remember(groups, &prepared);
        Ok(prepared)
    }

    /// Puts our side beside the differences that were noticed: the whole log of the identity as it
    /// is with this commit, which can be verified by itself.
    async fn add_our_side(&mut self, commit: &mut Commit) -> Result<(), StoreError> {
        if commit.divergences.is_empty() {
            return Ok(());
        }
        self.wait_until_committed().await;
        for divergence in &mut commit.divergences {
            let Ok(did) = divergence.did.parse::<Did>() else { continue };
            let mut held = self.store.history(&did).await?;
            held.extend(commit.operations.iter().filter(|new| new.did == did).cloned());
            held.sort_by_key(|operation| operation.created_at);
            for (_, at, by) in commit.nullified.iter().filter(|(other, ..)| *other == did) {
                let nullified = held.iter_mut().filter(|held| held.created_at == *at);
                nullified.for_each(|held| held.nullified_by = Some(*by));
            }
            divergence.ours = Some(audit_log(&held));
        }
        Ok(())
    }

    /// Before which time the `createdAt` of an operation that came live is recorded: well before
    /// it was received, or before another one that was received already.
    fn backdated_before(&self, received_at: Timestamp) -> Timestamp {
        let by_order = self.latest.map(|latest| latest - OUT_OF_ORDER);
        by_order.map_or(received_at - UNDER_WAY, |order| order.max(received_at - UNDER_WAY))
    }

    /// Keeps what the next batches need to know of this one.
    fn remember(&mut self, groups: Vec<(Did, Group)>, prepared: &Prepared) {
        self.judged = prepared.batch;
        self.chains.committed(*self.committed.borrow());
        for (did, group) in groups {
            self.chains.put(did, group.chain, prepared.batch);
        }
        let commit = &prepared.commit;
        let received_at = Timestamp::from_millis(commit.received_at_millis);
        // One from the future would make all that follow look old.
        let times = commit.operations.iter().map(|operation| operation.created_at.min(received_at));
        self.latest = self.latest.max(times.max());
        let numbers = commit.operations.iter().filter_map(|operation| operation.sequence);
        let numbered = commit.numbered.iter().map(|(_, _, number)| *number);
        self.highest_sequence =
            numbers.chain(numbered).fold(self.highest_sequence, |highest, n| highest.max(n));
        let rejudged = commit.rejudged.iter().filter_map(|rejudged| match rejudged {
            Rejudged::Refused { awaits, .. } => *awaits,
            Rejudged::Accepted { .. } => None,
        });
        let awaited = commit.refusals.iter().filter_map(|refusal| refusal.awaits);
        for cid in awaited.chain(rejudged) {
            if self.awaited.cids.len() < MAX_AWAITED {
                self.awaited.cids.insert(cid);
            } else {
                self.awaited.incomplete = true;
            }
        }
    }

    /// Adds kept refusals that wait for one of the candidates, and those that wait for these.
    async fn add_freed(&mut self, candidates: &mut Vec<Candidate>) -> Result<(), StoreError> {
        let mut fresh: Vec<Cid> = candidates
            .iter()
            .map(|candidate| candidate.received.cid)
            .filter(|cid| self.awaited.incomplete || self.awaited.cids.contains(cid))
            .collect();
        let mut added = AHashSet::new();
        while !fresh.is_empty() {
            self.wait_until_committed().await;
            let kept = self.store.refusals_awaiting(&fresh).await?;
            fresh.clear();
            for refusal in kept {
                let Ok(received) = Received::decode(&refusal.refusal.line) else { continue };
                if added.insert(refusal.id) {
                    fresh.push(received.cid);
                    candidates.push(Candidate {
                        place: Place::Kept(refusal.id),
                        received,
                        number_held_by: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// Finds out which other operations hold the numbers of the candidates. Numbers above all
    /// that were seen are free, and in the ordinary course all of them are.
    async fn find_holders_of_numbers(
        &mut self,
        candidates: &mut [Candidate],
    ) -> Result<(), StoreError> {
        let mut numbers: Vec<i64> = candidates
            .iter()
            .filter_map(|candidate| candidate.received.sequence)
            .filter(|&number| number <= self.highest_sequence)
            .collect();
        if numbers.is_empty() {
            return Ok(());
        }
        numbers.sort_unstable();
        numbers.dedup();
        self.wait_until_committed().await;
        let holders: AHashMap<i64, (Did, Cid)> = self
            .store
            .sequences(&numbers)
            .await?
            .into_iter()
            .filter_map(|held| Some((held.sequence?, (held.did, held.cid()))))
            .collect();
        for candidate in candidates {
            let received = &candidate.received;
            let holder = received.sequence.and_then(|number| holders.get(&number));
            candidate.number_held_by = holder
                .filter(|(did, cid)| (*did, *cid) != (received.did, received.cid))
                .map(|(_, cid)| *cid);
        }
        Ok(())
    }

    /// Gives every group its chain: from memory, or all others in one query.
    async fn load_chains(&mut self, groups: &mut [(Did, Group)]) -> Result<(), StoreError> {
        let mut missing = Vec::new();
        for (did, group) in groups.iter_mut() {
            match self.chains.take(did) {
                Some(chain) => group.chain = chain,
                None => missing.push(*did),
            }
        }
        metrics::cache("chains", groups.len() - missing.len(), missing.len());
        if missing.is_empty() {
            return Ok(());
        }
        let stored = self.store.histories(&missing).await?;
        if stored.is_empty() {
            return Ok(());
        }
        let loaded = on_cores(move || chains::from_stored(&stored)).await?;
        let mut loaded: AHashMap<Did, _> = loaded.into_iter().collect();
        for (did, group) in groups {
            if let Some(chain) = loaded.remove(did) {
                group.chain = chain;
            }
        }
        Ok(())
    }

    /// Waits until the store knows everything that was judged so far. Ends early when nobody
    /// commits any more: what is prepared then is never written.
    async fn wait_until_committed(&mut self) {
        let judged = self.judged;
        self.committed.wait_for(|&committed| committed >= judged).await.ok();
    }
}

fn is_not_json(decoded: &Result<Received, Undecodable>) -> bool {
    matches!(decoded, Err(Undecodable { refusal: Refusal::NotJson { .. }, .. }))
}

/// The number that a line states.
fn number(decoded: &Result<Received, Undecodable>) -> Option<i64> {
    match decoded {
        Ok(received) => received.sequence,
        Err(undecodable) => undecodable.sequence,
    }
}

/// The cursor after lines with these numbers: the last one, where that is further than before, since
/// an upstream sends them in order; should it not, the highest one rather than none at all.
pub(super) fn cursor_after(before: i64, numbers: impl Iterator<Item = i64>) -> i64 {
    let (last, highest) =
        numbers.fold((before, before), |(_, highest), number| (number, highest.max(number)));
    if last > before { last } else { highest }
}

/// Where to cut a batch so that in no part two different operations claim one number; the last
/// cut is its end.
fn ends_of_unique_numbers(decoded: &[Result<Received, Undecodable>]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut claims: AHashMap<i64, (Did, Cid)> = AHashMap::with_capacity(decoded.len());
    for (index, received) in decoded.iter().enumerate() {
        let Ok(received) = received else { continue };
        let Some(number) = received.sequence else { continue };
        let claim = (received.did, received.cid);
        if claims.insert(number, claim).is_some_and(|earlier| earlier != claim) {
            ends.push(index);
            claims.clear();
            claims.insert(number, claim);
        }
    }
    ends.push(decoded.len());
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(number: Option<i64>, operation: u8) -> Result<Received, Undecodable> {
        Ok(Received {
            did: Did::from_bytes([operation; 15]),
            cid: Cid::of(&[operation]),
            stated_cid: None,
            created_at: Timestamp::from_millis(0),
            sequence: number,
            nullified: None,
            received_at: None,
            signed: Bytes::new(),
        })
    }

    #[test]
    fn the_cursor_follows_the_last_line_that_leads_further() {
        let cursor = |before, numbers: &[i64]| cursor_after(before, numbers.iter().copied());
        assert_eq!(cursor(4, &[]), 4);
        assert_eq!(cursor(4, &[5, 6, 7]), 7);
        // A number far ahead does not make us skip what comes after it.
        assert_eq!(cursor(4, &[5, 1_000_000, 6, 7]), 7);
        // An operation that was accepted late, at the end of a burst.
        assert_eq!(cursor(99, &[100, 101, 57]), 101);
        assert_eq!(cursor(99, &[57]), 99);
    }

    #[test]
    fn a_batch_is_cut_where_a_number_is_claimed_by_another_operation() {
        let batch = [
            received(Some(1), 1),
            received(None, 2),
            received(Some(1), 1),
            received(Some(1), 3),
            received(None, 2),
            received(Some(2), 4),
            received(Some(1), 1),
        ];
        assert_eq!(ends_of_unique_numbers(&batch), [3, 6, 7]);
        assert_eq!(ends_of_unique_numbers(&[]), [0]);
    }
}
