//! `/1.0/identifiers/{did}`: DID Resolution v1.0 by its HTTP(S) binding, as a driver of the
//! Universal Resolver answers.
//!
//! The versions of a document are the operations that are in force. What was nullified was a
//! version once, and is none in hindsight: no time leads to it, and its CID is not found.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::store::StoredOperation;
use did_plc::document::{write_document, write_plain_document};
use did_plc::operation::OperationKind;
use did_plc::{Cid, Did, Operation, Timestamp};

use super::answer::{self, Answer, Freshness};
use super::error::ServeError;
use super::form::Form;
use super::query::{parameter, parse_time};
use super::read_through::{self, Outcome, wants_upstream};
use super::{Server, wait};

/// What the names of errors begin with.
const NAMESPACE: &str = "https://www.w3.org/ns/did#";

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
    r#type: Cow<'static, str>,
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
    /// What goes wrong with requests of any kind here.
    Other(ServeError),
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::InvalidParameter(name) => {
                Failure::InvalidOptions(format!("`{name}` cannot be read, or is given twice"))
            }
            error => Failure::Other(error),
        }
    }
}

/// Answers a request for a resolution that is refused like one for anything else.
pub fn refused(request: &HeaderMap, error: ServeError) -> Answer {
    Failure::Other(error).into_answer(request)
}

/// Answers `GET /1.0/identifiers/{did}`; the DID may be any text.
pub async fn resolve(
    server: &Server,
    client: IpAddr,
    request: &HeaderMap,
    query: &str,
    did: &str,
) -> Answer {
    let asked = read(server, client, request, query, did).await;
    let freshness = Freshness::now(&server.state.status);
    let mut read_through = None;
    let resolved = match asked {
        Ok(asked) => find(server, request, &asked, &mut read_through).await,
        Err(failure) => Err(failure),
    };
    let mut answer = resolved.unwrap_or_else(|failure| failure.into_answer(request));
    let headers = answer.headers_mut();
    freshness.state(headers);
    if let Some(outcome) = read_through {
        outcome.state(headers);
    }
    answer
}

/// What is asked for, once the operation that it may have to wait for is here.
async fn read(
    server: &Server,
    client: IpAddr,
    request: &HeaderMap,
    query: &str,
    did: &str,
) -> Result<Asked, Failure> {
    let form = Form::wanted(request).ok_or(Failure::RepresentationNotSupported)?;
    let did = parse_did(did)?;
    let wanted = Wanted::read(query)?;
    wait::for_operation(server, client, request, query, did).await?;
    Ok(Asked { did, wanted, form })
}

async fn find(
    server: &Server,
    request: &HeaderMap,
    asked: &Asked,
    outcome: &mut Option<Outcome>,
) -> Result<Answer, Failure> {
    // Read before the store: what is caught up to after that is no proof of absence.
    let mut complete = server.state.status.caught_up();
    let local = async || server.state.store.history(&asked.did).await.map_err(ServeError::from);
    let mut history = match wants_upstream(request) {
        false => local().await?,
        true => Vec::new(),
    };
    if history.is_empty() {
        let (tried, theirs) = read_through::read(server, asked.did).await;
        *outcome = tried;
        complete |= theirs.is_some();
        history = match theirs {
            Some(theirs) => theirs,
            // It may have come while the upstream was asked.
            None => local().await?,
        };
    }
    Ok(Version::choose(asked, &history, complete)?.into_answer(asked.form))
}

/// A resolution that is asked for.
struct Asked {
    did: Did,
    wanted: Wanted,
    form: Form,
}

/// A did:plc, or why it is none that is resolved here.
fn parse_did(text: &str) -> Result<Did, Failure> {
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
enum Wanted {
    Newest,
    Id(String),
    /// The newest of those that were created by then.
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

/// One version of an identity.
#[derive(Debug)]
struct Version {
    /// None when it was ended.
    document: Option<Box<RawValue>>,
    metadata: DocumentMetadata,
}

impl Version {
    /// Of a history that lacks nothing, unless it is not `complete`.
    fn choose(
        asked: &Asked,
        history: &[StoredOperation],
        complete: bool,
    ) -> Result<Version, Failure> {
        let did = asked.did;
        let versions: Vec<&StoredOperation> =
            history.iter().filter(|operation| operation.nullified_by.is_none()).collect();
        let Some((first, last)) = versions.first().zip(versions.len().checked_sub(1)) else {
            return Err(match complete {
                true => Failure::NotFound(format!("{did} is not registered")),
                false => Failure::Other(ServeError::NotKnownYet(did.to_string())),
            });
        };
        let index = match &asked.wanted {
            Wanted::Newest => Some(last),
            Wanted::Id(id) => match id.parse::<Cid>() {
                Ok(cid) if !complete && history.iter().all(|held| held.cid() != cid) => {
                    let version = format!("version {cid} of {did}");
                    return Err(Failure::Other(ServeError::NotKnownYet(version)));
                }
                Ok(cid) => versions.iter().position(|version| version.cid() == cid),
                Err(_) => None,
            },
            Wanted::Time(time) => versions.iter().rposition(|version| version.created_at <= *time),
        };
        let index = index
            .ok_or_else(|| Failure::NotFound(format!("{did} has no such version in force")))?;
        let version = versions[index];
        let next = versions.get(index + 1);
        let damaged = |reason| Failure::Other(ServeError::damaged(&did, &reason));
        let ended =
            Operation::read(&version.signed).map_err(damaged)?.kind() == OperationKind::Tombstone;
        Ok(Version {
            document: if ended { None } else { Some(document(did, version, asked.form)?) },
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
        let (form, body) = match self.document {
            Some(document) if form.is_document() => {
                (form, String::from(Box::<str>::from(document)).into_bytes())
            }
            document => {
                let content_type = document.as_ref().map(|_| form.content_type());
                let resolution = Resolution {
                    did_document: document,
                    did_resolution_metadata: ResolutionMetadata { content_type, error: None },
                    did_document_metadata: self.metadata,
                };
                (form.of_result(), render(&resolution))
            }
        };
        let mut answer = in_form(status, form, body);
        answer.headers_mut().insert(header::CACHE_CONTROL, answer::REVALIDATE);
        answer
    }
}

/// An answer in the form that was chosen for this client.
fn in_form(status: StatusCode, form: Form, body: Vec<u8>) -> Answer {
    let mut answer = answer::body(status, HeaderValue::from_static(form.media_type()), body);
    let vary = HeaderValue::from_static("accept, accept-encoding");
    answer.headers_mut().insert(header::VARY, vary);
    answer
}

fn document(did: Did, version: &StoredOperation, form: Form) -> Result<Box<RawValue>, Failure> {
    let mut body = Vec::new();
    match form {
        Form::PlainDocument => write_plain_document(&did, &version.signed, &mut body),
        _ => write_document(&did, &version.signed, &mut body),
    }
    .map_err(|reason| Failure::Other(ServeError::damaged(&did, &reason)))?;
    // What was written here is JSON in UTF-8.
    let text = String::from_utf8_lossy(&body).into_owned();
    RawValue::from_string(text)
        .map_err(|_| Failure::Other(ServeError::NoSuchPath("document".to_owned())))
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
    fn into_answer(self, request: &HeaderMap) -> Answer {
        let named = |status, name, title, detail| {
            (status, Cow::from(format!("{NAMESPACE}{name}")), title, detail)
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, answer::NO_STORE);
        let (status, r#type, title, detail) = match self {
            Failure::InvalidDid => named(
                StatusCode::BAD_REQUEST,
                "INVALID_DID",
                "Invalid DID",
                "expected did:plc: and 24 characters of a-z and 2-7".to_owned(),
            ),
            Failure::InvalidOptions(detail) => {
                named(StatusCode::BAD_REQUEST, "INVALID_OPTIONS", "Invalid options", detail)
            }
            Failure::NotFound(detail) => {
                named(StatusCode::NOT_FOUND, "NOT_FOUND", "Not found", detail)
            }
            Failure::RepresentationNotSupported => {
                let all = Form::ALL.map(Form::media_type);
                named(
                    StatusCode::NOT_ACCEPTABLE,
                    "REPRESENTATION_NOT_SUPPORTED",
                    "Representation not supported",
                    format!("there are {}", all.join(", ")),
                )
            }
            Failure::MethodNotSupported => named(
                StatusCode::NOT_IMPLEMENTED,
                "METHOD_NOT_SUPPORTED",
                "Method not supported",
                "did:plc is the only method here".to_owned(),
            ),
            Failure::Other(error) => {
                error.state(&mut headers);
                match error.status() {
                    status @ StatusCode::INTERNAL_SERVER_ERROR => {
                        named(status, "INTERNAL_ERROR", "Internal error", error.to_string())
                    }
                    // The standard has no name for it, its status says all (RFC 9457, 4.2.1).
                    status => {
                        let title = status.canonical_reason().unwrap_or_default();
                        (status, Cow::from("about:blank"), title, error.to_string())
                    }
                }
            }
        };
        let resolution = Resolution {
            did_document: None,
            did_resolution_metadata: ResolutionMetadata {
                content_type: None,
                error: Some(Problem { r#type, title, detail }),
            },
            did_document_metadata: DocumentMetadata::default(),
        };
        let form = Form::wanted(request).unwrap_or(Form::Result).of_result();
        let mut answer = in_form(status, form, render(&resolution));
        answer.headers_mut().extend(headers);
        answer
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
