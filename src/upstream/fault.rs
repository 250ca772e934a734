//! What can go wrong between us and an upstream.

use std::time::Duration;

/// One outcome for each way in which an upstream fails us. None of them stops anything: the caller
/// counts it under its [`kind`](UpstreamFault::kind), logs its sentence, waits and goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFault {
    /// No connection, or it broke before the answer began.
    #[error("the upstream cannot be reached: {reason}")]
    Unreachable { reason: String },
    /// It accepted the request and then said nothing (more) for this long.
    #[error("the upstream said nothing for {after:?}")]
    Silent { after: Duration },
    /// The answer kept coming, too slowly to ever be whole.
    #[error("the upstream did not finish its answer within {after:?}")]
    TooSlow { after: Duration },
    /// Redirected in circles, or too often.
    #[error("the upstream redirects without end")]
    RedirectLoop,
    /// The body goes on beyond every limit.
    #[error("the upstream's answer is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    /// The body ended before it was complete, or its compression is broken.
    #[error("the upstream's answer was cut: {reason}")]
    Truncated { reason: String },
    /// 429.
    #[error("the upstream asks for fewer requests")]
    RateLimited { retry_after: Option<Duration> },
    /// 5xx.
    #[error("the upstream answered {status}")]
    ServerError { status: u16, retry_after: Option<Duration> },
    /// Any other status that is no answer to the question.
    #[error("the upstream answered {status}, which makes no sense here")]
    UnexpectedStatus { status: u16 },
    /// 200, but what came is a web page or something else: not one line is a JSON object.
    #[error("what the upstream sent is not an export; it begins {beginning:?}")]
    NotAnExport { beginning: String },
    /// 200, but what came for an audit log is no JSON array.
    #[error("what the upstream sent is not an audit log: {reason}")]
    NotAnAuditLog { reason: String },
    /// A page of lines, none of which has a sequence number above the one asked for: asking again
    /// would bring the same page.
    #[error("the upstream's page after {after} does not lead any further")]
    NotAdvancing { after: i64 },
    /// A sequence number far beyond everything before it: it is asked for again before it is believed,
    /// since everything below it would be passed over.
    #[error("the upstream states the number {stated} after {after}, which is not plausible")]
    ImplausibleNumber { after: i64, stated: i64 },
    /// The upgrade to a WebSocket was refused: page instead.
    #[error("the upstream has no stream (it answered {status})")]
    NoStream { status: u16 },
    /// The cursor is above the upstream's last number: it has fewer operations than we hold.
    #[error("the upstream's last sequence number is below our cursor")]
    FutureCursor,
    /// Where the upstream gave us an operation it has another now, or none.
    #[error(
        "the upstream does not have the operation any more that it gave us as number {sequence}"
    )]
    GoneBack { sequence: i64 },
    /// Its export has something that its stream has not brought.
    #[error("the upstream's stream has left out what its export has after number {after}")]
    LeftOut { after: i64 },
    /// The cursor is too old for the stream: page until it is not.
    #[error("our cursor is too old for the upstream's stream")]
    OutdatedCursor,
    /// The upstream had more for us than we took.
    #[error("the upstream dropped us because we read its stream too slowly")]
    ConsumerTooSlow,
    /// Closed in order, for a reason of its own.
    #[error("the upstream closed the stream (code {code}, reason {reason:?})")]
    StreamClosed { code: u16, reason: String },
    /// The connection of the stream broke, or what came is not a WebSocket's.
    #[error("the stream broke: {reason}")]
    StreamBroken { reason: String },
    /// Not a frame, not even the answer to a ping.
    #[error("the stream is silent: no answer to a ping within {after:?}")]
    StreamSilent { after: Duration },
    /// A message above the limit.
    #[error("the stream sent a message larger than {limit} bytes")]
    MessageTooLarge { limit: usize },
}

impl UpstreamFault {
    /// The fault's name, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            UpstreamFault::Unreachable { .. } => "unreachable",
            UpstreamFault::Silent { .. } => "silent",
            UpstreamFault::TooSlow { .. } => "too-slow",
            UpstreamFault::RedirectLoop => "redirect-loop",
            UpstreamFault::BodyTooLarge { .. } => "body-too-large",
            UpstreamFault::Truncated { .. } => "truncated",
            UpstreamFault::RateLimited { .. } => "rate-limited",
            UpstreamFault::ServerError { .. } => "server-error",
            UpstreamFault::UnexpectedStatus { .. } => "unexpected-status",
            UpstreamFault::NotAnExport { .. } => "not-an-export",
            UpstreamFault::NotAnAuditLog { .. } => "not-an-audit-log",
            UpstreamFault::NotAdvancing { .. } => "not-advancing",
            UpstreamFault::ImplausibleNumber { .. } => "implausible-number",
            UpstreamFault::NoStream { .. } => "no-stream",
            UpstreamFault::FutureCursor => "future-cursor",
            UpstreamFault::GoneBack { .. } => "gone-back",
            UpstreamFault::LeftOut { .. } => "left-out",
            UpstreamFault::OutdatedCursor => "outdated-cursor",
            UpstreamFault::ConsumerTooSlow => "consumer-too-slow",
            UpstreamFault::StreamClosed { .. } => "stream-closed",
            UpstreamFault::StreamBroken { .. } => "stream-broken",
            UpstreamFault::StreamSilent { .. } => "stream-silent",
            UpstreamFault::MessageTooLarge { .. } => "message-too-large",
        }
    }

    /// How long the upstream asked us to stay away, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            UpstreamFault::RateLimited { retry_after }
            | UpstreamFault::ServerError { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
