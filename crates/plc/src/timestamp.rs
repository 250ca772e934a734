//! Points in time: written in the one form of the directory, UTC with milliseconds
//! (`YYYY-MM-DDTHH:mm:ss.sssZ`), and read in every form of RFC 3339.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z, between the years 0000 and 9999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The text is not a time as RFC 3339 writes them, not a time of the calendar, or not one of the
/// years 0000 to 9999 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is written YYYY-MM-DDTHH:mm:ss.sssZ, or in another way that RFC 3339 allows")]
pub struct MalformedTimestamp;

/// Characters of the text form.
const TEXT_LENGTH: usize = 24;
/// Characters of it up to the seconds.
const SECOND_LENGTH: usize = 19;
const DAY: i64 = 86_400_000;
/// 0000-01-01T00:00:00.000Z.
const FIRST: i64 = days_from_civil(0, 1, 1) * DAY;
/// 9999-12-31T23:59:59.999Z.
const LAST: i64 = days_from_civil(10_000, 1, 1) * DAY - 1;

impl Timestamp {
    /// From milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Timestamp {
        Timestamp(millis)
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// The text form as ASCII, without an allocation.
    pub fn to_ascii(self) -> [u8; TEXT_LENGTH] {
        let (year, month, day) = civil_from_days(self.0.div_euclid(DAY));
        let of_day = self.0.rem_euclid(DAY);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], of_day / 3_600_000);
        digits(&mut text[14..16], of_day / 60_000 % 60);
        digits(&mut text[17..19], of_day / 1_000 % 60);
        digits(&mut text[20..23], of_day % 1_000);
        text
    }
}

/// Writes `value` in decimal, right-aligned, over the zeros of `text`.
fn digits(text: &mut [u8], mut value: i64) {
    for place in text.iter_mut().rev() {
        *place = b'0' + (value % 10).unsigned_abs() as u8;
        value /= 10;
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar
/// (Howard Hinnant, "chrono-compatible low-level date algorithms").
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of a number of days since 1970-01-01; inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

impl FromStr for Timestamp {
    type Err = MalformedTimestamp;

    /// Reads any RFC 3339 text: a fraction of any length or none, cut to milliseconds, `Z` or an
    /// offset, a small `t` or `z`, a space in place of the `T`.
    ///
    /// A leap second (`:60`) is refused: this count of milliseconds has no place for it, nor have
    /// the directory's own clocks, and the second after it is another time, which nobody stated.
    fn from_str(text: &str) -> Result<Timestamp, MalformedTimestamp> {
        let text = text.as_bytes();
        read_canonical(text).or_else(|| read_rfc_3339(text)).ok_or(MalformedTimestamp)
    }
}

/// Reads the directory's own form, which nearly every time has.
fn read_canonical(text: &[u8]) -> Option<Timestamp> {
    let (second, fraction) = text.split_at_checked(SECOND_LENGTH)?;
    let &[b'.', ref millis @ .., b'Z'] = fraction else { return None };
    if text.len() != TEXT_LENGTH || text[10] != b'T' {
        return None;
    }
    Some(Timestamp(read_second(second)? * 1_000 + number(millis)?))
}

fn read_rfc_3339(text: &[u8]) -> Option<Timestamp> {
    let (second, rest) = text.split_at_checked(SECOND_LENGTH)?;
    let (millis, offset) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (fraction, offset) = rest.split_at(digits);
            (first_three(fraction)?, offset)
        }
        None => (0, rest),
    };
    let millis = (read_second(second)? - offset_seconds(offset)?) * 1_000 + millis;
    // The offset can lead out of the years that have four digits.
    (FIRST..=LAST).contains(&millis).then_some(Timestamp(millis))
}

/// Reads `YYYY-MM-DDTHH:mm:ss`, without regard to an offset, as seconds since 1970.
fn read_second(text: &[u8]) -> Option<i64> {
    let punctuation = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if !matches!(text[10], b'T' | b't' | b' ')
        || punctuation.iter().any(|&(at, sign)| text[at] != sign)
    {
        return None;
    }
    let (year, month, day) = (number(&text[0..4])?, number(&text[5..7])?, number(&text[8..10])?);
    let (hour, minute) = (number(&text[11..13])?, number(&text[14..16])?);
    let second = number(&text[17..19])?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    // A date that the calendar lacks (month 13, 30 February) does not come back as itself.
    let exists = civil_from_days(days) == (year, month, day);
    exists.then_some(days * (DAY / 1_000) + hour * 3_600 + minute * 60 + second)
}

/// Reads `Z`, `+HH:MM` or `-HH:MM`: how many seconds ahead of UTC.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (&sign, digits) = text.split_first()?;
    let (hours, minutes) = match (sign, digits) {
        (b'Z' | b'z', []) => return Some(0),
        (b'+' | b'-', &[ref hours @ .., b':', ten, one]) if hours.len() == 2 => {
            (number(hours)?, number(&[ten, one])?)
        }
        _ => return None,
    };
    let offset = hours * 3_600 + minutes * 60;
    let exists = hours <= 23 && minutes <= 59;
    exists.then_some(if sign == b'-' { -offset } else { offset })
}

/// The milliseconds of a fraction with at least one digit.
fn first_three(fraction: &[u8]) -> Option<i64> {
    let digit = |at| fraction.get(at).map_or(0, |digit| i64::from(digit - b'0'));
    (!fraction.is_empty()).then(|| digit(0) * 100 + digit(1) * 10 + digit(2))
}

/// A number of decimal digits and nothing else.
fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
    })
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_ascii();
        f.pad(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(duration.as_millis().try_into().unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;

    fn sub(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(duration.as_millis().try_into().unwrap_or(i64::MAX)))
    }
}

impl From<std::time::SystemTime> for Timestamp {
    /// The system's time, cut to milliseconds; 1970 for a clock that stands before it.
    fn from(time: std::time::SystemTime) -> Timestamp {
        let since_1970 = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(0) + since_1970
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (text, millis) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("2022-11-17T00:35:16.391Z", 1_668_645_316_391),
            ("2024-02-29T23:59:59.999Z", 1_709_251_199_999),
            ("1969-12-31T23:59:59.999Z", -1),
        ] {
            assert_eq!(text.parse(), Ok(Timestamp::from_millis(millis)), "{text}");
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in -200 * 365..200 * 366 {
            let time = Timestamp::from_millis(day * DAY + 12_345);
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    }

    #[test]
    fn every_spelling_of_an_instant_is_that_instant() {
        let instant: Timestamp = "2025-01-25T06:13:21.000Z".parse().unwrap();
        for text in [
            "2025-01-25T06:13:21Z",
            "2025-01-25t06:13:21z",
            "2025-01-25 06:13:21Z",
            "2025-01-25T06:13:21.0Z",
            "2025-01-25T06:13:21.00Z",
            "2025-01-25T06:13:21.000999999999999999999999999Z",
            "2025-01-25T06:13:21+00:00",
            "2025-01-25T06:13:21.000+00:00",
            "2025-01-25T06:13:21.000-00:00",
            "2025-01-25T08:13:21.000+02:00",
            "2025-01-25T11:58:21+05:45",
            "2025-01-24T23:13:21-07:00",
            "2025-01-26T06:12:21.0001+23:59",
        ] {
            assert_eq!(text.parse(), Ok(instant), "{text}");
        }
        let later: Timestamp = "2025-01-25T06:13:21.789Z".parse().unwrap();
        for text in ["2025-01-25T06:13:21.7899Z", "2025-01-25 07:13:21.789123456+01:00"] {
            assert_eq!(text.parse(), Ok(later), "{text}");
        }
        let tenths = "2025-01-25T06:13:21.7z".parse::<Timestamp>().unwrap();
        assert_eq!(tenths.to_string(), "2025-01-25T06:13:21.700Z");
    }

    #[test]
    fn every_time_that_is_read_can_be_written() {
        for (text, written) in [
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00.000Z"),
            ("9999-12-31T23:59:59.9999Z", "9999-12-31T23:59:59.999Z"),
            ("0000-01-01T00:00:00-00:01", "0000-01-01T00:01:00.000Z"),
            ("9999-12-31T23:59:59+00:01", "9999-12-31T23:58:59.000Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), written);
        }
        for outside in ["0000-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"] {
            assert_eq!(outside.parse::<Timestamp>(), Err(MalformedTimestamp), "{outside}");
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            "2022-11-17",
            "2022-11-17T00:35Z",
            "2022-11-17T00:35:16.391",
            "2022-11-17T00:35:16",
            "2022-11-17T00:35:16.Z",
            "2022-11-17T00:35:16,391Z",
            "2022-11-17T00:35:16.391Z ",
            " 2022-11-17T00:35:16.391Z",
            "2022-11-17_00:35:16.391Z",
            "2022-11-17T00:35:16.39aZ",
            "2022-11-17T00:35:16.391ZZ",
            "2022-11-17T00:35:16.391+0000",
            "2022-11-17T00:35:16.391+00",
            "2022-11-17T00:35:16.391+24:00",
            "2022-11-17T00:35:16.391+00:60",
            "2022-11-17T00:35:16.391+1:00",
            "2022-11-17T00:35:16.391 00:00",
            "2022-11-17T00:35:16.391\u{2212}07:00",
            "2023-02-29T00:00:00.000Z",
            "2022-13-01T00:00:00.000Z",
            "2022-00-01T00:00:00.000Z",
            "2022-01-01T24:00:00.000Z",
            "2022-01-01T00:00:60.000Z",
            "2016-12-31T23:59:60Z",
            "+022-01-01T00:00:00.000Z",
            "+2022-01-01T00:00:00.000Z",
            "20222-01-01T00:00:00.000Z",
            "2022-01-0éT00:00:00.000Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(MalformedTimestamp), "{text:?}");
        }
    }
}
