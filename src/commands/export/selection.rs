//! Which operations are written.

use std::str::FromStr;

use anyhow::bail;
use did_plc::Timestamp;

use crate::store::StoredOperation;

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A sequence number.
    Number(i64),
    /// When the directory accepted an operation.
    Time(Timestamp),
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Place, &'static str> {
        if !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit()) {
            return text.parse().map(Place::Number).map_err(|_| "there is no such sequence number");
        }
        let time = text.parse().map(Place::Time);
        time.map_err(|_| "expected a sequence number, or a time as 2024-01-31T12:00:00Z")
    }
}

/// Which operations are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// What comes after this one.
    pub after: Option<Place>,
    /// What comes up to this one, itself included.
    pub until: Option<Place>,
    /// Only what was nullified.
    pub nullified: bool,
}

impl Selection {
    /// Refuses numbers where the order is that of times: what has no number has no place there.
    pub fn check_by_time(&self) -> anyhow::Result<()> {
        for (flag, place) in [("--after", self.after), ("--until", self.until)] {
            if let Some(Place::Number(number)) = place {
                bail!(
                    "{flag} {number}: a number is no place in the export --by-time; it takes a time there"
                );
            }
        }
        Ok(())
    }

    /// Whether it is written.
    pub fn takes(&self, stored: &StoredOperation) -> bool {
        let is_after = match self.after {
            None => true,
            Some(Place::Number(after)) => stored.sequence.is_some_and(|number| number > after),
            Some(Place::Time(after)) => stored.created_at > after,
        };
        let is_until = match self.until {
            None => true,
            Some(Place::Number(until)) => stored.sequence.is_some_and(|number| number <= until),
            Some(Place::Time(until)) => stored.created_at <= until,
        };
        is_after && is_until && (!self.nullified || stored.nullified_by.is_some())
    }

    /// The number after which there may be something.
    pub fn first_number(&self) -> i64 {
        match self.after {
            Some(Place::Number(after)) => after,
            Some(Place::Time(_)) | None => 0,
        }
    }

    /// The time after which there may be something.
    pub fn first_time(&self) -> Option<Timestamp> {
        match self.after {
            Some(Place::Time(after)) => Some(after),
            Some(Place::Number(_)) | None => None,
        }
    }

    /// Whether nothing comes any more after this operation, in the order of numbers.
    pub fn ends_by_number(&self, last: i64) -> bool {
        matches!(self.until, Some(Place::Number(until)) if last >= until)
    }

    /// The same in the order of times.
    pub fn ends_by_time(&self, last: Timestamp) -> bool {
        matches!(self.until, Some(Place::Time(until)) if last > until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_number_or_a_time() {
        assert_eq!("17".parse(), Ok(Place::Number(17)));
        let time = "2024-01-31T12:00:00.000Z".parse().unwrap();
        assert_eq!("2024-01-31T13:00:00+01:00".parse(), Ok(Place::Time(time)));
        for other in ["", "-1", "1.5", "2024-01-31", "99999999999999999999", "now"] {
            assert!(other.parse::<Place>().is_err(), "{other}");
        }
    }
}
