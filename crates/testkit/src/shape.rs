//! The operations of the measured log, of one shape and ASCII, written straight as DAG-CBOR and as
//! the directory's JSON. Quick where [`super::wire`] is obvious; a test holds the two together.

/// What an operation says, without `prev` and `sig`.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'a> {
    /// `plc_operation` with one handle, one host, two rotation keys and one verification method.
    Regular { handle: &'a str, host: &'a str, rotation_keys: [&'a str; 2], atproto: &'a str },
    /// `plc_tombstone`.
    Tombstone,
}

const HOST_KIND: &str = "AtprotoPersonalDataServer";

impl Shape<'_> {
    /// Appends the DAG-CBOR: signed when there is a `sig`. Keys are in the order of DAG-CBOR.
    pub fn write_cbor(&self, prev: Option<&str>, sig: Option<&str>, out: &mut Vec<u8>) {
        let fields = match self {
            Shape::Regular { .. } => 6,
            Shape::Tombstone => 2,
        };
        head(0xa0, fields + usize::from(sig.is_some()), out);
        if let Some(sig) = sig {
            texts(&["sig", sig], out);
        }
        texts(&["prev"], out);
        match prev {
            Some(prev) => texts(&[prev], out),
            None => out.push(0xf6),
        }
        match *self {
            Shape::Tombstone => texts(&["type", "plc_tombstone"], out),
            Shape::Regular { handle, host, rotation_keys: [first, second], atproto } => {
                texts(&["type", "plc_operation", "services"], out);
                head(0xa0, 1, out);
                texts(&["atproto_pds"], out);
                head(0xa0, 2, out);
                texts(&["type", HOST_KIND, "endpoint", host, "alsoKnownAs"], out);
                head(0x80, 1, out);
                texts(&[handle, "rotationKeys"], out);
                head(0x80, 2, out);
                texts(&[first, second, "verificationMethods"], out);
                head(0xa0, 1, out);
                texts(&["atproto", atproto], out);
            }
        }
    }

    /// Appends the signed operation as JSON.
    pub fn write_json(&self, prev: Option<&str>, sig: &str, out: &mut Vec<u8>) {
        join(&[r#"{"sig":""#, sig, r#"","prev":"#], out);
        match prev {
            Some(prev) => join(&["\"", prev, "\""], out),
            None => join(&["null"], out),
        }
        match *self {
            Shape::Tombstone => join(&[r#","type":"plc_tombstone"}"#], out),
            Shape::Regular { handle, host, rotation_keys: [first, second], atproto } => join(
                &[
                    r#","type":"plc_operation","services":{"atproto_pds":{"type":""#,
                    HOST_KIND,
                    r#"","endpoint":""#,
                    host,
                    r#""}},"alsoKnownAs":[""#,
                    handle,
                    r#""],"rotationKeys":[""#,
                    first,
                    r#"",""#,
                    second,
                    r#""],"verificationMethods":{"atproto":""#,
                    atproto,
                    r#""}}"#,
                ],
                out,
            ),
        }
    }
}

/// The head of an item of less than 256 entries or bytes.
fn head(major: u8, length: usize, out: &mut Vec<u8>) {
    debug_assert!(length < 256, "no string of these operations is longer");
    match length {
        0..24 => out.push(major | length as u8),
        _ => out.extend([major | 24, length as u8]),
    }
}

fn texts(items: &[&str], out: &mut Vec<u8>) {
    for item in items {
        head(0x60, item.len(), out);
        out.extend_from_slice(item.as_bytes());
    }
}

fn join(parts: &[&str], out: &mut Vec<u8>) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::wire::{dag_cbor, wire_json};

    #[test]
    fn it_writes_what_the_obvious_way_writes() {
        let regular = Shape::Regular {
            handle: "at://a.example",
            host: "https://pds.example",
            rotation_keys: ["did:key:one", "did:key:two"],
            atproto: "did:key:three",
        };
        let long = "b".repeat(59);
        for shape in [regular, Shape::Tombstone] {
            for prev in [None, Some(&*long)] {
                let (mut json, mut cbor, mut unsigned) = (Vec::new(), Vec::new(), Vec::new());
                shape.write_json(prev, "signature", &mut json);
                shape.write_cbor(prev, Some("signature"), &mut cbor);
                shape.write_cbor(prev, None, &mut unsigned);
                let mut value: Value = serde_json::from_slice(&json).unwrap();
                assert_eq!(wire_json(&value).as_bytes(), json);
                assert_eq!(dag_cbor(&value), cbor);
                value.as_object_mut().unwrap().remove("sig");
                assert_eq!(dag_cbor(&value), unsigned);
            }
        }
    }
}
