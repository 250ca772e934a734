use proptest::prelude::*;

use super::phrases::{FORMS, Form, PHRASES, Then};
use super::*;
use did_plc::json;

const SIG: &str =
    "DyaPWDItkJnVkN1izINSW-fdjUzP9BkIKlD7SnzD5axfK_870ZZ-1EYcrQLQtP9VkWcp2cdbyIHprjPfeUs8WQ";
const CID: &str = "bafyreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbide";
const K256: &str = "did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ";
const P256: &str = "did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169";

/// Every shape, with what it can hold in each place.
fn shapes() -> Vec<String> {
    let service =
        r#"{"atproto_pds":{"type":"AtprotoPersonalDataServer","endpoint":"https://pds.example"}}"#;
    let regular = |prev: &str, services: &str, aka: &str, rotation: &str, methods: &str| {
        format!(
            r#"{{"sig":"{SIG}","prev":{prev},"type":"plc_operation","services":{services},
               "alsoKnownAs":{aka},"rotationKeys":{rotation},"verificationMethods":{methods}}}"#
        )
    };
    let prev = format!(r#""{CID}""#);
    let both = format!(r#"["{K256}","{P256}"]"#);
    let many: Vec<String> = (0..40).map(|number| format!(r#""key {number}""#)).collect();
    let many = format!("[{}]", many.join(","));
    let long = "x".repeat(70_000);
    vec![
        regular(
            "null",
            service,
            r#"["at://alice.example"]"#,
            &both,
            &format!(r#"{{"atproto":"{K256}"}}"#),
        ),
        regular(
            &prev,
            service,
            r#"["at://alice.example"]"#,
            &both,
            &format!(r#"{{"atproto":"{P256}"}}"#),
        ),
        regular(&prev, "{}", "[]", "[]", "{}"),
        regular(r#""no cid""#, "{}", r#"["","at://","at://.","at://a.","é\u0000"]"#, &many, "{}"),
        regular(
            "null",
            service,
            &format!(r#"["at://{}.b","at://b.{long}","{long}"]"#, "a".repeat(300)),
            &both,
            r#"{"":"","atproto":"did:key:z","labeler":"x"}"#,
        ),
        regular(
            "null",
            r#"{"a":{"type":"","endpoint":"https://"}}"#,
            r#"["https://a","at://b"]"#,
            "[]",
            r#"{"atproto":""}"#,
        ),
        format!(r#"{{"sig":"{SIG}","prev":"{CID}","type":"plc_tombstone"}}"#),
        format!(r#"{{"sig":"{SIG}=","prev":"{CID}","type":"plc_tombstone"}}"#),
        format!(r#"{{"sig":"","prev":"{CID}","type":"plc_tombstone"}}"#),
        format!(
            r#"{{"sig":"{SIG}","prev":null,"type":"create","handle":"alice.example","service":"https://pds.example",
               "signingKey":"{K256}","recoveryKey":"{P256}"}}"#
        ),
    ]
}

fn signed_shapes() -> Vec<Vec<u8>> {
    shapes().iter().map(|json| json::read_operation(json).unwrap()).collect()
}

fn packer() -> (Packer, Interned) {
    let interned = Interned::default();
    (Packer::new(interned.clone()), interned)
}

fn assert_comes_back(packer: &mut Packer, interned: &Interned, bytes: &[u8]) -> usize {
    let packed = packer.pack(bytes);
    packer.committed();
    assert_eq!(unpack(&packed, interned).unwrap(), bytes);
    assert!(packed.len() <= bytes.len() + 1);
    packed.len()
}

#[test]
fn every_shape_comes_back_first_and_when_its_texts_are_known() {
    let (mut packer, interned) = packer();
    for _ in 0..40 {
        for signed in signed_shapes() {
            assert_comes_back(&mut packer, &interned, &signed);
        }
    }
    assert!(interned.len() > 4);
}

#[test]
fn a_usual_genesis_and_update_are_small() {
    let (mut packer, interned) = packer();
    let shapes = signed_shapes();
    for _ in 0..20 {
        assert_comes_back(&mut packer, &interned, &shapes[0]);
    }
    // The keys have numbers now; the key of an identity would not.
    let [genesis, update] =
        [0, 1].map(|shape| assert_comes_back(&mut packer, &interned, &shapes[shape]));
    assert!(genesis + 31 <= 120, "{genesis} bytes");
    assert!(update + 31 <= 150, "{update} bytes");
}

#[test]
fn texts_get_their_numbers_with_the_transaction() {
    let (mut packer, interned) = packer();
    let signed = &signed_shapes()[0];
    let mut packed = Vec::new();
    while packer.new_texts().next().is_none() {
        packed = packer.pack(signed);
    }
    let texts: Vec<(u32, String)> =
        packer.new_texts().map(|(number, text)| (number, text.to_owned())).collect();
    assert!(interned.is_empty());
    assert_eq!(unpack(&packed, &interned), Err(Damage::UnknownNumber(texts[0].0)));

    packer.rolled_back();
    assert_eq!(packer.new_texts().count(), 0);
    let again = packer.pack(signed);
    assert!(!packer.new_texts().any(|(number, _)| number >= texts.len() as u32));
    packer.committed();
    assert_eq!(unpack(&again, &interned).unwrap(), *signed);

    // What another process wrote is read once its rows are loaded.
    let elsewhere = Interned::default();
    for number in 0..interned.len() {
        elsewhere.insert(number, interned.get(number).unwrap()).unwrap();
    }
    assert_eq!(unpack(&again, &elsewhere).unwrap(), *signed);
    assert_eq!(Packer::new(elsewhere).pack(signed), packer.pack(signed));
    assert!(interned.insert(0, "another").is_err());
    assert!(interned.insert(MAX_INTERNED as u32, "beyond").is_err());
}

#[test]
fn numbers_of_all_lengths() {
    let interned = Interned::default();
    let count = 17_000;
    for number in 0..count {
        interned.insert(number, &format!("https://host-{number}.example")).unwrap();
    }
    let mut packer = Packer::new(interned.clone());
    for number in [0, 127, 128, 129, 16_255, 16_256, count - 1] {
        let json = format!(
            r#"{{"sig":"{SIG}","prev":null,"type":"create","handle":"a","service":"https://host-{number}.example",
               "signingKey":"{K256}","recoveryKey":"{K256}"}}"#
        );
        let signed = json::read_operation(&json).unwrap();
        assert!(assert_comes_back(&mut packer, &interned, &signed) < 160);
    }
}

#[test]
fn the_table_is_bounded_whatever_comes() {
    let (mut packer, interned) = packer();
    // One operation cannot make many texts frequent, however often it repeats them.
    let texts: String = (0..100).map(|number| format!("text {number} ").repeat(2)).collect();
    let repeated = vec![format!(r#""{texts}""#); 500].join(",");
    let json = format!(
        r#"{{"sig":"{SIG}","prev":null,"type":"plc_operation","services":{{}},"alsoKnownAs":[{repeated}],
           "rotationKeys":[],"verificationMethods":{{}}}}"#
    );
    let signed = json::read_operation(&json).unwrap();
    assert_comes_back(&mut packer, &interned, &signed);
    assert_eq!(interned.len(), 0);
}

#[test]
fn genesis_operations_are_told_from_others() {
    let of_shape: Vec<bool> = signed_shapes().iter().map(|signed| is_genesis(signed)).collect();
    assert_eq!(of_shape, [true, false, false, false, true, true, false, false, false, true]);
    assert!(!is_genesis(b""));
    assert!(!is_genesis(&signed_shapes()[0][..80]));
}

#[test]
fn what_is_no_packed_operation_is_damage() {
    let interned = Interned::default();
    for packed in
        [&[][..], &[2], &[TOKENS, 0x2f], &[TOKENS, 0x35], &[TOKENS, 0x3f], &[TOKENS, 0x40]]
    {
        assert!(unpack(packed, &interned).is_err(), "{packed:?}");
    }
    let lengthened = [&[TOKENS][..], &[token::TEXT, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
    assert!(unpack(&lengthened, &interned).is_err());
}

/// The views for people unpack in SQL. A phrase that is added here is to be added there, by a
/// migration of its own.
#[test]
fn the_phrases_of_the_sql_function_are_these() {
    let sql = include_str!("../../../migrations/postgres/0001_log.sql");
    let phrases: Vec<String> = PHRASES
        .iter()
        .map(|phrase| format!("'\\x{}'", data_encoding::HEXLOWER.encode(phrase.bytes)))
        .collect();
    let form = |form: Form| FORMS.iter().position(|other| *other == form).unwrap() + 1;
    let forms: Vec<String> = PHRASES
        .iter()
        .map(|phrase| match phrase.then {
            Then::Nothing => "0".to_owned(),
            Then::Form(then) => form(then).to_string(),
            Then::Handle => (FORMS.len() + 1).to_string(),
        })
        .collect();
    let stated = |start: &str, end: &str| -> String {
        let from = sql.find(start).unwrap() + start.len();
        let length = sql[from..].find(end).unwrap();
        sql[from..from + length].split_whitespace().collect()
    };
    assert_eq!(stated("phrases CONSTANT bytea[] := ARRAY[", "]"), phrases.join(","));
    assert_eq!(stated("forms CONSTANT int4[] := '{", "}'"), forms.join(","));
}

proptest! {
    #[test]
    fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (mut packer, interned) = packer();
        for _ in 0..2 {
            assert_comes_back(&mut packer, &interned, &bytes);
        }
    }

    #[test]
    fn a_damaged_operation_comes_back(
        shape in 0..10usize, at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(),
    ) {
        let (mut packer, interned) = packer();
        let mut signed = signed_shapes().swap_remove(shape);
        signed.truncate(2000);
        let at = at.index(signed.len());
        signed[at] = byte;
        assert_comes_back(&mut packer, &interned, &signed);
        signed.truncate(cut.index(signed.len()));
        assert_comes_back(&mut packer, &interned, &signed);
    }

    #[test]
    fn any_texts_come_back(
        aka in prop::collection::vec(any::<String>(), 0..4), key in "did:key:z[1-9A-Za-z]{48}",
        handle in "at://[a-z.-]{0,20}", times in 1..40,
    ) {
        let (mut packer, interned) = packer();
        let list = serde_json::to_string(&[&aka[..], &[handle]].concat()).unwrap();
        let json = format!(
            r#"{{"sig":"{SIG}","prev":null,"type":"plc_operation","services":{{}},"alsoKnownAs":{list},
               "rotationKeys":["{key}"],"verificationMethods":{{"atproto":"{key}"}}}}"#
        );
        let signed = json::read_operation(&json).unwrap();
        for _ in 0..times {
            assert_comes_back(&mut packer, &interned, &signed);
        }
    }

    #[test]
    fn unpacking_never_panics(mut packed in prop::collection::vec(any::<u8>(), 0..300)) {
        let (_, interned) = packer();
        interned.insert(0, "https://host.example").unwrap();
        let _ = unpack(&packed, &interned);
        packed.insert(0, TOKENS);
        let _ = unpack(&packed, &interned);
    }
}
