//! One part after the other: completed with what the store knows, judged, and turned into a commit.

use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use tokio::sync::watch;

use super::ahead::{self, Ahead};
use super::chains::ChainCache;
use super::cut::{Course, Part};
use super::newcomers::Newcomers;
use super::numbers::{Holder, Numbers};
use super::outcome::{Assembly, Prepared};
use super::verdict::{self, Candidate, Group, Judged};
use super::whole::{self, Known, Whole};
use crate::blocking;
use crate::metrics;
use crate::store::{Commit, Store, StoreError, StoredOperation, audit_log};
use did_plc::signature::Verifier;
use did_plc::{Cid, Did, Timestamp};

/// Memory of the chains that are kept: some 100,000 operations; most updates follow soon upon what they
/// update.
const CHAINS_BYTES: usize = 28 << 20;

/// Identities of which a refusal stands that are kept in memory, to tell at once whether more is known of one
/// than its chain: 32 MB at most. With more than this on record the store is asked about those of each batch.
const MAX_REFUSED: usize = 1_000_000;
/// How many of them are read at once.
const REFUSED_PAGE: usize = 10_000;

/// How long an operation may take to come here live, clocks that differ included. An upstream that
/// is a replica itself may have stood still for some minutes.
const UNDER_WAY: Duration = Duration::from_secs(10 * 60);
/// How far `createdAt` may go back from one operation to the next: transactions of the directory
/// do not end in the order in which they began.
const OUT_OF_ORDER: Duration = Duration::from_secs(60);

/// The operations of several identities.
type Groups = Vec<(Did, Group)>;

/// Judges batches one after the other, each on top of those before it, committed or not.
pub struct BatchJudge {
    store: Store,
    verifier: Arc<dyn Verifier>,
    /// Who states what is judged.
    source: String,
    chains: ChainCache,
    /// What the store holds of the identities of the next batch.
    ahead: Ahead,
    refused: RefusedIdentities,
    /// While a store that was empty is filled.
    newcomers: Option<Newcomers>,
    /// No operation that was seen so far has a higher number.
    highest_sequence: i64,
    /// The latest `createdAt` that was accepted so far.
    latest: Option<Timestamp>,
    /// The numbers of stored operations are an earlier upstream's.
    renumbering: bool,
    /// Number of the batch that was judged last.
    judged: u64,
    /// Number of the batch that was committed last.
    committed: watch::Receiver<u64>,
}

/// The identities of which a refusal stands, or stood: with one, what comes is judged with all that is known.
struct RefusedIdentities {
    dids: AHashSet<Did>,
    /// There are more than are kept here.
    incomplete: bool,
}

impl RefusedIdentities {
    async fn read(store: &Store) -> Result<RefusedIdentities, StoreError> {
        let mut refused = RefusedIdentities { dids: AHashSet::new(), incomplete: false };
        let mut after = 0;
        loop {
            let (dids, last) = store.refused_identities(after, REFUSED_PAGE).await?;
            if dids.is_empty() {
                return Ok(refused);
            }
            dids.iter().for_each(|did| refused.add(did));
            after = last;
        }
    }

    /// Adds an identity as a line states it. What is no DID has no chain either.
    fn add(&mut self, did: &str) {
        let Ok(did) = did.parse() else { return };
        if self.dids.len() < MAX_REFUSED {
            self.dids.insert(did);
        } else {
            self.incomplete |= !self.dids.contains(&did);
        }
    }
}

impl BatchJudge {
    /// A judge that knows nothing yet of what is in the store. Records and refusals name `source` as who stated
    /// the lines: the URL of an upstream, or the name of a file.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn new(
        store: Store,
        verifier: Arc<dyn Verifier>,
        source: String,
        committed: watch::Receiver<u64>,
    ) -> Result<BatchJudge, StoreError> {
        let refused = RefusedIdentities::read(&store).await?;
        let highest_sequence = store.last_sequence().await?.unwrap_or(0);
        let renumbering = store.source().await?.is_some_and(|source| source.renumbering);
        let is_empty = store.next_identity(None).await?.is_none();
        Ok(BatchJudge {
            newcomers: is_empty.then(Newcomers::of_nothing),
            store,
            verifier,
            source,
            chains: ChainCache::with_room_for(CHAINS_BYTES),
            ahead: Ahead::nothing(),
            refused,
            highest_sequence,
            latest: None,
            renumbering,
            judged: 0,
            committed,
        })
    }

    /// Judges a part. It may wait until what was judged before is committed. Meanwhile what the store holds of the
    /// identities of the `next` one is read, as far as those are known.
    ///
    /// # Errors
    ///
    /// Those of the store. What was judged before the error must not be relied on any more.
    pub async fn judge(&mut self, part: Part, next: &[Did]) -> Result<Prepared, StoreError> {
        let (received_at, course) = (part.received_at, part.course);
        let backdated_before =
            (course == Course::Stream).then(|| self.backdated_before(received_at));
        let source = part.source.as_deref().unwrap_or(&self.source).to_owned();
        let renumbering = self.renumbering;
        self.renumbering &= !part.caught_up;
        let (mut assembly, candidates) =
            Assembly::begin(part, source, backdated_before, renumbering);
        let holders = self.holders_of_numbers(&candidates).await?;
        let numbers_ascend = holders.is_none();
        let holders = holders.unwrap_or_default();
        let mut groups = verdict::group(candidates.into_iter());
        self.load_chains(&mut groups, next).await?;
        let refused = self.refused_of(&groups).await?;
        let (mut ordered, late) = divide(groups, &holders, &refused, course);
        let mut wholes = self.judge_whole(late, received_at, course).await?;
        let judged;
        (ordered, judged) = self.judge_groups(ordered).await;
        let mut numbers = (!numbers_ascend || !wholes.is_empty())
            .then(|| numbers(&judged, &wholes, &holders, course));
        if let Some(numbers) = &mut numbers {
            self.number_freed(&wholes, numbers).await?;
            give_numbers(&mut ordered, numbers);
        }
        let chains: AHashMap<Did, &Group> =
            ordered.iter().map(|(did, group)| (*did, group)).collect();
        for judged in judged {
            assembly.add(judged, &chains, numbers.as_ref());
        }
        drop(chains);
        // Where there are such, there are numbers.
        if let Some(numbers) = &numbers {
            wholes.iter_mut().for_each(|whole| assembly.add_whole(whole, numbers));
        }
        let mut prepared = assembly.finish(self.judged + 1);
        self.add_our_side(&mut prepared.commit).await?;
        self.remember(ordered, wholes, &prepared);
        Ok(prepared)
    }

    /// Those of these identities of which a refusal stands, or stood.
    async fn refused_of(&mut self, groups: &Groups) -> Result<AHashSet<Did>, StoreError> {
        let dids = groups.iter().map(|(did, _)| *did);
        let kept = &self.refused.dids;
        let mut refused: AHashSet<Did> = dids.clone().filter(|did| kept.contains(did)).collect();
        if self.refused.incomplete {
            let dids: Vec<Did> = dids.filter(|did| !refused.contains(did)).collect();
            // What was refused just now may be nowhere else.
            self.wait_until_committed().await;
            let standing = self.store.standing_refusals(&dids).await?;
            refused.extend(standing.iter().filter_map(|kept| kept.refusal.did.parse::<Did>().ok()));
        }
        Ok(refused)
    }

    /// Judges identities with everything that the store knows of them.
    async fn judge_whole(
        &mut self,
        late: Vec<(Did, Group)>,
        received_at: Timestamp,
        course: Course,
    ) -> Result<Vec<Whole>, StoreError> {
        if late.is_empty() {
            return Ok(Vec::new());
        }
        self.wait_until_committed().await;
        let dids: Vec<Did> = late.iter().map(|(did, _)| *did).collect();
        let mut stored: AHashMap<Did, Vec<StoredOperation>> = AHashMap::new();
        for operation in self.store.histories(&dids).await? {
            stored.entry(operation.did).or_default().push(operation);
        }
        let mut refused: AHashMap<String, Vec<_>> = AHashMap::new();
        for refusal in self.store.standing_refusals(&dids).await? {
            refused.entry(refusal.refusal.did.clone()).or_default().push(refusal);
        }
        let known = late.into_iter().map(|(did, group)| Known {
            did,
            stored: stored.remove(&did).unwrap_or_default(),
            refused: refused.remove(&did.to_string()).unwrap_or_default(),
            candidates: group.candidates,
            takes_times: course == Course::Second,
        });
        let known: Vec<Known> = known.collect();
        let verifier = Arc::clone(&self.verifier);
        let judge = move || whole::judge(known, &*verifier, received_at);
        blocking::run("judging identities as a whole", judge).await
    }

    /// The verdicts in the order of the lines, and the chains with what was accepted.
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
        judged.sort_by_key(|judged| judged.candidate.line);
        (groups, judged)
    }

    /// Puts our side beside the differences that were noticed: the whole log of the identity as it
    /// is with this commit, which can be verified by itself, and beside further differences of the same identity the
    /// operation that each is about. An upstream can state all of a long log otherwise.
    async fn add_our_side(&mut self, commit: &mut Commit) -> Result<(), StoreError> {
        if commit.divergences.is_empty() {
            return Ok(());
        }
        self.wait_until_committed().await;
        let mut divergences = std::mem::take(&mut commit.divergences);
        let mut shown: AHashMap<Did, AHashMap<String, StoredOperation>> = AHashMap::new();
        for divergence in &mut divergences {
            let Ok(did) = divergence.did.parse::<Did>() else { continue };
            divergence.ours = match shown.get(&did) {
                Some(held) => {
                    let one = held.get(&divergence.subject);
                    one.map(|one| audit_log(std::slice::from_ref(one)))
                }
                None => {
                    let held = self.history_with(commit, did).await?;
                    let log = audit_log(&held);
                    let by_cid = held.into_iter().map(|row| (row.cid().to_string(), row));
                    shown.insert(did, by_cid.collect());
                    Some(log)
                }
            };
        }
        commit.divergences = divergences;
        Ok(())
    }

    /// An identity's operations as they are with a commit.
    async fn history_with(
        &self,
        commit: &Commit,
        did: Did,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        if let Some(rewritten) = commit.rewritten.iter().find(|rewritten| rewritten.did == did) {
            return Ok(rewritten.operations.clone());
        }
        let mut held = self.store.history(&did).await?;
        held.extend(commit.operations.iter().filter(|new| new.did == did).cloned());
        for (_, at, by) in commit.nullified.iter().filter(|(other, ..)| *other == did) {
            let nullified = held.iter_mut().filter(|held| held.created_at == *at);
            nullified.for_each(|held| held.nullified_by = Some(*by));
        }
        Ok(held)
    }

    /// Before which time the `createdAt` of an operation that came live is recorded: well before
    /// it was received, or before another one that was received already.
    fn backdated_before(&self, received_at: Timestamp) -> Timestamp {
        let by_order = self.latest.map(|latest| latest - OUT_OF_ORDER);
        by_order.map_or(received_at - UNDER_WAY, |order| order.max(received_at - UNDER_WAY))
    }

    /// Keeps what the next batches need to know of this one.
    fn remember(&mut self, groups: Vec<(Did, Group)>, wholes: Vec<Whole>, prepared: &Prepared) {
        self.judged = prepared.batch;
        self.chains.note_committed(*self.committed.borrow());
        let groups = groups.into_iter().map(|(did, group)| (did, group.chain));
        for (did, chain) in groups.chain(wholes.into_iter().map(|whole| (whole.did, whole.chain))) {
            if let Some(newcomers) = self.newcomers.as_mut().filter(|_| !chain.links().is_empty()) {
                newcomers.add(&did);
            }
            self.chains.put(did, chain, prepared.batch);
            // The store has what finds no room any more.
            while self.chains.pop_beyond(1).is_some() {}
        }
        let commit = &prepared.commit;
        if commit.caught_up {
            // From here on few are new, and all are looked for.
            self.newcomers = None;
        }
        let rewritten = commit.rewritten.iter().flat_map(|rewritten| &rewritten.operations);
        let received_at = Timestamp::from_millis(commit.received_at_millis);
        // One from the future would make all that follow look old.
        let times = commit.operations.iter().map(|operation| operation.created_at.min(received_at));
        self.latest = self.latest.max(times.max());
        let operations = commit.operations.iter().chain(rewritten);
        let numbers = operations.filter_map(|operation| operation.sequence);
        let numbered = commit.numbered.iter().map(|(_, _, number)| *number);
        self.highest_sequence =
            numbers.chain(numbered).fold(self.highest_sequence, |highest, n| highest.max(n));
        commit.refusals.iter().for_each(|refusal| self.refused.add(&refusal.did));
    }

    /// The operations that have the numbers which are stated for others, where a number is stated that could
    /// be somebody's already. In the ordinary course all are above those that were seen, and ascend: none then.
    async fn holders_of_numbers(
        &mut self,
        candidates: &[Candidate],
    ) -> Result<Option<AHashMap<i64, Holder>>, StoreError> {
        let stated = || candidates.iter().filter_map(|candidate| candidate.received.sequence);
        let first_new = self.highest_sequence.saturating_add(1);
        if stated().next().is_none_or(|first| first >= first_new)
            && stated().is_sorted_by(|a, b| a < b)
        {
            return Ok(None);
        }
        let mut numbers: Vec<i64> =
            stated().filter(|&number| number <= self.highest_sequence).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() {
            return Ok(Some(AHashMap::new()));
        }
        self.wait_until_committed().await;
        let mut claims: AHashMap<i64, Vec<Holder>> = AHashMap::new();
        for Candidate { received, .. } in candidates {
            if let Some(number) = received.sequence {
                claims.entry(number).or_default().push((received.did, received.cid));
            }
        }
        let held = self.store.sequences(&numbers).await?.into_iter();
        let holders = held.filter_map(|held| Some((held.sequence?, (held.did, held.cid()))));
        let is_claimed_by_another = |(number, holder): &(i64, Holder)| {
            claims.get(number).is_some_and(|claims| claims.iter().any(|claim| claim != holder))
        };
        Ok(Some(holders.filter(is_claimed_by_another).collect()))
    }

    /// What was refused before and is accepted now has the number that was stated for it, unless that is
    /// another's: it was stated long ago.
    async fn number_freed(
        &self,
        wholes: &[Whole],
        numbers: &mut Numbers,
    ) -> Result<(), StoreError> {
        let mut freed: Vec<(i64, i64, Holder)> = wholes
            .iter()
            .flat_map(|whole| {
                whole.freed.iter().map(|&(id, number, cid)| (id, number, (whole.did, cid)))
            })
            .collect();
        if freed.is_empty() {
            return Ok(());
        }
        let stated: Vec<i64> = freed.iter().map(|(_, number, _)| *number).collect();
        for held in self.store.sequences(&stated).await? {
            if let Some(number) = held.sequence {
                numbers.leave(number, (held.did, held.cid()));
            }
        }
        // Of several the one that was refused last.
        freed.sort_unstable_by(|a, b| b.cmp(a));
        for (_, number, holder) in freed {
            numbers.leave(number, holder);
        }
        Ok(())
    }

    /// Gives every group its chain: from memory, or else from the store, which may have been asked already.
    async fn load_chains(&mut self, groups: &mut Groups, next: &[Did]) -> Result<(), StoreError> {
        let mut ahead = std::mem::replace(&mut self.ahead, Ahead::nothing()).loaded().await?;
        self.ahead = self.look_ahead(groups, next);
        let (mut missing, mut read) = (Vec::new(), 0);
        for (did, group) in groups.iter_mut() {
            // Memory goes first: it has what came after the store was asked.
            if let Some(chain) = self.chains.take(did) {
                group.chain = chain;
            } else if let Some(chain) = ahead.remove(did) {
                group.chain = chain;
                read += 1;
            } else if !self.is_new(did) {
                missing.push(*did);
            }
        }
        read += missing.len();
        metrics::cache("chains", groups.len() - read, read);
        if missing.is_empty() {
            return Ok(());
        }
        let mut loaded = ahead::load(&self.store, &missing).await?;
        for (did, group) in groups {
            if let Some(chain) = loaded.remove(did) {
                group.chain = chain;
            }
        }
        Ok(())
    }

    /// Asks the store about the identities of the next batch that are not in memory. All that is known of those is
    /// committed, for what is not is in memory; what this batch changes of them is in memory when they are judged.
    fn look_ahead(&self, groups: &Groups, next: &[Did]) -> Ahead {
        let now: AHashSet<&Did> = groups.iter().map(|(did, _)| did).collect();
        let is_known = |did: &Did| now.contains(did) || self.chains.get(did).is_some();
        let others: AHashSet<Did> = next.iter().filter(|did| !is_known(did)).copied().collect();
        let (new, held) = others.into_iter().partition(|did| self.is_new(did));
        Ahead::of(&self.store, held, new)
    }

    /// Whether the store is known not to hold this identity.
    fn is_new(&self, did: &Did) -> bool {
        // Nobody else has written since the store was empty: our lease would be over.
        self.newcomers.as_ref().is_some_and(|held| held.is_new(did))
    }

    /// Waits until the store knows everything that was judged so far. Ends early when nobody
    /// commits any more: what is prepared then is never written.
    async fn wait_until_committed(&mut self) {
        let judged = self.judged;
        self.committed.wait_for(|&committed| committed >= judged).await.ok();
    }
}

/// Those that come after all that is known of their identities, and those that are judged with it: what has come
/// late, what is to be judged with its refusals, and whoever may lose a number to another identity.
fn divide(
    groups: Groups,
    holders: &AHashMap<i64, Holder>,
    refused: &AHashSet<Did>,
    course: Course,
) -> (Groups, Groups) {
    let losing: AHashSet<Did> = holders.values().map(|(did, _)| *did).collect();
    let (ordered, mut late): (Vec<_>, Vec<_>) = groups.into_iter().partition(|(did, group)| {
        group.is_in_order()
            && (course != Course::Second || group.agrees_on_times())
            && !losing.contains(did)
            && !refused.contains(did)
    });
    let mut left = losing;
    late.iter().for_each(|(did, _)| {
        left.remove(did);
    });
    late.extend(left.into_iter().map(|did| (did, Group::default())));
    (ordered, late)
}

/// Gives the links of chains the numbers that their operations have now. Each has the one that was stated for it in
/// its identity until here, which may be another's.
fn give_numbers(groups: &mut [(Did, Group)], numbers: &Numbers) {
    for (did, group) in groups {
        let links = group.chain.links().iter();
        let given: Vec<(Cid, Option<i64>)> =
            links.map(|link| (link.cid, numbers.number((*did, link.cid), link.sequence))).collect();
        for (cid, number) in given {
            group.chain.set_number(&cid, number);
        }
    }
}

/// The numbers that the batch states. What is refused has none here, and yet nobody else has the number that the
/// upstream gives it.
fn numbers(
    judged: &[Judged],
    wholes: &[Whole],
    holders: &AHashMap<i64, Holder>,
    course: Course,
) -> Numbers {
    let mut numbers = Numbers::default();
    let gives_others = course.states_numbers();
    let in_order = judged.iter().filter(|judged| gives_others || judged.has_no_number());
    let of_wholes = wholes.iter().flat_map(|whole| {
        let numbered = if gives_others { AHashSet::new() } else { numbered(&whole.stored) };
        let is_to_have = move |of: &&Candidate| !numbered.contains(&of.received.cid);
        whole.candidates.iter().filter(is_to_have)
    });
    for Candidate { line, received } in in_order.map(|judged| &judged.candidate).chain(of_wholes) {
        // A line that is not what it says may be damaged in its number as well.
        if received.stated_cid.is_none() {
            numbers.state(*line, received);
        }
    }
    if !course.states_numbers() {
        numbers.leave_all(holders);
    }
    numbers
}

/// The stored operations that have a number.
fn numbered(stored: &[StoredOperation]) -> AHashSet<Cid> {
    stored.iter().filter(|row| row.sequence.is_some()).map(StoredOperation::cid).collect()
}

#[cfg(test)]
mod tests;
