//! From a request to its answer.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use crate::metrics::Requests;

use super::answer::{self, Answer};
use super::encoding::Coding;
use super::error::ServeError;
use super::limits::{Allowance, Limits};
use super::route::{NAMES, Route, View};
use super::{Server, evidence, explorer, export, lookup, resolution, resolve, status, stream};

/// Answers one request of whoever is at the other end. A body that came with it is not read.
pub async fn answer(server: &Arc<Server>, peer: IpAddr, request: Request<Incoming>) -> Answer {
    let began = Instant::now();
    let limits = &server.state.settings.limits;
    let (mut parts, _) = request.into_parts();
    let coding = Coding::wanted(&parts.headers);
    let client = limits.proxies.client(peer, &parts.headers);
    let uri = parts.uri.clone();
    let route = Route::of(uri.path());
    let number = route.number();
    let resolves = matches!(route, Route::Resolution(_));
    let allowance = match route {
        // Who watches the server is not to be kept from it.
        Route::Health | Route::Ready => None,
        _ => server.limiter.request(client, began),
    };
    let routed = match over_limit(limits, allowance, &uri) {
        Some(refused) => Err(refused),
        None => timeout(limits.request_time, self::route(server, client, route, &mut parts))
            .await
            .unwrap_or(Err(ServeError::TookTooLong(limits.request_time))),
    };
    let mut answer = routed.unwrap_or_else(|error| match resolves {
        true => resolution::refused(&parts.headers, error),
        false => error.into_answer(),
    });
    answer::for_everybody(answer.headers_mut());
    if let Some(allowance) = allowance {
        allowance.state(answer.headers_mut());
    }
    let answer = match coding {
        Some(coding) => encode(answer, coding).await,
        None => answer,
    };
    REQUESTS[number].count(answer.status(), began.elapsed());
    answer
}

/// Why a request is not even looked at.
fn over_limit(limits: &Limits, allowance: Option<Allowance>, uri: &Uri) -> Option<ServeError> {
    if let Some(retry_after) = allowance.and_then(|allowance| allowance.retry_after) {
        return Some(ServeError::TooManyRequests { retry_after });
    }
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    (length > limits.url_bytes).then_some(ServeError::UrlTooLong { limit: limits.url_bytes })
}

/// Requests of each route, and of what is none.
static REQUESTS: LazyLock<[Requests; NAMES.len() + 1]> = LazyLock::new(|| {
    std::array::from_fn(|number| Requests::new(NAMES.get(number).copied().unwrap_or("other")))
});

async fn route(
    server: &Arc<Server>,
    client: IpAddr,
    route: Route<'_>,
    parts: &mut Parts,
) -> Result<Answer, ServeError> {
    match parts.method {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Ok(answer::preflight()),
        ref method => return Err(refused(server, &route, method)),
    }
    let query = parts.uri.query().unwrap_or_default();
    match route {
        Route::Identity { did, view } => {
            Ok(resolve::identity(server, client, &parts.headers, query, &did, view).await)
        }
        Route::Resolution(did) => {
            Ok(resolution::resolve(server, client, &parts.headers, query, &did).await)
        }
        Route::Divergences => evidence::divergences(server, query).await,
        Route::Evidence { id, theirs } => evidence::side(server, id, theirs).await,
        Route::Refused => evidence::refused(server, query).await,
        Route::Lookup => lookup::lookup(server, query).await,
        Route::Export => export::export(server, &parts.headers, query).await,
        Route::Stream => stream::open(server, client, parts).await,
        Route::Health => Ok(status::health(server).await),
        Route::Ready => Ok(status::ready(server)),
        Route::Index => Ok(explorer::home(server)),
        Route::Search => Ok(explorer::search(server, query).await),
        Route::Explore(did) => Ok(explorer::identity(server, &did, query).await),
        Route::Style => Ok(explorer::style()),
        Route::Icon => Ok(explorer::icon()),
        Route::Undecodable(segment) => Err(ServeError::Undecodable(segment.to_owned())),
        Route::Unknown => Err(ServeError::NoSuchPath(parts.uri.path().to_owned())),
    }
}

/// Why a method other than those that read is refused.
fn refused(server: &Server, route: &Route<'_>, method: &Method) -> ServeError {
    match route {
        Route::Identity { view: View::Document, .. } if method == Method::POST => {
            ServeError::ReadOnly { upstream: server.state.status.upstream().to_owned() }
        }
        _ => ServeError::MethodNotAllowed(method.clone()),
    }
}

/// Says that the answer depends on `Accept-Encoding`, beside whatever else it depends on.
fn vary_by_encoding(headers: &mut HeaderMap) {
    let said = headers.get_all(header::VARY).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("accept-encoding"))
    });
    if !said {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// Compresses the body of an answer. The entity tag stays, being a weak one.
async fn encode(answer: Answer, coding: Coding) -> Answer {
    if answer.size_hint().lower() == 0 {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    let Ok(plain) = body.collect().await.map(|body| body.to_bytes());
    let body = match coding.compress(plain.clone()).await {
        Some(encoded) => {
            parts.headers.insert(header::CONTENT_ENCODING, coding.name());
            vary_by_encoding(&mut parts.headers);
            encoded
        }
        None => plain,
    };
    Answer::from_parts(parts, Full::<Bytes>::new(body))
}
