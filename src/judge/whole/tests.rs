//! What becomes of an identity that is judged again as a whole.

use bytes::Bytes;

use super::*;
use did_plc::signature::{PlainVerifier, Signed, UnsupportedKey};
use plc_testkit::builder::Story;

/// For what must not be verified again.
struct NotAsked;

impl Verifier for NotAsked {
    fn find_signer(&self, _: &[&str], _: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        panic!("asked about a signature")
    }
}

fn known(story: &Story, stored: &[StoredOperation], more: i64, takes_times: bool) -> Known {
    let candidate = |(line, entry): (usize, &plc_testkit::Generated)| {
        let received = Received::decode(entry.sequenced_line().as_bytes()).unwrap();
        let sequence = received.sequence.map(|number| number + more);
        Candidate { line, received: Received { sequence, ..received } }
    };
    Known {
        did: story.log()[0].did.parse().unwrap(),
        stored: stored.to_vec(),
        refused: Vec::new(),
        candidates: story.log().iter().enumerate().map(candidate).collect(),
        takes_times,
    }
}

#[test]
fn other_numbers_are_no_reason_to_verify_anything_again() {
    let mut story = Story::seeded(1);
    let alice = story.create().accepted();
    story.update(&alice).handle("stolen.example").accepted();
    let recovery = story.recovery.clone();
    story.after(&alice).signed_by(&recovery).accepted();
    let at = Timestamp::from_millis(1_800_000_000_000);
    let first = known(&story, &[], 0, false).judge(&PlainVerifier, at).unwrap();
    assert!(first.operations[1].nullified_by.is_some());
    for takes_times in [false, true] {
        let again = known(&story, &first.operations, 10, takes_times);
        let expected = known(&story, &first.operations, 10, takes_times);
        let expected = expected.judge_statements(&expected.held(), &PlainVerifier, at);
        let again = again.judge(&NotAsked, at).unwrap();
        assert_eq!(again.operations, first.operations);
        assert_eq!(again.chain, expected.chain);
        let restated: Vec<_> = again.restated.iter().map(|(_, it)| it.sequence).collect();
        assert_eq!(restated, [Some(1), Some(2), Some(3)]);
    }
}

#[test]
fn of_what_is_stored_the_last_signature_is_verified_again() {
    /// Counts what it is asked.
    struct Counting(std::sync::atomic::AtomicUsize);

    impl Verifier for Counting {
        fn find_signer(
            &self,
            keys: &[&str],
            signed: &Signed,
        ) -> Result<Option<usize>, UnsupportedKey> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            PlainVerifier.find_signer(keys, signed)
        }
    }

    let mut story = Story::seeded(3);
    let recovery = story.recovery.clone();
    let alice = story.create().accepted();
    story.update(&alice).handle("stolen.example").accepted();
    story.after(&alice).signed_by(&recovery).accepted();
    story.update(&alice).accepted();
    let at = Timestamp::from_millis(1_800_000_000_000);
    let expected = known(&story, &[], 0, false).judge(&PlainVerifier, at).unwrap();
    // All but what is nullified came before: it is late.
    let mut stored = expected.operations.clone();
    stored.remove(1);
    let counting = Counting(Default::default());
    let mut late = known(&story, &stored, 0, false);
    late.candidates.retain(|candidate| candidate.line == 1);
    let late = late.judge(&counting, at).unwrap();
    assert_eq!(late.operations, expected.operations);
    assert_eq!(late.chain, expected.chain);
    // What is late, and what nothing builds on.
    assert_eq!(counting.0.into_inner(), 2);
}

#[test]
fn another_time_is_judged_again() {
    let mut story = Story::seeded(2);
    let alice = story.create().accepted();
    story.update(&alice).accepted();
    let at = Timestamp::from_millis(1_800_000_000_000);
    let first = known(&story, &[], 0, false).judge(&PlainVerifier, at).unwrap();
    let mut again = known(&story, &first.operations, 0, true);
    // Before its `prev`.
    again.candidates[1].received.created_at = Timestamp::from_millis(0);
    let again = again.judge(&PlainVerifier, at).unwrap();
    assert_eq!(again.operations.len(), 1);
    assert_eq!(again.refused[0].1.kind(), "timestamp-order");
}

/// A story of four operations, and the first three as they are stored.
fn three_stored(seed: u64) -> (Story, Vec<StoredOperation>) {
    let mut story = Story::seeded(seed);
    let alice = story.create().accepted();
    story.update(&alice).handle("second.example").accepted();
    story.update(&alice).handle("third.example").accepted();
    let at = Timestamp::from_millis(1_800_000_000_000);
    let stored = known(&story, &[], 0, false).judge(&PlainVerifier, at).unwrap().operations;
    story.update(&alice).handle("fourth.example").accepted();
    (story, stored)
}

/// Something late would have what is damaged refused, and deleted.
#[test]
fn what_is_damaged_is_not_judged_again() {
    let (story, stored) = three_stored(4);
    for index in 0..stored.len() {
        let mut damaged = stored.clone();
        let mut signed = damaged[index].signed.to_vec();
        // A letter of the host, in the same place of the same length.
        let at = signed.windows(5).position(|some| some == b"https").unwrap();
        signed[at + 4] ^= 1;
        damaged[index].signed = signed.into();
        let mut late = known(&story, &damaged, 0, false);
        late.candidates.retain(|candidate| candidate.line == 3);
        let error = late.judge(&PlainVerifier, stored[0].received_at).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{index}: {error}");
    }
}

/// An operation is stated with the CID of another one, and then as it is.
#[test]
fn a_line_that_is_not_what_it_says_is_on_record_where_the_operation_comes_too() {
    let (story, stored) = three_stored(5);
    let mut both = known(&story, &stored[..2], 0, false);
    let right = both.candidates.swap_remove(2);
    let stated_cid = Some(stored[0].cid().to_string());
    let received = Received { stated_cid: stated_cid.clone(), ..right.received.clone() };
    let wrong = Candidate { line: 3, received: Received { sequence: Some(99), ..received } };
    for candidates in [[wrong.clone(), right.clone()], [right, wrong]] {
        let known = Known {
            did: both.did,
            stored: both.stored.clone(),
            refused: Vec::new(),
            candidates: candidates.to_vec(),
            takes_times: false,
        };
        let whole = known.judge(&PlainVerifier, stored[0].received_at).unwrap();
        assert_eq!(whole.operations.len(), 3);
        let accepted: Vec<_> = whole.accepted.iter().map(|it| it.line).collect();
        assert_eq!(accepted, [2]);
        let restated: Vec<_> = whole.restated.iter().map(|(it, how)| (it.line, how)).collect();
        let how = Restated { cid: stated_cid.clone(), ..Restated::default() };
        assert_eq!(restated, [(3, &how)]);
    }
}

/// An operation is stated with a time before its `prev`, and then with its own.
#[test]
fn a_refusal_at_another_time_is_lifted() {
    let (story, stored) = three_stored(6);
    let all = &known(&story, &[], 0, false).candidates[..3];
    let too_early = |line| {
        let received =
            Received { created_at: Timestamp::from_millis(0), ..all[2].received.clone() };
        Candidate { line, received }
    };
    let judge = |refused: &[StoredRefusal], candidates: &[Candidate]| {
        let known = Known {
            did: stored[0].did,
            stored: stored[..2].to_vec(),
            refused: refused.to_vec(),
            candidates: candidates.to_vec(),
            takes_times: false,
        };
        known.judge(&PlainVerifier, stored[0].received_at).unwrap()
    };
    // In one batch.
    for candidates in [[too_early(1), all[2].clone()], [all[2].clone(), too_early(3)]] {
        let whole = judge(&[], &candidates);
        assert_eq!((whole.operations.len(), whole.refused.len()), (3, 0));
        let restated: Vec<_> = whole.restated.iter().map(|(_, how)| how.created_at).collect();
        assert_eq!(restated, [Some(stored[2].created_at)]);
    }
    // In two.
    let whole = judge(&[], &[too_early(1)]);
    let [(Statement { received, .. }, refusal)] = &whole.refused[..] else { panic!() };
    assert_eq!(refusal.kind(), "timestamp-order");
    let kept = StoredRefusal {
        id: 1,
        refusal: NewRefusal {
            key: NewRefusal::key_of_operation(received),
            source: "https://plc.example".to_owned(),
            did: received.did.to_string(),
            sequence: received.sequence,
            cid: Some(received.cid),
            kind: refusal.kind().to_owned(),
            detail: refusal.to_string(),
            line: NewRefusal::line_of_operation(received),
        },
        received_at: stored[0].received_at,
        accepted_at: None,
        asked: 0,
        ask_at: None,
    };
    let whole = judge(std::slice::from_ref(&kept), &all[2..]);
    assert_eq!(whole.lifted, [kept.refusal.key]);
    assert_eq!((whole.operations.len(), whole.refused.len()), (3, 0));
}

/// The second reading states another time and another number.
#[test]
fn all_that_is_stated_otherwise_is_on_record() {
    let (story, stored) = three_stored(7);
    let mut again = known(&story, &stored, 10, true);
    again.candidates.drain(..2);
    again.candidates[0].received.created_at = Timestamp::from_millis(4_000_000_000_000);
    let whole = again.judge(&PlainVerifier, stored[0].received_at).unwrap();
    let (_, how) = &whole.restated[0];
    assert_eq!((how.created_at, how.sequence), (Some(stored[2].created_at), Some(3)));
}

/// Takes the first key for the signer of everything.
struct FirstKey;

impl Verifier for FirstKey {
    fn find_signer(&self, keys: &[&str], _: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        Ok((!keys.is_empty()).then_some(0))
    }
}

/// An identity with so many operations, a second apart, whoever signed them.
fn long_identity(length: i64) -> Vec<Received> {
    let mut prev = serde_json::Value::Null;
    let mut did = None;
    let operations = (0..length).map(|index| {
        let signed = Bytes::from(plc_testkit::wire::dag_cbor(&serde_json::json!({
            "type": "plc_operation", "prev": prev, "sig": "A".repeat(86),
            "rotationKeys": ["did:key:zOne", "did:key:zTwo"],
            "alsoKnownAs": [], "services": {}, "verificationMethods": {},
        })));
        let cid = Cid::of(&signed);
        prev = cid.to_string().into();
        Received {
            did: *did.get_or_insert_with(|| Did::of_genesis(&signed)),
            cid,
            stated_cid: None,
            created_at: Timestamp::from_millis(1_700_000_000_000 + 1000 * index),
            sequence: Some(index + 1),
            nullified: None,
            received_at: None,
            signed,
        }
    });
    operations.collect()
}

#[test]
fn a_long_identity_takes_no_time_that_grows_with_its_square() {
    let length = 20_000;
    let operations = long_identity(length);
    let at = Timestamp::from_millis(1_800_000_000_000);
    let whole = |stored: &[StoredOperation], takes_times, candidates: &[Received]| {
        let candidates = candidates.iter().cloned().enumerate();
        let candidates = candidates.map(|(line, received)| Candidate { line, received });
        let known = Known {
            did: operations[0].did,
            stored: stored.to_vec(),
            refused: Vec::new(),
            candidates: candidates.collect(),
            takes_times,
        };
        let begun = std::time::Instant::now();
        let whole = known.judge(&FirstKey, at).unwrap();
        // A tenth of that is more than it takes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
        whole
    };
    let all = whole(&[], false, &operations);
    assert_eq!(all.operations.len(), operations.len());
    let late = &operations[operations.len() - 2..];
    whole(&all.operations[..operations.len() - 2], false, late);
    whole(&all.operations, true, &operations);
}
