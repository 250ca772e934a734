//! One peer, asked about one identity after the other.

use std::time::Duration;

use did_plc::{Did, Timestamp};
use tokio::time::sleep;

use super::report::Summary;
use crate::audit::{
    CheckError, CheckedIdentity, Checker, Depth, Peer, PeerError, Suspicion, SweptExport,
};

/// How often in a row a peer may fail before the comparison ends.
const ATTEMPTS: u32 = 5;
/// First pause after a fault; doubled by each that follows.
const PAUSE: Duration = Duration::from_secs(1);
/// How many identities in a row a peer may leave unanswered before the comparison ends: one may
/// be damaged there, several mean that the peer is.
const UNANSWERED: u32 = 3;
/// Identities that one peer is asked about, one after the other.
pub(super) struct Questions<'a> {
    pub(super) checker: Checker,
    pub(super) peer: &'a Peer,
    pub(super) export: SweptExport,
    /// Left without an answer since the last one that was answered.
    pub(super) unanswered: u32,
}

/// What was found about an identity.
pub(super) struct Answered {
    pub(super) log: CheckedIdentity,
    /// What only their export says.
    pub(super) export: Option<CheckedIdentity>,
}

impl Questions<'_> {
    /// What was found about an identity; none when the peer fails to answer for it.
    pub(super) async fn ask(
        &mut self,
        did: Did,
        suspicions: &[Suspicion],
        horizon: Timestamp,
        summary: &mut Summary,
    ) -> anyhow::Result<Option<Answered>> {
        let mut patience = Patience::default();
        let error = loop {
            match self.ask_once(did, suspicions, horizon).await {
                Ok(found) => {
                    self.unanswered = 0;
                    return Ok(Some(found));
                }
                Err(CheckError::Peer(error)) => {
                    if let Err(error) = patience.wait(error).await {
                        break error;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.unanswered += 1;
        if self.unanswered == UNANSWERED {
            return Err(error);
        }
        summary.unanswered += 1;
        tracing::warn!(%did, "not compared: {error}");
        Ok(None)
    }

    async fn ask_once(
        &self,
        did: Did,
        suspicions: &[Suspicion],
        horizon: Timestamp,
    ) -> Result<Answered, CheckError> {
        let log = self.checker.check(self.peer, did, Depth::Everything, horizon).await?;
        let export = self.export.check(&self.checker, &log, suspicions, horizon).await?;
        Ok(Answered { log, export })
    }
}

/// Waits out what may pass, for a while.
#[derive(Debug, Default)]
pub(super) struct Patience {
    failures: u32,
}

impl Patience {
    pub(super) async fn wait(&mut self, error: PeerError) -> anyhow::Result<()> {
        let PeerError::Upstream(fault) = &error else { return Err(error.into()) };
        self.failures += 1;
        if self.failures == ATTEMPTS {
            return Err(error.into());
        }
        let pause = PAUSE * 2u32.pow(self.failures - 1);
        let pause = fault.retry_after().map_or(pause, |wish| wish.max(pause));
        tracing::warn!(?pause, "{fault}: tried again");
        sleep(pause).await;
        Ok(())
    }
}
