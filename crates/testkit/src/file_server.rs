//! A web server of the files in a directory, as archives are published, with faults on request.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt;
use http::{StatusCode, header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What goes wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFault {
    /// Nothing: what comes after it concerns the next answer.
    None,
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// A byte of the body is another one.
    Damaged,
    /// 503.
    Unavailable,
}

/// The server. It ends when it is dropped.
pub struct FileServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: CancellationToken,
}

struct Shared {
    directory: PathBuf,
    /// Whether a part of a file can be asked for.
    has_ranges: bool,
    /// What the next requests for files meet, in this order.
    faults: Mutex<Vec<FileFault>>,
    /// Paths that were asked for.
    asked: Mutex<Vec<String>>,
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl FileServer {
    /// Serves a directory on a free port of the loopback.
    pub async fn start(directory: &Path) -> FileServer {
        FileServer::start_with(directory, true).await
    }

    /// The same without parts of files.
    pub async fn start_without_ranges(directory: &Path) -> FileServer {
        FileServer::start_with(directory, false).await
    }

    async fn start_with(directory: &Path, has_ranges: bool) -> FileServer {
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            has_ranges,
            faults: Mutex::default(),
            asked: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let serve =
            axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(async move { serve.await.unwrap() });
        FileServer { shared, address, stop }
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the next requests for files that are there meet.
    pub fn fail(&self, faults: impl IntoIterator<Item = FileFault>) {
        self.shared.faults.lock().unwrap().extend(faults);
    }

    /// The paths that were asked for since the last question.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    shared.asked.lock().unwrap().push(path.clone());
    let status = |status: StatusCode| {
        let answer = Response::builder().status(status);
        answer.header(header::CONTENT_TYPE, "text/html").body("<html>".into()).unwrap()
    };
    let Ok(file) = tokio::fs::read(shared.directory.join(path.trim_start_matches('/'))).await
    else {
        return status(StatusCode::NOT_FOUND);
    };
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        (!faults.is_empty()).then(|| faults.remove(0))
    };
    let range = request.headers().get(header::RANGE).filter(|_| shared.has_ranges);
    let from = range.map(|range| {
        let text = range.to_str().unwrap().trim_start_matches("bytes=").trim_end_matches('-');
        text.parse::<usize>().unwrap()
    });
    let mut answer = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
    if let Some(from) = from {
        let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
        answer = answer.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
    }
    let mut body = file[from.unwrap_or(0)..].to_vec();
    match fault {
        None | Some(FileFault::None) => answer.body(body.into()).unwrap(),
        Some(FileFault::Unavailable) => status(StatusCode::SERVICE_UNAVAILABLE),
        Some(FileFault::Damaged) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
            answer.body(body.into()).unwrap()
        }
        Some(FileFault::Cut(after)) => {
            let length = body.len();
            body.truncate(after);
            let cut = async {
                // What was sent before is on its way.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            };
            let whole = futures::stream::iter([Ok(Bytes::from(body))]);
            let body = Body::from_stream(whole.chain(futures::stream::once(cut)));
            answer.header(header::CONTENT_LENGTH, length).body(body).unwrap()
        }
    }
}
