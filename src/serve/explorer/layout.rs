//! What all pages have in common, and the answer that they are sent in.
//!
//! A page needs nothing but itself, one stylesheet and one icon of this server; its policy forbids
//! everything else, scripts above all.

use http::{HeaderName, HeaderValue, StatusCode, header};
use maud::{DOCTYPE, Markup, html};

use crate::serve::answer::{self, Answer};

/// Where the stylesheet is.
pub const STYLE_PATH: &str = "/_style.css";
/// Where the icon is.
pub const ICON_PATH: &str = "/_icon.svg";

const STYLE: &str = include_str!("style.css");
const ICON: &str = include_str!("icon.svg");

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);
/// Both are part of the program; an hour is how long an old look may stay after an update.
const AN_HOUR: HeaderValue = HeaderValue::from_static("public, max-age=3600");

const ROBOTS: &str = "User-agent: *\nAllow: /$\nDisallow: /\n";

/// A page with this title (plain text, already harmless) around this content. `searched` is what
/// stands in the search field.
pub fn page(title: &str, searched: &str, content: Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) }
                link rel="stylesheet" href=(STYLE_PATH);
                link rel="icon" type="image/svg+xml" href=(ICON_PATH);
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                header.top {
                    a.home href="/" { "plc-replica" }
                    form role="search" action="/explore" method="get" {
                        label.unseen for="q" { "A DID, a handle, a host, a key, a number or a date" }
                        input #q name="q" type="search" placeholder="did:plc:…, a handle or a host" value=(searched)
                            autocomplete="off" autocapitalize="none" spellcheck="false"
                            maxlength="2048";
                        button { "Open" }
                    }
                }
                main #content tabindex="-1" { (content) }
                footer {
                    p {
                        "plc-replica " (env!("CARGO_PKG_VERSION")) ", an independent replica of "
                        "the PLC directory. What is shown is what was signed: that a handle "
                        "belongs to an identity is a claim until its domain says the same."
                    }
                }
            }
        }
    }
    .into_string()
}

/// The answer with a page.
pub fn answer(status: StatusCode, page: String) -> Answer {
    let mut answer = answer::body(status, HTML, page);
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, answer::NO_STORE);
    harden(headers);
    answer
}

/// The answer with the stylesheet.
pub async fn style() -> Answer {
    asset(HeaderValue::from_static("text/css; charset=utf-8"), STYLE)
}

/// The answer with the icon.
pub async fn icon() -> Answer {
    asset(HeaderValue::from_static("image/svg+xml"), ICON)
}

/// What programs that follow every link are told: the status page alone is for them. Of identities there are tens of
/// millions, each with links to others (RFC 9309).
pub async fn robots() -> Answer {
    asset(HeaderValue::from_static("text/plain; charset=utf-8"), ROBOTS)
}

fn asset(media_type: HeaderValue, text: &'static str) -> Answer {
    let mut answer = answer::body(StatusCode::OK, media_type, text);
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, AN_HOUR);
    harden(headers);
    answer
}

fn harden(headers: &mut http::HeaderMap) {
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
