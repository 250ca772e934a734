//! Sequence numbers as lines and messages state them.

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::value::RawValue;

/// The largest sequence number: up to here JavaScript, which the directory is written in, counts
/// without a gap.
pub const MAX_SEQUENCE: i64 = (1 << 53) - 1;

/// Reads the member `seq` of a line or message, for `#[serde(deserialize_with)]`. Null is no number,
/// as if there were no such member.
///
/// `7.0` and `7e0` are the number 7: JSON knows no difference, and programs that keep numbers with
/// a decimal point write them so.
///
/// # Errors
///
/// When it is not a whole number between 1 and [`MAX_SEQUENCE`].
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    let Some(stated) = Option::<&RawValue>::deserialize(from)? else { return Ok(None) };
    let number = read(stated.get());
    number.map(Some).ok_or_else(|| {
        let stated: String = stated.get().chars().take(MAX_QUOTED).collect();
        D::Error::custom(format!(
            "a sequence number is whole and between 1 and {MAX_SEQUENCE}, not `{stated}`"
        ))
    })
}

/// How much of what is no number is quoted.
const MAX_QUOTED: usize = 40;

/// Reads the JSON text of a value.
fn read(json: &str) -> Option<i64> {
    let number = json.parse().ok().or_else(|| {
        let number: f64 = json.parse().ok()?;
        // What is too large for the type becomes its last number, which is out of range too.
        (number.fract() == 0.0).then_some(number as i64)
    })?;
    (1..=MAX_SEQUENCE).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Line {
        #[serde(default, deserialize_with = "super::deserialize")]
        seq: Option<i64>,
    }

    #[test]
    fn whole_numbers_in_range_are_read_however_they_are_written() {
        for (json, number) in [
            ("1", 1),
            ("9007199254740991", MAX_SEQUENCE),
            ("1.0", 1),
            ("1e3", 1_000),
            ("1.5E1", 15),
            ("9007199254740991.0", MAX_SEQUENCE),
            ("9007199254740990.000e0", MAX_SEQUENCE - 1),
        ] {
            let line: Line = serde_json::from_str(&format!("{{\"seq\":{json}}}")).unwrap();
            assert_eq!(line.seq, Some(number), "{json}");
        }
    }

    #[test]
    fn a_line_may_have_none() {
        for line in ["{}", r#"{"seq":null}"#, r#"{"seq": null }"#] {
            assert_eq!(serde_json::from_str::<Line>(line).unwrap().seq, None, "{line}");
        }
    }

    #[test]
    fn anything_else_is_named() {
        for json in [
            "0",
            "-0",
            "-0.0",
            "-1",
            "1.5",
            "1e-1",
            "9007199254740992",
            "9007199254740992.0",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551616",
            "1e999",
            "-1e999",
            r#""7""#,
            r#""""#,
            r#""inf""#,
            "true",
            "[7]",
            "{}",
        ] {
            let error = serde_json::from_str::<Line>(&format!("{{\"seq\":{json}}}")).unwrap_err();
            assert!(error.is_data(), "{json}");
            let named = format!(
                "sequence number is whole and between 1 and 9007199254740991, not `{json}`"
            );
            assert!(error.to_string().contains(&named), "{error}");
        }
    }
}
