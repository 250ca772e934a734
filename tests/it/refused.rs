//! What an answer about an identity says of what was refused of it.

use std::time::Duration;

use bytes::Bytes;
use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;
use plc_replica::store::{Commit, NewRefusal};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use tokio::time::{Instant, sleep};

use crate::audit::Watched;
use crate::follow::{entries, places};
use crate::replica::{Answer, Replica, operation, stored, tombstone};

const ALICE: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
const BOB: &str = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb";
const CAROL: &str = "did:plc:cccccccccccccccccccccccc";

const VIEWS: [&str; 6] = ["", "/data", "/log", "/log/audit", "/log/last", "/log/verdicts"];
/// A refusal is said within seconds; longer is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The paths of everything that is said of an identity to programs.
fn paths(did: &str) -> Vec<String> {
    let views = VIEWS.iter().map(|view| format!("/{did}{view}"));
    views.chain([format!("/1.0/identifiers/{did}")]).collect()
}

/// A line that was refused of this identity.
fn refused(did: &str, sequence: Option<i64>, line: &str) -> NewRefusal {
    let line = Bytes::from(line.to_owned());
    NewRefusal {
        key: NewRefusal::key_of_line(&line),
        source: "https://plc.example.com".to_owned(),
        did: did.to_owned(),
        sequence,
        cid: None,
        kind: "signature-invalid".to_owned(),
        detail: "no rotation key in force made this signature".to_owned(),
        line,
    }
}

/// The same of a line that states a time.
fn refused_at(did: &str, sequence: Option<i64>, created_at: &str) -> NewRefusal {
    let number = sequence.map_or("null".to_owned(), |number| number.to_string());
    refused(did, sequence, &format!(r#"{{"createdAt":"{created_at}","seq":{number}}}"#))
}

/// Asks until the answer is so.
async fn until(replica: &Replica, path: &str, is: impl Fn(&Answer) -> bool) -> Answer {
    let begun = Instant::now();
    loop {
        let answer = replica.get(path).await;
        if is(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{path}: {answer:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_identity_of_which_all_was_refused_is_not_unknown() {
    for place in places().await {
        let mut replica =
            Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
        replica.caught_up();
        assert_eq!(replica.get(&format!("/{BOB}")).await.status, 404);
        let refusals = vec![refused(BOB, Some(1), "{}"), refused(BOB, None, "{ }")];
        let keys = refusals.iter().map(|refusal| refusal.key).collect();
        replica.commit_with(Commit { refusals, ..Commit::default() }).await;
        until(&replica, &format!("/{BOB}"), |answer| answer.status == 502).await;

        let message = format!(
            "operations of {BOB} were received here and none of them verifies: \
             see /_audit/refused?did={BOB} on this server"
        );
        for path in VIEWS.map(|view| format!("/{BOB}{view}")) {
            let answer = replica.get(&path).await;
            assert_eq!(answer.status, 502, "{path}");
            assert_eq!(answer.text(), format!("{{\"message\":\"{message}\"}}"), "{path}");
            assert_eq!(answer.header("plc-refused"), "2", "{path}");
            assert_eq!(answer.header("cache-control"), "no-store", "{path}");
            assert_eq!(answer.header("access-control-expose-headers"), "*", "{path}");
            assert_ne!(answer.header("plc-sequence"), "", "{path}");
            let head = replica.ask("HEAD", &path, &[]).await;
            assert_eq!((head.status, head.header("plc-refused")), (502, "2"), "{path}");
        }
        let resolution = replica.get(&format!("/1.0/identifiers/{BOB}")).await;
        assert_eq!((resolution.status, resolution.header("plc-refused")), (502, "2"));
        assert_eq!(resolution.media_type(), "application/did-resolution");
        let body: serde_json::Value = serde_json::from_slice(&resolution.body).unwrap();
        let error = &body["didResolutionMetadata"]["error"];
        assert_eq!(error["type"], "about:blank");
        assert_eq!(error["title"], "Bad Gateway");
        assert_eq!(error["detail"], message);
        assert_eq!(body["didDocument"], serde_json::Value::Null);

        let evidence = replica.get(&format!("/_audit/refused?did={BOB}")).await;
        assert_eq!(evidence.text().matches("signature-invalid").count(), 2);
        let page = replica.get(&format!("/explore/{BOB}")).await;
        assert!(page.text().contains("none of them verifies"), "{}", page.text());
        assert!(page.text().contains(&format!("href=\"/_audit/refused?did={BOB}\"")));

        // It is accepted after all, and said at once.
        let first = stored(BOB, "2024-01-01T00:00:00.000Z", 3, &operation("at://b.example"));
        let accepted = Commit { operations: vec![first], lifted: keys, ..Commit::default() };
        replica.commit_with(accepted).await;
        for path in paths(BOB) {
            let answer = replica.get(&path).await;
            assert_eq!((answer.status, answer.header("plc-refused")), (200, ""), "{path}");
        }
    }
}

/// Nobody who fills is told that it will come: it came, and does not verify.
#[tokio::test]
async fn a_replica_that_is_filling_says_the_same() {
    let mut replica = Replica::start().await;
    let refusals = vec![refused(BOB, Some(1), "{}")];
    replica.commit_with(Commit { refusals, ..Commit::default() }).await;
    until(&replica, &format!("/{BOB}"), |answer| answer.status == 502).await;
    for path in paths(BOB) {
        assert_eq!(replica.get(&path).await.status, 502, "{path}");
    }
    for path in paths(CAROL) {
        let unknown = replica.get(&path).await;
        assert_eq!((unknown.status, unknown.header("plc-refused")), (503, ""), "{path}");
    }
}

#[tokio::test]
async fn an_answer_says_how_much_was_refused_since() {
    for place in places().await {
        let mut replica =
            Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
        let at = "2024-01-02T00:00:00.000Z";
        let alice = stored(ALICE, at, 10, &operation("at://a.example"));
        let carol = stored(CAROL, at, 11, &operation("at://c.example"));
        replica.commit(vec![alice.clone(), carol]).await;
        replica.caught_up();
        let document = format!("/{ALICE}");
        let names_before: Vec<String> =
            replica.get(&document).await.headers.keys().map(ToString::to_string).collect();
        let (before, after) = ("2024-01-01T00:00:00.000Z", "2024-01-03T00:00:00.000Z");
        let lifted = refused_at(ALICE, Some(20), after);
        let lifted_key = lifted.key;
        let refusals = vec![
            // By time; by number; by both; and what may be anything.
            refused_at(ALICE, None, after),
            refused_at(ALICE, Some(12), before),
            refused_at(ALICE, Some(13), after),
            refused(ALICE, None, r#"{"did":"did:plc:aaaaaaaaaaaaaaaaaaaaaaaa""#),
            // What came after it, and what was stated with it.
            refused_at(ALICE, Some(9), before),
            refused_at(ALICE, Some(10), at),
            refused_at(ALICE, None, before),
            refused(ALICE, Some(9), r#"{"seq":9"#),
            lifted,
            // Of nobody.
            refused("", Some(14), "no JSON"),
            refused("did:plc:short", Some(15), "{}"),
        ];
        replica.commit_with(Commit { refusals, ..Commit::default() }).await;
        until(&replica, &document, |answer| answer.header("plc-refused") == "5").await;
        replica.commit_with(Commit { lifted: vec![lifted_key], ..Commit::default() }).await;
        for path in paths(ALICE) {
            let answer = replica.get(&path).await;
            assert_eq!((answer.status, answer.header("plc-refused")), (200, "4"), "{path}");
            if answer.header("etag").is_empty() {
                continue;
            }
            let has = [("if-none-match", answer.header("etag"))];
            let unchanged = replica.ask("GET", &path, &has).await;
            assert_eq!((unchanged.status, unchanged.header("plc-refused")), (304, "4"), "{path}");
        }
        let waited = format!("{document}?cid={}", did_plc::Cid::of(b"nothing"));
        let waited = replica.ask("GET", &waited, &[("prefer", "wait=0")]).await;
        assert_eq!((waited.status, waited.header("plc-refused")), (504, "4"));
        let page = replica.get(&format!("/explore/{ALICE}")).await;
        assert!(page.text().contains("Refused since: 4 operations"), "{}", page.text());

        // Who has nothing refused is told nothing.
        for path in paths(CAROL) {
            let answer = replica.get(&path).await;
            assert_eq!((answer.status, answer.headers.get("plc-refused")), (200, None), "{path}");
        }
        let names: Vec<String> = replica
            .get(&format!("/{CAROL}"))
            .await
            .headers
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, names_before);

        // What is accepted later leaves less that is newer. The end is said with it too.
        let end = tombstone(&alice.cid().to_string());
        replica.commit(vec![stored(ALICE, "2024-01-02T12:00:00.000Z", 12, &end)]).await;
        for (path, status) in paths(ALICE).into_iter().zip([404, 404, 200, 200, 200, 200, 410]) {
            let answer = replica.get(&path).await;
            assert_eq!((answer.status, answer.header("plc-refused")), (status, "3"), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_follower_refused_is_said() {
    let mut story = Story::seeded(92);
    let alice = story.create().accepted();
    story.update(&alice).forged_signature().refused("signature-invalid");
    let bob = story.create().forged_signature().refused("signature-invalid");
    for place in places().await {
        let upstream = FakeUpstream::start(entries(&story)).await;
        let watched = Watched::start_with(&place, &upstream, 0, 0).await;
        watched.live_at(3).await;
        let ask = async |did: &str| reqwest::get(format!("{}/{did}", watched.url)).await.unwrap();
        let begun = Instant::now();
        let of_bob = loop {
            let answer = ask(&bob.did).await;
            if answer.status() == 502 {
                break answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{answer:?}");
            sleep(Duration::from_millis(50)).await;
        };
        // The upstream was asked for what is not here, as ever.
        assert_eq!(of_bob.headers()["plc-read-through"], "upstream-does-not-verify");
        let of_alice = ask(&alice.did).await;
        assert_eq!(
            (of_alice.status().as_u16(), &of_alice.headers()["plc-refused"]),
            (200, &"1".parse().unwrap())
        );

        // The identity goes on, over what was refused.
        let mut later = Story::seeded(92);
        let again = later.create().accepted();
        later.update(&again).accepted();
        let next = LogEntry { seq: 4, ..LogEntry::from(&later.log()[1]) };
        upstream.append(LogEntry { created_at: "2033-01-01T00:00:00.000Z".to_owned(), ..next });
        watched.live_at(4).await;
        let of_alice = ask(&alice.did).await;
        assert_eq!(of_alice.status(), 200);
        assert!(!of_alice.headers().contains_key("plc-refused"), "{of_alice:?}");
        watched.end().await;
    }
}
