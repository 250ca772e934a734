//! One part after the other: completed with what the store knows, judged, and turned into a commit.

use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use tokio::sync::watch;

use super::chains::{self, ChainCache};
use super::cut::Part;
use super::outcome::{Assembly, Prepared};
use super::verdict::{self, Candidate, Group, Judged, LineRef};
use crate::blocking;
use crate::metrics;
use crate::store::{Commit, Rejudged, Store, StoreError, audit_log};
use did_plc::entry::Received;
use did_plc::signature::Verifier;
use did_plc::{Cid, Did, Timestamp};

/// Memory of the chains that are kept: some 100,000 operations; most updates follow soon upon what they
/// update.
const CHAINS_BYTES: usize = 32 << 20;

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
    chains: ChainCache,
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

impl Awaited {
    fn may_include(&self, cid: &Cid) -> bool {
        self.incomplete || self.cids.contains(cid)
    }

    /// Adds what the refusals of a commit wait for.
    fn add(&mut self, commit: &Commit) {
        let rejudged = commit.rejudged.iter().filter_map(|rejudged| match rejudged {
            Rejudged::Refused { awaits, .. } => *awaits,
            Rejudged::Accepted { .. } => None,
        });
        let refused = commit.refusals.iter().filter_map(|refusal| refusal.awaits);
        for cid in refused.chain(rejudged) {
            if self.cids.len() < MAX_AWAITED {
                self.cids.insert(cid);
            } else {
                self.incomplete = true;
            }
        }
    }
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
            chains: ChainCache::with_room_for(CHAINS_BYTES),
            awaited: Awaited { cids: cids.into_iter().collect(), incomplete },
            highest_sequence,
            latest: None,
            judged: 0,
            committed,
        })
    }

    /// Judges a part. It may wait until what was judged before is committed.
    ///
    /// # Errors
    ///
    /// Those of the store. What was judged before the error must not be relied on any more.
    pub async fn judge(&mut self, part: Part) -> Result<Prepared, StoreError> {
        let backdated_before = part.live.then(|| self.backdated_before(part.received_at));
        let (mut assembly, mut candidates) =
            Assembly::begin(part, self.upstream.clone(), backdated_before);
        self.add_freed(&mut candidates).await?;
        self.find_holders_of_numbers(&mut candidates).await?;
        let mut groups = verdict::group(candidates.into_iter());
        self.load_chains(&mut groups).await?;
        let (groups, judged) = self.judge_groups(groups).await;
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

    /// The verdicts in the order of the lines, kept ones at the end, and the chains with what was accepted.
    async fn judge_groups(
        &self,
        mut groups: Vec<(Did, Group)>,
    ) -> (Vec<(Did, Group)>, Vec<Judged>) {
        let verifier = Arc::clone(&self.verifier);
        let (groups, mut judged) = blocking::run("judging a batch", move || {
            let judged = verdict::judge(&mut groups, &*verifier);
            (groups, judged)
        })
        .await;
        judged.sort_by_key(|judged| match judged.candidate.line {
            LineRef::New(index) => (0, index as i64),
            LineRef::Kept(id) => (1, id),
        });
        (groups, judged)
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
        self.chains.note_committed(*self.committed.borrow());
        for (did, group) in groups {
            self.chains.put(did, group.chain, prepared.batch);
            // The store has what finds no room any more.
            while self.chains.pop_beyond(1).is_some() {}
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
        self.awaited.add(commit);
    }

    /// Adds kept refusals that wait for one of the candidates, and those that wait for these.
    async fn add_freed(&mut self, candidates: &mut Vec<Candidate>) -> Result<(), StoreError> {
        let mut fresh: Vec<Cid> = candidates
            .iter()
            .map(|candidate| candidate.received.cid)
            .filter(|cid| self.awaited.may_include(cid))
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
                    candidates.push(Candidate::kept(refusal.id, received));
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
        let loaded = blocking::run("reading chains", move || chains::from_stored(&stored)).await?;
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
