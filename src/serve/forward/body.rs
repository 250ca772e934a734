//! The body of a submission, read as the directory reads one.

use axum::body::Body;
use bytes::BytesMut;
use did_plc::entry::without_mark;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::super::error::ServeError;
use super::super::header_list::elements;

/// How much longer than its DAG-CBOR the JSON of an operation may be: six times where every character is written as
/// `\u0001`, and something for white space. Of all requests that may be answered at a time (4,096), each can hold a body:
/// with the directory's limit of 4,000 bytes 131 MB in all.
const JSON_FACTOR: usize = 8;
/// Bytes of a body that are read beyond that and forgotten: whoever is still sending does not read the answer.
const FORGOTTEN: usize = 1 << 20;
/// What the directory takes a body for that is not JSON by its type, or empty.
const NOTHING: &str = "{}";

/// The text of a body that may be an operation of so many bytes.
///
/// # Errors
///
/// When it is too long, breaks off, or is written in a way that is not read here.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    operation_bytes: usize,
) -> Result<String, ServeError> {
    let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap_or("?")).trim();
    let encoding = text(header::CONTENT_ENCODING);
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(ServeError::UnsupportedBody(format!("content encoding \"{encoding}\"")));
    }
    let mut media_type = elements(text(header::CONTENT_TYPE), ';');
    let is_json =
        media_type.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let charset = media_type.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("charset").then(|| value.trim_matches('"'))
    });
    if let Some(charset) = charset.filter(|name| is_json && !name.eq_ignore_ascii_case("utf-8")) {
        return Err(ServeError::UnsupportedBody(format!("charset \"{charset}\"")));
    }
    let body = bounded(body, operation_bytes.saturating_mul(JSON_FACTOR)).await?;
    match without_mark(&body) {
        body if is_json && !body.is_empty() => Ok(String::from_utf8_lossy(body).into_owned()),
        _ => Ok(NOTHING.to_owned()),
    }
}

/// A body of so many bytes at most.
async fn bounded(body: Body, limit: usize) -> Result<BytesMut, ServeError> {
    let mut frames = Limited::new(body, limit.saturating_add(FORGOTTEN));
    let (mut body, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = frames.frame().await {
        let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
            true => ServeError::BodyTooLarge { limit },
            false => ServeError::BodyBroken,
        })?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        length += data.len();
        if length <= limit {
            body.extend_from_slice(data);
        }
    }
    if length > limit {
        return Err(ServeError::BodyTooLarge { limit });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    /// What is read of a body with these headers, or the status of the refusal.
    async fn read_of(headers: &[(HeaderName, &str)], body: Vec<u8>) -> Result<String, u16> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        let read = read(&headers.collect(), Body::from(body), 1_000).await;
        read.map_err(|error| error.status().as_u16())
    }

    #[tokio::test]
    async fn a_body_is_json_in_utf_8_or_nothing() {
        let json = [(header::CONTENT_TYPE, "application/json")];
        for (headers, body, text) in [
            (&json[..], "[1]", "[1]"),
            (&json, "", "{}"),
            (&json, "\u{feff}[1]", "[1]"),
            (&[], "[1]", "{}"),
            (&[(header::CONTENT_TYPE, "text/plain")], "[1]", "{}"),
            (&[(header::CONTENT_TYPE, "application/ld+json")], "[1]", "{}"),
            (&[(header::CONTENT_TYPE, "Application/JSON; charset=\"UTF-8\"")], "[1]", "[1]"),
        ] {
            assert_eq!(read_of(headers, body.into()).await.as_deref(), Ok(text), "{headers:?}");
        }
        assert_eq!(read_of(&json, b"[\"\xff\"]".to_vec()).await.unwrap(), "[\"\u{fffd}\"]");
        for headers in [
            &[(header::CONTENT_TYPE, "application/json; charset=utf-16")][..],
            &[json[0].clone(), (header::CONTENT_ENCODING, "gzip")],
        ] {
            assert_eq!(read_of(headers, b"{}".to_vec()).await, Err(415), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_not_much_longer_than_an_operation() {
        let json = [(header::CONTENT_TYPE, "application/json")];
        assert!(read_of(&json, vec![b' '; 8_000]).await.is_ok());
        assert_eq!(read_of(&json, vec![b' '; 8_001]).await, Err(413));
    }
}
