//! `/1.0/identifiers/{did}`: DID Resolution v1.0 by its HTTP(S) binding, as a driver of the
//! Universal Resolver answers.
//!
//! The versions of a document are all operations that were ever accepted, in the order of their times: each was the one in
//! force from then on until the next one came. Of one that was nullified since, the metadata say so. The newest version
//! is the last one that was not.
//!
//! DID URLs are not dereferenced: that part of the text is marked as likely to be removed.

mod media_type;
mod request;
mod result;
mod version;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use http::{HeaderMap, Uri};

use self::request::Asked;
use self::result::Failure;
use self::version::Version;
use super::answer::Answer;
use super::error::ServeError;
use super::extract::{RequestHead, decode};
use super::forward;
use super::notes::Notes;
use super::read_through::{self, wants_upstream};
use super::state::Server;
use super::wait;
use crate::reads::Picture;

/// What the path begins with.
pub const PATH: &str = "/1.0/identifiers";

/// Answers `GET /1.0/identifiers/{did}`; the DID may be any text, and what cannot be decoded is none.
pub async fn resolve(State(server): State<Arc<Server>>, uri: Uri, head: RequestHead) -> Answer {
    let written = uri.path().strip_prefix(PATH).unwrap_or_default();
    let written = written.strip_prefix('/').unwrap_or_default();
    let written = written.strip_suffix('/').unwrap_or(written);
    let did = decode(written).unwrap_or(written.into());
    let log = server.picture();
    let mut notes = Notes::new(log.freshness());
    let resolved = wait_and_find(&server, &log, &head, &did, &mut notes).await;
    notes.freshness = log.freshness();
    let mut answer = resolved.unwrap_or_else(|failure| failure.into_answer(&head.headers));
    notes.state(answer.headers_mut());
    server.state.settings.caching.state(answer.headers_mut());
    answer
}

/// Gives the errors that are not of resolution alone its form: those of the middleware too.
pub async fn in_form(request: Request, next: Next) -> Answer {
    let media_type = result::media_type(request.headers());
    let mut answer = next.run(request).await;
    match answer.extensions_mut().remove::<ServeError>() {
        Some(error) => result::of_error(&error, media_type, answer),
        None => answer,
    }
}

async fn wait_and_find(
    server: &Server,
    log: &Picture<'_>,
    head: &RequestHead,
    did: &str,
    notes: &mut Notes,
) -> Result<Answer, Failure> {
    let asked = Asked::read(head, did)?;
    let waited = wait::for_operation(server, log, head, asked.did).await;
    // Read before the history: what is not held after that was refused then, and not unknown.
    let standing = server.refused.standing(log, &asked.did).await;
    notes.refused = standing.map_err(ServeError::from)?;
    waited?;
    find(server, log, &head.headers, &asked, notes).await
}

async fn find(
    server: &Server,
    log: &Picture<'_>,
    request: &HeaderMap,
    asked: &Asked,
    notes: &mut Notes,
) -> Result<Answer, Failure> {
    let local = async || log.history(&asked.did).await.map_err(ServeError::from);
    if asked.no_cache && server.state.upstream.is_none() {
        return Err(Failure::FeatureNotSupported(
            "`noCache`: this replica answers from its own log alone; the same without `noCache` is resolved".to_owned(),
        ));
    }
    let fresh = asked.no_cache
        || wants_upstream(request)
        || forward::is_awaited(server, log, &asked.did).await?;
    let mut is_theirs = false;
    let mut history = match fresh {
        false => local().await?,
        true => Vec::new(),
    };
    if history.is_empty() {
        let upstream = server.state.upstream.as_ref();
        let (tried, theirs) = read_through::read(upstream, log, asked.did).await?;
        notes.read_through = tried;
        is_theirs = theirs.is_some();
        history = match theirs {
            Some(theirs) => theirs,
            // It may have come while the upstream was asked.
            None => local().await?,
        };
    }
    if history.is_empty() && notes.refused > 0 {
        return Err(Failure::Other(ServeError::OnlyRefused(asked.did)));
    }
    // What is caught up to after it was read is no proof of absence.
    let complete = is_theirs || log.freshness().caught_up;
    Ok(Version::choose(asked, &history, complete)?.into_answer(asked.media_type))
}
