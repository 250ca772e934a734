//! `/_audit/…`: what was found to differ and what was refused, with the evidence.

use std::sync::Arc;

use axum::extract::State;
use http::{StatusCode, Uri};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::store::{StoredDivergence, StoredRefusal};

use super::answer::{self, Answer};
use super::error::ServeError;
use super::extract::Query;
use super::query::{decimal, flag, parameter, parse_int};
use super::state::Server;

/// Records of a page when nothing is said, and at most: each may have a megabyte of evidence on
/// either side.
const PAGE: usize = 50;

/// A page of divergences.
#[derive(Serialize)]
struct Divergences<'a> {
    divergences: Vec<Divergence<'a>>,
    /// What to give as `after` for the next page; null at the end.
    next: Option<i64>,
}

/// A divergence as it is served.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Divergence<'a> {
    id: i64,
    source: &'a str,
    did: &'a str,
    kind: &'a str,
    subject: &'a str,
    first_seen: String,
    last_seen: String,
    closed_at: Option<String>,
    ours: Side<'a>,
    theirs: Side<'a>,
}

/// One side's entries: JSON as it is, and as text what is none.
#[derive(Serialize)]
#[serde(untagged)]
enum Side<'a> {
    Json(&'a RawValue),
    Text(Option<&'a str>),
}

impl<'a> From<&'a Option<String>> for Side<'a> {
    fn from(side: &'a Option<String>) -> Side<'a> {
        let text = side.as_deref();
        match text.and_then(|text| serde_json::from_str(text).ok()) {
            Some(json) => Side::Json(json),
            None => Side::Text(text),
        }
    }
}

impl<'a> From<&'a StoredDivergence> for Divergence<'a> {
    fn from(stored: &'a StoredDivergence) -> Divergence<'a> {
        let record = &stored.divergence;
        Divergence {
            id: stored.id,
            source: &record.source,
            did: &record.did,
            kind: &record.kind,
            subject: &record.subject,
            first_seen: stored.first_seen.to_string(),
            last_seen: stored.last_seen.to_string(),
            closed_at: stored.closed_at.map(|at| at.to_string()),
            ours: Side::from(&record.ours),
            theirs: Side::from(&record.theirs),
        }
    }
}

/// `GET /_audit/divergences?did=…&kind=…&open=true|false&after=ID&count=N`
pub async fn divergences(
    State(server): State<Arc<Server>>,
    query: Query,
) -> Result<Answer, ServeError> {
    let Page { records, next } = divergences_page(&server, &query).await?;
    Ok(report(&Divergences { divergences: records.iter().map(Divergence::from).collect(), next }))
}

/// Records of one kind, and what to give as `after` for the next page; none at the end.
pub struct Page<T> {
    pub records: Vec<T>,
    pub next: Option<i64>,
}

/// The divergences that a query asks for.
///
/// # Errors
///
/// A parameter that cannot be read; those of the store.
pub async fn divergences_page(
    server: &Server,
    query: &str,
) -> Result<Page<StoredDivergence>, ServeError> {
    let (after, count) = place(query)?;
    let open = flag(query, "open")?;
    let (did, kind) = (parameter(query, "did")?, parameter(query, "kind")?);
    // One more than is shown tells whether there is a next page.
    let (did, kind) = (did.as_deref(), kind.as_deref());
    let mut records = server.picture().divergences(did, kind, open, after, count + 1).await?;
    let more = records.len() > count;
    records.truncate(count);
    let next = records.last().filter(|_| more).map(|last| last.id);
    Ok(Page { records, next })
}

/// `GET /_audit/divergences/{id}/ours` and `…/theirs`: what `verify` reads.
pub async fn side(State(server): State<Arc<Server>>, uri: Uri) -> Result<Answer, ServeError> {
    let mut segments = uri.path().split('/').skip("/_audit/divergences".split('/').count());
    let (id, side) = (segments.next().unwrap_or_default(), segments.next());
    let theirs = match side {
        Some("ours") => false,
        Some("theirs") => true,
        _ => return Err(ServeError::NoSuchPath(uri.path().to_owned())),
    };
    let no_such = || ServeError::NoSuchRecord(id.to_owned());
    let number = decimal(id).ok_or_else(no_such)?;
    let found = server.picture().divergences(None, None, None, number.saturating_sub(1), 1).await?;
    let record = found.into_iter().find(|found| found.id == number).ok_or_else(no_such)?;
    let side = if theirs { record.divergence.theirs } else { record.divergence.ours };
    Ok(answer::json(StatusCode::OK, side.ok_or_else(no_such)?.into_bytes()))
}

/// A page of refusals.
#[derive(Serialize)]
struct Refused {
    refused: Vec<serde_json::Value>,
    next: Option<i64>,
}

/// `GET /_audit/refused?did=…&kind=…&open=true|false&after=ID&count=N`. An open one was not
/// accepted since.
pub async fn refused(
    State(server): State<Arc<Server>>,
    query: Query,
) -> Result<Answer, ServeError> {
    let Page { records, next } = refused_page(&server, &query).await?;
    Ok(report(&Refused { refused: records.iter().map(StoredRefusal::to_json).collect(), next }))
}

/// The refusals that a query asks for.
///
/// # Errors
///
/// A parameter that cannot be read; those of the store.
pub async fn refused_page(server: &Server, query: &str) -> Result<Page<StoredRefusal>, ServeError> {
    let (mut after, count) = place(query)?;
    let (did, kind) = (parameter(query, "did")?, parameter(query, "kind")?);
    let open = flag(query, "open")?;
    let wanted = |kept: &StoredRefusal| {
        kind.as_deref().is_none_or(|kind| kept.refusal.kind == kind)
            && open.is_none_or(|open| kept.accepted_at.is_none() == open)
    };
    let log = server.picture();
    let mut found = Vec::new();
    let mut next = None;
    for _ in 0..MOST_READS {
        let page = log.refusals(did.as_deref(), after, READ).await?;
        next = page.last().filter(|_| page.len() == READ).map(|last| last.id);
        // One more than is shown tells whether there is a next page.
        let room = count + 1 - found.len();
        found.extend(page.into_iter().filter(|kept| wanted(kept)).take(room));
        match next {
            Some(last) if found.len() <= count => after = last,
            _ => break,
        }
    }
    if found.len() > count {
        found.truncate(count);
        next = found.last().map(|last| last.id);
    }
    Ok(Page { records: found, next })
}

/// Refusals that are read at once.
const READ: usize = 500;
/// How often a request reads, at most: a filter that finds little answers with a short page, whose
/// `next` goes on from there.
const MOST_READS: usize = 20;

/// `after` and `count`.
fn place(query: &str) -> Result<(i64, usize), ServeError> {
    let number = |name| match parameter(query, name)? {
        Some(text) => {
            let number = parse_int(&text).filter(|number| *number >= 0);
            number.map(Some).ok_or(ServeError::InvalidParameter(name))
        }
        None => Ok(None),
    };
    let after = number("after")?.unwrap_or(0);
    let count = match number("count")? {
        Some(0) => return Err(ServeError::InvalidParameter("count")),
        Some(count) => usize::try_from(count).map_or(PAGE, |count| count.min(PAGE)),
        None => PAGE,
    };
    Ok((after, count))
}

fn report(body: &impl Serialize) -> Answer {
    // No map in it has keys that are not strings, the only way to fail.
    answer::json(StatusCode::OK, serde_json::to_vec(body).unwrap_or_default())
}
