//! The operations in their order: the newest, those around a number, those from a time on.

use did_plc::operation::{Malformed, OperationKind};
use did_plc::{Operation, Timestamp};
use maud::{Markup, html};

use crate::serve::error::ServeError;
use crate::serve::query::{parameter, parse_time};
use crate::serve::state::Server;
use crate::store::StoredOperation;
use crate::words::number;

use super::identity::handle;
use super::layout;
use super::parts::time;
use super::text::line;

/// Operations of a page: a screen or two.
const PAGE: usize = 50;

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// The newest operations.
    End,
    /// The operations with this number and the next ones.
    Number(i64),
    /// The operations that were created then and after it.
    Time(Timestamp),
}

/// `/explore/log`, `?from=NUMBER`, `?since=TIME`.
///
/// # Errors
///
/// A parameter that cannot be read; those of the store.
pub async fn log_page(server: &Server, query: &str) -> Result<String, ServeError> {
    let log = server.picture();
    let last = log.freshness().sequence;
    let from = from(query)?;
    let first = match from {
        From::Number(number) => number,
        From::End | From::Time(_) => last.saturating_sub(PAGE as i64 - 1).max(1),
    };
    let operations = match from {
        From::Time(since) => {
            let before = Timestamp::from_millis(since.millis().saturating_sub(1));
            log.export_by_time(Some(before), PAGE).await?
        }
        From::End | From::Number(_) => {
            log.export_by_sequence(first.saturating_sub(1), PAGE).await?
        }
    };
    let page = Page { from, first, last, operations: &operations };
    page.render().map_err(|(operation, reason)| ServeError::damaged(&operation.did, &reason))
}

fn from(query: &str) -> Result<From, ServeError> {
    if let Some(text) = parameter(query, "from")? {
        let number = text.parse().ok().filter(|number| *number > 0);
        return number.map(From::Number).ok_or(ServeError::InvalidParameter("from"));
    }
    match parameter(query, "since")? {
        Some(text) => {
            parse_time(&text).map(From::Time).ok_or(ServeError::InvalidParameter("since"))
        }
        None => Ok(From::End),
    }
}

struct Page<'a> {
    from: From,
    /// The number from which on it has operations, where it goes by numbers.
    first: i64,
    /// The last number of the log.
    last: i64,
    operations: &'a [StoredOperation],
}

impl<'a> Page<'a> {
    fn render(&self) -> Result<String, (&'a StoredOperation, Malformed)> {
        let title = match self.from {
            From::End => "The newest operations".to_owned(),
            From::Number(from) => format!("Operations from number {}", number(from.unsigned_abs())),
            From::Time(since) => format!("Operations since {since}"),
        };
        let mut rows = Vec::new();
        for operation in self.operations {
            rows.push(row(operation).map_err(|reason| (operation, reason))?);
        }
        if self.from == From::End {
            rows.reverse();
        }
        let content = html! {
            section.card aria-labelledby="log" {
                h1 #log { (title) }
                p.note {
                    @match self.from {
                        From::End => "Newest first. Each was verified here.",
                        _ => "In the directory's order. Each was verified here.",
                    }
                }
                @if rows.is_empty() { p { "There are none." } }
                ul.records { @for row in &rows { (row) } }
                p.pages { (self.links()) }
            }
        };
        Ok(layout::page(&title, "", content))
    }

    /// Links to what comes before and after.
    fn links(&self) -> Markup {
        let page = PAGE as i64;
        let by_number = !matches!(self.from, From::Time(_));
        // Where a whole page is of one millisecond the next one would be the same: its numbers lead on.
        let last = self.operations.last().filter(|_| self.operations.len() == PAGE);
        let later = last.filter(|last| self.from != From::Time(last.created_at));
        html! {
            @if by_number && self.first > 1 {
                a href=(format!("/explore/log?from={}", (self.first - page).max(1))) { "Older" } " "
            }
            @if by_number && self.first + page <= self.last {
                a href=(format!("/explore/log?from={}", self.first + page)) { "Newer" } " "
            }
            @if let (false, Some(later)) = (by_number, later) {
                a href=(format!("/explore/log?since={}", later.created_at)) { "Newer" } " "
            }
            @if let (false, None, Some(number)) = (by_number, later, last.and_then(|last| last.sequence)) {
                a href=(format!("/explore/log?from={}", number + 1)) { "Newer" } " "
            }
            @if self.from != From::End { a href="/explore/log" { "The newest" } }
        }
    }
}

fn row(stored: &StoredOperation) -> Result<Markup, Malformed> {
    let operation = Operation::read(&stored.signed)?;
    let (class, what) = match (operation.kind(), operation.prev()) {
        (OperationKind::Tombstone, _) => ("warn", "ended"),
        (_, None) => ("good", "created"),
        (_, Some(_)) => ("", "changed"),
    };
    let did = stored.did;
    let services = operation.services();
    let host = services.iter().find(|(name, _)| *name == "atproto_pds");
    Ok(html! {
        li {
            p { a.code href=(format!("/explore/{did}#{}", stored.cid())) { (did) } }
            p.badges {
                span.tag.(class) { (what) }
                @if stored.nullified_by.is_some() { " " span.tag.bad { "nullified" } }
                @if let Some(handle) = handle(&operation) { " " (line(&handle)) }
                @if let Some((_, host)) = host { span.note { " at " (line(&host.endpoint)) } }
            }
            p.when {
                (time(stored.created_at))
                @if let Some(sequence) = stored.sequence {
                    ", number " (number(sequence.unsigned_abs()))
                }
            }
        }
    })
}
