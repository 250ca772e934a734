//! Limits on clients, as a client meets them.

use std::io::{Read, Write};
use std::time::Duration;

use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;
use plc_replica::serve::client_address::Proxies;
use plc_replica::serve::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;

use crate::replica::{Replica, large, numbered};

async fn limited(limits: Limits) -> Replica {
    let settings = ServeSettings { limits, ..ServeSettings::default() };
    Replica::start_with(settings, Feed::new()).await
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_to_come_back() {
    let trusted = vec!["127.0.0.1".parse().unwrap()];
    let proxies = Proxies { trusted, ..Proxies::default() };
    let limits = Limits { requests_per_minute: 6, burst: 2, proxies, ..Limits::default() };
    let replica = limited(limits).await;
    let ask = async |client: &str| {
        replica.ask("GET", "/_audit/refused", &[("x-forwarded-for", client)]).await
    };
    for left in ["1", "0"] {
        let answer = ask("192.0.2.1").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), "\"client\";q=6;w=60");
        assert!(answer.header("ratelimit").starts_with(&format!("\"client\";r={left};t=")));
    }
    let refused = ask("192.0.2.1").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "10"));
    assert_eq!(refused.text(), r#"{"message":"too many requests, try again in 10 s"}"#);
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(refused.header("access-control-allow-origin"), "*");
    // Another client behind the same proxy is another client, and health is for everybody.
    assert_eq!(ask("192.0.2.2").await.status, 200);
    let health = replica.ask("GET", "/_health", &[("x-forwarded-for", "192.0.2.1")]).await;
    assert_eq!((health.status, health.header("ratelimit")), (200, ""));
}

/// As many connections as a number can say are as good as no limit.
#[tokio::test]
async fn the_largest_limit_of_connections_is_one() {
    let replica = limited(Limits { connections: usize::MAX, ..Limits::default() }).await;
    assert_eq!(replica.get("/_health").await.status, 200);
}

#[tokio::test]
async fn without_a_limit_nothing_is_said_of_one() {
    let replica = Replica::start().await;
    assert_eq!(replica.get("/export").await.header("ratelimit-policy"), "");
}

#[tokio::test]
async fn long_addresses_and_heads_are_refused() {
    let replica = limited(Limits { url_bytes: 100, ..Limits::default() }).await;
    assert_eq!(replica.get(&format!("/{}", "x".repeat(99))).await.status, 400);
    assert_eq!(replica.get(&format!("/{}", "x".repeat(100))).await.status, 414);
    let head = "x".repeat(100 << 10);
    assert_eq!(replica.ask("GET", "/_health", &[("x-much", &head)]).await.status, 431);
}

#[tokio::test]
async fn an_address_does_not_wait_in_every_place() {
    let trusted = vec!["127.0.0.1".parse().unwrap()];
    let proxies = Proxies { trusted, ..Proxies::default() };
    let replica = &limited(Limits { proxies, ..Limits::default() }).await;
    let absent = did_plc::Cid::of(b"absent");
    let path = &format!("/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa?cid={absent}");
    let ask = |client, wait| async move {
        replica.ask("GET", path, &[("x-forwarded-for", client), ("prefer", wait)]).await
    };
    let all = futures::future::join_all((0..60).map(|_| ask("192.0.2.1", "wait=2")));
    let (all, other) = tokio::join!(all, ask("192.0.2.2", "wait=1"));
    let refused: Vec<_> = all.iter().filter(|answer| answer.status == 429).collect();
    assert_eq!(refused.len(), 10);
    assert_eq!(refused[0].header("retry-after"), "10");
    assert_eq!(all.iter().filter(|answer| answer.status == 504).count(), 50);
    assert_eq!(other.status, 504);
    assert_eq!(ask("192.0.2.1", "wait=0").await.status, 504);
}

/// What is refused is refused at once, in the usual form, and only as long as all places are taken.
#[tokio::test]
async fn so_many_requests_are_answered_at_a_time() {
    let replica = &limited(Limits { requests: 2, ..Limits::default() }).await;
    let absent = did_plc::Cid::of(b"absent");
    let path = &format!("/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa?cid={absent}");
    let wait = || replica.ask("GET", path, &[("prefer", "wait=2")]);
    let other = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (replica.get("/export").await, replica.get("/_health").await)
    };
    let (first, second, (refused, health)) = tokio::join!(wait(), wait(), other);
    assert_eq!((first.status, second.status), (504, 504));
    assert_eq!((refused.status, refused.header("retry-after")), (503, "10"));
    assert_eq!(refused.text(), r#"{"message":"too many requests at a time, try again later"}"#);
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(refused.header("access-control-allow-origin"), "*");
    assert_eq!(health.status, 200);
    assert_eq!(replica.get("/export").await.status, 200);
}

/// Lookups in SQLite never wait for anything but their turn: those that wait for that are counted too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_their_turn_are_counted() {
    const CLIENTS: usize = 1_000;
    let mut replica = limited(Limits { requests: 20, ..Limits::default() }).await;
    replica.commit(vec![numbered(1)]).await;
    let path = format!("/{}", numbered(1).did);
    let address = replica.address;
    // On a thread of its own, which does not wait for the server's.
    let statuses = tokio::task::spawn_blocking(move || {
        let mut clients: Vec<_> =
            (0..CLIENTS).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
        for client in &mut clients {
            client.write_all(request.as_bytes()).unwrap();
        }
        let status = |client: &mut std::net::TcpStream| {
            let mut begin = [0; 12];
            client.read_exact(&mut begin).unwrap();
            String::from_utf8_lossy(&begin[9..]).into_owned()
        };
        clients.iter_mut().map(status).collect::<Vec<_>>()
    });
    let statuses = statuses.await.unwrap();
    let of = |wanted: &str| statuses.iter().filter(|status| *status == wanted).count();
    assert!(of("200") >= 20 && of("503") > 0, "{} and {}", of("200"), of("503"));
    assert_eq!(of("200") + of("503"), CLIENTS);
    assert_eq!(replica.get("/export").await.status, 200);
}

#[tokio::test]
async fn an_address_has_so_many_streams() {
    let replica = limited(Limits { streams_per_address: 2, ..Limits::default() }).await;
    let url = format!("ws://{}/export/stream", replica.address);
    let first = connect_async(&url).await.unwrap();
    let _second = connect_async(&url).await.unwrap();
    let Err(Error::Http(refused)) = connect_async(&url).await else { panic!("a third stream") };
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"] == "10"), (429, true));
    drop(first);
    for _ in 0..100 {
        if connect_async(&url).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place was not given back");
}

/// More than is held for all clients together: the first ones go, and the last one is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_go_when_there_is_no_room() {
    let mut replica = Replica::start().await;
    replica.commit((1..=1_000).map(large).collect()).await;
    let mut clients = Vec::new();
    for _ in 0..15 {
        let mut client = TcpStream::connect(replica.address).await.unwrap();
        client
            .write_all(b"GET /export HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        client.read_exact(&mut [0; 12]).await.unwrap();
        clients.push(client);
    }
    let whole = replica.get("/export").await.body.len();
    let mut complete = Vec::new();
    for client in &mut clients {
        let mut answer = Vec::new();
        complete.push(client.read_to_end(&mut answer).await.is_ok() && answer.len() >= whole);
    }
    assert!(!complete[0] && complete[14], "{complete:?}");
    assert!(complete.is_sorted(), "{complete:?}");
}

/// The only place is held by a client that does not read its answer, and another client waits for
/// it: the end does not.
#[tokio::test]
async fn the_end_does_not_wait_for_a_place() {
    const MOMENT: Duration = Duration::from_millis(300);
    let mut replica = limited(Limits { connections: 1, ..Limits::default() }).await;
    replica.commit((1..=1_000).map(large).collect()).await;
    let mut stalled = TcpStream::connect(replica.address).await.unwrap();
    stalled.write_all(b"GET /export HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    stalled.read_exact(&mut [0; 12]).await.unwrap();
    let mut waiting = TcpStream::connect(replica.address).await.unwrap();
    waiting.write_all(b"GET /_health HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    assert!(timeout(MOMENT, waiting.read(&mut [0; 12])).await.is_err());
    replica.shutdown.cancel();
    assert!(timeout(MOMENT, waiting.read(&mut [0; 12])).await.is_ok());
    drop(stalled);
    timeout(Duration::from_secs(2), &mut replica.server).await.unwrap().unwrap();
}
