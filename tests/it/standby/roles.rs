//! The roles of `ops/roles.sql`: what each of them can do, and that it can do no more.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use plc_testkit::builder::Story;
use plc_testkit::postgres::{Client, Server, programs};

use super::{DATABASE, Fleet};
use crate::process::{Ran, Served, run};

/// Applies the file as an operator does.
fn grant(server: &Server) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/roles.sql");
    let psql = programs().unwrap().join("psql");
    let mut applied = Command::new(psql);
    applied.args(["--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--dbname", &server.url(DATABASE)]);
    // Its own folder need not be readable for whoever runs the tests elsewhere.
    applied.args(["--file", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut applied = applied.stderr(Stdio::piped()).spawn().unwrap();
    applied.stdin.take().unwrap().write_all(&std::fs::read(file).unwrap()).unwrap();
    let applied = applied.wait_with_output().unwrap();
    let errors = String::from_utf8(applied.stderr).unwrap();
    assert!(applied.status.success(), "{errors}");
}

/// Runs a command of the program on a database.
fn on(url: &str, arguments: &[&str]) -> Ran {
    run(&[arguments, &["--database", url]].concat())
}

/// What a role may not do, by the word of the database.
async fn is_denied(url: &str, statement: &str) {
    let mut client = Client::connect(url).await;
    let run = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()));
    let error = run.execute(&mut client.connection).await.unwrap_err().to_string();
    assert!(
        error.contains("permission denied") || error.contains("must be owner"),
        "{statement}: {error}"
    );
}

/// Every command that only reads.
fn reading(did: &str) -> Vec<Vec<&str>> {
    vec![vec!["resolve", did], vec!["history", did], vec!["refused"], vec!["export"], vec!["fsck"]]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_can_do_what_it_is_for_and_no_more() {
    let Some(fleet) = Fleet::start().await else { return };
    let as_role = |role: &str| fleet.primary.url_as(role, DATABASE);
    let (owner, follower, reader) =
        (as_role("plc_owner"), as_role("plc_follower"), as_role("plc_reader"));
    grant(&fleet.primary);
    let standby = fleet.primary.standby();

    // Only the owner makes the tables.
    let url = fleet.upstream.url();
    for role in [&follower, &reader] {
        let ran = on(role, &["migrate"]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.errors.contains("does not allow what is asked of it"), "{ran:?}");
    }
    let ran = on(&owner, &["migrate"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    grant(&fleet.primary);

    // The follower writes all that there is to be written: what is refused, and what is nullified, too.
    let mut story = Story::seeded(10);
    let thief = story.k256();
    let identities: Vec<_> = (0..4).map(|_| story.create().accepted()).collect();
    let recovery = story.recovery.clone();
    let lost = story.update(&identities[0]).accepted();
    story.update(&identities[0]).signed_by(&thief).refused("signature-invalid");
    story.after(&identities[0]).signed_by(&recovery).just_in_time_for(&lost).accepted();
    fleet.tell(&story, 0);
    let environment =
        [("PLC_INDEX", "on"), ("PLC_READ_DATABASE", &*standby.url_as("plc_reader", DATABASE))];
    let served = Served::start_on(&follower, &url, &environment);
    served.reaches(fleet.told.last()).await;
    let found = async || served.get("/_lookup?handle=user1.example.com").await == 200;
    served.eventually("the index is there", found).await;
    let did = &identities[0].did;
    for path in ["", "/log/audit", "/data"] {
        assert_eq!(served.get(&format!("/{did}{path}")).await, 200);
    }
    let log = served.end();
    assert!(!log.contains("does not allow"), "{log}");

    // Whoever reads reads on the primary and on the standby.
    let on_standby = standby.url_as("plc_reader", DATABASE);
    for url in [&owner, &follower, &reader, &on_standby] {
        for command in reading(did) {
            let ran = on(url, &command);
            assert_eq!(ran.code, Some(0), "{command:?} on {url}: {ran:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let ran = on(url, &["snapshot", &folder.path().display().to_string()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    // What writes says that it may not, and not that something is away.
    for url in [&reader, &on_standby] {
        for command in [
            vec!["import", "--upstream", &*fleet.upstream.url(), "/dev/null"],
            vec!["repair", "--upstream", &*fleet.upstream.url(), did],
        ] {
            let ran = on(url, &command);
            assert_eq!(ran.code, Some(2), "{command:?} on {url}: {ran:?}");
            assert!(ran.errors.contains("does not allow what is asked of it"), "{ran:?}");
            assert!(!ran.errors.contains("unavailable"), "{ran:?}");
        }
    }
    for statement in
        ["DELETE FROM operations", "UPDATE sources SET cursor = 0", "CREATE TABLE t ()"]
    {
        is_denied(&reader, statement).await;
    }
    for statement in [
        "TRUNCATE operations",
        "DROP TABLE operations",
        "ALTER TABLE operations ADD x int",
        "DELETE FROM _sqlx_migrations",
        "CREATE TABLE t ()",
    ] {
        is_denied(&follower, statement).await;
    }
    // People too.
    let mut people = Client::connect(&reader).await;
    let of_people = format!("SELECT count(*) FROM plc_history('{did}')");
    assert_eq!(people.value(&of_people).await.as_deref(), Some("3"));
}

/// A log that was begun by somebody else is handed over.
#[tokio::test(flavor = "multi_thread")]
async fn what_there_was_before_becomes_the_owners() {
    let Some(fleet) = Fleet::start().await else { return };
    let mut story = Story::seeded(11);
    fleet.begin(&mut story);
    let replica = fleet.serve(&[]);
    replica.served.reaches(fleet.told.last()).await;
    replica.served.end();
    grant(&fleet.primary);
    let owners = "SELECT string_agg(DISTINCT pg_get_userbyid(relowner)::text, ',') FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'i', 'S')";
    let mut client = Client::connect(&fleet.primary.url(DATABASE)).await;
    assert_eq!(client.value(owners).await.as_deref(), Some("plc_owner"));
    let functions = "SELECT string_agg(DISTINCT pg_get_userbyid(proowner)::text, ',') FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace";
    assert_eq!(client.value(functions).await.as_deref(), Some("plc_owner"));

    let last = story.log().len();
    story.create().accepted();
    fleet.tell(&story, last);
    let follower = fleet.primary.url_as("plc_follower", DATABASE);
    let served = Served::start_on(&follower, &fleet.upstream.url(), &[]);
    served.reaches(fleet.told.last()).await;
    served.end();
}
