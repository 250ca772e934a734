//! The result of a resolution, and how it says that there is none.

use std::borrow::Cow;

use axum::response::IntoResponse;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::serve::answer::{self, Answer};
use crate::serve::error::ServeError;

use super::media_type::MediaType;

/// What the names of errors begin with.
const NAMESPACE: &str = "https://www.w3.org/ns/did#";
/// What an answer depends on.
const VARY: HeaderValue = HeaderValue::from_static("accept, accept-encoding");

/// The result of a resolution.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct Resolution {
    /// None when there is no version of that kind, or it was ended.
    pub did_document: Option<Box<RawValue>>,
    /// What there is to say of this resolution.
    pub did_resolution_metadata: ResolutionMetadata,
    /// What there is to say of the version.
    pub did_document_metadata: DocumentMetadata,
}

/// What there is to say of one resolution.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct ResolutionMetadata {
    /// The type of the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<&'static str>,
    /// Why there is no document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

/// An error object (RFC 9457).
#[derive(Serialize)]
pub struct Problem {
    r#type: Cow<'static, str>,
    title: &'static str,
    detail: String,
}

/// What there is to say of a version; times are UTC without a fraction.
#[derive(Serialize, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DocumentMetadata {
    /// When the identity was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When the version was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated: Option<String>,
    /// Whether the identity was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deactivated: Option<bool>,
    /// The CID of the version's operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// When the next version was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_update: Option<String>,
    /// The CID of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_version_id: Option<String>,
    /// When the version was nullified; of did:plc alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nullified_at: Option<String>,
}

impl Resolution {
    /// One that led to nothing.
    fn of(problem: Problem) -> Resolution {
        let error = Some(problem);
        Resolution {
            did_resolution_metadata: ResolutionMetadata { error, ..Default::default() },
            ..Default::default()
        }
    }

    /// As JSON.
    pub fn render(&self) -> Vec<u8> {
        // No map in it has keys that are not strings, the only way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Why nothing was resolved.
#[derive(Debug)]
pub enum Failure {
    /// The text is no DID, or no did:plc that there can be.
    InvalidDid,
    /// A parameter that cannot be read; which, and why.
    InvalidOptions(String),
    /// There is no such identity, or no such version of it; which.
    NotFound(String),
    /// The client accepts nothing that there is.
    RepresentationNotSupported,
    /// A DID of another method.
    MethodNotSupported,
    /// Something else that is not done here; what.
    FeatureNotSupported(String),
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

impl Failure {
    /// The answer to this request. What is not of resolution alone is still to be given the form of
    /// one, by [`of_error`].
    pub fn into_answer(self, request: &HeaderMap) -> Answer {
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
                format!("there are {}", MediaType::ALL.map(MediaType::name).join(", ")),
            ),
            Failure::MethodNotSupported => (
                StatusCode::NOT_IMPLEMENTED,
                "METHOD_NOT_SUPPORTED",
                "Method not supported",
                "did:plc is the only method here".to_owned(),
            ),
            Failure::FeatureNotSupported(detail) => (
                StatusCode::NOT_IMPLEMENTED,
                "FEATURE_NOT_SUPPORTED",
                "Feature not supported",
                detail,
            ),
            Failure::Other(error) => return error.into_response(),
        };
        let problem = Problem { r#type: format!("{NAMESPACE}{name}").into(), title, detail };
        let body = Resolution::of(problem).render();
        let mut answer = in_media_type(status, media_type(request), body);
        answer.headers_mut().insert(header::CACHE_CONTROL, answer::NO_STORE);
        answer
    }
}

/// The media type of a result without a document for this client.
pub fn media_type(request: &HeaderMap) -> MediaType {
    MediaType::wanted(request).unwrap_or(MediaType::Result).of_result()
}

/// An answer of a media type that was chosen for this client.
pub fn in_media_type(status: StatusCode, media_type: MediaType, body: Vec<u8>) -> Answer {
    let media_type = HeaderValue::from_static(media_type.name());
    let mut answer = answer::body(status, media_type, body);
    answer.headers_mut().insert(header::VARY, VARY);
    answer
}

/// The answer to a request that failed with this error, as the result of a resolution. What else
/// the answer said stays.
pub fn of_error(error: &ServeError, media_type: MediaType, mut answer: Answer) -> Answer {
    let (r#type, title) = match error.status() {
        StatusCode::INTERNAL_SERVER_ERROR => {
            (format!("{NAMESPACE}INTERNAL_ERROR").into(), "Internal error")
        }
        // The standard has no name for it, its status says all (RFC 9457, 4.2.1).
        status => (Cow::from("about:blank"), status.canonical_reason().unwrap_or_default()),
    };
    let problem = Problem { r#type, title, detail: error.to_string() };
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type.name()));
    headers.insert(header::VARY, VARY);
    headers.remove(header::CONTENT_ENCODING);
    *answer.body_mut() = Resolution::of(problem).render().into();
    answer
}
