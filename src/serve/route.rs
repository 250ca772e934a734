//! Which resource a path names.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// What is shown of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// `/{did}`: the DID document.
    Document,
    /// `/{did}/data`: what the document is made from.
    Data,
    /// `/{did}/log`: its operations without the nullified ones.
    Log,
    /// `/{did}/log/audit`: all its operations, with CID, time and flag.
    Audit,
    /// `/{did}/log/last`: its newest operation.
    Last,
    /// `/{did}/log/verdicts`: who signed each operation and what became of it.
    Verdicts,
}

/// A resource of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/`
    Index,
    /// `/explore`: an identity is searched for.
    Search,
    /// `/explore/{did}`: the page of an identity. The DID is decoded, and any text.
    Explore(Cow<'a, str>),
    /// `/_style.css`
    Style,
    /// `/_icon.svg`
    Icon,
    /// `/_health`
    Health,
    /// `/_ready`
    Ready,
    /// `/export`
    Export,
    /// `/export/stream`
    Stream,
    /// `/_audit/divergences`
    Divergences,
    /// `/_audit/divergences/{id}/ours` and `…/theirs`: one side's entries
    Evidence {
        /// Number of the record.
        id: &'a str,
        /// Theirs, or ours.
        theirs: bool,
    },
    /// `/_audit/refused`
    Refused,
    /// `/_lookup`: who claims a handle, a host or a key
    Lookup,
    /// `/1.0/identifiers/{did}`: any text, decoded where it can be. What cannot is no DID.
    Resolution(Cow<'a, str>),
    /// `/{did}` and what is below it. The DID is decoded, and any text.
    Identity {
        /// The DID.
        did: Cow<'a, str>,
        /// What of it.
        view: View,
    },
    /// A segment that cannot be decoded (`%zz`), as it was written.
    Undecodable(&'a str),
    /// Nothing.
    Unknown,
}

/// The names by which requests are counted, by [`Route::number`].
pub const NAMES: [&str; 20] = [
    "/",
    "/explore",
    "/explore/{did}",
    "/_style.css",
    "/_icon.svg",
    "/_health",
    "/_ready",
    "/export",
    "/export/stream",
    "/{did}",
    "/{did}/data",
    "/{did}/log",
    "/{did}/log/audit",
    "/{did}/log/last",
    "/{did}/log/verdicts",
    "/_audit/divergences",
    "/_audit/divergences/{id}/{side}",
    "/_audit/refused",
    "/1.0/identifiers/{did}",
    "/_lookup",
];

impl Route<'_> {
    /// Its place in [`NAMES`]; beyond it for what is no resource.
    pub fn number(&self) -> usize {
        match self {
            Route::Index => 0,
            Route::Search => 1,
            Route::Explore(_) => 2,
            Route::Style => 3,
            Route::Icon => 4,
            Route::Health => 5,
            Route::Ready => 6,
            Route::Export => 7,
            Route::Stream => 8,
            Route::Identity { view: View::Document, .. } => 9,
            Route::Identity { view: View::Data, .. } => 10,
            Route::Identity { view: View::Log, .. } => 11,
            Route::Identity { view: View::Audit, .. } => 12,
            Route::Identity { view: View::Last, .. } => 13,
            Route::Identity { view: View::Verdicts, .. } => 14,
            Route::Divergences => 15,
            Route::Evidence { .. } => 16,
            Route::Refused => 17,
            Route::Resolution(_) => 18,
            Route::Lookup => 19,
            Route::Undecodable(_) | Route::Unknown => NAMES.len(),
        }
    }

    /// The resource at `path`, which begins with a slash and may end with one. Names are compared
    /// as written; only the DID is decoded.
    pub fn of(path: &str) -> Route<'_> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        match (first, rest) {
            ("", "") => Route::Index,
            ("export", "") => Route::Export,
            ("export", "stream") => Route::Stream,
            ("explore", "") => Route::Search,
            ("explore", did) if !did.contains('/') => match decode(did) {
                Some(did) => Route::Explore(did),
                None => Route::Undecodable(did),
            },
            ("_style.css", "") => Route::Style,
            ("_icon.svg", "") => Route::Icon,
            ("_health", "") => Route::Health,
            ("_ready", "") => Route::Ready,
            ("_lookup", "") => Route::Lookup,
            ("_audit", rest) => Route::audit(rest),
            ("1.0", rest) if rest == "identifiers" || rest.starts_with("identifiers/") => {
                let did = rest.split_once('/').map_or("", |(_, did)| did);
                Route::Resolution(decode(did).unwrap_or(did.into()))
            }
            // What starts with an underscore is this server's own, now and later.
            (first, _) if first.is_empty() || first.starts_with('_') => Route::Unknown,
            (did, "") => Route::identity(did, View::Document),
            (did, "data") => Route::identity(did, View::Data),
            (did, "log") => Route::identity(did, View::Log),
            (did, "log/audit") => Route::identity(did, View::Audit),
            (did, "log/last") => Route::identity(did, View::Last),
            (did, "log/verdicts") => Route::identity(did, View::Verdicts),
            _ => Route::Unknown,
        }
    }

    fn audit(rest: &str) -> Route<'_> {
        match rest.split('/').collect::<Vec<_>>()[..] {
            ["divergences"] => Route::Divergences,
            ["divergences", id, "ours"] => Route::Evidence { id, theirs: false },
            ["divergences", id, "theirs"] => Route::Evidence { id, theirs: true },
            ["refused"] => Route::Refused,
            _ => Route::Unknown,
        }
    }

    fn identity(segment: &str, view: View) -> Route<'_> {
        match decode(segment) {
            Some(did) => Route::Identity { did, view },
            None => Route::Undecodable(segment),
        }
    }
}

/// JavaScript's `decodeURIComponent`: none for a `%` that two hexadecimal digits do not follow,
/// and for what is not UTF-8 afterwards.
fn decode(segment: &str) -> Option<Cow<'_, str>> {
    let bytes = segment.as_bytes();
    let is_escape = |at: usize| {
        bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    let escapes = memchr::memchr_iter(b'%', bytes);
    if !escapes.into_iter().all(is_escape) {
        return None;
    }
    percent_decode_str(segment).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(did: &str, view: View) -> Route<'_> {
        Route::Identity { did: did.into(), view }
    }

    #[test]
    fn paths_name_resources() {
        let did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        for (path, route) in [
            ("/", Route::Index),
            ("/explore", Route::Search),
            ("/explore/did%3Aplc%3aewvi7nxzyoun6zhxrhs64oiz", Route::Explore(did.into())),
            ("/explore/a/b", Route::Unknown),
            ("/explore/%zz", Route::Undecodable("%zz")),
            ("/_style.css", Route::Style),
            ("/_icon.svg", Route::Icon),
            ("/export", Route::Export),
            ("/export/", Route::Export),
            ("/export/stream", Route::Stream),
            ("/_health", Route::Health),
            ("/_lookup", Route::Lookup),
            ("/_health/", Route::Health),
            ("/_ready", Route::Ready),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz", identity(did, View::Document)),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz/", identity(did, View::Document)),
            ("/did%3Aplc%3aewvi7nxzyoun6zhxrhs64oiz/data", identity(did, View::Data)),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz/log", identity(did, View::Log)),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz/log/audit", identity(did, View::Audit)),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz/log/last/", identity(did, View::Last)),
            ("/favicon.ico", identity("favicon.ico", View::Document)),
            ("/a%2Fb%20%C3%A9", identity("a/b \u{e9}", View::Document)),
            ("/export/data", identity("export", View::Data)),
            (
                "/1.0/identifiers/did%3Aplc%3aewvi7nxzyoun6zhxrhs64oiz",
                Route::Resolution(did.into()),
            ),
            ("/1.0/identifiers/%zz", Route::Resolution("%zz".into())),
            ("/1.0/identifiers/a/b", Route::Resolution("a/b".into())),
            ("/1.0/identifiers/", Route::Resolution("".into())),
            ("/1.0/identities", Route::Unknown),
            ("/%zz", Route::Undecodable("%zz")),
            ("/%C3/log", Route::Undecodable("%C3")),
            ("/abc%4", Route::Undecodable("abc%4")),
            ("/_other", Route::Unknown),
            ("/_health/more", Route::Unknown),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz/log/first", Route::Unknown),
            ("/did:plc:ewvi7nxzyoun6zhxrhs64oiz//log", Route::Unknown),
            ("//", Route::Index),
            ("//log", Route::Unknown),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
            let counted = NAMES.get(route.number()).unwrap_or(&"other");
            if route != Route::Unknown && !path.contains(['%', '.']) {
                let shape = path.replace(did, "{did}");
                let shape = shape.trim_end_matches('/');
                assert!(shape.is_empty() || shape == *counted || shape == "/export/data", "{path}");
            }
        }
    }
}
