//! Two sides of one story, and what differs.

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
    fn found(&self, theirs: &[Generated]) -> Vec<(DivergenceKind, Option<usize>)> {
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
        assert_eq!(case.found(&theirs), [(DivergenceKind::MissingThere, Some(index))], "{index}");
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
            (DivergenceKind::MissingThere, Some(3)),
            (DivergenceKind::MissingThere, Some(4)),
            (DivergenceKind::OtherNullifiedFlag, Some(2)),
        ]
    );
}

#[test]
fn what_they_have_more_is_missing_here() {
    let case = Case::new();
    let history = case.history(&case.log);
    let ours = case.history(&case.log[..4]);
    let theirs =
        Theirs { history: &history, last: Said::Unknown, document: Said::Unknown, latest: LATE };
    let found = compare(&ours, &theirs, LATE).differences;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, &found[0].subject), (DivergenceKind::MissingHere, &case.log[4].cid));
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
    assert_eq!(
        found,
        [(DivergenceKind::MissingThere, Some(4)), (DivergenceKind::MissingHere, None)]
    );
}

#[test]
fn restated_fields_are_told_apart() {
    let case = Case::new();
    let mut theirs = case.log.clone();
    theirs[4].created_at = "2024-01-05T00:00:00.000Z".into();
    assert_eq!(case.found(&theirs), [(DivergenceKind::OtherCreatedAt, Some(4))]);

    let mut theirs = case.log.clone();
    theirs[1].nullified_in_the_end = true;
    assert_eq!(case.found(&theirs), [(DivergenceKind::OtherNullifiedFlag, Some(1))]);

    let mut theirs = case.log.clone();
    theirs.swap(1, 2);
    assert_eq!(case.found(&theirs), [(DivergenceKind::OtherOrder, Some(2))]);

    let mut theirs = case.log.clone();
    theirs[4].operation_json = theirs[4].operation_json.replace("c.example", "x.example");
    assert_eq!(case.found(&theirs), [(DivergenceKind::OtherBytes, Some(4))]);
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
    assert_eq!(case.found(&theirs), [(DivergenceKind::DoesNotVerify, None)]);

    let mut theirs = case.log.clone();
    theirs[4].operation_json = r#"{"type":"news"}"#.into();
    assert_eq!(case.found(&theirs), [(DivergenceKind::DoesNotVerify, Some(4))]);

    let mut theirs = case.log.clone();
    theirs[4].cid = theirs[4].cid.replace("bafy", "bagy");
    let found = case.found(&theirs);
    assert_eq!(found, [(DivergenceKind::DoesNotVerify, Some(4))]);
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
    let theirs =
        Theirs { history: &history, last: Said::Unknown, document: Said::Unknown, latest: LATE };
    let comparison = compare(&case.history(&behind), &theirs, before(3));
    assert_eq!(comparison, Comparison { differences: vec![], set_aside: 2 });
}

#[test]
fn other_answers_are_held_against_their_own_log() {
    let case = Case::new();
    let history = case.history(&case.log);
    let head = history.head().unwrap();
    let stale = history.entries[1].received.cid;
    let mut document = Vec::new();
    document::write_document(&history.did, &head.received.signed, &mut document).unwrap();
    let mut stale_document = Vec::new();
    document::write_document(
        &history.did,
        &history.entries[1].received.signed,
        &mut stale_document,
    )
    .unwrap();
    let kinds = |last, document: Said<&[u8]>| -> Vec<DivergenceKind> {
        let theirs = Theirs { history: &history, last, document, latest: LATE };
        let found = compare(&history, &theirs, LATE).differences;
        found.iter().map(|found| found.kind).collect()
    };
    let (head, document) = (Said::This(head.received.cid), Said::This(&document[..]));
    assert_eq!(kinds(head, document), []);
    assert_eq!(kinds(Said::Unknown, Said::Unknown), []);
    assert_eq!(kinds(Said::This(stale), document), [DivergenceKind::OtherHead]);
    assert_eq!(kinds(head, Said::This(&stale_document)), [DivergenceKind::OtherDocument]);
    // They keep the log and hide the identity.
    assert_eq!(kinds(head, Said::Nothing), [DivergenceKind::OtherDocument]);
    assert_eq!(kinds(Said::Nothing, document), [DivergenceKind::OtherHead]);
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
    ours.entries[5].received.received_at = Some("2029-01-01T00:00:00.000Z".parse().unwrap());
    let found = compare(&ours, &theirs, horizon).differences;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].kind, DivergenceKind::MissingThere);
}

#[test]
fn what_follows_from_a_wrong_flag_is_no_second_difference() {
    let case = Case::new();
    let mut theirs = case.log.clone();
    theirs[4].nullified_in_the_end = true;
    let theirs = case.history(&theirs);
    let head = &theirs.entries[3].received;
    let mut document = Vec::new();
    document::write_document(&theirs.did, &head.signed, &mut document).unwrap();
    let (last, document) = (Said::This(head.cid), Said::This(&document[..]));
    let theirs = Theirs { history: &theirs, last, document, latest: LATE };
    let found = compare(&case.history(&case.log), &theirs, LATE).differences;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].kind, DivergenceKind::OtherNullifiedFlag);
}
