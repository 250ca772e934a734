//! Everything about one identity: `/{did}` and what is below it.

use axum::response::IntoResponse;
use did_plc::Did;
use did_plc::document::{write_data, write_document, write_plain_document};
use did_plc::json::write_operation;
use did_plc::operation::{Malformed, Operation, OperationKind};
use http::{HeaderMap, HeaderValue, header};

use crate::reads::Picture;
use crate::store::StoredOperation;

use super::answer::{self, Answer};
use super::conditional::{Representation, etag};
use super::error::ServeError;
use super::extract::RequestHead;
use super::forward;
use super::notes::Notes;
use super::read_through::{self, wants_upstream};
use super::state::Server;
use super::{verdicts, wait};

/// JSON of an operation against its DAG-CBOR, and its envelope: enough room that a body is
/// seldom moved.
const BODY_ROOM: usize = 512;

/// What is shown of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// `/{did}`: the DID document.
    Document,
    /// `/{did}/data`: what the document is made from.
    Data,
    /// `/{did}/log`: its operations without the nullified ones.
    Log,
    /// `/{did}/log/audit`: all its operations, with CID, time and flag.
    Audit,
    /// `/{did}/log/last`: its newest operation.
    Last,
    /// `/{did}/log/verdicts`: who signed each operation and what became of it.
    Verdicts,
}

/// Answers for the identity that the path names, which may be any text. Every answer says how
/// fresh it is, and what was refused of the identity after what it shows.
pub async fn identity(server: &Server, did: &str, head: &RequestHead, view: View) -> Answer {
    let log = server.picture();
    let mut notes = Notes::new(log.freshness());
    let shown = match did.parse::<Did>() {
        Err(_) => Err(ServeError::NotPlc(did.to_owned())),
        Ok(did) => wait_and_show(server, &log, head, did, view, &mut notes).await,
    };
    notes.freshness = log.freshness();
    let mut answer = shown.into_response();
    notes.state(answer.headers_mut());
    server.state.settings.caching.state(answer.headers_mut());
    answer
}

async fn wait_and_show(
    server: &Server,
    log: &Picture<'_>,
    head: &RequestHead,
    did: Did,
    view: View,
    notes: &mut Notes,
) -> Result<Answer, ServeError> {
    let waited = wait::for_operation(server, log, head, did).await;
    // Read before the answer: what is not held after that was refused then, and not unknown.
    notes.refused = server.refused.standing(log, &did).await?;
    waited?;
    show(server, log, &head.headers, did, view, notes).await
}

async fn show(
    server: &Server,
    log: &Picture<'_>,
    request: &HeaderMap,
    did: Did,
    view: View,
    notes: &mut Notes,
) -> Result<Answer, ServeError> {
    let local = match wants_upstream(request) || forward::is_awaited(server, log, &did).await? {
        false => show_local(server, log, request, did, view).await?,
        true => None,
    };
    if let Some(answer) = local {
        return Ok(answer);
    }
    let upstream = server.state.upstream.as_ref();
    let (outcome, history) = read_through::read(upstream, log, did).await?;
    notes.read_through = outcome;
    let shown = match history {
        Some(history) => show_operations(server, request, history, view).await?,
        // It may have come while the upstream was asked.
        None => show_local(server, log, request, did, view).await?,
    };
    // What is caught up to after it was read is no proof of absence.
    let caught_up = log.freshness().caught_up;
    shown.ok_or_else(|| ServeError::absent(did, notes.refused, caught_up))
}

/// What the store has; none when it does not hold the identity.
async fn show_local(
    server: &Server,
    log: &Picture<'_>,
    request: &HeaderMap,
    did: Did,
    view: View,
) -> Result<Option<Answer>, ServeError> {
    match view {
        View::Document | View::Data | View::Last => {
            log.head(&did).await?.map(|head| show_head(request, &head, view)).transpose()
        }
        View::Log | View::Audit => show_history(request, &log.history(&did).await?, view),
        View::Verdicts => show_operations(server, request, log.history(&did).await?, view).await,
    }
}

/// The same from all operations of an identity, wherever they come from.
async fn show_operations(
    server: &Server,
    request: &HeaderMap,
    history: Vec<StoredOperation>,
    view: View,
) -> Result<Option<Answer>, ServeError> {
    match view {
        View::Document | View::Data | View::Last => {
            let head = history.iter().rev().find(|operation| operation.nullified_by.is_none());
            head.map(|head| show_head(request, head, view)).transpose()
        }
        View::Log | View::Audit => show_history(request, &history, view),
        View::Verdicts => verdicts::show(server, request, history).await,
    }
}

fn show_head(
    request: &HeaderMap,
    head: &StoredOperation,
    view: View,
) -> Result<Answer, ServeError> {
    let damaged = |reason: Malformed| ServeError::damaged(&head.did, &reason);
    let ended = Operation::read(&head.signed).map_err(damaged)?.kind() == OperationKind::Tombstone;
    if ended && view != View::Last {
        return Err(ServeError::NotAvailable(head.did));
    }
    let plain = view == View::Document && wants_plain(request);
    let (name, media_type): (&[u8], _) = match view {
        View::Document if plain => (b"json", answer::PLAIN_DID_DOCUMENT),
        View::Document => (b"doc", answer::DID_DOCUMENT),
        View::Data => (b"data", answer::JSON),
        _ => (b"last", answer::JSON),
    };
    let known = Representation {
        etag: etag(name, &head.cid(), &[]),
        modified: Some(head.created_at),
        media_type,
    };
    let answer = known.answer(request, || {
        let mut body = Vec::with_capacity(2 * head.signed.len() + BODY_ROOM);
        match view {
            View::Document if plain => write_plain_document(&head.did, &head.signed, &mut body),
            View::Document => write_document(&head.did, &head.signed, &mut body),
            View::Data => write_data(&head.did, &head.signed, &mut body),
            _ => write_operation(&head.signed, &mut body),
        }
        .map_err(damaged)?;
        Ok(body)
    });
    answer.map(|mut answer| {
        if view == View::Document {
            answer.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
        }
        answer
    })
}

/// Whether the client asks for the document as plain JSON, by name and for nothing else.
fn wants_plain(request: &HeaderMap) -> bool {
    request
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes().trim_ascii() == b"application/did+json")
}

/// None when there is no history.
fn show_history(
    request: &HeaderMap,
    history: &[StoredOperation],
    view: View,
) -> Result<Option<Answer>, ServeError> {
    let in_force = || history.iter().filter(|operation| operation.nullified_by.is_none());
    let Some(newest) = history.last() else { return Ok(None) };
    let nothing = || ServeError::nothing_in_force(&newest.did);
    let head = in_force().next_back().ok_or_else(nothing)?;
    let head_cid = head.cid();
    // The head names its whole ancestry, which is the log. The audit log also grows by operations
    // that are nullified; what is nullified stays so.
    let etag = match view {
        View::Audit => etag(b"audit", &head_cid, &[history.len(), in_force().count()]),
        _ => etag(b"log", &head_cid, &[]),
    };
    let modified = newest.created_at.max(head.created_at);
    let known = Representation { etag, modified: Some(modified), media_type: answer::JSON };
    // To hash is most of the work: the head is hashed once.
    let cid_of = |operation: &StoredOperation| match std::ptr::eq(operation, head) {
        true => head_cid,
        false => operation.cid(),
    };
    let body = || match view {
        View::Audit => list(history.iter(), |operation, body| {
            operation.logged(&cid_of(operation)).write_audit(body)
        }),
        _ => list(in_force(), |operation, body| write_operation(&operation.signed, body)),
    };
    known.answer(request, body).map(Some)
}

/// A JSON array of operations.
fn list<'a>(
    operations: impl Iterator<Item = &'a StoredOperation> + Clone,
    mut write: impl FnMut(&StoredOperation, &mut Vec<u8>) -> Result<(), Malformed>,
) -> Result<Vec<u8>, ServeError> {
    let room = operations.clone().map(|operation| 2 * operation.signed.len() + BODY_ROOM).sum();
    let mut body = Vec::with_capacity(room);
    body.push(b'[');
    for (index, operation) in operations.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        write(operation, &mut body)
            .map_err(|reason| ServeError::damaged(&operation.did, &reason))?;
    }
    body.push(b']');
    Ok(body)
}
