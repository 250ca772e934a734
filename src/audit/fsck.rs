//! The store's check of itself: everything in it judged again from its own bytes.

use rayon::prelude::*;

use crate::blocking;
use crate::store::claims::{ClaimsIndex, pairs};
use crate::store::{Source, Store, StoreError, StoredOperation};
use did_plc::chain::{Acceptance, Chain, Link, Verdict};
use did_plc::signature::Verifier;
use did_plc::{Cid, Did, Timestamp};

/// Operations that are read at once: some megabytes, and enough for all cores.
const BLOCK: usize = 8_000;
/// Refusals that are read at once.
const REFUSALS: usize = 1_000;

/// A damaged row.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StoreDamage {
    /// Where: an identity and `createdAt`, or what the store says.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// What was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Operations.
    pub operations: u64,
    /// Identities.
    pub identities: u64,
    /// Damaged rows.
    pub damaged: u64,
}

/// Checks a whole store: that its tables are whole, that every operation reads back, that each chain is accepted again from
/// its genesis on with the same signers and the same nullified flags, that the index of claims has
/// what it says, and that the cursor is not beyond what was received. `found` is called for each damaged row, `progress` with the number
/// of operations so far.
///
/// # Errors
///
/// When the store cannot be read at all.
pub async fn check(
    store: &Store,
    verifier: &dyn Verifier,
    mut found: impl FnMut(StoreDamage),
    mut progress: impl FnMut(u64),
) -> Result<Checked, StoreError> {
    let mut checked = Checked::default();
    for lacking in store.lacking().await? {
        checked.damaged += 1;
        found(StoreDamage {
            place: "the tables".to_owned(),
            reason: format!("{lacking} is missing"),
        });
    }
    let mut highest = 0;
    // What is received meanwhile may lie behind this reading.
    let source = store.source().await?;
    // Only this reading says how far the index is: it grows while the store is checked, and what it
    // has at this moment stays in it.
    let index = store.claims_index().await?;
    let mut next = read(store, None).await?;
    while let Some(block) = next.take() {
        let after = block.after;
        // The next block is read while this one is checked.
        let reading = tokio::spawn({
            let store = store.clone();
            async move { read(&store, after).await }
        });
        let check = || check_block(&block.operations, verifier);
        let damages = blocking::run_here("checking stored operations", check);
        let unclaimed = match &index {
            Some(index) => check_claims(store, index, &block.operations).await?,
            None => Vec::new(),
        };
        checked.operations += block.operations.len() as u64;
        checked.identities += block.operations.chunk_by(|a, b| a.did == b.did).count() as u64;
        let numbers = block.operations.iter().filter_map(|operation| operation.sequence);
        highest = numbers.fold(highest, i64::max);
        for damage in block.damaged.into_iter().chain(damages).chain(unclaimed) {
            checked.damaged += 1;
            found(damage);
        }
        progress(checked.operations);
        next = match (after, reading.await) {
            (None, _) => None,
            (Some(_), Ok(next)) => next?,
            (Some(_), Err(error)) => std::panic::resume_unwind(error.into_panic()),
        };
    }
    if let Some(source) = source
        && let Some(damage) = check_cursor(store, &source, highest).await?
    {
        checked.damaged += 1;
        found(damage);
    }
    Ok(checked)
}

/// A run of whole identities.
struct WholeIdentities {
    operations: Vec<StoredOperation>,
    damaged: Option<StoreDamage>,
    /// Where the next block begins; none when this is the last.
    after: Option<Did>,
}

async fn read(store: &Store, after: Option<Did>) -> Result<Option<WholeIdentities>, StoreError> {
    match store.next_histories(after, BLOCK).await {
        Ok(operations) => {
            let after = operations.last().map(|operation| operation.did);
            Ok(after.map(|_| WholeIdentities { operations, damaged: None, after }))
        }
        Err(StoreError::Damaged { .. }) => read_around_damage(store, after).await,
        Err(error) => Err(error),
    }
}

/// Reads identity by identity where a row among them cannot be read, so that only that one is
/// left out.
async fn read_around_damage(
    store: &Store,
    mut after: Option<Did>,
) -> Result<Option<WholeIdentities>, StoreError> {
    let mut block = WholeIdentities { operations: Vec::new(), damaged: None, after };
    while block.operations.len() < BLOCK {
        let Some(did) = store.next_identity(after).await? else { break };
        match store.history(&did).await {
            Ok(history) => block.operations.extend(history),
            Err(StoreError::Damaged { place, reason }) => {
                block.damaged = Some(StoreDamage { place: format!("{did} ({place})"), reason });
            }
            Err(error) => return Err(error),
        }
        after = Some(did);
        block.after = after;
        if block.damaged.is_some() {
            break;
        }
    }
    let nothing = block.operations.is_empty() && block.damaged.is_none();
    Ok((!nothing).then_some(block))
}

fn check_block(operations: &[StoredOperation], verifier: &dyn Verifier) -> Vec<StoreDamage> {
    let histories: Vec<&[StoredOperation]> = operations.chunk_by(|a, b| a.did == b.did).collect();
    histories
        .par_iter()
        .with_min_len(HISTORIES)
        .flat_map_iter(|history| check_history(history, verifier))
        .collect()
}

/// Identities that one thread checks in a row.
const HISTORIES: usize = 8;

/// Judges one identity again from its genesis on.
fn check_history(history: &[StoredOperation], verifier: &dyn Verifier) -> Vec<StoreDamage> {
    let mut chain = Chain::default();
    let mut damages = Vec::new();
    for stored in history {
        if let Err(reason) = check_operation(stored, &mut chain, verifier) {
            damages.push(damage(stored, reason));
        }
    }
    // Flags say nothing beside a chain that does not verify.
    if damages.is_empty() {
        let flags = history.iter().zip(chain.links());
        damages.extend(flags.filter_map(|(stored, link)| check_flag(stored, link)));
    }
    damages
}

fn check_flag(stored: &StoredOperation, link: &Link) -> Option<StoreDamage> {
    if stored.nullified_by == link.nullified_by {
        return None;
    }
    let shown = |by: Option<Timestamp>| by.map_or("nothing".to_owned(), |at| at.to_string());
    let (is, leads) = (shown(stored.nullified_by), shown(link.nullified_by));
    Some(damage(stored, format!("stored as nullified by {is}, the chain leads to {leads}")))
}

fn check_operation(
    stored: &StoredOperation,
    chain: &mut Chain,
    verifier: &dyn Verifier,
) -> Result<(), String> {
    let received = stored.as_received();
    match chain.take(&received, verifier) {
        Verdict::Accepted(acceptance) if acceptance.signer == stored.signer => Ok(()),
        Verdict::Accepted(Acceptance { signer, .. }) => {
            Err(format!("signed by rotation key {signer}, stored is {}", stored.signer))
        }
        Verdict::Known(_) => Err(format!("{} is stored twice", received.cid)),
        Verdict::Refused(refusal) => {
            Err(format!("{} does not verify: {}: {refusal}", received.cid, refusal.kind()))
        }
    }
}

/// What is not in the index of claims and should be. Operations that cannot be read are found by
/// others.
async fn check_claims(
    store: &Store,
    index: &ClaimsIndex,
    operations: &[StoredOperation],
) -> Result<Vec<StoreDamage>, StoreError> {
    let has = |of: &&StoredOperation| of.sequence.map_or(index.begun, |at| at <= index.sequence);
    let of_each: Vec<(&StoredOperation, Vec<i64>)> = operations
        .iter()
        .filter(has)
        .filter_map(|stored| Some((stored, pairs([stored]).ok()?)))
        .collect();
    let mut all: Vec<i64> = of_each.iter().flat_map(|(_, pairs)| pairs).copied().collect();
    all.sort_unstable();
    all.dedup();
    let absent = store.absent_claims(&all).await?;
    let lacking =
        of_each.iter().filter(|(_, pairs)| pairs.iter().any(|pair| absent.contains(pair)));
    let reason = || "something that it claims is not in the index of claims".to_owned();
    Ok(lacking.map(|(stored, _)| damage(stored, reason())).collect())
}

fn damage(stored: &StoredOperation, reason: String) -> StoreDamage {
    StoreDamage { place: format!("{} at {}", stored.did, stored.created_at), reason }
}

/// A cursor beyond everything that was received, what is forgotten since included, would mean that something was
/// passed over. What was received there may have another number now.
async fn check_cursor(
    store: &Store,
    source: &Source,
    highest: i64,
) -> Result<Option<StoreDamage>, StoreError> {
    let mut received = highest.max(source.forgotten_up_to.unwrap_or(0));
    let mut after = 0;
    while received < source.cursor {
        let refusals = store.refusals(None, after, REFUSALS).await?;
        let Some(last) = refusals.last() else { break };
        after = last.id;
        let numbers = refusals.iter().filter_map(|kept| kept.refusal.sequence);
        received = numbers.fold(received, i64::max);
    }
    if received >= source.cursor || holds_what_was_there(store, source).await? {
        return Ok(None);
    }
    Ok(Some(StoreDamage {
        place: format!("the cursor of {}", source.upstream),
        reason: format!("it is {}, and nothing beyond {received} was ever received", source.cursor),
    }))
}

/// Whether the operation that the upstream stated under the cursor's number is held, under whatever number: an
/// upstream that gives its last operations lower ones leaves the cursor above all of them. Reads the log once more.
async fn holds_what_was_there(store: &Store, source: &Source) -> Result<bool, StoreError> {
    let stated = source.cursor_cid.as_deref().and_then(|cid| cid.parse::<Cid>().ok());
    let Some(stated) = stated else { return Ok(false) };
    let mut after = None;
    while let Some(block) = read(store, after).await? {
        if block.operations.iter().any(|operation| operation.cid() == stated) {
            return Ok(true);
        }
        after = block.after;
    }
    Ok(false)
}
