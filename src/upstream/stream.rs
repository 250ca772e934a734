//! The live stream of an upstream, over a WebSocket.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, header};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::batch::{Batch, Origin};
use super::budget::Priority;
use super::client::ExportClient;
use super::fault::UpstreamFault;
use super::limits::Limits;
use crate::clock;

/// Bytes that the WebSocket gathers before it writes by itself, and that it holds at most for an
/// upstream that does not read. We send it pings and answers to its own, of 140 bytes at most: while
/// there is no room for an answer only the last of its pings is remembered, which is all that the
/// protocol asks for (RFC 6455, 5.5.3).
const WRITE_BUFFER: (usize, usize) = (1 << 10, 4 << 10);

/// An open `/export/stream`. It is read only while somebody waits in [`Stream::next`]: for a
/// consumer that is busy the operating system holds the messages, and after that the upstream.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    limits: Limits,
    /// When the last frame of any kind was read.
    heard: Instant,
    /// When a ping was sent that nothing has followed yet.
    pinged: Option<Instant>,
    /// Messages of the batch to come, their bytes, and when the first of them was read.
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    gathering_since: Instant,
    /// Why there will be no more messages.
    ended: Option<UpstreamFault>,
}

impl Stream {
    /// Opens the stream of what comes after this sequence number.
    pub async fn open(client: &ExportClient, cursor: i64) -> Result<Stream, UpstreamFault> {
        Stream::open_with(client, &format!("?cursor={cursor}")).await
    }

    /// Opens the stream of what comes from now on.
    pub async fn open_at_head(client: &ExportClient) -> Result<Stream, UpstreamFault> {
        Stream::open_with(client, "").await
    }

    async fn open_with(client: &ExportClient, query: &str) -> Result<Stream, UpstreamFault> {
        let limits = client.limits();
        let request = upgrade_request(client, query)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(limits.message))
            .max_frame_size(Some(limits.message))
            .write_buffer_size(WRITE_BUFFER.0)
            .max_write_buffer_size(WRITE_BUFFER.1);
        client.budget().acquire(Priority::Following).await;
        let opening = connect_async_with_config(request, Some(config), true);
        let socket = match timeout(limits.silence, opening).await {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(error)) => return Err(opening_fault(client, error)),
            Err(_) => return Err(UpstreamFault::Silent { after: limits.silence }),
        };
        let now = Instant::now();
        Ok(Stream {
            socket,
            limits: limits.clone(),
            heard: now,
            pinged: None,
            gathered: Vec::new(),
            gathered_bytes: 0,
            gathering_since: now,
            ended: None,
        })
    }

    /// What the upstream sent, gathered over a few milliseconds. After an error the stream has
    /// ended: open another. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Batch, UpstreamFault> {
        loop {
            if self.is_full() || (self.ended.is_some() && !self.gathered.is_empty()) {
                return Ok(self.take());
            }
            if let Some(fault) = &self.ended {
                return Err(fault.clone());
            }
            // What has arrived is read before any clock is looked at: a consumer that comes back
            // late does not find the stream silent, and one that is slow gets the larger batches
            // by which it catches up.
            let patience = self.patience();
            tokio::select! {
                biased;
                frame = self.socket.next() => self.take_in(frame),
                () = sleep_until(patience) => {
                    if !self.gathered.is_empty() {
                        return Ok(self.take());
                    }
                    self.out_of_patience().await;
                }
            }
        }
    }

    /// For how long no frame of any kind has been read.
    pub fn silent_for(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Until when to wait for the next frame.
    fn patience(&self) -> Instant {
        match self.pinged {
            _ if !self.gathered.is_empty() => self.gathering_since + self.limits.gather,
            Some(pinged) => pinged + self.limits.pong,
            None => self.heard + self.limits.quiet,
        }
    }

    /// Nothing came while we were waiting: it is time for a ping, or to give up when there has been
    /// one.
    async fn out_of_patience(&mut self) {
        if self.pinged.is_some() {
            self.ended = Some(UpstreamFault::StreamSilent { after: self.limits.pong });
            return;
        }
        self.pinged = Some(Instant::now());
        // When it cannot be sent, because nobody reads at the other end, silence follows.
        let ping = self.socket.send(Message::Ping(Bytes::new()));
        let _ = timeout(self.limits.pong, ping).await;
    }

    fn take_in(&mut self, frame: Option<Result<Message, Error>>) {
        self.heard = Instant::now();
        self.pinged = None;
        match frame {
            Some(Ok(Message::Text(text))) => self.gather(text.into()),
            // No reason to send an operation like this, and none to lose it either.
            Some(Ok(Message::Binary(bytes))) => self.gather(bytes),
            Some(Ok(Message::Close(close))) => self.ended = Some(close_fault(close)),
            Some(Ok(_)) => {}
            Some(Err(error)) => self.ended = Some(reading_fault(error, self.limits.message)),
            None => {
                let reason = "the connection ended".to_owned();
                self.ended = Some(UpstreamFault::StreamBroken { reason });
            }
        }
    }

    fn gather(&mut self, message: Bytes) {
        if self.gathered.is_empty() {
            self.gathering_since = self.heard;
        }
        self.gathered_bytes += message.len();
        self.gathered.push(message);
    }

    fn is_full(&self) -> bool {
        self.gathered.len() >= self.limits.gather_messages
            || self.gathered_bytes >= self.limits.gather_bytes
    }

    fn take(&mut self) -> Batch {
        self.gathered_bytes = 0;
        let lines = std::mem::take(&mut self.gathered);
        let received_at = clock::now();
        Batch { lines, received_at, origin: Origin::Stream }
    }
}

/// The request that asks for a WebSocket, at the same place where pages are asked for.
fn upgrade_request(client: &ExportClient, query: &str) -> Result<Request<()>, UpstreamFault> {
    let unreachable = |reason: String| UpstreamFault::Unreachable { reason };
    // http becomes ws, https becomes wss.
    let place = client.base().strip_prefix("http").unwrap_or(client.base());
    let url = format!("ws{place}/export/stream{query}");
    let mut request = url.into_client_request().map_err(|error| unreachable(error.to_string()))?;
    let user_agent = HeaderValue::from_str(client.user_agent())
        .map_err(|error| unreachable(error.to_string()))?;
    request.headers_mut().insert(header::USER_AGENT, user_agent);
    if let Some(authorization) = client.authorization() {
        request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
    }
    Ok(request)
}

fn opening_fault(client: &ExportClient, error: Error) -> UpstreamFault {
    let Error::Http(answer) = error else {
        return UpstreamFault::Unreachable { reason: error.to_string() };
    };
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
    match answer.status().as_u16() {
        status @ (429 | 500 | 502..=599) => client.refused(status, retry_after),
        // 404 where it is not known, 426 where a proxy dropped the upgrade, 501, a redirect, a
        // page of a website: pages are what this upstream has.
        status => UpstreamFault::NoStream { status },
    }
}

/// What a close of the upstream means; the reasons are those of the reference directory.
fn close_fault(close: Option<CloseFrame>) -> UpstreamFault {
    let Some(CloseFrame { code, reason }) = close else {
        // RFC 6455: 1005 stands for a close without a code.
        return UpstreamFault::StreamClosed { code: 1005, reason: String::new() };
    };
    match reason.as_str() {
        "FutureCursor" => UpstreamFault::FutureCursor,
        "OutdatedCursor" => UpstreamFault::OutdatedCursor,
        "ConsumerTooSlow" => UpstreamFault::ConsumerTooSlow,
        reason => UpstreamFault::StreamClosed { code: code.into(), reason: reason.to_owned() },
    }
}

fn reading_fault(error: Error, limit: usize) -> UpstreamFault {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            UpstreamFault::MessageTooLarge { limit }
        }
        error => UpstreamFault::StreamBroken { reason: error.to_string() },
    }
}
