//! A second upstream that has our log under numbers of its own, as another replica or a mirror: it is followed by time
//! while the first is away, and what it brings gets its numbers from the first.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plc_replica::follow::{DoubtSettings, RereadingSettings};
use plc_replica::live::{Mode, Standing};
use plc_replica::store::Store;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use serde_json::Value;
use tokio::time::sleep;

use crate::archives::Counting;
use crate::failover::{
    AWAY, Told, clients, differences, follows, holds, is_held, is_whole, listen, soon, stands,
    start,
};
use crate::follow::{Running, entries, lives, places};
use crate::healing::{by_number, honest};
use crate::process::Served;

/// Longer than some pauses between two pages on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same operations under numbers of its own.
pub fn own(log: &[LogEntry]) -> Vec<LogEntry> {
    log.iter().map(|entry| LogEntry { seq: 5_000 + 3 * entry.seq, ..entry.clone() }).collect()
}

/// How many operations have no number.
async fn unnumbered(store: &Store) -> usize {
    let held = store.export_by_time(None, 1_000_000).await.unwrap();
    held.iter().filter(|operation| operation.sequence.is_none()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_followed_while_the_first_is_away_and_numbers_come_later() {
    for place in places().await {
        let mut told = Told::new(700);
        let mut first = FakeUpstream::start(told.next(200)).await;
        let second = FakeUpstream::start(own(&told.log[..200])).await;
        let counting = Arc::new(Counting::default());
        let upstreams = clients(&[&first, &second]);
        let verifier = Arc::clone(&counting);
        let replica = Running::start_with(
            &place.url,
            upstreams,
            soon(),
            RereadingSettings::default(),
            DoubtSettings::default(),
            verifier,
        )
        .await;
        let (heard, listening) = listen(&replica);
        follows(&replica, 0, 200).await;
        stands(&replica, 1, Standing::OwnNumbers).await;

        first.stop().await;
        second.append_all(own(&told.next(100)));
        stands(&replica, 1, Standing::Followed).await;
        holds(&replica.store, &told.log[..300]).await;
        // What comes while it is followed is read soon, and by anybody.
        second.append_all(own(&told.next(100)));
        holds(&replica.store, &told.log[..400]).await;
        assert_eq!((replica.status.sequence(), replica.status.mode()), (200, Mode::Live));
        assert_eq!(unnumbered(&replica.store).await, 200);
        let last = &told.log[399];
        let (status, _, audit) = replica.get(&format!("/{}/log/audit", last.did)).await;
        assert!(status == 200 && audit.contains(&last.cid), "{audit}");
        let by_time = replica.get(&format!("/export?after={}", told.log[198].created_at)).await.2;
        assert_eq!(by_time.lines().count(), 201);
        assert_eq!(replica.get("/export?after=200").await.2, "");
        assert_eq!(heard.lock().unwrap().len(), 200);
        let health: Value = serde_json::from_str(&replica.get("/_health").await.2).unwrap();
        assert_eq!(health["upstreams"][1]["state"], "followed");
        let reason = health["upstreams"][1]["reason"].as_str().unwrap();
        assert!(reason.contains("under numbers of its own"), "{reason}");
        // The numbers are those of the first, whoever is followed.
        let source = replica.store.source().await.unwrap().unwrap();
        assert_eq!((source.upstream, source.cursor), (first.url(), 200));

        first.append_all(told.log[200..400].to_vec());
        first.start_again().await;
        follows(&replica, 0, 400).await;
        told.grow(100, &[&first]).await;
        follows(&replica, 0, 500).await;
        stands(&replica, 1, Standing::Behind).await;
        second.append_all(own(&told.log[400..500]));
        stands(&replica, 1, Standing::OwnNumbers).await;
        assert_eq!(unnumbered(&replica.store).await, 0);
        assert_eq!(counting.0.load(Ordering::Relaxed), 500);
        assert_eq!(differences(&replica).await, []);
        is_whole(replica, &told, &heard).await;
        listening.abort();
    }
}

/// A crash while it is followed loses nothing, and neither does one while numbers are given.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_while_it_is_followed_lose_nothing() {
    // A lease of before runs for some seconds on Postgres.
    for (place, crashes) in places().await.into_iter().zip([6, 2]) {
        let mut told = Told::new(1_000);
        let mut first = FakeUpstream::start(told.next(100)).await;
        let second = FakeUpstream::start(own(&told.log[..100])).await;
        let replica = start(&place, &[&first, &second], soon()).await;
        follows(&replica, 0, 100).await;
        stands(&replica, 1, Standing::OwnNumbers).await;
        first.stop().await;
        replica.crash().await;
        for crash in 0..crashes {
            second.append_all(own(&told.next(50)));
            let replica = start(&place, &[&first, &second], soon()).await;
            stands(&replica, 1, Standing::Followed).await;
            sleep(Duration::from_millis(20 + 60 * crash)).await;
            replica.crash().await;
        }
        let replica = start(&place, &[&first, &second], soon()).await;
        holds(&replica.store, &told.log[..told.at]).await;
        replica.crash().await;
        told.tell(&first);
        first.start_again().await;
        let replica = start(&place, &[&first, &second], soon()).await;
        sleep(Duration::from_millis(100)).await;
        replica.crash().await;
        let replica = start(&place, &[&first, &second], soon()).await;
        follows(&replica, 0, told.sequence()).await;
        is_held(&replica, &told).await;
        replica.end().await;
    }
}

/// One that differs by a single operation at its end has another log, and is not followed.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_lacks_something_has_another_log() {
    for place in places().await {
        let mut told = Told::new(300);
        let mut first = FakeUpstream::start(told.next(200)).await;
        let mut log = own(&told.log[..200]);
        log.remove(190);
        let second = FakeUpstream::start(log).await;
        let other = FakeUpstream::start(own(&entries(&lives(3, 150)))).await;
        let replica = start(&place, &[&first, &second, &other], soon()).await;
        follows(&replica, 0, 200).await;
        stands(&replica, 1, Standing::Refuted).await;
        stands(&replica, 2, Standing::Refuted).await;
        first.stop().await;
        stands(&replica, 0, Standing::Away).await;
        second.append_all(own(&told.log[200..300]));
        sleep(3 * AWAY).await;
        assert_eq!(replica.status.upstreams().followed(), 0);
        let held = replica.store.export_by_time(None, 1_000).await.unwrap();
        assert_eq!(held.len(), 200);
        first.start_again().await;
        told.grow(100, &[&first]).await;
        follows(&replica, 0, told.sequence()).await;
        is_held(&replica, &told).await;
        replica.end().await;
    }
}

/// What does not verify there is refused, and told what it is by the audit log of its identity, not by its number.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_there_is_asked_about_without_its_number() {
    for place in places().await {
        let mut told = Told::new(300);
        let mut first = FakeUpstream::start(told.next(200)).await;
        let second = FakeUpstream::start(own(&told.log[..200])).await;
        let replica = start(&place, &[&first, &second], soon()).await;
        follows(&replica, 0, 200).await;
        stands(&replica, 1, Standing::OwnNumbers).await;
        first.stop().await;
        stands(&replica, 1, Standing::Followed).await;
        let next = own(&told.next(20));
        let cut = next[6].operation.replacen("\"sig\":\"", "\"sig\":\"A", 1);
        second.append_all(next.iter().map(|entry| match entry.seq == next[6].seq {
            true => LogEntry { operation: cut.clone(), ..entry.clone() },
            false => entry.clone(),
        }));
        let begun = Instant::now();
        while replica.store.refusals(None, 0, 10).await.unwrap().is_empty() {
            assert!(begun.elapsed() < PATIENCE);
            sleep(Duration::from_millis(20)).await;
        }
        let operation = next[6].operation.clone();
        second.alter(next[6].seq, |entry| entry.operation = operation);
        holds(&replica.store, &told.log[..220]).await;
        told.tell(&first);
        first.start_again().await;
        follows(&replica, 0, told.sequence()).await;
        is_held(&replica, &told).await;
        replica.end().await;
    }
}

/// The whole program, started while the first is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_begins_with_it_where_the_first_is_away() {
    for place in places().await {
        let mut told = Told::new(300);
        let mut first = FakeUpstream::start(told.next(200)).await;
        let second = FakeUpstream::start(own(&told.log[..200])).await;
        let both = format!("{},{}", first.url(), second.url());
        let replica = Served::start_on(&place.url, &both, &[]);
        replica.reaches(200).await;
        replica.end();
        first.stop().await;
        second.append_all(own(&told.next(100)));
        let replica = Served::start_on(&place.url, &both, &[]);
        let last = &told.log[299];
        replica
            .eventually("it is read by time", async || {
                let url = format!("http://{}/{}", replica.address(), last.did);
                reqwest::get(url).await.is_ok_and(|answer| answer.status() == 200)
            })
            .await;
        let log = replica.end();
        let said = "which has the log that is held here under numbers of its own";
        assert!(log.contains(said), "{log}");
        told.tell(&first);
        first.start_again().await;
        let replica = Served::start_on(&place.url, &both, &[]);
        replica.reaches(300).await;
        replica.end();
        let store = Store::open(&place.url).await.unwrap();
        let held = by_number(store.export_by_sequence(0, 1_000).await.unwrap());
        assert_eq!(held, honest(&told.log).await);
        let dids: BTreeSet<&str> = told.log.iter().map(|entry| &*entry.did).collect();
        assert_eq!(store.statistics().await.unwrap().identities, dids.len() as u64);
    }
}
