//! Entity tags: what a body was made from, so that a client that has it need not get it again.

use http::{HeaderMap, HeaderValue, header};

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
