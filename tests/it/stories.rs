//! Stories of honest and hostile operations: each is judged as it says itself, and its JSON and
//! DAG-CBOR, written in the slow and obvious way, are the same two forms that we read and write.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use did_plc::json::{read_operation, write_operation};
use did_plc::key::{Curve, POINT_LENGTH, PublicKey};
use plc_testkit::builder::{Story, Told};
use plc_testkit::profile::write_log;
use plc_testkit::spelling::spellings;
use plc_testkit::{Expected, Generated, audit_log};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::vectors::judge_log;

/// Judges what was told: verdicts, nullified flags, and both forms of what is accepted. The audit
/// log of each identity, which is what was accepted, has the same flags when it is judged by itself.
fn ends_as_told(story: &Story) {
    let lines: Vec<Bytes> =
        story.log().iter().map(|entry| Bytes::from(entry.sequenced_line())).collect();
    let (verdicts, nullified) = judge_log(&lines);
    for (index, entry) in story.log().iter().enumerate() {
        let expected = match entry.expected {
            Expected::Accepted => None,
            Expected::Refused(kind) => Some(kind),
        };
        assert_eq!(verdicts[index], expected, "{}", entry.sequenced_line());
        assert_eq!(nullified[index], entry.nullified_in_the_end, "{}", entry.sequenced_line());
        if entry.expected == Expected::Accepted {
            both_forms_agree(entry);
        }
    }
    let dids: BTreeSet<&str> = story.log().iter().map(|entry| &*entry.did).collect();
    dids.into_iter().for_each(|did| audit_log_verifies(story, did));
}

fn audit_log_verifies(story: &Story, did: &str) {
    let its = |entry: &&Generated| entry.did == did && entry.expected == Expected::Accepted;
    let entries: Vec<&Generated> = story.log().iter().filter(its).collect();
    let audit_log = audit_log(entries.iter().copied());
    let parsed: Vec<&RawValue> = serde_json::from_str(&audit_log).unwrap();
    let lines: Vec<Bytes> =
        parsed.iter().map(|entry| Bytes::copy_from_slice(entry.get().as_bytes())).collect();
    let (verdicts, nullified) = judge_log(&lines);
    assert!(verdicts.iter().all(Option::is_none), "{did}: {verdicts:?}");
    let stated: Vec<bool> = entries.iter().map(|entry| entry.nullified_in_the_end).collect();
    assert_eq!(nullified, stated, "{did}");
}

fn both_forms_agree(entry: &Generated) {
    assert_eq!(read_operation(&entry.operation_json).unwrap(), entry.signed);
    let mut json = Vec::new();
    write_operation(&entry.signed, &mut json).unwrap();
    assert_eq!(String::from_utf8(json).unwrap(), entry.operation_json);
}

#[test]
fn an_honest_life() {
    let mut story = Story::seeded(1);
    let own = [story.p256(), story.k256()];
    let alice = story.create().handle("alice.example.com").accepted();
    let bob = story.create_legacy().handle("bob.example.com").accepted();
    story.update(&alice).handle("alice.example.org").host("https://pds.example.org").accepted();
    story.update(&bob).rotation_keys(&own).accepted();
    story.update(&bob).signed_by(&own[0]).service("other", "Thing", "ftp://h").accepted();
    story.tombstone(&alice).accepted();
    story.tombstone(&bob).signed_by(&own[1]).accepted();
    ends_as_told(&story);
}

#[test]
fn a_theft_is_undone_within_72_hours() {
    let mut story = Story::seeded(2);
    let (recovery, thief) = (story.recovery.clone(), story.k256());
    let alice = story.create().accepted();
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    let second = story.update(&alice).signed_by(&thief).handle("thief.example.com").accepted();
    story.after(&alice).signed_by(&thief).refused("signature-invalid");
    story.after(&alice).just_in_time_for(&stolen).refused("not-authorised");
    // The window is that of the first operation that would be nullified, not of the last.
    story.after(&alice).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    story.after(&second).signed_by(&thief).refused("prev-nullified");
    story.update(&alice).handle("alice.example.com").accepted();
    let bob = story.create().accepted();
    let stolen = story.update(&bob).rotation_keys([&thief]).accepted();
    let late = story.after(&bob).signed_by(&recovery);
    late.just_too_late_for(&stolen).refused("recovery-too-late");
    ends_as_told(&story);
}

/// One recovery undoes whatever came since, updates, a change of keys and the end of the identity
/// alike; what it undoes is undone for good.
#[test]
fn a_recovery_nullifies_everything_after_its_place() {
    let mut story = Story::seeded(12);
    let (recovery, thief) = (story.recovery.clone(), story.p256());
    let alice = story.create_legacy().accepted();
    let kept = story.update(&alice).handle("alice.example.com").accepted();
    let first = story.update(&alice).handle("mallory.example.com").accepted();
    story.update(&alice).rotation_keys([&thief]).accepted();
    story.update(&alice).signed_by(&thief).host("https://pds.example.org").accepted();
    let last = story.update(&alice).signed_by(&thief).empty_maps().accepted();
    let end = story.tombstone(&alice).signed_by(&thief).accepted();
    story.after(&kept).signed_by(&recovery).just_in_time_for(&first).accepted();
    for undone in [&first, &last, &end] {
        story.after(undone).signed_by(&thief).refused("prev-nullified");
    }
    story.update(&alice).handle("alice.example.org").accepted();
    ends_as_told(&story);
}

/// A key that is listed twice has the authority of its first place.
#[test]
fn a_recovery_is_signed_by_a_key_of_more_authority() {
    let mut story = Story::seeded(13);
    let (first, second) = (story.k256(), story.p256());
    let keys = [&first, &second, &first];
    let alice = story.create().rotation_keys(keys).signed_by(&first).accepted();
    let by_second = story.update(&alice).signed_by(&second).handle("two").accepted();
    story.after(&alice).signed_by(&second).handle("three").refused("not-authorised");
    let by_first = story.after(&alice).signed_by(&first).handle("four").accepted();
    story.after(&alice).signed_by(&second).handle("five").refused("not-authorised");
    story.after(&alice).signed_by(&first).handle("six").refused("not-authorised");
    story.after(&by_second).signed_by(&first).refused("prev-nullified");
    // The keys of `prev` count, not those of what is undone, and none that only one of them has.
    let bob = story.create().rotation_keys([&first, &second]).signed_by(&first).accepted();
    story.update(&bob).rotation_keys([&second, &first]).signed_by(&second).accepted();
    story.after(&bob).signed_by(&second).handle("seven").refused("not-authorised");
    story.after(&bob).signed_by(&first).handle("eight").accepted();
    story.update(&alice).prev(&by_first.cid).signed_by(&second).accepted();
    ends_as_told(&story);
}

#[test]
fn a_tombstone_ends_an_identity_until_it_is_overruled() {
    let mut story = Story::seeded(3);
    let recovery = story.recovery.clone();
    let alice = story.create().accepted();
    let update = story.update(&alice).accepted();
    let end = story.tombstone(&alice).accepted();
    story.after(&end).refused("prev-tombstone");
    story.tombstone_after(&update).signed_by(&recovery).accepted();
    story.after(&update).signed_by(&recovery).refused("not-authorised");
    story.after(&end).refused("prev-nullified");
    ends_as_told(&story);
}

#[test]
fn a_chain_is_not_joined_from_outside() {
    let mut story = Story::seeded(4);
    let alice = story.create().accepted();
    let bob = story.create().accepted();
    let nobody = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    story.create().stated_did(&alice.did).refused("second-genesis");
    story.create().stated_did(nobody).refused("genesis-mismatch");
    story.create().stated_did("did:plc:0").refused("malformed-did");
    story.create().prev(&alice.cid).refused("unknown-did");
    story.update(&alice).prev(&bob.cid).refused("unknown-prev");
    story.update(&alice).prev("not a CID").refused("unknown-prev");
    story.update(&alice).prev(&alice.cid.to_uppercase()).refused("unknown-prev");
    story.update(&alice).handle("two").prev_null().refused("second-genesis");
    story.update(&alice).stated_cid(&bob.cid).refused("cid-mismatch");
    story.tombstone(&alice).prev_null().stated_did(nobody).refused("malformed");
    ends_as_told(&story);
}

/// `prev` names an operation by any text that the directory's library takes for its CID.
#[test]
fn prev_may_be_spelled_otherwise() {
    for spelling in 0..3 {
        let mut story = Story::seeded(14);
        let recovery = story.recovery.clone();
        let alice = story.create().accepted();
        let spelled = |of: &Told| spellings(&of.cid)[spelling].clone();
        let update = story.update(&alice).prev(&spelled(&alice)).accepted();
        story
            .update(&alice)
            .prev(&spelled(&update))
            .forged_signature()
            .refused("signature-invalid");
        let end = story.tombstone(&alice).prev(&spelled(&update)).accepted();
        story.after(&end).prev(&spelled(&end)).refused("prev-tombstone");
        let back = story.after(&update).signed_by(&recovery).prev(&spelled(&update)).accepted();
        story.after(&end).prev(&spelled(&end)).refused("prev-nullified");
        story.update(&back).accepted();
        let bob = story.create().accepted();
        story.update(&alice).prev(&spelled(&bob)).refused("unknown-prev");
        story.create().prev(&spelled(&bob)).refused("unknown-did");
        let (base, rest) = alice.cid.split_at(1);
        for no_spelling in
            [base.to_uppercase() + &rest.to_uppercase(), base.to_owned() + &rest.to_uppercase()]
        {
            story.update(&alice).prev(&no_spelling).refused("unknown-prev");
        }
        ends_as_told(&story);
    }
}

#[test]
fn signatures_have_one_form() {
    let mut story = Story::seeded(5);
    let (stranger, p256) = (story.k256(), story.p256());
    let keys = [p256.clone(), story.signing.clone()];
    let alice = story.create().rotation_keys(&keys).accepted();
    for signer in &keys {
        story.update(&alice).signed_by(signer).padded_signature().refused("signature-encoding");
        story.update(&alice).signed_by(signer).loose_base64_bits().refused("signature-encoding");
        story.update(&alice).signed_by(signer).newline_in_signature().refused("signature-encoding");
        story.update(&alice).signed_by(signer).der_signature().refused("signature-encoding");
        // DER that is 64 bytes long has the right form, and is no signature.
        let der = BASE64URL_NOPAD
            .encode(&[&[0x30, 62, 2, 29][..], &[1; 29], &[2, 29], &[1; 29]].concat());
        story.update(&alice).signed_by(signer).signature_text(&der).refused("signature-invalid");
        story.update(&alice).signed_by(signer).signature_text("").refused("signature-encoding");
        story.update(&alice).signed_by(signer).signature_text("é").refused("signature-encoding");
        story.update(&alice).signed_by(signer).high_s().refused("signature-invalid");
        story.update(&alice).signed_by(signer).forged_signature().refused("signature-invalid");
        story
            .update(&alice)
            .signed_by(signer)
            .signature_text(&"A".repeat(86))
            .refused("signature-invalid");
        story.update(&alice).signed_by(signer).accepted();
    }
    story.update(&alice).signed_by(&stranger).refused("signature-invalid");
    story
        .update(&alice)
        .rotation_keys([&stranger])
        .signed_by(&stranger)
        .refused("signature-invalid");
    story
        .update(&alice)
        .tampered(|operation| {
            operation.insert("alsoKnownAs".into(), json!(["at://mallory.example.com"]));
        })
        .refused("signature-invalid");
    story.create().signed_by(&stranger).refused("signature-invalid");
    story.create_legacy().padded_signature().refused("signature-encoding");
    ends_as_told(&story);
}

#[test]
fn a_key_is_any_text_until_it_is_met() {
    let mut story = Story::seeded(6);
    let signing = story.signing.clone();
    let key = signing.did_key().to_string();
    // No point of secp256k1 has the X coordinate 0.
    let mut point = [0; POINT_LENGTH];
    point[0] = 2;
    let off_the_curve = &PublicKey { curve: Curve::K256, point }.to_string();
    story.create().rotation_key_texts([&*key, "not a key"]).accepted();
    story.create().rotation_key_texts(["not a key", &*key]).refused("unsupported-key");
    story.create().rotation_key_texts([&**off_the_curve, &*key]).refused("unsupported-key");
    // P-256 has two of them, which the library of the directory takes for no keys; a character outside
    // of base58 makes no key of what is one without it.
    for sign in [2, 3] {
        point[0] = sign;
        let x_zero = &PublicKey { curve: Curve::P256, point }.to_string();
        story.create().rotation_key_texts([&**x_zero, &*key]).refused("unsupported-key");
        story.create().rotation_key_texts([&*key, &**x_zero]).accepted();
    }
    let spaced = key.replace(":z", ":z\u{200b}");
    story.create().rotation_key_texts([&*spaced, &*key]).refused("unsupported-key");
    story.create().rotation_key_texts([&*key, &*spaced]).accepted();
    let twice = story.create().rotation_key_texts([&*key, &*key]).accepted();
    let mute = story.update(&twice).rotation_key_texts([]).accepted();
    story.update(&mute).refused("signature-invalid");
    story.create().rotation_key_texts([]).refused("signature-invalid");
    ends_as_told(&story);
}

#[test]
fn an_operation_has_exactly_its_fields() {
    let mut story = Story::seeded(7);
    let alice = story.create().accepted();
    story.create().field("extra", json!(1)).refused("malformed");
    story.create().without("services").refused("malformed");
    story.create().without("prev").refused("malformed");
    story.create().field("type", json!("plc_surprise")).refused("malformed");
    story.create().field("alsoKnownAs", json!({})).refused("malformed");
    story.create().field("rotationKeys", json!([null])).refused("malformed");
    story.create().field("services", json!({"a": {"type": "b"}})).refused("malformed");
    story.create().field("services", json!([])).refused("malformed");
    story.create().field("verificationMethods", json!({"a": 1.5})).refused("malformed");
    story.create().unsigned().refused("malformed");
    story.create().lone_surrogate().refused("malformed");
    story.create().duplicate_key().refused("malformed");
    story.create_legacy().field("extra", json!(null)).refused("malformed");
    story.create_legacy().prev(&alice.cid).refused("malformed");
    story.update(&alice).field("prev", json!(7)).refused("malformed");
    story.tombstone(&alice).field("rotationKeys", json!([])).refused("malformed");
    ends_as_told(&story);
}

#[test]
fn any_text_is_kept_as_it_is() {
    let mut story = Story::seeded(8);
    let odd = "\u{0}\u{1f}\u{7f}\"\\/\u{2028}é\u{202e}🦀\u{ffff}";
    let alice = story
        .create()
        .also_known_as([odd, "", odd])
        .verification_method(odd, odd)
        .service(odd, odd, odd)
        .accepted();
    let mut update = story.update(&alice);
    for name in ["33", "4", "0", "01", "-1", "4294967294", "4294967295", "", "a", "é", "__proto__"]
    {
        update = update.verification_method(name, name).service(name, "kind", "endpoint");
    }
    update.accepted();
    story.update(&alice).empty_maps().also_known_as([]).accepted();
    story.create_legacy().handle(odd).host(odd).accepted();
    ends_as_told(&story);
}

#[test]
fn time_goes_forward_within_an_identity() {
    let mut story = Story::seeded(9);
    let (recovery, moment) = (story.recovery.clone(), Duration::from_millis(1));
    let alice = story.create().at("2024-05-01T00:00:00.000Z").accepted();
    story.create().at("2024-04-01T00:00:00.000Z").accepted();
    story.update(&alice).handle("at.once").at("2024-05-01T00:00:00.000Z").accepted();
    let update = story.update(&alice).later_than(&alice, moment).accepted();
    story
        .update(&alice)
        .handle("too.early")
        .earlier_than(&update, moment)
        .refused("timestamp-order");
    story.after(&alice).signed_by(&recovery).handle("back").later_than(&update, moment).accepted();
    ends_as_told(&story);
}

#[test]
fn the_measured_log_is_honest_and_of_its_profile() {
    const OPERATIONS: u64 = 6_000;
    let make = || {
        let mut log = Vec::new();
        let profile = write_log(11, OPERATIONS, &mut log, |_| {}).unwrap();
        (log, profile)
    };
    let (log, profile) = make();
    assert_eq!(make(), (log.clone(), profile), "the seed decides everything");

    let log = Bytes::from(log);
    let lines: Vec<Bytes> =
        log.split(|&byte| byte == b'\n').map(|line| log.slice_ref(line)).collect();
    let (lines, end) = lines.split_at(lines.len() - 1);
    assert!(end[0].is_empty(), "every line ends with a newline");
    assert_eq!(lines.len() as u64, OPERATIONS);

    let (verdicts, nullified) = judge_log(lines);
    assert!(verdicts.iter().all(Option::is_none));
    let overruled = nullified.iter().filter(|&&nullified| nullified).count() as u64;
    assert_eq!(overruled, profile.recoveries);
    for (index, line) in lines.iter().enumerate() {
        let entry: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(entry["seq"], index + 1);
    }

    let share = |part: u64, of: u64| part as f64 / of as f64;
    let near = |value: f64, aim: f64, by: f64| assert!((value - aim).abs() < by, "{profile}");
    assert_eq!(profile.operations, OPERATIONS);
    near(share(profile.genesis, OPERATIONS), 0.70, 0.03);
    near(share(profile.recoveries, OPERATIONS), 0.01, 0.005);
    near(share(profile.second_key, OPERATIONS), 0.75, 0.03);
    near(share(profile.p256, OPERATIONS), 0.05, 0.02);
    near(share(profile.shared_identities, profile.genesis), 0.95, 0.02);
}
