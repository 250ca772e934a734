//! Lines and what they say: each is parsed here, once, and whoever asks for its number or its CID asks what
//! came of that.

use std::fmt;

use ahash::AHashSet;
use bytes::Bytes;
use rayon::prelude::*;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::blocking;
use crate::upstream::UpstreamFault;
use did_plc::entry::{Received, Undecodable, without_mark};
use did_plc::{Did, Refusal, Timestamp};

/// Lines that one thread decodes in a row: some tens of microseconds, so that handing out work
/// costs little beside it.
const DECODE_CHUNK: usize = 32;
/// An audit log has no more entries than a page of the export has lines, or else as many as its bytes suffice for:
/// a DID and a signature alone take more than this.
const SHORTEST_ENTRY: usize = 100;
/// The lines of a page, which the directory gives at most. A shorter text than that many entries is no danger.
const FEW_ENTRIES: usize = 1_000;
/// Characters of a CID that is remembered: twice those of the directory's.
const MAX_CID: usize = 118;

/// Decodes lines on all cores, in their order.
pub fn decode(lines: &[Bytes]) -> Vec<Result<Received, Undecodable>> {
    lines.par_iter().with_min_len(DECODE_CHUNK).map(|line| Received::decode(line)).collect()
}

/// Lines, and beside each what came of decoding it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    lines: Vec<Bytes>,
    entries: Vec<Result<Received, Undecodable>>,
}

/// A place in an upstream's log, as it states it: by this it is told whether it still has the log that
/// was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The sequence number.
    pub sequence: i64,
    /// The CID that was stated under it, as long as it may be one; none where none was.
    pub cid: Option<String>,
}

impl Decoded {
    /// Decodes lines on all cores while the caller waits.
    pub async fn from_lines(lines: Vec<Bytes>) -> Decoded {
        blocking::run("decoding lines", move || {
            let entries = decode(&lines);
            Decoded { lines, entries }
        })
        .await
    }

    /// Decodes the elements of an audit log.
    ///
    /// # Errors
    ///
    /// When the body is none, or has more elements than it could have entries: a body full of small ones would
    /// take a hundred times its size here.
    pub async fn from_audit_log(body: &[u8]) -> Result<Decoded, UpstreamFault> {
        let at_most = FEW_ENTRIES.max(body.len() / SHORTEST_ENTRY);
        let mut json = serde_json::Deserializer::from_slice(without_mark(body));
        let elements = Elements { at_most }
            .deserialize(&mut json)
            .and_then(|elements| json.end().map(|()| elements))
            .map_err(|error| UpstreamFault::NotAnAuditLog { reason: error.to_string() })?;
        Ok(Decoded::from_lines(elements).await)
    }

    /// The lines as received.
    pub fn lines(&self) -> &[Bytes] {
        &self.lines
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Bytes of the lines as received.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(Bytes::len).sum()
    }

    /// Takes those that came after these.
    pub fn extend(&mut self, next: Decoded) {
        self.lines.extend(next.lines);
        self.entries.extend(next.entries);
    }

    /// What came of each line.
    pub fn entries(&self) -> &[Result<Received, Undecodable>] {
        &self.entries
    }

    /// The lines as received, and what came of each.
    pub fn into_lines_and_entries(self) -> (Vec<Bytes>, Vec<Result<Received, Undecodable>>) {
        (self.lines, self.entries)
    }

    /// The identities that are stated, each as often as it is.
    pub fn dids(&self) -> Vec<Did> {
        self.entries.iter().flatten().map(|received| received.did).collect()
    }

    /// How many lines state no identity.
    pub fn unreadable(&self) -> usize {
        let is_unreadable = |entry: &&Result<Received, Undecodable>| {
            entry.as_ref().is_err_and(|error| !error.names_identity())
        };
        self.entries.iter().filter(is_unreadable).count()
    }

    /// The first line that is not JSON.
    pub fn first_damaged(&self) -> Option<usize> {
        let is_damaged = |entry: &Result<Received, Undecodable>| {
            matches!(entry, Err(Undecodable { refusal: Refusal::NotJson { .. }, .. }))
        };
        self.entries.iter().position(is_damaged)
    }

    /// Forgets all lines from this one on.
    pub fn truncate(&mut self, length: usize) {
        self.lines.truncate(length);
        self.entries.truncate(length);
    }

    /// Splits off the lines before this one.
    pub fn split_before(&mut self, end: usize) -> Decoded {
        let (rest, entries) = (self.lines.split_off(end), self.entries.split_off(end));
        std::mem::replace(self, Decoded { lines: rest, entries })
    }

    /// The number that the first line states.
    pub fn first_number(&self) -> Option<i64> {
        self.entries.first().and_then(stated_number)
    }

    /// The numbers that are stated.
    pub fn numbers(&self) -> AHashSet<i64> {
        self.entries.iter().filter_map(stated_number).collect()
    }

    /// Forgets which numbers are stated: they are somebody's own.
    pub fn forget_numbers(&mut self) {
        for entry in &mut self.entries {
            match entry {
                Ok(received) => received.sequence = None,
                Err(undecodable) => undecodable.sequence = None,
            }
        }
    }

    /// The latest `createdAt` that is stated and is not after this moment: one from the future says nothing of where a
    /// log in the order of time has come to.
    pub fn latest_until(&self, now: Timestamp) -> Option<Timestamp> {
        let times = self.entries.iter().flatten().map(|received| received.created_at);
        times.filter(|time| *time <= now).max()
    }

    /// Forgets lines that state a number above this one.
    pub fn retain_up_to(&mut self, number: i64) {
        self.retain(|stated| stated.is_none_or(|stated| stated <= number));
    }

    /// Leaves out all but the lines of which the stated number says that they stay.
    pub fn retain(&mut self, stays: impl Fn(Option<i64>) -> bool) {
        let stays: Vec<bool> =
            self.entries.iter().map(|entry| stays(stated_number(entry))).collect();
        self.retain_those(&stays);
    }

    /// Leaves out all but the lines of which it is said, in their order, that they stay.
    pub fn retain_those(&mut self, stays: &[bool]) {
        let mut each = stays.iter();
        self.lines.retain(|_| each.next().is_some_and(|stays| *stays));
        let mut each = stays.iter();
        self.entries.retain(|_| each.next().is_some_and(|stays| *stays));
    }

    /// The numbers between which some are not stated, of those from a cursor to the one after these lines. A number
    /// above that does not lead there, and may be wrong.
    pub fn gap_between(&self, cursor: i64, next: i64) -> Option<(i64, i64)> {
        let mut numbers: Vec<i64> = self.entries.iter().filter_map(stated_number).collect();
        numbers.retain(|number| (cursor + 1..=next).contains(number));
        numbers.sort_unstable();
        let before = std::iter::once(cursor).chain(numbers.iter().copied());
        let mut gaps = before.zip(numbers.iter().copied()).filter(|(low, high)| high - low > 1);
        let (first, mut end) = gaps.next()?;
        if let Some((_, last)) = gaps.last() {
            end = last;
        }
        Some((first, end))
    }

    /// Whether the number that a line states is more than so far above the one that was stated before it.
    pub fn has_gap_above(&self, most: i64) -> bool {
        let numbers = || self.entries.iter().filter_map(stated_number);
        numbers().zip(numbers().skip(1)).any(|(number, next)| next.saturating_sub(number) > most)
    }

    /// The cursor after these lines.
    pub fn cursor_after(&self, before: i64) -> i64 {
        cursor_after(before, self.entries.iter().filter_map(stated_number))
    }

    /// The last line that states this number.
    pub fn line_at(&self, sequence: i64) -> Option<&Bytes> {
        let is_it = |entry: &Result<Received, Undecodable>| stated_number(entry) == Some(sequence);
        self.entries.iter().rposition(is_it).and_then(|place| self.lines.get(place))
    }

    /// What is stated for this number, usually by the last line.
    pub fn position_at(&self, sequence: i64) -> Option<Position> {
        let is_it = |entry: &&Result<Received, Undecodable>| stated_number(entry) == Some(sequence);
        self.entries.iter().rev().find(is_it).and_then(Position::of_entry)
    }
}

/// The elements of an array, so many at most.
struct Elements {
    at_most: usize,
}

impl<'de> DeserializeSeed<'de> for Elements {
    type Value = Vec<Bytes>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Bytes>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<Bytes>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<Bytes>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element::<&RawValue>()? {
            if elements.len() == self.at_most {
                let few = self.at_most;
                return Err(de::Error::custom(format_args!(
                    "it has more than {few} elements, too short to be entries"
                )));
            }
            elements.push(Bytes::copy_from_slice(element.get().as_bytes()));
        }
        Ok(elements)
    }
}

impl Position {
    /// What a line states; none when it has no number that could be a cursor.
    pub fn of_line(line: &[u8]) -> Option<Position> {
        Position::of_entry(&Received::decode(line))
    }

    fn of_entry(entry: &Result<Received, Undecodable>) -> Option<Position> {
        let sequence = stated_number(entry).filter(|&number| number > 0)?;
        let cid = match entry {
            Ok(received) => received.stated_cid.clone().unwrap_or_else(|| received.cid.to_string()),
            Err(undecodable) => undecodable.cid.clone(),
        };
        let cid = Some(cid).filter(|cid| !cid.is_empty() && cid.len() <= MAX_CID);
        Some(Position { sequence, cid })
    }
}

/// The number that a line states.
fn stated_number(entry: &Result<Received, Undecodable>) -> Option<i64> {
    match entry {
        Ok(received) => received.sequence,
        Err(undecodable) => undecodable.sequence,
    }
}

/// The cursor after lines with these numbers: the last one, where that is further than before, since
/// an upstream sends them in order; should it not, the highest one rather than none at all.
fn cursor_after(before: i64, numbers: impl Iterator<Item = i64>) -> i64 {
    let (last, highest) =
        numbers.fold((before, before), |(_, highest), number| (number, highest.max(number)));
    if last > before { last } else { highest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_follows_the_last_line_that_leads_further() {
        let cursor = |before, numbers: &[i64]| cursor_after(before, numbers.iter().copied());
        assert_eq!(cursor(4, &[]), 4);
        assert_eq!(cursor(4, &[5, 6, 7]), 7);
        // A number far ahead does not make us skip what comes after it.
        assert_eq!(cursor(4, &[5, 1_000_000, 6, 7]), 7);
        // An operation that was accepted late, at the end of a burst.
        assert_eq!(cursor(99, &[100, 101, 57]), 101);
        assert_eq!(cursor(99, &[57]), 99);
    }

    #[test]
    fn what_is_left_out_lies_between_two_numbers() {
        let gap = |cursor, numbers: &[i64]| {
            let line = |number: &i64| Bytes::from(format!(r#"{{"type":"notice","seq":{number}}}"#));
            let lines: Vec<Bytes> = numbers.iter().map(line).collect();
            let entries = decode(&lines);
            let decoded = Decoded { lines, entries };
            decoded.gap_between(cursor, decoded.cursor_after(cursor))
        };
        assert_eq!(gap(4, &[5, 6, 7]), None);
        assert_eq!(gap(4, &[7, 6, 5, 5, 2]), None);
        assert_eq!(gap(4, &[]), None);
        assert_eq!(gap(4, &[6]), Some((4, 6)));
        assert_eq!(gap(4, &[9, 5, 8]), Some((5, 8)));
        assert_eq!(gap(4, &[5, 7, 8, 11]), Some((5, 11)));
        // One that is far above the last leads nowhere.
        assert_eq!(gap(4, &[5, 900_000, 6, 7]), None);
        assert_eq!(gap(4, &[5, 900_000, 7]), Some((5, 7)));
        assert_eq!(gap(4, &[5, 6, 900_000]), Some((6, 900_000)));
    }

    #[tokio::test]
    async fn an_audit_log_has_no_more_entries_than_its_bytes_suffice_for() {
        let of = |element: &str, count: usize| format!("[{}]", vec![element; count].join(","));
        let decoded = async |body: String| {
            Decoded::from_audit_log(body.as_bytes()).await.map(|decoded| decoded.len())
        };
        let long = format!("\"{}\"", "x".repeat(SHORTEST_ENTRY));
        for (element, count) in [("0", 0), ("0", FEW_ENTRIES), (&*long, 5 * FEW_ENTRIES)] {
            assert_eq!(decoded(of(element, count)).await, Ok(count), "{element}");
        }
        for count in [FEW_ENTRIES + 1, 1_000_000] {
            let Err(UpstreamFault::NotAnAuditLog { reason }) = decoded(of("0", count)).await else {
                panic!("{count} elements");
            };
            assert!(reason.contains("elements, too short to be entries"), "{reason}");
        }
        for body in ["", "{}", "[0", "[0] [0]", "<html>"] {
            assert!(decoded(body.to_owned()).await.is_err(), "{body}");
        }
    }

    #[test]
    fn a_line_is_known_by_its_number_and_its_cid() {
        let position =
            |sequence, cid: Option<&str>| Some(Position { sequence, cid: cid.map(str::to_owned) });
        let of = |line: &str| Position::of_line(line.as_bytes());
        assert_eq!(of(r#"{"seq":7,"cid":"bafy","did":"x"}"#), position(7, Some("bafy")));
        assert_eq!(of(r#"{"type":"notice","seq":7}"#), position(7, None));
        assert_eq!(of(r#"{"type":"notice","seq":7,"cid":"bafy"}"#), position(7, Some("bafy")));
        assert_eq!(of(r#"{"seq":7,"cid":["bafy"]}"#), position(7, None));
        assert_eq!(of(&format!(r#"{{"seq":7,"cid":"{}"}}"#, "b".repeat(119))), position(7, None));
        assert_eq!(of(r#"{"seq":0,"cid":"bafy"}"#), None);
        assert_eq!(of(r#"{"seq":"7"}"#), None);
        assert_eq!(of("{"), None);
    }
}
