//! Operations between JSON and their signed DAG-CBOR, in both directions without a tree.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::cbor::{self, Item, Reader, key_order};
use super::operation::{MAX_OPERATION_LENGTH, Malformed, is_array_index};

/// Translates the JSON of one operation into its signed DAG-CBOR.
///
/// # Errors
///
/// [`Malformed`] unless the JSON is exactly one of the three shapes: no field more or less, the
/// right types, no duplicate key, no lone surrogate.
pub fn read_operation(json: &str) -> Result<Vec<u8>, Malformed> {
    let fields: Fields<'_> =
        serde_json::from_str(json).map_err(|error| Malformed::new(error.to_string()))?;
    let mut signed = Vec::with_capacity(json.len());
    fields.write(&mut signed)?;
    if signed.len() > MAX_OPERATION_LENGTH {
        return Err(Malformed::new(format!(
            "an operation of {} bytes, more than {MAX_OPERATION_LENGTH}",
            signed.len()
        )));
    }
    Ok(signed)
}

/// The fields of all three shapes; [`Fields::write`] says which belong together.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow)]
    sig: Text<'a>,
    #[serde(borrow, deserialize_with = "Option::deserialize")]
    prev: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    services: Option<Entries<'a, Service<'a>>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    also_known_as: Option<Vec<Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    rotation_keys: Option<Vec<Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    verification_methods: Option<Entries<'a, Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    handle: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    service: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    signing_key: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "stated")]
    recovery_key: Option<Text<'a>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Service<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow)]
    endpoint: Text<'a>,
}

/// A field that is there is not null: `Option` alone would take null for absent.
fn stated<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl Fields<'_> {
    /// Writes the shape that `type` names, and refuses fields of another.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let regular = [
            self.services.is_some(),
            self.also_known_as.is_some(),
            self.rotation_keys.is_some(),
            self.verification_methods.is_some(),
        ];
        let legacy = [
            self.handle.is_some(),
            self.service.is_some(),
            self.signing_key.is_some(),
            self.recovery_key.is_some(),
        ];
        let none = |fields: &[bool]| !fields.contains(&true);
        match (&*self.r#type.0, &self.prev) {
            ("plc_operation", _) if none(&legacy) => self.write_regular(out),
            ("plc_tombstone", Some(_)) if none(&regular) && none(&legacy) => {
                self.write_common(3, out);
                Ok(())
            }
            ("plc_tombstone", None) => Err(Malformed::new("a tombstone whose `prev` is null")),
            ("create", None) if none(&regular) => self.write_legacy_create(out),
            ("create", Some(_)) => Err(Malformed::new("a `create` whose `prev` is not null")),
            ("plc_operation" | "plc_tombstone" | "create", _) => {
                Err(Malformed::new("fields of another type of operation"))
            }
            (other, _) => {
                let other: String = other.chars().take(64).collect();
                Err(Malformed::new(format!("no operation of type `{other}`")))
            }
        }
    }

    /// The entries that every shape begins with, in canonical order.
    fn write_common(&self, entries: usize, out: &mut Vec<u8>) {
        cbor::write_map(entries, out);
        write_field("sig", &self.sig, out);
        cbor::write_text("prev", out);
        match &self.prev {
            Some(prev) => cbor::write_text(&prev.0, out),
            None => cbor::write_null(out),
        }
        write_field("type", &self.r#type, out);
    }

    fn write_regular(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.write_common(7, out);
        let services = required(&self.services, "services")?;
        cbor::write_text("services", out);
        services.write(out, |service, out| {
            cbor::write_map(2, out);
            write_field("type", &service.r#type, out);
            write_field("endpoint", &service.endpoint, out);
        })?;
        for (name, texts) in
            [("alsoKnownAs", &self.also_known_as), ("rotationKeys", &self.rotation_keys)]
        {
            let texts = required(texts, name)?;
            cbor::write_text(name, out);
            cbor::write_array(texts.len(), out);
            for text in texts {
                cbor::write_text(&text.0, out);
            }
        }
        let methods = required(&self.verification_methods, "verificationMethods")?;
        cbor::write_text("verificationMethods", out);
        methods.write(out, |key, out| cbor::write_text(&key.0, out))
    }

    fn write_legacy_create(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.write_common(7, out);
        for (name, text) in [
            ("handle", &self.handle),
            ("service", &self.service),
            ("signingKey", &self.signing_key),
            ("recoveryKey", &self.recovery_key),
        ] {
            write_field(name, required(text, name)?, out);
        }
        Ok(())
    }
}

fn required<'a, T>(field: &'a Option<T>, name: &'static str) -> Result<&'a T, Malformed> {
    field.as_ref().ok_or_else(|| Malformed::new(format!("missing field `{name}`")))
}

fn write_field(name: &str, text: &Text<'_>, out: &mut Vec<u8>) {
    cbor::write_text(name, out);
    cbor::write_text(&text.0, out);
}

/// A JSON string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Text<'a>, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        from.deserialize_str(TextVisitor)
    }
}

/// The entries of a JSON object in the order of the text, duplicates and all.
struct Entries<'a, V>(Vec<(Text<'a>, V)>);

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Entries<'a, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Entries<'a, V>, D::Error> {
        struct EntriesVisitor<V>(std::marker::PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
            type Value = Vec<(Text<'de>, V)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        from.deserialize_map(EntriesVisitor(std::marker::PhantomData)).map(Entries)
    }
}

impl<V> Entries<'_, V> {
    /// Writes the map in canonical order.
    fn write(&self, out: &mut Vec<u8>, value: impl Fn(&V, &mut Vec<u8>)) -> Result<(), Malformed> {
        let mut entries: Vec<_> = self.0.iter().collect();
        entries.sort_unstable_by(|(a, _), (b, _)| key_order(&a.0, &b.0));
        if let Some(twice) = entries.windows(2).find(|pair| pair[0].0.0 == pair[1].0.0) {
            let key: String = twice[0].0.0.chars().take(64).collect();
            return Err(Malformed::new(format!("the key `{key}` stands twice in one object")));
        }
        cbor::write_map(entries.len(), out);
        for (key, item) in entries {
            cbor::write_text(&key.0, out);
            value(item, out);
        }
        Ok(())
    }
}

/// Appends the JSON of a signed operation as the directory prints it: keys in the order of
/// DAG-CBOR (which is that of Postgres `jsonb`), those that are array indices first.
///
/// # Errors
///
/// [`Malformed`] when the bytes are not canonical DAG-CBOR; `out` then holds half of it.
pub fn write_operation(signed: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut reader = Reader::new(signed);
    write_value(&mut reader, out, 0)?;
    if !reader.rest().is_empty() {
        return Err(Malformed::new("bytes after the operation"));
    }
    Ok(())
}

/// An operation nests three deep (operation, services, service); more is damage.
const MAX_DEPTH: usize = 4;

fn write_value(reader: &mut Reader<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed::new("values nested deeper than in any operation"));
    }
    match reader.item()? {
        Item::Null => out.extend_from_slice(b"null"),
        Item::Text(text) => write_string(text, out),
        Item::Array(items) => {
            out.push(b'[');
            for item in 0..items {
                if item > 0 {
                    out.push(b',');
                }
                write_value(reader, out, depth + 1)?;
            }
            out.push(b']');
        }
        Item::Map(entries) => write_object(reader, entries, out, depth)?,
    }
    Ok(())
}

fn write_object(
    reader: &mut Reader<'_>,
    entries: usize,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Malformed> {
    let start = *reader;
    let mut first = true;
    let mut indices = false;
    out.push(b'{');
    // Most objects have no array index among their keys, and one pass is enough for them.
    let mark = out.len();
    for _ in 0..entries {
        let key = reader.text()?;
        indices |= is_array_index(key);
        write_member(key, &mut first, reader, out, depth)?;
    }
    if indices {
        out.truncate(mark);
        first = true;
        for wanted in [true, false] {
            let mut pass = start;
            for _ in 0..entries {
                let key = pass.text()?;
                if is_array_index(key) == wanted {
                    write_member(key, &mut first, &mut pass, out, depth)?;
                } else {
                    write_value(&mut pass, &mut Vec::new(), depth + 1)?;
                }
            }
        }
    }
    out.push(b'}');
    Ok(())
}

fn write_member(
    key: &str,
    first: &mut bool,
    reader: &mut Reader<'_>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Malformed> {
    if !std::mem::take(first) {
        out.push(b',');
    }
    write_string(key, out);
    out.push(b':');
    write_value(reader, out, depth + 1)
}

/// Appends a string as `JSON.stringify` does.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    out.push(b'"');
    match may_stand_as_it_is(bytes) {
        true => out.extend_from_slice(bytes),
        false => escape(bytes, out),
    }
    out.push(b'"');
}

/// Bytes that are looked at together: as many as the compiler compares with one instruction everywhere.
const BLOCK: usize = 16;

/// Whether no byte has to be escaped. Nearly all strings are such.
fn may_stand_as_it_is(bytes: &[u8]) -> bool {
    // No byte is left out and no branch taken, so that a block is compared at once.
    let none_in =
        |block: &[u8; BLOCK]| !block.iter().fold(false, |any, &byte| any | is_escaped(byte));
    match bytes.last_chunk() {
        // The last block may have bytes of the one before.
        Some(last) => bytes.as_chunks().0.iter().all(none_in) && none_in(last),
        None => !bytes.iter().any(|&byte| is_escaped(byte)),
    }
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Appends text with what has to be escaped in it.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if !is_escaped(byte) {
            continue;
        }
        out.extend_from_slice(&bytes[written..at]);
        written = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[written..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Operation;

    const GENESIS: &str = r#"{"sig":"s","prev":null,"type":"plc_operation","services":{"atproto_pds":{"type":"T","endpoint":"https://h"}},"alsoKnownAs":["at://a"],"rotationKeys":["k","k"],"verificationMethods":{"atproto":"v"}}"#;

    fn round_trip(json: &str) -> Result<String, Malformed> {
        let signed = read_operation(json)?;
        Operation::read(&signed)?;
        let mut out = Vec::new();
        write_operation(&signed, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_order_of_the_wire_is_restored() {
        let shuffled = r#" {"verificationMethods":{"b":"1","a":"2","33":"x","4":"y","01":"z"},
            "rotationKeys":[],"alsoKnownAs":["\u0000\n\"\\\u2028\u00e9"],"services":{},
            "type":"plc_operation","prev":"p","sig":"s"}"#;
        assert_eq!(
            round_trip(shuffled).unwrap(),
            "{\"sig\":\"s\",\"prev\":\"p\",\"type\":\"plc_operation\",\"services\":{},\
             \"alsoKnownAs\":[\"\\u0000\\n\\\"\\\\\u{2028}é\"],\"rotationKeys\":[],\
             \"verificationMethods\":{\"4\":\"y\",\"33\":\"x\",\"a\":\"2\",\"b\":\"1\",\"01\":\"z\"}}"
        );
        assert_eq!(round_trip(GENESIS).unwrap(), GENESIS);
    }

    #[test]
    fn strings_are_written_as_another_library_writes_them() {
        for length in 0..70 {
            for at in 0..length {
                for other in (0..=0x24).chain([b'/', b'\\', 0x7e, 0x7f]) {
                    let mut bytes = vec![b'a'; length];
                    bytes[at] = other;
                    let text = String::from_utf8(bytes).unwrap();
                    let mut out = Vec::new();
                    write_string(&text, &mut out);
                    assert_eq!(out, serde_json::to_vec(&text).unwrap(), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn whatever_is_not_exactly_an_operation_is_malformed() {
        let replaced = |from: &str, to: &str| {
            assert!(GENESIS.contains(from), "{from}");
            GENESIS.replacen(from, to, 1)
        };
        for json in [
            "",
            "{}",
            "[]",
            "null",
            &replaced(r#""sig":"s","#, ""),
            &replaced(r#""prev":null,"#, ""),
            &replaced(r#""prev":null"#, r#""prev":0"#),
            &replaced(r#""sig":"s""#, r#""sig":null"#),
            &replaced(r#""sig":"s""#, r#""sig":"s","sig":"s""#),
            &replaced(r#""sig":"s""#, r#""sig":"s","extra":1"#),
            &replaced(r#""sig":"s""#, r#""sig":"\ud800""#),
            &replaced(r#""sig":"s""#, r#""sig":"s","handle":null"#),
            &replaced(r#""sig":"s""#, r#""sig":"s","handle":"h""#),
            &replaced(r#""plc_operation""#, r#""plc_other""#),
            &replaced(r#""plc_operation""#, r#""plc_tombstone""#),
            &replaced(r#""atproto":"v""#, r#""atproto":"v","atproto":"v""#),
            &replaced(r#""atproto":"v""#, r#""atproto":1"#),
            &replaced(r#""type":"T","#, ""),
            &replaced(r#""type":"T","#, r#""type":"T","x":"","#),
            &replaced(r#"["k","k"]"#, r#"{"k":"k"}"#),
            &replaced(r#"["k","k"]"#, "null"),
            &format!("{GENESIS}x"),
            r#"{"sig":"s","prev":null,"type":"plc_tombstone"}"#,
            r#"{"sig":"s","prev":"p","type":"create","handle":"h","service":"s","signingKey":"k","recoveryKey":"k"}"#,
        ] {
            assert!(round_trip(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_other_two_shapes() {
        for json in [
            r#"{"sig":"s","prev":"p","type":"plc_tombstone"}"#,
            r#"{"sig":"s","prev":null,"type":"create","handle":"h","service":"s","signingKey":"k","recoveryKey":"k"}"#,
        ] {
            assert_eq!(round_trip(json).unwrap(), json);
        }
    }
}
