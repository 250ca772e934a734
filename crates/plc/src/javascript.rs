//! JSON as a JavaScript program passes it on: what `JSON.stringify` makes of what `JSON.parse` has read.
//!
//! The directory is such a program. It judges and quotes a submission after it was read in this way: of a
//! key that stands twice the last value counts, at the place of the first, and numbers have one spelling.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::json::write_string;
use super::operation::is_array_index;

/// Whole numbers beyond this are not exact in JavaScript (`Number.MAX_SAFE_INTEGER`).
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// A value as JavaScript holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Value>),
    /// An object: its members in the order in which JavaScript lists them.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Reads one JSON text.
    ///
    /// # Errors
    ///
    /// The parser's. It also refuses half of a surrogate pair, which JavaScript takes.
    pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The value as JSON, without white space.
    pub fn stringify(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        // Put together from whole strings.
        String::from_utf8(out).unwrap_or_default()
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Bool(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Value::Number(number) => out.extend_from_slice(number_text(*number).as_bytes()),
            Value::Text(text) => write_string(text, out),
            Value::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Value::Object(members) => {
                out.push(b'{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_string(key, out);
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }

    /// Bytes of its DAG-CBOR, which a value need not be an operation to have.
    pub fn encoded_length(&self) -> usize {
        match self {
            Value::Null | Value::Bool(_) => 1,
            Value::Number(number) => number_length(*number),
            Value::Text(text) => text_length(text),
            Value::List(items) => {
                head_length(items.len() as u64)
                    + items.iter().map(Value::encoded_length).sum::<usize>()
            }
            Value::Object(members) => {
                let member =
                    |(key, value): &(String, Value)| text_length(key) + value.encoded_length();
                head_length(members.len() as u64) + members.iter().map(member).sum::<usize>()
            }
        }
    }
}

fn text_length(text: &str) -> usize {
    head_length(text.len() as u64) + text.len()
}

/// Bytes of the head of an item with this argument (RFC 8949, 3).
fn head_length(argument: u64) -> usize {
    match argument {
        0..24 => 1,
        24..0x100 => 2,
        0x100..0x1_0000 => 3,
        0x1_0000..0x1_0000_0000 => 5,
        _ => 9,
    }
}

fn number_length(number: f64) -> usize {
    if number.fract() != 0.0 || number.abs() > MAX_SAFE_INTEGER {
        // DAG-CBOR has floats of one size only.
        return 9;
    }
    let argument = if number < 0.0 { -1.0 - number } else { number };
    head_length(argument as u64)
}

/// A number as JavaScript writes it (ECMA-262, `Number::toString`).
fn number_text(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    // The shortest digits that mean this number, which JavaScript takes too: `-1.25e-7`.
    let shortest = format!("{number:e}");
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa),
    };
    let digits = mantissa.replace('.', "");
    // Where the point is, counted from before the first digit.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let before = usize::try_from(point).unwrap_or(0);
    match point {
        ..=-6 | 22.. => {
            let (first, rest) = digits.split_at(1);
            let fraction = if rest.is_empty() { String::new() } else { format!(".{rest}") };
            let plus = if point > 0 { "+" } else { "" };
            format!("{sign}{first}{fraction}e{plus}{}", point - 1)
        }
        ..=0 => format!("{sign}0.{}{digits}", "0".repeat(point.unsigned_abs() as usize)),
        _ if digits.len() <= before => format!("{sign}{digits:0<before$}"),
        _ => format!("{sign}{}.{}", &digits[..before], &digits[before..]),
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
        from.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut members: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            match places.get(&key) {
                Some(&place) => members[place].1 = value,
                None => {
                    places.insert(key.clone(), members.len());
                    members.push((key, value));
                }
            }
        }
        // Array indices stand first, ascending; the sort leaves the others where they are.
        members.sort_by_key(|(key, _)| match is_array_index(key) {
            true => key.parse::<u64>().unwrap_or(u64::MAX),
            false => u64::MAX,
        });
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pair is what Node 20 makes of the first text.
    #[test]
    fn a_text_is_passed_on_as_javascript_does() {
        for (text, passed_on) in [
            (" { \"a\" : [ null , true ] } ", r#"{"a":[null,true]}"#),
            (
                r#"{"b":1.0,"a":1e21,"10":-0,"2":1e-7,"z":[1.5,123456789012345678901234567890],"b":2}"#,
                r#"{"2":1e-7,"10":0,"b":2,"a":1e+21,"z":[1.5,1.2345678901234568e+29]}"#,
            ),
            (
                r#"[100, 0.000001, 123e18, -1.25e-9, 0.1, 12.5e1, 5e-324, -0.5]"#,
                "[100,0.000001,123000000000000000000,-1.25e-9,0.1,125,5e-324,-0.5]",
            ),
            (r#""\u2028\u0001\u007f\u00e9\/""#, "\"\u{2028}\\u0001\u{7f}\u{e9}/\""),
            (r#"{"__proto__":1,"01":2,"1":3,"":4}"#, r#"{"1":3,"__proto__":1,"01":2,"":4}"#),
            ("[]", "[]"),
            ("{}", "{}"),
        ] {
            assert_eq!(Value::parse(text).unwrap().stringify(), passed_on, "{text}");
        }
        for text in ["", "{", "{}x", r#"{"a":1,}"#, r#""\ud800""#, "\u{feff}{}"] {
            assert!(Value::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_length_is_that_of_dag_cbor() {
        for (text, length) in [
            ("null", 1),
            ("23", 1),
            ("24", 2),
            ("-24", 1),
            ("-25", 2),
            ("255", 2),
            ("256", 3),
            ("65536", 5),
            ("4294967296", 9),
            ("1.5", 9),
            ("9007199254740993", 9),
            (r#""""#, 1),
            (r#""aé""#, 4),
            (r#"{"a":["b",1]}"#, 7),
        ] {
            assert_eq!(Value::parse(text).unwrap().encoded_length(), length, "{text}");
        }
        let long = format!("\"{}\"", "x".repeat(300));
        assert_eq!(Value::parse(&long).unwrap().encoded_length(), 303);
    }
}
