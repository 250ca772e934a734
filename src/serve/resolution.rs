//! `/1.0/identifiers/{did}`: DID Resolution v1.0 by its HTTP(S) binding, as a driver of the
//! Universal Resolver answers.
//!
//! The versions of a document are the operations that are in force. What was nullified was a
//! version once, and is none in hindsight: no time leads to it, and its CID is not found.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::plc::document::write_document;
use crate::plc::operation::Kind;
use crate::plc::{Cid, Did, Operation, Timestamp};
use crate::store::StoredOperation;

use super::answer::{self, Answer, Freshness};
use super::error::ServeError;
use super::query::{parameter, parse_time};
use super::read_through::{self, Outcome, wants_upstream};
use super::{Server, wait};

const RESULT: HeaderValue = HeaderValue::from_static("application/did-resolution");
const OLD_RESULT: HeaderValue =
    HeaderValue::from_static("application/ld+json;profile=\"https://w3id.org/did-resolution\"");
const DOCUMENT: HeaderValue = HeaderValue::from_static("application/did");
const OLD_DOCUMENT: HeaderValue = HeaderValue::from_static("application/did+ld+json");
/// What the names of errors begin with.
const NAMESPACE: &str = "https://www.w3.org/ns/did#";

/// What the client wants to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The whole result.
    Result,
    /// The same under the name that it had before.
    OldResult,
    /// The document alone.
    Document,
    /// The same under the name that it had before.
    OldDocument,
}

/// The result of a resolution.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resolution {
    did_document: Option<Box<RawValue>>,
    did_resolution_metadata: ResolutionMetadata,
    did_document_metadata: DocumentMetadata,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct ResolutionMetadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

/// An error object (RFC 9457).
#[derive(Serialize)]
struct Problem {
    r#type: String,
    title: &'static str,
    detail: String,
}

#[derive(Serialize, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct DocumentMetadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deactivated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_update: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_version_id: Option<String>,
}

/// Why nothing was resolved.
#[derive(Debug)]
enum Failure {
    InvalidDid,
    InvalidOptions(String),
    NotFound(String),
    RepresentationNotSupported,
    MethodNotSupported,
    /// What goes wrong with any request here.
    Internal(ServeError),
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::InvalidParameter(name) => {
                Failure::InvalidOptions(format!("`{name}` cannot be read, or is given twice"))
            }
            error => Failure::Internal(error),
        }
    }
}

/// Answers `GET /1.0/identifiers/{did}`; the DID may be any text.
pub async fn resolve(server: &Server, request: &HeaderMap, query: &str, did: &str) -> Answer {
    let form = Form::wanted(request);
    let mut read_through = None;
    let resolved = match form {
        Some(_) => find(server, request, query, did, &mut read_through).await,
        None => Err(Failure::RepresentationNotSupported),
    };
    let mut answer = match (resolved, form) {
        (Ok(version), Some(form)) => version.into_answer(form),
        (Err(failure), form) => failure.into_answer(form.unwrap_or(Form::Result)),
        // Without a form nothing was resolved.
        (Ok(_), None) => Failure::RepresentationNotSupported.into_answer(Form::Result),
    };
    let headers = answer.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    Freshness::now(&server.state.status).state(headers);
    if let Some(outcome) = read_through {
        outcome.state(headers);
    }
    answer
}

async fn find(
    server: &Server,
    request: &HeaderMap,
    query: &str,
    did: &str,
    outcome: &mut Option<Outcome>,
) -> Result<Version, Failure> {
    let did = parse_did(did)?;
    let wanted = Wanted::read(query)?;
    wait::for_operation(server, request, query, did).await?;
    let caught_up = server.state.status.caught_up();
    let store = &server.state.store;
    let mut history = store.history(&did).await.map_err(ServeError::from)?;
    if history.is_empty() || wants_upstream(request) {
        let (tried, theirs) = read_through::read(server, did).await;
        *outcome = tried;
        history = theirs.unwrap_or(history);
    }
    if history.is_empty() && !caught_up {
        return Err(Failure::Internal(ServeError::NotKnownYet(did)));
    }
    Version::choose(did, &history, &wanted)
}

/// A did:plc, or why it is none that is resolved here.
fn parse_did(text: &str) -> Result<Did, Failure> {
    let (method, id) = text
        .strip_prefix("did:")
        .and_then(|rest| rest.split_once(':'))
        .ok_or(Failure::InvalidDid)?;
    let is_method = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:%".contains(&byte);
    if method.is_empty()
        || id.is_empty()
        || !method.bytes().all(is_method)
        || !id.bytes().all(is_id)
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
enum Wanted {
    Newest,
    Id(String),
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
                Ok(Wanted::Time(parsed))
            }
            (Some(_), Some(_)) => Err(Failure::InvalidOptions(
                "`versionId` and `versionTime` exclude each other".to_owned(),
            )),
        }
    }
}

/// One version of an identity.
#[derive(Debug)]
struct Version {
    /// None when it was ended.
    document: Option<Box<RawValue>>,
    metadata: DocumentMetadata,
}

impl Version {
    fn choose(did: Did, history: &[StoredOperation], wanted: &Wanted) -> Result<Version, Failure> {
        let versions: Vec<&StoredOperation> =
            history.iter().filter(|operation| operation.nullified_by.is_none()).collect();
        let Some((first, last)) = versions.first().zip(versions.len().checked_sub(1)) else {
            return Err(Failure::NotFound(format!("{did} is not registered")));
        };
        let index = match wanted {
            Wanted::Newest => Some(last),
            Wanted::Id(id) => id
                .parse::<Cid>()
                .ok()
                .and_then(|cid| versions.iter().position(|version| version.cid() == cid)),
            // Times are shown in whole seconds: the one that is shown leads to what it is of.
            Wanted::Time(time) => {
                let second = |time: Timestamp| time.millis().div_euclid(1000);
                versions.iter().rposition(|version| second(version.created_at) <= second(*time))
            }
        };
        let index = index
            .ok_or_else(|| Failure::NotFound(format!("{did} has no such version in force")))?;
        let version = versions[index];
        let next = versions.get(index + 1);
        let damaged = |reason| Failure::Internal(ServeError::damaged(&did, &reason));
        let ended = Operation::read(&version.signed).map_err(damaged)?.kind() == Kind::Tombstone;
        Ok(Version {
            document: if ended { None } else { Some(document(did, version)?) },
            metadata: DocumentMetadata {
                created: Some(seconds(first.created_at)),
                updated: (index > 0).then(|| seconds(version.created_at)),
                deactivated: ended.then_some(true),
                version_id: Some(version.cid().to_string()),
                next_update: next.map(|next| seconds(next.created_at)),
                next_version_id: next.map(|next| next.cid().to_string()),
            },
        })
    }

    fn into_answer(self, form: Form) -> Answer {
        let status = match self.document {
            Some(_) => StatusCode::OK,
            None => StatusCode::GONE,
        };
        let (media_type, body) = match (form.media_type(), self.document) {
            (media_type, Some(document)) if form.is_document() => {
                (media_type, String::from(Box::<str>::from(document)).into_bytes())
            }
            (_, document) => {
                let content_type = document.as_ref().map(|_| form.content_type());
                let resolution = Resolution {
                    did_document: document,
                    did_resolution_metadata: ResolutionMetadata { content_type, error: None },
                    did_document_metadata: self.metadata,
                };
                (form.result_type(), render(&resolution))
            }
        };
        let mut answer = answer::body(status, media_type, body);
        answer.headers_mut().insert(header::CACHE_CONTROL, answer::REVALIDATE);
        answer
    }
}

fn document(did: Did, version: &StoredOperation) -> Result<Box<RawValue>, Failure> {
    let mut body = Vec::new();
    write_document(&did, &version.signed, &mut body)
        .map_err(|reason| Failure::Internal(ServeError::damaged(&did, &reason)))?;
    // What was written here is JSON in UTF-8.
    let text = String::from_utf8_lossy(&body).into_owned();
    RawValue::from_string(text)
        .map_err(|_| Failure::Internal(ServeError::NoSuchPath("document".to_owned())))
}

/// UTC without a fraction, as metadata have it.
fn seconds(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => text,
    }
}

fn render(resolution: &Resolution) -> Vec<u8> {
    // No map in it has keys that are not strings, the only way to fail.
    serde_json::to_vec(resolution).unwrap_or_default()
}

impl Failure {
    fn into_answer(self, form: Form) -> Answer {
        let (status, name, title, detail) = match self {
            Failure::InvalidDid => (
                StatusCode::BAD_REQUEST,
                "INVALID_DID",
                "Invalid DID",
                "expected did:plc: and 24 characters of a-z and 2-7".to_owned(),
            ),
            Failure::InvalidOptions(detail) => {
                (StatusCode::BAD_REQUEST, "INVALID_OPTIONS", "Invalid options", detail)
            }
            Failure::NotFound(detail) => (StatusCode::NOT_FOUND, "NOT_FOUND", "Not found", detail),
            Failure::RepresentationNotSupported => (
                StatusCode::NOT_ACCEPTABLE,
                "REPRESENTATION_NOT_SUPPORTED",
                "Representation not supported",
                "application/did-resolution and application/did are".to_owned(),
            ),
            Failure::MethodNotSupported => (
                StatusCode::NOT_IMPLEMENTED,
                "METHOD_NOT_SUPPORTED",
                "Method not supported",
                "did:plc is the only method here".to_owned(),
            ),
            Failure::Internal(error) => {
                let detail = error.to_string();
                let status = error.into_answer().status();
                (status, "INTERNAL_ERROR", "Internal error", detail)
            }
        };
        let r#type = format!("{NAMESPACE}{name}");
        let resolution = Resolution {
            did_document: None,
            did_resolution_metadata: ResolutionMetadata {
                content_type: None,
                error: Some(Problem { r#type, title, detail }),
            },
            did_document_metadata: DocumentMetadata::default(),
        };
        let mut answer = answer::body(status, form.result_type(), render(&resolution));
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, answer::NO_STORE);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        }
        answer
    }
}

impl Form {
    /// What the header `Accept` likes best of what there is; none when it excludes all of it.
    fn wanted(request: &HeaderMap) -> Option<Form> {
        let mut best: Option<(f32, Form)> = None;
        let mut stated = false;
        for value in request.get_all(header::ACCEPT) {
            for range in value.to_str().unwrap_or_default().split(',') {
                stated = true;
                let (form, quality) = Form::of_range(range);
                let better = best.is_none_or(|(so_far, _)| quality > so_far);
                if let Some(form) = form.filter(|_| better && quality > 0.0) {
                    best = Some((quality, form));
                }
            }
        }
        match best {
            Some((_, form)) => Some(form),
            None if stated => None,
            None => Some(Form::Result),
        }
    }

    /// The form that a media range names, and its quality.
    fn of_range(range: &str) -> (Option<Form>, f32) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut profile) = (1.0, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match &*name.to_ascii_lowercase() {
                "q" => quality = value.parse().unwrap_or(0.0),
                "profile" => profile = Some(value.trim_matches('"').to_owned()),
                _ => {}
            }
        }
        let form = match (&*media_type, profile.as_deref()) {
            ("application/did-resolution" | "*/*" | "application/*", _) => Some(Form::Result),
            ("application/ld+json", Some("https://w3id.org/did-resolution")) => {
                Some(Form::OldResult)
            }
            ("application/did", _) => Some(Form::Document),
            ("application/did+ld+json" | "application/ld+json", _) => Some(Form::OldDocument),
            _ => None,
        };
        (form, quality)
    }

    const fn is_document(self) -> bool {
        matches!(self, Form::Document | Form::OldDocument)
    }

    const fn media_type(self) -> HeaderValue {
        match self {
            Form::Result => RESULT,
            Form::OldResult => OLD_RESULT,
            Form::Document => DOCUMENT,
            Form::OldDocument => OLD_DOCUMENT,
        }
    }

    /// Of a result, also where only the document was wanted and there is none.
    const fn result_type(self) -> HeaderValue {
        match self {
            Form::OldResult | Form::OldDocument => OLD_RESULT,
            Form::Result | Form::Document => RESULT,
        }
    }

    /// The type of the document in a result.
    const fn content_type(self) -> &'static str {
        match self {
            Form::OldResult | Form::OldDocument => "application/did+ld+json",
            Form::Result | Form::Document => "application/did",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_is_accepted() {
        let old = "application/ld+json;profile=\"https://w3id.org/did-resolution\"";
        for (accept, form) in [
            (None, Some(Form::Result)),
            (Some("*/*"), Some(Form::Result)),
            (Some("application/did-resolution"), Some(Form::Result)),
            (Some("application/did"), Some(Form::Document)),
            (Some(old), Some(Form::OldResult)),
            (Some("application/did+ld+json"), Some(Form::OldDocument)),
            (Some("application/did;q=0.5, application/did-resolution"), Some(Form::Result)),
            (Some("text/html, */*;q=0.1"), Some(Form::Result)),
            (Some("application/did+cbor"), None),
            (Some("application/did;q=0"), None),
        ] {
            let mut request = HeaderMap::new();
            if let Some(accept) = accept {
                request.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(Form::wanted(&request), form, "{accept:?}");
        }
    }

    #[test]
    fn dids_of_other_methods_are_told_from_what_is_none() {
        for text in ["did:web:example.com", "did:key:z6Mk"] {
            assert!(matches!(parse_did(text), Err(Failure::MethodNotSupported)), "{text}");
        }
        for text in ["", "did", "did:", "did:plc:", "did:plc:short", "did:PLC:x", "did:a:b c", "x"]
        {
            assert!(matches!(parse_did(text), Err(Failure::InvalidDid)), "{text}");
        }
        assert!(parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz").is_ok());
    }

    #[test]
    fn versions_are_wanted_by_id_or_by_time() {
        let time = "2025-01-01T00:00:00.000Z".parse().unwrap();
        assert_eq!(Wanted::read("").unwrap(), Wanted::Newest);
        assert_eq!(Wanted::read("versionId=b").unwrap(), Wanted::Id("b".into()));
        assert_eq!(Wanted::read("versionTime=2025-01-01T00:00:00Z").unwrap(), Wanted::Time(time));
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
