//! `/{did}/log/verdicts`: for every operation of the audit log who signed it, what it nullified or
//! by what it was nullified, until when it can still be overruled, and when it was received here.

use std::sync::Arc;

use http::HeaderMap;
use serde::Serialize;

use crate::audit::{History, Verdict};
use crate::plc::Timestamp;
use crate::store::StoredOperation;

use super::Server;
use super::answer::{self, Answer};
use super::error::ServeError;
use super::resolve::{conditional, etag};

/// The body.
#[derive(Serialize)]
struct Verdicts {
    did: String,
    verdicts: Vec<Verdict>,
}

/// None when there is no history. Every signature is checked again for it.
pub async fn show(
    server: &Server,
    request: &HeaderMap,
    history: Vec<StoredOperation>,
) -> Result<Option<Answer>, ServeError> {
    let Some(last) = history.last() else { return Ok(None) };
    let did = last.did;
    let in_force = history.iter().filter(|operation| operation.nullified_by.is_none()).count();
    // Read-through answers state no time of receipt here, which is what the last number tells.
    let received = usize::from(last.received_at > Timestamp::from_millis(0));
    let etag = etag(b"verdicts", &last.cid(), &[history.len(), in_force, received]);
    let verifier = Arc::clone(&server.state.verifier);
    let judged = move || Verdict::all(&History::of_stored(did, history, &*verifier));
    // A panic of the rules is not this server's end; the connection's guard answers 500.
    let verdicts = match tokio::task::spawn_blocking(judged).await {
        Ok(verdicts) => verdicts,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    conditional(request, etag, None, answer::JSON, || {
        let body = Verdicts { did: did.to_string(), verdicts };
        // No map in it has keys that are not strings, the only way to fail.
        Ok(serde_json::to_vec(&body).unwrap_or_default())
    })
    .map(Some)
}
