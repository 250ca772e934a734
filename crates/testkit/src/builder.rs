//! Stories for tests: a log is told operation by operation, and each one says how it ends.
//!
//! ```
//! use plc_testkit::builder::{RECOVERY_WINDOW, Story};
//!
//! let mut story = Story::seeded(1);
//! let thief = story.k256();
//! let alice = story.create().handle("alice.example.com").accepted();
//! let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
//! story.update(&stolen).signed_by(&thief).padded_signature().refused("signature-encoding");
//! let recovery = story.recovery.clone();
//! story.after(&alice).signed_by(&recovery).later_than(&stolen, RECOVERY_WINDOW).accepted();
//! assert!(story.log()[1].nullified_in_the_end);
//! ```
//!
//! What is not said is plausible: keys of the story's own host, a minute after the entry before.

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde_json::{Map, Value, json};

pub use super::draft::Draft;
use super::keys::SigningKey;
pub use super::so_far::{RECOVERY_WINDOW, Told};
use super::so_far::{SoFar, as_specified, told};
use super::{Expected, Generated};

/// A log that is being told.
#[derive(Debug)]
pub struct Story {
    /// First rotation key of identities that name no others.
    pub recovery: SigningKey,
    /// Second rotation key of identities that name no others; signs when nobody is named.
    pub signing: SigningKey,
    random: ChaCha20Rng,
    so_far: SoFar,
}

impl Story {
    /// An empty log; the seed decides every key that it draws.
    pub fn seeded(seed: u64) -> Story {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let recovery = SigningKey::k256(&mut random);
        let signing = SigningKey::k256(&mut random);
        Story { recovery, signing, random, so_far: SoFar::default() }
    }

    /// A fresh secp256k1 key.
    pub fn k256(&mut self) -> SigningKey {
        SigningKey::k256(&mut self.random)
    }

    /// A fresh P-256 key.
    pub fn p256(&mut self) -> SigningKey {
        SigningKey::p256(&mut self.random)
    }

    /// Begins an identity: one handle, one host, a fresh `atproto` key, the story's rotation keys.
    pub fn create(&mut self) -> Draft<'_> {
        let atproto = self.k256();
        let operation = regular(
            &format!("user{}.example.com", self.so_far.log.len()),
            "https://pds.example.com",
            [self.recovery.did_key(), self.signing.did_key()],
            atproto.did_key(),
        );
        let operation = with_prev(operation, Value::Null);
        self.draft(None, operation)
    }

    /// Begins an identity as the first directory wrote it.
    pub fn create_legacy(&mut self) -> Draft<'_> {
        let operation = object(json!({
            "type": "create",
            "prev": null,
            "handle": format!("user{}.example.com", self.so_far.log.len()),
            "service": "https://pds.example.com",
            "recoveryKey": self.recovery.did_key(),
            "signingKey": self.signing.did_key(),
        }));
        self.draft(None, operation)
    }

    /// Goes on after the identity's head, whose content is kept but for what the draft changes.
    pub fn update(&mut self, identity: &Told) -> Draft<'_> {
        let head = self.head(identity);
        self.after(&head)
    }

    /// Goes on after this operation whatever came since: a recovery, if something did.
    pub fn after(&mut self, prev: &Told) -> Draft<'_> {
        let operation = with_prev(self.content_of(prev), json!(prev.cid));
        self.draft(Some(prev.did.clone()), operation)
    }

    /// Ends the identity.
    pub fn tombstone(&mut self, identity: &Told) -> Draft<'_> {
        let head = self.head(identity);
        self.tombstone_after(&head)
    }

    /// Ends the identity after this operation whatever came since.
    pub fn tombstone_after(&mut self, prev: &Told) -> Draft<'_> {
        let operation = object(json!({"type": "plc_tombstone", "prev": prev.cid}));
        self.draft(Some(prev.did.clone()), operation)
    }

    /// The identity's newest accepted operation that is not nullified; `identity` itself when
    /// there is none.
    pub fn head(&self, identity: &Told) -> Told {
        let standing = |entry: &&Generated| {
            entry.did == identity.did
                && entry.expected == Expected::Accepted
                && !entry.nullified_in_the_end
        };
        self.so_far.log.iter().rfind(standing).map_or_else(|| identity.clone(), told)
    }

    /// Everything told so far, numbered from 1 in the order of telling.
    pub fn log(&self) -> &[Generated] {
        &self.so_far.log
    }

    /// The accepted entries of one identity, as its audit log has them.
    pub fn accepted<'a>(&'a self, identity: &'a Told) -> impl Iterator<Item = &'a Generated> {
        self.so_far
            .log
            .iter()
            .filter(|entry| entry.did == identity.did && entry.expected == Expected::Accepted)
    }

    fn draft(&mut self, did: Option<String>, operation: Map<String, Value>) -> Draft<'_> {
        Draft::new(&mut self.so_far, did, operation, &self.signing)
    }

    /// What an update starts from: the operation as a regular one, of a tombstone what was before.
    fn content_of(&self, entry: &Told) -> Map<String, Value> {
        let field = |operation: &Map<String, Value>, name| {
            operation.get(name).and_then(Value::as_str).unwrap_or_default().to_string()
        };
        let mut cid = entry.cid.clone();
        while let Some(index) = self.so_far.log.iter().rposition(|other| other.cid == cid) {
            let operation = &self.so_far.operations[index];
            match &*field(operation, "type") {
                "plc_tombstone" => cid = as_specified(&field(operation, "prev")),
                "create" => {
                    let key = field(operation, "signingKey");
                    return regular(
                        &field(operation, "handle"),
                        &field(operation, "service"),
                        [&field(operation, "recoveryKey"), &key],
                        &key,
                    );
                }
                _ => return operation.clone(),
            }
        }
        Map::new()
    }
}

/// A regular operation without `prev`.
fn regular(
    handle: &str,
    host: &str,
    rotation_keys: [&str; 2],
    atproto: &str,
) -> Map<String, Value> {
    object(json!({
        "type": "plc_operation",
        "alsoKnownAs": [format!("at://{handle}")],
        "rotationKeys": rotation_keys,
        "services": {"atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": host}},
        "verificationMethods": {"atproto": atproto},
    }))
}

fn with_prev(mut operation: Map<String, Value>, prev: Value) -> Map<String, Value> {
    operation.insert("prev".into(), prev);
    operation
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::wire::dag_cbor;
    use did_plc::signature::{PlainVerifier, Signature, Signed, Verifier};
    use did_plc::{Cid, Did};

    fn sig(entry: &Generated) -> String {
        let operation: Value = serde_json::from_str(&entry.operation_json).unwrap();
        operation["sig"].as_str().unwrap().to_string()
    }

    #[test]
    fn the_same_seed_tells_the_same_story() {
        let tell = || {
            let mut story = Story::seeded(3);
            let alice = story.create().accepted();
            story.update(&alice).handle("bob.example.com").accepted();
            story.log().to_vec()
        };
        assert_eq!(tell(), tell());
    }

    #[test]
    fn honest_operations_are_signed_by_whom_they_say() {
        let mut story = Story::seeded(4);
        let p256 = story.p256();
        let keys = [story.signing.clone(), p256.clone()];
        let alice = story.create().rotation_keys(&keys).accepted();
        let legacy = story.create_legacy().accepted();
        story.update(&alice).signed_by(&p256).accepted();
        story.update(&legacy).accepted();
        story.tombstone(&legacy).accepted();
        let signers = [0, 0, 1, 0, 0].map(|signer: usize| keys[signer].did_key());
        for (entry, signer) in story.log().iter().zip(signers) {
            let mut operation: Value = serde_json::from_str(&entry.operation_json).unwrap();
            assert_eq!(dag_cbor(&operation), entry.signed);
            assert_eq!(Cid::of(&entry.signed).to_string(), entry.cid);
            operation.as_object_mut().unwrap().remove("sig");
            let digest = Sha256::digest(dag_cbor(&operation)).into();
            let signature = Signature::parse(&sig(entry)).unwrap();
            let signed = Signed { digest, signature };
            assert_eq!(PlainVerifier.find_signer(&[signer], &signed), Ok(Some(0)));
        }
        assert_eq!(story.log()[0].did, Did::of_genesis(&story.log()[0].signed).to_string());
    }

    #[test]
    fn a_recovery_nullifies_what_came_since() {
        let mut story = Story::seeded(5);
        let (alice, bob) = (story.create().accepted(), story.create().accepted());
        let stolen = story.update(&alice).handle("stolen.example.com").accepted();
        story.tombstone(&alice).accepted();
        story.update(&bob).accepted();
        let recovery = story.recovery.clone();
        let mended = story.after(&alice).signed_by(&recovery).just_in_time_for(&stolen).accepted();
        let flags: Vec<bool> = story.log().iter().map(|entry| entry.nullified_in_the_end).collect();
        assert_eq!(flags, [false, false, true, true, false, false]);
        assert_eq!(story.head(&alice), mended);
        assert_eq!(story.accepted(&alice).count(), 4);
    }

    #[test]
    fn spoilt_signatures_are_not_what_the_specification_allows() {
        let mut story = Story::seeded(6);
        let alice = story.create().accepted();
        story.update(&alice).padded_signature().refused("signature-encoding");
        story.update(&alice).loose_base64_bits().refused("signature-encoding");
        story.update(&alice).newline_in_signature().refused("signature-encoding");
        story.update(&alice).der_signature().refused("signature-encoding");
        for entry in &story.log()[1..] {
            assert_eq!(Signature::parse(&sig(entry)), None);
        }
        story.update(&alice).high_s().refused("signature-invalid");
        story.update(&alice).forged_signature().refused("signature-invalid");
        for entry in &story.log()[5..] {
            assert!(Signature::parse(&sig(entry)).is_some());
        }
        assert_eq!(story.head(&alice), alice);
    }

    #[test]
    fn spoilt_json_is_what_its_name_says() {
        let mut story = Story::seeded(7);
        story.create().lone_surrogate().refused("malformed");
        story.create().duplicate_key().refused("malformed");
        story.create().unsigned().refused("malformed");
        let texts: Vec<&str> = story.log().iter().map(|entry| &*entry.operation_json).collect();
        assert!(texts[0].contains(r#"["at://\ud800user0"#));
        assert_eq!(texts[1].matches(r#""sig":"#).count(), 2);
        assert!(!texts[2].contains("sig\":"));
    }

    #[test]
    fn an_update_after_a_tombstone_has_the_content_of_before() {
        let mut story = Story::seeded(8);
        let alice = story.create_legacy().handle("alice.example.com").accepted();
        story.tombstone(&alice).accepted();
        story.update(&alice).refused("prev-tombstone");
        assert!(story.log()[2].operation_json.contains("at://alice.example.com"));
    }
}
