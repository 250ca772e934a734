//! A server on the log of a small story, which answers whatever it is asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use did_plc::signature::{PlainVerifier, Verifier};
use plc_replica::live::{Feed, Status};
use plc_replica::reads::Reads;
use plc_replica::serve::{self, ServeSettings, ServeState};
use plc_replica::store::Store;
use plc_testkit::Generated;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::chances::Chances;
use super::{RUNTIME, any_order, story};

/// Where it listens. It ends with the process.
static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        RUNTIME.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let state = state(&format!("sqlite://{}/plc.db", folder.path().display())).await;
            serve::run(listener, state, CancellationToken::new()).await;
        });
    });
    told.recv().unwrap()
});

async fn state(database: &str) -> ServeState {
    let verifier: Arc<dyn Verifier> = Arc::new(PlainVerifier);
    let lines = story().log().iter().map(Generated::sequenced_line).map(Bytes::from).collect();
    let open = async || Store::open(database).await.unwrap();
    let store = any_order::take(open, &verifier, lines, &mut Chances(&[])).await;
    let upstream = "https://plc.example";
    let status = Arc::new(Status::of_store([upstream], &store).await.unwrap());
    ServeState {
        reads: Arc::new(Reads::new(store.clone(), Arc::clone(&status), Vec::new())),
        store,
        status,
        feed: Arc::new(Feed::new()),
        verifier,
        upstream: None,
        forward: None,
        settings: ServeSettings::default(),
    }
}

/// What the server answers to a request for this path and query, whatever bytes they are.
pub fn answer(target: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(*ADDRESS).unwrap();
    // Nobody waits here for an operation to come.
    let head = [
        b"GET /",
        target,
        b" HTTP/1.1\r\nHost: plc.example\r\nPrefer: wait=0\r\nConnection: close\r\n\r\n",
    ]
    .concat();
    connection.write_all(&head).unwrap();
    let mut answer = Vec::new();
    // Whoever sends more than a request is answered, and may be cut off then.
    let _ = connection.read_to_end(&mut answer);
    answer
}
