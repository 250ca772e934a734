//! What the servers of these tests can do, before anything is concluded from it.

use plc_testkit::postgres::{Client, Server};
use sqlx::Connection;

/// Each in its turn, and back.
#[tokio::test(flavor = "multi_thread")]
async fn servers_are_killed_frozen_paused_and_promoted() {
    let Some(primary) = Server::start() else { return };
    let mut writer = Client::connect(&primary.url("postgres")).await;
    writer.run("CREATE TABLE numbers AS SELECT 1 AS number").await;
    let standby = primary.standby();
    let numbers = async |server: &Server| {
        let mut client = Client::connect(&server.url("postgres")).await;
        client.value("SELECT string_agg(number::text, ',' ORDER BY number) FROM numbers").await
    };
    let becomes = async |server: &Server, expected: &str| {
        while numbers(server).await.as_deref() != Some(expected) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    becomes(&standby, "1").await;
    standby.pause_replay().await;
    writer.run("INSERT INTO numbers VALUES (2)").await;
    assert_eq!(numbers(&standby).await.as_deref(), Some("1"));
    standby.resume_replay().await;
    becomes(&standby, "1,2").await;

    standby.kill();
    assert!(sqlx::postgres::PgConnection::connect(&standby.url("postgres")).await.is_err());
    writer.run("INSERT INTO numbers VALUES (3)").await;
    standby.start_again();
    becomes(&standby, "1,2,3").await;

    standby.freeze();
    standby.thaw();
    primary.kill();
    standby.promote();
    let mut writer = Client::connect(&standby.url("postgres")).await;
    writer.run("INSERT INTO numbers VALUES (4)").await;
    primary.start_again();
    assert_eq!(numbers(&standby).await.as_deref(), Some("1,2,3,4"));
    assert_eq!(numbers(&primary).await.as_deref(), Some("1,2,3"));
}
