//! Histories of made-up identities, by both ways to one.

use std::time::Duration;

use did_plc::chain::RECOVERY_WINDOW;
use did_plc::entry::Received;
use did_plc::history::{Contestable, HeldOperation, History, HistoryEntry, Judgement, Remark};
use did_plc::signature::PlainVerifier;
use did_plc::{Change, Cid, Did};
use plc_testkit::audit_log;
use plc_testkit::builder::{Story, Told};
use plc_testkit::spelling::spellings;

fn history(story: &Story, of: &Told) -> History {
    let body = audit_log(story.accepted(of));
    History::of_audit_log(of.did.parse().unwrap(), body.as_bytes(), &PlainVerifier).unwrap()
}

fn cid(told: &Told) -> Cid {
    told.cid.parse().unwrap()
}

/// The same as somebody holds it who has verified it before.
fn as_held(verified: &History) -> History {
    let held = verified.entries.iter().map(|entry| HeldOperation {
        received: entry.received.clone(),
        signer: entry.signer().unwrap(),
        nullified_by: entry.nullified_by.map(|by| verified.entries[by].received.created_at),
    });
    History::as_held(verified.did, held).unwrap()
}

#[test]
fn a_recovery_is_told_from_both_sides() {
    let mut story = Story::seeded(8);
    let thief = story.k256();
    let alice = story.create().handle("alice.example").accepted();
    story.update(&alice).rotation_keys([&thief]).accepted();
    let recovery = story.recovery.clone();
    let back = story.after(&alice).signed_by(&recovery).handle("back.example").accepted();

    let history = history(&story, &alice);
    assert!(history.is_clean());
    assert_eq!(history.head().unwrap().received.cid, cid(&back));
    let [_, theft, rescue] = &history.entries[..] else { panic!("three operations") };
    assert_eq!((theft.nullified_by, &rescue.nullifies[..]), (Some(2), &[1][..]));
    assert_eq!((theft.prev, rescue.prev), (Some(0), Some(0)));
    assert_eq!((theft.signer(), rescue.signer()), (Some(1), Some(0)));
    assert_eq!(history.signer_key(1), Some(story.signing.did_key()));
    assert_eq!(history.signer_key(2), Some(recovery.did_key()));
    let words: Vec<String> = history.changes(2).iter().map(Change::to_string).collect();
    assert_eq!(words, ["handle from alice.example to back.example"]);
    // Nothing overrules a genesis operation, what is overruled already, and the highest key.
    assert!((0..3).all(|index| history.contestable(index).is_none()));
    assert_eq!(history.in_force().count(), 2);
    assert_eq!(as_held(&history), history);
}

/// Genesis by key 1, update by key 1, update by key 0: the highest key can nullify the first
/// update, and the second with it, until 72 hours after the first.
#[test]
fn what_builds_on_something_contestable_is_contestable_with_it() {
    let told = || {
        let mut story = Story::seeded(13);
        let recovery = story.recovery.clone();
        let alice = story.create().accepted();
        let update = story.update(&alice).handle("a.example").accepted();
        let day = Duration::from_secs(24 * 3600);
        let second = story.update(&alice).signed_by(&recovery).handle("b.example");
        second.later_than(&update, day).accepted();
        (story, alice, update)
    };
    let (story, alice, update) = told();
    let verified = history(&story, &alice);
    assert_eq!(
        verified.entries.iter().map(HistoryEntry::signer).collect::<Vec<_>>(),
        [Some(1), Some(1), Some(0)]
    );
    let until = update.created_at + RECOVERY_WINDOW;
    for history in [as_held(&verified), verified] {
        let contestable: Vec<_> = (0..3).map(|index| history.contestable(index)).collect();
        let by_the_first = Some(Contestable { until, entry: 1, keys: 1 });
        assert_eq!(contestable, [None, by_the_first, by_the_first]);
    }

    // The rules say the same.
    let (mut story, alice, update) = told();
    let recovery = story.recovery.clone();
    story.after(&alice).signed_by(&recovery).just_in_time_for(&update).accepted();
    let overruled = history(&story, &alice);
    assert!(overruled.is_clean());
    assert_eq!(overruled.entries[3].nullifies, [1, 2]);
    assert!((0..4).all(|index| overruled.contestable(index).is_none()));
    let (mut story, alice, update) = told();
    let late = story.after(&alice).signed_by(&recovery).just_too_late_for(&update);
    late.refused("recovery-too-late");
    let body = audit_log(story.log());
    let did = alice.did.parse().unwrap();
    let late = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
    assert_eq!(late.entries[3].refusal().unwrap().kind(), "recovery-too-late");
}

/// Of several operations that can be nullified the nearest leaves the most time.
#[test]
fn the_nearest_contestable_operation_counts() {
    let mut story = Story::seeded(14);
    let keys = [story.k256(), story.k256(), story.k256()];
    let alice = story.create().rotation_keys(&keys).signed_by(&keys[0]).accepted();
    story.update(&alice).signed_by(&keys[1]).accepted();
    let second = story.update(&alice).signed_by(&keys[2]).accepted();
    story.update(&alice).signed_by(&keys[0]).accepted();
    let history = history(&story, &alice);
    let until = second.created_at + RECOVERY_WINDOW;
    assert_eq!(history.contestable(3), Some(Contestable { until, entry: 2, keys: 2 }));
    assert_eq!(history.contestable(1).map(|by| (by.entry, by.keys)), Some((1, 1)));
}

#[test]
fn since_when_it_has_said_so_goes_by_the_chain_in_force() {
    let mut story = Story::seeded(15);
    let recovery = story.recovery.clone();
    let alice = story.create().handle("a.example").accepted();
    let moved = story.update(&alice).host("https://b.example").accepted();
    let renamed = story.update(&alice).handle("c.example").accepted();
    // What the nullified one said is not said since then.
    let back = story.after(&moved).signed_by(&recovery).host("https://d.example").accepted();
    let last = story.tombstone(&alice).accepted();
    let history = history(&story, &alice);
    assert_eq!(history.entries[2].received.cid, cid(&renamed));
    assert_eq!(history.head().unwrap().received.cid, cid(&last));
    assert!(history.head().unwrap().is_tombstone());
    assert_eq!(history.content().unwrap().received.cid, cid(&back));
    assert_eq!(history.since(|operation| operation.services()), Some(last.created_at));

    let untold = story.log().len() - 1;
    let received = story.log()[..untold]
        .iter()
        .map(|entry| Received::decode(entry.audit_entry().as_bytes()).unwrap());
    let alive = History::verified(history.did, received, &PlainVerifier);
    assert_eq!(alive.since(|operation| operation.services()), Some(back.created_at));
    assert_eq!(alive.since(|operation| operation.also_known_as()), Some(alice.created_at));
}

#[test]
fn what_cannot_be_read_or_accepted_or_comes_twice_is_not_clean() {
    let mut story = Story::seeded(9);
    let alice = story.create().accepted();
    story.update(&alice).accepted();
    let did: Did = alice.did.parse().unwrap();
    let lines = plc_testkit::lines(story.log(), plc_testkit::Generated::sequenced_line);
    let lines: Vec<&[u8]> = lines.lines().map(str::as_bytes).collect();
    let of = |lines: &[&[u8]]| History::of_lines(did, lines.iter().copied(), &PlainVerifier);
    assert!(of(&lines).is_clean());
    let orphan = of(&lines[1..]);
    assert_eq!(orphan.entries[0].refusal().unwrap().kind(), "unknown-did");
    let broken = of(&[lines[0], b"{\"did\""]);
    assert_eq!((broken.unreadable.len(), broken.is_clean()), (1, false));
    assert_eq!(broken.unreadable[0].refusal.kind(), "not-json");
    // Lines of another kind are no part of a log.
    assert!(of(&[lines[0], br#"{"type":"notice"}"#, lines[1]]).is_clean());
    let twice = of(&[lines[0], lines[1], lines[0]]);
    assert_eq!(twice.entries[1].judgement, Judgement::Repeated);
    assert!(!twice.is_clean() && twice.head() == Some(&twice.entries[2]));
    // The order in which a log states its operations decides nothing, and is told.
    let reversed = of(&[lines[1], lines[0]]);
    assert!(reversed.is_clean() && reversed.head() == Some(&reversed.entries[1]));
    assert_eq!((reversed.entries[1].prev, reversed.changes(1)), (Some(0), vec![Change::Nothing]));
    let stated: Vec<usize> =
        reversed.in_stated_order().iter().map(|entry| entry.prev.map_or(0, |_| 1)).collect();
    assert_eq!(stated, [1, 0]);
    assert!(History::of_audit_log(did, b"<html>", &PlainVerifier).is_err());
}

#[test]
fn prev_in_another_spelling_is_accepted_with_a_remark() {
    for (seed, spelling) in (30..).zip(0..3) {
        let mut story = Story::seeded(seed);
        let (thief, recovery) = (story.k256(), story.recovery.clone());
        let alice = story.create().accepted();
        let spelled = &spellings(&alice.cid)[spelling];
        let stolen = story.update(&alice).rotation_keys([&thief]).prev(spelled).accepted();
        story.update(&stolen).signed_by(&thief).prev(&spellings(&stolen.cid)[spelling]).accepted();
        // A recovery, and what follows it in the specification's spelling.
        story.after(&alice).signed_by(&recovery).prev(spelled).accepted();
        story.update(&alice).handle("b.example").accepted();
        let history = history(&story, &alice);
        assert!(history.is_clean(), "{spelled}");
        let prevs: Vec<_> = history.entries.iter().map(|entry| entry.prev).collect();
        assert_eq!(prevs, [None, Some(0), Some(1), Some(0), Some(3)]);
        assert_eq!(history.entries[3].nullifies, [1, 2]);
        let remark = Remark::PrevSpelling { prev: cid(&alice), spelled: spelled.clone() };
        let remarks: Vec<_> = history.entries.iter().map(HistoryEntry::remark).collect();
        assert_eq!([&remarks[1], &remarks[3]], [&Some(remark.clone()), &Some(remark)]);
        assert_eq!((&remarks[0], &remarks[4]), (&None, &None));
        assert_eq!(as_held(&history), history);
        // The text is part of the operation.
        let mut json = Vec::new();
        let signed = &history.entries[1].received.signed;
        did_plc::json::write_operation(signed, &mut json).unwrap();
        let named = format!("\"prev\":\"{spelled}\"");
        assert!(String::from_utf8(json).unwrap().contains(&named));
    }
}

#[test]
fn prev_in_a_spelling_that_the_directory_does_not_know_names_nothing() {
    let mut story = Story::seeded(34);
    let alice = story.create().accepted();
    let plain = multibase::decode(&alice.cid).unwrap().1;
    for base in [multibase::Base::Base32Upper, multibase::Base::Base36Lower] {
        let spelled = multibase::encode(base, &plain);
        story.update(&alice).prev(&spelled).refused("unknown-prev");
    }
    let refused = story.log().iter().map(|entry| entry.audit_entry());
    let lines: Vec<String> = refused.collect();
    let lines = lines.iter().map(String::as_bytes);
    let history = History::of_lines(alice.did.parse().unwrap(), lines, &PlainVerifier);
    for entry in &history.entries[1..] {
        let refusal = entry.refusal().unwrap();
        assert_eq!((refusal.kind(), refusal.lacking_prev()), ("unknown-prev", None));
        assert_eq!((entry.remark(), entry.prev), (None, None));
    }
}

/// What lacks an operation says which, however it spells its CID; and of one millisecond it comes after it.
#[test]
fn what_lacks_its_prev_names_it() {
    let mut story = Story::seeded(35);
    let alice = story.create().accepted();
    let update = story.update(&alice).accepted();
    let last = story.update(&alice).prev(&spellings(&update.cid)[0]);
    let last = last.at(&update.created_at.to_string()).accepted();
    let mut log: Vec<Received> = story
        .accepted(&alice)
        .map(|entry| Received::decode(entry.audit_entry().as_bytes()).unwrap())
        .collect();
    log.swap(1, 2);
    let did = alice.did.parse().unwrap();
    let history = History::verified(did, log.clone(), &PlainVerifier);
    assert_eq!(history.entries[2].received.cid, cid(&last));
    assert_eq!((history.is_clean(), history.entries[2].prev), (true, Some(1)));
    log.pop();
    let history = History::verified(did, log, &PlainVerifier);
    assert_eq!(history.entries[1].received.cid, cid(&last));
    assert_eq!(history.entries[1].refusal().unwrap().lacking_prev(), Some(cid(&update)));
}

#[test]
fn an_audit_log_holds_entries_of_its_identity_alone() {
    let mut story = Story::seeded(36);
    let alice = story.create().accepted();
    let bob = story.create().accepted();
    let body = audit_log(story.log());
    let did = alice.did.parse().unwrap();
    for body in [body.clone(), format!("\u{feff}{body}")] {
        let history = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
        assert_eq!((history.entries.len(), history.unreadable.len()), (1, 1));
        assert_eq!(history.unreadable[0].cid, bob.cid);
        assert!(!history.is_clean());
    }
    let lines = story.log().iter().map(|entry| entry.audit_entry()).collect::<Vec<_>>();
    let lines = lines.iter().map(String::as_bytes);
    assert!(History::of_lines(did, lines, &PlainVerifier).is_clean());
}

#[test]
fn both_ways_lead_to_the_same_history() {
    for seed in 0..20 {
        let mut story = Story::seeded(seed);
        let keys = [story.k256(), story.p256(), story.k256()];
        let thief = story.k256();
        let dora = story.create().rotation_keys(&keys).signed_by(&keys[0]).accepted();
        for theft in 0..seed % 4 {
            let held = story.head(&dora);
            let signer = &keys[1 + (theft % 2) as usize];
            let stolen = story.after(&held).rotation_keys([&thief]).signed_by(signer).accepted();
            story.update(&stolen).signed_by(&thief).accepted();
            story.after(&held).signed_by(&keys[0]).accepted();
            story.update(&dora).signed_by(&keys[2]).accepted();
        }
        let verified = history(&story, &dora);
        assert!(verified.is_clean(), "{seed}");
        assert_eq!(as_held(&verified), verified, "{seed}");
    }
}
