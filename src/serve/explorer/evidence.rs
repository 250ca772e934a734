//! What was refused, and where others say otherwise, of all identities.

use did_plc::Timestamp;
use maud::{Markup, html};
use url::form_urlencoded;

use crate::serve::error::ServeError;
use crate::serve::evidence::{Page, divergences_page, refused_page};
use crate::serve::state::Server;

use super::{layout, records};

/// `/explore/refused`, with the parameters of `/_audit/refused`.
///
/// # Errors
///
/// A parameter that cannot be read; those of the store.
pub async fn refused(server: &Server, query: &str, now: Timestamp) -> Result<String, ServeError> {
    let Page { records, next } = refused_page(server, query).await?;
    let items = html! {
        @for kept in &records { (records::refusal(kept, Some(&kept.refusal.did), now)) }
    };
    let list = List {
        title: "Refused operations",
        about: "Lines that came from a directory and did not pass the check here. They are kept as they were received, and \
                are no part of any history. The oldest come first.",
        place: "refused",
        filters: [("All", ""), ("Standing", "open=true"), ("Accepted later", "open=false")],
    };
    Ok(list.render(&items, records.is_empty(), query, next))
}

/// `/explore/divergences`, with the parameters of `/_audit/divergences`.
///
/// # Errors
///
/// A parameter that cannot be read; those of the store.
pub async fn divergences(
    server: &Server,
    query: &str,
    now: Timestamp,
) -> Result<String, ServeError> {
    let Page { records, next } = divergences_page(server, query).await?;
    let items = html! {
        @for record in &records {
            (records::divergence(record, Some(&record.divergence.did), now))
        }
    };
    let list = List {
        title: "Divergences",
        about: "Where a directory, or another replica, said something else than what is held here. Both sides are kept. \
                The oldest come first.",
        place: "divergences",
        filters: [("All", ""), ("Open", "open=true"), ("Gone", "open=false")],
    };
    Ok(list.render(&items, records.is_empty(), query, next))
}

/// A list of records.
struct List {
    title: &'static str,
    about: &'static str,
    /// The last part of its path, and of the path to the same for programs.
    place: &'static str,
    /// What it can be narrowed down to, and the query for that.
    filters: [(&'static str, &'static str); 3],
}

impl List {
    fn render(&self, items: &Markup, is_empty: bool, query: &str, next: Option<i64>) -> String {
        let href = |query: &str| format!("/explore/{}?{query}", self.place);
        let content = html! {
            section.card aria-labelledby="records" {
                h1 #records { (self.title) }
                p.note {
                    (self.about) " "
                    a href=(format!("/_audit/{}?{query}", self.place)) { "As JSON" }
                }
                p.filters {
                    @for (name, filter) in self.filters { a href=(href(filter)) { (name) } }
                }
                @if is_empty {
                    p { @if next.is_some() { "None among those looked at so far." } @else { "There are none." } }
                }
                ul.records { (items) }
                @if let Some(next) = next {
                    p.pages { a href=(href(&after(query, next))) { "More" } }
                }
            }
        };
        layout::page(self.title, "", content)
    }
}

/// A query with another place to read on from.
fn after(query: &str, next: i64) -> String {
    let kept = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "after");
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(kept)
        .append_pair("after", &next.to_string())
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_of_the_same_records() {
        assert_eq!(after("", 7), "after=7");
        assert_eq!(after("open=true&after=7&kind=a%20b", 9), "open=true&kind=a+b&after=9");
    }
}
