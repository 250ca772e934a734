//! The body of a submission, read as the directory reads one.

use std::error::Error;

use axum::body::Body;
use did_plc::entry::without_mark;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::super::error::ServeError;
use super::super::header_list::elements;

/// Bytes of a body: the directory's limit, some twenty times what an operation takes.
const LONGEST: usize = 100 << 10;
/// What the directory takes a body for that is not JSON by its type, or empty.
const NOTHING: &str = "{}";

/// The text of a body.
///
/// # Errors
///
/// When it is too long, breaks off, or is written in a way that is not read here.
pub async fn read(headers: &HeaderMap, body: Body) -> Result<String, ServeError> {
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
    let body = Limited::new(body, LONGEST).collect().await.map_err(|error| refused(&*error))?;
    let body = body.to_bytes();
    match without_mark(&body) {
        body if is_json && !body.is_empty() => Ok(String::from_utf8_lossy(body).into_owned()),
        _ => Ok(NOTHING.to_owned()),
    }
}

fn refused(error: &(dyn Error + Send + Sync + 'static)) -> ServeError {
    match error.is::<LengthLimitError>() {
        true => ServeError::BodyTooLarge { limit: LONGEST },
        false => ServeError::BodyBroken,
    }
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
        let read = read(&headers.collect(), Body::from(body)).await;
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
        for (name, value) in [
            (header::CONTENT_TYPE, "application/json; charset=utf-16"),
            (header::CONTENT_ENCODING, "gzip"),
        ] {
            let headers = [json[0].clone(), (name, value)];
            let headers: Vec<_> = match headers[1].0 == headers[0].0 {
                true => headers[1..].to_vec(),
                false => headers.to_vec(),
            };
            assert_eq!(read_of(&headers, b"{}".to_vec()).await, Err(415), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn a_body_has_at_most_100_kib() {
        let json = [(header::CONTENT_TYPE, "application/json")];
        assert!(read_of(&json, vec![b' '; LONGEST]).await.is_ok());
        assert_eq!(read_of(&json, vec![b' '; LONGEST + 1]).await, Err(413));
    }
}
