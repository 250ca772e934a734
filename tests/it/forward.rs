//! Writes through: what is submitted to a replica goes to its upstream, and is read here at once.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use plc_testkit::Generated;
use plc_testkit::builder::{Story, Told};
use plc_testkit::fake_upstream::{FakeUpstream, Fault, Route};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::follow::places;
use crate::process::Served;
use crate::skip::skipped;

/// What the directory answers to an operation that it takes.
const OK: (u16, &str) = (200, "OK");
const MISORDERED: &str = "Operations not correctly ordered";

/// A replica that passes writes on, its upstream, and what is written.
struct Written {
    upstream: FakeUpstream,
    replica: Served,
    story: Story,
    client: reqwest::Client,
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What became of the operation.
    fn outcome(&self) -> &str {
        self.header("plc-forwarded")
    }

    fn told(&self) -> (u16, &str) {
        (self.status, &self.text)
    }

    /// What stands in `message`.
    fn message(&self) -> String {
        let body: Value = serde_json::from_str(&self.text).unwrap();
        body["message"].as_str().unwrap().to_owned()
    }
}

impl Written {
    /// On an empty log.
    async fn start(database: &str, environment: &[(&str, &str)]) -> Written {
        let upstream = FakeUpstream::start([]).await;
        let environment = [&[("PLC_FORWARD_WRITES", "on")], environment].concat();
        let replica = Served::start_on(database, &upstream.url(), &environment);
        let client = reqwest::Client::new();
        let written = Written { upstream, replica, story: Story::seeded(1), client };
        written.is("live").await;
        written
    }

    /// The same, on SQLite in a folder of its own.
    async fn start_here(environment: &[(&str, &str)]) -> (Written, TempDir) {
        let folder = TempDir::new().unwrap();
        let database = format!("sqlite://{}", folder.path().join("plc.db").display());
        (Written::start(&database, environment).await, folder)
    }

    /// Waits until the follower does this.
    async fn is(&self, mode: &str) {
        let health = format!("{}/_health", self.url());
        let is = async || match reqwest::get(&health).await {
            Ok(answer) => answer.text().await.unwrap().contains(&format!(r#""state":"{mode}""#)),
            Err(_) => false,
        };
        self.replica.eventually(mode, is).await;
    }

    fn url(&self) -> String {
        format!("http://{}", self.replica.address())
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Answer {
        let answer = request.send().await.unwrap();
        Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            text: answer.text().await.unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(self.client.get(format!("{}/{path}", self.url()))).await
    }

    fn post(&self, did: &str, operation: &str) -> reqwest::RequestBuilder {
        let request = self.client.post(format!("{}/{did}", self.url()));
        request.header("content-type", "application/json").body(operation.to_owned())
    }

    /// Submits an operation as a client does.
    async fn submit(&self, did: &str, operation: &str) -> Answer {
        self.ask(self.post(did, operation)).await
    }

    /// Submits what the story has told last.
    async fn write(&self) -> Answer {
        let last = self.last();
        self.submit(&last.did, &last.operation_json).await
    }

    /// The same, waiting so many seconds for it to come back.
    async fn write_waiting(&self, seconds: u32) -> Answer {
        let last = self.last();
        let request = self.post(&last.did, &last.operation_json);
        self.ask(request.header("prefer", format!("wait={seconds}"))).await
    }

    fn last(&self) -> &Generated {
        self.story.log().last().unwrap()
    }

    /// Operations that the upstream was sent.
    fn sent(&self) -> usize {
        self.upstream.asked_for(Route::Write)
    }

    /// What the story has told last is taken, and read here at once.
    async fn takes_the_last(&self) {
        let answer = self.write_waiting(30).await;
        assert_eq!((answer.told(), answer.outcome()), (OK, "committed"), "{answer:?}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert_eq!(answer.header("cache-control"), "no-store");
        let last = self.last();
        let shown = self.get(&format!("{}/log/last", last.did)).await;
        assert_eq!(shown.told(), (200, &*last.operation_json));
        assert_eq!(shown.header("plc-sequence"), answer.header("plc-sequence"));
        let by_cid = self.get(&format!("{}?cid={}", last.did, last.cid)).await;
        assert!(matches!(by_cid.status, 200 | 404), "{by_cid:?}");
    }

    async fn create(&mut self) -> Told {
        let told = self.story.create().accepted();
        self.takes_the_last().await;
        told
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_created_updated_recovered_and_ended_through_a_replica() {
    for place in places().await {
        let mut written = Written::start(&place.url, &[]).await;
        let alice = written.create().await;
        let document = written.get(&alice.did).await;
        assert!(document.text.contains("at://user0.example.com"), "{document:?}");

        let updated = written.story.update(&alice).handle("alice.example.com").accepted();
        written.takes_the_last().await;
        written.story.update(&alice).handle("thief.example.com").accepted();
        written.takes_the_last().await;
        let document = written.get(&alice.did).await;
        assert!(document.text.contains("at://thief.example.com"), "{document:?}");

        let recovery = written.story.recovery.clone();
        written.story.after(&updated).signed_by(&recovery).accepted();
        written.takes_the_last().await;
        let document = written.get(&alice.did).await;
        assert!(document.text.contains("at://alice.example.com"), "{document:?}");

        written.story.tombstone(&alice).accepted();
        written.takes_the_last().await;
        let gone = (404, format!(r#"{{"message":"DID not available: {}"}}"#, alice.did));
        assert_eq!(written.get(&alice.did).await.told(), (gone.0, &*gone.1));

        let audit = format!("{}/log/audit", alice.did);
        let theirs = reqwest::get(format!("{}/{audit}", written.upstream.url())).await.unwrap();
        assert_eq!(written.get(&audit).await.text, theirs.text().await.unwrap());
        assert_eq!(written.sent(), 5);
        written.replica.end();
    }
}

/// The directory's own client library, if it is installed: `npm install` in `tests/reference-client`.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_client_library_finds_each_of_its_writes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference-client");
    if !folder.join("node_modules").is_dir() {
        return skipped("reference-client", "the reference client library is not installed");
    }
    for place in places().await {
        let written = Written::start(&place.url, &[]).await;
        let (folder, url) = (folder.clone(), written.url());
        let life =
            move || Command::new("node").arg("life.js").arg(url).current_dir(folder).output();
        let ran = tokio::task::spawn_blocking(life).await.unwrap().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(written.sent(), 7);
        assert_eq!(written.upstream.log().len(), 7);
        written.replica.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_certainly_wrong_is_refused_in_the_directorys_words() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    let alice = written.create().await;
    let lost = written.story.update(&alice).accepted();
    written.takes_the_last().await;
    let recovery = written.story.recovery.clone();
    written.story.after(&alice).signed_by(&recovery).accepted();
    written.takes_the_last().await;
    let bob = written.create().await;
    let end = written.story.tombstone(&bob).accepted();
    written.takes_the_last().await;
    let sent = written.sent();

    let mut wrong: Vec<(String, String, String)> = Vec::new();
    {
        let mut say = |entry: &Generated, did: &str, said: String| {
            wrong.push((did.to_owned(), entry.operation_json.clone(), said));
        };
        let story = &mut written.story;
        let invalid =
            |entry: &Generated| format!("Invalid signature on op: {}", entry.operation_json);
        let thief = story.k256();
        story.update(&alice).signed_by(&thief).refused("signature-invalid");
        say(&story.log()[5], &alice.did, invalid(&story.log()[5]));
        story.update(&alice).padded_signature().refused("signature-encoding");
        say(&story.log()[6], &alice.did, invalid(&story.log()[6]));
        story.update(&alice).high_s().refused("signature-invalid");
        say(&story.log()[7], &alice.did, invalid(&story.log()[7]));
        story.after(&alice).refused("not-authorised");
        say(&story.log()[8], &alice.did, invalid(&story.log()[8]));
        story.after(&lost).refused("prev-nullified");
        say(&story.log()[9], &alice.did, MISORDERED.to_owned());
        story.after(&end).refused("prev-tombstone");
        say(&story.log()[10], &bob.did, MISORDERED.to_owned());
        // The genesis operation, once more.
        say(&story.log()[0], &alice.did, MISORDERED.to_owned());
        let carol = story.create().accepted();
        let of_carol =
            format!("Hash of genesis operation does not match DID identifier: {}", carol.did);
        for did in ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "alice.example.com", "did:web:a.example"] {
            say(&story.log()[11], did, of_carol.clone());
        }
        story.create().signed_by(&thief).refused("signature-invalid");
        let last = story.log().last().unwrap();
        say(last, &last.did, invalid(last));
        let keys = [thief.did_key(); 11];
        story.create().rotation_key_texts(keys).signed_by(&thief).accepted();
        let last = story.log().last().unwrap();
        say(last, &last.did, "Too many rotationKey entries (max 10)".to_owned());
        story.create().host(&"x".repeat(513)).accepted();
        let last = story.log().last().unwrap();
        say(last, &last.did, "Service endpoint too long (max 512)".to_owned());
        let aliases: Vec<String> = (0..20).map(|_| "x".repeat(250)).collect();
        story.create().also_known_as(aliases.iter().map(String::as_str)).accepted();
        let last = story.log().last().unwrap();
        let too_large = "Operation too large (4000 bytes maximum in cbor encoding)";
        say(last, &last.did, too_large.to_owned());
        story.create_legacy().accepted();
        let last = story.log().last().unwrap();
        let legacy = format!("Not a valid operation: {}", last.operation_json);
        say(last, &last.did, legacy);
    }
    for (did, operation, said) in wrong {
        let answer = written.submit(&did, &operation).await;
        let body = json!({"message": said}).to_string();
        assert_eq!(answer.told(), (400, &*body), "{operation}");
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(answer.outcome(), "", "{operation}");
    }
    for (body, said) in
        [("{}", "Not a valid operation: {}"), ("[1.0]", "Not a valid operation: [1]")]
    {
        assert_eq!(written.submit(&alice.did, body).await.message(), said);
    }
    // As the directory takes a body that is not JSON by its type.
    let last = written.last();
    let request = written.client.post(format!("{}/{}", written.url(), last.did));
    let request = request.header("content-type", "text/plain").body(last.operation_json.clone());
    let answer = written.ask(request).await;
    assert_eq!((answer.status, &*answer.message()), (400, "Not a valid operation: {}"));
    assert_eq!(written.sent(), sent, "the upstream was bothered");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_and_paths_are_those_of_identities() {
    let (written, _folder) = Written::start_here(&[]).await;
    let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let large = format!("\"{}\"", "x".repeat(32_000));
    let answer = written.submit(did, &large).await;
    assert_eq!((answer.status, &*answer.message()), (413, "the body is larger than 32000 bytes"));
    // One that does not say how long it is.
    let pieces = [(); 2].map(|()| Ok::<_, std::io::Error>("x".repeat(64 << 10)));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let request = written.client.post(format!("{}/{did}", written.url())).body(body);
    assert_eq!(written.ask(request).await.status, 413);
    let answer = written.submit(did, "{").await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().starts_with("the body is not a JSON object: "), "{answer:?}");
    let answer = written.ask(written.post(did, "{}").header("content-encoding", "gzip")).await;
    assert_eq!(answer.status, 415);
    for (path, status) in [("%zz", 400), ("_health", 405), ("export", 405), ("", 405)] {
        assert_eq!(written.submit(path, "{}").await.status, status, "{path}");
    }
    assert_eq!(written.submit(&format!("{did}/log"), "{}").await.status, 405);
    assert_eq!(written.sent(), 0);
    assert!(written.get("").await.text.contains(", to which writes are passed on"));
    let options =
        written.client.request("OPTIONS".parse().unwrap(), format!("{}/{did}", written.url()));
    let options = written.ask(options).await;
    assert_eq!((options.status, options.header("allow")), (204, "GET, HEAD, POST, OPTIONS"));
    assert_eq!(options.header("access-control-allow-methods"), "GET, HEAD, POST, OPTIONS");
    assert_eq!(options.header("access-control-allow-headers"), "*");
}

/// The path may be escaped, as the reference client writes it, and end with a slash.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_spells_the_path_as_it_likes() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    for spelling in ["did%3Aplc%3A{}", "did:plc:{}/"] {
        written.story.create().accepted();
        let did = written.last().did.strip_prefix("did:plc:").unwrap();
        let answer =
            written.submit(&spelling.replace("{}", did), &written.last().operation_json).await;
        assert_eq!((answer.told(), answer.outcome()), (OK, "committed"), "{spelling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_certain_is_for_the_upstream_to_say() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    let alice = written.create().await;
    // It may be on its way here.
    let unknown = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    written.story.update(&alice).prev(unknown).refused("unknown-prev");
    let answer = written.write().await;
    assert_eq!((answer.status, &*answer.message()), (400, MISORDERED));
    assert_eq!(answer.outcome(), "refused");
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");

    // How often an identity may change.
    for _ in 0..9 {
        written.story.update(&alice).accepted();
        written.takes_the_last().await;
    }
    let tenth = written.story.update(&alice).accepted();
    let answer = written.write().await;
    assert_eq!((answer.status, answer.outcome()), (400, "refused"));
    assert_eq!(answer.message(), "To many operations within last hour (max 10)");
    // But that does not hold its owner up.
    let recovery = written.story.recovery.clone();
    written.story.after(&alice).signed_by(&recovery).later_than(&tenth, Duration::ZERO).accepted();
    written.takes_the_last().await;
}

/// Nobody knows here what the upstream has by now: it may have been set back.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_log_is_not_followed_more_is_for_the_upstream_to_say() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    let alice = written.create().await;
    let genesis = written.last().operation_json.clone();
    let again = async |written: &Written| {
        let answer = written.submit(&alice.did, &genesis).await;
        assert_eq!((answer.status, &*answer.message()), (400, MISORDERED));
        answer.outcome().to_owned()
    };
    assert_eq!(again(&written).await, "");
    for route in [Route::Export, Route::Stream] {
        written.upstream.fail(route, usize::MAX, Fault::Status(500, None));
    }
    written.upstream.close_streams(1001, "going away");
    written.is("waiting").await;
    assert_eq!(again(&written).await, "refused");
    written.upstream.rewind(0);
    let request = written.post(&alice.did, &genesis).header("prefer", "wait=0");
    let answer = written.ask(request).await;
    assert_eq!(answer.told(), OK, "{answer:?}");
    assert_eq!(written.upstream.log().len(), 1);
    // What is wrong by itself is still refused here.
    let thief = written.story.k256();
    written.story.after(&alice).signed_by(&thief).refused("signature-invalid");
    assert_eq!(written.write().await.outcome(), "");
}

/// An operation that the upstream has and that has not come here yet, and one that builds on it.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_come_yet_is_read_through_until_it_has() {
    for place in places().await {
        let mut written = Written::start(&place.url, &[]).await;
        let alice = written.create().await;
        written.upstream.withhold();
        written.story.update(&alice).handle("new.example.com").accepted();
        let answer = written.write_waiting(0).await;
        assert_eq!((answer.told(), answer.outcome()), (OK, "accepted"));
        assert_eq!(answer.header("plc-sequence"), "1");
        let shown = written.get(&alice.did).await;
        assert_eq!(shown.header("plc-read-through"), "upstream");
        assert!(shown.text.contains("at://new.example.com"), "{shown:?}");
        let resolved = written.get(&format!("1.0/identifiers/{}", alice.did)).await;
        assert!(resolved.text.contains("at://new.example.com"), "{resolved:?}");

        // It is unknown here what this one builds on.
        written.story.update(&alice).handle("newer.example.com").accepted();
        let answer = written.write_waiting(0).await;
        assert_eq!((answer.told(), answer.outcome()), (OK, "accepted"));
        let shown = written.get(&format!("{}/log/last", alice.did)).await;
        assert_eq!(shown.text, written.last().operation_json);

        // An identity that nobody knew a moment ago.
        let bob = written.story.create().accepted();
        assert_eq!(written.get(&bob.did).await.status, 404);
        let answer = written.write_waiting(0).await;
        assert_eq!((answer.told(), answer.outcome()), (OK, "accepted"));
        assert_eq!(written.get(&bob.did).await.status, 200);

        written.upstream.release();
        written.replica.reaches(4).await;
        for did in [&alice.did, &bob.did] {
            let shown = written.get(did).await;
            assert_eq!((shown.status, shown.header("plc-read-through")), (200, ""));
        }
        written.replica.end();
    }
}

/// The answer waits as long as the client says, and no longer than the operation takes.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_waits_for_the_operation() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    written.upstream.withhold();
    written.story.create().accepted();
    let release = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        written.upstream.release();
    };
    let (answer, ()) = tokio::join!(written.write_waiting(30), release);
    assert_eq!((answer.told(), answer.outcome()), (OK, "committed"));
    assert_eq!(answer.header("plc-sequence"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_away_was_sent_nothing() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    let alice = written.create().await;
    written.upstream.stop().await;
    written.story.update(&alice).accepted();
    let answer = written.write().await;
    assert_eq!((answer.status, answer.outcome()), (503, "not-sent"), "{answer:?}");
    assert_eq!(answer.header("retry-after"), "10");
    let message = answer.message();
    assert!(
        message.starts_with(
            "the operation was not sent to the upstream (the upstream cannot be reached: "
        ),
        "{message}"
    );
    // What is certainly wrong is still refused here, and reading goes on.
    let thief = written.story.k256();
    written.story.after(&alice).signed_by(&thief).refused("signature-invalid");
    assert_eq!(written.write().await.status, 400);
    assert_eq!(written.get(&alice.did).await.status, 200);
    // The same operation is taken when the upstream is back.
    written.upstream.start_again().await;
    let update = written.story.log()[1].clone();
    let request = written.post(&update.did, &update.operation_json).header("prefer", "wait=30");
    let answer = written.ask(request).await;
    assert_eq!((answer.told(), answer.outcome()), (OK, "committed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_that_it_is_done_when_nobody_knows() {
    let (mut written, _folder) = Written::start_here(&[("PLC_WRITE_SECONDS", "1")]).await;
    let alice = written.create().await;
    written.story.update(&alice).accepted();
    let last = format!("see /{}/log/last before anything is sent again", alice.did);
    for (fault, status, reason) in [
        (Fault::Silence, 504, "no answer within"),
        (Fault::WebPage, 502, "it answered 200 with something else"),
    ] {
        written.upstream.fail(Route::Write, 1, fault);
        let answer = written.write_waiting(1).await;
        assert_eq!((answer.status, answer.outcome()), (status, "unknown"), "{answer:?}");
        let message = answer.message();
        assert!(message.contains(reason) && message.ends_with(&last), "{message}");
        // Whoever looks is told what the upstream has.
        let shown = written.get(&format!("{}/log/last", alice.did)).await;
        assert_eq!(shown.header("plc-read-through"), "upstream");
        assert_eq!(shown.text, written.story.log()[0].operation_json);
    }
    // It was sent once each time.
    assert_eq!(written.sent(), 3);

    written.upstream.fail(Route::Write, 1, Fault::Status(500, None));
    let answer = written.write_waiting(0).await;
    assert_eq!((answer.told(), answer.outcome()), ((500, "{}"), "unknown"));
    written.upstream.fail(Route::Write, 1, Fault::RedirectLoop);
    let answer = written.write().await;
    assert_eq!((answer.status, answer.outcome()), (502, "refused"));
    assert!(answer.message().contains("it redirects to /elsewhere"), "{}", answer.message());
    // All the while it was not taken, and now it is.
    assert_eq!(written.upstream.log().len(), 1);
    written.takes_the_last().await;
}

/// The upstream has taken it, its answer is lost, and its log has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_was_taken_whatever_became_of_the_answer() {
    let (mut written, _folder) = Written::start_here(&[("PLC_WRITE_SECONDS", "1")]).await;
    let alice = written.create().await;
    for fault in [Fault::CutBody, Fault::CutChunks, Fault::SilentBody, Fault::EndlessBody] {
        written.story.update(&alice).accepted();
        written.upstream.fail(Route::Write, 1, fault);
        written.takes_the_last().await;
    }
    assert_eq!(written.sent(), 5);
}

/// Neither a number of seconds nor a time keeps anybody from being sent away.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_asks_for_fewer_is_believed() {
    let (mut written, _folder) = Written::start_here(&[("PLC_WRITE_SECONDS", "1")]).await;
    let alice = written.create().await;
    written.story.update(&alice).accepted();
    written.upstream.fail(Route::Write, 1, Fault::Status(429, Some("3".to_owned())));
    let answer = written.write().await;
    assert_eq!((answer.told(), answer.outcome()), ((429, "{}"), "refused"));
    assert_eq!(answer.header("retry-after"), "3");
    // Until then nothing is sent.
    let sent = written.sent();
    let answer = written.write().await;
    assert_eq!((answer.status, answer.outcome()), (503, "not-sent"));
    assert_eq!(written.sent(), sent);
    tokio::time::sleep(Duration::from_secs(3)).await;
    written.takes_the_last().await;
}

/// What answers is no HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_leaves_it_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1024]).await;
            let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await;
        }
    });
    let folder = TempDir::new().unwrap();
    let environment = [("PLC_FORWARD_WRITES", "on"), ("PLC_READ_THROUGH", "off")];
    let replica = Served::start(folder.path(), &upstream, &environment);
    replica
        .eventually("listening", async || TcpStream::connect(replica.address()).await.is_ok())
        .await;
    let mut story = Story::seeded(1);
    story.create().accepted();
    let last = story.log().last().unwrap();
    let request = reqwest::Client::new()
        .post(format!("http://{}/{}", replica.address(), last.did))
        .header("content-type", "application/json")
        .header("prefer", "wait=0")
        .body(last.operation_json.clone());
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.headers()["plc-forwarded"], "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_is_first() {
    for place in places().await {
        let mut written = Written::start(&place.url, &[]).await;
        let alice = written.create().await;
        let mut other = Story::seeded(1);
        other.create().accepted();
        written.story.update(&alice).handle("one.example.com").accepted();
        other.update(&alice).handle("two.example.com").accepted();
        let [one, two] =
            [&written.story, &other].map(|story| story.log()[1].operation_json.clone());
        let both = tokio::join!(written.submit(&alice.did, &one), written.submit(&alice.did, &two));
        let mut statuses = [both.0.status, both.1.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{both:?}");
        let first = if both.0.status == 200 { one } else { two };
        assert_eq!(written.get(&format!("{}/log/last", alice.did)).await.text, first);
        written.replica.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_much_is_written_in_a_minute() {
    let environment = [
        ("PLC_CLIENT_WRITES_PER_MINUTE", "2"),
        ("PLC_WRITES_PER_MINUTE", "3"),
        ("PLC_TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let (mut written, _folder) = Written::start_here(&environment).await;
    let mut write = async |client: &str| {
        written.story.create().accepted();
        let last = written.last();
        let request = written.post(&last.did, &last.operation_json);
        written.ask(request.header("x-forwarded-for", client)).await
    };
    assert_eq!(write("192.0.2.1").await.status, 200);
    assert_eq!(write("192.0.2.1").await.status, 200);
    let own = write("192.0.2.1").await;
    assert_eq!((own.status, own.outcome()), (429, ""));
    let wait: u32 = own.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{own:?}");
    let said = format!("too many operations from this address, try again in {wait} s");
    assert_eq!(own.message(), said);
    assert_eq!(write("192.0.2.2").await.status, 200);
    let all = write("192.0.2.2").await;
    assert_eq!((all.status, all.header("retry-after")), (503, "10"));
    let said = "too many operations for the upstream, nothing was sent to it: try again later";
    assert_eq!(all.message(), said);
    assert_eq!(written.sent(), 3);
}

/// The limits are settings: this upstream takes no more than this.
#[tokio::test(flavor = "multi_thread")]
async fn the_limits_on_an_operation_can_be_set() {
    let environment = [("PLC_MAX_ROTATION_KEYS", "1"), ("PLC_MAX_OPERATION_BYTES", "100")];
    let (mut written, _folder) = Written::start_here(&environment[..1]).await;
    written.story.create().accepted();
    let answer = written.write().await;
    assert_eq!((answer.status, &*answer.message()), (400, "Too many rotationKey entries (max 1)"));
    let (mut written, _folder) = Written::start_here(&environment).await;
    written.story.create().accepted();
    let answer = written.write().await;
    let said = "Operation too large (100 bytes maximum in cbor encoding)";
    assert_eq!((answer.status, &*answer.message()), (400, said));
}

/// Whoever began a write may go away: it is carried out.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_gone_has_written() {
    let (mut written, _folder) = Written::start_here(&[]).await;
    let alice = written.story.create().accepted();
    let operation = &written.last().operation_json;
    let mut connection = TcpStream::connect(written.replica.address()).await.unwrap();
    let request = format!(
        "POST /{} HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{operation}",
        alice.did,
        operation.len()
    );
    written.upstream.fail(Route::Write, 1, Fault::Drip(1));
    connection.write_all(request.as_bytes()).await.unwrap();
    written.replica.eventually("sent", async || written.sent() == 1).await;
    drop(connection);
    written.replica.reaches(1).await;
    assert_eq!(written.get(&alice.did).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_nothing_is_passed_on() {
    let upstream = FakeUpstream::start([]).await;
    let folder = TempDir::new().unwrap();
    let replica = Served::start(folder.path(), &upstream.url(), &[]);
    replica
        .eventually("listening", async || TcpStream::connect(replica.address()).await.is_ok())
        .await;
    let mut story = Story::seeded(1);
    story.create().accepted();
    let last = story.log().last().unwrap();
    let request = reqwest::Client::new()
        .post(format!("http://{}/{}", replica.address(), last.did))
        .header("content-type", "application/json")
        .body(last.operation_json.clone());
    let answer = request.send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["allow"].to_str().unwrap()),
        (405, "GET, HEAD, OPTIONS")
    );
    let message = format!(
        r#"{{"message":"this is a read-only replica of {}: submit operations there"}}"#,
        upstream.url()
    );
    assert_eq!(answer.text().await.unwrap(), message);
    assert_eq!(upstream.asked_for(Route::Write), 0);
}
