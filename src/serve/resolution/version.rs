//! The versions of an identity's document.

use did_plc::document::{write_document, write_plain_document};
use did_plc::operation::OperationKind;
use did_plc::{Cid, Did, Operation, Timestamp};
use http::{StatusCode, header};
use serde_json::value::RawValue;

use crate::serve::answer::{self, Answer};
use crate::serve::error::ServeError;
use crate::store::StoredOperation;

use super::media_type::MediaType;
use super::request::{Asked, Wanted};
use super::result::{DocumentMetadata, Failure, Resolution, ResolutionMetadata, in_media_type};

/// One version of an identity.
#[derive(Debug)]
pub struct Version {
    /// None when it was ended.
    document: Option<Box<RawValue>>,
    metadata: DocumentMetadata,
}

impl Version {
    /// Of a history that lacks nothing, unless it is not `complete`.
    ///
    /// # Errors
    ///
    /// When there is no such version, or it is damaged.
    pub fn choose(
        asked: &Asked,
        history: &[StoredOperation],
        complete: bool,
    ) -> Result<Version, Failure> {
        let did = asked.did;
        let newest = history.iter().rposition(|version| version.nullified_by.is_none());
        let Some((first, newest)) = history.first().zip(newest) else {
            return Err(match complete {
                _ if !history.is_empty() => Failure::Other(ServeError::nothing_in_force(&did)),
                true => Failure::NotFound(format!("{did} is not registered")),
                false => Failure::Other(ServeError::NotKnownYet(did.to_string())),
            });
        };
        let index = match &asked.wanted {
            Wanted::Newest => Some(newest),
            Wanted::Id(id) => match id.parse::<Cid>() {
                Ok(cid) => match history.iter().position(|version| version.cid() == cid) {
                    None if !complete => {
                        let version = format!("version {cid} of {did}");
                        return Err(Failure::Other(ServeError::NotKnownYet(version)));
                    }
                    found => found,
                },
                Err(_) => None,
            },
            Wanted::Time(time) => history.iter().rposition(|version| version.created_at <= *time),
        };
        let index = index.ok_or_else(|| Failure::NotFound(format!("{did} has no such version")))?;
        let version = &history[index];
        let next = history.get(index + 1);
        let damaged = |reason| Failure::Other(ServeError::damaged(&did, &reason));
        let ended =
            Operation::read(&version.signed).map_err(damaged)?.kind() == OperationKind::Tombstone;
        Ok(Version {
            document: if ended { None } else { Some(document(asked, version)?) },
            metadata: DocumentMetadata {
                created: Some(seconds(first.created_at)),
                updated: (index > 0).then(|| seconds(version.created_at)),
                deactivated: ended.then_some(true),
                version_id: Some(version.cid().to_string()),
                next_update: next.map(|next| seconds(next.created_at)),
                next_version_id: next.map(|next| next.cid().to_string()),
                nullified_at: version.nullified_by.map(seconds),
            },
        })
    }

    /// The answer with it.
    pub fn into_answer(self, wanted: MediaType) -> Answer {
        let status = match self.document {
            Some(_) => StatusCode::OK,
            None => StatusCode::GONE,
        };
        let (media_type, body) = match self.document {
            Some(document) if wanted.is_document() => {
                (wanted, String::from(Box::<str>::from(document)).into_bytes())
            }
            document => {
                let content_type = document.as_ref().map(|_| wanted.content_type());
                let resolution = Resolution {
                    did_document: document,
                    did_resolution_metadata: ResolutionMetadata { content_type, error: None },
                    did_document_metadata: self.metadata,
                };
                (wanted.of_result(), resolution.render())
            }
        };
        let mut answer = in_media_type(status, media_type, body);
        answer.headers_mut().insert(header::CACHE_CONTROL, answer::REVALIDATE);
        answer
    }
}

fn document(asked: &Asked, version: &StoredOperation) -> Result<Box<RawValue>, Failure> {
    let (did, mut body) = (asked.did, Vec::new());
    match asked.media_type {
        MediaType::PlainDocument => write_plain_document(&did, &version.signed, &mut body),
        _ => write_document(&did, &version.signed, &mut body),
    }
    .map_err(|reason| Failure::Other(ServeError::damaged(&did, &reason)))?;
    // What was written here is JSON in UTF-8.
    let mut text = String::from_utf8_lossy(&body).into_owned();
    if asked.expand_relative_urls {
        text = with_whole_urls(&did, &text);
    }
    RawValue::from_string(text).map_err(|_| Failure::Other(ServeError::Bug))
}

/// A document in which the relative URLs, which only the names of services are, are whole. Within a text no quotation mark
/// stands by itself, so that nothing else can be meant.
fn with_whole_urls(did: &Did, document: &str) -> String {
    document.replace("{\"id\":\"#", &format!("{{\"id\":\"{did}#"))
}

/// UTC without a fraction, as metadata have it.
fn seconds(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => text,
    }
}
