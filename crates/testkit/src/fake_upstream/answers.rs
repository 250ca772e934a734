//! Answers: pages of the export, what is known of an identity, and how a fault lets them arrive.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::{AppendHeaders, IntoResponse, Response};
use futures::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use tokio::time::{Instant, sleep};

use super::entry::LogEntry;
use super::fault::{Edit, Fault, Route};
use super::query::query;
use super::state::{Asked, Shared, Story};
use super::streams::stream_of;
use super::writes;

/// Answers a request, as it is to be answered or as a fault has it.
pub(super) async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().to_string();
    let route = match request.uri().path() {
        _ if request.method() == Method::POST => Route::Write,
        "/export" | "/elsewhere" => Route::Export,
        "/export/stream" => Route::Stream,
        _ => Route::Identity,
    };
    let fault = {
        let mut story = shared.story();
        let header = |name| header_text(request.headers(), name);
        story.asked.push(Asked {
            at: Instant::now(),
            route,
            path: path.clone(),
            user_agent: header(header::USER_AGENT),
            authorization: header(header::AUTHORIZATION),
            accept_encoding: header(header::ACCEPT_ENCODING),
        });
        take_fault(&mut story, route)
    };
    match (route, fault) {
        (_, Some(Fault::Silence)) => {
            shared.stopped().await;
            StatusCode::NO_CONTENT.into_response()
        }
        (_, Some(Fault::Status(status, retry_after))) => {
            let retry_after =
                retry_after.map(|value| AppendHeaders([(header::RETRY_AFTER, value)]));
            (StatusCode::from_u16(status).unwrap(), retry_after, "{}").into_response()
        }
        (_, Some(Fault::RedirectLoop)) => {
            // Each leads to the next fault of the route, which is this one while it lasts.
            (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response()
        }
        (Route::Stream, _) if shared.story().knows_no_numbers => {
            StatusCode::NOT_FOUND.into_response()
        }
        (Route::Stream, fault) => stream_of(shared, request, fault).await,
        (Route::Export | Route::Write, Some(Fault::WebPage)) => {
            axum::response::Html("<!doctype html>\n<title>Welcome</title>").into_response()
        }
        (Route::Export, fault) => {
            let edit = match &fault {
                Some(Fault::Edited(edit)) => Some(Arc::clone(edit)),
                _ => None,
            };
            let body = page(&mut shared.story(), query(&path), edit);
            match body {
                Some(body) => deliver(body, fault, shared),
                None => (StatusCode::INTERNAL_SERVER_ERROR, "{}").into_response(),
            }
        }
        (Route::Write, fault) => {
            let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
            let (status, media_type, body) = writes::submit(&shared, &path[1..], &body);
            let answer = deliver(body.into(), fault, shared);
            let status = StatusCode::from_u16(status).unwrap();
            (status, [(header::CONTENT_TYPE, media_type)], answer).into_response()
        }
        (Route::Identity, fault) => {
            let (status, body) = identity(&shared.story(), &path);
            let answer = deliver(body.into(), fault, shared);
            (StatusCode::from_u16(status).unwrap(), answer).into_response()
        }
    }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers.get(name).map_or(String::new(), |value| value.to_str().unwrap_or("?").to_owned())
}

fn take_fault(story: &mut Story, route: Route) -> Option<Fault> {
    let index = story.faults.iter().position(|(of, times, _)| *of == route && *times > 0)?;
    let (_, times, fault) = &mut story.faults[index];
    if *times != usize::MAX {
        *times -= 1;
    }
    let fault = fault.clone();
    if story.faults[index].1 == 0 {
        story.faults.remove(index);
    }
    Some(fault)
}

/// The body of an export page; none where it cannot be told what is asked for.
fn page(story: &mut Story, query: HashMap<String, String>, edit: Option<Edit>) -> Option<Bytes> {
    let count = query.get("count").map_or(1000, |count| count.parse().unwrap());
    let count = count.min(story.longest_page.unwrap_or(1000));
    let after = query.get("after").map_or("", String::as_str);
    let Ok(after) = after.parse::<i64>() else {
        return Some(timestamped_page(story, after, count, edit));
    };
    if story.knows_no_numbers {
        return match after {
            0 => Some(timestamped_page(story, "2000-01-01T00:00:00.000Z", count, edit)),
            // A year, and no date.
            ..=LAST_YEAR => Some(Bytes::new()),
            _ => None,
        };
    }
    let from = story.log.partition_point(|(entry, _)| entry.seq <= after);
    let entries = &story.log[from..story.log.len().min(from + count)];
    if edit.is_none() && story.garbled.is_empty() {
        let lines: Vec<&[u8]> = entries.iter().map(|(_, line)| &line[..]).collect();
        return Some(Bytes::from(lines.join(&b'\n')));
    }
    let mut lines = Vec::new();
    for (entry, line) in entries {
        lines.push(match story.garbled.get_mut(&entry.seq) {
            Some((times, text)) if *times > 0 => {
                if *times != usize::MAX {
                    *times -= 1;
                }
                text.clone()
            }
            _ => String::from_utf8(line.to_vec()).unwrap(),
        });
    }
    if let Some(edit) = edit {
        edit(&mut lines);
    }
    Some(Bytes::from(lines.join("\n")))
}

/// The last year of which JavaScript has dates.
const LAST_YEAR: i64 = 275_760;

/// The body of a page of the export by time.
fn timestamped_page(story: &Story, after: &str, count: usize, edit: Option<Edit>) -> Bytes {
    let mut entries: Vec<&LogEntry> = story.log.iter().map(|(entry, _)| entry).collect();
    entries.retain(|entry| &*entry.created_at > after);
    entries.sort_by(|a, b| (&a.created_at, &a.cid).cmp(&(&b.created_at, &b.cid)));
    let mut lines: Vec<String> =
        entries.iter().take(count).map(|entry| entry.timestamped()).collect();
    if let Some(edit) = edit {
        edit(&mut lines);
    }
    Bytes::from(lines.join("\n"))
}

/// Status and body of what is asked about an identity.
fn identity(story: &Story, path: &str) -> (u16, String) {
    if let Some((status, body)) = story.answers.get(path) {
        return (*status, body.clone());
    }
    let (did, what) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let mut entries: Vec<&LogEntry> = story.entries().filter(|entry| entry.did == did).collect();
    entries.sort_by_key(|entry| &entry.created_at);
    let Some(head) = entries.iter().rev().find(|entry| !entry.nullified) else {
        return (404, format!(r#"{{"message":"DID not registered: {did}"}}"#));
    };
    let list = |texts: Vec<String>| (200, format!("[{}]", texts.join(",")));
    match what {
        "log/audit" => list(entries.iter().map(|entry| entry.audited()).collect()),
        "log" => {
            entries.retain(|entry| !entry.nullified);
            list(entries.iter().map(|entry| entry.operation.clone()).collect())
        }
        "log/last" => (200, head.operation.clone()),
        "" | "data" => document(did, what, &head.operation),
        _ => (404, r#"{"message":"Not found"}"#.to_owned()),
    }
}

fn document(did: &str, what: &str, operation: &str) -> (u16, String) {
    use did_plc::{document, json};
    let did_read = did.parse().unwrap();
    let signed = json::read_operation(operation).unwrap();
    if operation.contains(r#""type":"plc_tombstone""#) {
        return (404, format!(r#"{{"message":"DID not available: {did}"}}"#));
    }
    let mut body = Vec::new();
    match what {
        "data" => document::write_data(&did_read, &signed, &mut body).unwrap(),
        _ => document::write_document(&did_read, &signed, &mut body).unwrap(),
    }
    (200, String::from_utf8(body).unwrap())
}

/// Sends a body, or as much of it as the fault lets through.
fn deliver(body: Bytes, fault: Option<Fault>, shared: Arc<Shared>) -> Response {
    let half = body.slice(..body.len() / 2);
    let piece = |bytes: Bytes| stream::once(async move { Ok::<_, std::io::Error>(bytes) });
    let broken = stream::once(async {
        // What was sent before is to arrive: it would be dropped together with the connection.
        sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut on request"))
    });
    let stopped = shared.stopped();
    let silence = stream::once(async move {
        stopped.await;
        Err(std::io::Error::other("stopped"))
    });
    let whole = body.len();
    let body = match fault {
        Some(Fault::CutLine) => Body::from(body.slice(..body.len().saturating_sub(20))),
        Some(Fault::CutBody) => {
            let cut = Body::from_stream(piece(half).chain(broken));
            return ([(header::CONTENT_LENGTH, whole)], cut).into_response();
        }
        Some(Fault::CutChunks) => Body::from_stream(piece(half).chain(broken)),
        Some(Fault::SilentBody) => Body::from_stream(piece(half).chain(silence)),
        Some(Fault::Drip(size)) => {
            Body::from_stream(stream::unfold(body, move |mut body| async move {
                sleep(Duration::from_millis(10)).await;
                let crumb = body.split_to(size.min(body.len()));
                (!crumb.is_empty()).then_some((Ok::<_, Infallible>(crumb), body))
            }))
        }
        Some(Fault::Gzip { cut }) => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(&body).unwrap();
            let mut body = encoder.finish().unwrap();
            body.truncate(if cut { body.len() / 2 } else { body.len() });
            return ([(header::CONTENT_ENCODING, "gzip")], body).into_response();
        }
        Some(Fault::EndlessBody) => {
            let more = Bytes::from(vec![b'x'; 64 << 10]);
            Body::from_stream(stream::repeat_with(move || Ok::<_, Infallible>(more.clone())))
        }
        _ => Body::from(body),
    };
    ([(header::CONTENT_TYPE, "application/jsonlines")], body).into_response()
}
