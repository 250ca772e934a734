//! The answer to a search for a handle, a host or a key: who claims it now, and who once did.

use maud::{Markup, html};
use url::form_urlencoded::byte_serialize;

use crate::serve::error::ServeError;
use crate::serve::key_forms::read_key;
use crate::serve::lookup::{Found, Wanted, find, value};
use crate::serve::query::{flag, parameter};
use crate::serve::state::Server;
use crate::words::number;
use did_plc::Did;
use did_plc::claim::{ClaimKind, Span};

use super::layout;
use super::parts::time;
use super::text::{self, text};

/// Claims of a list: a screen or two.
const SHOWN: usize = 50;

/// One list of the page.
struct List {
    kind: ClaimKind,
    /// Of what is claimed now, or of what is not any more.
    current: bool,
    found: Found,
}

/// What came of a search.
pub enum Search {
    /// A page with what was found.
    Page(String),
    /// Nothing was found, in an index that is complete or not.
    Nothing { complete: bool },
}

/// Looks for a text as whatever it can be.
///
/// # Errors
///
/// [`ServeError::NoIndex`] where there is none; a parameter that cannot be read; those of the store.
pub async fn search(server: &Server, searched: &str, query: &str) -> Result<Search, ServeError> {
    // A link to the next page says which list it goes on with.
    let kind = parameter(query, "kind")?.and_then(|kind| kind.parse().ok());
    let current = flag(query, "current")?;
    let after = parameter(query, "cursor")?.and_then(|did| did.parse().ok());
    let kinds = kind.map_or_else(|| kinds(searched), |kind| vec![kind]);
    let mut lists = Vec::new();
    for kind in kinds {
        let Some(value) = value(kind, searched) else { continue };
        for is_current in [true, false] {
            if current.is_none_or(|only| only == is_current) {
                let value = value.clone();
                let wanted = Wanted { value, current: Some(is_current), after, limit: SHOWN };
                let found = find(server, &wanted).await?;
                lists.push(List { kind, current: is_current, found });
            }
        }
    }
    let complete = lists.iter().all(|list| list.found.complete);
    lists.retain(|list| !list.found.claims.is_empty() || list.found.next.is_some());
    Ok(match lists.is_empty() {
        true => Search::Nothing { complete },
        false => Search::Page(render(searched, &lists)),
    })
}

/// What a text can be.
fn kinds(searched: &str) -> Vec<ClaimKind> {
    if searched.starts_with("did:key:") || read_key(searched).is_some() {
        vec![ClaimKind::Key]
    } else if searched.starts_with("at://") || searched.starts_with('@') {
        vec![ClaimKind::Handle]
    } else if searched.contains("://") {
        vec![ClaimKind::Host]
    } else {
        vec![ClaimKind::Handle, ClaimKind::Host]
    }
}

fn render(searched: &str, lists: &[List]) -> String {
    let content = html! {
        section.card {
            h1 { "Who claims it" }
            div { "Searched for: " (text(searched)) }
            p.note {
                "An identity claims whatever its keys have signed, and anybody can claim any name. "
                "A handle belongs to an identity only when its domain says the same."
            }
            @if let Some(found) = lists.iter().map(|list| &list.found).find(|found| !found.complete) {
                p.outcome.open {
                    "The index of claims does not have the whole log yet, but the operations up to "
                    "sequence number " (number(found.index.sequence.unsigned_abs())) ". There may "
                    "be more than is shown."
                }
            }
        }
        @for list in lists { (section(searched, list)) }
    };
    layout::page(&format!("Who claims {}", text::plain(searched)), searched, content)
}

fn section(searched: &str, list: &List) -> Markup {
    let title = match (list.kind, list.current) {
        (ClaimKind::Handle, true) => "Claimed as a handle",
        (ClaimKind::Handle, false) => "Once claimed as a handle",
        (ClaimKind::Host, true) => "Named as the host",
        (ClaimKind::Host, false) => "Once named as the host",
        (ClaimKind::Key, true) => "Named as a key",
        (ClaimKind::Key, false) => "Once named as a key",
    };
    let id = format!("{}-{}", list.kind.name(), if list.current { "now" } else { "past" });
    html! {
        section.card aria-labelledby=(id) {
            h2 id=(id) { (title) }
            @if list.found.claims.is_empty() {
                p.note { "None among those looked at so far." }
            }
            ul.records {
                @for (did, span) in &list.found.claims { (claim(did, span)) }
            }
            @if let Some(next) = &list.found.next {
                p.pages { a href=(href(searched, list, next)) { "More" } }
            }
        }
    }
}

fn claim(did: &Did, span: &Span) -> Markup {
    html! {
        li {
            p { a.code href=(format!("/explore/{did}")) { (did) } }
            p.badges {
                @if span.is_current() { span.tag.good { "current" } }
                @else if span.nullified { span.tag.bad { "nullified" } }
                @else { span.tag { "past" } }
                " " span.note { "in " (text::line(&span.role)) }
            }
            p.when {
                "from " (time(span.from))
                @if let Some(until) = span.until { " until " (time(until)) }
            }
        }
    }
}

fn href(searched: &str, list: &List, next: &Did) -> String {
    let searched: String = byte_serialize(searched.as_bytes()).collect();
    let (kind, current) = (list.kind.name(), list.current);
    format!("/explore?q={searched}&kind={kind}&current={current}&cursor={next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_looked_for_as_what_it_can_be() {
        let key = "zQ3shunBKsXixLxKtC5qeSG9E4J5RkGN57im31pcTzbNQnm5w";
        for (text, expected) in [
            ("alice.example.com", &[ClaimKind::Handle, ClaimKind::Host][..]),
            ("@alice.example.com", &[ClaimKind::Handle]),
            ("at://alice.example.com", &[ClaimKind::Handle]),
            ("https://pds.example.com/x", &[ClaimKind::Host]),
            (key, &[ClaimKind::Key]),
            ("did:key:anything", &[ClaimKind::Key]),
        ] {
            assert_eq!(kinds(text), expected, "{text}");
        }
    }
}
