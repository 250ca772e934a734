//! A directory to follow in tests: a real HTTP and WebSocket server on a port of its own that
//! serves any log, lets it grow and change, and fails on request in every way we know of.
//!
//! ```ignore
//! let upstream = FakeUpstream::start(load(path)).await;
//! upstream.fail(Route::Export, 2, Fault::CutLine);   // the next two pages
//! upstream.append(entry);                            // streams get it at once
//! upstream.alter(7, |entry| entry.created_at = "…".into());
//! ```

mod entry;
mod fault;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{AppendHeaders, IntoResponse, Response};
use futures::{StreamExt, stream};
use http::{HeaderMap, StatusCode, header};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub use entry::{LogEntry, load};
use fault::Edit;
pub use fault::{Fault, Route};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Instant,
    pub route: Route,
    /// Path and query.
    pub path: String,
    pub user_agent: String,
    pub authorization: String,
}

/// The log and how it is told.
#[derive(Default)]
struct Story {
    /// By sequence number, with the line of the sequenced export made already: the server is to
    /// be much faster than who is tested with it.
    log: Vec<(LogEntry, Bytes)>,
    faults: Vec<(Route, usize, Fault)>,
    /// Changes to pages that hold this sequence number, for so many more times.
    garbled: HashMap<i64, (usize, String)>,
    /// Streams from below this are `OutdatedCursor`.
    oldest_cursor: i64,
    /// The longest page, where it is shorter than the directory's.
    longest_page: Option<usize>,
    /// Answers by path that are not made from the log: status and body.
    answers: HashMap<String, (u16, String)>,
    asked: Vec<Asked>,
}

struct Shared {
    story: Mutex<Story>,
    /// Changes with each change of the log.
    version: watch::Sender<u64>,
    /// Sent as they are to all streams.
    messages: broadcast::Sender<Message>,
    /// Ends the server and its connections. Another one for each start, so that no connection
    /// outlives a stop that is over before it has looked.
    stop: Mutex<CancellationToken>,
}

impl Shared {
    fn story(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap()
    }

    fn stop(&self) -> CancellationToken {
        self.stop.lock().unwrap().clone()
    }
}

/// The server. It ends when it is dropped.
pub struct FakeUpstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.shared.stop().cancel();
    }
}

impl FakeUpstream {
    /// Serves this log on a free port of the loopback.
    pub async fn start(log: impl IntoIterator<Item = LogEntry>) -> FakeUpstream {
        let shared = Arc::new(Shared {
            story: Mutex::default(),
            version: watch::channel(0).0,
            messages: broadcast::channel(1024).0,
            stop: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(listener, Arc::clone(&shared));
        let upstream = FakeUpstream { shared, address, server };
        upstream.append_all(log);
        upstream
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds an entry, at the place of its sequence number.
    pub fn append(&self, entry: LogEntry) {
        self.append_all([entry]);
    }

    /// Adds entries.
    pub fn append_all(&self, entries: impl IntoIterator<Item = LogEntry>) {
        self.change(|log| {
            let mut in_order = true;
            for entry in entries {
                in_order &= log.last().is_none_or(|(last, _)| last.seq <= entry.seq);
                let line = Bytes::from(entry.sequenced());
                log.push((entry, line));
            }
            // A long log that grows is not sorted at every step.
            if !in_order {
                log.sort_by_key(|(entry, _)| entry.seq);
            }
        });
    }

    /// Takes the entry with this number out of the log.
    pub fn delete(&self, seq: i64) {
        self.change(|log| log.retain(|(entry, _)| entry.seq != seq));
    }

    /// Takes everything after this number out of the log, as a restored backup does.
    pub fn rewind(&self, seq: i64) {
        self.change(|log| log.retain(|(entry, _)| entry.seq <= seq));
    }

    /// Takes out everything after this number and adds these, in one step.
    pub fn replace_after(&self, seq: i64, entries: Vec<LogEntry>) {
        self.change(|log| {
            log.retain(|(entry, _)| entry.seq <= seq);
            log.extend(entries.into_iter().map(|entry| {
                let line = Bytes::from(entry.sequenced());
                (entry, line)
            }));
        });
    }

    /// Changes the entry with this number.
    pub fn alter(&self, seq: i64, alter: impl FnOnce(&mut LogEntry)) {
        self.change(|log| {
            let (entry, line) = log.iter_mut().find(|(entry, _)| entry.seq == seq).unwrap();
            alter(entry);
            *line = Bytes::from(entry.sequenced());
        });
    }

    /// Adds an entry that nullifies the one with this number, in one step as the directory does.
    pub fn recover(&self, recovery: LogEntry, nullified: i64) {
        self.change(|log| {
            let found = log.iter_mut().rfind(|(entry, _)| entry.seq == nullified);
            let (entry, line) = found.unwrap();
            entry.nullified = true;
            *line = Bytes::from(entry.sequenced());
            let line = Bytes::from(recovery.sequenced());
            log.push((recovery, line));
        });
    }

    /// What it holds.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.story().log.iter().map(|(entry, _)| entry.clone()).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(LogEntry, Bytes)>)) {
        change(&mut self.shared.story().log);
        self.shared.version.send_modify(|version| *version += 1);
    }

    /// Fails so many requests of a route; `usize::MAX` stands for all of them. Faults of one route
    /// happen in the order in which they were asked for.
    pub fn fail(&self, route: Route, times: usize, fault: Fault) {
        self.shared.story().faults.push((route, times, fault));
    }

    /// Ends all faults.
    pub fn mend(&self) {
        let mut story = self.shared.story();
        story.faults.clear();
        story.garbled.clear();
    }

    /// Shows this text instead of the line with this number, on so many pages.
    pub fn garble(&self, seq: i64, times: usize, text: &str) {
        self.shared.story().garbled.insert(seq, (times, text.to_owned()));
    }

    /// Streams from a cursor below this one are closed as `OutdatedCursor`.
    pub fn forget_streams_before(&self, cursor: i64) {
        self.shared.story().oldest_cursor = cursor;
    }

    /// Pages of the export have at most so many lines, whatever is asked for.
    pub fn give_at_most(&self, lines: usize) {
        self.shared.story().longest_page = Some(lines);
    }

    /// Answers this path otherwise than the log would have it.
    pub fn answer(&self, path: &str, status: u16, body: &str) {
        self.shared.story().answers.insert(path.to_owned(), (status, body.to_owned()));
    }

    /// Answers this path as the log would have it again.
    pub fn forget_answer(&self, path: &str) {
        self.shared.story().answers.remove(path);
    }

    /// Sends this text to all open streams, whatever it is.
    pub fn say(&self, message: &str) {
        let _ = self.shared.messages.send(Message::text(message));
    }

    /// Pings all open streams from now on, as the directory does while there is nothing to tell.
    pub fn ping_streams_every(&self, period: Duration) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            while let Some(shared) = shared.upgrade() {
                let _ = shared.messages.send(Message::Ping(Bytes::new()));
                drop(shared);
                sleep(period).await;
            }
        });
    }

    /// Closes all open streams.
    pub fn close_streams(&self, code: u16, reason: &'static str) {
        let close = CloseFrame { code, reason: reason.into() };
        let _ = self.shared.messages.send(Message::Close(Some(close)));
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.shared.messages.receiver_count()
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.story().asked.clone()
    }

    /// How often a route was asked for.
    pub fn asked_for(&self, route: Route) -> usize {
        self.shared.story().asked.iter().filter(|asked| asked.route == route).count()
    }

    /// Goes away: ends every connection and refuses new ones.
    pub async fn stop(&mut self) {
        self.shared.stop().cancel();
        (&mut self.server).await.unwrap();
        // Which may still be telling something.
        while self.streams() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Comes back, at the same place with the same log.
    pub async fn start_again(&mut self) {
        *self.shared.stop.lock().unwrap() = CancellationToken::new();
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.server = serve(listener, Arc::clone(&self.shared));
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    let stopped = stopped(&shared);
    tokio::spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(stopped).await.unwrap();
    })
}

/// Until the server, as it runs now, is stopped.
fn stopped(shared: &Shared) -> WaitForCancellationFutureOwned {
    shared.stop().cancelled_owned()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().to_string();
    let route = match request.uri().path() {
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
        });
        take_fault(&mut story, route)
    };
    match (route, fault) {
        (_, Some(Fault::Silence)) => {
            stopped(&shared).await;
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
        (Route::Stream, fault) => stream_of(shared, request, fault).await,
        (Route::Export, Some(Fault::WebPage)) => {
            axum::response::Html("<!doctype html>\n<title>Welcome</title>").into_response()
        }
        (Route::Export, fault) => {
            let edit = match &fault {
                Some(Fault::Edited(edit)) => Some(Arc::clone(edit)),
                _ => None,
            };
            let body = page(&mut shared.story(), query(&path), edit);
            deliver(body, fault, shared)
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

fn query(path: &str) -> HashMap<String, String> {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// The body of an export page.
fn page(story: &mut Story, query: HashMap<String, String>, edit: Option<Edit>) -> Bytes {
    let count = query.get("count").map_or(1000, |count| count.parse().unwrap());
    let count = count.min(story.longest_page.unwrap_or(1000));
    let after = query.get("after").map_or("", String::as_str);
    let Ok(after) = after.parse::<i64>() else { return timestamped_page(story, after, count) };
    let from = story.log.partition_point(|(entry, _)| entry.seq <= after);
    let entries = &story.log[from..story.log.len().min(from + count)];
    if edit.is_none() && story.garbled.is_empty() {
        let lines: Vec<&[u8]> = entries.iter().map(|(_, line)| &line[..]).collect();
        return Bytes::from(lines.join(&b'\n'));
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
    Bytes::from(lines.join("\n"))
}

/// The body of a page of the export by time.
fn timestamped_page(story: &Story, after: &str, count: usize) -> Bytes {
    let mut entries: Vec<&LogEntry> = story.log.iter().map(|(entry, _)| entry).collect();
    entries.retain(|entry| &*entry.created_at > after);
    entries.sort_by(|a, b| (&a.created_at, &a.cid).cmp(&(&b.created_at, &b.cid)));
    let lines: Vec<String> = entries.iter().take(count).map(|entry| entry.timestamped()).collect();
    Bytes::from(lines.join("\n"))
}

/// Status and body of what is asked about an identity.
fn identity(story: &Story, path: &str) -> (u16, String) {
    if let Some((status, body)) = story.answers.get(path) {
        return (*status, body.clone());
    }
    let (did, what) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let mut entries: Vec<&LogEntry> =
        story.log.iter().map(|(entry, _)| entry).filter(|entry| entry.did == did).collect();
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
    let stopped = stopped(&shared);
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

async fn stream_of(shared: Arc<Shared>, request: Request, fault: Option<Fault>) -> Response {
    let cursor = query(&request.uri().to_string()).get("cursor").map(|cursor| cursor.parse());
    let (mut parts, _) = request.into_parts();
    let Ok(upgrade) = WebSocketUpgrade::from_request_parts(&mut parts, &()).await else {
        return (StatusCode::UPGRADE_REQUIRED, r#"{"message":"upgrade required"}"#).into_response();
    };
    let cursor = match cursor {
        Some(Ok(cursor)) => Some(cursor),
        Some(Err(_)) => return StatusCode::BAD_REQUEST.into_response(),
        None => None,
    };
    let stopped = stopped(&shared);
    upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            biased;
            () = stopped => {}
            () = tell(&shared, socket, cursor, fault) => {}
        }
    })
}

/// Tells a stream's client what is after its cursor, and what comes then.
async fn tell(shared: &Shared, mut socket: WebSocket, cursor: Option<i64>, fault: Option<Fault>) {
    let mut version = shared.version.subscribe();
    let mut messages = shared.messages.subscribe();
    let (last, oldest) = {
        let story = shared.story();
        (story.log.last().map_or(0, |(entry, _)| entry.seq), story.oldest_cursor)
    };
    let mut cursor = cursor.unwrap_or(last);
    let close = |code, reason: &'static str| {
        Message::Close(Some(CloseFrame { code, reason: reason.into() }))
    };
    let edit = match &fault {
        Some(Fault::Edited(edit)) => Some(Arc::clone(edit)),
        _ => None,
    };
    let mut left = match fault {
        Some(Fault::SilentStream) => return std::future::pending().await,
        Some(Fault::Close(code, reason)) => return close_socket(socket, close(code, reason)).await,
        Some(Fault::SayAndClose(message, code, reason)) => {
            let _ = socket.send(Message::text(message)).await;
            return close_socket(socket, close(code, reason)).await;
        }
        _ if cursor > last => return close_socket(socket, close(1000, "FutureCursor")).await,
        _ if cursor < oldest => return close_socket(socket, close(1000, "OutdatedCursor")).await,
        Some(Fault::DropAfter(messages)) => messages,
        _ => usize::MAX,
    };
    loop {
        version.borrow_and_update();
        let mut backlog: Vec<String> = {
            let story = shared.story();
            let from = story.log.partition_point(|(entry, _)| entry.seq <= cursor);
            story.log[from..]
                .iter()
                .take(1000)
                .map(|(entry, _)| {
                    cursor = entry.seq;
                    entry.streamed()
                })
                .collect()
        };
        let more = !backlog.is_empty();
        if let Some(edit) = &edit {
            edit(&mut backlog);
        }
        for message in backlog {
            if left == 0 || socket.send(Message::text(message)).await.is_err() {
                return;
            }
            if left != usize::MAX {
                left -= 1;
            }
        }
        if left == 0 {
            return;
        }
        if more {
            continue;
        }
        tokio::select! {
            _ = version.changed() => {}
            Ok(message) = messages.recv() => match message {
                close @ Message::Close(_) => return close_socket(socket, close).await,
                message => if socket.send(message).await.is_err() { return },
            },
            // Answers pings on the way.
            received = socket.recv() => if !matches!(received, Some(Ok(_))) { return },
        }
    }
}

async fn close_socket(mut socket: WebSocket, close: Message) {
    let _ = socket.send(close).await;
    // Until the client has gone too.
    let mut rest = pin!(socket);
    while let Some(Ok(_)) = rest.recv().await {}
}
