//! What a resolution is asked for: the DID, the version and the form.

use std::time::Duration;

use did_plc::{Did, Timestamp};

use crate::serve::extract::RequestHead;
use crate::serve::query::{parameter, parse_time};
use url::form_urlencoded;

use super::media_type::MediaType;
use super::result::Failure;

/// A resolution that is asked for.
pub struct Asked {
    /// The identity.
    pub did: Did,
    /// Which version of it.
    pub wanted: Wanted,
    /// In which form.
    pub media_type: MediaType,
    /// Whether URLs in the document are to be whole.
    pub expand_relative_urls: bool,
    /// Whether it is to be fetched anew.
    pub no_cache: bool,
}

/// The options that there are, and what the server itself is told in a query.
const OPTIONS: [&str; 5] = ["versionId", "versionTime", "expandRelativeUrls", "noCache", "cid"];

impl Asked {
    /// # Errors
    ///
    /// What cannot be resolved, or not like this.
    pub fn read(head: &RequestHead, did: &str) -> Result<Asked, Failure> {
        let media_type =
            MediaType::wanted(&head.headers).ok_or(Failure::RepresentationNotSupported)?;
        let (did, query) = (parse_did(did)?, &head.query);
        let mut names = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
        if let Some(unknown) = names.find(|name| !OPTIONS.contains(&&**name)) {
            let detail = format!("`{unknown}` is no option that is supported here");
            return Err(Failure::FeatureNotSupported(detail));
        }
        Ok(Asked {
            did,
            wanted: Wanted::read(query)?,
            media_type,
            expand_relative_urls: switch(query, "expandRelativeUrls")?,
            no_cache: switch(query, "noCache")?,
        })
    }
}

/// An option that is on or off.
fn switch(query: &str, name: &'static str) -> Result<bool, Failure> {
    match parameter(query, name)?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Failure::InvalidOptions(format!("`{name}` is true or false"))),
    }
}

/// A did:plc, or why it is none that is resolved here.
fn parse_did(text: &str) -> Result<Did, Failure> {
    let (text, is_url) = match text.find(['/', '?', '#']) {
        Some(end) => (&text[..end], true),
        None => (text, false),
    };
    match parse_bare_did(text) {
        Ok(did) if is_url => Err(Failure::FeatureNotSupported(format!(
            "DID URLs are not dereferenced here; resolve {did}, and look for the rest in its document"
        ))),
        parsed => parsed,
    }
}

fn parse_bare_did(text: &str) -> Result<Did, Failure> {
    let (method, id) = text
        .strip_prefix("did:")
        .and_then(|rest| rest.split_once(':'))
        .ok_or(Failure::InvalidDid)?;
    let is_method = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:%".contains(&byte);
    let is_escape = |rest: &str| {
        rest.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    if method.is_empty()
        || id.is_empty()
        || !method.bytes().all(is_method)
        || !id.bytes().all(is_id)
        || !id.split('%').skip(1).all(is_escape)
    {
        return Err(Failure::InvalidDid);
    }
    if method != "plc" {
        return Err(Failure::MethodNotSupported);
    }
    text.parse().map_err(|_| Failure::InvalidDid)
}

/// Which version is wanted.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The one in force.
    Newest,
    /// The one of the operation with this CID.
    Id(String),
    /// The one that was in force then.
    Time(Timestamp),
}

impl Wanted {
    fn read(query: &str) -> Result<Wanted, Failure> {
        match (parameter(query, "versionId")?, parameter(query, "versionTime")?) {
            (None, None) => Ok(Wanted::Newest),
            (Some(id), None) => Ok(Wanted::Id(id.into_owned())),
            (None, Some(time)) => {
                let whole = time.len() >= "2025-01-01T00:00:00Z".len() && time.ends_with('Z');
                let parsed = parse_time(&time).filter(|_| whole).ok_or_else(|| {
                    let expected = "`versionTime` is a time in UTC such as 2025-01-01T00:00:00Z";
                    Failure::InvalidOptions(expected.to_owned())
                })?;
                // Times are shown in whole seconds: the one that is shown leads to what it is of.
                let rest = if time.contains('.') { 0 } else { 999 };
                Ok(Wanted::Time(parsed + Duration::from_millis(rest)))
            }
            (Some(_), Some(_)) => Err(Failure::InvalidOptions(
                "`versionId` and `versionTime` exclude each other".to_owned(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dids_of_other_methods_are_told_from_what_is_none() {
        for text in ["did:web:example.com", "did:key:z6Mk", "did:web:localhost%3A80", "did:web:%C3"]
        {
            assert!(matches!(parse_did(text), Err(Failure::MethodNotSupported)), "{text}");
        }
        for text in [
            "",
            "did",
            "did:",
            "did:plc:",
            "did:plc:short",
            "did:PLC:x",
            "did:a:b c",
            "x",
            "%zz",
            "did:web:%zz",
            "did:web:a%3",
        ] {
            assert!(matches!(parse_did(text), Err(Failure::InvalidDid)), "{text}");
        }
        assert!(parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz").is_ok());
        for rest in ["#atproto", "?service=atproto_pds", "/path", "/"] {
            let url = format!("did:plc:ewvi7nxzyoun6zhxrhs64oiz{rest}");
            assert!(matches!(parse_did(&url), Err(Failure::FeatureNotSupported(_))), "{url}");
        }
    }

    #[test]
    fn versions_are_wanted_by_id_or_by_time() {
        let time = |text: &str| Wanted::Time(text.parse().unwrap());
        assert_eq!(Wanted::read("").unwrap(), Wanted::Newest);
        assert_eq!(Wanted::read("versionId=b").unwrap(), Wanted::Id("b".into()));
        // The whole second that is named, or the very millisecond.
        for (asked, until) in [
            ("2025-01-01T00:00:00Z", "2025-01-01T00:00:00.999Z"),
            ("2025-01-01T00:00:00.0Z", "2025-01-01T00:00:00.000Z"),
            ("2025-01-01T00:00:00.1239Z", "2025-01-01T00:00:00.123Z"),
        ] {
            assert_eq!(Wanted::read(&format!("versionTime={asked}")).unwrap(), time(until));
        }
        for query in [
            "versionId=b&versionTime=2025-01-01T00:00:00Z",
            "versionTime=2025",
            "versionTime=soon",
            "versionTime=2025-01-01T00:00:00+01:00",
            "versionId=b&versionId=c",
        ] {
            assert!(matches!(Wanted::read(query), Err(Failure::InvalidOptions(_))), "{query}");
        }
    }
}
