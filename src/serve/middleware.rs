//! What every request goes through on its way to the routes, and every answer on its way back.

use std::any::Any;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::handler::Handler;
use axum::response::{IntoResponse, Response};
use futures::future::{BoxFuture, Either, ready};
use futures::{FutureExt, TryFutureExt};
use http::header::{
    ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ALLOW, HOST,
};
use http::{Method, StatusCode, Uri, Version};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use tower::layer::util::{Identity, Stack};
use tower::util::MapResponseLayer;
use tower::{Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{self, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;
use tracing::{Span, debug, debug_span, field};

use crate::metrics::RequestCounts;

use super::answer::{self, Answer};
use super::error::ServeError;
use super::extract::{client_address, did_in_path};
use super::limits::{Allowance, Limits};
use super::state::Server;
use super::{compression, resolution};

/// Seconds that a browser may keep the answer to `OPTIONS`; it never changes.
const PREFLIGHT_AGE: Duration = Duration::from_secs(86_400);

/// As many tasks as a thread keeps for itself: a crowd are those that wait beside them.
const CROWD: usize = 256;

/// What [`preflight`] puts around a handler.
type PreflightLayer =
    ServiceBuilder<Stack<CorsLayer, Stack<MapResponseLayer<fn(Response) -> Response>, Identity>>>;

/// Puts the middleware around routes: a request goes through it from the first to the last, its
/// answer from the last to the first.
pub fn apply_middleware(routes: Router<Arc<Server>>, server: &Arc<Server>) -> Router<Arc<Server>> {
    let layers = ServiceBuilder::new()
        // First, so that everything that is logged of a request stands in its span, and the span
        // has the whole time.
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_request(())
                .on_response(answered)
                .on_body_chunk(())
                .on_eos(())
                .on_failure(()),
        )
        // Around all that can answer: a site may read a refusal too. (`CorsLayer` would answer a
        // preflight before it is counted.)
        .layer(SetResponseHeaderLayer::overriding(ACCESS_CONTROL_ALLOW_ORIGIN, answer::ANY))
        .layer(SetResponseHeaderLayer::overriding(ACCESS_CONTROL_EXPOSE_HEADERS, answer::ANY))
        // Before any work is done for a request. What is refused here is counted as well.
        .layer_fn({
            let server = Arc::clone(server);
            move |inner| Admission { server: Arc::clone(&server), inner }
        })
        // Around all that makes bodies. A compressed body is put together again at once: its length
        // is stated, and what clients do not take of it can be counted.
        .and_then(compression::gather)
        .layer(compression::layer())
        // Around the work alone: the answer to a panic is treated like any other.
        .map_response(IntoResponse::into_response)
        .layer(CatchPanicLayer::custom(panicked));
    routes.method_not_allowed_fallback(method_not_allowed.layer(preflight())).layer(layers)
}

/// Answers preflights. `OPTIONS` is no method of any route: this stands around what answers those methods, so
/// that no other request goes through it.
pub fn preflight() -> PreflightLayer {
    let cors = CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::OPTIONS])
        .allow_headers(cors::Any)
        .max_age(PREFLIGHT_AGE)
        .vary([]);
    ServiceBuilder::new().map_response(complete_preflight as fn(Response) -> Response).layer(cors)
}

/// The span of a request. It costs nothing unless debugging is logged.
fn span(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>();
    debug_span!(
        "request",
        method = request.method().as_str(),
        route = name(route),
        did = did_in_path(request.extensions(), request.uri()).as_deref(),
        status = field::Empty,
        microseconds = field::Empty,
    )
}

fn answered<B>(response: &Response<B>, took: Duration, span: &Span) {
    span.record("status", response.status().as_u16());
    span.record("microseconds", took.as_micros() as u64);
    debug!("answered");
}

/// The name of a route in metrics and logs, for all of its spellings.
fn name(matched: Option<&MatchedPath>) -> &str {
    match matched.map(MatchedPath::as_str) {
        None => "other",
        Some("/" | "//") => "/",
        Some(path) if path.starts_with(resolution::PATH) => "/1.0/identifiers/{did}",
        Some(path) => path.trim_end_matches('/'),
    }
}

/// The name by which a request is counted. A path that names nothing may have matched `/{did}`.
fn counted_as<'a>(matched: Option<&'a MatchedPath>, answer: &Answer) -> &'a str {
    let names_nothing = answer.extensions().get().is_some_and(ServeError::names_nothing);
    name(matched.filter(|_| !names_nothing))
}

static REQUESTS: LazyLock<RequestCounts> = LazyLock::new(RequestCounts::default);

/// Refuses what is more or longer than a client may ask, and counts what was answered.
///
/// A layer of our own and not one of axum's functions: those copy everything that is below them for
/// each request, which costs a twentieth of a lookup.
#[derive(Clone)]
struct Admission<S> {
    server: Arc<Server>,
    inner: S,
}

impl<S> Service<Request> for Admission<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let began = Instant::now();
        let matched = request.extensions().get::<MatchedPath>().cloned();
        // Who watches the server is not to be kept from it.
        let watches = matches!(name(matched.as_ref()), "/_health" | "/_ready");
        let allowance = (!watches).then(|| {
            let client = client_address(&self.server, request.extensions(), request.headers());
            self.server.limiter.request(client, began)
        });
        let allowance = allowance.flatten();
        let limits = &self.server.state.settings.limits;
        let refused = over_limit(limits, allowance, request.uri());
        let place = match refused.or_else(|| not_one_host(&request)) {
            Some(refused) => Err(refused),
            None if watches => Ok(None),
            None => place(&self.server).map(Some),
        };
        let (place, answering) = match place {
            Err(refused) => (None, Either::Left(ready(Ok(refused.into_response())))),
            Ok(place) => {
                let answer = within(limits.request_time, self.inner.call(request));
                (place, Either::Right(after_a_crowd(answer)))
            }
        };
        Box::pin(answering.map_ok(move |mut answer| {
            drop(place);
            if let Some(allowance) = allowance {
                allowance.state(answer.headers_mut());
            }
            let counted_as = counted_as(matched.as_ref(), &answer);
            REQUESTS.count(counted_as, answer.status(), began.elapsed());
            answer
        }))
    }
}

/// The place of a request among those that are answered at a time.
fn place(server: &Server) -> Result<OwnedSemaphorePermit, ServeError> {
    Arc::clone(&server.request_places).try_acquire_owned().map_err(|_| ServeError::TooManyAtATime)
}

/// The same answer, after the others have had their turn where there is a crowd.
///
/// A lookup may be answered without waiting for anything, so that of thousands that have arrived only a few would
/// ever be counted. In a crowd a request lets all of them take or miss their places before any work is done for it.
/// (Without one it does not: who is woken in that way is not offered to a thread that has nothing to do.)
fn after_a_crowd<F: Future + Send>(answer: F) -> Either<F, impl Future<Output = F::Output> + Send> {
    match Handle::current().metrics().global_queue_depth() > CROWD {
        false => Either::Left(answer),
        true => Either::Right(yield_now().then(|()| answer)),
    }
}

/// The answer, or that it took too long. A timer is only set for what does not answer at once, as most lookups
/// do: tower-http's layer sets one for each request. (No `async` function: it would hold the answer's future twice,
/// which is large, and be moved with both.)
fn within(
    time: Duration,
    answer: impl Future<Output = Result<Response, Infallible>>,
) -> impl Future<Output = Result<Response, Infallible>> {
    let too_long = move |_| Ok(ServeError::TookTooLong(time).into_response());
    tokio::time::timeout(time, answer).map(move |in_time| in_time.unwrap_or_else(too_long))
}

fn over_limit(limits: &Limits, allowance: Option<Allowance>, uri: &Uri) -> Option<ServeError> {
    if let Some(retry_after) = allowance.and_then(|allowance| allowance.retry_after) {
        return Some(ServeError::TooManyRequests { retry_after });
    }
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    (length > limits.url_bytes).then_some(ServeError::UrlTooLong { limit: limits.url_bytes })
}

/// A proxy may take a request with several hosts for one to another of them than we do.
fn not_one_host(request: &Request) -> Option<ServeError> {
    let hosts = request.headers().get_all(HOST).iter().count();
    // HTTP/1.0 knew no such header.
    let fewest = usize::from(request.version() == Version::HTTP_11);
    (hosts > 1 || hosts < fewest).then_some(ServeError::NotOneHost(hosts))
}

/// The answer to `OPTIONS` has no body and says what may be done to any client, not only to
/// a browser.
fn complete_preflight(mut answer: Response) -> Response {
    if answer.headers().contains_key(ACCESS_CONTROL_ALLOW_METHODS) {
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let headers = answer.headers_mut();
        headers.insert(ALLOW, answer::METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, answer::METHODS);
    }
    answer
}

/// A bug: it ends the request, and not the connection.
fn panicked(panic: Box<dyn Any + Send>) -> Answer {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = message.unwrap_or_default(), "a request panicked");
    ServeError::Bug.into_response()
}

async fn method_not_allowed(method: Method) -> ServeError {
    ServeError::MethodNotAllowed(method)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::super::state;
    use super::*;

    /// The answer of routes with the middleware around them.
    async fn ask(routes: Router<Arc<Server>>, path: &str) -> (StatusCode, Answer) {
        ask_within(Limits::default(), routes, path).await
    }

    async fn ask_within(
        limits: Limits,
        routes: Router<Arc<Server>>,
        path: &str,
    ) -> (StatusCode, Answer) {
        let (server, _folder) = state::tests::server_with(limits).await;
        let routes = apply_middleware(routes, &server).with_state(server);
        let request = Request::get(path).header(HOST, "here").body(Body::empty()).unwrap();
        let Ok(answer) = routes.oneshot(request).await;
        (answer.status(), answer)
    }

    async fn text(answer: Answer) -> String {
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.into()).unwrap()
    }

    #[tokio::test]
    async fn a_panic_is_answered_like_any_error() {
        async fn panics() -> &'static str {
            panic!("a bug")
        }
        async fn panics_while_blocking() -> &'static str {
            crate::blocking::run("testing", || panic!("a bug")).await
        }
        let routes =
            || Router::new().route("/a", get(panics)).route("/b", get(panics_while_blocking));
        for path in ["/a", "/b"] {
            let (status, answer) = ask(routes(), path).await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(answer.headers()["content-type"], "application/json; charset=utf-8");
            assert_eq!(answer.headers()["access-control-allow-origin"], "*");
            assert_eq!(answer.headers()["cache-control"], "no-store");
            let message = "a bug of this server kept it from answering; its log says more";
            assert_eq!(text(answer).await, format!("{{\"message\":\"{message}\"}}"));
        }
    }

    #[tokio::test]
    async fn what_takes_too_long_is_answered_like_any_error() {
        let routes = Router::new().route("/", get(std::future::pending::<&'static str>));
        let limits = Limits { request_time: Duration::from_millis(200), ..Limits::default() };
        let (status, answer) = ask_within(limits, routes, "/").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["retry-after"], "10");
        assert_eq!(text(answer).await, r#"{"message":"no answer within 1 s, try again later"}"#);
    }
}
