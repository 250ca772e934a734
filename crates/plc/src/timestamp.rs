//! The one form of time of the directory: UTC with milliseconds, `YYYY-MM-DDTHH:mm:ss.sssZ`.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z, between the years 0000 and 9999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The text is not `YYYY-MM-DDTHH:mm:ss.sssZ`, or not a time of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is written YYYY-MM-DDTHH:mm:ss.sssZ")]
pub struct MalformedTimestamp;

/// Characters of the text form.
const TEXT_LENGTH: usize = 24;
const DAY: i64 = 86_400_000;

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
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
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

    fn from_str(text: &str) -> Result<Timestamp, MalformedTimestamp> {
        let text = text.as_bytes();
        let punctuation = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.')];
        if text.len() != TEXT_LENGTH
            || text[23] != b'Z'
            || punctuation.iter().any(|&(at, sign)| text[at] != sign)
        {
            return Err(MalformedTimestamp);
        }
        let number = |from: usize, to: usize| {
            text[from..to].iter().try_fold(0i64, |value, digit| {
                digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
            })
        };
        let field = |from, to| number(from, to).ok_or(MalformedTimestamp);
        let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
        let (hour, minute) = (field(11, 13)?, field(14, 16)?);
        let (second, milli) = (field(17, 19)?, field(20, 23)?);
        if hour > 23 || minute > 59 || second > 59 {
            return Err(MalformedTimestamp);
        }
        let days = days_from_civil(year, month, day);
        // A date that the calendar lacks (month 13, 30 February) does not come back as itself.
        if civil_from_days(days) != (year, month, day) {
            return Err(MalformedTimestamp);
        }
        Ok(Timestamp(days * DAY + hour * 3_600_000 + minute * 60_000 + second * 1_000 + milli))
    }
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
    fn anything_else_is_malformed() {
        for text in [
            "",
            "2022-11-17T00:35:16.391",
            "2022-11-17 00:35:16.391Z",
            "2022-11-17T00:35:16Z",
            "2022-11-17T00:35:16.391000Z",
            "2022-11-17T00:35:16.391+00:00",
            "2023-02-29T00:00:00.000Z",
            "2022-13-01T00:00:00.000Z",
            "2022-00-01T00:00:00.000Z",
            "2022-01-01T24:00:00.000Z",
            "2022-01-01T00:00:60.000Z",
            "+022-01-01T00:00:00.000Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(MalformedTimestamp), "{text:?}");
        }
    }
}
