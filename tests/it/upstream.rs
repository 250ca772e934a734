//! Every way in which an upstream can fail, and what comes of it: nothing that stops anything,
//! nothing lost, nothing that spins.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use plc_replica::upstream::{
    Batch, ExportClient, Fetched, Limits, Origin, PagesAhead, Stream, UpstreamFault,
};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::shared;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route, load};

/// Short enough for tests, long enough for a busy machine.
fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(2),
        silence: Duration::from_millis(400),
        answer: Duration::from_millis(900),
        body: 1 << 20,
        page: 10,
        backoff_first: Duration::from_millis(10),
        backoff_longest: Duration::from_millis(80),
        quiet: Duration::from_millis(150),
        pong: Duration::from_millis(300),
        ..Limits::default()
    }
}

fn client(upstream: &FakeUpstream) -> ExportClient {
    ExportClient::new(&upstream.url(), 0, "plc-replica/test", limits()).unwrap()
}

fn entry(seq: i64) -> LogEntry {
    LogEntry {
        did: format!(
            "did:plc:{}",
            ["abcdefghijklmnopqrstuvwx", "222222222222222222222222"][seq as usize % 2]
        ),
        cid: format!("cid-{seq}"),
        seq,
        created_at: format!("2024-01-01T00:00:00.{seq:03}Z"),
        operation: r#"{"type":"plc_operation","seq":"seq"}"#.to_owned(),
        nullified: false,
    }
}

fn entries(count: i64) -> impl Iterator<Item = LogEntry> {
    (1..=count).map(entry)
}

/// The number in a line; none when there is none.
fn seq(line: &[u8]) -> Option<i64> {
    serde_json::from_slice::<Value>(line).ok()?.get("seq")?.as_i64()
}

/// What paging to the end brought.
#[derive(Debug, Default)]
struct Paged {
    batches: Vec<Batch>,
    faults: Vec<UpstreamFault>,
}

impl Paged {
    /// Pages with [`limits`] until the end, or until so many faults have been seen.
    async fn all(client: &ExportClient, after: i64, max_faults: usize) -> Paged {
        let mut pages = PagesAhead::start(client, after);
        let mut paged = Paged::default();
        let reading = async {
            while let Some(fetched) = pages.next().await {
                match fetched {
                    Fetched::Batch(batch) => paged.batches.push(batch),
                    Fetched::Fault { fault, .. } => paged.faults.push(fault),
                }
                if paged.faults.len() >= max_faults {
                    break;
                }
            }
        };
        timeout(Duration::from_secs(20), reading).await.expect("the end of the log");
        paged
    }

    fn lines(&self) -> Vec<&[u8]> {
        self.batches.iter().flat_map(|batch| &batch.lines).map(|line| &line[..]).collect()
    }

    fn seqs(&self) -> Vec<i64> {
        self.lines().into_iter().filter_map(seq).collect()
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.faults.iter().map(UpstreamFault::kind).collect()
    }
}

const ANY: usize = usize::MAX;

/// The fake itself: what every other test relies on.
#[tokio::test]
async fn the_log_can_be_rewritten() {
    let upstream = FakeUpstream::start(entries(20)).await;
    let client = client(&upstream);
    upstream.alter(3, |entry| entry.nullified = true);
    upstream.delete(4);
    upstream.rewind(15);
    assert_eq!(upstream.log().len(), 14);
    let by_time = client.fetch("/export?after=2024-01-01T00:00:00.002Z&count=2").await.unwrap();
    let lines: Vec<&[u8]> = by_time.body.split(|byte| *byte == b'\n').collect();
    assert!(lines.len() == 2 && lines[0].ends_with(br#""nullified":true}"#));
    upstream.answer("/_health", 200, "well");
    assert_eq!(client.fetch("/_health").await.unwrap().body, "well");
    upstream.fail(Route::Export, ANY, Fault::Silence);
    upstream.mend();
    let mut stream = Stream::open(&client, 10).await.unwrap();
    assert_eq!(read(&mut stream, 5).await, [11, 12, 13, 14, 15]);
    assert_eq!(upstream.streams(), 1);
}

/// The recorded log, page by page, byte for byte.
#[tokio::test]
async fn the_recorded_log_arrives_as_it_is() {
    let folder = shared::golden();
    let upstream = FakeUpstream::start(load(&folder.join("export.jsonl"))).await;
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    let text = std::fs::read(folder.join("export.jsonl")).unwrap();
    assert_eq!(paged.lines().join(&b'\n'), text.trim_ascii_end());
    let mut stream = Stream::open(&client(&upstream), 0).await.unwrap();
    assert_eq!(read(&mut stream, 465).await, paged.seqs());
    // Documents are made from what it holds.
    let did: String = upstream.log()[0].did.clone();
    let document = client(&upstream).fetch(&format!("/{did}")).await.unwrap();
    assert!(document.body.starts_with(b"{\"@context\":"));
}

#[tokio::test]
async fn pages_lead_to_the_end() {
    let upstream = FakeUpstream::start(entries(35)).await;
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    assert_eq!(paged.seqs(), (1..=35).collect::<Vec<_>>());
    assert!(paged.faults.is_empty());
    let origins: Vec<Origin> = paged.batches.iter().map(|batch| batch.origin).collect();
    let page = |after, next, near_end| Origin::Page { after, next, near_end };
    assert_eq!(
        origins,
        [page(0, 10, false), page(10, 20, false), page(20, 30, false), page(30, 35, true)]
    );
    assert!(paged.batches.iter().map(Batch::reached_end).eq([false, false, false, true]));
    assert_eq!(upstream.asked()[1].path, "/export?after=10&count=10");
    assert_eq!(upstream.asked()[1].user_agent, "plc-replica/test");
}

#[tokio::test]
async fn name_and_password_are_for_the_upstream_alone() {
    let upstream = FakeUpstream::start(entries(5)).await;
    let url = upstream.url().replace("http://", "http://mirror:s%C3%A9same@");
    let client = ExportClient::new(&url, 0, "plc-replica/test", limits()).unwrap();
    assert_eq!(client.base(), upstream.url());
    assert_eq!(Paged::all(&client, 0, ANY).await.seqs(), [1, 2, 3, 4, 5]);
    let mut stream = Stream::open(&client, 3).await.unwrap();
    assert_eq!(read(&mut stream, 2).await, [4, 5]);
    let asked = upstream.asked();
    assert!(asked.iter().any(|asked| asked.route == Route::Stream));
    // `mirror:sésame`
    // Pages are compressed to a quarter.
    assert!(asked.iter().all(|asked| asked.route == Route::Stream
        || asked.accept_encoding.contains("gzip") && asked.accept_encoding.contains("zstd")));
    assert!(asked.iter().all(|asked| asked.authorization == "Basic bWlycm9yOnPDqXNhbWU="));
}

/// However long it takes to come back to the stream: batches of one at a time would never catch up.
#[tokio::test]
async fn what_has_arrived_is_one_batch() {
    let upstream = FakeUpstream::start(entries(50)).await;
    let limits = Limits { gather: Duration::ZERO, ..limits() };
    let client = ExportClient::new(&upstream.url(), 0, "plc-replica/test", limits).unwrap();
    let mut stream = Stream::open(&client, 0).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(stream.next().await.unwrap().lines.len() > 1);
}

#[tokio::test]
async fn an_empty_page_is_the_present() {
    let upstream = FakeUpstream::start(entries(30)).await;
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    assert_eq!(paged.batches.len(), 4);
    assert!(paged.batches[3].lines.is_empty() && paged.batches[3].reached_end());
    let beyond = Paged::all(&client(&upstream), 77, ANY).await;
    assert_eq!(beyond.batches[0].origin, Origin::Page { after: 77, next: 77, near_end: true });
}

/// Each fault twice, in the middle of a log: reported, waited out, and everything comes.
#[tokio::test]
async fn faults_pass_and_nothing_is_lost() {
    let cases = [
        (Fault::CutBody, &["truncated", "truncated"][..]),
        (Fault::CutChunks, &["truncated", "truncated"]),
        (Fault::Gzip { cut: true }, &["truncated", "truncated"]),
        (Fault::Gzip { cut: false }, &[]),
        // Complete as far as HTTP can tell: what is missing is simply fetched next.
        (Fault::CutLine, &[]),
        (Fault::Drip(10), &["too-slow", "too-slow"]),
        (Fault::SilentBody, &["silent", "silent"]),
        (Fault::Silence, &["silent", "silent"]),
        (Fault::EndlessBody, &["body-too-large", "body-too-large"]),
        (Fault::Status(429, None), &["rate-limited", "rate-limited"]),
        (Fault::Status(500, None), &["server-error", "server-error"]),
        (Fault::Status(503, Some("0".to_owned())), &["server-error", "server-error"]),
        (Fault::Status(403, None), &["unexpected-status", "unexpected-status"]),
        (Fault::Status(204, None), &["unexpected-status", "unexpected-status"]),
        (Fault::WebPage, &["not-an-export", "not-an-export"]),
        (Fault::line(0, "nonsense"), &[]),
    ];
    for (fault, kinds) in cases {
        let upstream = FakeUpstream::start(entries(35)).await;
        upstream.fail(Route::Export, 1, Fault::edited(|_| {}));
        upstream.fail(Route::Export, 2, fault);
        let paged = Paged::all(&client(&upstream), 0, ANY).await;
        assert_eq!(paged.kinds(), kinds);
        assert!(paged.batches.last().unwrap().reached_end(), "{kinds:?}");
        let mut seqs = paged.seqs();
        seqs.dedup();
        // The line that was replaced in two pages is for the caller to fetch again.
        let expected: Vec<i64> =
            (1..=35).filter(|seq| seqs.len() == 35 || ![11, 21].contains(seq)).collect();
        assert_eq!(seqs, expected, "{kinds:?}");
    }
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    let upstream = FakeUpstream::start(entries(5)).await;
    upstream.fail(Route::Export, ANY, Fault::RedirectLoop);
    let client = client(&upstream);
    let fault = client.page(0, 0).await.unwrap_err();
    assert_eq!(fault, UpstreamFault::RedirectLoop);
    assert!(upstream.asked_for(Route::Export) <= 7);
}

#[tokio::test]
async fn the_complete_lines_of_a_cut_page_are_used() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.fail(Route::Export, 1, Fault::CutBody);
    let page = client(&upstream).page(0, 0).await.unwrap();
    assert!(matches!(page.cut, Some(UpstreamFault::Truncated { .. })));
    assert!(page.next >= 3 && page.next < 10 && !page.near_end, "{page:?}");
    assert_eq!(page.lines.len() as i64, page.next);
}

#[tokio::test]
async fn a_last_line_that_is_damaged_is_fetched_again() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.garble(10, 2, r#"{"did":"did:plc:abc"#);
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    assert_eq!(paged.seqs(), (1..=10).collect::<Vec<_>>());
    // Left out of its page, alone once, and then well.
    assert_eq!(paged.kinds(), ["truncated"]);
}

#[tokio::test]
async fn a_last_line_that_stays_damaged_is_handed_over() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.garble(10, ANY, r#"{"did":"did:plc:abc"#);
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    assert_eq!(paged.seqs(), (1..=9).collect::<Vec<_>>());
    assert_eq!(paged.lines().last().unwrap(), br#"{"did":"did:plc:abc"#);
    assert_eq!(paged.kinds(), ["truncated", "truncated"]);
    let last = paged.batches.last().unwrap();
    assert_eq!(last.origin, Origin::Page { after: 9, next: 9, near_end: true });
    assert!(!last.reached_end());
}

#[tokio::test]
async fn what_is_no_object_at_all_is_waited_out() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.garble(10, ANY, "nonsense");
    let client = client(&upstream);
    let paged = Paged::all(&client, 0, 5).await;
    assert_eq!(paged.kinds(), ["not-an-export"; 5]);
    // As soon as the log goes on it is a line among others.
    upstream.append(entry(11));
    let paged = Paged::all(&client, 9, ANY).await;
    assert_eq!(paged.lines()[0], b"nonsense");
    assert_eq!(paged.seqs(), [11]);
}

#[tokio::test]
async fn lines_of_unknown_type_are_handed_over() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.garble(4, ANY, r#"{"type":"news","text":"in the middle"}"#);
    upstream.garble(10, ANY, r#"{"type":"news","text":"at the end"}"#);
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    assert_eq!(paged.seqs(), [1, 2, 3, 5, 6, 7, 8, 9]);
    let news = paged.lines().iter().filter(|line| seq(line).is_none()).count();
    assert!(news >= 2);
    assert!(!paged.batches.last().unwrap().reached_end());
}

#[tokio::test]
async fn a_page_that_leads_nowhere_is_not_asked_for_in_haste() {
    let upstream = FakeUpstream::start(entries(10)).await;
    // The first page, whatever was asked for.
    let first: Vec<String> = entries(10).map(|entry| entry.sequenced()).collect();
    upstream.fail(Route::Export, ANY, Fault::edited(move |lines| lines.clone_from(&first)));
    let begun = Instant::now();
    let paged = Paged::all(&client(&upstream), 0, 6).await;
    assert_eq!(paged.kinds(), ["not-advancing"; 6]);
    // Handed over when it was new, and once more to be looked at.
    assert_eq!(paged.batches.len(), 2);
    assert!(begun.elapsed() >= Duration::from_millis(5 + 10 + 20 + 40 + 40));
}

#[tokio::test]
async fn numbers_out_of_order_and_twice() {
    let upstream = FakeUpstream::start(entries(25)).await;
    upstream.fail(Route::Export, 1, Fault::edited(|lines| lines.swap(8, 9)));
    upstream.fail(Route::Export, 1, Fault::edited(|lines| lines.insert(0, entry(3).sequenced())));
    upstream.fail(Route::Export, 1, Fault::edited(|lines| lines.push(entry(3).sequenced())));
    let paged = Paged::all(&client(&upstream), 0, ANY).await;
    let mut seqs = paged.seqs();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs, (1..=25).collect::<Vec<_>>());
    assert!(paged.faults.is_empty());
}

#[tokio::test]
async fn retry_after_is_honoured_by_everybody() {
    let upstream = FakeUpstream::start(entries(5)).await;
    upstream.fail(Route::Export, 1, Fault::Status(429, Some("1".to_owned())));
    let client = client(&upstream);
    let begun = Instant::now();
    let fault = client.page(0, 0).await.unwrap_err();
    assert_eq!(fault, UpstreamFault::RateLimited { retry_after: Some(Duration::from_secs(1)) });
    assert!(client.fetch("/_health").await.is_ok());
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_upstream_that_goes_away_comes_back() {
    let mut upstream = FakeUpstream::start(entries(15)).await;
    let client = client(&upstream);
    upstream.stop().await;
    let paged = Paged::all(&client, 0, 2).await;
    assert_eq!(paged.kinds(), ["unreachable", "unreachable"]);
    assert_eq!(Stream::open(&client, 0).await.unwrap_err().kind(), "unreachable");
    upstream.start_again().await;
    assert_eq!(Paged::all(&client, 0, ANY).await.seqs().len(), 15);
}

/// A listener that never says anything, and one that speaks no TLS.
#[tokio::test]
async fn what_is_no_web_server_is_unreachable_or_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut byte = [0];
                let tls = connection.peek(&mut byte).await.is_ok_and(|_| byte == [0x16]);
                while !tls && connection.read(&mut byte).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    for (scheme, kind) in [("http", "silent"), ("https", "unreachable")] {
        let url = format!("{scheme}://{address}");
        let client = ExportClient::new(&url, 0, "test", limits()).unwrap();
        assert_eq!(client.page(0, 0).await.unwrap_err().kind(), kind);
        assert_eq!(Stream::open(&client, 0).await.unwrap_err().kind(), kind);
    }
}

/// Waits until so many pages have been asked for, and then a while for one that would be too many.
async fn asked_exactly(upstream: &FakeUpstream, pages: usize) {
    let asked = async {
        while upstream.asked_for(Route::Export) < pages {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), asked).await.expect("enough pages to be asked for");
    sleep(Duration::from_millis(100)).await;
    assert_eq!(upstream.asked_for(Route::Export), pages);
}

#[tokio::test]
async fn fetching_ahead_is_bounded_and_ends_with_its_consumer() {
    let upstream = FakeUpstream::start(entries(500)).await;
    let pages = PagesAhead::start(&client(&upstream), 0);
    // Four wait, one has been fetched and waits for its place.
    asked_exactly(&upstream, 5).await;
    drop(pages);
    asked_exactly(&upstream, 5).await;

    let narrow = Limits { bytes_ahead: 2_000, ..limits() };
    let client = ExportClient::new(&upstream.url(), 0, "test", narrow).unwrap();
    let mut pages = PagesAhead::start(&client, 0);
    // A page is 1.7 kB: one waits, one has no room.
    asked_exactly(&upstream, 7).await;
    let mut count = 0;
    while let Some(Fetched::Batch(_)) = pages.next().await {
        count += 1;
    }
    assert_eq!(count, 51);
}

#[tokio::test]
async fn requests_keep_to_the_budget() {
    let upstream = FakeUpstream::start(entries(80)).await;
    let begun = Instant::now();
    let client = ExportClient::new(&upstream.url(), 600, "test", limits()).unwrap();
    Paged::all(&client, 0, ANY).await;
    let asked = upstream.asked();
    assert_eq!(asked.len(), 9);
    // Whenever one arrived there: it was not sent earlier than its turn came.
    for (turn, asked) in asked.iter().enumerate() {
        let earliest = Duration::from_millis(100) * turn as u32;
        assert!(asked.at - begun >= earliest, "{:?} for {}", asked.at - begun, asked.path);
    }
}

#[tokio::test]
async fn audit_logs_and_other_answers() {
    let upstream = FakeUpstream::start(entries(4)).await;
    let client = client(&upstream);
    let did = "did:plc:abcdefghijklmnopqrstuvwx".parse().unwrap();
    let log = client.audit_log(&did).await.unwrap().unwrap();
    let log: Vec<Value> = serde_json::from_slice(&log).unwrap();
    assert_eq!((log.len(), log[0]["cid"].as_str()), (2, Some("cid-2")));
    let unknown = "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz".parse().unwrap();
    assert_eq!(client.audit_log(&unknown).await, Ok(None));
    let answer = client.fetch("/did:plc:zzzzzzzzzzzzzzzzzzzzzzzz").await.unwrap();
    assert_eq!(answer.status, 404);
    assert!(answer.body.starts_with(b"{\"message\":\"DID not registered"));
    upstream.fail(Route::Identity, 1, Fault::CutBody);
    assert_eq!(client.audit_log(&did).await.unwrap_err().kind(), "truncated");
    upstream.fail(Route::Identity, 1, Fault::Status(502, None));
    assert_eq!(client.audit_log(&did).await.unwrap_err().kind(), "server-error");
}

/// Numbers of so many messages of a stream.
async fn read(stream: &mut Stream, count: usize) -> Vec<i64> {
    let mut seqs = Vec::new();
    while seqs.len() < count {
        let batch = timeout(Duration::from_secs(5), stream.next()).await.expect("a message");
        let batch = batch.unwrap();
        assert_eq!(batch.origin, Origin::Stream);
        seqs.extend(batch.lines.iter().filter_map(|line| seq(line)));
    }
    seqs
}

async fn ends(stream: &mut Stream) -> UpstreamFault {
    let ending = async {
        loop {
            if let Err(fault) = stream.next().await {
                return fault;
            }
        }
    };
    timeout(Duration::from_secs(5), ending).await.expect("an end")
}

#[tokio::test]
async fn a_stream_brings_what_is_after_the_cursor_and_then_what_is_new() {
    let upstream = FakeUpstream::start(entries(2500)).await;
    let client = client(&upstream);
    let mut stream = Stream::open(&client, 100).await.unwrap();
    assert_eq!(read(&mut stream, 2400).await, (101..=2500).collect::<Vec<_>>());
    upstream.append_all((2501..=2510).map(entry));
    assert_eq!(read(&mut stream, 10).await, (2501..=2510).collect::<Vec<_>>());
    assert!(upstream.asked().iter().all(|asked| asked.user_agent == "plc-replica/test"));
    assert_eq!(upstream.asked()[0].path, "/export/stream?cursor=100");
    upstream.say("whatever it is");
    assert_eq!(stream.next().await.unwrap().lines, ["whatever it is"]);
}

/// A batch of the stream is complete when nothing more came for a while after its first message, or
/// at once when it has as many messages or bytes as it may have.
#[tokio::test]
async fn what_comes_together_is_gathered() {
    let never = Duration::from_secs(3600);
    let upstream = FakeUpstream::start(entries(20)).await;
    let batch = async |limits: Limits| {
        let client = ExportClient::new(&upstream.url(), 0, "test", limits).unwrap();
        let mut stream = Stream::open(&client, 10).await.unwrap();
        let next = timeout(Duration::from_secs(20), stream.next());
        next.await.expect("a complete batch").unwrap().lines.len()
    };
    // Longer than ten messages need to come, however busy the machine is.
    let gather = Duration::from_secs(3);
    assert_eq!(batch(Limits { gather, ..limits() }).await, 10);
    assert_eq!(batch(Limits { gather: never, gather_messages: 7, ..limits() }).await, 7);
    let bytes = entry(11).streamed().len() * 2 + 1;
    assert_eq!(batch(Limits { gather: never, gather_bytes: bytes, ..limits() }).await, 3);
}

#[tokio::test]
async fn waiting_for_a_stream_may_be_given_up() {
    let upstream = FakeUpstream::start([]).await;
    let mut stream = Stream::open(&client(&upstream), 0).await.unwrap();
    let upstream = Arc::new(upstream);
    let writer = Arc::clone(&upstream);
    let appending = tokio::spawn(async move {
        for seq in 1..=200 {
            writer.append(entry(seq));
            sleep(Duration::from_millis(1)).await;
        }
    });
    let mut seqs = Vec::new();
    while seqs.len() < 200 {
        if let Ok(batch) = timeout(Duration::from_millis(2), stream.next()).await {
            seqs.extend(batch.unwrap().lines.iter().filter_map(|line| seq(line)));
        }
    }
    assert_eq!(seqs, (1..=200).collect::<Vec<_>>());
    appending.await.unwrap();
}

#[tokio::test]
async fn closes_say_why() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.forget_streams_before(5);
    let client = client(&upstream);
    for (cursor, fault) in [(11, UpstreamFault::FutureCursor), (4, UpstreamFault::OutdatedCursor)] {
        assert_eq!(ends(&mut Stream::open(&client, cursor).await.unwrap()).await, fault);
    }
    upstream.fail(Route::Stream, 1, Fault::Close(1000, "ConsumerTooSlow"));
    let mut stream = Stream::open(&client, 5).await.unwrap();
    assert_eq!(ends(&mut stream).await, UpstreamFault::ConsumerTooSlow);
    let restart = UpstreamFault::StreamClosed { code: 1012, reason: "restart".to_owned() };
    for (code, reason, fault) in
        [(1000, "ConsumerTooSlow", UpstreamFault::ConsumerTooSlow), (1012, "restart", restart)]
    {
        let mut stream = Stream::open(&client, 5).await.unwrap();
        assert_eq!(read(&mut stream, 5).await, [6, 7, 8, 9, 10]);
        upstream.close_streams(code, reason);
        assert_eq!(ends(&mut stream).await, fault);
        assert_eq!(ends(&mut stream).await, fault, "and it stays ended");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_gives_what_came_before() {
    let upstream = FakeUpstream::start(entries(10)).await;
    upstream.fail(Route::Stream, 1, Fault::DropAfter(7));
    let mut stream = Stream::open(&client(&upstream), 0).await.unwrap();
    assert_eq!(read(&mut stream, 7).await, (1..=7).collect::<Vec<_>>());
    assert_eq!(ends(&mut stream).await.kind(), "stream-broken");
}

#[tokio::test]
async fn silence_is_noticed_and_quiet_is_not_silence() {
    let upstream = FakeUpstream::start([]).await;
    let client = client(&upstream);
    upstream.fail(Route::Stream, 1, Fault::SilentStream);
    let begun = Instant::now();
    let mut silent = Stream::open(&client, 0).await.unwrap();
    assert_eq!(ends(&mut silent).await.kind(), "stream-silent");
    assert!(begun.elapsed() >= Duration::from_millis(450));

    let patient = Limits { pong: Duration::from_secs(20), ..limits() };
    let client = ExportClient::new(&upstream.url(), 0, "test", patient).unwrap();
    let opening = Instant::now();
    let mut quiet = Stream::open(&client, 0).await.unwrap();
    // Nothing comes but the answers to pings.
    let long = Duration::from_millis(600);
    while opening.elapsed() < long + quiet.silent_for() {
        assert!(timeout(long, quiet.next()).await.is_err());
        assert!(opening.elapsed() < Duration::from_secs(20), "it answers pings");
    }
    upstream.append(entry(1));
    assert_eq!(read(&mut quiet, 1).await, [1]);
}

#[tokio::test]
async fn a_busy_consumer_does_not_find_the_stream_silent() {
    let upstream = FakeUpstream::start([]).await;
    let mut stream = Stream::open(&client(&upstream), 0).await.unwrap();
    upstream.append(entry(1));
    sleep(Duration::from_millis(1000)).await;
    assert_eq!(read(&mut stream, 1).await, [1]);
    sleep(Duration::from_millis(1000)).await;
    upstream.append(entry(2));
    assert_eq!(read(&mut stream, 1).await, [2]);
}

#[tokio::test]
async fn upgrades_are_refused_in_several_ways() {
    let upstream = FakeUpstream::start(entries(3)).await;
    let client = client(&upstream);
    for (fault, expected) in [
        (Fault::Status(404, None), UpstreamFault::NoStream { status: 404 }),
        (Fault::Status(426, None), UpstreamFault::NoStream { status: 426 }),
        (Fault::Status(200, None), UpstreamFault::NoStream { status: 200 }),
        (Fault::RedirectLoop, UpstreamFault::NoStream { status: 302 }),
        (Fault::Status(502, None), UpstreamFault::ServerError { status: 502, retry_after: None }),
        (
            Fault::Status(429, Some("0".to_owned())),
            UpstreamFault::RateLimited { retry_after: Some(Duration::ZERO) },
        ),
        (Fault::Silence, UpstreamFault::Silent { after: Duration::from_millis(400) }),
    ] {
        upstream.fail(Route::Stream, 1, fault);
        assert_eq!(Stream::open(&client, 0).await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn an_endless_message_is_not_read() {
    let upstream = FakeUpstream::start([]).await;
    let narrow = Limits { message: 10_000, ..limits() };
    let client = ExportClient::new(&upstream.url(), 0, "test", narrow).unwrap();
    let mut stream = Stream::open(&client, 0).await.unwrap();
    upstream.append(entry(1));
    assert_eq!(read(&mut stream, 1).await, [1]);
    upstream.say(&"x".repeat(10_001));
    assert_eq!(ends(&mut stream).await, UpstreamFault::MessageTooLarge { limit: 10_000 });
}
