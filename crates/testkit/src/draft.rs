//! An operation of a story while it is put together: what it says, who signs it and when, what
//! is wrong with it, and how it ends.

use std::time::Duration;

use data_encoding::{BASE64URL, BASE64URL_NOPAD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::keys::{SigningKey, der};
use super::so_far::{BEGINNING, RECOVERY_WINDOW, SoFar, Told, told};
use super::wire::{dag_cbor, wire_json};
use super::{Expected, Generated};
use did_plc::{Cid, Did, Timestamp};

/// Between an entry and the next when nothing is said.
const PAUSE: Duration = Duration::from_secs(60);

/// An operation that is being put together; [`Draft::accepted`] or [`Draft::refused`] signs it and
/// adds it to the log.
#[must_use = "an operation is told by `accepted` or `refused`"]
pub struct Draft<'a> {
    so_far: &'a mut SoFar,
    /// None: the one that the operation creates.
    did: Option<String>,
    operation: Map<String, Value>,
    signer: SigningKey,
    at: Timestamp,
    signature: SignatureForm,
    tamper: Option<Tampering<'a>>,
    spoil: Option<Box<dyn FnOnce(String) -> String + 'a>>,
    stated_cid: Option<String>,
}

/// A change to an operation that is signed already.
type Tampering<'a> = Box<dyn FnOnce(&mut Map<String, Value>) + 'a>;

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

impl<'a> Draft<'a> {
    pub(super) fn new(
        so_far: &'a mut SoFar,
        did: Option<String>,
        operation: Map<String, Value>,
        signer: &SigningKey,
    ) -> Draft<'a> {
        let signer = signer.clone();
        let at = so_far.now + PAUSE;
        let signature = SignatureForm::Strict;
        let (tamper, spoil, stated_cid) = (None, None, None);
        Draft { so_far, did, operation, signer, at, signature, tamper, spoil, stated_cid }
    }
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
            seq: self.so_far.log.len() as i64 + 1,
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
        self.so_far.tell(entry, self.operation, self.at);
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
