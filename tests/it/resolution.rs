//! DID Resolution v1.0 by its HTTP binding: results, metadata of every version, errors.

use std::sync::Arc;
use std::time::Duration;

use did_plc::signature::{Signed, UnsupportedKey, Verifier};
use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;
use plc_replica::serve::limits::Limits;
use plc_replica::store::StoredOperation;
use plc_replica::upstream::ExportClient;
use plc_testkit::builder::Story;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::audit::{Watched, entries, reading_through, tell};
use crate::follow::places;
use crate::replica::{Answer, Replica, operation, stored};
use plc_testkit::fake_upstream::FakeUpstream;

const RESULT: &str = "application/did-resolution";

/// Status, media type and body.
async fn ask(url: &str, accept: &str) -> (u16, String, Value) {
    let request = reqwest::Client::new().get(url);
    let request = if accept.is_empty() { request } else { request.header(ACCEPT, accept) };
    let answer = request.send().await.unwrap();
    let media_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let status = answer.status().as_u16();
    (status, media_type, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

async fn resolve(watched: &Watched, rest: &str) -> (u16, Value) {
    let url = format!("{}/1.0/identifiers/{rest}", watched.url);
    let (status, media_type, body) = ask(&url, RESULT).await;
    assert_eq!(media_type, RESULT);
    (status, body)
}

/// A UTC time without its fraction.
fn seconds(created_at: &str) -> String {
    format!("{}Z", &created_at[..19])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_an_identity_is_resolved() {
    let mut told = tell();
    let bob_ended = told.story.tombstone(&told.bob).accepted();
    let log: Vec<_> = told.story.log().to_vec();
    let place = places().await.remove(0);
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    let watched = Watched::start_with(&place, &upstream, 0, 0).await;
    watched.live_at(8).await;
    let did = &told.alice.did;
    // Of Alice: genesis, update, a theft that was nullified, recovery, update.
    let versions = [&log[0], &log[1], &log[2], &log[3], &log[6]];
    let plain = ask(&format!("{}/{did}", watched.url), "").await.2;

    let (status, newest) = resolve(&watched, did).await;
    assert_eq!(status, 200);
    assert_eq!(newest["didDocument"], plain);
    assert_eq!(newest["didResolutionMetadata"], json!({"contentType": "application/did"}));
    assert_eq!(
        newest["didDocumentMetadata"],
        json!({
            "created": seconds(&log[0].created_at),
            "updated": seconds(&log[6].created_at),
            "versionId": log[6].cid,
        })
    );

    for (index, version) in versions.iter().enumerate() {
        let (status, by_id) = resolve(&watched, &format!("{did}?versionId={}", version.cid)).await;
        assert_eq!(status, 200);
        let metadata = &by_id["didDocumentMetadata"];
        assert_eq!(metadata["created"], seconds(&log[0].created_at));
        let updated = (index > 0).then(|| seconds(&version.created_at));
        assert_eq!(metadata["updated"], json!(updated));
        assert_eq!(metadata["versionId"], version.cid);
        let next = versions.get(index + 1);
        assert_eq!(metadata["nextVersionId"], json!(next.map(|next| &next.cid)));
        assert_eq!(metadata["nextUpdate"], json!(next.map(|next| seconds(&next.created_at))));
        let nullified_at = (index == 2).then(|| seconds(&log[3].created_at));
        assert_eq!(metadata["nullifiedAt"], json!(nullified_at));
        let handle = &by_id["didDocument"]["alsoKnownAs"][0];
        let handles = [
            "at://alice.example",
            "at://a.example",
            "at://a.example",
            "at://b.example",
            "at://c.example",
        ];
        assert_eq!(handle, handles[index]);
        let time = seconds(&version.created_at);
        assert_eq!(resolve(&watched, &format!("{did}?versionTime={time}")).await.1, by_id);
    }
    let (status, whole) = resolve(&watched, &format!("{did}?expandRelativeUrls=true")).await;
    assert_eq!(status, 200);
    let service = |document: &Value| document["service"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(service(&plain), "#atproto_pds");
    assert_eq!(service(&whole["didDocument"]), format!("{did}#atproto_pds"));
    let kept = resolve(&watched, &format!("{did}?expandRelativeUrls=false&noCache=false")).await;
    assert_eq!(kept, (200, newest.clone()));
    let asked = upstream.asked().len();
    assert_eq!(resolve(&watched, &format!("{did}?noCache=true")).await, (200, newest.clone()));
    assert!(upstream.asked().len() > asked);

    let (status, ended) = resolve(&watched, &told.bob.did).await;
    assert_eq!(status, 410);
    assert_eq!(ended["didDocument"], Value::Null);
    assert_eq!(
        ended["didDocumentMetadata"],
        json!({
            "created": seconds(&log[4].created_at),
            "updated": seconds(&log[7].created_at),
            "deactivated": true,
            "versionId": bob_ended.cid,
        })
    );
    let before = resolve(&watched, &format!("{}?versionId={}", told.bob.did, log[5].cid)).await;
    assert_eq!(before.0, 200);
    assert_eq!(before.1["didDocumentMetadata"]["nextVersionId"], bob_ended.cid);

    for (rest, expected, name) in [
        ("did:plc:short".to_owned(), 400, "INVALID_DID"),
        ("nonsense".to_owned(), 400, "INVALID_DID"),
        ("did:web:example.com".to_owned(), 501, "METHOD_NOT_SUPPORTED"),
        ("did:plc:zzzzzzzzzzzzzzzzzzzzzzzz".to_owned(), 404, "NOT_FOUND"),
        (format!("{did}?versionId={}", told.bob.did), 404, "NOT_FOUND"),
        (format!("{did}?expandRelativeUrls=yes"), 400, "INVALID_OPTIONS"),
        (format!("{did}?transformKeys=jwks"), 501, "FEATURE_NOT_SUPPORTED"),
        (format!("{did}%23atproto"), 501, "FEATURE_NOT_SUPPORTED"),
        (format!("{did}%3Fservice=atproto_pds"), 501, "FEATURE_NOT_SUPPORTED"),
        ("did:web:example.com%23key".to_owned(), 501, "METHOD_NOT_SUPPORTED"),
        (format!("{did}?versionId=nonsense"), 404, "NOT_FOUND"),
        (format!("{did}?versionTime=2023-01-01T00:00:00Z"), 404, "NOT_FOUND"),
        (format!("{did}?versionTime=yesterday"), 400, "INVALID_OPTIONS"),
        (format!("{did}?versionId=a&versionTime=2024-01-01T00:00:00Z"), 400, "INVALID_OPTIONS"),
    ] {
        let (status, body) = resolve(&watched, &rest).await;
        assert_eq!(status, expected, "{rest}");
        let error = &body["didResolutionMetadata"]["error"];
        assert_eq!(error["type"], format!("https://www.w3.org/ns/did#{name}"), "{rest}");
        assert!(error["title"].is_string() && error["detail"].is_string());
        assert_eq!(body["didDocument"], Value::Null);
        assert_eq!(body["didDocumentMetadata"], json!({}));
    }
    watched.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_is_the_clients_choice() {
    let told = tell();
    let place = places().await.remove(0);
    let upstream = FakeUpstream::start(entries(&told.story)).await;
    let watched = Watched::start_with(&place, &upstream, 0, 0).await;
    watched.live_at(7).await;
    let did = &told.alice.did;
    let url = format!("{}/1.0/identifiers/{}", watched.url, did.replace(':', "%3A"));
    let old = "application/ld+json;profile=\"https://w3id.org/did-resolution\"";
    let plain = ask(&format!("{}/{did}", watched.url), "").await;
    assert_eq!(plain.1, "application/did+ld+json; charset=utf-8");

    for (accept, media_type, content_type) in [
        ("", RESULT, "application/did"),
        ("*/*", RESULT, "application/did"),
        (RESULT, RESULT, "application/did"),
        (old, old, "application/did+ld+json"),
    ] {
        let (status, sent, body) = ask(&url, accept).await;
        assert_eq!((status, &*sent), (200, media_type), "{accept}");
        assert_eq!(body["didDocument"], plain.2);
        assert_eq!(body["didResolutionMetadata"]["contentType"], content_type);
    }
    let (status, sent, body) = ask(&url, "application/ld+json").await;
    assert_eq!((status, &*sent, &body["didDocument"]), (200, old, &plain.2));
    let sent = ask(&url, "application/did-resolution;q=0, */*").await.1;
    assert_eq!(sent, old);
    for accept in ["application/did", "application/did+ld+json", "application/json"] {
        let answer = ask(&url, accept).await;
        assert_eq!(answer, (200, accept.to_owned(), plain.2.clone()));
    }
    for accept in ["application/did+cbor", "application/ld+json;profile=\"https://example.com\""] {
        let (status, _, body) = ask(&url, accept).await;
        assert_eq!(status, 406, "{accept}");
        let error = &body["didResolutionMetadata"]["error"];
        assert_eq!(error["type"], "https://www.w3.org/ns/did#REPRESENTATION_NOT_SUPPORTED");
    }

    // The directory's own path stays what it is, but for who asks for plain JSON.
    let bare = ask(&format!("{}/{did}", watched.url), "application/did+json").await;
    assert_eq!(ask(&url, "application/did+json").await, bare);
    let (status, media_type, mut body) = bare;
    assert_eq!((status, &*media_type), (200, "application/did+json"));
    assert_eq!(body.get("@context"), None);
    body["@context"] = plain.2["@context"].clone();
    assert_eq!(body, plain.2);
    watched.end().await;
}

const ALICE: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";

/// The error of an answer: its type without what all names begin with, and its title.
fn problem(answer: &Answer) -> (String, String) {
    assert_eq!(answer.header("content-type"), RESULT);
    assert_eq!(answer.header("cache-control"), "no-store");
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let error = &body["didResolutionMetadata"]["error"];
    assert!(error["detail"].is_string(), "{body}");
    let text = |name: &str| error[name].as_str().unwrap().replace("https://www.w3.org/ns/did#", "");
    (text("type"), text("title"))
}

#[tokio::test]
async fn whatever_goes_wrong_is_a_problem_object() {
    let limits = Limits { url_bytes: 200, requests_per_minute: 6, burst: 8, ..Limits::default() };
    let settings = ServeSettings { limits, ..ServeSettings::default() };
    let replica = Replica::start_with(settings, Feed::new()).await;
    let alice = format!("/1.0/identifiers/{ALICE}");
    let absent = did_plc::Cid::of(b"absent");
    let wait = format!("{alice}?cid={absent}");
    let long = format!("{alice}?x={}", "x".repeat(200));
    let own = |status, title: &str| (status, "about:blank".to_owned(), title.to_owned());
    for (method, path, expected) in [
        ("GET", "/1.0/identifiers/%zz", (400, "INVALID_DID".to_owned(), "Invalid DID".to_owned())),
        ("GET", "/1.0/identifiers/", (400, "INVALID_DID".to_owned(), "Invalid DID".to_owned())),
        ("POST", &alice, own(405, "Method Not Allowed")),
        ("GET", &long, own(414, "URI Too Long")),
        ("GET", &wait, own(504, "Gateway Timeout")),
        ("GET", &alice, own(503, "Service Unavailable")),
    ] {
        let answer = replica.ask(method, path, &[("prefer", "wait=0")]).await;
        let (name, title) = problem(&answer);
        assert_eq!((answer.status, name, title), expected, "{method} {path}");
        let says = |name| !answer.header(name).is_empty();
        assert_eq!(says("retry-after"), answer.status == 503, "{method} {path}");
        assert_eq!(says("allow"), answer.status == 405, "{method} {path}");
    }
    // The burst is used up at last.
    let mut answer = replica.get(&alice).await;
    while answer.status != 429 {
        answer = replica.get(&alice).await;
    }
    assert_eq!(problem(&answer), ("about:blank".to_owned(), "Too Many Requests".to_owned()));
    assert_eq!(answer.header("retry-after"), "10");
}

/// Who cannot say whether there is an identity does not say that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn an_internal_failure_is_no_absence() {
    struct Broken;
    impl Verifier for Broken {
        fn find_signer(&self, _: &[&str], _: &Signed) -> Result<Option<usize>, UnsupportedKey> {
            panic!("a bug")
        }
    }
    let mut story = Story::seeded(86);
    let alice = story.create().accepted().did;
    let upstream = FakeUpstream::start(entries(&story)).await;
    let client =
        ExportClient::new(&upstream.url(), 0, "test", plc_replica::upstream::Limits::default());
    let read_through = reading_through(&client.unwrap(), Arc::new(Broken));
    let mut replica = Replica::start_reading_through(read_through).await;
    replica.caught_up();
    let answer = replica.get(&format!("/1.0/identifiers/{alice}")).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(problem(&answer), ("INTERNAL_ERROR".to_owned(), "Internal error".to_owned()));
    assert_eq!(replica.get(&format!("/{alice}")).await.status, 500);

    // Held, and nothing of it in force, which cannot be.
    let first = stored(ALICE, "2024-01-01T00:00:00.500Z", 1, &operation("at://a.example"));
    let nullified_by = Some(first.created_at);
    replica.commit(vec![StoredOperation { nullified_by, ..first }]).await;
    let answer = replica.get(&format!("/1.0/identifiers/{ALICE}")).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(problem(&answer), ("INTERNAL_ERROR".to_owned(), "Internal error".to_owned()));
    assert_eq!(replica.get(&format!("/{ALICE}/log/audit")).await.status, 500);
}

#[tokio::test]
async fn a_resolution_that_takes_too_long_is_a_problem_object() {
    let limits = Limits { request_time: Duration::from_millis(300), ..Limits::default() };
    let settings = ServeSettings { limits, ..ServeSettings::default() };
    let replica = Replica::start_with(settings, Feed::new()).await;
    let absent = did_plc::Cid::of(b"absent");
    let answer = replica.get(&format!("/1.0/identifiers/{ALICE}?cid={absent}")).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "10"));
    assert_eq!(problem(&answer), ("about:blank".to_owned(), "Service Unavailable".to_owned()));
}

#[tokio::test]
async fn a_version_may_still_come_until_the_log_was_read_to_its_end() {
    let mut replica = Replica::start().await;
    let first = stored(ALICE, "2024-01-01T00:00:00.500Z", 1, &operation("at://a.example"));
    let held = first.cid();
    replica.commit(vec![first]).await;
    let ask =
        async |query: &str| replica.get(&format!("/1.0/identifiers/{ALICE}?{query}")).await.status;
    let absent = did_plc::Cid::of(b"absent");
    assert_eq!(ask(&format!("versionId={held}")).await, 200);
    assert_eq!(ask(&format!("versionId={absent}")).await, 503);
    assert_eq!(ask("versionId=nonsense").await, 404);
    // Nobody is asked whether there is something newer.
    assert_eq!(ask("noCache=true").await, 501);
    replica.caught_up();
    assert_eq!(ask(&format!("versionId={absent}")).await, 404);

    // A whole second is that of the version that it is shown for; a fraction is meant as it is.
    for (time, status) in [
        ("2024-01-01T00:00:00Z", 200),
        ("2024-01-01T00:00:00.4999Z", 404),
        ("2024-01-01T00:00:00.5Z", 200),
        ("2023-12-31T23:59:59Z", 404),
    ] {
        assert_eq!(ask(&format!("versionTime={time}")).await, status, "{time}");
    }
}
