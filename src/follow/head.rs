//! What is still to be read: the upstream's last sequence number, learned while its past is read, and said.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::judge::Position;
use crate::live::{Mode, Status};
use crate::upstream::{ExportClient, MAX_LINES, Priority, Stream, UpstreamFault};
use crate::words;
use did_plc::sequence::MAX_SEQUENCE;

/// An upstream that is read to its end within this time is not asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its stream is listened to. The directory has some operations a second.
const LISTEN: Duration = Duration::from_secs(10);
/// How often it is asked: it grows by a thousandth in a day or two.
const AGAIN: Duration = Duration::from_secs(10 * 60);
/// The first step of a search: a page.
const STEP: i64 = 1_000;
/// Where a search ends: so near to the last number, by its share, or by a page.
const NEAR: i64 = 200;
/// What is read within a minute or so is not worth a line.
const MUCH: i64 = 100_000;

/// Learns the upstream's last number again and again while its past is read. Ends by being dropped.
pub async fn learn(client: ExportClient, status: Arc<Status>) {
    let mut said = false;
    loop {
        sleep(PATIENCE).await;
        if status.mode() != Mode::CatchingUp {
            continue;
        }
        let head = match of_stream(&client).await {
            Some(head) => Ok(head),
            None => of_export(&client, status.received_sequence()).await,
        };
        match head {
            Ok(head) => {
                status.set_head(head);
                if !std::mem::replace(&mut said, true) {
                    say(&client, head - status.sequence());
                }
            }
            // The reader says what is wrong with the upstream.
            Err(fault) => tracing::debug!("to learn the upstream's last number: {fault}"),
        }
        sleep(AGAIN).await;
    }
}

/// The number of the first operation that comes.
async fn of_stream(client: &ExportClient) -> Option<i64> {
    let listening = async {
        let mut stream = Stream::open_at_head(client).await.ok()?;
        let batch = stream.next().await.ok()?;
        batch.lines.iter().filter_map(|line| Position::of_line(line)).map(|it| it.sequence).max()
    };
    timeout(LISTEN, listening).await.ok().flatten()
}

/// A number near the last one, by asking what is after others: some twenty-five requests at ninety million.
async fn of_export(client: &ExportClient, from: i64) -> Result<i64, UpstreamFault> {
    let (mut low, mut step) = (from, STEP);
    while low < MAX_SEQUENCE - step {
        match number_from(client, low + step).await? {
            Some(number) => (low, step) = (number, step * 2),
            None => break,
        }
    }
    let mut high = low.saturating_add(step);
    while high - low > STEP.max(low / NEAR) {
        let middle = low + (high - low) / 2;
        match number_from(client, middle).await? {
            Some(number) => low = number.min(high),
            None => high = middle,
        }
    }
    Ok(low)
}

/// The first number that is stated, from this one on.
async fn number_from(client: &ExportClient, from: i64) -> Result<Option<i64>, UpstreamFault> {
    let line = client.first_from(from, Priority::Aside).await?;
    Ok(line.and_then(|line| Position::of_line(&line)).map(|it| it.sequence.max(from)))
}

/// Says what is ahead.
fn say(client: &ExportClient, left: i64) {
    if left < MUCH {
        return;
    }
    let count = words::number(left.unsigned_abs());
    let upstream = client.base();
    match client.budget().requests_per_minute() {
        Some(requests) => {
            let a_minute = requests * MAX_LINES as f64;
            let time = Duration::from_secs_f64(left as f64 / a_minute * 60.0);
            tracing::info!(
                "{count} operations to read from {upstream}, {} a minute allowed: about {}; `plc-replica import` of an \
                 archive is faster",
                words::number(a_minute as u64),
                words::duration(time)
            );
        }
        None => {
            tracing::info!("{count} operations to read from {upstream}, as fast as it gives them")
        }
    }
}

#[cfg(test)]
mod tests {
    use plc_testkit::builder::Story;
    use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};

    use super::*;
    use crate::upstream::Limits;

    /// An upstream with so many operations, each with a number so far above the one before.
    async fn upstream(operations: usize, apart: i64) -> (FakeUpstream, ExportClient, i64) {
        let mut story = Story::seeded(61);
        for _ in 0..operations {
            story.create().accepted();
        }
        let spread = |entry: LogEntry| LogEntry { seq: entry.seq * apart, ..entry };
        let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).map(spread).collect();
        let last = log.last().map_or(0, |entry| entry.seq);
        let upstream = FakeUpstream::start(log).await;
        let client = ExportClient::new(&upstream.url(), 0, "test", Limits::default()).unwrap();
        (upstream, client, last)
    }

    #[tokio::test]
    async fn a_search_comes_near_to_the_last_number() {
        for (operations, apart, from) in
            [(40, 7_919, 0), (40, 7_919, 150_000), (3, 1, 0), (3, 1, 3)]
        {
            let (upstream, client, last) = upstream(operations, apart).await;
            let found = of_export(&client, from).await.unwrap();
            assert!((last - found).abs() <= STEP.max(last / NEAR) + apart, "{found} of {last}");
            assert!(upstream.asked().len() < 30);
        }
        let (_upstream, client, _) = upstream(1, MAX_SEQUENCE).await;
        assert!(of_export(&client, 0).await.unwrap() > MAX_SEQUENCE / 2);
    }

    #[tokio::test]
    async fn the_stream_says_it_with_its_first_message() {
        let (upstream, client, last) = upstream(4, 1).await;
        let listening = tokio::spawn(async move { of_stream(&client).await });
        while upstream.streams() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        let entry = upstream.log().pop().unwrap();
        upstream.append(LogEntry { seq: last + 7, ..entry });
        assert_eq!(listening.await.unwrap(), Some(last + 7));
    }
}
