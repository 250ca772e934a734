//! What the store holds depends on what exists, and not on how it came: any order, any batches, any number of
//! times, in any envelope, with the process killed in between, on both backends.

use std::sync::Arc;

use bytes::Bytes;
use did_plc::signature::Verifier;
use plc_curve::{FastVerifier, Tables};
use plc_testkit::Generated;
use plc_testkit::builder::Story;
use plc_testkit::happenings::{self, modelled, shuffled};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use crate::contract::Place;
use crate::fuzz::targets::any_order::{is_as_modelled, take};

/// Identities whose stories are told at once, in one log.
const IDENTITIES: usize = 120;
/// How often that log is shuffled for each backend, unless PLC_SHUFFLES says otherwise: with 420 of them
/// 100,800 stories come in another order than they happened.
const SHUFFLES: usize = 6;

fn shuffles() -> usize {
    std::env::var("PLC_SHUFFLES").ok().and_then(|text| text.parse().ok()).unwrap_or(SHUFFLES)
}

/// A log of many identities.
pub fn log(seed: u64) -> Vec<Generated> {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    happenings::log(&mut Story::seeded(seed), &mut random, IDENTITIES)
}

async fn any_order_leads_to_the_same(place: impl AsyncFn() -> Option<Place>) {
    let verifier: Arc<dyn Verifier> = Arc::new(FastVerifier::new(Tables::On));
    let mut stories = 0;
    let first = std::env::var("PLC_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + shuffles().div_ceil(6) as u64 {
        let log = log(seed);
        let (expected, expected_refused) = modelled(&log);
        let nullified = expected.values().flatten().filter(|row| row.4.is_some()).count();
        let (operations, refusals) = (expected.values().flatten().count(), expected_refused.len());
        assert!(
            nullified > IDENTITIES / 8 && refusals > IDENTITIES / 2 && operations > 2 * IDENTITIES,
            "the stories are too tame: {operations} operations, {nullified} nullified, {refusals} refused"
        );
        let mut first_refused = None;
        for order in 0..6 {
            let mut random = ChaCha20Rng::seed_from_u64(1_000 * seed + order);
            let lines = shuffled(&log, &mut random).into_iter().map(Bytes::from).collect();
            let Some(place) = place().await else { return };
            let store = take(async || place.open().await, &verifier, lines, &mut random).await;
            let case = format!("seed {seed}, order {order}");
            let refused = is_as_modelled(&store, &*verifier, &log, &case).await;
            let first = first_refused.get_or_insert_with(|| refused.clone());
            for (refused, first) in refused.iter().zip(&*first) {
                assert_eq!(refused, first, "{case}");
            }
            assert_eq!(refused.len(), first.len(), "{case}");
            stories += IDENTITIES;
        }
    }
    println!("{stories} stories in another order than they happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_leads_to_the_same_on_sqlite() {
    any_order_leads_to_the_same(async || Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_leads_to_the_same_on_postgres() {
    any_order_leads_to_the_same(Place::postgres).await;
}
