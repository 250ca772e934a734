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
    /// `/1.0/identifiers/{did}`, decoded, and any text.
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

impl Route<'_> {
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
            ("_health", "") => Route::Health,
            ("_ready", "") => Route::Ready,
            ("_audit", rest) => Route::audit(rest),
            ("1.0", rest) if rest.starts_with("identifiers/") => {
                let segment = &rest["identifiers/".len()..];
                decode(segment).map_or(Route::Undecodable(segment), Route::Resolution)
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
            ("/export", Route::Export),
            ("/export/", Route::Export),
            ("/export/stream", Route::Stream),
            ("/_health", Route::Health),
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
        }
    }
}
