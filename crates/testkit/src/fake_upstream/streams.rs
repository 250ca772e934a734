//! The streams of the fake upstream.

use std::pin::pin;
use std::sync::Arc;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::fault::Fault;
use super::query::query;
use super::state::Shared;

/// Answers a request for the stream.
pub(super) async fn stream_of(
    shared: Arc<Shared>,
    request: Request,
    fault: Option<Fault>,
) -> Response {
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
    let stopped = shared.stopped();
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
