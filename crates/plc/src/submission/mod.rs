//! What the directory asks of an operation that is submitted to it, beyond the rules of a log: limits on its size
//! and on what stands in it, no `create` any more, and so many operations in a time. History has operations that
//! none of this would let pass.
//!
//! Limits, order of the checks and words are those of the reference directory (did-method-plc, `packages/server`:
//! `assertValidIncomingOp`, then `assureValidNextOp`, then `enforceOpsRateLimit`).

mod limits;
mod rate;
mod rejection;

pub use limits::SubmissionLimits;
pub use rate::RateLimits;
pub use rejection::{Period, Rejection};

use bytes::Bytes;

use super::chain::{Acceptance, Chain, Link, Verdict};
use super::cid::Cid;
use super::did::Did;
use super::entry::Received;
use super::javascript::Value;
use super::json;
use super::operation::{Operation, OperationKind};
use super::refusal::Refusal;
use super::signature::Verifier;
use super::timestamp::Timestamp;

/// An operation that was submitted and is within the limits. Nothing is known yet of whom it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    json: String,
    signed: Bytes,
    cid: Cid,
    kind: OperationKind,
}

impl Submission {
    /// Reads the body of a submission.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] that no history can change.
    pub fn read(body: &str, limits: &SubmissionLimits) -> Result<Submission, Rejection> {
        let not_json = |reason: String| Rejection::NotJson { reason };
        let value = Value::parse(body).map_err(|error| not_json(error.to_string()))?;
        if !matches!(value, Value::Object(_) | Value::List(_)) {
            return Err(not_json("it is a single value".to_owned()));
        }
        if value.encoded_length() > limits.operation_bytes {
            return Err(Rejection::TooLarge { most: limits.operation_bytes });
        }
        let json = value.stringify();
        let Ok(signed) = json::read_operation(&json) else {
            return Err(Rejection::NotAnOperation { json });
        };
        let kind = match Operation::read(&signed) {
            Ok(operation) if operation.kind() != OperationKind::LegacyCreate => {
                limits.check(&operation)?;
                operation.kind()
            }
            _ => return Err(Rejection::NotAnOperation { json }),
        };
        Ok(Submission { json, cid: Cid::of(&signed), signed: signed.into(), kind })
    }

    /// The operation's JSON as it was submitted: in the order of its keys, without white space, each key once.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Its signed DAG-CBOR.
    pub fn signed(&self) -> &[u8] {
        &self.signed
    }

    /// The operation's CID.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The DID that it creates if it is the first of its identity.
    pub fn creates(&self) -> Did {
        Did::of_genesis_digest(self.cid.digest())
    }

    /// Judges it as the next operation of an identity that has this chain, as if it were accepted at this time.
    ///
    /// # Errors
    ///
    /// Why it is none. What the directory says to that is for [`Submission::words_for`].
    pub fn judge(
        &self,
        did: Did,
        mut chain: Chain,
        now: Timestamp,
        verifier: &dyn Verifier,
    ) -> Result<Acceptance, Refusal> {
        let is_first = chain.links().is_empty();
        let creates = self.creates();
        let received = Received {
            // Of a first operation the directory looks at the signature before it looks at the DID.
            did: if is_first { creates } else { did },
            cid: self.cid,
            stated_cid: None,
            created_at: now,
            sequence: None,
            nullified: None,
            received_at: None,
            signed: self.signed.clone(),
        };
        match chain.take(&received, verifier) {
            Verdict::Accepted(_) if is_first && creates != did => {
                Err(Refusal::GenesisMismatch { derived: creates })
            }
            Verdict::Accepted(acceptance) => Ok(acceptance),
            Verdict::Refused(refusal) => Err(refusal),
            Verdict::Known(_) => Err(self.submitted_again(&chain)),
        }
    }

    /// Why an operation cannot follow a chain that has it: it would have to nullify itself.
    fn submitted_again(&self, chain: &Chain) -> Refusal {
        let prev = Operation::read(&self.signed).ok().and_then(|operation| operation.prev_cid());
        let prev = prev.and_then(|prev| chain.find(&prev));
        match (prev, chain.find(&self.cid)) {
            (Some(Link { nullified_by: Some(_), cid, .. }), _) => {
                Refusal::PrevNullified { prev: *cid }
            }
            (Some(_), Some(held)) => {
                let signer = usize::from(held.signer);
                Refusal::NotAuthorised { signer, disputed: signer }
            }
            _ => Refusal::SecondGenesis { genesis: self.cid },
        }
    }

    /// What the directory says where it refuses it for this reason.
    pub fn words_for(&self, refusal: &Refusal) -> Rejection {
        match refusal {
            Refusal::SignatureEncoding
            | Refusal::SignatureInvalid
            | Refusal::UnsupportedKey { .. }
            | Refusal::NotAuthorised { .. } => {
                Rejection::InvalidSignature { json: self.json.clone() }
            }
            Refusal::GenesisMismatch { derived } => {
                Rejection::GenesisMismatch { derived: *derived }
            }
            // It is taken for a first operation, which has the hash of none.
            Refusal::UnknownDid { .. } if self.kind != OperationKind::Tombstone => {
                Rejection::GenesisMismatch { derived: self.creates() }
            }
            Refusal::RecoveryTooLate { created_at, disputed_at } => {
                Rejection::RecoveryTooLate { lapsed: created_at.since(*disputed_at) }
            }
            _ => Rejection::Misordered,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plc_testkit::Generated;
    use plc_testkit::builder::{RECOVERY_WINDOW, Story};
    use serde_json::{Map, json};

    use super::super::signature::PlainVerifier;
    use super::*;

    const K256: &str = "did:key:zQ3shP5TBe1sQfSttXty15FAEHV1DZgcxRZNxvEWnPfLFwLxJ";
    const ED25519: &str = "did:key:z6MkjwbBXZnFqL8su24wGL2Fdjti6GSLv9SWdYGswfazUPm9";

    /// What is said of an operation in which one field is this.
    fn with(field: &str, value: serde_json::Value) -> Result<Submission, String> {
        let mut operation = json!({
            "type": "plc_operation",
            "prev": null,
            "rotationKeys": [K256],
            "alsoKnownAs": [],
            "services": {},
            "verificationMethods": {},
            "sig": "sig",
        });
        operation[field] = value;
        read(&operation.to_string())
    }

    fn read(body: &str) -> Result<Submission, String> {
        Submission::read(body, &SubmissionLimits::default()).map_err(|said| said.to_string())
    }

    /// The value is within the limit, and the other one is not.
    fn ends(field: &str, within: serde_json::Value, beyond: serde_json::Value, said: &str) {
        assert!(with(field, within.clone()).is_ok(), "{field}: {within}");
        assert_eq!(with(field, beyond).unwrap_err(), said);
    }

    /// An object with so many members.
    fn members(count: usize, value: serde_json::Value) -> serde_json::Value {
        (0..count).map(|n| (format!("m{n}"), value.clone())).collect::<Map<_, _>>().into()
    }

    fn service(kind: &str, endpoint: &str) -> serde_json::Value {
        json!({"type": kind, "endpoint": endpoint})
    }

    fn x(length: usize) -> String {
        "x".repeat(length)
    }

    #[test]
    fn each_limit_is_the_directorys() {
        let aliases = |count| (0..count).map(|n| format!("at://{n}")).collect::<Vec<_>>();
        ends(
            "alsoKnownAs",
            json!(aliases(10)),
            json!(aliases(11)),
            "To many alsoKnownAs entries (max 10)",
        );
        let said = format!("alsoKnownAs entry too long (max 258): {}", x(259));
        ends("alsoKnownAs", json!([x(258)]), json!([x(259)]), &said);
        // Each counts as two.
        let wide = |count| "\u{1f600}".repeat(count);
        let said = format!("alsoKnownAs entry too long (max 258): {}", wide(130));
        ends("alsoKnownAs", json!([wide(129)]), json!([wide(130)]), &said);
        let said = "duplicate alsoKnownAs entry: a";
        ends("alsoKnownAs", json!(["a", "b"]), json!(["a", "b", "a"]), said);

        let said = "Too many rotationKey entries (max 10)";
        ends("rotationKeys", json!(vec![K256; 10]), json!(vec![K256; 11]), said);
        let said = format!("Invalid rotationKey: {ED25519}");
        ends("rotationKeys", json!([]), json!([K256, ED25519]), &said);

        let said = "To many service entries (max 10)";
        let some = service("t", "e");
        ends("services", members(10, some.clone()), members(11, some.clone()), said);
        let said = format!("Service id too long (max 32): {}", x(33));
        ends("services", json!({x(32): some}), json!({x(33): some}), &said);
        let typed = |length| json!({"a": service(&x(length), "e")});
        ends("services", typed(256), typed(257), "Service type too long (max 256)");
        let at = |length| json!({"a": service("t", &x(length))});
        ends("services", at(512), at(513), "Service endpoint too long (max 512)");

        let said = "Too many Verification Method entries (max 10)";
        let field = "verificationMethods";
        ends(field, members(10, json!(K256)), members(11, json!(K256)), said);
        let said = format!("Verification Method id too long (max 32): {}", x(33));
        ends(field, json!({x(32): K256}), json!({x(33): K256}), &said);
        let key = |length: usize| format!("did:key:z{}", "2".repeat(length - 9));
        let said = format!("Verification Method key too long (max 256): {}", key(257));
        ends(field, json!({"a": key(256)}), json!({"a": key(257)}), &said);
        for (key, other) in [
            (ED25519, "did:key:BJV2WY5DJMJQXGZJANFZSAYLXMVZW63LFEEQFY3ZP"),
            ("did:key:z", "did:key:"),
            ("did:key:z2", "did:key:z0"),
            ("did:key:z2", "did:key:z2 "),
            ("did:key:z2", "did:banana"),
        ] {
            let said = format!("Invalid verificationMethod key: {other}");
            ends(field, json!({"a": key}), json!({"a": other}), &said);
        }
    }

    #[test]
    fn the_whole_has_at_most_4000_bytes() {
        let said = "Operation too large (4000 bytes maximum in cbor encoding)";
        let padded = |padding: usize| {
            let mut services = members(8, service(&x(100), &x(300)));
            services["last"] = service("", &x(padding));
            services
        };
        let length = with("services", padded(300)).unwrap().signed.len();
        let most = 300 + 4_000 - length;
        assert_eq!(with("services", padded(most)).unwrap().signed.len(), 4_000);
        ends("services", padded(most), padded(most + 1), said);
        // What is no operation has a length too.
        assert_eq!(read(&format!(r#"{{"a":"{}"}}"#, x(5_000))).unwrap_err(), said);
    }

    #[test]
    fn what_is_no_operation_is_quoted_as_the_directory_quotes_it() {
        let legacy = r#"{"type":"create","signingKey":"s","recoveryKey":"r","handle":"h","service":"x","prev":null,"sig":"s"}"#;
        for (body, quoted) in [
            ("{}", "{}"),
            (" [ ] ", "[]"),
            (r#"{"type": "plc_operation", "10": 1.0}"#, r#"{"10":1,"type":"plc_operation"}"#),
            (legacy, legacy),
        ] {
            assert_eq!(read(body).unwrap_err(), format!("Not a valid operation: {quoted}"));
        }
        for body in ["", "null", "\"x\"", "{", "{}{}"] {
            let said = read(body).unwrap_err();
            assert!(said.starts_with("the body is not a JSON object: "), "{said}");
        }
        let tombstone = r#"{"type":"plc_tombstone","prev":"p","sig":"s"}"#;
        assert_eq!(read(tombstone).unwrap().json(), tombstone);
    }

    /// As the directory reads it, and as it then is in its log.
    #[test]
    fn of_a_key_that_stands_twice_the_last_value_counts() {
        let body = r#"{"sig":"1","type":"plc_tombstone","prev":"p", "sig":"2"}"#;
        let submission = read(body).unwrap();
        assert_eq!(submission.json(), r#"{"sig":"2","type":"plc_tombstone","prev":"p"}"#);
        assert_eq!(Operation::read(&submission.signed).unwrap().sig(), "2");
    }

    /// The chain of a story's accepted operations of one identity, and the submission of its last entry.
    fn before_last(story: &Story) -> (Did, Chain, Submission, Timestamp) {
        let (last, before) = story.log().split_last().unwrap();
        let did: Did = last.did.parse().unwrap();
        let mut chain = Chain::default();
        for entry in before.iter().filter(|entry| entry.did == last.did) {
            let received = Received::decode(entry.sequenced_line().as_bytes()).unwrap();
            chain.take(&received, &PlainVerifier);
        }
        (did, chain, submitted(last), last.created_at.parse().unwrap())
    }

    fn submitted(entry: &Generated) -> Submission {
        read(&entry.operation_json).unwrap()
    }

    /// What is said of the last entry of a story; nothing when it is accepted.
    fn said_of_last(story: &Story) -> String {
        let (did, chain, submission, now) = before_last(story);
        let judged = submission.judge(did, chain, now, &PlainVerifier);
        judged.err().map_or_else(String::new, |refusal| submission.words_for(&refusal).to_string())
    }

    #[test]
    fn what_the_rules_refuse_is_said_in_the_directorys_words() {
        let misordered = "Operations not correctly ordered";
        let invalid = |story: &Story| {
            let operation = &story.log().last().unwrap().operation_json;
            format!("Invalid signature on op: {operation}")
        };
        let mut story = Story::seeded(1);
        let alice = story.create().accepted();
        assert_eq!(said_of_last(&story), "");
        let first = story.update(&alice).accepted();
        assert_eq!(said_of_last(&story), "");
        let thief = story.k256();
        story.update(&alice).signed_by(&thief).refused("signature-invalid");
        assert_eq!(said_of_last(&story), invalid(&story));
        story.update(&alice).padded_signature().refused("signature-encoding");
        assert_eq!(said_of_last(&story), invalid(&story));
        // By the key that signed what it would nullify.
        story.after(&alice).refused("not-authorised");
        assert_eq!(said_of_last(&story), invalid(&story));
        let unknown = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
        story.update(&alice).prev(unknown).refused("unknown-prev");
        assert_eq!(said_of_last(&story), misordered);
        let recovery = story.recovery.clone();
        story
            .after(&alice)
            .signed_by(&recovery)
            .just_too_late_for(&first)
            .refused("recovery-too-late");
        let late = RECOVERY_WINDOW.as_millis() + 1;
        assert_eq!(
            said_of_last(&story),
            format!(
                "Recovery operation occurred outside of the allowed 72 hr recovery window. Time lapsed: {late}"
            )
        );

        let mut story = Story::seeded(2);
        let bob = story.create().accepted();
        let lost = story.update(&bob).accepted();
        let recovery = story.recovery.clone();
        story.after(&bob).signed_by(&recovery).accepted();
        assert_eq!(said_of_last(&story), "");
        story.after(&lost).refused("prev-nullified");
        assert_eq!(said_of_last(&story), misordered);
        let end = story.tombstone(&bob).accepted();
        assert_eq!(said_of_last(&story), "");
        story.after(&end).refused("prev-tombstone");
        assert_eq!(said_of_last(&story), misordered);
    }

    #[test]
    fn what_is_no_first_operation_is_said_in_the_directorys_words() {
        let mut story = Story::seeded(3);
        let (alice, bob) = (story.create().accepted(), story.create().accepted());
        let other: Did = bob.did.parse().unwrap();
        let said = |submission: &Submission, did| {
            let now = Timestamp::from_millis(0);
            let refusal = submission.judge(did, Chain::default(), now, &PlainVerifier).unwrap_err();
            submission.words_for(&refusal).to_string()
        };
        let of_other =
            |did: &str| format!("Hash of genesis operation does not match DID identifier: {did}");
        assert_eq!(said(&submitted(&story.log()[0]), other), of_other(&alice.did));
        // The signature is looked at before the hash.
        let thief = story.k256();
        story.create().signed_by(&thief).refused("signature-invalid");
        let forged = submitted(&story.log()[2]);
        assert_eq!(said(&forged, other), format!("Invalid signature on op: {}", forged.json()));
        story.update(&alice).accepted();
        let update = submitted(&story.log()[3]);
        assert_eq!(said(&update, other), of_other(&update.creates().to_string()));
        story.tombstone(&alice).accepted();
        assert_eq!(said(&submitted(&story.log()[4]), other), "Operations not correctly ordered");
    }

    #[test]
    fn what_is_submitted_again_is_refused_as_the_directory_does() {
        let mut story = Story::seeded(4);
        let alice = story.create().accepted();
        let lost = story.update(&alice).accepted();
        story.update(&alice).accepted();
        let recovery = story.recovery.clone();
        story.after(&alice).signed_by(&recovery).accepted();
        story.update(&alice).accepted();
        let (did, mut chain, last, now) = before_last(&story);
        last.judge(did, chain.clone(), now, &PlainVerifier).unwrap();
        let received = Received::decode(story.log()[4].sequenced_line().as_bytes()).unwrap();
        chain.take(&received, &PlainVerifier);
        let refused = |index: usize| {
            let submission = submitted(&story.log()[index]);
            submission.judge(did, chain.clone(), now, &PlainVerifier).unwrap_err()
        };
        let genesis = alice.cid.parse().unwrap();
        assert_eq!(refused(0), Refusal::SecondGenesis { genesis });
        assert_eq!(refused(1), Refusal::NotAuthorised { signer: 1, disputed: 1 });
        assert_eq!(refused(2), Refusal::PrevNullified { prev: lost.cid.parse().unwrap() });
        assert_eq!(refused(4), Refusal::NotAuthorised { signer: 1, disputed: 1 });
    }

    #[test]
    fn so_many_operations_are_taken_in_a_time() {
        let hour = Duration::from_secs(60 * 60);
        let day = hour * 24;
        let now = Timestamp::from_millis(100 * day.as_millis() as i64);
        let chain = |ages: &[Duration], nullified: usize| {
            let link = |(n, age): (usize, &Duration)| Link {
                cid: Cid::of(&n.to_be_bytes()),
                created_at: now - *age,
                sequence: None,
                rotation_keys: Box::default(),
                tombstone: false,
                signer: 0,
                nullified_by: (n < nullified).then_some(now),
            };
            Chain::from_links(ages.iter().enumerate().map(link).collect())
        };
        let moment = Duration::from_millis(1);
        for (period, age, most, name) in [
            (hour, hour - moment, 10, "hour"),
            (day, day - moment, 30, "day"),
            (day * 7, day * 7 - moment, 100, "week"),
        ] {
            let limits = RateLimits::default();
            let said = format!("To many operations within last {name} (max {most})");
            let ages = vec![age; most];
            let check = |ages: &[_], nullified| limits.check(&chain(ages, nullified), now);
            assert_eq!(check(&ages[1..], 0), Ok(()), "{name}");
            assert_eq!(check(&ages, 0).unwrap_err().to_string(), said);
            // What was nullified does not count, nor does what is as old as the time is long.
            assert_eq!(check(&ages, 1), Ok(()), "{name}");
            let ages = [&[period], &ages[1..]].concat();
            assert_eq!(check(&ages, 0), Ok(()), "{name}");
        }
    }
}
