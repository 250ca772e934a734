//! Parameters as the directory reads them, which is as JavaScript does.

use std::borrow::Cow;

use did_plc::Timestamp;
use percent_encoding::percent_decode_str;

use super::error::ServeError;

/// The one value of a parameter; none when it is absent or empty.
///
/// # Errors
///
/// [`ServeError::InvalidParameter`] when it is given more than once: which one is meant would be
/// a guess. The same when it is not UTF-8: what it is taken for would be another value.
pub fn parameter<'a>(
    query: &'a str,
    name: &'static str,
) -> Result<Option<Cow<'a, str>>, ServeError> {
    let invalid = || ServeError::InvalidParameter(name);
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| decode_form(key).is_some_and(|key| key == name));
    let Some((_, value)) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid());
    }
    let value = decode_form(value).ok_or_else(invalid)?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// What a form's field stands for: `+` for a space, and `%` with two hexadecimal digits for a byte; none for
/// what is not UTF-8 then. Any other `%` stands for itself.
fn decode_form(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return percent_decode_str(text).decode_utf8().ok();
    }
    let spaced = text.replace('+', " ");
    Some(Cow::Owned(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned()))
}

/// A parameter that is `true` or `false`.
///
/// # Errors
///
/// [`ServeError::InvalidParameter`] when it is something else.
pub fn flag(query: &str, name: &'static str) -> Result<Option<bool>, ServeError> {
    match parameter(query, name)?.as_deref() {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(ServeError::InvalidParameter(name)),
    }
}

/// JavaScript's `parseInt(text, 10)`: white space, a sign, and as many digits as follow; none for
/// `NaN`. What is beyond `i64` becomes its limit.
pub fn parse_int(text: &str) -> Option<i64> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let value = decimal(&digits[..end])?;
    Some(if negative { -value } else { value })
}

/// A number of digits only; none for anything else. What is beyond `i64` becomes its limit.
pub fn decimal(digits: &str) -> Option<i64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.bytes().fold(0i64, |value, digit| {
        value.saturating_mul(10).saturating_add(i64::from(digit - b'0'))
    }))
}

/// A time in one of the forms of ECMAScript's date time string: a date (`2023`, `2023-03`,
/// `2023-03-16`), or a date and a time (`T00:32`, `T00:32:01`, `T00:32:01.5`, any number of
/// decimals, cut to milliseconds) with `Z`, an offset (`+02:00`), or neither, which is UTC.
///
/// A space may stand for the `T`; and for the `+` of an offset, which is what an unescaped `+`
/// becomes in a query.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, "00:00Z"),
    };
    let (time, offset_minutes) = split_offset(time)?;
    let (time, millis) = match time.split_once('.') {
        Some((time, fraction)) if time.len() == "00:00:00".len() => (time, milliseconds(fraction)?),
        Some(_) => return None,
        None => (time, 0),
    };
    let date = match date.len() {
        4 => format!("{date}-01-01"),
        7 => format!("{date}-01"),
        _ => date.to_owned(),
    };
    let time = if time.len() == "00:00".len() { format!("{time}:00") } else { time.to_owned() };
    // The midnight at the end of a day may be written as its hour 24.
    let (time, more_minutes) = match (time.as_str(), millis) {
        ("24:00:00", 0) => ("00:00:00", 24 * 60),
        _ => (time.as_str(), 0),
    };
    let utc: Timestamp = format!("{date}T{time}.{millis:03}Z").parse().ok()?;
    Some(Timestamp::from_millis(utc.millis() + (more_minutes - offset_minutes) * 60_000))
}

/// Splits `Z`, `+HH:MM` or `-HH:MM` (or nothing) off the end of a time; the offset in minutes.
fn split_offset(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = time.find(['+', '-', ' ']) else { return Some((time, 0)) };
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (decimal(hours)?, decimal(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let offset = hours * 60 + minutes;
    Some((&time[..at], if time.as_bytes()[at] == b'-' { -offset } else { offset }))
}

/// The first three decimals of a fraction of a second.
fn milliseconds(fraction: &str) -> Option<i64> {
    decimal(fraction)?;
    decimal(&format!("{fraction:0<3}")[..3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_parse_int_reads_them() {
        for (text, value) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("  17", Some(17)),
            ("\u{feff}\n17", Some(17)),
            ("+17", Some(17)),
            ("-17", Some(-17)),
            ("17abc", Some(17)),
            ("1e3", Some(1)),
            ("1.9", Some(1)),
            ("0x10", Some(0)),
            ("99999999999999999999", Some(i64::MAX)),
            ("-99999999999999999999", Some(-i64::MAX)),
            ("", None),
            (" ", None),
            ("abc", None),
            ("-", None),
            ("--1", None),
            ("Infinity", None),
            ("\u{661}", None),
        ] {
            assert_eq!(parse_int(text), value, "{text:?}");
        }
    }

    #[test]
    fn a_parameter_is_given_once_or_not_at_all() {
        let get = |query| parameter(query, "after").map(|value| value.map(Cow::into_owned));
        assert_eq!(get("").unwrap(), None);
        assert_eq!(get("after").unwrap(), None);
        assert_eq!(get("after=").unwrap(), None);
        assert_eq!(get("count=1&after=a%2Bb+c").unwrap().as_deref(), Some("a+b c"));
        assert_eq!(get("%61fter=1&&=2&%ff=3").unwrap().as_deref(), Some("1"));
        assert_eq!(get("after=%EF%BF%BD+%zz%").unwrap().as_deref(), Some("\u{fffd} %zz%"));
        for query in
            ["after=1&after=1", "after=&after=", "after=%ff", "after=a+%C3", "after=%ED%A0%80"]
        {
            assert!(matches!(get(query), Err(ServeError::InvalidParameter("after"))), "{query}");
        }
    }

    #[test]
    fn times_come_in_many_forms() {
        for (text, same) in [
            ("2023-03-16T00:32:01.250Z", "2023-03-16T00:32:01.250Z"),
            ("2023-03-16T00:32:01.250", "2023-03-16T00:32:01.250Z"),
            ("2023-03-16T00:32:01.250999Z", "2023-03-16T00:32:01.250Z"),
            ("2023-03-16T00:32:01.2Z", "2023-03-16T00:32:01.200Z"),
            ("2023-03-16T00:32:01Z", "2023-03-16T00:32:01.000Z"),
            ("2023-03-16 00:32:01Z", "2023-03-16T00:32:01.000Z"),
            ("2023-03-16T00:32Z", "2023-03-16T00:32:00.000Z"),
            ("2023-03-16T00:32:01.250+02:00", "2023-03-15T22:32:01.250Z"),
            ("2023-03-16T00:32:01.250 02:00", "2023-03-15T22:32:01.250Z"),
            ("2023-03-16T00:32:01-00:30", "2023-03-16T01:02:01.000Z"),
            ("2023-03-16T24:00:00Z", "2023-03-17T00:00:00.000Z"),
            ("2023-03-16", "2023-03-16T00:00:00.000Z"),
            ("2023-03", "2023-03-01T00:00:00.000Z"),
            ("2023", "2023-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(parse_time(text), Some(same.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_time() {
        for text in [
            "",
            "zzz",
            "T",
            "Z",
            "-1",
            "2023-",
            "2023-13",
            "2023-02-30",
            "2023-03-16T",
            "2023-03-16TZ",
            "2023-03-16T25:00:00Z",
            "2023-03-16T24:00:01Z",
            "2023-03-16T00:32:01.Z",
            "2023-03-16T00:32:01.xZ",
            "2023-03-16T00:32.5Z",
            "2023-03-16T00:32:01+0200",
            "2023-03-16T00:32:01+24:00",
            "2023-03-16T00:32:01.\u{e9}\u{e9}Z",
            "\u{e9}\u{e9}\u{e9}T00:32:01Z",
        ] {
            assert_eq!(parse_time(text), None, "{text:?}");
        }
    }
}
