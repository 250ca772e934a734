//! An upstream whose stream, once it is open, is whatever bytes.

use std::sync::LazyLock;

use bytes::Bytes;
use plc_replica::upstream::{ExportClient, Limits, Stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::RUNTIME;

/// Where it is, and who asks it, with no limit to how often.
static UPSTREAM: LazyLock<(TcpListener, ExportClient)> = LazyLock::new(|| {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = ExportClient::new(&url, 0, "fuzz", Limits::default()).unwrap();
    let _runtime = RUNTIME.enter();
    (TcpListener::from_std(listener).unwrap(), client)
});

/// The messages that a stream of these bytes consists of, until it ends.
pub fn messages(frames: &[u8]) -> Vec<Bytes> {
    let (listener, client) = &*UPSTREAM;
    let upstream = async {
        let (connection, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(connection).await.unwrap();
        // It is nobody's fault here if the other side has had enough.
        let _ = socket.get_mut().write_all(frames).await;
        let _ = socket.get_mut().shutdown().await;
        socket
    };
    let reader = async {
        let mut stream = Stream::open(client, 0).await.unwrap();
        let mut messages = Vec::new();
        while let Ok(batch) = stream.next().await {
            messages.extend(batch.lines);
        }
        messages
    };
    let (_, messages) = RUNTIME.block_on(async { tokio::join!(upstream, reader) });
    messages
}
