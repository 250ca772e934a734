//! What was refused, and where others say otherwise: as parts of an identity's page, and of lists.

use maud::{Markup, html};

use crate::store::{DivergenceKind, StoredDivergence, StoredRefusal};
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
                    @for kept in refusals.iter().take(MAX_RECORDS) { (refusal(kept, None, now)) }
                }
                (rest(refusals.len()))
            }
        }
    }
}

/// A refusal; in a list with the identity that it is of.
pub fn refusal(kept: &StoredRefusal, of: Option<&str>, now: Timestamp) -> Markup {
    html! {
        li {
            h3 { (text::line(&kept.refusal.kind)) }
            (identity(of))
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
                        (divergence(record, None, now))
                    }
                }
                (rest(divergences.len()))
            }
        }
    }
}

/// A difference; in a list with the identity that it is of.
pub fn divergence(record: &StoredDivergence, of: Option<&str>, now: Timestamp) -> Markup {
    let said = &record.divergence;
    html! {
        li {
            h3 {
                (text::line(&said.kind)) " "
                @if record.closed_at.is_some() { span.tag { "closed" } }
                @else { span.tag.warn { "open" } }
            }
            (identity(of))
            @if let Some(kind) = DivergenceKind::of_name(&said.kind) { p { (meaning(kind)) } }
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

/// The identity of a record, which may be any text.
fn identity(of: Option<&str>) -> Markup {
    html! {
        @if let Some(of) = of {
            p {
                @match of.parse::<Did>() {
                    Ok(did) => a.code href=(format!("/explore/{did}")) { (did) },
                    Err(_) => (text::line(of)),
                }
            }
        }
    }
}

/// What a difference of a kind is.
fn meaning(kind: DivergenceKind) -> &'static str {
    match kind {
        DivergenceKind::Backdated => {
            "The operation came as new, with a time that is well before it came, or before others that came earlier."
        }
        DivergenceKind::RestatedCid => "The operation came again under another CID.",
        DivergenceKind::RestatedCreatedAt => "The operation came again with another time.",
        DivergenceKind::RestatedSequence => {
            "The operation came again with another sequence number."
        }
        DivergenceKind::UpstreamRewound => {
            "The directory's log ended before what was read from it, or went on differently from there."
        }
        DivergenceKind::MissingThere => {
            "The operation is held here, and the other log of this identity lacks it."
        }
        DivergenceKind::MissingInExport => {
            "The operation is held here; the directory, which gave it, has left it out of its export since."
        }
        DivergenceKind::MissingHere => "The other log has a valid operation that is lacking here.",
        DivergenceKind::OtherBytes => "Under the same CID the other log has another operation.",
        DivergenceKind::OtherCreatedAt => "The same operation has another time there.",
        DivergenceKind::OtherSequence => "The same operation has another sequence number there.",
        DivergenceKind::OtherNullifiedFlag => "The same operation is nullified on one side only.",
        DivergenceKind::OtherOrder => "The same operations stand in another order there.",
        DivergenceKind::OtherHead => {
            "What the other side calls the newest operation is not the one that its own log leads to."
        }
        DivergenceKind::OtherDocument => {
            "The other side's document is not the one that its own log leads to."
        }
        DivergenceKind::DoesNotVerify => "The other log has an operation that the rules refuse.",
    }
}

fn rest(count: usize) -> Markup {
    html! {
        @if count > MAX_RECORDS {
            p.note { "There are more than these." }
        }
    }
}
