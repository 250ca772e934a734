//! Entries of a log: how others state an operation to us, and how we state it to others.
//!
//! One operation travels in four envelopes: a line of the export by sequence number, a line of
//! the export by time, an element of an audit log, and a message of the stream.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::cid::Cid;
use super::did::Did;
use super::json;
use super::operation::Malformed;
use super::refusal::Refusal;
use super::timestamp::Timestamp;

/// The `type` of a line or message that carries an operation with a sequence number.
pub const SEQUENCED_OPERATION: &str = "sequenced_op";

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
    #[serde(default)]
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
    /// Reads one JSON object. The operation in it is not read.
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
    /// The stated sequence number.
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
        let line = str::from_utf8(line).map_err(|error| Undecodable::not_json(&error))?;
        let entry = Entry::read(line).map_err(|error| undecodable(line, &error))?;
        if let Some(kind) = entry.kind.as_deref().filter(|&kind| kind != SEQUENCED_OPERATION) {
            return Err(Undecodable::of_unknown_type(kind, entry.cid.to_string(), entry.seq));
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
        if let Some(number) = entry.seq.filter(|&number| number <= 0) {
            return Err(malformed(format!("a sequence number is positive, not {number}")));
        }
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
    fn not_json(error: &impl ToString) -> Undecodable {
        let refusal = Refusal::NotJson { reason: error.to_string() };
        Undecodable { did: String::new(), cid: String::new(), sequence: None, refusal }
    }

    fn of_unknown_type(stated: &str, cid: String, sequence: Option<i64>) -> Undecodable {
        let refusal = Refusal::UnknownType { stated: stated.to_owned() };
        Undecodable { did: String::new(), cid, sequence, refusal }
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
        seq: serde_json::Value,
    }
    // What is no object states nothing.
    let envelope: Envelope = serde_json::from_str(line).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    match envelope.r#type.as_str() {
        Some(stated) if stated != SEQUENCED_OPERATION => {
            Undecodable::of_unknown_type(stated, text(&envelope.cid), envelope.seq.as_i64())
        }
        _ => Undecodable {
            did: text(&envelope.did),
            cid: text(&envelope.cid),
            sequence: envelope.seq.as_i64(),
            refusal: Refusal::Malformed { reason: error.to_string() },
        },
    }
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
