//! The comparison of two logs of one identity: pure, and blind to who was right.
//!
//! A thing is named once, by what is nearest to its cause: an operation that is gone there is
//! `missing-there`, and that another one is the head there for this reason is not a second
//! difference.

use std::fmt;

use crate::store::DivergenceKind;
use did_plc::entry::Received;
use did_plc::history::{History, HistoryEntry, Judgement};
use did_plc::{Cid, Refusal, Timestamp, document};

/// The kinds of difference that a comparison finds.
pub const FOUND_BY_COMPARISON: [DivergenceKind; 10] = [
    DivergenceKind::MissingThere,
    DivergenceKind::MissingHere,
    DivergenceKind::OtherBytes,
    DivergenceKind::OtherCreatedAt,
    DivergenceKind::OtherSequence,
    DivergenceKind::OtherNullifiedFlag,
    DivergenceKind::OtherOrder,
    DivergenceKind::OtherHead,
    DivergenceKind::OtherDocument,
    DivergenceKind::DoesNotVerify,
];

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In what they differ.
    pub kind: DivergenceKind,
    /// The CID that it is about, as text, since theirs need not be one.
    pub subject: String,
    /// Both sides in words.
    pub detail: String,
}

/// What somebody says about an identity.
#[derive(Debug, Clone, Copy)]
pub struct Theirs<'a> {
    /// Their log.
    pub history: &'a History,
    /// The CID of what `/{did}/log/last` answers.
    pub last: Said<Cid>,
    /// What `/{did}` answers.
    pub document: Said<&'a [u8]>,
    /// The latest time that something may honestly be dated at: when they said it, clocks that
    /// differ aside. What they date later is there all the same.
    pub latest: Timestamp,
}

/// What somebody answers on one of their other paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Said<T> {
    /// They were not asked, or failed to answer.
    #[default]
    Unknown,
    /// That there is nothing.
    Nothing,
    /// What they answered.
    This(T),
}

impl<T> Said<T> {
    /// The same of what can be made of it.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Said<U> {
        match self {
            Said::Unknown => Said::Unknown,
            Said::Nothing => Said::Nothing,
            Said::This(value) => Said::This(make(value)),
        }
    }

    /// The same by reference.
    pub fn as_ref(&self) -> Said<&T> {
        match self {
            Said::Unknown => Said::Unknown,
            Said::Nothing => Said::Nothing,
            Said::This(value) => Said::This(value),
        }
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What is not the same, each thing once.
    pub differences: Vec<Difference>,
    /// Operations that one side lacks and that are newer than the horizon: to be looked at again.
    pub set_aside: usize,
}

/// Compares what we hold of an identity with what somebody else says of it.
///
/// What only one side has and is newer than `horizon`, the time up to which both can be expected
/// to be complete, is no difference, and neither is what follows from it.
pub fn compare(ours: &History, theirs: &Theirs<'_>, horizon: Timestamp) -> Comparison {
    let found = Comparison::default();
    let mut diff = Diff { ours, theirs: theirs.history, horizon, latest: theirs.latest, found };
    diff.find_missing_there();
    diff.find_in_theirs();
    diff.find_other_order();
    diff.find_other_answers(theirs);
    diff.found
}

struct Diff<'a> {
    ours: &'a History,
    theirs: &'a History,
    horizon: Timestamp,
    latest: Timestamp,
    found: Comparison,
}

impl Diff<'_> {
    fn push(&mut self, kind: DivergenceKind, subject: impl fmt::Display, detail: String) {
        self.found.differences.push(Difference { kind, subject: subject.to_string(), detail });
    }

    fn find_missing_there(&mut self) {
        for entry in &self.ours.entries {
            let held = &entry.received;
            let cid = held.cid.to_string();
            let named = |other: &HistoryEntry| {
                other.received.cid == held.cid || other.received.stated_cid.as_ref() == Some(&cid)
            };
            if self.theirs.entries.iter().any(named)
                || self.theirs.unreadable.iter().any(|other| other.cid == cid)
            {
                continue;
            }
            if self.is_new_here(held) {
                self.found.set_aside += 1;
                continue;
            }
            let detail = format!("we hold it, accepted at {}", held.created_at);
            self.push(DivergenceKind::MissingThere, cid, detail);
        }
    }

    fn find_in_theirs(&mut self) {
        for unreadable in &self.theirs.unreadable {
            self.refuse(&unreadable.cid, &unreadable.refusal);
        }
        for entry in &self.theirs.entries {
            match self.ours.find(&entry.received.cid) {
                Some(ours) => self.compare_entries(ours, entry),
                None => self.judge_unknown(entry),
            }
        }
    }

    /// An operation of theirs that we do not hold.
    fn judge_unknown(&mut self, entry: &HistoryEntry) {
        let theirs = &entry.received;
        let named = theirs.stated_cid.as_ref().and_then(|cid| cid.parse().ok());
        if let Some(held) = named.and_then(|cid| self.ours.find(&cid)) {
            let detail = format!("theirs is an operation whose CID is {}", theirs.cid);
            return self.push(DivergenceKind::OtherBytes, held.received.cid, detail);
        }
        match &entry.judgement {
            // What they hold is judged by what they hold: nothing that they wait for would mend it.
            Judgement::Refused(refusal) if !refusal.lacks_prev() => {
                self.refuse(&theirs.cid.to_string(), refusal);
            }
            // It may rest on what was set aside, or be new itself.
            _ if self.is_new_there(theirs) => self.found.set_aside += 1,
            Judgement::Accepted { .. } => {
                let detail = format!("theirs, accepted at {}", theirs.created_at);
                self.push(DivergenceKind::MissingHere, theirs.cid, detail);
            }
            // The first of the two has been named.
            Judgement::Repeated => {}
            Judgement::Refused(refusal) => self.refuse(&theirs.cid.to_string(), refusal),
        }
    }

    /// Whether an operation of ours is too new to be expected there. One that is dated into the future
    /// is here all the same.
    fn is_new_here(&self, ours: &Received) -> bool {
        let here_at = ours.received_at.map_or(ours.created_at, |at| at.min(ours.created_at));
        here_at > self.horizon
    }

    /// Whether an operation of theirs is too new to be expected here. What they date into the future is no
    /// news that could be on its way.
    fn is_new_there(&self, theirs: &Received) -> bool {
        self.horizon < theirs.created_at && theirs.created_at <= self.latest
    }

    fn refuse(&mut self, cid: &str, refusal: &Refusal) {
        let detail = format!("{}: {refusal}", refusal.kind());
        self.push(DivergenceKind::DoesNotVerify, cid, detail);
    }

    /// The same operation on both sides. That theirs is refused has its cause elsewhere then,
    /// unless it is the statement itself that contradicts itself.
    fn compare_entries(&mut self, ours: &HistoryEntry, theirs: &HistoryEntry) {
        let (held, said) = (&ours.received, &theirs.received);
        let cid = held.cid;
        if let Some(stated) = &said.stated_cid {
            let refusal = Refusal::CidMismatch { stated: stated.clone(), computed: cid };
            return self.refuse(&cid.to_string(), &refusal);
        }
        let differ = |here: &dyn fmt::Display, there: &dyn fmt::Display| {
            format!("{here} here, {there} there")
        };
        if held.created_at != said.created_at {
            let detail = differ(&held.created_at, &said.created_at);
            self.push(DivergenceKind::OtherCreatedAt, cid, detail);
        }
        if let (Some(here), Some(there)) = (held.sequence, said.sequence)
            && here != there
        {
            self.push(DivergenceKind::OtherSequence, cid, differ(&here, &there));
        }
        let flags = (self.flag(self.ours, ours), self.flag(self.theirs, theirs));
        if let (Some(here), Some(there)) = flags
            && here != there
        {
            let name = |flag| if flag { "nullified" } else { "in force" };
            let detail = differ(&name(here), &name(there));
            self.push(DivergenceKind::OtherNullifiedFlag, cid, detail);
        }
    }

    /// The flag that a side states, as of the horizon: what nullified it may be too new to be on
    /// both sides.
    fn flag(&self, side: &History, entry: &HistoryEntry) -> Option<bool> {
        let is_ours = std::ptr::eq(side, self.ours);
        let other = if is_ours { self.theirs } else { self.ours };
        let is_new = |by: &Received| match is_ours {
            true => self.is_new_here(by),
            false => self.is_new_there(by),
        };
        let too_new = entry
            .nullified_by
            .map(|by| &side.entries[by].received)
            .filter(|by| other.find(&by.cid).is_none())
            .is_some_and(is_new);
        entry.received.nullified.map(|flag| flag && !too_new)
    }

    /// The operations that both sides have, where their times do not tell the order already.
    fn find_other_order(&mut self) {
        let times_differ =
            self.found.differences.iter().any(|found| found.kind == DivergenceKind::OtherCreatedAt);
        if times_differ {
            return;
        }
        let shared = |of: &History, with: &History| -> Vec<Cid> {
            let entries = of.in_stated_order().into_iter();
            let cids = entries.map(|entry| entry.received.cid);
            cids.filter(|cid| with.find(cid).is_some()).collect()
        };
        let here = shared(self.ours, self.theirs);
        let there = shared(self.theirs, self.ours);
        let place = (0..here.len().max(there.len())).find(|&at| here.get(at) != there.get(at));
        let Some(at) = place else { return };
        let name = |cids: &[Cid]| cids.get(at).map_or_else(|| "nothing".into(), Cid::to_string);
        let detail = format!("in place {}: {} here, {} there", at + 1, name(&here), name(&there));
        let subject = there.get(at).or(here.get(at)).copied();
        self.push(
            DivergenceKind::OtherOrder,
            subject.map_or_else(String::new, |cid| cid.to_string()),
            detail,
        );
    }

    /// What they answer on their other paths, against what their own log leads to, by its own
    /// flags: that one of these is wrong has been said already.
    fn find_other_answers(&mut self, theirs: &Theirs<'_>) {
        let Some(head) = theirs.history.stated_head() else { return };
        let head_cid = head.received.cid;
        let other_head = match theirs.last {
            Said::This(last) if last != head_cid => Some(last.to_string()),
            Said::Nothing => Some("that there is none".to_owned()),
            _ => None,
        };
        if let Some(last) = other_head {
            let detail = format!("their log leads to {head_cid}, they say {last}");
            self.push(DivergenceKind::OtherHead, head_cid, detail);
        }
        let ended = head.is_tombstone();
        let other_document = match theirs.document {
            Said::Unknown => None,
            Said::Nothing => (!ended).then_some("they say that there is no document"),
            Said::This(document) => {
                let mut expected = Vec::new();
                let (did, signed) = (&theirs.history.did, &head.received.signed);
                let written = document::write_document(did, signed, &mut expected).is_ok();
                let same = written && !ended && same_json(&expected, document);
                (!same).then_some("their document is not the one that their log leads to")
            }
        };
        if let Some(detail) = other_document {
            self.push(DivergenceKind::OtherDocument, head_cid, detail.to_owned());
        }
    }
}

/// Whether two texts are the same JSON; white space and the order of keys do not count.
fn same_json(one: &[u8], other: &[u8]) -> bool {
    let value = |text| serde_json::from_slice::<serde_json::Value>(text).ok();
    value(one).is_some_and(|one| Some(one) == value(other))
}

#[cfg(test)]
mod tests;
