//! Standbys and the primary are killed, frozen, stopped in replay and promoted.

use did_plc::signature::PlainVerifier;
use std::time::Duration;

use plc_replica::audit::fsck;
use plc_replica::store::Store;
use plc_testkit::builder::Story;
use plc_testkit::postgres::Client;
use plc_testkit::telling::ON_ITS_WAY;

use tokio::time::sleep;

use super::witness::{HELD_UP, Witness};
use super::{DATABASE, Fleet, Replica, name};

#[tokio::test(flavor = "multi_thread")]
async fn lookups_go_on_while_standbys_come_and_go() {
    let Some(fleet) = Fleet::start().await else { return };
    let (one, other) = (fleet.primary.standby(), fleet.primary.standby());
    let mut story = Story::seeded(3);
    let identities = fleet.begin(&mut story);
    let replica = fleet.serve(&[&one, &other]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&one, &other], true).await;
    let growing = fleet.grow(story, identities);
    let witness = Witness::start(&replica.url(), &fleet.told, ON_ITS_WAY);
    replica.is_read_from(&name(&one)).await;
    replica.is_read_from(&name(&other)).await;
    witness.is_content("with both").await;

    one.kill();
    replica.uses(&[&one], false).await;
    replica.is_read_from(&name(&other)).await;
    witness.is_content("with one that was killed").await;
    one.start_again();
    replica.uses(&[&one], true).await;
    replica.is_read_from(&name(&one)).await;
    witness.is_content("with one that is back").await;

    one.pause_replay().await;
    replica.uses(&[&one], false).await;
    let lag = replica.metric("plc_read_database_lag_seconds", &name(&one)).await;
    assert!(lag >= Some(1.0), "{lag:?}");
    witness.is_content("with one that does not replay").await;
    one.resume_replay().await;
    replica.uses(&[&one], true).await;

    other.freeze();
    replica.uses(&[&other], false).await;
    witness.is_content("with one that is silent").await;
    one.freeze();
    replica.uses(&[&one], false).await;
    replica.is_read_from("primary").await;
    witness.is_content("with none").await;
    one.thaw();
    other.thaw();
    replica.uses(&[&one, &other], true).await;
    replica.is_read_from(&name(&other)).await;
    witness.is_content("with both again").await;

    drop(growing);
    witness.end().await;
    let log = replica.served.end();
    assert!(log.contains("a read database is left out until it is back"), "{log}");
    assert!(log.contains("a read database is in use again"), "{log}");
    assert!(!log.contains("the database is back"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_go_on_while_the_primary_is_away() {
    let Some(fleet) = Fleet::start().await else { return };
    let (one, other) = (fleet.primary.standby(), fleet.primary.standby());
    let mut story = Story::seeded(4);
    let identities = fleet.begin(&mut story);
    let replica = fleet.serve(&[&one, &other]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&one, &other], true).await;
    let growing = fleet.grow(story, identities);
    let witness = Witness::start(&replica.url(), &fleet.told, ON_ITS_WAY);

    // One that is behind answers too, when there is nobody else.
    one.pause_replay().await;
    replica.uses(&[&one], false).await;
    fleet.primary.kill();
    witness.is_content("without the primary").await;
    other.kill();
    replica.uses(&[&other], false).await;
    replica.is_read_from(&name(&one)).await;
    witness.is_content("with one that is behind alone").await;
    // Pages too: the end of the log is what is there.
    let page = reqwest::get(format!("{}/export?after=0", replica.url())).await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.text().await.unwrap().lines().count() >= 8);

    witness.end().await;
    let witness = Witness::start(&replica.url(), &fleet.told, HELD_UP);
    fleet.primary.start_again();
    other.start_again();
    one.resume_replay().await;
    let last = fleet.told.last();
    replica.served.reaches(last).await;
    replica.uses(&[&one, &other], true).await;
    witness.is_content("with the primary back").await;
    drop(growing);
    witness.end().await;
    replica.served.end();
}

/// The network to it is cut, or its machine hangs: connections stay, and nothing answers.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_primary_is_asked_for_does_not_wait_for_one_that_is_silent() {
    let Some(fleet) = Fleet::start().await else { return };
    let standby = fleet.primary.standby();
    let mut story = Story::seeded(12);
    fleet.begin(&mut story);
    let replica = fleet.serve(&[&standby]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&standby], true).await;
    // All that is committed, with the word that the log was caught up.
    let has_all = async || {
        let lag = replica.metric("plc_read_database_lag_seconds", &name(&standby)).await;
        lag == Some(0.0) && replica.served.get("/_ready").await == 200
    };
    replica.served.eventually("the standby has all", has_all).await;
    sleep(Duration::from_secs(1)).await;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let status = async |path: &str| {
        let answer = client.get(format!("{}/{path}", replica.url())).send().await;
        answer.map(|answer| answer.status().as_u16()).ok()
    };
    // Where the log ends, and what a standby does not have, is for the primary to say.
    let asked = [("export?after=0", Some(200)), ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", Some(404))];
    for (path, expected) in asked {
        assert_eq!(status(path).await, expected, "{path}");
    }
    fleet.primary.freeze();
    for (path, expected) in asked.into_iter().cycle().take(10) {
        assert_eq!(status(path).await, expected, "{path} while it is silent");
    }
    fleet.primary.thaw();
    standby.pause_replay().await;
    let told = story.log().len();
    story.create().accepted();
    fleet.tell(&story, told);
    let again = async || {
        let page = client.get(format!("{}/export?after=0", replica.url())).send().await;
        let Ok(page) = page else { return false };
        page.text().await.is_ok_and(|page| page.lines().count() == story.log().len())
    };
    replica.served.eventually("it is asked again", again).await;
    replica.served.end();
}

/// As the runbook says it.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_promoted_and_followed() {
    let Some(fleet) = Fleet::start().await else { return };
    let (one, other) = (fleet.primary.standby(), fleet.primary.standby());
    let mut story = Story::seeded(5);
    let identities = fleet.begin(&mut story);
    let replica = fleet.serve(&[&one, &other]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&one, &other], true).await;
    let growing = fleet.grow(story, identities);
    let witness = Witness::start(&replica.url(), &fleet.told, ON_ITS_WAY);
    witness.is_content("before").await;

    fleet.primary.kill();
    one.promote();
    // It is no standby any more, and what it answers is nobody's to promise.
    replica.uses(&[&one], false).await;
    replica.is_read_from(&name(&other)).await;
    witness.is_content("while nobody follows").await;
    witness.end().await;
    let log = replica.served.end();
    assert!(log.contains("is no standby: it takes writes of its own"), "{log}");

    let follow = format!("ALTER SYSTEM SET primary_conninfo = '{}'", one.conninfo());
    let mut client = Client::connect(&other.url("postgres")).await;
    client.run(&follow).await;
    client.run("SELECT pg_reload_conf()").await;
    let replica = Replica::start(&one, &[&other], &fleet.upstream.url(), &[]);
    let last = fleet.told.last();
    replica.served.reaches(last).await;
    let witness = Witness::start(&replica.url(), &fleet.told, HELD_UP);
    replica.uses(&[&other], true).await;
    replica.is_read_from(&name(&other)).await;
    witness.is_content("with the new primary").await;
    drop(growing);
    witness.end().await;
    replica.served.reaches(fleet.told.last()).await;
    replica.served.end();

    // Each operation once, and nothing that is not sound.
    let store = Store::open(&one.url(DATABASE)).await.unwrap();
    let held = store.export_by_sequence(0, 1_000_000).await.unwrap();
    let held: Vec<i64> = held.iter().filter_map(|operation| operation.sequence).collect();
    let said: Vec<i64> = fleet.told.all().iter().map(|said| said.sequence).collect();
    assert_eq!(held, said);
    let mut damages = Vec::new();
    fsck::check(&store, &PlainVerifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    assert_eq!(damages, []);
}

/// What a standby cancels, since it stands in the way of what is replayed, is read elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_conflicts_with_replay_is_asked_elsewhere() {
    let Some(fleet) = Fleet::start().await else { return };
    let standby = fleet.primary.standby();
    let mut reader = Client::connect(&standby.url(DATABASE)).await;
    reader.run("ALTER SYSTEM SET max_standby_streaming_delay = 0").await;
    reader.run("SELECT pg_reload_conf()").await;
    let mut story = Story::seeded(6);
    fleet.begin(&mut story);
    let replica = fleet.serve(&[&standby]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&standby], true).await;
    // It had to replay the tables first.
    let left_out = || replica.served.log().matches("left out").count();
    let left_out_before = left_out();

    // Two tables are read at once: of the first it has a lock while it waits for the second.
    let mut locked = async |granted: bool| {
        let locks = format!(
            "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'operations'::regclass
             AND granted = {granted} AND (mode = 'AccessExclusiveLock') = {granted}"
        );
        while reader.value(&locks).await.as_deref() != Some("t") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let mut writer = Client::connect(&fleet.primary.url(DATABASE)).await;
    loop {
        writer.run("BEGIN; LOCK TABLE operations IN ACCESS EXCLUSIVE MODE").await;
        Client::connect(&fleet.primary.url(DATABASE)).await.run("SELECT pg_switch_wal()").await;
        locked(true).await;
        let lookup = format!("{}/_lookup?handle=alice.example.com", replica.url());
        let lookup = tokio::spawn(async move { reqwest::get(lookup).await.unwrap().status() });
        locked(false).await;
        let is_locked = writer.try_run("LOCK TABLE sources IN ACCESS EXCLUSIVE MODE").await;
        writer.run("COMMIT").await;
        // There is no index, which the primary says.
        assert_eq!(lookup.await.unwrap(), 501);
        if is_locked {
            break;
        }
        // The follower, which reads both too, was waiting for the other one: once more.
    }
    assert_eq!(replica.metric("plc_reads_retried_total", &name(&standby)).await, Some(1.0));
    assert_eq!(left_out(), left_out_before);
    let log = replica.served.end();
    assert!(!log.contains("a read is asked elsewhere"), "{log}");
}
