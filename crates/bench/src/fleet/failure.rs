//! What goes wrong in a fleet, one after the other, and what of it clients may notice.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep};

use super::stand::Fleet;

/// How long a follower may take to take over on Postgres, as the README has it, and a busy machine's time beside it.
const TAKING_OVER: Duration = Duration::from_secs(13 + 5);
/// How long what is new may be on its way to who is not concerned.
const ON_ITS_WAY: Duration = Duration::from_secs(3);
/// How long following may take to go on when what it needs is back: until the lease has run out that was held before, the
/// longest pause between two attempts, and more.
const GOING_ON: Duration = Duration::from_secs(20);
/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(90);
/// A standby that does not replay is left out once it is five seconds behind: it is stopped for longer.
const LEFT_OUT: Duration = Duration::from_secs(8);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Something that goes wrong, and is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The follower is killed; when the spare one follows, it is started again.
    Follower,
    /// The standby is killed, and started again.
    Standby,
    /// A reader is killed, and started again.
    Reader,
    /// The primary is killed, and started again.
    Primary,
    /// The standby does not replay for a while.
    Replay,
    /// Nothing gets from the primary's machine to the readers' for a while.
    Network,
    /// The primary is killed for good: the standby is promoted, and followed.
    Promotion,
}

impl Failure {
    /// In their order: what is promoted stays so.
    pub const ALL: [Failure; 7] = [
        Failure::Follower,
        Failure::Standby,
        Failure::Reader,
        Failure::Primary,
        Failure::Replay,
        Failure::Network,
        Failure::Promotion,
    ];

    /// In the table.
    pub const fn name(self) -> &'static str {
        match self {
            Failure::Follower => "`kill -9` of the follower",
            Failure::Standby => "`kill -9` of the standby",
            Failure::Reader => "`kill -9` of a reader",
            Failure::Primary => "`kill -9` of the primary, and back",
            Failure::Replay => "the standby does not replay",
            Failure::Network => "the network is cut between primary and readers",
            Failure::Promotion => "`kill -9` of the primary for good, the standby is promoted",
        }
    }

    /// How long nothing may be followed, where something is away for so long.
    pub fn most_without_following(self, away: Duration) -> Duration {
        match self {
            Failure::Follower => TAKING_OVER,
            Failure::Primary => away + GOING_ON,
            Failure::Promotion => TAKING_OVER + GOING_ON,
            Failure::Standby | Failure::Reader | Failure::Replay | Failure::Network => ON_ITS_WAY,
        }
    }

    /// It goes wrong, and is mended.
    pub async fn happen(self, fleet: &mut Fleet, away: Duration) -> anyhow::Result<()> {
        match self {
            Failure::Follower => {
                fleet.follower.kill();
                is_followed(fleet).await?;
                let following = fleet.following(&fleet.primary);
                fleet.follower.start(&following)?;
            }
            Failure::Standby => {
                fleet.standby.kill();
                sleep(away).await;
                fleet.standby.start_again();
            }
            Failure::Reader => {
                let reading = fleet.reading();
                fleet.readers[0].kill();
                sleep(away).await;
                fleet.readers[0].start(&reading)?;
            }
            Failure::Primary => {
                fleet.primary.kill();
                sleep(away).await;
                fleet.primary.start_again();
            }
            Failure::Replay => {
                fleet.standby.pause_replay().await;
                sleep(away.max(LEFT_OUT)).await;
                fleet.standby.resume_replay().await;
            }
            Failure::Network => {
                fleet.network.cut()?;
                sleep(away).await;
                fleet.network.mend()?;
            }
            Failure::Promotion => switch_over(fleet).await?,
        }
        Ok(())
    }
}

/// As the runbook says it.
async fn switch_over(fleet: &mut Fleet) -> anyhow::Result<()> {
    fleet.primary.kill();
    let reading = fleet.reading_alone(&fleet.standby);
    for reader in &mut fleet.readers {
        reader.end()?;
        reader.start(&reading)?;
    }
    fleet.standby.promote();
    fleet.is_switched_over = true;
    let following = fleet.following(&fleet.standby);
    for member in [&mut fleet.follower, &mut fleet.spare] {
        member.end()?;
        member.start(&following)?;
    }
    is_followed(fleet).await
}

/// Waits until somebody follows.
async fn is_followed(fleet: &Fleet) -> anyhow::Result<()> {
    let begun = Instant::now();
    while ![&fleet.follower, &fleet.spare].iter().any(|member| member.is("follower")) {
        ensure!(begun.elapsed() < PATIENCE, "nobody follows");
        sleep(LOOK).await;
    }
    Ok(())
}
