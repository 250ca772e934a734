//! The comparison of two logs of one identity: pure, and blind to who was right.
//!
//! A thing is named once, by what is nearest to its cause: an operation that is gone there is
//! `missing-there`, and that another one is the head there for this reason is not a second
//! difference.

use std::fmt;

use super::history::{History, Step};
use did_plc::operation::Kind as OperationKind;
use did_plc::{Cid, Operation, Refusal, Timestamp, document};

/// How two logs differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// We hold an operation that their log lacks.
    MissingThere,
    /// Their log has a valid operation that we lack.
    MissingHere,
    /// Under a CID that we hold their log has something else.
    OtherBytes,
    /// The same operation at another time.
    OtherCreatedAt,
    /// The same operation with another sequence number.
    OtherSequence,
    /// The same operation, nullified on one side only.
    OtherNullifiedFlag,
    /// The same operations in another order.
    OtherOrder,
    /// The operation that they say is the newest is not the one that their log leads to.
    OtherHead,
    /// Their document is not what their log leads to.
    OtherDocument,
    /// Their log has an operation that the rules refuse.
    DoesNotVerify,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::MissingThere,
        Kind::MissingHere,
        Kind::OtherBytes,
        Kind::OtherCreatedAt,
        Kind::OtherSequence,
        Kind::OtherNullifiedFlag,
        Kind::OtherOrder,
        Kind::OtherHead,
        Kind::OtherDocument,
        Kind::DoesNotVerify,
    ];

    /// The name, as it is recorded and served.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::MissingThere => "missing-there",
            Kind::MissingHere => "missing-here",
            Kind::OtherBytes => "other-bytes",
            Kind::OtherCreatedAt => "other-created-at",
            Kind::OtherSequence => "other-sequence",
            Kind::OtherNullifiedFlag => "other-nullified-flag",
            Kind::OtherOrder => "other-order",
            Kind::OtherHead => "other-head",
            Kind::OtherDocument => "other-document",
            Kind::DoesNotVerify => "does-not-verify",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub kind: Kind,
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
    /// This.
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
    /// The differences.
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
    fn push(&mut self, kind: Kind, subject: impl fmt::Display, detail: String) {
        self.found.differences.push(Difference { kind, subject: subject.to_string(), detail });
    }

    fn find_missing_there(&mut self) {
        for step in &self.ours.steps {
            let stated = &step.stated;
            let cid = stated.cid.to_string();
            let named = |other: &Step| {
                other.stated.cid == stated.cid || other.stated.stated_cid.as_ref() == Some(&cid)
            };
            if self.theirs.steps.iter().any(named)
                || self.theirs.unreadable.iter().any(|other| other.cid == cid)
            {
                continue;
            }
            // One that is dated into the future is here all the same.
            let here_at =
                stated.received_at.map_or(stated.created_at, |at| at.min(stated.created_at));
            if here_at > self.horizon {
                self.found.set_aside += 1;
                continue;
            }
            let detail = format!("we hold it, accepted at {}", stated.created_at);
            self.push(Kind::MissingThere, cid, detail);
        }
    }

    fn find_in_theirs(&mut self) {
        for unreadable in &self.theirs.unreadable {
            self.refuse(&unreadable.cid, &unreadable.refusal);
        }
        for step in &self.theirs.steps {
            match self.ours.find(&step.stated.cid) {
                Some(ours) => self.compare_steps(ours, step),
                None => self.judge_unknown(step),
            }
        }
    }

    /// An operation of theirs that we do not hold.
    fn judge_unknown(&mut self, step: &Step) {
        let stated = &step.stated;
        let named = stated.stated_cid.as_ref().and_then(|cid| cid.parse().ok());
        if let Some(held) = named.and_then(|cid| self.ours.find(&cid)) {
            let detail = format!("theirs is an operation whose CID is {}", stated.cid);
            return self.push(Kind::OtherBytes, held.stated.cid, detail);
        }
        let may_be_new = self.horizon < stated.created_at && stated.created_at <= self.latest;
        match &step.verdict {
            // What they hold is judged by what they hold: nothing that they wait for would mend it.
            Err(refusal) if !refusal.lacks_prev() => {
                self.refuse(&stated.cid.to_string(), refusal);
            }
            // It may rest on what was set aside, or be new itself.
            _ if may_be_new => self.found.set_aside += 1,
            Ok(_) => {
                let detail = format!("theirs, accepted at {}", stated.created_at);
                self.push(Kind::MissingHere, stated.cid, detail);
            }
            Err(refusal) => self.refuse(&stated.cid.to_string(), refusal),
        }
    }

    fn refuse(&mut self, cid: &str, refusal: &Refusal) {
        self.push(Kind::DoesNotVerify, cid, format!("{}: {refusal}", refusal.kind()));
    }

    /// The same operation on both sides. That theirs is refused has its cause elsewhere then,
    /// unless it is the statement itself that contradicts itself.
    fn compare_steps(&mut self, ours: &Step, theirs: &Step) {
        let cid = ours.stated.cid;
        if let Err(refusal @ Refusal::CidMismatch { .. }) = &theirs.verdict {
            return self.refuse(&cid.to_string(), refusal);
        }
        let (here, there) = (ours.stated.created_at, theirs.stated.created_at);
        if here != there {
            self.push(Kind::OtherCreatedAt, cid, format!("{here} here, {there} there"));
        }
        if let (Some(here), Some(there)) = (ours.stated.sequence, theirs.stated.sequence)
            && here != there
        {
            self.push(Kind::OtherSequence, cid, format!("{here} here, {there} there"));
        }
        let (Some(here), Some(there)) =
            (self.flag(self.ours, ours), self.flag(self.theirs, theirs))
        else {
            return;
        };
        if here != there {
            let name = |flag| if flag { "nullified" } else { "in force" };
            let detail = format!("{} here, {} there", name(here), name(there));
            self.push(Kind::OtherNullifiedFlag, cid, detail);
        }
    }

    /// The flag that a side states, as of the horizon: what nullified it may be too new to be on
    /// both sides.
    fn flag(&self, side: &History, step: &Step) -> Option<bool> {
        let other = if std::ptr::eq(side, self.ours) { self.theirs } else { self.ours };
        let too_new = step
            .nullified_by
            .filter(|by| other.find(by).is_none())
            .and_then(|by| side.find(&by))
            .is_some_and(|by| by.stated.created_at > self.horizon);
        step.stated.nullified.map(|flag| flag && !too_new)
    }

    /// The operations that both sides have, where their times do not tell the order already.
    fn find_other_order(&mut self) {
        let times_differ =
            self.found.differences.iter().any(|found| found.kind == Kind::OtherCreatedAt);
        if times_differ {
            return;
        }
        let shared = |of: &History, with: &History| -> Vec<Cid> {
            let cids = of.steps.iter().map(|step| step.stated.cid);
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
            Kind::OtherOrder,
            subject.map_or_else(String::new, |cid| cid.to_string()),
            detail,
        );
    }

    /// What they answer on their other paths, against what their own log leads to, by its own
    /// flags: that one of these is wrong has been said already.
    fn find_other_answers(&mut self, theirs: &Theirs<'_>) {
        let Some(head) = theirs.history.stated_head() else { return };
        let head_cid = head.stated.cid;
        let other_head = match theirs.last {
            Said::This(last) if last != head_cid => Some(last.to_string()),
            Said::Nothing => Some("that there is none".to_owned()),
            _ => None,
        };
        if let Some(last) = other_head {
            let detail = format!("their log leads to {head_cid}, they say {last}");
            self.push(Kind::OtherHead, head_cid, detail);
        }
        let ended = Operation::read(&head.stated.signed)
            .is_ok_and(|operation| operation.kind() == OperationKind::Tombstone);
        let mut expected = Vec::new();
        let written =
            document::write_document(&theirs.history.did, &head.stated.signed, &mut expected);
        let other_document = match theirs.document {
            Said::Unknown => None,
            Said::Nothing => (!ended).then_some("they say that there is no document"),
            Said::This(document) => {
                let same = written.is_ok() && !ended && same_json(&expected, document);
                (!same).then_some("their document is not the one that their log leads to")
            }
        };
        if let Some(detail) = other_document {
            self.push(Kind::OtherDocument, head_cid, detail.to_owned());
        }
    }
}

/// Whether two texts are the same JSON; white space and the order of keys do not count.
fn same_json(one: &[u8], other: &[u8]) -> bool {
    let value = |text| serde_json::from_slice::<serde_json::Value>(text).ok();
    value(one).is_some_and(|one| Some(one) == value(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::signature::PlainVerifier;
    use plc_testkit::builder::{Story, Told};
    use plc_testkit::{Generated, audit_log};

    /// 2100: later than any story.
    const LATE: Timestamp = Timestamp::from_millis(4_102_444_800_000);

    /// A story with a recovery: genesis, update, theft, recovery, update.
    struct Case {
        story: Story,
        alice: Told,
        log: Vec<Generated>,
    }

    impl Case {
        fn new() -> Case {
            let mut story = Story::seeded(21);
            let thief = story.k256();
            let recovery = story.recovery.clone();
            let alice = story.create().accepted();
            let update = story.update(&alice).handle("a.example").accepted();
            story.update(&alice).rotation_keys([&thief]).accepted();
            story.after(&update).signed_by(&recovery).handle("b.example").accepted();
            story.update(&alice).handle("c.example").accepted();
            let log = story.accepted(&alice).cloned().collect();
            Case { story, alice, log }
        }

        fn history(&self, log: &[Generated]) -> History {
            let did = self.alice.did.parse().unwrap();
            History::of_audit_log(did, audit_log(log).as_bytes(), &PlainVerifier).unwrap()
        }

        fn against(&self, theirs: &[Generated], horizon: Timestamp) -> Comparison {
            let history = self.history(theirs);
            let theirs = Theirs {
                history: &history,
                last: Said::Unknown,
                document: Said::Unknown,
                latest: LATE,
            };
            compare(&self.history(&self.log), &theirs, horizon)
        }

        /// (kind, index of the operation in our log) of what is found when theirs is this.
        fn found(&self, theirs: &[Generated]) -> Vec<(Kind, Option<usize>)> {
            let comparison = self.against(theirs, LATE);
            assert_eq!(comparison.set_aside, 0);
            let place = |cid: &str| self.log.iter().position(|entry| entry.cid == cid);
            let found = comparison.differences.iter();
            found.map(|found| (found.kind, place(&found.subject))).collect()
        }
    }

    #[test]
    fn the_same_log_is_the_same() {
        let case = Case::new();
        assert_eq!(case.against(&case.log, LATE), Comparison::default());
    }

    #[test]
    fn a_deleted_operation_is_missing_there_and_nothing_else() {
        let case = Case::new();
        for index in [0, 1, 2, 4] {
            let mut theirs = case.log.clone();
            theirs.remove(index);
            assert_eq!(case.found(&theirs), [(Kind::MissingThere, Some(index))], "{index}");
        }
        assert_eq!(case.found(&[]).len(), 5);
    }

    #[test]
    fn a_rewind_of_a_recovery_shows_in_the_flags_too() {
        let case = Case::new();
        let mut theirs = case.log[..3].to_vec();
        theirs[2].nullified_in_the_end = false;
        assert_eq!(
            case.found(&theirs),
            [
                (Kind::MissingThere, Some(3)),
                (Kind::MissingThere, Some(4)),
                (Kind::OtherNullifiedFlag, Some(2)),
            ]
        );
    }

    #[test]
    fn what_they_have_more_is_missing_here() {
        let case = Case::new();
        let history = case.history(&case.log);
        let ours = case.history(&case.log[..4]);
        let theirs = Theirs {
            history: &history,
            last: Said::Unknown,
            document: Said::Unknown,
            latest: LATE,
        };
        let found = compare(&ours, &theirs, LATE).differences;
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, &found[0].subject), (Kind::MissingHere, &case.log[4].cid));
    }

    #[test]
    fn a_swapped_operation_is_missing_on_both_sides() {
        let mut case = Case::new();
        let genuine = case.log.pop().unwrap();
        let prev = Told {
            did: case.alice.did.clone(),
            cid: case.log[3].cid.clone(),
            created_at: case.log[3].created_at.parse().unwrap(),
        };
        case.story.after(&prev).at(&genuine.created_at).handle("evil.example").accepted();
        let mut theirs = case.log.clone();
        theirs.push(case.story.log().last().unwrap().clone());
        case.log.push(genuine);
        let found = case.found(&theirs);
        assert_eq!(found, [(Kind::MissingThere, Some(4)), (Kind::MissingHere, None)]);
    }

    #[test]
    fn restated_fields_are_told_apart() {
        let case = Case::new();
        let mut theirs = case.log.clone();
        theirs[4].created_at = "2024-01-05T00:00:00.000Z".into();
        assert_eq!(case.found(&theirs), [(Kind::OtherCreatedAt, Some(4))]);

        let mut theirs = case.log.clone();
        theirs[1].nullified_in_the_end = true;
        assert_eq!(case.found(&theirs), [(Kind::OtherNullifiedFlag, Some(1))]);

        let mut theirs = case.log.clone();
        theirs.swap(1, 2);
        assert_eq!(case.found(&theirs), [(Kind::OtherOrder, Some(2))]);

        let mut theirs = case.log.clone();
        theirs[4].operation_json = theirs[4].operation_json.replace("c.example", "x.example");
        assert_eq!(case.found(&theirs), [(Kind::OtherBytes, Some(4))]);
    }

    #[test]
    fn sequence_numbers_are_compared_where_both_sides_have_them() {
        let case = Case::new();
        let history = |log: &[Generated]| {
            let lines: Vec<String> = log.iter().map(Generated::sequenced_line).collect();
            let lines = lines.iter().map(String::as_bytes);
            History::of_lines(case.alice.did.parse().unwrap(), lines, &PlainVerifier)
        };
        let mut theirs = case.log.clone();
        theirs[4].seq = 99;
        let (ours, theirs) = (history(&case.log), history(&theirs));
        let theirs =
            Theirs { history: &theirs, last: Said::Unknown, document: Said::Unknown, latest: LATE };
        let found = compare(&ours, &theirs, LATE).differences;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].detail, "5 here, 99 there");
    }

    #[test]
    fn what_the_rules_refuse_does_not_verify() {
        let mut case = Case::new();
        let alice = case.alice.clone();
        case.story.update(&alice).forged_signature().refused("signature-invalid");
        let mut theirs = case.log.clone();
        theirs.push(case.story.log().last().unwrap().clone());
        assert_eq!(case.found(&theirs), [(Kind::DoesNotVerify, None)]);

        let mut theirs = case.log.clone();
        theirs[4].operation_json = r#"{"type":"news"}"#.into();
        assert_eq!(case.found(&theirs), [(Kind::DoesNotVerify, Some(4))]);

        let mut theirs = case.log.clone();
        theirs[4].cid = theirs[4].cid.replace("bafy", "bagy");
        let found = case.found(&theirs);
        assert_eq!(found, [(Kind::DoesNotVerify, Some(4))]);
    }

    #[test]
    fn being_behind_is_no_difference() {
        let case = Case::new();
        let before = |index: usize| {
            let at: Timestamp = case.log[index].created_at.parse().unwrap();
            Timestamp::from_millis(at.millis() - 1)
        };
        // They have not seen the recovery and what came after it; the theft stands there.
        let mut behind = case.log[..3].to_vec();
        behind[2].nullified_in_the_end = false;
        let comparison = case.against(&behind, before(3));
        assert_eq!(comparison, Comparison { differences: vec![], set_aside: 2 });
        // We have not.
        let history = case.history(&case.log);
        let theirs = Theirs {
            history: &history,
            last: Said::Unknown,
            document: Said::Unknown,
            latest: LATE,
        };
        let comparison = compare(&case.history(&behind), &theirs, before(3));
        assert_eq!(comparison, Comparison { differences: vec![], set_aside: 2 });
    }

    #[test]
    fn other_answers_are_held_against_their_own_log() {
        let case = Case::new();
        let history = case.history(&case.log);
        let head = history.head().unwrap();
        let stale = history.steps[1].stated.cid;
        let mut document = Vec::new();
        document::write_document(&history.did, &head.stated.signed, &mut document).unwrap();
        let mut stale_document = Vec::new();
        document::write_document(
            &history.did,
            &history.steps[1].stated.signed,
            &mut stale_document,
        )
        .unwrap();
        let kinds = |last, document: Said<&[u8]>| -> Vec<Kind> {
            let theirs = Theirs { history: &history, last, document, latest: LATE };
            let found = compare(&history, &theirs, LATE).differences;
            found.iter().map(|found| found.kind).collect()
        };
        let (head, document) = (Said::This(head.stated.cid), Said::This(&document[..]));
        assert_eq!(kinds(head, document), []);
        assert_eq!(kinds(Said::Unknown, Said::Unknown), []);
        assert_eq!(kinds(Said::This(stale), document), [Kind::OtherHead]);
        assert_eq!(kinds(head, Said::This(&stale_document)), [Kind::OtherDocument]);
        // They keep the log and hide the identity.
        assert_eq!(kinds(head, Said::Nothing), [Kind::OtherDocument]);
        assert_eq!(kinds(Said::Nothing, document), [Kind::OtherHead]);
    }

    #[test]
    fn an_ended_identity_has_no_document_and_a_head() {
        let mut case = Case::new();
        let tombstone = case.story.tombstone(&case.alice).accepted();
        case.log = case.story.accepted(&case.alice).cloned().collect();
        let history = case.history(&case.log);
        let last = Said::This(tombstone.cid.parse().unwrap());
        let found = |last, document| {
            compare(&history, &Theirs { history: &history, last, document, latest: LATE }, LATE)
                .differences
                .len()
        };
        assert_eq!(found(last, Said::Nothing), 0);
        assert_eq!(found(Said::Nothing, Said::Nothing), 1);
        assert_eq!(found(last, Said::This(b"{}")), 1);
    }

    #[test]
    fn what_is_dated_into_the_future_can_be_missing_today() {
        let mut case = Case::new();
        case.story.update(&case.alice).at("2099-01-01T00:00:00.000Z").accepted();
        case.log = case.story.accepted(&case.alice).cloned().collect();
        let mut ours = case.history(&case.log);
        let theirs = case.history(&case.log[..5]);
        let theirs =
            Theirs { history: &theirs, last: Said::Unknown, document: Said::Unknown, latest: LATE };
        let horizon: Timestamp = "2030-01-01T00:00:00.000Z".parse().unwrap();
        assert_eq!(compare(&ours, &theirs, horizon).set_aside, 1);
        ours.steps[5].stated.received_at = Some("2029-01-01T00:00:00.000Z".parse().unwrap());
        let found = compare(&ours, &theirs, horizon).differences;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, Kind::MissingThere);
    }

    #[test]
    fn what_follows_from_a_wrong_flag_is_no_second_difference() {
        let case = Case::new();
        let mut theirs = case.log.clone();
        theirs[4].nullified_in_the_end = true;
        let theirs = case.history(&theirs);
        let head = &theirs.steps[3].stated;
        let mut document = Vec::new();
        document::write_document(&theirs.did, &head.signed, &mut document).unwrap();
        let (last, document) = (Said::This(head.cid), Said::This(&document[..]));
        let theirs = Theirs { history: &theirs, last, document, latest: LATE };
        let found = compare(&case.history(&case.log), &theirs, LATE).differences;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, Kind::OtherNullifiedFlag);
    }
}
