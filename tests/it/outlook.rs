//! What `serve` says of how much there is to read, and how long that will take.

use std::time::Duration;

use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Served;

/// Between the numbers of two operations.
const APART: i64 = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn while_it_catches_up_it_says_how_long_that_will_take() {
    let mut story = Story::seeded(62);
    for _ in 0..600 {
        story.create().accepted();
    }
    let spread = |entry: LogEntry| LogEntry { seq: entry.seq * APART, ..entry };
    let mut log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).map(spread).collect();
    let mut late = log.split_off(560).into_iter();
    let upstream = FakeUpstream::start(log).await;
    upstream.give_at_most(10);
    let folder = TempDir::new().unwrap();
    let pace = [("PLC_UPSTREAM_REQUESTS_PER_MINUTE", "150")];
    let replica = Served::start_at_its_pace(folder.path(), &upstream.url(), &pace);
    replica.reaches(1).await;
    let page = |path: &'static str| {
        let url = format!("http://{}{path}", replica.address());
        async { reqwest::get(url).await.unwrap().text().await.unwrap() }
    };
    let mut health = Value::Null;
    while health["secondsLeft"].is_null() {
        // The stream's next message says how far the log goes.
        let last = late.next().unwrap();
        let head = last.seq;
        upstream.append(last);
        tokio::time::sleep(Duration::from_millis(500)).await;
        health = serde_json::from_str(&page("/_health").await).unwrap();
        assert!(
            health["upstreamSequence"].is_null()
                || health["upstreamSequence"].as_i64() <= Some(head)
        );
    }
    assert!(health["upstreamSequence"].as_i64() >= Some(560 * APART), "{health}");
    let percent = health["percent"].as_f64().unwrap();
    assert!(percent > 0.0 && percent < 100.0, "{health}");
    let home = page("/").await;
    assert!(home.contains("Read so far") && home.contains(" left"), "{home}");
    let log = replica.log();
    assert!(log.contains(", 150,000 a minute allowed: about "), "{log}");
    assert!(log.contains(" operations to read from http://"), "{log}");
    assert!(log.contains("database=\"sqlite://"), "{log}");
}
