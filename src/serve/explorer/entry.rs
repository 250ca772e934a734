//! One operation of a history.

use maud::{Markup, html};

use did_plc::json::write_operation;
use did_plc::operation::{Kind, Malformed};
use did_plc::{Did, Timestamp};

use super::diff::{diff, headline};
use super::parts::{duration, key, short, time, time_ago};
use super::text;
use super::timeline::{Entry, Timeline};

/// What an entry is shown with.
pub struct Context<'a> {
    /// The identity.
    pub did: Did,
    /// Its history.
    pub timeline: &'a Timeline<'a>,
    /// The time of the page.
    pub now: Timestamp,
    /// Where each entry is shown.
    pub href: &'a dyn Fn(usize) -> String,
}

impl Context<'_> {
    /// The entry with this index, as an item of the list.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when stored bytes are no operation.
    pub fn entry(&self, index: usize) -> Result<Markup, Malformed> {
        let entry = &self.timeline.entries[index];
        let cid = entry.cid.to_string();
        let nullified = entry.nullified_by.is_some();
        let mut json = Vec::new();
        write_operation(&entry.stored.signed, &mut json)?;
        Ok(html! {
            li.entry.nullified[nullified] id=(cid) {
                h3 {
                    a href=((self.href)(index)) { "#" (index + 1) }
                    " " (headline(&entry.changes))
                    @if !entry.nullifies.is_empty() { ", a recovery" }
                }
                p.badges { (self.badges(entry)) }
                p.when { (time_ago(entry.stored.created_at, self.now)) }
                (self.undoing(entry))
                (diff(&entry.changes))
                (self.signature(entry))
                (self.particulars(index, &cid))
                details {
                    summary { "Operation as JSON" }
                    (text::json(&String::from_utf8_lossy(&json)))
                }
            }
        })
    }

    fn badges(&self, entry: &Entry<'_>) -> Markup {
        let is_head = self.timeline.head().is_some_and(|head| head.cid == entry.cid);
        html! {
            @if is_head { span.tag.good { "current" } " " }
            @if entry.nullified_by.is_some() { span.tag.bad { "nullified" } " " }
            @if entry.operation.kind() == Kind::Tombstone { span.tag.warn { "tombstone" } " " }
            span.tag { "verified here " (time(entry.stored.received_at)) }
        }
    }

    /// What this operation undid, what undid it, and whether something still can.
    fn undoing(&self, entry: &Entry<'_>) -> Markup {
        let link = |index: usize| html! { a href=((self.href)(index)) { "#" (index + 1) } };
        html! {
            @if let Some(by) = entry.nullified_by {
                p.outcome { "Undone by " (link(by)) "." }
            }
            @if let [first, .., last] = entry.nullifies[..] {
                p.outcome {
                    "Undoes " (entry.nullifies.len()) " operations, "
                    (link(first)) " to " (link(last)) "."
                }
            } @else if let [only] = entry.nullifies[..] {
                p.outcome { "Undoes " (link(only)) "." }
            }
            @if let Some(until) = entry.contestable_until(self.now) {
                p.outcome.open {
                    strong { "Can still be undone" } " until " (time(until))
                    " (for another " (duration(until.since(self.now))) ") by rotation key 1"
                    @if entry.stored.signer > 1 { " to " (entry.stored.signer) }
                    " of " (self.follows(entry)) "."
                }
            }
        }
    }

    fn follows(&self, entry: &Entry<'_>) -> Markup {
        html! {
            @match entry.prev {
                Some(prev) => a href=((self.href)(prev)) { "#" (prev + 1) },
                None => "its own list",
            }
        }
    }

    fn signature(&self, entry: &Entry<'_>) -> Markup {
        html! {
            dl {
                dt { "Signed by" }
                dd { (key(entry.signer)) }
                dt { "Its rank" }
                dd {
                    "rotation key " (entry.stored.signer + 1) " of "
                    @if entry.prev.is_none() { "its own list" }
                    @else { "the list in " (self.follows(entry)) }
                }
            }
        }
    }

    fn particulars(&self, index: usize, cid: &str) -> Markup {
        let entry = &self.timeline.entries[index];
        let did = self.did;
        // The row below is the operation before in time, which need not be the one that it follows.
        let skips = entry.prev.filter(|prev| prev + 1 != index);
        html! {
            dl {
                dt { "CID" } dd.code { (cid) }
                @if let Some(prev) = skips {
                    dt { "Follows" }
                    dd {
                        a href=((self.href)(prev)) { "#" (prev + 1) }
                        " (" span.code { (short(&self.timeline.entries[prev].cid)) } ")"
                    }
                }
                @if let Some(sequence) = entry.stored.sequence {
                    dt { "Sequence" } dd { (sequence) }
                }
                @if entry.nullified_by.is_none() && entry.operation.kind() != Kind::Tombstone {
                    dt { "Then" }
                    dd {
                        a href=(format!("/1.0/identifiers/{did}?versionId={cid}")) {
                            "resolution at that time"
                        }
                    }
                }
            }
        }
    }
}
