//! What somebody may mean by a text: people paste what they have.

use std::borrow::Cow;

use did_plc::{Did, Timestamp};

use crate::serve::query::{decimal, parse_time};

/// Characters of a DID.
const DID_LENGTH: usize = "did:plc:".len() + 24;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sought<'a> {
    /// Nothing.
    Nothing,
    /// An identity, by its DID: alone, in the address of a profile or a record, in a line of a log.
    Identity(Did),
    /// An operation, by its sequence number.
    Number(i64),
    /// What happened from a time on.
    Since(Timestamp),
    /// Whoever claims this as a handle, a host or a key.
    Claim(Cow<'a, str>),
}

impl Sought<'_> {
    /// What a text means.
    pub fn of(text: &str) -> Sought<'_> {
        let text = text.trim();
        if text.is_empty() {
            Sought::Nothing
        } else if let Some(did) = find_did(text) {
            Sought::Identity(did)
        } else if let Some(number) = number(text) {
            Sought::Number(number)
        } else if let Some(time) = time(text) {
            Sought::Since(time)
        } else if let Some(handle) = handle(text) {
            Sought::Claim(format!("at://{handle}").into())
        } else {
            Sought::Claim(text.into())
        }
    }
}

/// The first DID in a text.
fn find_did(text: &str) -> Option<Did> {
    text.match_indices("did:plc:").find_map(|(at, _)| text.get(at..at + DID_LENGTH)?.parse().ok())
}

/// A number as people write it: `64,017,343`, `#64017343`.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('#').unwrap_or(text);
    match digits.contains(',') {
        true => decimal(&digits.replace(',', "")),
        false => decimal(digits),
    }
}

/// A day, or a time of one. What is only a year is a number.
fn time(text: &str) -> Option<Timestamp> {
    text.starts_with(|first: char| first.is_ascii_digit()).then(|| parse_time(text)).flatten()
}

/// The handle in the address of a profile or of a post (`https://…/profile/HANDLE/…`), or in that of a record
/// (`at://HANDLE/…`).
fn handle(text: &str) -> Option<&str> {
    let address = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let actor = match address {
        Some(address) => address.split_once("/profile/")?.1,
        None => text.strip_prefix("at://")?,
    };
    let end = actor.find(['/', '?', '#']).unwrap_or(actor.len());
    // An identity can claim any text: what is no name of a domain is looked for as it is.
    let is_name =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    Some(&actor[..end]).filter(|actor| !actor.is_empty() && is_name(actor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_did_is_found_wherever_it_stands() {
        let did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        for text in [
            did,
            "at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3k",
            "https://example.com/profile/did:plc:ewvi7nxzyoun6zhxrhs64oiz?x=y",
            "did:plc:short and did:plc:ewvi7nxzyoun6zhxrhs64oiz",
            "did:plc:did:plc:ewvi7nxzyoun6zhxrhs64oiz",
        ] {
            assert_eq!(Sought::of(text), Sought::Identity(did.parse().unwrap()), "{text}");
        }
        for text in ["alice.example.com", "did:plc:éééééééééééééééé", "did:plc:"] {
            assert_eq!(Sought::of(text), Sought::Claim(text.into()), "{text}");
        }
        assert_eq!(Sought::of(" "), Sought::Nothing);
    }

    #[test]
    fn people_paste_what_they_have() {
        for text in [
            "https://bsky.app/profile/alice.example.com",
            "https://bsky.app/profile/alice.example.com/post/3kabc",
            "http://other.example/profile/alice.example.com?x=y",
            "at://alice.example.com",
            "at://alice.example.com/app.bsky.feed.post/3k",
        ] {
            assert_eq!(Sought::of(text), Sought::Claim("at://alice.example.com".into()), "{text}");
        }
        for text in
            ["@alice.example.com", "https://pds.example.com", "did:key:zQ3", "at://<i>a</i>"]
        {
            assert_eq!(Sought::of(text), Sought::Claim(text.into()), "{text}");
        }
        for text in ["64017343", "#64017343", "64,017,343", " 64017343\n"] {
            assert_eq!(Sought::of(text), Sought::Number(64_017_343), "{text}");
        }
        for text in ["2024-01-31", "2024-01-31T00:00:00Z", "2024-01-31 00:00"] {
            let time = "2024-01-31T00:00:00.000Z".parse().unwrap();
            assert_eq!(Sought::of(text), Sought::Since(time), "{text}");
        }
    }
}
