//! What handlers take from a request.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath};
use http::request::Parts;
use http::{Extensions, HeaderMap, Uri};
use percent_encoding::percent_decode_str;

use super::Server;
use super::error::ServeError;

/// What stands in a path for a DID, decoded; it may be any text.
pub struct PathDid(pub String);

impl<S: Sync> FromRequestParts<S> for PathDid {
    type Rejection = ServeError;

    /// # Errors
    ///
    /// [`ServeError::Undecodable`]; [`ServeError::NoSuchPath`] for a first segment that is empty or
    /// begins with an underscore: those are this server's own, now and later.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<PathDid, ServeError> {
        let path = parts.uri.path();
        if path.starts_with("//") || path.starts_with("/_") {
            return Err(ServeError::NoSuchPath(path.to_owned()));
        }
        let written = written_did(&parts.extensions, &parts.uri).unwrap_or_default();
        match decode(written) {
            Some(did) => Ok(PathDid(did.into_owned())),
            None => Err(ServeError::Undecodable(written.to_owned())),
        }
    }
}

/// What stands in the path of a request for a DID, decoded, if something does and it can be.
pub fn did_in_path<'a>(extensions: &Extensions, uri: &'a Uri) -> Option<Cow<'a, str>> {
    decode(written_did(extensions, uri)?)
}

/// The segment where the route has `{did}`, as it is written.
fn written_did<'a>(extensions: &Extensions, uri: &'a Uri) -> Option<&'a str> {
    let route = extensions.get::<MatchedPath>()?.as_str().split('/');
    let mut both = route.zip(uri.path().split('/'));
    both.find_map(|(name, written)| matches!(name, "{did}" | "{*did}").then_some(written))
}

/// JavaScript's `decodeURIComponent`: none for a `%` that two hexadecimal digits do not follow,
/// and for what is not UTF-8 afterwards.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    let bytes = text.as_bytes();
    let is_escape = |at: usize| {
        bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    let mut escapes = memchr::memchr_iter(b'%', bytes);
    if !escapes.all(is_escape) {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok()
}

/// The query of a request, as it is written.
pub struct Query(Uri);

impl Deref for Query {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.query().unwrap_or_default()
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query, Infallible> {
        Ok(Query(parts.uri.clone()))
    }
}

/// What a request says beside its path, and who sent it.
pub struct RequestHead {
    /// The address of the client.
    pub client: IpAddr,
    /// All headers.
    pub headers: HeaderMap,
    /// The query.
    pub query: Query,
}

impl FromRequestParts<Arc<Server>> for RequestHead {
    type Rejection = Infallible;

    /// Takes the headers away, which is cheaper than a copy: what else needs them stands before
    /// this one among the arguments of a handler.
    async fn from_request_parts(
        parts: &mut Parts,
        server: &Arc<Server>,
    ) -> Result<RequestHead, Infallible> {
        Ok(RequestHead {
            client: client_address(server, &parts.extensions, &parts.headers),
            headers: std::mem::take(&mut parts.headers),
            query: Query(parts.uri.clone()),
        })
    }
}

/// The address of the client of a request.
pub fn client_address(server: &Server, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    // Every connection says whom it is with.
    let peer = extensions.get::<ConnectInfo<IpAddr>>();
    let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| *peer);
    server.state.settings.limits.proxies.client(peer, headers)
}
