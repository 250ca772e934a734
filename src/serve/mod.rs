//! The server: what the directory answers, from the store.
//!
//! ```text
//! connection ──▶ router ──▶ resolve · export · stream · status ──▶ answer (or error)
//!  limits,        path,      parse, one question to the store,      headers, coding
//!  shutdown       method     render
//! ```
//!
//! The server only reads. It never waits for the upstream unless the client asks for that or for
//! what is not here ([`ReadThrough`]), and goes on while that is away: how fresh an answer is
//! stands in its headers.

mod answer;
pub mod client_address;
mod conditional;
mod connection;
mod encoding;
mod error;
mod evidence;
pub mod explorer;
mod export;
mod form;
mod header;
pub mod limits;
mod lookup;
mod pulse;
mod query;
mod read_through;
mod resolution;
mod resolve;
mod route;
mod router;
mod status;
mod stream;
mod untaken;
mod verdicts;
mod wait;

pub use self::read_through::ReadThrough;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::limits::{Limiter, Limits};
use self::pulse::Pulse;
use crate::live::{Feed, Status};
use crate::store::Store;
use did_plc::signature::Verifier;

/// What the server answers from. Clones share all of it.
#[derive(Clone)]
pub struct ServeState {
    /// The log.
    pub store: Store,
    /// New operations, for stream clients.
    pub feed: Arc<Feed>,
    /// How fresh the store is.
    pub status: Arc<Status>,
    /// Who checks signatures, where an answer says who signed.
    pub verifier: Arc<dyn Verifier>,
    /// Who is asked for what is not here, or for what must be fresh; none without read-through.
    pub upstream: Option<Arc<ReadThrough>>,
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
    /// How much a client may ask for.
    pub limits: Limits,
}

impl Default for ServeSettings {
    fn default() -> ServeSettings {
        ServeSettings {
            ready_lag: Duration::from_secs(60),
            stream_catch_up: Duration::from_secs(7 * 24 * 60 * 60),
            limits: Limits::default(),
        }
    }
}

/// A running server: what all of its connections share.
struct Server {
    state: ServeState,
    /// What was noticed in the last hour.
    pulse: Pulse,
    /// What clients have asked for.
    limiter: Limiter,
    /// One for each stream client that there may be.
    stream_places: Arc<Semaphore>,
    /// One for each request that waits for an operation.
    waiting_places: Semaphore,
    /// One for each history that is judged for a client.
    judging_places: Arc<Semaphore>,
    /// Connections and stream clients, to be waited for at the end.
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, and then until every request in hand is answered and every stream
/// client is told, for eight seconds at most.
pub async fn run(listener: TcpListener, state: ServeState, shutdown: CancellationToken) {
    let server = Server {
        limiter: Limiter::new(&state.settings.limits),
        state,
        pulse: Pulse::default(),
        stream_places: Arc::new(Semaphore::new(stream::MAX_CLIENTS)),
        waiting_places: Semaphore::new(wait::MAX_WAITING),
        judging_places: Arc::new(Semaphore::new(verdicts::MAX_JUDGED)),
        tasks: TaskTracker::new(),
        shutdown,
    };
    let server = Arc::new(server);
    let beating = tokio::spawn({
        let server = Arc::clone(&server);
        async move { pulse::beat(&server).await }
    });
    connection::accept(listener, server).await;
    beating.abort();
}
