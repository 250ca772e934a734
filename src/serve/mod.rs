//! The server: what the directory answers, from the store.
//!
//! ```text
//! connection ──▶ middleware ──▶ router ──▶ identity · export · stream · … ──▶ answer (or error)
//!  limits,        limits, time,  path,      parse, one question to the store,
//!  shutdown       headers        method     render
//! ```
//!
//! The server only reads. It never waits for the upstream unless the client asks for that or for
//! what is not here ([`ReadThrough`]), and goes on while that is away: how fresh an answer is
//! stands in its headers. What clients write it passes on, where that is switched on ([`Forward`]).

mod answer;
mod answer_memory;
mod caching;
pub mod client_address;
mod compression;
mod conditional;
mod connection;
mod empty_pages;
mod error;
mod evidence;
pub mod explorer;
mod export;
mod extract;
mod forward;
mod header_list;
mod health;
mod identity;
mod key_forms;
pub mod limits;
mod lookup;
mod middleware;
mod notes;
mod query;
mod read_through;
mod refused;
mod resolution;
mod router;
mod sampling;
mod state;
mod stream;
mod verdicts;
mod wait;

pub use self::caching::Caching;
pub use self::forward::{Forward, ForwardSettings};
pub use self::read_through::ReadThrough;
pub use self::state::{ServeSettings, ServeState};

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::sampling::Sampling;
use self::state::Server;
use crate::live;

/// Serves until the end is asked for, and for as long after it as is set, in which `/_ready` has others look elsewhere; then
/// until every request in hand is answered and every stream client is told, for eight seconds at most.
pub async fn run(listener: TcpListener, state: ServeState, ending: CancellationToken) {
    let server = Arc::new(Server::new(state, ending));
    let drained = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            server.draining.cancelled().await;
            tokio::time::sleep(server.state.settings.drain).await;
            server.shutdown.cancel();
        }
    });
    let sampling = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            let Server { state, samples, shutdown, .. } = &*server;
            let ServeState { store, status, .. } = state;
            Sampling { samples, store, status, shutdown }.run().await;
        }
    });
    let telling = tokio::spawn({
        let ServeState { store, feed, status, .. } = server.state.clone();
        live::tell(store, feed, status, server.shutdown.clone())
    });
    let refused = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.refused.keep_up(&server.state.store, &server.shutdown).await }
    });
    let router = router::router(&server);
    connection::accept(listener, server, router).await;
    sampling.abort();
    refused.abort();
    telling.abort();
    drained.abort();
}
