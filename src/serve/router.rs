//! The routes of the server.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::handler::Handler;
use axum::middleware::from_fn;
use axum::routing::{MethodRouter, get};
use http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::set_header::SetResponseHeaderLayer;

use super::answer;
use super::error::ServeError;
use super::extract::PathDid;
use super::forward;
use super::identity::{self, View};
use super::middleware::{apply_middleware, preflight};
use super::state::Server;
use super::{evidence, explorer, export, health, lookup, resolution, stream};

/// For search engines that come by a link from elsewhere.
const ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");
const NO_INDEX: HeaderValue = HeaderValue::from_static("noindex, nofollow");

type Routes = Router<Arc<Server>>;

/// Everything that is served. Paths are compared as they are written; only a DID in them is
/// decoded.
pub fn router(server: &Arc<Server>) -> Router {
    let routes =
        directory(server).merge(reports()).merge(pages()).fallback(no_such_path.layer(preflight()));
    // Outermost, so that a refusal by whatever is around the routes has the form as well.
    let resolution = apply_middleware(resolution(), server).layer(from_fn(resolution::in_form));
    apply_middleware(routes, server).merge(resolution).with_state(Arc::clone(server))
}

/// What the directory serves too, and the verdicts beside it.
fn directory(server: &Server) -> Routes {
    let mut identity = view(View::Document).post(forward::submit);
    if server.state.forward.is_some() {
        identity = identity.options(forward::preflight);
    }
    with_and_without_slash([
        ("/export", get(export::export)),
        ("/export/stream", get(stream::open)),
        ("/{did}", identity),
        ("/{did}/data", view(View::Data)),
        ("/{did}/log", view(View::Log)),
        ("/{did}/log/audit", view(View::Audit)),
        ("/{did}/log/last", view(View::Last)),
        ("/{did}/log/verdicts", view(View::Verdicts)),
    ])
}

fn view(view: View) -> MethodRouter<Arc<Server>> {
    get(move |State(server): State<Arc<Server>>, PathDid(did): PathDid, head| async move {
        identity::identity(&server, &did, &head, view).await
    })
}

/// Reports for programs, which are true only now.
fn reports() -> Routes {
    with_and_without_slash([
        ("/_health", get(health::health)),
        ("/_ready", get(health::ready)),
        ("/_lookup", get(lookup::lookup)),
        ("/_audit/divergences", get(evidence::divergences)),
        ("/_audit/divergences/{id}/{side}", get(evidence::side)),
        ("/_audit/refused", get(evidence::refused)),
    ])
    .layer(SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, answer::NO_STORE))
}

/// Pages for people.
fn pages() -> Routes {
    let endless = with_and_without_slash([
        ("/explore", get(explorer::search)),
        ("/explore/log", get(explorer::log)),
        ("/explore/refused", get(explorer::refused)),
        ("/explore/divergences", get(explorer::divergences)),
        ("/explore/{did}", get(explorer::identity)),
    ]);
    with_and_without_slash([
        ("/", get(explorer::home)),
        ("/_style.css", get(explorer::style)),
        ("/_icon.svg", get(explorer::icon)),
        ("/robots.txt", get(explorer::robots)),
    ])
    .merge(endless.layer(SetResponseHeaderLayer::overriding(ROBOTS_TAG, NO_INDEX)))
}

/// DID Resolution, where whatever follows is the DID that is asked for, slashes included.
fn resolution() -> Routes {
    let resolve = get(resolution::resolve);
    ["/1.0/identifiers", "/1.0/identifiers/", "/1.0/identifiers/{*did}"]
        .into_iter()
        .fold(Router::new(), |router, path| router.route(path, resolve.clone()))
}

/// The directory takes a slash at the end of every path.
fn with_and_without_slash<const N: usize>(
    routes: [(&str, MethodRouter<Arc<Server>>); N],
) -> Routes {
    routes.into_iter().fold(Router::new(), |router, (path, methods)| {
        router.route(path, methods.clone()).route(&format!("{path}/"), methods)
    })
}

async fn no_such_path(method: Method, uri: Uri) -> ServeError {
    match method {
        Method::GET | Method::HEAD => ServeError::NoSuchPath(uri.path().to_owned()),
        method => ServeError::MethodNotAllowed(method),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::super::state;
    use super::*;

    /// What is answered to this request: the status, and the error or the type of what it is.
    async fn ask(router: &Router, method: &str, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "here");
        let request = request.body(Body::empty()).unwrap();
        let Ok(answer) = router.clone().oneshot(request).await;
        let status = answer.status().as_u16();
        let media_type = answer.headers().get("content-type").cloned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let resolution = &body["didResolutionMetadata"]["error"]["title"];
        let told = body["message"].as_str().or(resolution.as_str()).map(str::to_owned);
        let kind = || media_type.map_or(String::new(), |kind| kind.to_str().unwrap().to_owned());
        (status, told.unwrap_or_else(kind))
    }

    #[tokio::test]
    async fn paths_name_resources() {
        const DID: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        let (server, _folder) = state::tests::server().await;
        let router = router(&server);
        let unknown = format!(
            "{DID} is not known yet: this replica is still reading the log for the first time"
        );
        let non_plc = |name: &str| format!("Resolution of non-PLC DIDs not supported: {name}");
        let undecodable = |name: &str| format!("Failed to decode param '{name}'");
        let html = "text/html; charset=utf-8";
        let json = "application/json; charset=utf-8";
        let mut expected: Vec<(&str, u16, &str)> = vec![
            ("/", 200, html),
            ("//", 200, html),
            ("/explore", 303, ""),
            ("/explore/did%3Aplc%3aewvi7nxzyoun6zhxrhs64oiz", 503, html),
            ("/explore/data", 404, html),
            ("/_style.css", 200, "text/css; charset=utf-8"),
            ("/_icon.svg", 200, "image/svg+xml"),
            ("/robots.txt", 200, "text/plain; charset=utf-8"),
            ("/_health", 200, json),
            ("/_health/", 200, json),
            ("/_ready", 503, json),
            ("/_lookup", 400, "exactly one of handle, host and key is to be given"),
            ("/_audit/divergences", 200, json),
            ("/_audit/refused/", 200, json),
            ("/export", 200, "application/jsonlines"),
            ("/export/", 200, "application/jsonlines"),
            ("/export/stream", 426, "upgrade required"),
            ("/1.0/identifiers/did%3Aplc%3aewvi7nxzyoun6zhxrhs64oiz", 503, "Service Unavailable"),
            ("/1.0/identifiers/%zz", 400, "Invalid DID"),
            ("/1.0/identifiers/a/b", 400, "Invalid DID"),
            ("/1.0/identifiers/", 400, "Invalid DID"),
            ("/1.0/identifiers", 400, "Invalid DID"),
        ];
        let (export, favicon, slash, explore) =
            (non_plc("export"), non_plc("favicon.ico"), non_plc("a/b \u{e9}"), non_plc("explore"));
        expected.extend([
            ("/export/data", 400, &*export),
            ("/favicon.ico", 400, &favicon),
            ("/a%2Fb%20%C3%A9", 400, &slash),
            ("/explore/log/audit", 400, &explore),
        ]);
        let (zz, c3, abc) = (undecodable("%zz"), undecodable("%C3"), undecodable("abc%4"));
        expected.extend([
            ("/%zz", 400, &*zz),
            ("/explore/%zz", 400, &zz),
            ("/%C3/log", 400, &c3),
            ("/abc%4", 400, &abc),
        ]);
        for (path, status, told) in expected {
            assert_eq!(ask(&router, "GET", path).await, (status, told.to_owned()), "{path}");
        }
        for rest in ["", "/", "/data", "/log", "/log/audit", "/log/last/", "/log/verdicts"] {
            for did in [DID.to_owned(), DID.replace(':', "%3a")] {
                let path = format!("/{did}{rest}");
                assert_eq!(ask(&router, "GET", &path).await, (503, unknown.clone()), "{path}");
            }
        }
        for path in [
            "/_other",
            "/_",
            "/_health/more",
            "/_audit/divergences/1/other",
            "/_audit/other",
            "/explore/a/b",
            "/1.0/identities",
            "/did:plc:ewvi7nxzyoun6zhxrhs64oiz/log/first",
            "/did:plc:ewvi7nxzyoun6zhxrhs64oiz//log",
            "//log",
        ] {
            let told = format!("No such path: {path}");
            assert_eq!(ask(&router, "GET", path).await, (404, told), "{path}");
        }
        let record = ("/_audit/divergences/%35/ours", "No such path: /_audit/divergences/%35/…");
        assert_eq!(ask(&router, "GET", record.0).await, (404, record.1.to_owned()));
    }

    #[tokio::test]
    async fn pages_without_end_are_not_for_search_engines() {
        let (server, _folder) = state::tests::server().await;
        let router = router(&server);
        for (path, tag) in [
            ("/", None),
            ("/explore?q=x", Some("noindex, nofollow")),
            ("/explore/did:plc:ewvi7nxzyoun6zhxrhs64oiz", Some("noindex, nofollow")),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz", None),
        ] {
            let request = Request::get(path).header("host", "here").body(Body::empty()).unwrap();
            let Ok(answer) = router.clone().oneshot(request).await;
            let stated = answer.headers().get("x-robots-tag").map(|tag| tag.to_str().unwrap());
            assert_eq!(stated, tag, "{path}");
        }
    }

    #[tokio::test]
    async fn methods_that_write_are_refused_everywhere() {
        let (server, _folder) = state::tests::server().await;
        let router = router(&server);
        let refused = |method| (405, format!("{method} is not allowed here"));
        for path in ["/", "/export", "/did:plc:x/log", "/_other", "/%zz", "/a/b/c", "//log"] {
            assert_eq!(ask(&router, "POST", path).await, refused("POST"), "{path}");
            assert_eq!(ask(&router, "DELETE", path).await, refused("DELETE"), "{path}");
            assert_eq!(ask(&router, "OPTIONS", path).await, (204, String::new()), "{path}");
        }
        assert_eq!(ask(&router, "PUT", "/did:plc:x").await, refused("PUT"));
        let told = "this is a read-only replica of https://plc.example: submit operations there";
        for path in ["/did:plc:x", "/did%3Aplc%3Ax/", "/anything"] {
            assert_eq!(ask(&router, "POST", path).await, (405, told.to_owned()), "{path}");
        }
    }
}
