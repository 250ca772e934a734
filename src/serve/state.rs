//! What the parts of the server share.

use std::sync::Arc;
use std::time::Duration;

use did_plc::signature::Verifier;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::live::{Feed, Status};
use crate::reads::{Picture, Reads};
use crate::store::Store;

use super::caching::Caching;
use super::empty_pages::EmptyPages;
use super::forward::gate::Forward;
use super::limits::{Limiter, Limits, MAX_JUDGED, MAX_STREAM_CLIENTS, MAX_WAITING};
use super::read_through::ReadThrough;
use super::refused::RefusedIdentities;
use super::sampling::Samples;

/// What the server answers from. Clones share all of it.
#[derive(Clone)]
pub struct ServeState {
    /// The log.
    pub store: Store,
    /// What answers are read from: the same, or hot standbys of it.
    pub reads: Arc<Reads>,
    /// New operations, for stream clients.
    pub feed: Arc<Feed>,
    /// How fresh the store is.
    pub status: Arc<Status>,
    /// Who checks signatures, where an answer says who signed.
    pub verifier: Arc<dyn Verifier>,
    /// Who is asked for what is not here, or for what must be fresh; none without read-through.
    pub upstream: Option<Arc<ReadThrough>>,
    /// Who passes on what clients write; none where they cannot.
    pub forward: Option<Arc<Forward>>,
    /// What can be set.
    pub settings: ServeSettings,
}

/// The settings of the server.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// `/_ready` is 200 only while the store is less old than this.
    pub ready_lag: Duration,
    /// A stream client whose next operation is older than this is sent to the pages.
    pub stream_catch_up: Duration,
    /// How long caches may keep what is said of an identity.
    pub caching: Caching,
    /// How long it is served on after the end was asked for, while `/_ready` says so already.
    pub drain: Duration,
    /// How much a client may ask for.
    pub limits: Limits,
}

impl Default for ServeSettings {
    fn default() -> ServeSettings {
        ServeSettings {
            ready_lag: Duration::from_secs(60),
            stream_catch_up: Duration::from_secs(7 * 24 * 60 * 60),
            caching: Caching::default(),
            drain: Duration::ZERO,
            limits: Limits::default(),
        }
    }
}

/// A running server: what all of its connections share.
pub struct Server {
    /// What it answers from.
    pub state: ServeState,
    /// Figures of the store and of the last hour.
    pub samples: Samples,
    /// Of whom something was refused.
    pub refused: RefusedIdentities,
    /// What clients have asked for.
    pub limiter: Limiter,
    /// Which empty pages of the export clients were given.
    pub empty_pages: EmptyPages,
    /// One for each request that is answered at a time.
    pub request_places: Arc<Semaphore>,
    /// One for each stream client that there may be.
    pub stream_places: Arc<Semaphore>,
    /// One for each request that waits for an operation.
    pub waiting_places: Semaphore,
    /// One for each history that is judged for a client.
    pub judging_places: Arc<Semaphore>,
    /// Connections and stream clients, to be waited for at the end.
    pub tasks: TaskTracker,
    /// Cancelled when the end is asked for.
    pub draining: CancellationToken,
    /// Cancelled at the end.
    pub shutdown: CancellationToken,
}

impl Server {
    /// The picture of the log that one answer is made from.
    pub fn picture(&self) -> Picture<'_> {
        self.state.reads.picture()
    }

    /// One that nobody has asked anything yet.
    pub fn new(state: ServeState, draining: CancellationToken) -> Server {
        Server {
            limiter: Limiter::new(&state.settings.limits),
            request_places: Arc::new(Semaphore::new(
                state.settings.limits.requests.min(Semaphore::MAX_PERMITS),
            )),
            empty_pages: EmptyPages::new(state.settings.limits.request_time),
            state,
            samples: Samples::default(),
            refused: RefusedIdentities::new(),
            stream_places: Arc::new(Semaphore::new(MAX_STREAM_CLIENTS)),
            waiting_places: Semaphore::new(MAX_WAITING),
            judging_places: Arc::new(Semaphore::new(MAX_JUDGED)),
            tasks: TaskTracker::new(),
            draining,
            shutdown: CancellationToken::new(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use did_plc::signature::PlainVerifier;
    use tempfile::TempDir;

    use super::*;

    /// A server on an empty store of its own, with nobody connected, and the folder of the store.
    pub async fn server() -> (Arc<Server>, TempDir) {
        server_with(Limits::default()).await
    }

    /// The same with limits of its own.
    pub async fn server_with(limits: Limits) -> (Arc<Server>, TempDir) {
        let folder = TempDir::new().unwrap();
        let url = format!("sqlite://{}", folder.path().join("plc.db").display());
        let settings = ServeSettings { limits, ..ServeSettings::default() };
        let store = Store::open(&url).await.unwrap();
        let status = Arc::new(Status::new(["https://plc.example"], None));
        let state = ServeState {
            reads: Arc::new(Reads::new(store.clone(), Arc::clone(&status), Vec::new())),
            store,
            feed: Arc::new(Feed::new()),
            status,
            verifier: Arc::new(PlainVerifier),
            upstream: None,
            forward: None,
            settings,
        };
        (Arc::new(Server::new(state, CancellationToken::new())), folder)
    }
}
