//! Writes: an operation that a client submits with `POST /{did}` is passed on to the upstream.
//!
//! ```text
//! body ──▶ check ──▶ gate ──▶ upstream ──▶ its log ──▶ answer
//!  bounded  rules of   rate,     once, in     waited     the upstream's
//!           a log and  number    its budget   for a
//!           of a       at a                   moment
//!           directory  time
//! ```
//!
//! What is certainly wrong is refused here, in the directory's words; all else is for the upstream to decide, whose
//! answer is passed on. Nothing is stored here: the operation comes by the upstream's log, as all others do. The
//! answer waits for that a moment, so that the client which wrote finds its own write. Of what has not come by then
//! it is remembered that it will, and the identity is read through until it does.
//!
//! A crash, or a client that goes away, changes nothing: the upstream has the operation or not, and its log tells.

mod body;
mod check;
pub(super) mod gate;
mod outcome;
mod write;
mod written;

pub use self::gate::{Forward, ForwardSettings};

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use did_plc::Did;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use self::check::check;
use self::outcome::Outcome;
use self::write::Write;
use super::answer::{self, Answer};
use super::error::ServeError;
use super::extract::{PathDid, RequestHead};
use super::state::Server;
use super::wait;
use crate::reads::Picture;

/// What a write may take of the time of an answer: nobody whose operation was sent is to be told that an answer
/// took too long.
const SHARE_OF_TIME: f64 = 0.9;
/// The longest that a write takes, whatever the settings say.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// What can be done with an identity where writes are passed on.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, OPTIONS");
/// Seconds that a browser may keep that.
const PREFLIGHT_AGE: HeaderValue = HeaderValue::from_static("86400");

/// Answers `POST /{did}`.
pub async fn submit(
    State(server): State<Arc<Server>>,
    did: Result<PathDid, ServeError>,
    head: RequestHead,
    body: Body,
) -> Result<Answer, ServeError> {
    let Some(forward) = server.state.forward.clone() else {
        return Err(match did {
            Ok(_) => ServeError::ReadOnly {
                upstream: server.state.status.upstreams().preferred().to_owned(),
            },
            Err(_) => ServeError::MethodNotAllowed(Method::POST),
        });
    };
    let time = server.state.settings.limits.request_time.min(LONGEST).mul_f64(SHARE_OF_TIME);
    let deadline = Instant::now() + time;
    let PathDid(did) = did.map_err(|error| match error {
        ServeError::Undecodable(_) => error,
        _ => ServeError::MethodNotAllowed(Method::POST),
    })?;
    let admitted = async {
        let limits = &forward.settings.limits;
        let body = body::read(&head.headers, body, limits.operation_bytes).await?;
        let (did, submission) = check(&server, limits, &did, &body).await?;
        let place = forward.admit(head.client)?;
        let patience = wait::patience(&head.headers);
        Ok(Write { forward, did, submission, deadline, patience, place })
    };
    let write = admitted.await.inspect_err(|_: &ServeError| Outcome::RefusedHere.count())?;
    // A task of its own: it goes on when the client has gone.
    let written = tokio::spawn(async move { write.carry_out(&server).await });
    written.await.map_err(|bug| {
        tracing::error!(%bug, "passing on an operation failed");
        ServeError::Bug
    })
}

/// Answers `OPTIONS` for an identity where writes are passed on.
pub async fn preflight() -> Answer {
    let mut answer = answer::empty(StatusCode::NO_CONTENT);
    let headers = answer.headers_mut();
    headers.insert(header::ALLOW, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, answer::ANY);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE);
    answer
}

/// Whether a write of an identity was sent to the upstream, or may have been, and is not here: then the upstream
/// is to be asked before what is held is answered. What only a standby lacks is read from the primary.
///
/// # Errors
///
/// Those of the store.
pub async fn is_awaited(server: &Server, log: &Picture<'_>, did: &Did) -> Result<bool, ServeError> {
    let Some(forward) = &server.state.forward else { return Ok(false) };
    let Some(cid) = forward.written.of(did) else { return Ok(false) };
    let has_come = wait::finds(log, *did, cid).await?;
    // A standby may lack it still.
    if has_come && !server.state.reads.has_standbys() {
        forward.written.forget(did, cid);
    }
    Ok(!has_come)
}
