//! Answers, and the headers that they have in common.

use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::reads::Freshness;
use did_plc::Timestamp;

/// An answer: every body is in memory before it is sent.
pub type Answer = axum::response::Response;

/// `application/json`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
/// A DID document.
pub const DID_DOCUMENT: HeaderValue =
    HeaderValue::from_static("application/did+ld+json; charset=utf-8");
/// A DID document without a context.
pub const PLAIN_DID_DOCUMENT: HeaderValue = HeaderValue::from_static("application/did+json");
/// What the directory says to an operation that it has taken.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// An export, whose type the directory sends without a charset.
pub const JSON_LINES: HeaderValue = HeaderValue::from_static("application/jsonlines");

/// For what may be kept but has to be asked about again each time: an identity can change at any
/// time, and asking costs a 304.
pub const REVALIDATE: HeaderValue = HeaderValue::from_static("public, no-cache");
/// For what is true only now.
pub const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Seconds after which a client that was sent away for now may come back: about what a database
/// takes to restart, and often enough while the log is being read for the first time.
pub const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");
/// What can be done with every resource.
pub const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// Stands for all there are.
pub const ANY: HeaderValue = HeaderValue::from_static("*");
const VARY: HeaderValue = HeaderValue::from_static("accept-encoding");
const PLC_SEQUENCE: HeaderName = HeaderName::from_static("plc-sequence");
const PLC_AS_OF: HeaderName = HeaderName::from_static("plc-as-of");

/// As many headers as an answer ever has, so that their table is made once.
const HEADERS: usize = 15;
/// The end of what an HTTP date can express, in milliseconds since 1970: the year 10000.
const LAST_HTTP_DATE: i64 = 253_402_300_800_000;

/// An answer of this type.
pub fn body(status: StatusCode, media_type: HeaderValue, body: impl Into<Body>) -> Answer {
    let mut answer = empty(status);
    *answer.body_mut() = body.into();
    answer.headers_mut().insert(header::CONTENT_TYPE, media_type);
    answer
}

/// An answer in JSON.
pub fn json(status: StatusCode, json: Vec<u8>) -> Answer {
    body(status, JSON, json)
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    *answer.headers_mut() = HeaderMap::with_capacity(HEADERS);
    answer
}

/// The headers of what a cache may keep. They are on a 304 as well.
pub fn cacheable(headers: &mut HeaderMap, etag: HeaderValue, modified: Option<Timestamp>) {
    headers.insert(header::ETAG, etag);
    headers.insert(header::CACHE_CONTROL, REVALIDATE);
    headers.insert(header::VARY, VARY);
    if let Some(modified) = modified.and_then(http_date) {
        headers.insert(header::LAST_MODIFIED, modified);
    }
}

/// Whole seconds, upwards: whoever waits for so long is not too early.
pub fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// The value of `Retry-After`.
pub fn retry_after(time: Duration) -> HeaderValue {
    HeaderValue::from(seconds(time).max(1))
}

/// A header from text that was put together here: always visible ASCII.
pub fn value(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or(const { HeaderValue::from_static("") })
}

/// The same without a copy.
pub fn owned_value(text: Vec<u8>) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text))
        .unwrap_or(const { HeaderValue::from_static("") })
}

fn http_date(time: Timestamp) -> Option<HeaderValue> {
    let millis = time.millis();
    if !(0..LAST_HTTP_DATE).contains(&millis) {
        return None;
    }
    let date = UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs());
    Some(owned_value(httpdate::fmt_http_date(date).into_bytes()))
}

/// States how fresh an answer is: `PLC-Sequence`, the upstream's sequence number up to which every operation is
/// in the answer, and `PLC-As-Of`, the time up to which.
pub fn state_freshness(freshness: Freshness, headers: &mut HeaderMap) {
    let mut number = itoa::Buffer::new();
    headers.insert(PLC_SEQUENCE, value(number.format(freshness.sequence).as_bytes()));
    if let Some(as_of) = freshness.as_of {
        headers.insert(PLC_AS_OF, value(&as_of.to_ascii()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_as_long_as_is_said_is_not_too_early() {
        for (millis, value) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2")] {
            assert_eq!(retry_after(Duration::from_millis(millis)), value);
        }
    }

    #[test]
    fn times_that_http_cannot_express_are_left_out() {
        let date = |text: &str| http_date(text.parse().unwrap());
        assert_eq!(date("2022-11-17T00:35:16.391Z").unwrap(), "Thu, 17 Nov 2022 00:35:16 GMT");
        assert_eq!(date("9999-12-31T23:59:59.999Z").unwrap(), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(date("1969-12-31T23:59:59.999Z"), None);
        assert_eq!(date("0000-01-01T00:00:00.000Z"), None);
    }
}
