//! `/{did}/log/verdicts`: for every operation of the audit log who signed it, what it nullified or
//! by what it was nullified, until when it can still be overruled, and when it was received here.

use std::sync::Arc;

use http::HeaderMap;
use serde::Serialize;

use crate::audit::OperationVerdict;
use crate::blocking;
use crate::store::StoredOperation;
use did_plc::{Did, History, Timestamp};

use super::answer::{self, Answer};
use super::conditional::{Representation, client_has, etag};
use super::error::ServeError;
use super::state::Server;

/// The body.
#[derive(Serialize)]
struct Verdicts {
    did: String,
    verdicts: Vec<OperationVerdict>,
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
    // An operation may be numbered later than it is received. What was read through has neither
    // a number nor a time of receipt.
    let numbered = history.iter().filter(|operation| operation.sequence.is_some()).count();
    let received = usize::from(last.received_at > Timestamp::from_millis(0));
    let numbers = [history.len(), in_force, numbered, received];
    let etag = etag(b"verdicts", &last.cid(), &numbers);
    let body = match client_has(request, &etag) {
        true => Vec::new(),
        false => body(server, did, history).await,
    };
    let known = Representation { etag, modified: None, media_type: answer::JSON };
    known.answer(request, || Ok(body)).map(Some)
}

async fn body(server: &Server, did: Did, history: Vec<StoredOperation>) -> Vec<u8> {
    // Never closed. Kept until the work is done, also when the client has gone before.
    let place = Arc::clone(&server.judging_places).acquire_owned().await;
    let verifier = Arc::clone(&server.state.verifier);
    let judged = move || {
        let _place = place;
        let received = history.iter().map(StoredOperation::as_received);
        let verdicts = OperationVerdict::all(&History::verified(did, received, &*verifier));
        let body = Verdicts { did: did.to_string(), verdicts };
        // No map in it has keys that are not strings, the only way to fail.
        serde_json::to_vec(&body).unwrap_or_default()
    };
    // A panic of the rules is not this server's end; the connection's guard answers 500.
    blocking::run("judging a history", judged).await
}
