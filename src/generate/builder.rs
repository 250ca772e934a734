//! Stories for tests: a log is told operation by operation, and each one says how it ends.
//!
//! ```
//! use plc_replica::generate::builder::{RECOVERY_WINDOW, Story};
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

use std::time::Duration;

use data_encoding::{BASE64URL, BASE64URL_NOPAD};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::keys::{SigningKey, der};
use super::wire::{dag_cbor, wire_json};
use super::{Expected, Generated};
use crate::plc::{Cid, Did, Timestamp};

/// How long an operation can be overruled, the last millisecond included. Said a second time, so
/// that a story checks what the rules say.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(72 * 3600);
/// 2024-01-01T00:00:00.000Z, when stories begin.
const BEGINNING: Timestamp = Timestamp::from_millis(1_704_067_200_000);
/// Between an entry and the next when nothing is said.
const PAUSE: Duration = Duration::from_secs(60);

/// A log that is being told.
#[derive(Debug)]
pub struct Story {
    /// First rotation key of identities that name no others.
    pub recovery: SigningKey,
    /// Second rotation key of identities that name no others; signs when nobody is named.
    pub signing: SigningKey,
    random: ChaCha20Rng,
    now: Timestamp,
    log: Vec<Generated>,
    /// The operation of each entry of `log`, without its signature.
    operations: Vec<Map<String, Value>>,
}

/// An entry that was told: of which identity, which operation, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The identity.
    pub did: String,
    /// The operation.
    pub cid: String,
    /// Its `createdAt`.
    pub created_at: Timestamp,
}

impl Story {
    /// An empty log; the seed decides every key that it draws.
    pub fn seeded(seed: u64) -> Story {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let recovery = SigningKey::k256(&mut random);
        let signing = SigningKey::k256(&mut random);
        let (log, operations) = (Vec::new(), Vec::new());
        Story { recovery, signing, random, now: BEGINNING, log, operations }
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
            &format!("user{}.example.com", self.log.len()),
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
            "handle": format!("user{}.example.com", self.log.len()),
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
        self.log.iter().rfind(standing).map_or_else(|| identity.clone(), told)
    }

    /// Everything told so far, numbered from 1 in the order of telling.
    pub fn log(&self) -> &[Generated] {
        &self.log
    }

    /// The accepted entries of one identity, as its audit log has them.
    pub fn accepted<'a>(&'a self, identity: &'a Told) -> impl Iterator<Item = &'a Generated> {
        self.log
            .iter()
            .filter(|entry| entry.did == identity.did && entry.expected == Expected::Accepted)
    }

    fn draft(&mut self, did: Option<String>, operation: Map<String, Value>) -> Draft<'_> {
        Draft {
            at: self.now + PAUSE,
            signer: self.signing.clone(),
            story: self,
            did,
            operation,
            signature: SignatureForm::Strict,
            tamper: None,
            spoil: None,
            stated_cid: None,
        }
    }

    /// What an update starts from: the operation as a regular one, of a tombstone what was before.
    fn content_of(&self, entry: &Told) -> Map<String, Value> {
        let field = |operation: &Map<String, Value>, name| {
            operation.get(name).and_then(Value::as_str).unwrap_or_default().to_string()
        };
        let mut cid = entry.cid.clone();
        while let Some(index) = self.log.iter().rposition(|other| other.cid == cid) {
            let operation = &self.operations[index];
            match &*field(operation, "type") {
                "plc_tombstone" => cid = field(operation, "prev"),
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

    fn tell(&mut self, entry: Generated, operation: Map<String, Value>) {
        if entry.expected == Expected::Accepted {
            let prev = operation.get("prev").and_then(Value::as_str);
            let chain =
                |other: &Generated| other.did == entry.did && other.expected == Expected::Accepted;
            let index = self.log.iter().position(|other| chain(other) && Some(&*other.cid) == prev);
            let since = index.map_or(self.log.len(), |index| index + 1);
            // Whatever the identity did since `prev` is overruled.
            for other in self.log[since..].iter_mut().filter(|other| chain(other)) {
                other.nullified_in_the_end = true;
            }
        }
        self.log.push(entry);
        self.operations.push(operation);
    }
}

fn told(entry: &Generated) -> Told {
    let created_at = entry.created_at.parse().unwrap_or(BEGINNING);
    Told { did: entry.did.clone(), cid: entry.cid.clone(), created_at }
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

/// An operation that is being put together; [`Draft::accepted`] or [`Draft::refused`] signs it and
/// adds it to the log.
#[must_use = "an operation is told by `accepted` or `refused`"]
pub struct Draft<'a> {
    story: &'a mut Story,
    /// None: the one that the operation creates.
    did: Option<String>,
    operation: Map<String, Value>,
    signer: SigningKey,
    at: Timestamp,
    signature: SignatureForm,
    tamper: Option<Change<'a>>,
    spoil: Option<Box<dyn FnOnce(String) -> String + 'a>>,
    stated_cid: Option<String>,
}

/// A change to an operation that is signed already.
type Change<'a> = Box<dyn FnOnce(&mut Map<String, Value>) + 'a>;

/// How the 64 bytes of the signature become text.
enum SignatureForm {
    /// base64url without padding, as it has to be.
    Strict,
    Padded,
    /// The last character carries bits that decoders ignore.
    LooseBits,
    /// A newline at the end, which lenient decoders skip.
    Newline,
    /// `s` in the upper half of the group's order.
    HighS,
    Der,
    /// One bit of `r` turned over.
    Forged,
    Text(String),
    /// No `sig` at all.
    Missing,
}

/// What the operation says.
impl<'a> Draft<'a> {
    /// The rotation keys, in the order of their authority (of a legacy create: recovery key and
    /// signing key).
    pub fn rotation_keys<'k>(self, keys: impl IntoIterator<Item = &'k SigningKey>) -> Draft<'a> {
        self.rotation_key_texts(keys.into_iter().map(SigningKey::did_key))
    }

    /// The rotation keys as texts, keys or not.
    pub fn rotation_key_texts<'k>(self, keys: impl IntoIterator<Item = &'k str>) -> Draft<'a> {
        let keys: Vec<&str> = keys.into_iter().collect();
        match (self.is_legacy(), &keys[..]) {
            (true, [recovery, signing]) => {
                let (recovery, signing) = (json!(recovery), json!(signing));
                self.field("recoveryKey", recovery).field("signingKey", signing)
            }
            _ => self.field("rotationKeys", json!(keys)),
        }
    }

    /// The one handle.
    pub fn handle(self, handle: &str) -> Draft<'a> {
        match self.is_legacy() {
            true => self.field("handle", json!(handle)),
            false => self.also_known_as([&*format!("at://{handle}")]),
        }
    }

    /// All aliases.
    pub fn also_known_as<'t>(self, aliases: impl IntoIterator<Item = &'t str>) -> Draft<'a> {
        let aliases: Vec<&str> = aliases.into_iter().collect();
        self.field("alsoKnownAs", json!(aliases))
    }

    /// The key that signs the identity's records.
    pub fn atproto_key(self, key: &SigningKey) -> Draft<'a> {
        self.verification_method("atproto", key.did_key())
    }

    /// One more verification method.
    pub fn verification_method(self, name: &str, key: &str) -> Draft<'a> {
        self.member("verificationMethods", name, json!(key))
    }

    /// The host of the identity's data.
    pub fn host(self, endpoint: &str) -> Draft<'a> {
        match self.is_legacy() {
            true => self.field("service", json!(endpoint)),
            false => self.service("atproto_pds", "AtprotoPersonalDataServer", endpoint),
        }
    }

    /// One more service.
    pub fn service(self, name: &str, kind: &str, endpoint: &str) -> Draft<'a> {
        self.member("services", name, json!({"type": kind, "endpoint": endpoint}))
    }

    /// No verification method and no service.
    pub fn empty_maps(self) -> Draft<'a> {
        self.field("verificationMethods", json!({})).field("services", json!({}))
    }

    /// Any field, known or not, of any type.
    pub fn field(mut self, name: &str, value: Value) -> Draft<'a> {
        self.operation.insert(name.into(), value);
        self
    }

    /// Leaves a field out.
    pub fn without(mut self, name: &str) -> Draft<'a> {
        self.operation.remove(name);
        self
    }

    /// Names this predecessor, known or not.
    pub fn prev(self, cid: &str) -> Draft<'a> {
        self.field("prev", json!(cid))
    }

    /// Pretends to be the first.
    pub fn prev_null(self) -> Draft<'a> {
        self.field("prev", Value::Null)
    }

    fn member(mut self, field: &str, name: &str, value: Value) -> Draft<'a> {
        let map = self.operation.entry(field).or_insert_with(|| json!({}));
        if let Value::Object(map) = map {
            map.insert(name.into(), value);
        }
        self
    }

    fn is_legacy(&self) -> bool {
        self.operation.get("type") == Some(&json!("create"))
    }
}

/// Who signs it, when, and what the directory states.
impl<'a> Draft<'a> {
    /// Signs with this key, allowed to or not.
    pub fn signed_by(mut self, key: &SigningKey) -> Draft<'a> {
        self.signer = key.clone();
        self
    }

    /// Its `createdAt`. A text that is no time counts as the beginning of stories.
    pub fn at(mut self, created_at: &str) -> Draft<'a> {
        self.at = created_at.parse().unwrap_or(BEGINNING);
        self
    }

    /// Its `createdAt`, counted from another entry.
    pub fn later_than(mut self, other: &Told, by: Duration) -> Draft<'a> {
        self.at = other.created_at + by;
        self
    }

    /// Its `createdAt`, counted back from another entry.
    pub fn earlier_than(mut self, other: &Told, by: Duration) -> Draft<'a> {
        self.at = other.created_at - by;
        self
    }

    /// At the last moment at which `overruled` can be overruled.
    pub fn just_in_time_for(self, overruled: &Told) -> Draft<'a> {
        self.later_than(overruled, RECOVERY_WINDOW)
    }

    /// A millisecond after the window of `overruled` has closed.
    pub fn just_too_late_for(self, overruled: &Told) -> Draft<'a> {
        self.later_than(overruled, RECOVERY_WINDOW + Duration::from_millis(1))
    }

    /// States that it belongs to another identity.
    pub fn stated_did(mut self, did: &str) -> Draft<'a> {
        self.did = Some(did.into());
        self
    }

    /// States a CID that is not its own.
    pub fn stated_cid(mut self, cid: &str) -> Draft<'a> {
        self.stated_cid = Some(cid.into());
        self
    }
}

/// What is wrong with it.
impl<'a> Draft<'a> {
    fn signature(mut self, form: SignatureForm) -> Draft<'a> {
        self.signature = form;
        self
    }

    /// The signature's base64 ends with `==`.
    pub fn padded_signature(self) -> Draft<'a> {
        self.signature(SignatureForm::Padded)
    }

    /// The last character of the signature carries bits that decoders ignore.
    pub fn loose_base64_bits(self) -> Draft<'a> {
        self.signature(SignatureForm::LooseBits)
    }

    /// The signature ends with a newline.
    pub fn newline_in_signature(self) -> Draft<'a> {
        self.signature(SignatureForm::Newline)
    }

    /// The signature's `s` is in the upper half of the group's order.
    pub fn high_s(self) -> Draft<'a> {
        self.signature(SignatureForm::HighS)
    }

    /// The signature is DER instead of 64 bytes.
    pub fn der_signature(self) -> Draft<'a> {
        self.signature(SignatureForm::Der)
    }

    /// The signature is one bit away from a good one.
    pub fn forged_signature(self) -> Draft<'a> {
        self.signature(SignatureForm::Forged)
    }

    /// The signature is this text.
    pub fn signature_text(self, text: &str) -> Draft<'a> {
        self.signature(SignatureForm::Text(text.into()))
    }

    /// There is no signature.
    pub fn unsigned(self) -> Draft<'a> {
        self.signature(SignatureForm::Missing)
    }

    /// Changes the operation after it was signed; its CID is that of the changed bytes.
    pub fn tampered(mut self, change: impl FnOnce(&mut Map<String, Value>) + 'a) -> Draft<'a> {
        self.tamper = Some(Box::new(change));
        self
    }

    /// Changes the JSON text of the operation, and nothing that is computed from it.
    pub fn spoilt_json(mut self, change: impl FnOnce(String) -> String + 'a) -> Draft<'a> {
        self.spoil = Some(Box::new(change));
        self
    }

    /// The JSON states `sig` twice, with the same value.
    pub fn duplicate_key(self) -> Draft<'a> {
        self.spoilt_json(|json| {
            let end = json.find(',').unwrap_or(json.len());
            format!("{},{}", &json[..end], &json[1..])
        })
    }

    /// The first alias in the JSON begins with half of a surrogate pair.
    pub fn lone_surrogate(self) -> Draft<'a> {
        self.spoilt_json(|json| json.replacen("\"at://", "\"at://\\ud800", 1))
    }
}

/// How it ends.
impl Draft<'_> {
    /// A validator accepts it.
    pub fn accepted(self) -> Told {
        self.finish(Expected::Accepted)
    }

    /// A validator refuses it, giving this reason.
    pub fn refused(self, kind: &'static str) -> Told {
        self.finish(Expected::Refused(kind))
    }

    fn finish(mut self, expected: Expected) -> Told {
        let mut signed = self.operation.clone();
        if let Some(text) = self.signature_text_of(&self.operation) {
            signed.insert("sig".into(), text.into());
        }
        if let Some(tamper) = self.tamper.take() {
            tamper(&mut signed);
        }
        let signed = Value::Object(signed);
        let bytes = dag_cbor(&signed);
        let json = wire_json(&signed);
        let entry = Generated {
            seq: self.story.log.len() as i64 + 1,
            did: self.did.unwrap_or_else(|| Did::of_genesis(&bytes).to_string()),
            cid: self.stated_cid.unwrap_or_else(|| Cid::of(&bytes).to_string()),
            created_at: self.at.to_string(),
            operation_json: match self.spoil {
                Some(spoil) => spoil(json),
                None => json,
            },
            signed: bytes,
            nullified_in_the_end: false,
            expected,
        };
        let told = told(&entry);
        self.story.now = self.story.now.max(self.at);
        self.story.tell(entry, self.operation);
        told
    }

    /// Signs; the text of the signature, unless there is to be none.
    fn signature_text_of(&self, operation: &Map<String, Value>) -> Option<String> {
        let digest = Sha256::digest(dag_cbor(&Value::Object(operation.clone())));
        let signature = self.signer.sign(&digest.into());
        let text = BASE64URL_NOPAD.encode(&signature);
        Some(match &self.signature {
            SignatureForm::Strict => text,
            SignatureForm::Padded => BASE64URL.encode(&signature),
            SignatureForm::LooseBits => with_loose_bits(text),
            SignatureForm::Newline => text + "\n",
            SignatureForm::HighS => BASE64URL_NOPAD.encode(&self.signer.high_s(&signature)),
            SignatureForm::Der => BASE64URL_NOPAD.encode(&der(&signature)),
            SignatureForm::Forged => {
                let mut forged = signature;
                forged[31] ^= 1;
                BASE64URL_NOPAD.encode(&forged)
            }
            SignatureForm::Text(text) => text.clone(),
            SignatureForm::Missing => return None,
        })
    }
}

/// The 86th character stands for two bits of the 64 bytes and four spare ones: sets the last.
fn with_loose_bits(mut text: String) -> String {
    let last = text.pop().and_then(|last| match last {
        'A' => Some('B'),
        'Q' => Some('R'),
        'g' => Some('h'),
        'w' => Some('x'),
        _ => None,
    });
    text.extend(last);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plc::signature::{PlainVerifier, Signature, Verifier};

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
            assert_eq!(PlainVerifier.verify(signer, &digest, &signature), Ok(true));
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
