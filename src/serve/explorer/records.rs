//! What was refused of an identity, and where others say otherwise.

use maud::{Markup, html};

use crate::store::{StoredDivergence, StoredRefusal};
use did_plc::{Did, Timestamp};

use super::parts::time_ago;
use super::text;

/// Records of a kind that are shown; the rest is in the JSON.
pub const MAX_RECORDS: usize = 20;

/// The refused operations of an identity; nothing when there are none.
pub fn refusals(did: &Did, refusals: &[StoredRefusal], now: Timestamp) -> Markup {
    html! {
        @if !refusals.is_empty() {
            section.card.warn aria-labelledby="refused" {
                h2 #refused { "Refused" }
                p.note {
                    "Operations that came from the directory and did not pass the check here. "
                    "They are kept as they were received and are no part of the history. "
                    a href=(format!("/_audit/refused?did={did}")) { "As JSON" }
                }
                ul.records {
                    @for kept in refusals.iter().take(MAX_RECORDS) { (refusal(kept, now)) }
                }
                (rest(refusals.len()))
            }
        }
    }
}

fn refusal(kept: &StoredRefusal, now: Timestamp) -> Markup {
    html! {
        li {
            h3 { (text::line(&kept.refusal.kind)) }
            div { (text::text(&kept.refusal.detail)) }
            dl {
                dt { "Received" } dd { (time_ago(kept.received_at, now)) }
                @if let Some(cid) = kept.refusal.cid {
                    dt { "CID" } dd.code { (cid) }
                }
                @if let Some(sequence) = kept.refusal.sequence {
                    dt { "Sequence" } dd { (sequence) }
                }
                @if let Some(accepted) = kept.accepted_at {
                    dt { "Accepted later" } dd { (time_ago(accepted, now)) }
                }
            }
            details {
                summary { "As received" }
                (text::json(&String::from_utf8_lossy(&kept.refusal.line)))
            }
        }
    }
}

/// The recorded differences of an identity; nothing when there are none.
pub fn divergences(did: &Did, divergences: &[StoredDivergence], now: Timestamp) -> Markup {
    html! {
        @if !divergences.is_empty() {
            section.card.warn aria-labelledby="divergences" {
                h2 #divergences { "Divergences" }
                p.note {
                    "Where another source said something else than what is held here. "
                    a href=(format!("/_audit/divergences?did={did}")) { "As JSON" }
                }
                ul.records {
                    @for record in divergences.iter().take(MAX_RECORDS) {
                        (divergence(record, now))
                    }
                }
                (rest(divergences.len()))
            }
        }
    }
}

fn divergence(record: &StoredDivergence, now: Timestamp) -> Markup {
    let said = &record.divergence;
    html! {
        li {
            h3 {
                (text::line(&said.kind)) " "
                @if record.closed_at.is_some() { span.tag { "closed" } }
                @else { span.tag.warn { "open" } }
            }
            dl {
                dt { "Source" } dd { (text::text(&said.source)) }
                dt { "About" } dd.code { (text::text(&said.subject)) }
                dt { "First seen" } dd { (time_ago(record.first_seen, now)) }
                dt { "Last seen" } dd { (time_ago(record.last_seen, now)) }
                @if let Some(closed) = record.closed_at {
                    dt { "Gone" } dd { (time_ago(closed, now)) }
                }
            }
            @for (whose, entry) in [("Held here", &said.ours), ("Said there", &said.theirs)] {
                @if let Some(entry) = entry {
                    details { summary { (whose) } (text::json(entry)) }
                }
            }
        }
    }
}

fn rest(count: usize) -> Markup {
    html! {
        @if count > MAX_RECORDS {
            p.note { "There are more than these." }
        }
    }
}
