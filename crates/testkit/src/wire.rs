//! An operation as a tree, written as DAG-CBOR and as the directory's JSON in the slow and obvious
//! way: it shares no line with [`did_plc::json`], so that each checks the other.

use serde_json::{Map, Value};

/// DAG-CBOR: definite lengths, map keys by length, then bytewise.
pub fn dag_cbor(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => vec![0xf6],
        Value::Bool(false) => vec![0xf4],
        Value::Bool(true) => vec![0xf5],
        Value::Number(number) => cbor_number(number),
        Value::String(text) => {
            [cbor_head(3, text.len() as u64), text.clone().into_bytes()].concat()
        }
        Value::Array(items) => {
            let items = items.iter().map(dag_cbor);
            std::iter::once(cbor_head(4, items.len() as u64))
                .chain(items)
                .collect::<Vec<_>>()
                .concat()
        }
        Value::Object(map) => {
            let mut bytes = cbor_head(5, map.len() as u64);
            for (key, value) in by_length(map) {
                bytes.extend(cbor_head(3, key.len() as u64));
                bytes.extend(key.as_bytes());
                bytes.extend(dag_cbor(value));
            }
            bytes
        }
    }
}

/// Major type and argument, in the shortest form.
fn cbor_head(major: u8, argument: u64) -> Vec<u8> {
    let major = major << 5;
    let bytes = argument.to_be_bytes();
    match argument {
        0..24 => vec![major | bytes[7]],
        24..0x100 => vec![major | 24, bytes[7]],
        0x100..0x1_0000 => [&[major | 25], &bytes[6..]].concat(),
        0x1_0000..0x1_0000_0000 => [&[major | 26], &bytes[4..]].concat(),
        _ => [&[major | 27], &bytes[..]].concat(),
    }
}

/// Integers, and floats of 64 bits: no operation has either, hostile ones may.
fn cbor_number(number: &serde_json::Number) -> Vec<u8> {
    if let Some(positive) = number.as_u64() {
        cbor_head(0, positive)
    } else if let Some(negative) = number.as_i64() {
        cbor_head(1, !negative as u64)
    } else {
        let float = number.as_f64().unwrap_or_default();
        [&[0xfb], &float.to_be_bytes()[..]].concat()
    }
}

/// JSON as the directory prints it: Postgres `jsonb` sorts the keys (by length, then bytewise) and
/// a JavaScript object then moves those that are array indices to the front, ascending.
pub fn wire_json(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(wire_json).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(map) => {
            let (mut indices, names): (Vec<_>, Vec<_>) =
                by_length(map).into_iter().partition(|(key, _)| array_index(key).is_some());
            indices.sort_by_key(|(key, _)| array_index(key));
            let members: Vec<String> = indices
                .into_iter()
                .chain(names)
                .map(|(key, value)| format!("{}:{}", json_string(key), wire_json(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        scalar => scalar.to_string(),
    }
}

/// A JSON string; serde_json escapes exactly what `JSON.stringify` does.
pub fn json_string(text: &str) -> String {
    Value::from(text).to_string()
}

fn by_length(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = map.iter().collect();
    members.sort_by_key(|(key, _)| (key.len(), key.as_bytes()));
    members
}

/// A canonical array index of JavaScript: `0` to 2^32 - 2, without a leading zero.
fn array_index(key: &str) -> Option<u32> {
    let index: u32 = key.parse().ok()?;
    (index < u32::MAX && index.to_string() == key).then_some(index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cbor_by_the_book() {
        for (value, hex) in [
            (json!(null), "f6"),
            (json!([true, false]), "82f5f4"),
            (json!({"bb": 1, "a": -500, "c": "\u{0}é"}), "a361613901f36163630 0c3a9626262 01"),
            (json!(1_000_000), "1a000f4240"),
            (json!(1.5), "fb3ff8000000000000"),
        ] {
            let expected = hex.replace(' ', "");
            let written = data_encoding::HEXLOWER.encode(&dag_cbor(&value));
            assert_eq!(written, expected, "{value}");
        }
    }

    #[test]
    fn json_puts_indices_first_and_short_keys_before_long_ones() {
        let value = json!({"aa": "\u{7f}\u{1f}\n\"/", "b": {}, "10": [], "9": null, "01": true,
            "4294967294": 0, "4294967295": 0});
        assert_eq!(
            wire_json(&value),
            "{\"9\":null,\"10\":[],\"4294967294\":0,\"b\":{},\"01\":true,\
             \"aa\":\"\u{7f}\\u001f\\n\\\"/\",\"4294967295\":0}"
        );
    }
}
