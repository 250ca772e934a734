//! `plc-replica export` writes the very bytes that `/export` serves, and all of them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;
use plc_testkit::builder::Story;
use plc_testkit::{Expected, Generated, lines};
use tempfile::TempDir;

use crate::follow::{Place, places};
use crate::process::program;
use crate::replica::{Replica, UPSTREAM};

/// When most of the story happens: more operations in one millisecond than are read at once.
const BUSY: &str = "2024-03-01T00:00:00.000Z";

fn command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = program(&[]);
    command.args(arguments).args(["--database", &place.url]);
    command
}

/// What a run wrote to standard output; it has to end well.
fn output(place: &Place, arguments: &[&str]) -> String {
    let output = command(place, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An honest life with a recovery, a crowd of identities that come in one millisecond, and a few later.
fn busy_story() -> Story {
    let mut story = Story::seeded(71);
    let recovery = story.recovery.clone();
    let alice = story.create().accepted();
    let stolen = story.update(&alice).handle("mallory.example.com").accepted();
    story.after(&alice).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    for _ in 0..1_300 {
        story.create().at(BUSY).accepted();
    }
    story.create().forged_signature().refused("signature-invalid");
    story.tombstone(&alice).accepted();
    for _ in 0..900 {
        story.create_legacy().accepted();
    }
    story
}

/// The accepted operations, in the order of the export by time.
fn by_time(log: &[Generated]) -> Vec<&Generated> {
    let mut accepted: Vec<&Generated> =
        log.iter().filter(|entry| entry.expected == Expected::Accepted).collect();
    accepted.sort_by(|a, b| (&a.created_at, &a.cid).cmp(&(&b.created_at, &b.cid)));
    accepted
}

/// All pages of `/export` after a number, joined as a client that pages joins them.
async fn pages_after(replica: &Replica, mut after: i64) -> String {
    let mut all = String::new();
    loop {
        let page = replica.get(&format!("/export?after={after}&count=700")).await;
        let Some(last) = page.text().lines().last() else { return all };
        after = serde_json::from_str::<serde_json::Value>(last).unwrap()["seq"].as_i64().unwrap();
        all += page.text();
        all.push('\n');
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_what_is_served() {
    let (story, folder) = (busy_story(), TempDir::new().unwrap());
    let dump = folder.path().join("dump.jsonl");
    std::fs::write(&dump, lines(story.log(), Generated::sequenced_line)).unwrap();
    // An older dump has no numbers: what is only there is in the export by time alone.
    let mut older = Story::seeded(72);
    for _ in 0..3 {
        older.create().accepted();
    }
    let older_dump = folder.path().join("older.jsonl");
    std::fs::write(&older_dump, lines(older.log(), Generated::timestamped_line)).unwrap();
    for place in places().await {
        for dump in [&dump, &older_dump] {
            output(&place, &["import", "--upstream", UPSTREAM, dump.to_str().unwrap()]);
        }
        let replica = Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
        numbered_lines_are_those_served(&place, &replica, story.log()).await;
        let all: Vec<Generated> = story.log().iter().chain(older.log()).cloned().collect();
        timed_lines_are_those_served(&place, &replica, &by_time(&all)).await;
    }
}

async fn numbered_lines_are_those_served(place: &Place, replica: &Replica, log: &[Generated]) {
    let accepted = log.iter().filter(|entry| entry.expected == Expected::Accepted);
    let exported = output(place, &["export"]);
    assert_eq!(exported, lines(accepted, Generated::sequenced_line) + "\n");
    assert_eq!(exported, pages_after(replica, 0).await);
    // It can be taken up again after any number, that of a refused operation too.
    for after in [1, 700, 1_304, log.last().unwrap().seq - 1] {
        let rest = output(place, &["export", "--after", &after.to_string()]);
        assert_eq!(rest, pages_after(replica, after).await, "after {after}");
        assert!(exported.ends_with(&rest) && rest.len() < exported.len());
    }
    let last = log.last().unwrap().seq.to_string();
    assert_eq!(output(place, &["export", "--after", &last]), "");
}

async fn timed_lines_are_those_served(place: &Place, replica: &Replica, sorted: &[&Generated]) {
    let exported = output(place, &["export", "--by-time"]);
    assert_eq!(exported, lines(sorted.iter().copied(), Generated::timestamped_line) + "\n");
    let page = replica.get("/export?count=1000").await;
    assert!(exported.starts_with(page.text()) && page.text().lines().count() == 1_000);
    // A page begins after all that happened in this millisecond.
    for after in [&sorted[1].created_at, BUSY] {
        let skipped = sorted.partition_point(|entry| &*entry.created_at <= after);
        let rest: Vec<&str> = exported.lines().skip(skipped).take(1_000).collect();
        let page = replica.get(&format!("/export?after={after}&count=1000")).await;
        assert_eq!(page.text(), rest.join("\n"), "after {after}");
    }
}

/// What follows was to be written by nobody who reads: that is no fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_stop_in_the_middle() {
    let (story, folder) = (busy_story(), TempDir::new().unwrap());
    let dump = folder.path().join("dump.jsonl");
    std::fs::write(&dump, lines(story.log(), Generated::sequenced_line)).unwrap();
    for place in places().await {
        output(&place, &["import", dump.to_str().unwrap()]);
        for arguments in [&["export"][..], &["export", "--by-time"]] {
            let mut export = command(&place, arguments);
            let mut child = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut reader = BufReader::with_capacity(1, child.stdout.take().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line.starts_with(r#"{"did":"#) && line.ends_with("}\n"), "{line}");
            drop(reader);
            let ended = child.wait_with_output().unwrap();
            assert_eq!((ended.status.code(), &*ended.stderr), (Some(141), &b""[..]));
        }
    }
}

/// The export by time has no place to begin after: a number is not silently left aside.
#[tokio::test]
async fn a_number_is_no_place_in_the_export_by_time() {
    for place in places().await {
        let both = command(&place, &["export", "--by-time", "--after", "7"]).output().unwrap();
        assert_eq!(both.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&both.stderr).contains("--by-time"));
    }
}
