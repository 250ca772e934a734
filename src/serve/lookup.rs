//! `/_lookup`: which identities claim a handle, a host or a key, and which ones once did.
//!
//! The index names candidates; what they claimed is read from their histories. A page is bounded in
//! work, not only in length: a host has had millions of identities, and those that have left it
//! are candidates too.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::State;
use futures::future::try_join_all;
use http::StatusCode;
use serde::Serialize;

use crate::store::claims::ClaimsIndex;
use did_plc::Did;
use did_plc::claim::{ClaimKind, Span, Stated, Value, spans};

use super::answer::{self, Answer};
use super::error::ServeError;
use super::extract::Query;
use super::key_forms::read_key;
use super::query::{decimal, flag, parameter};
use super::state::Server;

/// Claims of a page when nothing is said, and at most.
const PAGE: (usize, usize) = (100, 1_000);
/// Candidates that one request looks at; a filter that finds little answers with a short page.
const MOST_CANDIDATES: usize = 1_000;
/// Operations that one request reads, about: an identity may have thousands.
const MOST_OPERATIONS: usize = 20_000;
/// Histories that are read at a time: some milliseconds.
const AT_ONCE: usize = 32;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The value.
    pub value: Value<'a>,
    /// Only what is claimed now (true), or only what is not any more (false).
    pub current: Option<bool>,
    /// The last identity of the page before.
    pub after: Option<Did>,
    /// Claims of a page. The claims of one identity stay together, so that it may have more.
    pub limit: usize,
}

/// A page of what was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// How far the index is.
    pub index: ClaimsIndex,
    /// Whether it has all of a log that was once read to its end.
    pub complete: bool,
    /// In the order of the identities' bytes, each with its claims in the order of time.
    pub claims: Vec<(Did, Span)>,
    /// What the next page comes after; none at the end.
    pub next: Option<Did>,
}

/// The value that a person asks for; a key in any of the forms in which people have one.
pub fn value(kind: ClaimKind, asked: &str) -> Option<Value<'_>> {
    match kind {
        ClaimKind::Key if let Some(key) = read_key(asked.trim()) => {
            Some(Value { kind, text: key.to_string().into() })
        }
        _ => Value::asked(kind, asked),
    }
}

/// A page of identities that claim a value.
///
/// # Errors
///
/// [`ServeError::NoIndex`] where there is none; those of the store.
pub async fn find(server: &Server, wanted: &Wanted<'_>) -> Result<Found, ServeError> {
    let log = server.picture();
    // Before the candidates: what is said to be complete is at least that.
    let index = log.claims_index().await?.ok_or(ServeError::NoIndex)?;
    let complete = index.is_complete() && log.freshness().caught_up;
    let mut found = Found { index, complete, claims: Vec::new(), next: wanted.after };
    let (mut candidates, mut operations) = (0, 0);
    loop {
        let page = log.claimants(&wanted.value, found.next, AT_ONCE).await?;
        candidates += AT_ONCE;
        let histories = try_join_all(page.dids.iter().map(|did| log.history(did))).await?;
        for (did, history) in page.dids.iter().zip(&histories) {
            operations += history.len();
            let stated = history.iter().map(|stored| Stated {
                created_at: stored.created_at,
                nullified: stored.nullified_by.is_some(),
                signed: &stored.signed,
            });
            let spans = spans(&stated.collect::<Vec<_>>(), &wanted.value)
                .map_err(|reason| ServeError::damaged(did, &reason))?;
            let matching = |span: &Span| wanted.current.is_none_or(|is| span.is_current() == is);
            found.claims.extend(spans.into_iter().filter(matching).map(|span| (*did, span)));
            if found.claims.len() >= wanted.limit || operations >= MOST_OPERATIONS {
                let last = page.dids.last() == Some(did) && page.next.is_none();
                found.next = (!last).then_some(*did);
                return Ok(found);
            }
        }
        found.next = page.next;
        if found.next.is_none() || candidates >= MOST_CANDIDATES {
            return Ok(found);
        }
        tokio::task::yield_now().await;
    }
}

/// The body.
#[derive(Serialize)]
struct Page<'a> {
    /// False while the index lacks operations after `sequence`, or the log was never read to its end.
    complete: bool,
    sequence: i64,
    claims: Vec<Claim<'a>>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Claim<'a> {
    did: String,
    kind: &'static str,
    value: &'a str,
    role: &'a str,
    from: String,
    until: Option<String>,
    cid: String,
    nullified: bool,
}

/// `GET /_lookup?handle=…|host=…|key=…&current=true|false&limit=N&cursor=DID`
pub async fn lookup(State(server): State<Arc<Server>>, query: Query) -> Result<Answer, ServeError> {
    let (kind, asked) = asked(&query)?;
    let value = value(kind, &asked).ok_or(ServeError::InvalidParameter(kind.name()))?;
    let wanted = Wanted {
        value,
        current: flag(&query, "current")?,
        after: cursor(&query)?,
        limit: limit(&query)?,
    };
    let found = find(&server, &wanted).await?;
    let claims = found.claims.iter().map(|(did, span)| Claim {
        did: did.to_string(),
        kind: kind.name(),
        value: &wanted.value.text,
        role: &span.role,
        from: span.from.to_string(),
        until: span.until.map(|until| until.to_string()),
        cid: span.cid.to_string(),
        nullified: span.nullified,
    });
    let page = Page {
        complete: found.complete,
        sequence: found.index.sequence,
        claims: claims.collect(),
        next: found.next.map(|did| did.to_string()),
    };
    // No map in it has keys that are not strings, the only way to fail.
    Ok(answer::json(StatusCode::OK, serde_json::to_vec(&page).unwrap_or_default()))
}

/// The one thing that is asked for.
fn asked(query: &str) -> Result<(ClaimKind, Cow<'_, str>), ServeError> {
    let mut asked = None;
    for kind in ClaimKind::ALL {
        if let Some(text) = parameter(query, kind.name())?
            && asked.replace((kind, text)).is_some()
        {
            return Err(ServeError::OneOf("handle, host and key"));
        }
    }
    asked.ok_or(ServeError::OneOf("handle, host and key"))
}

fn cursor(query: &str) -> Result<Option<Did>, ServeError> {
    let cursor = parameter(query, "cursor")?;
    let invalid = |_| ServeError::InvalidParameter("cursor");
    cursor.map(|did| did.parse().map_err(invalid)).transpose()
}

fn limit(query: &str) -> Result<usize, ServeError> {
    let (usual, most) = PAGE;
    let Some(text) = parameter(query, "limit")? else { return Ok(usual) };
    match decimal(&text).and_then(|limit| usize::try_from(limit).ok()) {
        None | Some(0) => Err(ServeError::InvalidParameter("limit")),
        Some(limit) => Ok(limit.min(most)),
    }
}
