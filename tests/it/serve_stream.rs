//! `/export/stream` with a WebSocket client.

use std::time::{Duration, Instant};

use did_plc::Timestamp;
use did_plc::json::read_operation;
use futures::{SinkExt, StreamExt};
use plc_replica::live::{Feed, Message as Published};
use plc_replica::serve::ServeSettings;
use plc_replica::store::{Commit, Rewritten, StoredOperation};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::follow::places;
use crate::replica::{Replica, large, now, numbered, operation};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Long enough for a busy machine; nothing is waited for this long when all is well.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for something to arrive that should not.
const MOMENT: Duration = Duration::from_millis(300);

async fn connect(replica: &Replica, query: &str) -> Client {
    let url = format!("ws://{}/export/stream{query}", replica.address);
    connect_async(url).await.unwrap().0
}

async fn next_text(client: &mut Client) -> String {
    loop {
        match timeout(PATIENCE, client.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => return text.to_string(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn sequence(text: &str) -> i64 {
    serde_json::from_str::<serde_json::Value>(text).unwrap()["seq"].as_i64().unwrap()
}

async fn next_sequences(client: &mut Client, count: usize) -> Vec<i64> {
    let mut sequences = Vec::new();
    for _ in 0..count {
        sequences.push(sequence(&next_text(client).await));
    }
    sequences
}

async fn hears_nothing(client: &mut Client) {
    let heard = timeout(MOMENT, client.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

/// The code and the reason that the server closes with.
async fn closed(client: &mut Client) -> (u16, String) {
    loop {
        match timeout(PATIENCE, client.next()).await.unwrap() {
            Some(Ok(Message::Close(Some(frame)))) => {
                return (frame.code.into(), frame.reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn no_subscribers(replica: &Replica) {
    while replica.state.feed.subscribers() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn with_operations(count: i64) -> Replica {
    let mut replica = Replica::start().await;
    replica.commit((1..=count).map(numbered).collect()).await;
    replica
}

#[tokio::test]
async fn without_a_cursor_it_begins_now() {
    let mut replica = with_operations(3).await;
    let mut client = connect(&replica, "").await;
    let operation = numbered(4);
    replica.commit(vec![operation.clone()]).await;
    let expected = Published::encode(&operation).unwrap().unwrap();
    assert_eq!(next_text(&mut client).await, expected.text.as_str());
    replica.commit((5..=6).map(numbered).collect()).await;
    assert_eq!(next_sequences(&mut client, 2).await, [5, 6]);
    hears_nothing(&mut client).await;
}

#[tokio::test]
async fn with_a_cursor_it_begins_after_it() {
    let mut replica = with_operations(1_300).await;
    let mut client = connect(&replica, "?cursor=3").await;
    assert_eq!(next_sequences(&mut client, 1_297).await, (4..=1_300).collect::<Vec<_>>());
    replica.commit((1_301..=1_302).map(numbered).collect()).await;
    assert_eq!(next_sequences(&mut client, 2).await, [1_301, 1_302]);
    let mut at_the_end = connect(&replica, "?cursor=1302").await;
    hears_nothing(&mut at_the_end).await;
    replica.commit(vec![numbered(1_303)]).await;
    assert_eq!(next_sequences(&mut at_the_end, 1).await, [1_303]);
    assert_eq!(next_sequences(&mut client, 1).await, [1_303]);
    hears_nothing(&mut client).await;
}

#[tokio::test]
async fn an_operation_that_was_accepted_late_comes_at_once() {
    let mut replica = Replica::start().await;
    replica.commit(vec![numbered(1), numbered(2), numbered(9)]).await;
    let mut from_now = connect(&replica, "").await;
    let mut caught_up = connect(&replica, "?cursor=1").await;
    assert_eq!(next_sequences(&mut caught_up, 2).await, [2, 9]);
    replica.commit(vec![numbered(5)]).await;
    assert_eq!(next_sequences(&mut from_now, 1).await, [5]);
    assert_eq!(next_sequences(&mut caught_up, 1).await, [5]);
}

/// Clients that catch up with a log that grows all the while, at its end and in its middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_twice_and_nothing_is_missing() {
    for place in places().await {
        let replica = Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
        everything_comes_once(replica).await;
    }
}

async fn everything_comes_once(mut replica: Replica) {
    const LAST: i64 = 4_000;
    // Of the first numbers only every second one is there at first.
    replica.commit((1..=2_000).step_by(2).map(numbered).collect()).await;
    let address = replica.address;
    let clients: Vec<_> = (0..8)
        .map(|number| {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(number * 15)).await;
                let url = format!("ws://{address}/export/stream?cursor=0");
                let mut client = connect_async(url).await.unwrap().0;
                let count = usize::try_from(LAST).unwrap();
                let sequences = next_sequences(&mut client, count).await;
                hears_nothing(&mut client).await;
                sequences
            })
        })
        .collect();
    let late: Vec<i64> = (2..=2_000).step_by(2).collect();
    let new: Vec<i64> = (2_001..=LAST).collect();
    for (late, new) in late.chunks(10).zip(new.chunks(20)) {
        replica.commit(new.iter().chain(late).copied().map(numbered).collect()).await;
    }
    for client in clients {
        let mut sequences = client.await.unwrap();
        sequences.sort_unstable();
        assert_eq!(sequences, (1..=LAST).collect::<Vec<_>>());
    }
}

/// One whose JSON is six times as long as what is stored.
#[tokio::test]
async fn the_longest_operation_is_sent() {
    let mut replica = with_operations(1).await;
    let mut live = connect(&replica, "").await;
    let zeros = read_operation(&operation(&r"\u0000".repeat(1_000_000))).unwrap();
    replica.commit(vec![StoredOperation { signed: zeros.into(), ..numbered(2) }]).await;
    let mut caught_up = connect(&replica, "?cursor=1").await;
    for client in [&mut live, &mut caught_up] {
        let text = next_text(client).await;
        assert!(text.len() > 6_000_000);
        assert_eq!(sequence(&text), 2);
    }
}

/// Operations of the log of [`with_much`].
const MUCH: i64 = 1_000;

/// A log that no client catches up with as long as it does not read.
async fn with_much() -> Replica {
    let mut replica = Replica::start().await;
    replica.commit((1..=MUCH).map(large).collect()).await;
    replica
}

/// A client reads a large commit from the store, all of it or as much as it may, before the feed has it, or after.
#[tokio::test]
async fn what_was_read_before_it_was_published_does_not_come_again() {
    const FIRST: i64 = 3_000;
    for more in [0, FIRST] {
        let last = MUCH + FIRST + more;
        let mut replica = with_much().await;
        let mut client = connect(&replica, "?cursor=0").await;
        let operations = (MUCH + 1..=last).map(numbered).collect();
        replica.store(Commit { operations, ..Commit::default() }).await;
        let sequences = next_sequences(&mut client, last as usize).await;
        assert_eq!(sequences, (1..=last).collect::<Vec<_>>());
        replica.state.feed.settled().await;
        hears_nothing(&mut client).await;
        replica.commit(vec![numbered(last + 1)]).await;
        assert_eq!(next_sequences(&mut client, 1).await, [last + 1]);
    }
}

/// The number of an operation that it has just read goes to another one: it has the number, and not the operation.
#[tokio::test]
async fn what_takes_the_number_of_another_comes_as_well() {
    let mut replica = with_much().await;
    let mut client = connect(&replica, "?cursor=0").await;
    assert_eq!(next_sequences(&mut client, MUCH as usize).await.last(), Some(&MUCH));
    let held = replica.state.store.sequences(&[MUCH]).await.unwrap().remove(0);
    let rewritten = Rewritten {
        did: held.did,
        stored: 1,
        stored_geneses: 1,
        operations: vec![StoredOperation { sequence: None, ..held }],
    };
    let operations = vec![StoredOperation { sequence: Some(MUCH), ..numbered(MUCH + 1) }];
    let commit = Commit { operations, rewritten: vec![rewritten], ..Commit::default() };
    let operations = replica.store(commit).await;
    let text = next_text(&mut client).await;
    assert!(sequence(&text) == MUCH && text.contains(&operations[0].cid().to_string()), "{text}");
    hears_nothing(&mut client).await;
}

/// Nor does what it read before it was published on an earlier connection.
#[tokio::test]
async fn a_client_that_comes_back_is_not_told_of_what_it_may_have() {
    let mut replica = with_operations(1).await;
    for last in (2..=20).step_by(2) {
        let of = |number| Commit { operations: vec![numbered(number)], ..Commit::default() };
        replica.store(of(last)).await;
        let mut back = connect(&replica, &format!("?cursor={last}")).await;
        if last % 10 == 0 {
            hears_nothing(&mut back).await;
        }
        // Of what comes next it is told first.
        replica.store(of(last + 1)).await;
        assert_eq!(next_sequences(&mut back, 1).await, [last + 1]);
    }
}

#[tokio::test]
async fn a_client_that_catches_up_is_listened_to() {
    let replica = with_much().await;
    let mut client = connect(&replica, "?cursor=0").await;
    client.send(Message::Ping("here".into())).await.unwrap();
    let mut texts = 0;
    while let Message::Text(_) = timeout(PATIENCE, client.next()).await.unwrap().unwrap().unwrap() {
        texts += 1;
    }
    assert!(texts < MUCH, "the answer came after all that there was");
    // One that leaves is not written to any longer.
    tokio::time::sleep(MOMENT).await;
    client.send(Message::Close(None)).await.unwrap();
    timeout(Duration::from_secs(5), no_subscribers(&replica)).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_server_is_told_to_a_client_that_catches_up() {
    let replica = with_much().await;
    let mut client = connect(&replica, "?cursor=0").await;
    assert_eq!(next_sequences(&mut client, 1).await, [1]);
    replica.shutdown.cancel();
    let mut texts = 1;
    loop {
        match timeout(PATIENCE, client.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(_) => texts += 1,
            Message::Close(Some(frame)) => break assert_eq!(u16::from(frame.code), 1001),
            other => panic!("{other:?}"),
        }
    }
    assert!(texts < MUCH);
}

#[tokio::test]
async fn cursors_that_cannot_be_followed_are_told_why() {
    let mut replica = with_operations(2).await;
    for query in ["?cursor=3", "?cursor=99999999999999999999"] {
        let mut client = connect(&replica, query).await;
        assert_eq!(closed(&mut client).await, (1000, "FutureCursor".to_owned()));
    }
    // The last number may be that of an operation that was refused.
    let passed = Commit { cursor_after: 3, ..Commit::default() };
    replica.state.status.set_committed(&passed);
    hears_nothing(&mut connect(&replica, "?cursor=3").await).await;

    let week = ServeSettings::default().stream_catch_up;
    let old = now() - week - Duration::from_secs(60);
    let young = now() - week + Duration::from_secs(60);
    let at = |sequence, created_at: Timestamp| StoredOperation { created_at, ..numbered(sequence) };
    replica.commit(vec![at(4, old), at(5, young)]).await;
    // Only the next operation counts, not those after it and not the one at the cursor.
    let mut client = connect(&replica, "?cursor=3").await;
    assert_eq!(closed(&mut client).await, (1000, "OutdatedCursor".to_owned()));
    assert_eq!(next_sequences(&mut connect(&replica, "?cursor=4").await, 1).await, [5]);
    assert_eq!(next_sequences(&mut connect(&replica, "?cursor=1").await, 1).await, [2]);
}

#[tokio::test]
async fn handshakes_that_are_none_are_refused() {
    let replica = with_operations(1).await;
    for query in ["?cursor=abc", "?cursor=-1", "?cursor=1&cursor=1"] {
        let url = format!("ws://{}/export/stream{query}", replica.address);
        let Err(Error::Http(response)) = connect_async(url).await else { panic!("{query}") };
        assert_eq!(response.status(), 400);
        let body = response.body().as_deref().unwrap_or_default();
        assert_eq!(body, b"{\"message\":\"Invalid cursor parameter\"}");
    }
    let asked = [("connection", "upgrade"), ("upgrade", "websocket")];
    let answer = replica.ask("GET", "/export/stream", &asked).await;
    assert_eq!((answer.status, answer.media_type()), (400, "application/json"));
    assert_eq!(replica.get("/export/stream").await.status, 426);
}

#[tokio::test]
async fn the_end_of_the_server_is_told() {
    let mut replica = with_operations(1).await;
    let mut client = connect(&replica, "").await;
    let begun = Instant::now();
    replica.shutdown.cancel();
    assert_eq!(closed(&mut client).await.0, 1001);
    drop(client);
    (&mut replica.server).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn pings_are_answered_and_a_client_may_leave() {
    let mut replica = with_operations(1).await;
    let mut client = connect(&replica, "").await;
    client.send(Message::Ping("here".into())).await.unwrap();
    let answer = timeout(PATIENCE, client.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer, Message::Pong("here".into()));
    client.close(None).await.unwrap();
    while let Some(Ok(_)) = client.next().await {}
    timeout(PATIENCE, no_subscribers(&replica)).await.unwrap();
    replica.commit(vec![numbered(2)]).await;
}

/// A client that does not read is dropped, and told so; another one gets everything in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_dropped_and_slows_nobody() {
    const OPERATIONS: i64 = 40_000;
    const BATCH: usize = 500;
    let feed = Feed::with_capacity(1 << 20);
    let mut replica = Replica::start_with(ServeSettings::default(), feed).await;
    let mut slow = connect(&replica, "").await;
    let mut quick = connect(&replica, "").await;
    let reader = tokio::spawn(async move {
        let count = usize::try_from(OPERATIONS).unwrap();
        next_sequences(&mut quick, count).await
    });
    let numbers: Vec<i64> = (1..=OPERATIONS).collect();
    for batch in numbers.chunks(BATCH) {
        // Straight to the feed: what a store does is not what is measured here.
        let batch: Vec<StoredOperation> = batch.iter().copied().map(numbered).collect();
        replica.state.feed.publish(&batch);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(reader.await.unwrap(), numbers);
    // By now it lags by more than the feed holds; what it is told comes after what was on its way.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(closed(&mut slow).await, (1000, "ConsumerTooSlow".to_owned()));
    replica.commit(vec![numbered(OPERATIONS + 1)]).await;
}
