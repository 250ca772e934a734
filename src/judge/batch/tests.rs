//! Batches that are judged one after the other, on a store that is written behind them.

use std::collections::VecDeque;

use super::*;
use crate::clock;
use crate::judge::{Cut, Decoded, Lines, NotJson};
use bytes::Bytes;
use did_plc::signature::PlainVerifier;
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::LogEntry;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

/// A log in which the identities of a page are those of the pages before it, or new ones.
fn story(rng: &mut ChaCha20Rng) -> Story {
    let mut story = Story::seeded(rng.random());
    let mut identities = Vec::new();
    for _ in 0..300 {
        let recent = identities.len().min(40);
        if recent == 0 || rng.random_bool(0.3) {
            identities.push(story.create().accepted());
        } else {
            let which = identities.len() - 1 - rng.random_range(0..recent);
            story.update(&identities[which]).accepted();
        }
    }
    story
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_ahead_is_what_would_be_read() {
    for seed in 0..8 {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let story = story(&mut rng);
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("plc.db").display());
        let store = Store::open(&url).await.unwrap();
        let (lease, _) = store.follow("https://plc.example").await.unwrap();
        let (told, committed) = watch::channel(0);
        let verifier = Arc::new(PlainVerifier);
        let new = BatchJudge::new(store.clone(), verifier, String::new(), committed).await;
        let mut judge = new.unwrap();
        // Nothing stays in memory but what is not committed.
        judge.chains = ChainCache::with_room_for(0);
        if seed % 2 == 1 {
            judge.newcomers = None;
        }
        let lines: Vec<Bytes> =
            story.log().iter().map(|it| LogEntry::from(it).sequenced().into()).collect();
        let mut pages = VecDeque::new();
        for page in lines.chunks(rng.random_range(3..30)) {
            pages.push_back(Decoded::from_lines(page.to_vec()).await);
        }
        let (mut cursor, mut prepared) = (0, VecDeque::new());
        while let Some(decoded) = pages.pop_front() {
            let lines = Lines {
                decoded,
                received_at: clock::now(),
                caught_up: false,
                course: Course::Pages,
                source: None,
            };
            let next = pages.front().map(Decoded::dids).unwrap_or_default();
            let cut = Cut::of(lines, cursor, NotJson::Keep, true);
            prepared.push_back(judge.judge(cut.part, &next).await.unwrap());
            cursor = cut.cursor;
            while prepared.len() > rng.random_range(0..3) {
                let Prepared { batch, commit, .. } = prepared.pop_front().unwrap();
                assert!(commit.refusals.is_empty(), "{seed}");
                store.commit(&lease, &commit).await.unwrap();
                told.send_replace(batch);
            }
        }
        for rest in prepared {
            store.commit(&lease, &rest.commit).await.unwrap();
        }
        let mut expected: Vec<_> = story
            .log()
            .iter()
            .map(|entry| (entry.did.clone(), entry.cid.clone(), Some(entry.seq)))
            .collect();
        expected.sort();
        let dids: Vec<Did> = expected.iter().map(|(did, ..)| did.parse().unwrap()).collect();
        let held = store.histories(&dids).await.unwrap();
        let what = |of: &StoredOperation| (of.did.to_string(), of.cid().to_string(), of.sequence);
        let mut held: Vec<_> = held.iter().map(what).collect();
        held.sort();
        assert_eq!(held, expected, "{seed}");
    }
}
