//! The log as programs read it.

use std::time::Instant;

use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::process::Served;

#[tokio::test]
async fn the_log_is_an_object_a_line_when_it_is_to_be_json() {
    let mut story = Story::seeded(81);
    story.create().also_known_as(["at://\"quoted\".example\n"]).accepted();
    story.create().forged_signature().refused("signature-invalid");
    let upstream = FakeUpstream::start(story.log().iter().map(LogEntry::from)).await;
    upstream.garble(2, 1, "no JSON, but \"quotes\" and\tmore {");
    upstream.fail(Route::Stream, 1, Fault::Status(500, None));
    let folder = TempDir::new().unwrap();
    let replica = Served::start(folder.path(), &upstream.url(), &[("PLC_LOG_FORMAT", "json")]);
    replica.reaches(2).await;
    let log = replica.end();
    let lines: Vec<Map<String, Value>> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        let text = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("{name}: {line:?}"));
        assert!(["INFO", "WARN", "ERROR"].contains(&text("level")), "{line:?}");
        assert!(text("timestamp").ends_with('Z') && !text("message").is_empty(), "{line:?}");
        assert!(text("target").starts_with("plc_replica"), "{line:?}");
    }
    // Fields stand beside the message and keep their types.
    let serving = lines.iter().find(|line| line["message"] == "serving").unwrap();
    assert_eq!(serving["upstream"], upstream.url());
    assert_eq!(serving["cursor"], 0);
    assert!(lines.iter().any(|line| line["level"] == "WARN"), "{log}");
    assert_eq!(lines.last().unwrap()["message"], "ended in order");
}

#[tokio::test]
async fn a_request_is_logged_with_its_route_status_time_and_did() {
    let mut story = Story::seeded(82);
    let alice = story.create().accepted().did;
    let upstream = FakeUpstream::start(story.log().iter().map(LogEntry::from)).await;
    let folder = TempDir::new().unwrap();
    let levels = ("PLC_LOG", "warn,plc_replica::serve=debug");
    let replica =
        Served::start(folder.path(), &upstream.url(), &[levels, ("PLC_LOG_FORMAT", "json")]);
    replica.reaches(1).await;
    let alice = &*alice;
    let encoded = format!("/{}/log/", alice.replace(':', "%3A"));
    let requests = [
        (format!("/{alice}"), "/{did}", 200, Some(alice)),
        (encoded, "/{did}/log", 200, Some(alice)),
        ("/export?count=0".to_owned(), "/export", 400, None),
        (format!("/1.0/identifiers/{alice}"), "/1.0/identifiers/{did}", 200, Some(alice)),
        ("/did:web:a.example/data".to_owned(), "/{did}/data", 400, Some("did:web:a.example")),
    ];
    for (path, _, status, _) in &requests {
        assert_eq!(replica.get(path).await, *status, "{path}");
    }
    let log = replica.end();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let answered = lines.filter(|line| line["message"] == "answered");
    // The first ones are those of waiting.
    let answered: Vec<Value> =
        answered.filter(|line| line["span"]["route"] != "/_health").collect();
    assert_eq!(answered.len(), requests.len(), "{log}");
    for (line, (_, route, status, did)) in answered.iter().zip(&requests) {
        let span = &line["span"];
        assert_eq!((&line["level"], &span["name"]), (&"DEBUG".into(), &"request".into()), "{line}");
        assert_eq!(
            (&span["route"], &span["status"]),
            (&(*route).into(), &(*status).into()),
            "{line}"
        );
        assert_eq!(span["did"].as_str(), *did, "{line}");
        assert_eq!(span["method"], "GET", "{line}");
        assert!(span["microseconds"].is_u64(), "{line}");
    }
}

/// Forged operations by the hundred are a line, not hundreds; who debugs sees each.
#[tokio::test]
async fn what_is_refused_in_masses_is_logged_in_groups() {
    const FORGED: usize = 300;
    let mut story = Story::seeded(83);
    for _ in 0..FORGED {
        story.create().forged_signature().refused("signature-invalid");
    }
    story.create().padded_signature().refused("signature-encoding");
    let upstream = FakeUpstream::start(story.log().iter().map(LogEntry::from)).await;
    let folder = TempDir::new().unwrap();
    let settings = [("PLC_LOG_FORMAT", "json"), ("PLC_LOG", "info,plc_replica::follow=debug")];
    let begun = Instant::now();
    let replica = Served::start(folder.path(), &upstream.url(), &settings);
    replica.reaches(story.log().len() as i64).await;
    let log = replica.end();
    let most_lines = 1 + begun.elapsed().as_secs() as usize / 10;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_kind = |level: &str, kind: &str| -> Vec<Value> {
        let is_it = |line: &&Value| {
            let message = line["message"].as_str().unwrap();
            line["level"] == level && message.starts_with(&format!("refused: {kind}"))
        };
        lines.iter().filter(is_it).cloned().collect()
    };
    // A page is one commit. What is asked about again is said too where that takes more than ten seconds.
    let all_said = of_kind("WARN", "signature-invalid");
    assert!((1..=most_lines).contains(&all_said.len()), "{log}");
    let said = &all_said[0];
    assert_eq!(said["count"], FORGED);
    assert_eq!(said["did"], *story.log()[0].did);
    assert_eq!(said["sequence"], 1);
    let message = said["message"].as_str().unwrap();
    assert!(message.starts_with("refused: signature-invalid (300 of them): "), "{message}");
    let all_said = of_kind("WARN", "signature-encoding");
    assert!((1..=most_lines).contains(&all_said.len()), "{log}");
    let alone = &all_said[0];
    assert_eq!(alone["count"], 1);
    assert_eq!(alone["did"], *story.log()[FORGED].did);
    assert!(alone["message"].as_str().unwrap().starts_with("refused: signature-encoding: "));
    let mut single: Vec<String> = of_kind("DEBUG", "signature-invalid")
        .iter()
        .map(|line| line["did"].as_str().unwrap().to_owned())
        .collect();
    single.sort_unstable();
    single.dedup();
    assert_eq!(single.len(), FORGED);
}

/// That asking again fails is one line, and another one when it is over.
#[tokio::test]
async fn what_fails_for_a_while_is_said_once() {
    const FAILURES: usize = 3;
    let mut story = Story::seeded(84);
    let alice = story.create().accepted();
    story.update(&alice).accepted();
    let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
    // The update lacks its genesis, and the audit log cannot be had at first.
    let upstream = FakeUpstream::start(log[1..].to_vec()).await;
    upstream.fail(Route::Identity, FAILURES, Fault::Status(429, None));
    let folder = TempDir::new().unwrap();
    let settings = [("PLC_LOG_FORMAT", "json"), ("PLC_READ_THROUGH", "off")];
    let replica = Served::start(folder.path(), &upstream.url(), &settings);
    replica.reaches(2).await;
    for _ in 0..600 {
        if upstream.asked_for(Route::Identity) > FAILURES {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // What came is written, and then it is said.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let log = replica.end();
    let of = |level: &str, beginning: &str| -> usize {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["level"] == level)
            .filter(|line| line["message"].as_str().unwrap().starts_with(beginning))
            .count()
    };
    let what = "asking again about what was refused";
    assert_eq!(of("WARN", &format!("{what} does not succeed: the upstream")), 1, "{log}");
    assert_eq!(of("INFO", &format!("{what} succeeds again")), 1, "{log}");
}
