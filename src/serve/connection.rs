//! Connections: accepting them, their limits, and their end.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use futures::future::OptionFuture;
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::answer::Answer;
use super::answer_memory::AnswerMemory;
use super::state::Server;

/// How long a request's head may take to arrive, which is also how long a connection may be
/// idle. Longer than the minute for which proxies usually keep theirs, so that a proxy does not
/// send a request into a connection that is being closed here.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// The smallest limit of a request's head that HTTP's implementation takes.
const MIN_HEAD: usize = 8 << 10;
/// How long a client may leave what it was sent unread. Whoever is gone without a word, or does
/// not read, holds an answer in memory for no longer than this. (What all of them hold together
/// is bounded by [`AnswerMemory`].)
#[cfg(target_os = "linux")]
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Time for everything in hand once the end has come, so that the process is gone within ten
/// seconds.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// Pause after a connection could not be accepted, which is when there are no more file
/// descriptors: some may be free again by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections can be accepted again when it has not failed for so long: while there are too few file
/// descriptors, each connection that ends makes room for one.
const ACCEPTS_AGAIN: Duration = Duration::from_secs(10);

/// Accepts connections until the shutdown, then waits for those in hand. Their requests are answered
/// by the router.
pub async fn accept(listener: TcpListener, server: Arc<Server>, router: Router) {
    let limit = server.state.settings.limits.connections.min(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(limit));
    let memory = Arc::new(AnswerMemory::new());
    // Cut off are those that have not ended by themselves in time.
    let cut = CancellationToken::new();
    let mut acceptor = Acceptor { listener, failed: None };
    while let Some((stream, peer)) = server.shutdown.run_until_cancelled(acceptor.next()).await {
        // Who holds the places may hold them for long: the shutdown does not wait for one.
        let place = server.shutdown.run_until_cancelled(Arc::clone(&places).acquire_owned()).await;
        // The semaphore is never closed, so never an error.
        let Some(Ok(place)) = place else { break };
        let cut = cut.child_token();
        let connection = Connection {
            peer,
            router: router.clone(),
            memory: Arc::clone(&memory),
            takes_writes: server.state.forward.is_some(),
            draining: server.draining.clone(),
            cut: cut.clone(),
        };
        let connection = connection.serve(stream, Arc::clone(&server));
        server.tasks.spawn(async move {
            cut.run_until_cancelled(connection).await;
            drop(place);
        });
    }
    drop(acceptor);
    server.tasks.close();
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, server.tasks.wait()).await.is_err() {
        tracing::warn!(connections = server.tasks.len(), "cut off after the time for goodbyes");
        cut.cancel();
    }
}

/// Accepts connections, and says once that it cannot, and once that it can again.
struct Acceptor {
    listener: TcpListener,
    /// When it failed last, until that is over.
    failed: Option<Instant>,
}

impl Acceptor {
    /// The next connection. May be dropped while it waits: none is lost.
    async fn next(&mut self) -> (TcpStream, IpAddr) {
        loop {
            let over = self.failed.map(|failed| failed + ACCEPTS_AGAIN);
            if over.is_some_and(|over| over <= Instant::now()) {
                self.failed = None;
                tracing::info!("connections can be accepted again");
                continue;
            }
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(()) = OptionFuture::from(over.map(sleep_until)) => continue,
            };
            match accepted {
                Ok((stream, peer)) => return (stream, peer.ip()),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if self.failed.replace(Instant::now()).is_none() {
                        tracing::warn!(
                            "cannot accept connections: {error}; tried again until it succeeds"
                        );
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether only the connection that was to be accepted failed.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// One connection.
struct Connection {
    /// Whom it is with.
    peer: IpAddr,
    router: Router,
    memory: Arc<AnswerMemory>,
    /// Whether writes are passed on.
    takes_writes: bool,
    /// Cancelled when connections are not to be used again.
    draining: CancellationToken,
    /// Cuts it off.
    cut: CancellationToken,
}

impl Connection {
    /// Answers its requests, one after the other. At the shutdown the one in hand is finished; an
    /// idle connection is closed at once.
    async fn serve(self, stream: TcpStream, server: Arc<Server>) {
        prepare(&stream);
        let head = server.state.settings.limits.head_bytes.max(MIN_HEAD);
        let this = Arc::new(self);
        let service = service_fn(move |request| {
            let connection = Arc::clone(&this);
            async move { Ok::<_, Infallible>(connection.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(head)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        // How a connection ends is the client's business: errors of hyper are resets and timeouts.
        tokio::select! {
            biased;
            _ = connection.as_mut() => {}
            () = server.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }

    /// Answers one request. A body that came with it is not read, unless it is a write that may be passed on.
    async fn answer(&self, mut request: Request<Incoming>) -> Answer {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let reads = self.takes_writes && request.method() == Method::POST;
        let request = request.map(|body| if reads { Body::new(body) } else { Body::empty() });
        let Ok(mut answer) = self.router.clone().call(request).await;
        // The router states the length of the empty body, where the length of the body that was
        // left out is meant.
        if answer.status() == StatusCode::NOT_MODIFIED {
            answer.headers_mut().remove(header::CONTENT_LENGTH);
        }
        // The next request of this client goes elsewhere, rather than into a connection that is being closed.
        if self.draining.is_cancelled() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.memory.hold(answer, &self.cut).await
    }
}

/// Sets the options of a connection. One that refuses them is served as it is.
fn prepare(stream: &TcpStream) {
    // Answers are written whole: waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(SEND_TIMEOUT));
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::middleware::apply_middleware;
    use super::super::state;
    use super::*;

    /// Asks on this connection and reads what comes next.
    async fn ask(connection: &mut TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = connection.read(&mut answer).await.unwrap();
        String::from_utf8(answer[..read].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_panic_ends_the_request_and_not_the_connection() {
        async fn panics() -> &'static str {
            panic!("a bug")
        }
        let (server, _folder) = state::tests::server().await;
        let routes = Router::new().route("/bug", get(panics)).route("/", get(async || "well"));
        let routes = apply_middleware(routes, &server).with_state(Arc::clone(&server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&server), routes));
        for (path, begin) in
            [("/bug", "HTTP/1.1 500"), ("/", "HTTP/1.1 200"), ("/bug", "HTTP/1.1 500")]
        {
            let answer = ask(&mut connection, path).await;
            assert!(answer.starts_with(begin), "{path}: {answer}");
        }
        server.shutdown.cancel();
        accepting.await.unwrap();
    }
}
