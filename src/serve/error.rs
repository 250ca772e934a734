//! What can go wrong with a request, and the one place where it becomes an answer.

use std::time::Duration;

use axum::response::IntoResponse;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::store::StoreError;
use did_plc::json::write_string;
use did_plc::operation::Malformed;
use did_plc::submission::Rejection;
use did_plc::{Cid, Did};

use super::answer::{self, Answer, seconds};

/// A request that is not answered with what it asked for. The texts that the directory has are
/// the directory's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServeError {
    /// The first segment of a path is no did:plc.
    #[error("Resolution of non-PLC DIDs not supported: {0}")]
    NotPlc(String),
    /// The identity does not exist.
    #[error("DID not registered: {0}")]
    NotRegistered(String),
    /// The identity was ended by a tombstone.
    #[error("DID not available: {0}")]
    NotAvailable(Did),
    /// An identity or a version is not here yet, and the log was never read to its end.
    #[error("{0} is not known yet: this replica is still reading the log for the first time")]
    NotKnownYet(String),
    /// All that was received of an identity was refused.
    #[error(
        "operations of {0} were received here and none of them verifies: see /_audit/refused?did={0} on this server"
    )]
    OnlyRefused(Did),
    /// The operation that the client waited for has not come.
    #[error(
        "{did} has no operation {cid} here after {seconds} s; this replica has read its upstream up to sequence number {sequence}"
    )]
    NotYet {
        /// The identity.
        did: Did,
        /// The operation.
        cid: Cid,
        /// How long was waited.
        seconds: u64,
        /// How far the log was read.
        sequence: i64,
    },
    /// As many waiting requests as this server takes.
    #[error("too many requests wait for operations, try again later")]
    TooManyWaiting,
    /// One client has as many waiting requests as it may have.
    #[error("too many requests from this address wait for operations")]
    TooManyOwnWaiting,
    /// A parameter that cannot be read.
    #[error("Invalid {0} parameter")]
    InvalidParameter(&'static str),
    /// Several parameters of which one is to be given.
    #[error("exactly one of {0} is to be given")]
    OneOf(&'static str),
    /// A reverse look-up where there is no index.
    #[error("this replica keeps no index of claims: it is switched on with --index")]
    NoIndex,
    /// A segment of the path that cannot be percent-decoded.
    #[error("Failed to decode param '{0}'")]
    Undecodable(String),
    /// No such resource.
    #[error("No such path: {0}")]
    NoSuchPath(String),
    /// A number that no record has, or a record that lacks this side.
    #[error("No such path: /_audit/divergences/{0}/…")]
    NoSuchRecord(String),
    /// An operation was submitted.
    #[error("this is a read-only replica of {upstream}: submit operations there")]
    ReadOnly {
        /// Base URL of the directory that is followed.
        upstream: String,
    },
    /// An operation that is certainly wrong.
    #[error(transparent)]
    Rejected(Rejection),
    /// A body that is no operation, whatever it says.
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge {
        /// How large it may be.
        limit: usize,
    },
    /// A body in a form that is not read here.
    #[error("unsupported {0}: an operation is JSON in UTF-8, not compressed")]
    UnsupportedBody(String),
    /// A body that has not come to its end.
    #[error("the body broke off")]
    BodyBroken,
    /// One client writes more often than it may.
    #[error("too many operations from this address, try again in {} s", seconds(*retry_after))]
    TooManyOwnWrites {
        /// When it may write again.
        retry_after: Duration,
    },
    /// As many operations as are passed on, in a minute or at a time.
    #[error("too many operations for the upstream, nothing was sent to it: try again later")]
    TooManyWrites,
    /// The upstream cannot be sent an operation.
    #[error("the operation was not sent to the upstream ({0}): try again later")]
    NotSent(String),
    /// The upstream takes operations elsewhere.
    #[error(
        "the upstream has not taken the operation: it redirects to {0}, which the setting --upstream would have to name"
    )]
    WritesElsewhere(String),
    /// Nobody has said whether the upstream has taken an operation.
    #[error(
        "the operation was sent, and whether the upstream has taken it is not known ({reason}): see /{did}/log/last before anything is sent again"
    )]
    OutcomeUnknown {
        /// The identity.
        did: Did,
        /// Why it is not known.
        reason: String,
        /// 502 or 504.
        status: StatusCode,
    },
    /// Nothing here can be done with this method.
    #[error("{0} is not allowed here")]
    MethodNotAllowed(Method),
    /// The stream is a WebSocket.
    #[error("upgrade required")]
    UpgradeRequired,
    /// A WebSocket handshake that is none.
    #[error("{0}")]
    BadUpgrade(String),
    /// As many stream clients as this server takes.
    #[error("too many stream clients, try again later")]
    TooManyStreams,
    /// One client has as many streams as it may have.
    #[error("too many stream clients from this address")]
    TooManyOwnStreams,
    /// As many requests as this server answers at a time.
    #[error("too many requests at a time, try again later")]
    TooManyAtATime,
    /// One client asks more often than it may.
    #[error("too many requests, try again in {} s", seconds(*retry_after))]
    TooManyRequests {
        /// When it may ask again.
        retry_after: Duration,
    },
    /// A request that does not say once which host it is for (RFC 9112, 3.2).
    #[error("a request has to have one Host header, and this one has {0}")]
    NotOneHost(usize),
    /// A path and query that nothing here has.
    #[error("the address is longer than {limit} bytes")]
    UrlTooLong {
        /// How long it may be.
        limit: usize,
    },
    /// No answer in the time that one may take.
    #[error("no answer within {} s, try again later", seconds(*.0))]
    TookTooLong(Duration),
    /// A bug of this server.
    #[error("a bug of this server kept it from answering; its log says more")]
    Bug,
    /// The store cannot answer, or its answer is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ServeError {
    /// A stored operation of this identity that cannot be read.
    pub fn damaged(did: &Did, reason: &Malformed) -> ServeError {
        ServeError::Store(StoreError::Damaged {
            place: did.to_string(),
            reason: reason.to_string(),
        })
    }

    /// An identity that is held, and of which nothing is in force: no operation nullifies its genesis.
    pub fn nothing_in_force(did: &Did) -> ServeError {
        ServeError::Store(StoreError::Damaged {
            place: did.to_string(),
            reason: "all of its operations are nullified".to_owned(),
        })
    }

    /// Of an identity that is not held, of which so many refusals stand.
    pub fn absent(did: Did, refused: usize, caught_up: bool) -> ServeError {
        match (refused, caught_up) {
            (0, true) => ServeError::NotRegistered(did.to_string()),
            (0, false) => ServeError::NotKnownYet(did.to_string()),
            _ => ServeError::OnlyRefused(did),
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            ServeError::NotRegistered(_)
            | ServeError::NotAvailable(_)
            | ServeError::NoSuchPath(_)
            | ServeError::NoSuchRecord(_) => StatusCode::NOT_FOUND,
            ServeError::NoIndex => StatusCode::NOT_IMPLEMENTED,
            ServeError::NotPlc(_)
            | ServeError::InvalidParameter(_)
            | ServeError::OneOf(_)
            | ServeError::Undecodable(_)
            | ServeError::NotOneHost(_)
            | ServeError::Rejected(_)
            | ServeError::BodyBroken
            | ServeError::BadUpgrade(_) => StatusCode::BAD_REQUEST,
            ServeError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ServeError::UnsupportedBody(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ServeError::OutcomeUnknown { status, .. } => *status,
            ServeError::ReadOnly { .. } | ServeError::MethodNotAllowed(_) => {
                StatusCode::METHOD_NOT_ALLOWED
            }
            ServeError::OnlyRefused(_) | ServeError::WritesElsewhere(_) => StatusCode::BAD_GATEWAY,
            ServeError::NotYet { .. } => StatusCode::GATEWAY_TIMEOUT,
            ServeError::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            ServeError::TooManyRequests { .. }
            | ServeError::TooManyOwnWrites { .. }
            | ServeError::TooManyOwnStreams
            | ServeError::TooManyOwnWaiting => StatusCode::TOO_MANY_REQUESTS,
            ServeError::UrlTooLong { .. } => StatusCode::URI_TOO_LONG,
            ServeError::NotKnownYet(_)
            | ServeError::TooManyStreams
            | ServeError::TookTooLong(_)
            | ServeError::TooManyWaiting
            | ServeError::TooManyAtATime
            | ServeError::TooManyWrites
            | ServeError::NotSent(_)
            | ServeError::Store(StoreError::Unavailable(_) | StoreError::Denied(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ServeError::Bug | ServeError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the path is that of no resource.
    pub fn names_nothing(&self) -> bool {
        matches!(self, ServeError::NoSuchPath(_) | ServeError::Undecodable(_))
    }

    /// The name of the limit that it is about.
    fn limit(&self) -> Option<&'static str> {
        match self {
            ServeError::TooManyRequests { .. } => Some("rate"),
            ServeError::TooManyOwnStreams => Some("streams-per-address"),
            ServeError::TooManyStreams => Some("streams"),
            ServeError::TooManyOwnWaiting => Some("waiting-per-address"),
            ServeError::TooManyWaiting => Some("waiting"),
            ServeError::TooManyAtATime => Some("requests"),
            ServeError::TooManyOwnWrites { .. } => Some("writes-per-address"),
            ServeError::TooManyWrites => Some("writes"),
            ServeError::BodyTooLarge { .. } => Some("body"),
            ServeError::UrlTooLong { .. } => Some("url"),
            ServeError::TookTooLong(_) => Some("time"),
            _ => None,
        }
    }

    /// States what the client may do about it, in the headers of an answer of any form. Damage is
    /// logged, and what a limit refuses is counted.
    pub fn state(&self, headers: &mut HeaderMap) {
        if let ServeError::Store(error @ StoreError::Damaged { .. }) = self {
            tracing::error!(%error, "cannot be served");
        }
        if let Some(limit) = self.limit() {
            metrics::counter!("plc_http_refused_total", "limit" => limit).increment(1);
        }
        headers.insert(header::CACHE_CONTROL, answer::NO_STORE);
        match self.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, answer::METHODS);
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let wait = match self {
                    ServeError::TooManyRequests { retry_after }
                    | ServeError::TooManyOwnWrites { retry_after } => {
                        answer::retry_after(*retry_after)
                    }
                    _ => answer::RETRY_AFTER,
                };
                headers.insert(header::RETRY_AFTER, wait);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, answer::RETRY_AFTER);
            }
            StatusCode::UPGRADE_REQUIRED => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
            _ => {}
        }
    }
}

impl IntoResponse for ServeError {
    /// The answer: `{"message": …}` with the status that fits. The error goes with it, for the
    /// middleware that counts answers or gives them another form.
    fn into_response(self) -> Answer {
        let mut body = b"{\"message\":".to_vec();
        write_string(&self.to_string(), &mut body);
        body.push(b'}');
        let mut answer = answer::json(self.status(), body);
        self.state(answer.headers_mut());
        answer.extensions_mut().insert(self);
        answer
    }
}
