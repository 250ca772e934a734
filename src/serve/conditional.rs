//! Entity tags: what a body was made from, so that a client that has it need not get it again.

use did_plc::{Cid, Timestamp};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::answer::{self, Answer};
use super::error::ServeError;

/// Whether the client holds what this weak tag names (`If-None-Match`, RFC 9110 13.1.2).
///
/// Tags are compared weakly, and never contain a comma or a quotation mark here.
pub fn client_has(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let ours = opaque(etag.as_bytes());
    request.get_all(header::IF_NONE_MATCH).iter().any(|list| {
        list.as_bytes()
            .split(|&byte| byte == b',')
            .map(<[u8]>::trim_ascii)
            .any(|tag| tag == b"*" || opaque(tag) == ours)
    })
}

/// The quoted part of a tag.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// What is known of a body before it is made.
pub struct Representation {
    /// What it is known by.
    pub etag: HeaderValue,
    /// When what it is made from last changed.
    pub modified: Option<Timestamp>,
    /// Its type.
    pub media_type: HeaderValue,
}

impl Representation {
    /// The answer with the body, or 304 without making the body when the client has it.
    ///
    /// # Errors
    ///
    /// Those of making the body.
    pub fn answer(
        self,
        request: &HeaderMap,
        body: impl FnOnce() -> Result<Vec<u8>, ServeError>,
    ) -> Result<Answer, ServeError> {
        let mut answer = if client_has(request, &self.etag) {
            answer::empty(StatusCode::NOT_MODIFIED)
        } else {
            answer::body(StatusCode::OK, self.media_type, body()?)
        };
        answer::cacheable(answer.headers_mut(), self.etag, self.modified);
        Ok(answer)
    }
}

/// `W/"name-cid-number-…"`. Weak, since one tag stands for the body in every content coding.
pub fn etag(name: &[u8], cid: &Cid, numbers: &[usize]) -> HeaderValue {
    let mut tag = Vec::with_capacity(96);
    tag.extend_from_slice(b"W/\"");
    tag.extend_from_slice(name);
    tag.push(b'-');
    tag.extend_from_slice(&cid.to_ascii());
    for &number in numbers {
        tag.push(b'-');
        tag.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }
    tag.push(b'"');
    answer::owned_value(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly() {
        let etag = HeaderValue::from_static("W/\"doc-bafy\"");
        for (sent, has) in [
            (&["W/\"doc-bafy\""][..], true),
            (&["\"doc-bafy\""], true),
            (&["*"], true),
            (&["\"other\", W/\"doc-bafy\""], true),
            (&["\"other\",W/\"doc-bafy\",\"more\""], true),
            (&["\"other\"", "\"doc-bafy\""], true),
            (&["\"doc-baf\""], false),
            (&["doc-bafy"], false),
            (&["w/\"doc-bafy\""], false),
            (&[""], false),
            (&[], false),
        ] {
            let mut request = HeaderMap::new();
            for value in sent {
                request.append(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            }
            assert_eq!(client_has(&request, &etag), has, "{sent:?}");
        }
    }
}
