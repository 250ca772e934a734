//! Lines of a log that come in any batches, with the process killed in between; and that what is held of them then is
//! what the model says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use did_plc::Timestamp;
use did_plc::signature::Verifier;
use plc_replica::audit::fsck;
use plc_replica::judge::{BatchJudge, Course, Cut, Decoded, Lines, NotJson};
use plc_replica::store::{NewRefusal, Store, StoredOperation};
use plc_testkit::Generated;
use plc_testkit::happenings::{Rows, modelled};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use tokio::sync::watch;

const UPSTREAM: &str = "https://plc.example";

/// Takes lines in, in batches of any size, with the process killed now and then: what was judged and not
/// committed is lost, and comes again. `open` opens the store as each process finds it.
pub async fn take(
    open: impl AsyncFn() -> Store,
    verifier: &Arc<dyn Verifier>,
    mut lines: Vec<Bytes>,
    random: &mut impl Rng,
) -> Store {
    lines.reverse();
    'process: loop {
        let store = open().await;
        let (lease, source) = store.follow(UPSTREAM).await.unwrap();
        let (committed, receiver) = watch::channel(0);
        let verifier = Arc::clone(verifier);
        let mut judge =
            BatchJudge::new(store.clone(), verifier, UPSTREAM.to_owned(), receiver).await.unwrap();
        while !lines.is_empty() {
            let size = *[1, 2, 7, 60, 400].choose(random).unwrap();
            let batch = lines.split_off(lines.len().saturating_sub(size));
            let course = if random.random_bool(0.5) { Course::Again } else { Course::Elsewhere };
            let decoded = Decoded::from_lines(batch.iter().rev().cloned().collect()).await;
            let received_at = Timestamp::from_millis(1_800_000_000_000);
            let taken = Lines { decoded, received_at, caught_up: false, course, source: None };
            let cut = Cut::of(taken, source.cursor, NotJson::Keep, false);
            // What comes next is read ahead, or not.
            let ahead = *[0, 7, 100].choose(random).unwrap();
            let next = Decoded::from_lines(lines.iter().rev().take(ahead).cloned().collect()).await;
            let prepared = judge.judge(cut.part, &next.dids()).await.unwrap();
            if random.random_bool(0.05) {
                // Killed before the commit: whoever comes next has all of it still to come.
                lines.extend(batch);
                store.release(lease).await.unwrap();
                continue 'process;
            }
            store.commit(&lease, &prepared.commit).await.unwrap();
            committed.send_replace(prepared.batch);
        }
        store.release(lease).await.unwrap();
        return store;
    }
}

/// Makes sure that what is held and what stands refused is what the model makes of the log, and that `fsck` finds
/// nothing; what stands refused is returned. `case` is said where something differs.
pub async fn is_as_modelled(
    store: &Store,
    verifier: &dyn Verifier,
    log: &[Generated],
    case: &str,
) -> Vec<NewRefusal> {
    let (expected, expected_refused) = modelled(log);
    let held = held(store).await;
    for (did, rows) in &expected {
        assert_eq!(held.get(did), Some(rows), "{did}, {case}");
    }
    assert_eq!(held.len(), expected.len(), "{case}");
    let refused = refused(store).await;
    let cids = refused.iter().filter_map(|refusal| Some(refusal.cid?.to_string()));
    let cids: BTreeSet<String> = cids.collect();
    assert_eq!(cids, expected_refused, "{case}");
    let mut damages = Vec::new();
    fsck::check(store, verifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    assert_eq!(damages, [], "{case}");
    refused
}

async fn held(store: &Store) -> BTreeMap<String, Rows> {
    let mut rows: BTreeMap<String, Rows> = BTreeMap::new();
    let mut after = None;
    loop {
        let page: Vec<StoredOperation> = store.next_histories(after, 1_000).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.did);
        for operation in page {
            rows.entry(operation.did.to_string()).or_default().push((
                operation.cid().to_string(),
                operation.created_at,
                operation.sequence,
                operation.signer.into(),
                operation.nullified_by,
            ));
        }
    }
    for held in rows.values_mut() {
        held.sort_by_key(|row| (row.1, row.0.clone()));
    }
    rows
}

/// What stands on record as refused: operations. A damaged line is refused where its operation is not known yet, and
/// is a difference where it is.
async fn refused(store: &Store) -> Vec<NewRefusal> {
    let kept = store.refusals(None, 0, 1_000_000).await.unwrap().into_iter();
    let standing = kept.filter(|kept| kept.accepted_at.is_none()).map(|kept| kept.refusal);
    let mut operations: Vec<NewRefusal> =
        standing.filter(|refusal| refusal.kind != "cid-mismatch").collect();
    operations.sort_by_key(|refusal| refusal.key);
    operations
}
