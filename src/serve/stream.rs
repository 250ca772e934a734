//! `/export/stream`: every new operation, as it is committed, over a WebSocket.
//!
//! A client that brings a cursor first gets what is after it from the store, page by page, and
//! then joins the live feed. It is subscribed to the feed before the first page is read: whatever
//! is committed after a page was read comes by the feed, whatever was committed before is in the
//! page, and what is in both is recognised by its number and CID: a number alone may have gone from
//! one operation to another meanwhile. Those of a page are remembered until it was looked for commits once more after it was
//! read, and what was found is taken from the feed. Pages and commits are read from the same database: one that is behind
//! the other would lack what the feed has told already.
//!
//! Whatever a client does not take, no more than a turn is held for it: a page is let go before
//! what was made of it is sent.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket, WebSocketUpgrade};
use futures::{SinkExt, StreamExt};
use http::header;
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};

use crate::live::{Lagged, Message, Role, Subscription};
use crate::store::{StoreError, StoredOperation};
use did_plc::Cid;
use did_plc::operation::{MAX_OPERATION_LENGTH, Malformed};

use super::answer::Answer;
use super::error::ServeError;
use super::extract::RequestHead;
use super::query::{parameter, parse_int};
use super::state::Server;
use crate::clock::now;

/// Operations of a page while a client catches up: as many as usually fit into a turn.
const PAGE: usize = 32;
/// Bytes that are put together for one write, so that no client holds more than this, and that a
/// client with a lot to catch up with gets it in few writes. (One operation may be longer.)
const TURN: usize = 32 << 10;
/// Operations that are remembered of what a client was sent from the store; one that would have to
/// remember more waits until the next look for commits is over. 200 kB.
const MAX_RECENT: usize = 4_096;
/// Bytes that the WebSocket gathers before it writes by itself. A turn and its frames' headers.
const WRITE_BUFFER: usize = 48 << 10;
/// Bytes of the longest message that there can be: JSON takes up to six for one of an operation
/// (`\u0000`), and the envelope some 200.
const LONGEST_MESSAGE: usize = 6 * MAX_OPERATION_LENGTH + 400;
/// Bytes that are read from a client at once, and of a message from it: clients only pong.
const READ_BUFFER: usize = 512;
const MAX_MESSAGE: usize = 4 << 10;
/// A client that needs longer than this for one turn is too slow: it takes 1.6 kB a second.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked whether a client that is being written to has fallen behind the feed.
const STALL_CHECK: Duration = Duration::from_millis(500);
/// How long a client may take to accept the reason why it is being sent away.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a client is asked whether it is there. Home routers forget a silent connection after
/// a few minutes.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A client that was not heard of for this long is gone: it missed two pings.
const DEAD_AFTER: Duration = Duration::from_secs(75);
/// How long a client waits for a number that it has from another process: as long as one may be behind the other.
const BEHIND_ANOTHER: Duration = Duration::from_secs(2);
/// Between two looks whether the number is here.
const BEHIND_LOOK: Duration = Duration::from_millis(50);
/// How long the database may take to say what was committed. More, and the client is better told.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause of each client between two writes, for each client that there is: waking a client and
/// writing to it takes some 20 µs, so that at most about half of one core goes into it, and a
/// busy feed is sent in fewer, larger writes.
const PAUSE_PER_CLIENT: Duration = Duration::from_micros(40);
/// The longest such pause, which is what it adds to an operation's way at most.
const MAX_PAUSE: Duration = Duration::from_millis(40);

/// Answers a request for the stream: begins one, or says what is wrong with it.
pub async fn open(
    State(server): State<Arc<Server>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    head: RequestHead,
) -> Result<Answer, ServeError> {
    if !head.headers.contains_key(header::UPGRADE) {
        return Err(ServeError::UpgradeRequired);
    }
    let cursor = cursor(&head.query)?;
    let upgrade = upgrade.map_err(|rejection| ServeError::BadUpgrade(rejection.body_text()))?;
    let own_place =
        server.limiter.stream(head.client).map_err(|_| ServeError::TooManyOwnStreams)?;
    let place = Arc::clone(&server.stream_places)
        .try_acquire_owned()
        .map_err(|_| ServeError::TooManyStreams)?;
    let settled = settle(&server, cursor.unwrap_or(0)).await;
    if cursor.is_some() {
        settled?;
    }
    // From here on, not from when the handshake is over: that is the client's "now".
    let subscription = server.state.feed.subscribe();
    let answer = upgrade
        .read_buffer_size(READ_BUFFER)
        .max_message_size(MAX_MESSAGE)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(2 * WRITE_BUFFER + LONGEST_MESSAGE)
        .on_upgrade(move |socket| {
            let tasks = server.tasks.clone();
            let (heard, caught_up) = (Instant::now(), CaughtUp::default());
            let client = Client { server, socket, heard, subscription, caught_up };
            tasks.track_future(async move {
                client.run(cursor).await;
                drop((place, own_place));
            })
        });
    Ok(answer)
}

/// Waits until everything is published that the client may have already, or that was before its "now", and that is not to come
/// by the feed: what it has is from here when it was last connected, or from another process, which may have learned of it
/// earlier.
async fn settle(server: &Server, cursor: i64) -> Result<(), ServeError> {
    let settled = async {
        server.state.feed.settled().await;
        let begun = Instant::now();
        let status = &server.state.status;
        let is_behind = || status.role() == Role::Reader && cursor > status.sequence();
        while is_behind() && begun.elapsed() < BEHIND_ANOTHER {
            sleep(BEHIND_LOOK).await;
            server.state.feed.settled().await;
        }
    };
    let unavailable =
        |_| ServeError::from(StoreError::Unavailable("it is not answering".to_owned()));
    timeout(SETTLE_TIMEOUT, settled).await.map_err(unavailable)
}

fn cursor(query: &str) -> Result<Option<i64>, ServeError> {
    let Some(cursor) = parameter(query, "cursor")? else { return Ok(None) };
    let cursor = parse_int(&cursor).filter(|&cursor| cursor >= 0);
    cursor.map(Some).ok_or(ServeError::InvalidParameter("cursor"))
}

/// Why a stream ends.
#[derive(Debug)]
enum End {
    /// The client has closed it, or is gone.
    Gone,
    /// The cursor is above every number that there is.
    FutureCursor,
    /// The next operation is older than what is streamed.
    OutdatedCursor,
    /// The client does not take what it is sent.
    TooSlow,
    /// The server is shutting down.
    Shutdown,
    /// The store cannot be read.
    Store(String),
}

impl End {
    /// The name by which it is counted.
    fn name(&self) -> &'static str {
        match self {
            End::Gone => "gone",
            End::FutureCursor => "future-cursor",
            End::OutdatedCursor => "outdated-cursor",
            End::TooSlow => "too-slow",
            End::Shutdown => "shutdown",
            End::Store(_) => "store",
        }
    }

    /// What the client is told (RFC 6455 7.4.1); nothing when it is not there.
    fn close_frame(&self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            End::Gone => return None,
            End::FutureCursor => (1000, "FutureCursor"),
            End::OutdatedCursor => (1000, "OutdatedCursor"),
            End::TooSlow => (1000, "ConsumerTooSlow"),
            End::Shutdown => (1001, "shutting down"),
            End::Store(_) => (1011, "the database cannot be read"),
        };
        Some(CloseFrame { code, reason: reason.into() })
    }
}

impl From<Lagged> for End {
    fn from(_: Lagged) -> End {
        End::TooSlow
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> End {
        End::Store(error.to_string())
    }
}

impl From<axum::Error> for End {
    fn from(_: axum::Error) -> End {
        End::Gone
    }
}

/// What a client was sent from the store.
#[derive(Debug, Default)]
struct CaughtUp {
    /// The last number.
    position: i64,
    /// What the feed may repeat, by ascending numbers.
    recent: VecDeque<Sent>,
}

/// An operation that a client was sent from the store.
#[derive(Debug)]
struct Sent {
    sequence: i64,
    cid: Cid,
    /// The look for commits that finds it, if none before did.
    found_by: u64,
}

impl CaughtUp {
    fn add(&mut self, messages: &[Message], found_by: u64) {
        let sent =
            |message: &Message| Sent { sequence: message.sequence, cid: message.cid, found_by };
        self.recent.extend(messages.iter().map(sent));
        self.position = messages.last().map_or(self.position, |message| message.sequence);
    }

    fn has(&self, message: &Message) -> bool {
        // Nearly always the number is above all of them.
        if self.recent.back().is_none_or(|last| message.sequence > last.sequence) {
            return false;
        }
        let place = self.recent.binary_search_by_key(&message.sequence, |sent| sent.sequence);
        place.is_ok_and(|place| self.recent[place].cid == message.cid)
    }

    /// Forgets what the feed cannot repeat, now that it has nothing more of the looks up to this one.
    fn forget(&mut self, done: Option<u64>) {
        while self.recent.pop_front_if(|sent| Some(sent.found_by) <= done).is_some() {}
        if self.recent.is_empty() {
            self.recent = VecDeque::new();
        }
    }
}

/// One client.
struct Client {
    server: Arc<Server>,
    socket: WebSocket,
    /// When the client was last heard of.
    heard: Instant,
    subscription: Subscription,
    caught_up: CaughtUp,
}

impl Client {
    async fn run(mut self, cursor: Option<i64>) {
        metrics::gauge!("plc_stream_clients").increment(1);
        let end = match self.follow(cursor).await {
            Err(end) => end,
            Ok(never) => match never {},
        };
        metrics::gauge!("plc_stream_clients").decrement(1);
        metrics::counter!("plc_stream_ended_total", "reason" => end.name()).increment(1);
        match &end {
            End::Store(reason) => tracing::warn!(reason, "a stream client cannot be served"),
            end => tracing::debug!(?end, "stream client left"),
        }
        if let Some(frame) = end.close_frame() {
            // Whoever does not listen any more misses the reason.
            let _ = timeout(CLOSE_TIMEOUT, self.close(frame)).await;
        }
    }

    /// Sends the frame and waits for the client's: a connection that is dropped while there is
    /// something unread is reset, and the client would not see the reason.
    async fn close(&mut self, frame: CloseFrame) -> Result<(), axum::Error> {
        self.socket.send(Frame::Close(Some(frame))).await?;
        while let Some(Ok(_)) = self.socket.recv().await {}
        Ok(())
    }

    async fn follow(&mut self, cursor: Option<i64>) -> Result<Infallible, End> {
        if let Some(cursor) = cursor {
            self.catch_up(cursor).await?;
        }
        self.live().await
    }

    /// Sends what is after the cursor and in the store.
    async fn catch_up(&mut self, cursor: i64) -> Result<(), End> {
        let server = Arc::clone(&self.server);
        let store = &server.state.store;
        // The last number may be that of an operation that was refused.
        let refused = server.state.status.sequence();
        let last = self.listen(store.last_sequence()).await??;
        if cursor > last.unwrap_or(0).max(refused) {
            return Err(End::FutureCursor);
        }
        let next = self.listen(store.export_by_sequence(cursor, 1)).await??;
        let oldest = now() - server.state.settings.stream_catch_up;
        if next.first().is_some_and(|next| next.created_at < oldest) {
            return Err(End::OutdatedCursor);
        }
        self.caught_up.position = cursor;
        loop {
            self.send_late().await?;
            if self.caught_up.recent.len() > MAX_RECENT - PAGE {
                self.listen(server.state.feed.settled()).await?;
                continue;
            }
            let position = self.caught_up.position;
            let page = self.listen(store.export_by_sequence(position, PAGE)).await??;
            let found_by = self.subscription.next_look();
            let turn = turn(&page)?;
            let at_the_end = page.len() < PAGE && turn.len() == page.len();
            drop(page);
            self.caught_up.add(&turn, found_by);
            self.send(turn).await?;
            if at_the_end {
                return Ok(());
            }
        }
    }

    /// While catching up: sends what was committed meanwhile with a number that is already
    /// passed. Whatever has a higher one is in a page to come.
    async fn send_late(&mut self) -> Result<(), End> {
        loop {
            let mut late = self.subscription.take(TURN)?;
            if late.is_empty() {
                self.caught_up.forget(self.subscription.done());
                return Ok(());
            }
            let caught_up = &self.caught_up;
            late.retain(|message| {
                message.sequence <= caught_up.position && !caught_up.has(message)
            });
            self.send(late).await?;
        }
    }

    /// Sends what is published, and sees that the client is there.
    async fn live(&mut self) -> Result<Infallible, End> {
        let mut ping = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let mut not_before = Instant::now();
        loop {
            tokio::select! {
                () = self.server.shutdown.cancelled() => return Err(End::Shutdown),
                received = self.socket.recv() => self.heard = heard(received)?,
                _ = ping.tick() => {
                    if self.heard.elapsed() > DEAD_AFTER {
                        return Err(End::Gone);
                    }
                    self.caught_up.forget(self.subscription.done());
                    self.write([Frame::Ping(bytes::Bytes::new())]).await?;
                }
                () = published(&mut self.subscription, not_before) => {
                    let mut messages = self.subscription.take(TURN)?;
                    messages.retain(|message| !self.caught_up.has(message));
                    self.caught_up.forget(self.subscription.done());
                    self.send(messages).await?;
                    let clients = u32::try_from(self.server.state.feed.subscribers());
                    let pause = PAUSE_PER_CLIENT.saturating_mul(clients.unwrap_or(u32::MAX));
                    not_before = Instant::now() + pause.min(MAX_PAUSE);
                }
            }
        }
    }

    /// Listens to the client until something else is done: a client that asks whether we are here
    /// is answered, and one that leaves is let go.
    async fn listen<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                () = self.server.shutdown.cancelled() => return Err(End::Shutdown),
                received = self.socket.recv() => self.heard = heard(received)?,
                done = &mut work => return Ok(done),
            }
        }
    }

    /// Sends one turn.
    async fn send(&mut self, messages: Vec<Message>) -> Result<(), End> {
        self.write(messages.into_iter().map(|message| Frame::Text(message.text))).await
    }

    /// Writes frames and flushes once, and listens meanwhile. A client that blocks this is given
    /// up when it has fallen behind the feed, or after a while.
    async fn write(&mut self, frames: impl IntoIterator<Item = Frame>) -> Result<(), End> {
        let (mut sink, mut received) = (&mut self.socket).split();
        let mut writing = pin!(async move {
            for frame in frames {
                sink.feed(frame).await?;
            }
            sink.flush().await
        });
        let begun = Instant::now();
        let mut stalled = interval_at(begun + STALL_CHECK, STALL_CHECK);
        loop {
            tokio::select! {
                () = self.server.shutdown.cancelled() => return Err(End::Shutdown),
                received = received.next() => self.heard = heard(received)?,
                written = &mut writing => return Ok(written?),
                _ = stalled.tick() => {
                    if self.subscription.lags() || begun.elapsed() > TURN_TIMEOUT {
                        return Err(End::TooSlow);
                    }
                }
            }
        }
    }
}

/// What came from the client: that it is there, and when, or that it leaves.
fn heard(received: Option<Result<Frame, axum::Error>>) -> Result<Instant, End> {
    match received {
        Some(Ok(Frame::Close(_)) | Err(_)) | None => Err(End::Gone),
        Some(Ok(_)) => Ok(Instant::now()),
    }
}

/// Waits until there is something to send, but not less than until `not_before`.
async fn published(subscription: &mut Subscription, not_before: Instant) {
    sleep_until(not_before).await;
    subscription.wait().await;
}

/// Encodes as many of a page's operations as a turn takes, and at least one.
fn turn(page: &[StoredOperation]) -> Result<Vec<Message>, End> {
    let mut turn = Vec::with_capacity(page.len());
    let mut size = 0;
    for operation in page {
        let damaged = |error: Malformed| StoreError::Damaged {
            place: operation.did.to_string(),
            reason: error.to_string(),
        };
        let Some(message) = Message::encode(operation).map_err(damaged)? else { continue };
        size += message.text.len();
        if size > TURN && !turn.is_empty() {
            break;
        }
        turn.push(message);
    }
    Ok(turn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::json::read_operation;
    use did_plc::{Did, Timestamp};

    /// Operations with these numbers, of so many bytes.
    fn operations(sequences: std::ops::RangeInclusive<i64>, size: usize) -> Vec<StoredOperation> {
        let prev = "p".repeat(size);
        let json = format!(r#"{{"sig":"s","prev":"{prev}","type":"plc_tombstone"}}"#);
        let signed = read_operation(&json).unwrap();
        let operation = |sequence| StoredOperation {
            did: Did::from_bytes([7; 15]),
            created_at: Timestamp::from_millis(sequence),
            sequence: Some(sequence),
            signed: signed.clone().into(),
            signer: 0,
            nullified_by: None,
            received_at: Timestamp::from_millis(0),
        };
        sequences.map(operation).collect()
    }

    #[test]
    fn a_turn_is_of_a_size_and_never_empty() {
        assert_eq!(turn(&[]).unwrap(), []);
        let sent = |size| turn(&operations(1..=PAGE as i64, size)).unwrap().len();
        assert_eq!(sent(10), PAGE);
        assert_eq!(sent(TURN / 4), 3);
        assert_eq!(sent(TURN), 1);
    }

    #[test]
    fn what_the_feed_may_repeat_is_remembered() {
        let mut caught_up = CaughtUp::default();
        let mut add = |sequences, found_by| {
            caught_up.add(&turn(&operations(sequences, 10)).unwrap(), found_by);
        };
        add(1..=2, 0);
        add(4..=5, 1);
        assert_eq!(caught_up.position, 5);
        let published = turn(&operations(1..=6, 10)).unwrap();
        let has = |caught_up: &CaughtUp| published.iter().map(|it| caught_up.has(it)).collect();
        let all: Vec<bool> = has(&caught_up);
        assert_eq!(all, [true, true, false, true, true, false]);
        // Another operation under a number that was sent.
        assert!(!caught_up.has(&turn(&operations(2..=2, 11)).unwrap()[0]));
        caught_up.forget(None);
        assert_eq!(has(&caught_up), all);
        caught_up.forget(Some(0));
        assert_eq!(has(&caught_up), [false, false, false, true, true, false]);
        caught_up.forget(Some(1));
        assert_eq!(has(&caught_up), [false; 6]);
        assert_eq!(caught_up.recent.capacity(), 0);
    }

    #[test]
    fn a_cursor_is_a_number_that_is_not_negative() {
        assert_eq!(cursor("").unwrap(), None);
        assert_eq!(cursor("cursor=").unwrap(), None);
        assert_eq!(cursor("cursor=0").unwrap(), Some(0));
        assert_eq!(cursor("cursor=12x").unwrap(), Some(12));
        for bad in ["cursor=abc", "cursor=-1", "cursor=1&cursor=2"] {
            assert!(matches!(cursor(bad), Err(ServeError::InvalidParameter("cursor"))), "{bad}");
        }
    }
}
