//! A newer version brings the tables up to date, and takes over, while processes of the older one read from a standby.

use std::time::Duration;

use plc_replica::store::{Postgres, Store, StoreError};
use plc_testkit::builder::Story;
use plc_testkit::telling::ON_ITS_WAY;

use super::witness::Witness;
use super::{DATABASE, Fleet};
use crate::follow::Running;
use crate::process::Served;
use crate::versions::later;

#[tokio::test(flavor = "multi_thread")]
async fn standbys_are_read_from_while_a_newer_version_takes_over() {
    let Some(fleet) = Fleet::start().await else { return };
    let standby = fleet.primary.standby();
    let mut story = Story::seeded(12);
    let identities = fleet.begin(&mut story);
    let replica = fleet.serve(&[&standby]);
    replica.served.reaches(fleet.told.last()).await;
    replica.uses(&[&standby], true).await;
    // It knows nothing but the standby.
    let reads = [("PLC_FOLLOW", "off")];
    let on_standby = standby.url(DATABASE);
    let reader = Served::start_on(&on_standby, &fleet.upstream.url(), &reads);
    reader.reaches(fleet.told.last()).await;
    let growing = fleet.grow(story, identities);
    let of_standby = format!("http://{}", reader.address());
    let witnesses = [
        Witness::start(&replica.url(), &fleet.told, ON_ITS_WAY),
        Witness::start(&of_standby, &fleet.told, ON_ITS_WAY),
    ];
    let are_content = async |what: &str| {
        for witness in &witnesses {
            witness.is_content(what).await;
        }
    };
    are_content("with one version").await;

    standby.pause_replay().await;
    let newer = Postgres::open_at(&fleet.primary.url(DATABASE), &later()).await.unwrap();
    let newer = Running::start_in(Store::Postgres(newer), &fleet.upstream.url()).await;
    newer.live_at(fleet.told.last()).await;
    // One of the newer version that reads from the standby has to wait for what it has not replayed.
    match Postgres::open_to_read_at(&on_standby, &later()).await {
        Err(StoreError::Unavailable(reason)) => assert!(reason.contains("wait for"), "{reason}"),
        other => panic!("{other:?}"),
    }
    standby.resume_replay().await;
    while Postgres::open_to_read_at(&on_standby, &later()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let last = fleet.told.last();
    replica.served.reaches(last).await;
    reader.reaches(last).await;
    replica.uses(&[&standby], true).await;
    are_content("with two versions").await;

    // It is found again by who has not known its tables before.
    for witness in witnesses {
        witness.end().await;
    }
    standby.kill();
    replica.uses(&[&standby], false).await;
    standby.start_again();
    replica.uses(&[&standby], true).await;
    drop(growing);
    newer.end().await;
    replica.served.end();
    reader.end();
}
