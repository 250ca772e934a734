//! Who passes writes on, and how many of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use did_plc::submission::SubmissionLimits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::error::ServeError;
use super::super::limits::Rate;
use super::written::Written;
use crate::upstream::{ExportClient, Submitter, UnusableUpstream};

/// Writes that are under way at a time. With the usual budget the last of them waits ten seconds for its turn.
const MAX_AT_A_TIME: usize = 16;

/// What can be set of writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSettings {
    /// How long the upstream may take.
    pub time: Duration,
    /// Writes a minute in all; 0 for no limit.
    pub writes_per_minute: u32,
    /// Writes a minute of one client; 0 for no limit.
    pub client_writes_per_minute: u32,
    /// Limits on one operation.
    pub limits: SubmissionLimits,
}

impl Default for ForwardSettings {
    fn default() -> ForwardSettings {
        ForwardSettings {
            // A directory answers within a second; the proxies before it give up after a minute or less.
            time: Duration::from_secs(20),
            // Of the hundred requests a minute that an upstream is sent.
            writes_per_minute: 60,
            client_writes_per_minute: 30,
            limits: SubmissionLimits::default(),
        }
    }
}

/// Passes writes on to one upstream.
#[derive(Debug)]
pub struct Forward {
    pub(super) submitter: Submitter,
    pub(super) settings: ForwardSettings,
    /// What was sent and has not come here yet.
    pub(super) written: Written,
    rate: Option<Rate>,
    client_rate: Option<Rate>,
    places: Arc<Semaphore>,
}

impl Forward {
    /// To this upstream, within its budget.
    ///
    /// # Errors
    ///
    /// Those of [`Submitter::new`].
    pub fn new(
        upstream: &ExportClient,
        settings: ForwardSettings,
    ) -> Result<Forward, UnusableUpstream> {
        // A minute's worth may come at once.
        let rate = |limit| Rate::new(limit, limit);
        Ok(Forward {
            submitter: Submitter::new(upstream)?,
            written: Written::new(),
            rate: rate(settings.writes_per_minute),
            client_rate: rate(settings.client_writes_per_minute),
            places: Arc::new(Semaphore::new(MAX_AT_A_TIME)),
            settings,
        })
    }

    /// A place among the writes that are under way, if this client may have one.
    pub(super) fn admit(&self, client: IpAddr) -> Result<OwnedSemaphorePermit, ServeError> {
        let now = Instant::now();
        let own = self.client_rate.as_ref().and_then(|rate| rate.take(client, now));
        if let Some(retry_after) = own {
            return Err(ServeError::TooManyOwnWrites { retry_after });
        }
        let everybody = IpAddr::from([0; 4]);
        if self.rate.as_ref().and_then(|rate| rate.take(everybody, now)).is_some() {
            return Err(ServeError::TooManyWrites);
        }
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| ServeError::TooManyWrites)
    }
}
