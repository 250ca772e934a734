//! Entries of a log: how others state an operation to us, and how we state it to others.
//!
//! One operation travels in four envelopes: a line of the export by sequence number, a line of
//! the export by time, an element of an audit log, and a message of the stream.
//!
//! Nobody signs an envelope, and others than the directory write them too: it is read generously
//! (members that nobody knows, a byte order mark, any spelling of a time), the operation in it
//! strictly.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::cid::Cid;
use super::did::Did;
use super::json;
use super::operation::Malformed;
use super::refusal::Refusal;
use super::sequence;
use super::timestamp::Timestamp;

/// The `type` of a line or message that carries an operation with a sequence number.
pub const SEQUENCED_OPERATION: &str = "sequenced_op";

/// The byte order mark, which some programs write in front of a text.
const MARK: &str = "\u{feff}";

/// A text, or a line of one, without the byte order mark that it may begin with: no JSON parser
/// takes one.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(MARK.as_bytes()).unwrap_or(text)
}

/// An entry in any of the four envelopes, as stated; nothing of it is believed yet.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    /// The DID that it is said to belong to.
    #[serde(borrow)]
    pub did: Cow<'a, str>,
    /// The CID.
    #[serde(borrow)]
    pub cid: Cow<'a, str>,
    /// The sequence number; in the export by sequence number and in the stream.
    #[serde(default, deserialize_with = "sequence::deserialize")]
    pub seq: Option<i64>,
    /// When the directory accepted it.
    #[serde(borrow)]
    pub created_at: Cow<'a, str>,
    /// Whether it was nullified later; in the export by time and in audit logs.
    #[serde(default)]
    pub nullified: Option<bool>,
    /// The `type` of the line, not of the operation.
    #[serde(borrow, default, rename = "type")]
    pub kind: Option<Cow<'a, str>>,
    /// The operation's JSON.
    #[serde(borrow)]
    operation: &'a RawValue,
}

impl<'a> Entry<'a> {
    /// Reads one JSON object, which begins without a byte order mark ([`without_mark`]). The
    /// operation in it is not read.
    ///
    /// # Errors
    ///
    /// The parser's: of the category `Data` when it is JSON but no entry.
    pub fn read(line: &'a str) -> Result<Entry<'a>, serde_json::Error> {
        serde_json::from_str(line)
    }

    /// The operation's JSON as received.
    pub fn operation(&self) -> &'a str {
        self.operation.get()
    }
}

/// An operation of a log as somebody states it, decoded: everything about it that needs no other
/// operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The identity that it is said to belong to.
    pub did: Did,
    /// The CID, computed from the signed bytes.
    pub cid: Cid,
    /// The CID that was stated, when it is another.
    pub stated_cid: Option<String>,
    /// When the directory says that it accepted it.
    pub created_at: Timestamp,
    /// The directory's sequence number.
    pub sequence: Option<i64>,
    /// The stated flag.
    pub nullified: Option<bool>,
    /// When it was received, where that is known.
    pub received_at: Option<Timestamp>,
    /// The signed DAG-CBOR.
    pub signed: Bytes,
}

/// A line with no operation that could be judged, and whatever of it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// The DID as stated; empty when none was.
    pub did: String,
    /// The stated CID; empty when none was.
    pub cid: String,
    /// The stated sequence number; none when it is no such number.
    pub sequence: Option<i64>,
    /// What is wrong with it.
    pub refusal: Refusal,
}

impl Received {
    /// Decodes one line or message.
    ///
    /// # Errors
    ///
    /// See [`Undecodable`].
    pub fn decode(line: &[u8]) -> Result<Received, Undecodable> {
        let line =
            str::from_utf8(without_mark(line)).map_err(|error| Undecodable::not_json(&error))?;
        let entry = Entry::read(line).map_err(|error| undecodable(line, &error))?;
        if let Some(kind) = entry.kind.as_deref().filter(|&kind| kind != SEQUENCED_OPERATION) {
            return Err(Undecodable {
                did: String::new(),
                cid: entry.cid.into_owned(),
                sequence: entry.seq,
                refusal: Refusal::UnknownType { stated: kind.to_owned() },
            });
        }
        Received::from_entry(&entry).map_err(|refusal| Undecodable {
            did: entry.did.to_string(),
            cid: entry.cid.to_string(),
            sequence: entry.seq,
            refusal,
        })
    }

    fn from_entry(entry: &Entry<'_>) -> Result<Received, Refusal> {
        let did = entry.did.parse().map_err(|_| Refusal::MalformedDid)?;
        let malformed = |reason: String| Refusal::Malformed { reason };
        let created_at = entry
            .created_at
            .parse()
            .map_err(|error| malformed(format!("createdAt `{}`: {error}", entry.created_at)))?;
        let signed = json::read_operation(entry.operation())
            .map_err(|error| malformed(error.to_string()))?;
        let cid = Cid::of(&signed);
        let stated_cid = (cid.to_ascii() != entry.cid.as_bytes()).then(|| entry.cid.to_string());
        Ok(Received {
            did,
            cid,
            stated_cid,
            created_at,
            sequence: entry.seq,
            nullified: entry.nullified,
            received_at: None,
            signed: signed.into(),
        })
    }
}

impl Undecodable {
    /// Whether the line states an identity, so that it is an entry of a log, if a bad one.
    pub fn names_identity(&self) -> bool {
        self.did.parse::<Did>().is_ok()
    }

    fn not_json(error: &impl ToString) -> Undecodable {
        Undecodable {
            did: String::new(),
            cid: String::new(),
            sequence: None,
            refusal: Refusal::NotJson { reason: error.to_string() },
        }
    }

    /// An entry that stands in the log of this identity, which is not its own.
    pub(super) fn in_log_of(did: &Did, received: Received) -> Undecodable {
        let reason = format!("an entry of {} in the log of {did}", received.did);
        Undecodable {
            did: received.did.to_string(),
            cid: received.cid.to_string(),
            sequence: received.sequence,
            refusal: Refusal::Malformed { reason },
        }
    }
}

/// Tells a line that is not JSON from JSON that is no entry. Of the latter the `type` decides,
/// since a line of another type need not look like an operation at all.
fn undecodable(line: &str, error: &serde_json::Error) -> Undecodable {
    if !error.is_data() {
        return Undecodable::not_json(error);
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Envelope {
        r#type: serde_json::Value,
        did: serde_json::Value,
        cid: serde_json::Value,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Numbered {
        #[serde(deserialize_with = "sequence::deserialize")]
        seq: Option<i64>,
    }
    // What is no object states nothing, and what is no sequence number is none.
    let envelope: Envelope = serde_json::from_str(line).unwrap_or_default();
    let Numbered { seq } = serde_json::from_str(line).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let other_type = envelope.r#type.as_str().filter(|&stated| stated != SEQUENCED_OPERATION);
    Undecodable {
        did: if other_type.is_some() { String::new() } else { text(&envelope.did) },
        cid: text(&envelope.cid),
        sequence: seq,
        refusal: match other_type {
            Some(stated) => Refusal::UnknownType { stated: stated.to_owned() },
            None => Refusal::Malformed { reason: error.to_string() },
        },
    }
}

/// The time that a line states, whatever else is wrong with it.
pub fn stated_time(line: &[u8]) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Dated<'a> {
        #[serde(borrow)]
        created_at: Cow<'a, str>,
    }
    let dated: Dated<'_> = serde_json::from_slice(without_mark(line)).ok()?;
    dated.created_at.parse().ok()
}

/// The identity that a line states, whatever else is wrong with it. Costs a fraction of
/// [`Received::decode`], which never names another.
pub fn stated_did(line: &[u8]) -> Option<Did> {
    #[derive(serde::Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        did: Cow<'a, str>,
    }
    let named: Named<'_> = serde_json::from_slice(without_mark(line)).ok()?;
    named.did.parse().ok()
}

/// An operation of the log, to be written into an envelope.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    /// The identity that it belongs to.
    pub did: &'a Did,
    /// The CID of `signed`.
    pub cid: &'a Cid,
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// The directory's sequence number.
    pub sequence: Option<i64>,
    /// Whether it was nullified later.
    pub nullified: bool,
    /// The signed DAG-CBOR.
    pub signed: &'a [u8],
}

impl Logged<'_> {
    /// Appends the line of `/export?after=SEQ`, without the newline.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the signed bytes are damaged, here and below.
    pub fn write_sequenced(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.begin_line(out);
        self.write_sequence(b",\"seq\":", out);
        self.write_created_at(out);
        self.write_operation(out)?;
        out.extend_from_slice(b",\"type\":\"sequenced_op\"}");
        Ok(())
    }

    /// Appends the line of `/export` by time, without the newline.
    pub fn write_timestamped(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.begin_line(out);
        self.write_created_at(out);
        self.write_operation(out)?;
        self.write_nullified(out);
        out.push(b'}');
        Ok(())
    }

    /// Appends the element of `/{did}/log/audit`.
    pub fn write_audit(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(b"{\"did\":\"");
        out.extend_from_slice(&self.did.to_ascii());
        out.push(b'"');
        self.write_operation(out)?;
        out.extend_from_slice(b",\"cid\":\"");
        out.extend_from_slice(&self.cid.to_ascii());
        out.push(b'"');
        self.write_nullified(out);
        self.write_created_at(out);
        out.push(b'}');
        Ok(())
    }

    /// Appends the message of `/export/stream`.
    pub fn write_stream(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.write_sequence(b"{\"seq\":", out);
        out.extend_from_slice(b",\"type\":\"sequenced_op\",\"did\":\"");
        out.extend_from_slice(&self.did.to_ascii());
        out.push(b'"');
        self.write_operation(out)?;
        out.extend_from_slice(b",\"cid\":\"");
        out.extend_from_slice(&self.cid.to_ascii());
        out.push(b'"');
        self.write_created_at(out);
        out.push(b'}');
        Ok(())
    }

    fn begin_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"did\":\"");
        out.extend_from_slice(&self.did.to_ascii());
        out.extend_from_slice(b"\",\"cid\":\"");
        out.extend_from_slice(&self.cid.to_ascii());
        out.push(b'"');
    }

    fn write_sequence(&self, before: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(before);
        match self.sequence {
            Some(number) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
    }

    fn write_created_at(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"createdAt\":\"");
        out.extend_from_slice(&self.created_at.to_ascii());
        out.push(b'"');
    }

    fn write_operation(&self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(b",\"operation\":");
        json::write_operation(self.signed, out)
    }

    fn write_nullified(&self, out: &mut Vec<u8>) {
        let flag: &[u8] =
            if self.nullified { b",\"nullified\":true" } else { b",\"nullified\":false" };
        out.extend_from_slice(flag);
    }
}

#[cfg(test)]
mod tests {
    use plc_testkit::builder::Story;

    use super::*;

    /// A line of a genesis, as the directory writes it.
    fn line() -> String {
        let mut story = Story::seeded(3);
        story.create().accepted();
        story.log()[0].sequenced_line()
    }

    /// The same with something in it replaced.
    fn replaced(from: &str, to: &str) -> String {
        let line = line();
        assert_eq!(line.matches(from).count(), 1, "{from} in {line}");
        line.replace(from, to)
    }

    #[test]
    fn what_surrounds_a_line_is_not_the_line() {
        let expected = Received::decode(line().as_bytes()).unwrap();
        for (before, after) in [("\u{feff}", ""), ("", "\r"), ("\u{feff} \t", " \r\n"), (" ", "\n")]
        {
            let surrounded = format!("{before}{}{after}", line());
            assert_eq!(
                Received::decode(surrounded.as_bytes()),
                Ok(expected.clone()),
                "{surrounded:?}"
            );
        }
        // Inside of a line the mark is a character like any other, and two of them are one too many.
        for damaged in
            [format!("\u{feff}\u{feff}{}", line()), line().replace(",\"cid\"", ",\u{feff}\"cid\"")]
        {
            let undecodable = Received::decode(damaged.as_bytes()).unwrap_err();
            assert_eq!(undecodable.refusal.kind(), "not-json", "{damaged:?}");
        }
    }

    #[test]
    fn members_may_be_missing_or_unknown() {
        let bare = Received::decode(line().as_bytes()).unwrap();
        assert_eq!(bare.nullified, None);
        let more =
            replaced("{\"did\":", "{\"note\":{\"did\":[1,null]},\"nullified\":false,\"did\":");
        let more = Received::decode(more.as_bytes()).unwrap();
        assert_eq!(more, Received { nullified: Some(false), ..bare.clone() });
        let unnumbered = replaced("\"seq\":1,", "");
        let unnumbered = Received::decode(unnumbered.as_bytes()).unwrap();
        assert_eq!(unnumbered, Received { sequence: None, ..bare });
    }

    #[test]
    fn a_time_is_read_however_it_is_spelled() {
        let honest = Received::decode(line().as_bytes()).unwrap();
        let at = honest.created_at.to_string();
        let second = &at[..19];
        for other in [at.clone(), at.replace('T', " "), at.replace('Z', "+00:00")] {
            let read = Received::decode(replaced(&at, &other).as_bytes());
            assert_eq!(read.as_ref(), Ok(&honest), "{other}");
        }
        let cut = Received::decode(replaced(&at, &format!("{second}Z")).as_bytes()).unwrap();
        assert_eq!(cut.created_at.to_string(), format!("{second}.000Z"));
        for no_time in [second, "9999-12-31T23:59:59-01:00", "1737522051752", ""] {
            let undecodable = Received::decode(replaced(&at, no_time).as_bytes()).unwrap_err();
            assert!(undecodable.refusal.to_string().contains(&format!("createdAt `{no_time}`")));
            assert_eq!(undecodable.sequence, Some(1));
            assert_eq!(stated_time(replaced(&at, no_time).as_bytes()), None);
        }
        let null = replaced(&format!("\"{at}\""), "null");
        assert_eq!(stated_time(null.as_bytes()), None);
        let null = Received::decode(null.as_bytes()).unwrap_err();
        assert_eq!(null.refusal.kind(), "malformed");
        assert_eq!((null.did, null.cid), (honest.did.to_string(), honest.cid.to_string()));
    }

    #[test]
    fn what_is_no_sequence_number_is_a_fault_of_the_line() {
        let honest = Received::decode(line().as_bytes()).unwrap();
        for no_number in ["0", "-1", "1.5", "\"1\"", "9007199254740992", "9223372036854775808"] {
            let line = replaced("\"seq\":1,", &format!("\"seq\":{no_number},"));
            let undecodable = Received::decode(line.as_bytes()).unwrap_err();
            assert_eq!(undecodable.sequence, None, "{no_number}");
            let reason = undecodable.refusal.to_string();
            assert_eq!(undecodable.refusal.kind(), "malformed");
            assert!(reason.contains("sequence number") && reason.contains(no_number), "{reason}");
            assert_eq!(
                (undecodable.did, undecodable.cid),
                (honest.did.to_string(), honest.cid.to_string())
            );
            assert_eq!(stated_time(line.as_bytes()), Some(honest.created_at));
            assert_eq!(stated_did(line.as_bytes()), Some(honest.did));
            // Also on a line that is of another type, or wrong in another way.
            let notice = format!("{{\"type\":\"notice\",\"seq\":{no_number}}}");
            let notice = Received::decode(notice.as_bytes()).unwrap_err();
            assert_eq!((notice.refusal.kind(), notice.sequence), ("unknown-type", None));
        }
        for (text, number) in [("1.0", 1), ("1e3", 1_000)] {
            let stated = format!("\"seq\":{text},");
            let read = Received::decode(replaced("\"seq\":1,", &stated).as_bytes()).unwrap();
            assert_eq!(read.sequence, Some(number));
        }
        let damaged = Received::decode(replaced("\"did\":", "\"dod\":").as_bytes()).unwrap_err();
        assert_eq!(damaged.sequence, Some(1));
    }

    #[test]
    fn the_identity_is_read_as_in_decoding() {
        let honest = Received::decode(line().as_bytes()).unwrap();
        let spelled = replaced("\"did\":\"did:plc:", "\"did\":\"\\u0064id:plc:");
        let marked = format!("\u{feff}{}", line());
        for line in [line(), spelled, marked] {
            assert_eq!(Received::decode(line.as_bytes()).unwrap().did, honest.did);
            assert_eq!(stated_did(line.as_bytes()), Some(honest.did));
        }
        let twice = replaced("{\"did\":", "{\"did\":\"did:plc:aaaaaaaaaaaaaaaaaaaaaaaa\",\"did\":");
        let inside = replaced("{\"did\":", "{\"note\":");
        for line in [twice, inside, line()[..100].to_owned(), "7".to_owned()] {
            assert!(Received::decode(line.as_bytes()).is_err(), "{line}");
            assert_eq!(stated_did(line.as_bytes()), None, "{line}");
        }
    }
}
