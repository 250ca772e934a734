//! Read databases that are none, and what is read of what was just written.

use std::time::{Duration, Instant};

use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::LogEntry;
use plc_testkit::postgres::{Client, Server};
use tempfile::TempDir;

use super::{DATABASE, Fleet, Replica, name};
use crate::process::Running;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_read_database_that_is_no_standby_of_ours_is_refused_in_a_sentence() {
    let Some(fleet) = Fleet::start().await else { return };
    let standby = fleet.primary.standby();
    let other = Server::start().unwrap();
    let create = format!("CREATE DATABASE {DATABASE}");
    Client::connect(&other.url("postgres")).await.run(&create).await;
    let other_standby = other.standby();
    let create = "CREATE DATABASE another";
    Client::connect(&fleet.primary.url("postgres")).await.run(create).await;

    let primary = fleet.primary.url(DATABASE);
    let folder = TempDir::new().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("plc.db").display());
    let elsewhere = other_standby.url(DATABASE);
    let twice = format!("{0},{0}", standby.url(DATABASE));
    for (database, read_database, sentence) in [
        (&primary, &primary, "is no standby: it takes writes of its own"),
        (&primary, &other.url(DATABASE), "but another database"),
        (&primary, &elsewhere, "but another database"),
        (&primary, &standby.url("postgres"), "but another database"),
        (
            &primary,
            &standby.url("nowhere"),
            "the setting --read-database names a server that refuses us",
        ),
        (&primary, &twice, "twice"),
        (
            &primary,
            &"sqlite://plc.db".to_owned(),
            "the setting --read-database is not a Postgres URL",
        ),
        (&sqlite, &standby.url(DATABASE), "--database names a file of SQLite"),
    ] {
        let mut command = crate::process::serve(database, &fleet.upstream.url());
        command.args(["--listen", "127.0.0.1:0", "--read-database", read_database]);
        let mut refused = Running::start(command);
        let begun = Instant::now();
        while refused.runs() {
            assert!(begun.elapsed() < PATIENCE, "{read_database}: {}", refused.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let said = refused.log();
        assert!(said.contains(sentence), "{read_database}: {said}");
        assert!(said.contains("--read-database"), "{read_database}: {said}");
    }
}

/// One that is away at the start comes in when it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_database_that_is_away_at_the_start_is_waited_for() {
    let Some(fleet) = Fleet::start().await else { return };
    let standby = fleet.primary.standby();
    standby.kill();
    let mut story = Story::seeded(8);
    fleet.begin(&mut story);
    let replica = fleet.serve(&[&standby]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&standby], false).await;
    standby.start_again();
    replica.uses(&[&standby], true).await;
    let did = &story.log()[0].did;
    assert_eq!(replica.served.get(&format!("/{did}")).await, 200);
    assert!(replica.metric("plc_reads_total", &name(&standby)).await >= Some(1.0));
    replica.served.end();
}

/// What a standby lacks still is read from the primary by who names it, or has written it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_read_at_once() {
    let Some(fleet) = Fleet::start().await else { return };
    let standby = fleet.primary.standby();
    let mut story = Story::seeded(9);
    let identities = fleet.begin(&mut story);
    // It is in use all the time, however far it is behind.
    let environment = [("PLC_FORWARD_WRITES", "on"), ("PLC_READ_LAG_SECONDS", "3600")];
    let replica = Replica::start(&fleet.primary, &[&standby], &fleet.upstream.url(), &environment);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&standby], true).await;
    let shown = async |path: String| {
        let answer = reqwest::get(format!("{}/{path}", replica.url())).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let sequence: i64 = answer.headers()["plc-sequence"].to_str().unwrap().parse().unwrap();
        (sequence, answer.text().await.unwrap())
    };
    let before = fleet.told.last();
    let did = identities[0].did.clone();
    let has_all = async || shown(did.clone()).await.0 == before;
    replica.served.eventually("the standby has all of it", has_all).await;
    standby.pause_replay().await;

    story.update(&identities[0]).accepted();
    let new = LogEntry::from(story.log().last().unwrap());
    fleet.tell(&story, story.log().len() - 1);
    replica.served.reaches(new.seq).await;
    let (sequence, last) = shown(format!("{}/log/last", new.did)).await;
    assert_eq!(sequence, before);
    assert_ne!(last, new.operation);
    assert_eq!(
        shown(format!("{}/log/last?cid={}", new.did, new.cid)).await,
        (new.seq, new.operation)
    );
    // Where the log ends is what the primary has.
    let (sequence, page) = shown("export?after=0&count=1000".to_owned()).await;
    assert_eq!((sequence, page.lines().count()), (new.seq, story.log().len()));
    let (sequence, page) = shown("export?after=0&count=3".to_owned()).await;
    assert_eq!((sequence, page.lines().count()), (before, 3));

    // Nor is an identity unknown that is new.
    let told = story.log().len();
    let bob = story.create().accepted();
    fleet.tell(&story, told);
    replica.served.reaches(fleet.told.last()).await;
    let answer = reqwest::get(format!("{}/{}", replica.url(), bob.did)).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers().get("plc-read-through"), None);

    story.update(&identities[1]).accepted();
    let written = LogEntry::from(story.log().last().unwrap());
    let client = reqwest::Client::new();
    let post = client.post(format!("{}/{}", replica.url(), written.did));
    let post = post.header("content-type", "application/json").header("prefer", "wait=30");
    let answer = post.body(written.operation.clone()).send().await.unwrap();
    assert_eq!(answer.headers()["plc-forwarded"], "committed", "{answer:?}");
    let (sequence, last) = shown(format!("{}/log/last", written.did)).await;
    assert_eq!((sequence, last), (written.seq, written.operation));
    // Of everybody else what the standby has.
    assert_eq!(shown(format!("{}/log/last", new.did)).await.0, before);
    standby.resume_replay().await;
    replica.served.end();
}
