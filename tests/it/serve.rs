//! The server over HTTP: the reference's recorded answers, and what those do not show.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use did_plc::Timestamp;
use did_plc::entry::Received;
use flate2::read::GzDecoder;
use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;
use plc_replica::serve::client_address::Proxies;
use plc_replica::serve::limits::Limits;
use plc_replica::store::{Commit, NewDivergence, NewRefusal, StoredOperation};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::follow::places;
use crate::replica::{Replica, numbered, operation, stored, tombstone};
use crate::shared;
use plc_testkit::postgres::Database;

const ALICE: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
const BOB: &str = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb";

#[derive(Deserialize)]
struct Expected {
    cid: String,
    nullified: bool,
    verdict: String,
}

#[derive(Deserialize)]
struct Recorded {
    path: String,
    status: u16,
    #[serde(rename = "type")]
    media_type: String,
    body: String,
}

/// The operations of a recorded log that are to be accepted, as they are in the end.
fn accepted(folder: &Path) -> Vec<StoredOperation> {
    let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
    let (export, expected) = (read("export.jsonl"), read("expected.jsonl"));
    let mut operations = Vec::new();
    for (line, expected) in export.lines().zip(expected.lines()) {
        let expected: Expected = serde_json::from_str(expected).unwrap();
        if expected.verdict != "ok" {
            continue;
        }
        let received = Received::decode(line.as_bytes()).unwrap();
        assert_eq!(received.cid.to_string(), expected.cid);
        operations.push(StoredOperation {
            did: received.did,
            created_at: received.created_at,
            sequence: received.sequence,
            signed: received.signed,
            signer: 0,
            nullified_by: expected
                .nullified
                .then(|| received.created_at + Duration::from_millis(1)),
            received_at: received.created_at,
        });
    }
    operations
}

async fn gives_the_recorded_answers(folder: &Path) {
    for place in places().await {
        let mut replica =
            Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
        replica.commit(accepted(folder)).await;
        replica.caught_up();
        gives_answers(&replica, folder).await;
    }
}

async fn gives_answers(replica: &Replica, folder: &Path) {
    let file = std::fs::File::open(folder.join("answers.jsonl.gz")).unwrap();
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let recorded: Recorded = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = replica.get(&recorded.path).await;
        assert_eq!(answer.status, recorded.status, "{}", recorded.path);
        assert_eq!(answer.media_type(), recorded.media_type, "{}", recorded.path);
        assert_eq!(answer.text(), recorded.body, "{}", recorded.path);
    }
}

#[tokio::test]
async fn generated_operations_are_answered_as_the_reference_answers() {
    gives_the_recorded_answers(&shared::golden()).await;
}

#[tokio::test]
async fn real_operations_are_answered_as_the_reference_answers() {
    let Some(folder) = shared::folder("real") else { return };
    gives_the_recorded_answers(&folder).await;
}

/// A replica that holds Alice's two operations, and has been caught up.
async fn with_alice() -> Replica {
    let mut replica = Replica::start().await;
    let first = stored(ALICE, "2024-01-01T00:00:00.000Z", 1, &operation("at://a.example"));
    let second = stored(ALICE, "2024-01-02T00:00:00.000Z", 2, &operation("at://b.example"));
    replica.commit(vec![first, second]).await;
    replica.caught_up();
    replica
}

const VIEWS: [&str; 5] = ["", "/data", "/log", "/log/audit", "/log/last"];

#[tokio::test]
async fn an_answer_says_how_fresh_it_is_and_how_it_may_be_kept() {
    let replica = with_alice().await;
    for view in VIEWS {
        let answer = replica.get(&format!("/{ALICE}{view}")).await;
        assert_eq!(answer.status, 200, "{view}");
        assert_eq!(answer.header("plc-sequence"), "2");
        assert!(answer.header("plc-as-of").parse::<Timestamp>().is_ok());
        assert_eq!(answer.header("last-modified"), "Tue, 02 Jan 2024 00:00:00 GMT");
        assert_eq!(answer.header("cache-control"), "public, no-cache");
        assert_eq!(answer.header("vary"), "accept-encoding");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(answer.header("content-type").ends_with("; charset=utf-8"));
    }
    let head = replica.state.store.head(&ALICE.parse().unwrap()).await.unwrap().unwrap();
    let document = replica.get(&format!("/{ALICE}")).await;
    assert_eq!(document.header("etag"), format!("W/\"doc-{}\"", head.cid()));
    for path in ["/export", "/export?after=0", "/did:web:example.com", "/_health", "/_nothing"] {
        let answer = replica.get(path).await;
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{path}");
    }
    assert_eq!(replica.get("/did:web:example.com").await.header("plc-sequence"), "2");
    assert_eq!(
        replica.get("/export?after=0").await.header("content-type"),
        "application/jsonlines"
    );
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again() {
    let mut replica = with_alice().await;
    let mut tags = HashMap::new();
    let pages = ["/export".to_owned(), "/export?after=0".to_owned()];
    let paths: Vec<String> =
        VIEWS.iter().map(|view| format!("/{ALICE}{view}")).chain(pages).collect();
    for path in &paths {
        let tag = replica.get(path).await.header("etag").to_owned();
        let again = replica.ask("GET", path, &[("if-none-match", &tag)]).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        assert_eq!(again.header("etag"), tag);
        assert_eq!(again.header("vary"), "accept-encoding");
        assert_ne!(again.header("last-modified"), "");
        assert_eq!(again.header("content-type"), "");
        let other = replica.ask("GET", path, &[("if-none-match", "\"other\", W/\"none\"")]).await;
        assert_eq!(other.status, 200, "{path}");
        tags.insert(path.clone(), tag);
    }
    assert_eq!(tags.values().collect::<std::collections::HashSet<_>>().len(), paths.len());

    // A recovery: Alice's second operation is nullified, and every view changes.
    let second: Timestamp = "2024-01-02T00:00:00.000Z".parse().unwrap();
    let third = stored(ALICE, "2024-01-03T00:00:00.000Z", 3, &operation("at://c.example"));
    let nullified = vec![(third.did, second, third.created_at)];
    replica.commit_with(Commit { operations: vec![third], nullified, ..Commit::default() }).await;
    for path in &paths {
        let answer = replica.ask("GET", path, &[("if-none-match", &tags[path])]).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test]
async fn an_audit_log_that_only_grew_in_the_past_has_another_tag() {
    let mut replica = with_alice().await;
    let (log, audit) = (format!("/{ALICE}/log"), format!("/{ALICE}/log/audit"));
    let before = (replica.get(&log).await, replica.get(&audit).await);
    let mut late = stored(ALICE, "2024-01-01T12:00:00.000Z", 3, &operation("at://late.example"));
    late.nullified_by = Some("2024-01-02T00:00:00.000Z".parse().unwrap());
    replica.commit(vec![late]).await;
    let after = (replica.get(&log).await, replica.get(&audit).await);
    assert_eq!(before.0.header("etag"), after.0.header("etag"));
    assert_eq!(before.0.body, after.0.body);
    assert_ne!(before.1.header("etag"), after.1.header("etag"));
    assert_ne!(before.1.body, after.1.body);
}

#[tokio::test]
async fn head_is_get_without_the_body_and_options_allows_everybody() {
    let replica = with_alice().await;
    let alice = format!("/{ALICE}");
    for path in [&alice, "/export", "/_health", "/", "/did:plc:nobody", "/export?count=0"] {
        let (get, head) = (replica.get(path).await, replica.ask("HEAD", path, &[]).await);
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("etag"), get.header("etag"), "{path}");

        let asked = [("origin", "https://app.example"), ("access-control-request-method", "GET")];
        let options = replica.ask("OPTIONS", path, &asked).await;
        assert_eq!((options.status, options.body.len()), (204, 0), "{path}");
        assert_eq!(options.header("access-control-allow-origin"), "*");
        assert_eq!(options.header("access-control-allow-methods"), "GET, HEAD, OPTIONS");
    }
}

#[tokio::test]
async fn errors_are_the_directorys() {
    let replica = with_alice().await;
    for (path, status, message) in [
        (
            "/did:plc:bbbbbbbbbbbbbbbbbbbbbbbb",
            404,
            "DID not registered: did:plc:bbbbbbbbbbbbbbbbbbbbbbbb",
        ),
        (
            "/did:plc:bbbbbbbbbbbbbbbbbbbbbbbb/log/",
            404,
            "DID not registered: did:plc:bbbbbbbbbbbbbbbbbbbbbbbb",
        ),
        ("/favicon.ico", 400, "Resolution of non-PLC DIDs not supported: favicon.ico"),
        ("/a%22%20%C3%A9%2Fb", 400, "Resolution of non-PLC DIDs not supported: a\\\" \u{e9}/b"),
        ("/%zz", 400, "Failed to decode param '%zz'"),
        ("/_other", 404, "No such path: /_other"),
        (
            "/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/log/first",
            404,
            "No such path: /did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/log/first",
        ),
        ("/export/stream", 426, "upgrade required"),
        ("/export?count=-1", 400, "Invalid count parameter"),
        ("/export?count=+x", 400, "Invalid count parameter"),
        ("/export?count=1&count=2", 400, "Invalid count parameter"),
        ("/export?after=2023-02-30T00:00:00Z", 400, "Invalid after parameter"),
        ("/export?after=-1", 400, "Invalid after parameter"),
    ] {
        let answer = replica.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.text(), format!("{{\"message\":\"{message}\"}}"), "{path}");
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    assert_eq!(replica.get("/export/stream").await.header("upgrade"), "websocket");
}

/// Whatever is not `did:plc:` and 24 of `[a-z2-7]` is no DID of this method, known or not.
#[tokio::test]
async fn what_is_no_did_plc_is_not_resolved() {
    let replica = with_alice().await;
    for (written, name) in [
        ("did:web:example.com", "did:web:example.com"),
        ("did%3Aweb%3Aexample.com", "did:web:example.com"),
        ("did:plc:AAAAAAAAAAAAAAAAAAAAAAAA", "did:plc:AAAAAAAAAAAAAAAAAAAAAAAA"),
        ("DID:PLC:aaaaaaaaaaaaaaaaaaaaaaaa", "DID:PLC:aaaaaaaaaaaaaaaaaaaaaaaa"),
        ("did:plc:aaaaaaaaaaaaaaaaaaaaaaa", "did:plc:aaaaaaaaaaaaaaaaaaaaaaa"),
        ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:aaaaaaaaaaaaaaaaaaaaaaaaa"),
        ("did:plc:aaaaaaaaaaaaaaaaaaaaaaa1", "did:plc:aaaaaaaaaaaaaaaaaaaaaaa1"),
        ("%20did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", " did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"),
        ("alice.example", "alice.example"),
        ("export", "export"),
    ] {
        for view in VIEWS.into_iter().chain(["/log/verdicts"]) {
            if written == "export" && view.is_empty() {
                continue;
            }
            let path = format!("/{written}{view}");
            let answer = replica.get(&path).await;
            assert_eq!(answer.status, 400, "{path}");
            let message = format!("Resolution of non-PLC DIDs not supported: {name}");
            assert_eq!(answer.text(), format!("{{\"message\":\"{message}\"}}"), "{path}");
            assert_eq!(answer.header("content-type"), "application/json; charset=utf-8", "{path}");
            assert_eq!(answer.header("plc-sequence"), "2", "{path}");
        }
    }
}

#[tokio::test]
async fn parameters_are_read_as_parse_int_reads_them() {
    let replica = with_alice().await;
    for (path, lines) in [
        ("/export?count=1x&after=0", 1),
        ("/export?count=%201&after=0", 1),
        ("/export?count=%2B1&after=0", 1),
        ("/export?count=&after=", 2),
        ("/export?count=99999999999999999999", 2),
        ("/export/?after=1", 1),
        ("/export?after=99999999999999999999", 0),
        ("/export?after=2024-01-01T00:00:00Z", 1),
        ("/export?after=2024-01-01T01:00:00%2B01:00", 1),
        ("/export?after=2024-01-01T01:00:00+01:00", 1),
        ("/export?after=2023", 0),
        ("/export?after=2023-12", 2),
    ] {
        let answer = replica.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.text().lines().count(), lines, "{path}");
        assert!(!answer.text().ends_with('\n'), "{path}");
    }
}

#[tokio::test]
async fn paths_may_be_escaped_and_end_with_a_slash() {
    let replica = with_alice().await;
    let plain = replica.get(&format!("/{ALICE}/log")).await;
    for path in [format!("/{ALICE}/log/"), format!("/{}/log", ALICE.replace(':', "%3A"))] {
        assert_eq!(replica.get(&path).await.body, plain.body, "{path}");
    }
}

#[tokio::test]
async fn nothing_can_be_written() {
    let replica = with_alice().await;
    let answer = replica.ask("POST", &format!("/{ALICE}"), &[]).await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD, OPTIONS"));
    assert!(answer.text().contains("https://plc.example.com"), "{}", answer.text());
    for (method, path) in [("DELETE", format!("/{ALICE}")), ("POST", "/export".to_owned())] {
        let answer = replica.ask(method, &path, &[]).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD, OPTIONS"));
    }
}

#[tokio::test]
async fn a_replica_that_is_filling_denies_nobody() {
    let mut replica = Replica::start().await;
    let first = stored(ALICE, "2024-01-01T00:00:00.000Z", 1, &operation("at://a.example"));
    replica.commit(vec![first]).await;
    assert_eq!(replica.get(&format!("/{ALICE}")).await.status, 200);
    for view in VIEWS {
        let unknown = replica.get(&format!("/{BOB}{view}")).await;
        assert_eq!(unknown.status, 503, "{view}");
        assert_ne!(unknown.header("retry-after"), "");
        assert_eq!(unknown.header("plc-sequence"), "1");
        assert_eq!(unknown.header("plc-as-of"), "2024-01-01T00:00:00.000Z");
    }
    assert_eq!(replica.get("/did:web:example.com").await.status, 400);
    replica.caught_up();
    assert_eq!(replica.get(&format!("/{BOB}")).await.status, 404);
}

#[tokio::test]
async fn a_tombstone_ends_the_document_but_not_the_log() {
    let mut replica = with_alice().await;
    let head = replica.state.store.head(&ALICE.parse().unwrap()).await.unwrap().unwrap();
    let end = tombstone(&head.cid().to_string());
    replica.commit(vec![stored(ALICE, "2024-01-03T00:00:00.000Z", 3, &end)]).await;
    for (view, status) in VIEWS.into_iter().zip([404, 404, 200, 200, 200]) {
        let answer = replica.get(&format!("/{ALICE}{view}")).await;
        assert_eq!(answer.status, status, "{view}");
        if status == 404 {
            assert_eq!(answer.text(), format!("{{\"message\":\"DID not available: {ALICE}\"}}"));
        }
    }
    assert_eq!(replica.get(&format!("/{ALICE}/log/last")).await.text(), end);
}

#[tokio::test]
async fn what_was_created_at_the_same_time_is_in_the_order_of_the_cids_text() {
    let mut replica = Replica::start().await;
    let at = "2024-01-01T00:00:00.000Z";
    let mut operations: Vec<StoredOperation> = (1..=40)
        .map(|number| StoredOperation { created_at: at.parse().unwrap(), ..numbered(number) })
        .collect();
    replica.commit(operations.clone()).await;
    operations.sort_by_key(|operation| operation.cid().to_string());
    let expected: Vec<String> =
        operations.iter().map(|operation| operation.cid().to_string()).collect();
    let page = replica.get("/export").await;
    let cids = page.text().lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["cid"].as_str().unwrap().to_owned()
    });
    assert_eq!(cids.collect::<Vec<_>>(), expected);
    assert_eq!(replica.get(&format!("/export?after={at}")).await.text(), "");
}

#[tokio::test]
async fn answers_are_compressed_when_that_is_asked_for() {
    let mut replica = Replica::start().await;
    replica.commit((1..=1_100).map(numbered).collect()).await;
    let plain = replica.get("/export").await;
    assert_eq!(plain.header("content-encoding"), "");
    assert_eq!(plain.text().lines().count(), 1_000);

    let zstd = replica.ask("GET", "/export", &[("accept-encoding", "gzip, br, zstd")]).await;
    assert_eq!(zstd.header("content-encoding"), "zstd");
    assert_eq!(zstd::decode_all(&zstd.body[..]).unwrap(), plain.body);
    assert_eq!(zstd.header("etag"), plain.header("etag"));
    assert_eq!(zstd.header("content-length"), zstd.body.len().to_string());

    let gzip = replica.ask("GET", "/export?count=20", &[("accept-encoding", "gzip")]).await;
    assert_eq!(gzip.header("content-encoding"), "gzip");
    let mut unpacked = String::new();
    std::io::Read::read_to_string(&mut GzDecoder::new(&gzip.body[..]), &mut unpacked).unwrap();
    assert_eq!(unpacked.lines().count(), 20);

    let tag = plain.header("etag");
    let asked = [("accept-encoding", "gzip"), ("if-none-match", tag)];
    assert_eq!(replica.ask("GET", "/export", &asked).await.status, 304);
    let small = replica.ask("GET", "/export?count=1", &[("accept-encoding", "gzip")]).await;
    assert_eq!(small.header("content-encoding"), "");
}

#[tokio::test]
async fn a_damaged_row_is_said_for_its_identity_alone() {
    let mut replica = with_alice().await;
    let damaged = StoredOperation {
        signed: Bytes::from_static(b"no operation"),
        ..stored(BOB, "2024-01-01T00:00:00.000Z", 3, &operation("at://bob.example"))
    };
    replica.commit(vec![damaged]).await;
    for view in VIEWS {
        let answer = replica.get(&format!("/{BOB}{view}")).await;
        assert_eq!(answer.status, 500, "{view}");
        assert!(answer.text().contains("damaged"), "{}", answer.text());
        assert_eq!(replica.get(&format!("/{ALICE}{view}")).await.status, 200);
    }
}

#[tokio::test]
async fn health_and_readiness() {
    /// The end of what is said of health, without the time since when it is so.
    fn with_upstreams(health: &str) -> &str {
        let (health, upstreams) = health.split_once(",\"upstreams\":").unwrap();
        let upstream =
            "[{\"url\":\"https://plc.example.com\",\"followed\":true,\"state\":\"unknown\",";
        assert!(upstreams.starts_with(upstream), "{upstreams}");
        health
    }
    let settings = ServeSettings { ready_lag: Duration::from_secs(30), ..Default::default() };
    let mut replica = Replica::start_with(settings, Feed::new()).await;
    let version = env!("CARGO_PKG_VERSION");
    let health = replica.get("/_health").await;
    assert_eq!(
        (health.status, with_upstreams(health.text())),
        (
            200,
            &*format!(
                "{{\"version\":\"{version}\",\"sequence\":0,\"lastOperationAt\":null,\
                 \"upstreamAgeSeconds\":null,\"state\":\"idle\",\"role\":\"follower\",\"readTwice\":0,\
                 \"upstreamSequence\":null,\"percent\":null,\"secondsLeft\":null"
            )
        )
    );
    assert_eq!(replica.get("/_ready").await.status, 503);

    let first = stored(ALICE, "2024-01-01T00:00:00.000Z", 7, &operation("at://a.example"));
    replica.commit(vec![first]).await;
    assert_eq!(replica.get("/_ready").await.status, 503);
    replica.caught_up();
    assert_eq!(replica.get("/_ready").await.status, 200);
    assert_eq!(
        with_upstreams(replica.get("/_health").await.text()),
        format!(
            "{{\"version\":\"{version}\",\"sequence\":7,\
             \"lastOperationAt\":\"2024-01-01T00:00:00.000Z\",\
             \"upstreamAgeSeconds\":0,\"state\":\"live\",\"role\":\"follower\",\"readTwice\":0,\
             \"upstreamSequence\":7,\"percent\":100.0,\"secondsLeft\":null"
        )
    );
    let page = replica.get("/").await;
    assert!(page.text().contains("https://plc.example.com"));
    assert!(page.text().contains("<dt>Read twice</dt><dd>nothing yet</dd>"), "{}", page.text());
    replica.state.status.set_read_twice(1_234);
    let health = replica.get("/_health").await;
    assert!(health.text().contains(",\"readTwice\":1234,"));
    let page = replica.get("/").await;
    assert!(page.text().contains("<dd>everything up to number 1,234</dd>"), "{}", page.text());
}

#[tokio::test]
async fn the_last_page_of_evidence_names_no_next_one() {
    let mut replica = Replica::start().await;
    let text = |n: u8| format!("number {n}");
    let divergences = (0..4).map(|n| NewDivergence {
        source: "there".to_owned(),
        did: ALICE.to_owned(),
        kind: "kind".to_owned(),
        subject: text(n),
        ours: None,
        theirs: None,
    });
    let refusals = (0..4).map(|n| NewRefusal {
        key: NewRefusal::key_of_line(text(n).as_bytes()),
        source: "https://plc.example".to_owned(),
        did: ALICE.to_owned(),
        sequence: None,
        cid: None,
        kind: "malformed".to_owned(),
        detail: String::new(),
        line: Bytes::from(text(n)),
    });
    let commit = Commit {
        divergences: divergences.collect(),
        refusals: refusals.collect(),
        ..Commit::default()
    };
    replica.commit_with(commit).await;
    for list in ["divergences", "refused"] {
        let page = async |query: &str| {
            let answer = replica.get(&format!("/_audit/{list}?{query}")).await;
            let page: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            (page[list].as_array().unwrap().len(), page["next"].as_i64())
        };
        let (first, next) = page("count=2").await;
        assert_eq!((first, next.is_some()), (2, true), "{list}");
        assert_eq!(page(&format!("count=2&after={}", next.unwrap())).await, (2, None), "{list}");
        assert_eq!(page("count=4").await, (4, None), "{list}");
        assert_eq!(page("count=3").await.0, 3, "{list}");
        assert_eq!(page("count=2&after=1000").await, (0, None), "{list}");
    }
}

#[tokio::test]
async fn the_tag_of_verdicts_tells_what_they_show() {
    let mut replica = Replica::start().await;
    let at = "2024-01-01T00:00:00.000Z";
    let unnumbered =
        StoredOperation { sequence: None, ..stored(ALICE, at, 0, &operation("at://a.example")) };
    replica.commit(vec![unnumbered]).await;
    let path = format!("/{ALICE}/log/verdicts");
    let before = replica.get(&path).await;
    assert!(before.text().contains("\"sequence\":null"), "{}", before.text());
    let numbered = vec![(ALICE.parse().unwrap(), at.parse().unwrap(), 7)];
    replica.commit_with(Commit { numbered, ..Commit::default() }).await;
    let has = [("if-none-match", before.header("etag"))];
    let after = replica.ask("GET", &path, &has).await;
    assert_eq!(after.status, 200);
    assert!(after.text().contains("\"sequence\":7"), "{}", after.text());
    let has = [("if-none-match", after.header("etag"))];
    let unchanged = replica.ask("GET", &path, &has).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(unchanged.header("etag"), after.header("etag"));
}

#[tokio::test]
async fn a_database_that_is_away_is_said_and_comes_back() {
    let Some(database) = Database::create().await else { return };
    let mut replica = Replica::start_at(&database.url, ServeSettings::default(), Feed::new()).await;
    let first = stored(ALICE, "2024-01-01T00:00:00.000Z", 1, &operation("at://a.example"));
    replica.commit(vec![first]).await;
    database.interrupt(true).await;
    for path in [&format!("/{ALICE}"), "/export", "/_health"] {
        let answer = replica.get(path).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
        assert_ne!(answer.header("retry-after"), "", "{path}");
    }
    database.interrupt(false).await;
    let begun = Instant::now();
    // Each connection comes back by itself: what answers one of them says nothing of the other.
    while replica.get(&format!("/{ALICE}")).await.status != 200
        || replica.get("/_health").await.status != 200
    {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ready is who can answer a lookup now, however young the log is: while the upstream has nothing new, it stays
/// young without the database.
#[tokio::test]
async fn who_cannot_answer_a_lookup_is_not_ready() {
    let Some(database) = Database::create().await else { return };
    let mut replica = Replica::start_at(&database.url, ServeSettings::default(), Feed::new()).await;
    let first = stored(ALICE, "2024-01-01T00:00:00.000Z", 1, &operation("at://a.example"));
    replica.commit(vec![first]).await;
    let ready_is = async |status: u16| {
        let begun = Instant::now();
        loop {
            // The upstream goes on to say that there is nothing new.
            replica.caught_up();
            let answer = replica.get("/_ready").await;
            if answer.status == status {
                let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
                assert_eq!(body["answersLookups"], status == 200, "{body}");
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", answer.text());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    ready_is(200).await;
    database.interrupt(true).await;
    ready_is(503).await;
    database.interrupt(false).await;
    ready_is(200).await;
    let mut client = database.client().await;
    client.run("ALTER TABLE operations RENAME TO gone").await;
    ready_is(503).await;
    client.run("ALTER TABLE gone RENAME TO operations").await;
    ready_is(200).await;
    // One that does not answer.
    client.run("BEGIN; LOCK TABLE operations IN ACCESS EXCLUSIVE MODE").await;
    let begun = Instant::now();
    ready_is(503).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    client.run("COMMIT").await;
    ready_is(200).await;
}

/// Writes a request as it stands and reads until the server closes the connection.
async fn raw(replica: &Replica, request: &str) -> String {
    let mut stream = TcpStream::connect(replica.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn requests_that_are_too_large_are_refused() {
    let replica = with_alice().await;
    let path = "x".repeat(100 << 10);
    let answer = raw(&replica, &format!("GET /{path} HTTP/1.1\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let headers: String = (0..100).map(|number| format!("x-{number}: y\r\n")).collect();
    let answer = raw(&replica, &format!("GET / HTTP/1.1\r\n{headers}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

/// What is not UTF-8 would have to be taken for something else.
#[tokio::test]
async fn parameters_that_are_not_utf_8_are_refused() {
    let replica = with_alice().await;
    let absent = did_plc::Cid::of(b"absent");
    for path in [
        "/_lookup?handle=%ff",
        "/_lookup?host=a%c3",
        "/_lookup?key=%ed%a0%80",
        "/_lookup?handle=a&current=%ff",
        "/_lookup?handle=a&cursor=%ff",
        "/_lookup?handle=a&limit=%ff",
        "/export?after=%ff",
        "/export?count=%ff",
        "/_audit/refused?did=%ff",
        "/_audit/divergences?did=%ff",
        "/explore?q=%ff",
        &format!("/{ALICE}?cid={absent}%ff"),
        &format!("/1.0/identifiers/{ALICE}?versionId=%ff"),
        &format!("/1.0/identifiers/{ALICE}?versionTime=%ff"),
    ] {
        assert_eq!(replica.get(path).await.status, 400, "{path}");
    }
}

/// Who asks for the same empty page without a pause is given it once a second, the same to the last byte, and
/// hears at once of what is new. Nobody else waits.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_nothing_again_and_again_is_slowed_down() {
    let trusted = vec!["127.0.0.1".parse().unwrap()];
    let proxies = Proxies { trusted, ..Proxies::default() };
    let limits = Limits { proxies, ..Limits::default() };
    let settings = ServeSettings { limits, ..ServeSettings::default() };
    let mut replica = Replica::start_with(settings, Feed::new()).await;
    replica.commit((1..=3).map(numbered).collect()).await;
    replica.caught_up();
    let soon = Duration::from_millis(800);
    for path in
        ["/export?after=3", "/export?after=2100-01-01T00:00:00Z", "/export?after=3&count=10"]
    {
        let begun = Instant::now();
        let first = replica.get(path).await;
        assert!(begun.elapsed() < soon, "{path}: {:?}", begun.elapsed());
        assert_eq!((first.status, first.text()), (200, ""));
        for _ in 0..3 {
            let again = replica.get(path).await;
            assert_eq!((again.status, again.text()), (200, ""));
            for name in ["etag", "content-type", "content-length", "cache-control", "vary"] {
                assert_eq!(again.header(name), first.header(name), "{path}: {name}");
            }
        }
        assert!(begun.elapsed() >= Duration::from_millis(2900), "{path}: {:?}", begun.elapsed());
        // Another page, and the same by somebody else.
        let begun = Instant::now();
        for _ in 0..20 {
            assert_ne!(replica.get("/export?after=2").await.text(), "");
        }
        replica.ask("GET", path, &[("x-forwarded-for", "192.0.2.1")]).await;
        assert!(begun.elapsed() < soon, "{path}: {:?}", begun.elapsed());
    }
    // Who pauses has paused enough.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let begun = Instant::now();
    replica.get("/export?after=3").await;
    assert!(begun.elapsed() < soon, "{:?}", begun.elapsed());

    let url = format!("http://{}/export?after=3", replica.address);
    let held = tokio::spawn(async move { reqwest::get(url).await.unwrap().text().await.unwrap() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!held.is_finished());
    replica.commit(vec![numbered(4)]).await;
    let page = tokio::time::timeout(Duration::from_millis(400), held).await.unwrap().unwrap();
    assert!(page.contains(r#""seq":4,"#), "{page}");
}

/// There is a place for so many, and nobody is refused for want of one.
#[tokio::test(flavor = "multi_thread")]
async fn many_may_ask_for_nothing_at_once() {
    let replica = Replica::start().await;
    replica.get("/export?after=0").await;
    let begun = Instant::now();
    let all = (0..1_200).map(|_| replica.get("/export?after=0"));
    for answer in futures::future::join_all(all).await {
        assert_eq!((answer.status, answer.text()), (200, ""));
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let replica = with_alice().await;
    let ask = async |version: &str, path: &str, hosts: &[&str]| {
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        let head = format!("GET {path} HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
        raw(&replica, &head).await
    };
    let path = format!("/{ALICE}");
    for (version, hosts) in [("1.1", &["here"][..]), ("1.1", &[""]), ("1.0", &[]), ("1.0", &["a"])]
    {
        let answer = ask(version, &path, hosts).await;
        assert!(answer.starts_with(&format!("HTTP/{version} 200")), "{hosts:?}: {answer}");
    }
    for path in [&*path, "/export", "/_health", "/", "/no/such/path"] {
        for (version, hosts) in [
            ("1.1", &[][..]),
            ("1.1", &["here", "here"]),
            ("1.1", &["a", "b"]),
            ("1.0", &["a", "b"]),
        ] {
            let answer = ask(version, path, hosts).await;
            assert!(answer.starts_with(&format!("HTTP/{version} 400")), "{hosts:?}: {answer}");
            let told = format!(
                r#"{{"message":"a request has to have one Host header, and this one has {}"}}"#,
                hosts.len()
            );
            assert!(answer.ends_with(&told), "{answer}");
            assert!(answer.contains("access-control-allow-origin: *"), "{answer}");
        }
    }
}

#[tokio::test]
async fn the_end_closes_idle_connections_and_takes_no_new_ones() {
    let mut replica = with_alice().await;
    // The client keeps its connection.
    assert_eq!(replica.get("/_health").await.status, 200);
    let begun = Instant::now();
    replica.shutdown.cancel();
    (&mut replica.server).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(TcpStream::connect(replica.address).await.is_err());
}
