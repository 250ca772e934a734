//! `/export`: the whole log in pages, by sequence number or by time.

use std::sync::Arc;

use axum::extract::State;
use http::HeaderValue;

use crate::reads::Picture;
use crate::store::{StoreError, StoredOperation};
use did_plc::Timestamp;

use super::answer::{self, Answer};
use super::conditional::Representation;
use super::error::ServeError;
use super::extract::RequestHead;
use super::query::{decimal, parameter, parse_int, parse_time};
use super::state::Server;

/// Lines of a page at most, and unless fewer are asked for: the directory's own number.
const MAX_COUNT: i64 = 1000;
/// The envelope of a line, and what JSON is longer than DAG-CBOR.
const LINE_ROOM: usize = 400;

/// Where a page begins, which is also what its lines look like.
enum After {
    Sequence(i64),
    Time(Option<Timestamp>),
}

impl After {
    /// Digits are a sequence number, anything else is a time.
    fn read(query: &str) -> Result<After, ServeError> {
        let Some(after) = parameter(query, "after")? else { return Ok(After::Time(None)) };
        if let Some(sequence) = decimal(&after) {
            return Ok(After::Sequence(sequence));
        }
        let time = parse_time(&after).ok_or(ServeError::InvalidParameter("after"))?;
        Ok(After::Time(Some(time)))
    }

    /// The operations that come next. Where the log ends is for the primary to say: who reads on and on would see it end
    /// earlier than before where another standby answers, which looks like a log that has lost something.
    async fn page(
        &self,
        log: &Picture<'_>,
        count: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        let page = self.operations(log, count).await?;
        if page.len() == count || !log.is_of_standby() {
            return Ok(page);
        }
        log.turn_to_primary();
        self.operations(log, count).await
    }

    async fn operations(
        &self,
        log: &Picture<'_>,
        count: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        match *self {
            After::Sequence(after) => log.export_by_sequence(after, count).await,
            After::Time(after) => log.export_by_time(after, count).await,
        }
    }
}

/// `GET /export?after=SEQUENCE|TIME&count=N`: a page.
pub async fn export(
    State(server): State<Arc<Server>>,
    head: RequestHead,
) -> Result<Answer, ServeError> {
    let log = server.picture();
    let count = count(&head.query)?;
    let after = After::read(&head.query)?;
    let mut page = after.page(&log, count).await?;
    if page.is_empty() {
        let empty = server.empty_pages.asked_for(head.client, &head.query);
        if let Some(held) = empty.hold() {
            // Subscribed before it is read again: what is committed in between is in one of both.
            let news = server.state.feed.subscribe();
            page = after.page(&log, count).await?;
            if page.is_empty() {
                held.until(news, &server.shutdown).await;
                log.turn_to_primary();
                page = after.page(&log, count).await?;
            }
        }
        if page.is_empty() {
            empty.given();
        }
    }
    let known = Representation {
        etag: etag(&after, &page),
        modified: page.iter().map(|operation| operation.created_at).max(),
        media_type: answer::JSON_LINES,
    };
    let mut answer = known.answer(&head.headers, || lines(&after, &page))?;
    answer::state_freshness(log.freshness(), answer.headers_mut());
    Ok(answer)
}

fn count(query: &str) -> Result<usize, ServeError> {
    let Some(count) = parameter(query, "count")? else { return Ok(MAX_COUNT as usize) };
    let count = parse_int(&count).filter(|&count| count >= 1);
    let count = count.ok_or(ServeError::InvalidParameter("count"))?;
    Ok(count.min(MAX_COUNT).unsigned_abs() as usize)
}

fn lines(after: &After, page: &[StoredOperation]) -> Result<Vec<u8>, ServeError> {
    let room = page.iter().map(|operation| operation.signed.len() + LINE_ROOM).sum();
    let mut body = Vec::with_capacity(room);
    for (index, operation) in page.iter().enumerate() {
        if index > 0 {
            body.push(b'\n');
        }
        let cid = operation.cid();
        let logged = operation.logged(&cid);
        match after {
            After::Sequence(_) => logged.write_sequenced(&mut body),
            After::Time(_) => logged.write_timestamped(&mut body),
        }
        .map_err(|reason| ServeError::damaged(&operation.did, &reason))?;
    }
    Ok(body)
}

/// What a page is known by. The log only grows: an operation that is put in between makes the
/// page longer or moves its last line out, and a nullified one never comes back.
fn etag(after: &After, page: &[StoredOperation]) -> HeaderValue {
    let last = page.last().map_or_else(String::new, |last| format!("-{}", last.cid()));
    let tag = match after {
        After::Sequence(_) => format!("W/\"seq-{}{last}\"", page.len()),
        After::Time(_) => {
            let nullified = page.iter().filter(|line| line.nullified_by.is_some()).count();
            format!("W/\"time-{}-{nullified}{last}\"", page.len())
        }
    };
    answer::value(tag.as_bytes())
}
