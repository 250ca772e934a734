//! One operation of a history.

use maud::{Markup, html};

use crate::words::duration;
use did_plc::entry::Received;
use did_plc::history::{Contestable, HistoryEntry};
use did_plc::json::write_operation;
use did_plc::operation::Malformed;
use did_plc::{Change, History, Timestamp};

use super::diff::{diff, headline};
use super::parts::{key, short, time, time_ago};
use super::text;

/// What an entry is shown with.
pub struct Context<'a> {
    /// The history of the identity.
    pub history: &'a History,
    /// What each entry changed.
    pub changes: &'a [Vec<Change>],
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
        let entry = &self.history.entries[index];
        let changes = &self.changes[index];
        let cid = entry.received.cid.to_string();
        let nullified = entry.nullified_by.is_some();
        let mut json = Vec::new();
        write_operation(&entry.received.signed, &mut json)?;
        Ok(html! {
            li.entry.nullified[nullified] id=(cid) {
                h3 {
                    (self.link(index)) " " (headline(changes))
                    @if !entry.nullifies.is_empty() { ", a recovery" }
                }
                p.badges { (self.badges(entry)) }
                p.when { (time_ago(entry.received.created_at, self.now)) }
                (self.undoing(index))
                (diff(changes))
                (self.signature(index))
                (self.particulars(index, &cid))
                details {
                    summary { "Operation as JSON" }
                    (text::json(&String::from_utf8_lossy(&json)))
                }
            }
        })
    }

    fn link(&self, index: usize) -> Markup {
        html! { a href=((self.href)(index)) { "#" (index + 1) } }
    }

    fn badges(&self, entry: &HistoryEntry) -> Markup {
        let Received { cid, received_at, .. } = entry.received;
        let is_head = self.history.head().is_some_and(|head| head.received.cid == cid);
        html! {
            @if is_head { span.tag.good { "current" } " " }
            @if entry.nullified_by.is_some() { span.tag.bad { "nullified" } " " }
            @if entry.is_tombstone() { span.tag.warn { "tombstone" } " " }
            @if let Some(at) = received_at { span.tag { "verified here " (time(at)) } }
        }
    }

    /// What this operation undid, what undid it, and whether something still can.
    fn undoing(&self, index: usize) -> Markup {
        let entry = &self.history.entries[index];
        let contestable =
            self.history.contestable(index).filter(|contestable| self.now <= contestable.until);
        html! {
            @if let Some(by) = entry.nullified_by {
                p.outcome { "Undone by " (self.link(by)) "." }
            }
            @if let [first, .., last] = entry.nullifies[..] {
                p.outcome {
                    "Undoes " (entry.nullifies.len()) " operations, "
                    (self.link(first)) " to " (self.link(last)) "."
                }
            } @else if let [only] = entry.nullifies[..] {
                p.outcome { "Undoes " (self.link(only)) "." }
            }
            @if let Some(Contestable { until, entry: contested, keys }) = contestable {
                p.outcome.open {
                    strong { "Can still be undone" }
                    @if contested != index {
                        ", with " (self.link(contested)) " which it builds on,"
                    }
                    " until " (time(until))
                    " (for another " (duration(until.since(self.now))) ") by rotation key 0"
                    @if keys > 1 { " to " (keys - 1) }
                    " of " (self.follows(contested)) "."
                }
            }
        }
    }

    fn follows(&self, index: usize) -> Markup {
        match self.history.entries[index].prev {
            Some(prev) => self.link(prev),
            None => html! { "its own list" },
        }
    }

    fn signature(&self, index: usize) -> Markup {
        let entry = &self.history.entries[index];
        html! {
            dl {
                dt { "Signed by" }
                dd { (key(self.history.signer_key(index).unwrap_or_default())) }
                dt { "Its number" }
                dd {
                    "rotation key " (entry.signer().unwrap_or(0)) " of "
                    @if entry.prev.is_none() { "its own list" }
                    @else { "the list in " (self.follows(index)) }
                }
            }
        }
    }

    fn particulars(&self, index: usize, cid: &str) -> Markup {
        let entry = &self.history.entries[index];
        let did = self.history.did;
        // The row below is the operation before in time, which need not be the one that it follows.
        let skips = entry.prev.filter(|prev| prev + 1 != index);
        html! {
            dl {
                dt { "CID" } dd.code { (cid) }
                @if let Some(prev) = skips {
                    dt { "Follows" }
                    dd {
                        (self.link(prev))
                        " (" span.code { (short(&self.history.entries[prev].received.cid)) } ")"
                    }
                }
                @if let Some(remark) = entry.remark() {
                    dt { "Remark" } dd { (text::text(&remark.to_string())) }
                }
                @if let Some(sequence) = entry.received.sequence {
                    dt { "Sequence" } dd { (sequence) }
                }
                @if entry.nullified_by.is_none() && !entry.is_tombstone() {
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
