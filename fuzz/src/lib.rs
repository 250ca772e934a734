//! What is done with bytes that come from outside. Whatever they are, nothing may panic, and what is accepted has to come
//! back as it was. `cargo fuzz` looks for bytes with which that is not so; a test of the program tries some at each run.

use std::io::Write;
use std::sync::LazyLock;

use did_plc::document::{write_data, write_document};
use did_plc::entry::Received;
use did_plc::json::{read_operation, write_operation};
use did_plc::key::PublicKey;
use did_plc::operation::Operation;
use did_plc::{Cid, Did, Timestamp};
use plc_replica::judge::Decoded;
use plc_replica::store::codec::{Interned, Packer, unpack};
use plc_replica::upstream::{Dump, DumpReader};

/// A target: its name, under which its corpus is kept, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("line", line),
    ("operation", operation),
    ("text", text),
    ("stored", stored),
    ("dump", dump),
    ("audit_log", audit_log),
];

/// A line of an export, or a message of a stream.
pub fn line(data: &[u8]) {
    if let Ok(received) = Received::decode(data) {
        assert_eq!(Cid::of(&received.signed), received.cid);
        comes_back(&received.did, &received.signed);
    }
}

/// A signed operation as DAG-CBOR.
pub fn operation(data: &[u8]) {
    if Operation::read(data).is_ok() {
        let did = Did::from_bytes([7; 15]);
        let mut json = Vec::new();
        // It need not be in the one form that is signed, and then its JSON is that of another.
        let written = write_operation(data, &mut json);
        let again =
            written.ok().and_then(|()| read_operation(std::str::from_utf8(&json).ok()?).ok());
        if again.as_deref() == Some(data) {
            comes_back(&did, data);
        }
    }
}

/// An operation that was read can be shown, and comes back from its JSON and from how it is stored.
fn comes_back(did: &Did, signed: &[u8]) {
    let mut json = Vec::new();
    write_operation(signed, &mut json).unwrap();
    let again = read_operation(std::str::from_utf8(&json).unwrap()).unwrap();
    assert_eq!(again, signed);
    let mut shown = Vec::new();
    // A tombstone has neither.
    let _ = write_document(did, signed, &mut shown);
    let _ = write_data(did, signed, &mut shown);
    std::str::from_utf8(&shown).unwrap();
    let interned = Interned::default();
    let packed = Packer::new(interned.clone()).pack(signed);
    assert_eq!(unpack(&packed, &interned).unwrap(), signed);
}

/// The short texts: a DID, a CID, a key, a time.
pub fn text(data: &[u8]) {
    let _ = PublicKey::from_ascii(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(did) = text.parse::<Did>() {
        assert_eq!(did.to_string(), text);
    }
    if let Ok(cid) = text.parse::<Cid>() {
        assert_eq!(cid.to_string().parse::<Cid>(), Ok(cid));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        assert_eq!(time.to_string().parse::<Timestamp>(), Ok(time));
    }
}

/// An operation as a database has it, with a codec in front.
pub fn stored(data: &[u8]) {
    let interned = Interned::default();
    if let Ok(signed) = unpack(data, &interned) {
        let packed = Packer::new(interned.clone()).pack(&signed);
        assert_eq!(unpack(&packed, &interned).unwrap(), signed);
    }
}

/// A file that somebody dumped: lines, an array or an object, plain or compressed.
pub fn dump(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(data).unwrap();
    let Ok(dump) = Dump::open(file.path()) else { return };
    let mut blocks = DumpReader::start(dump);
    let mut last = 0;
    while let Some(Ok(block)) = blocks.next_blocking() {
        for (number, line) in block {
            assert!(number >= last, "the lines are numbered in their order");
            last = number;
            let _ = Received::decode(&line);
        }
    }
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());

/// The answer to a question for an audit log.
pub fn audit_log(data: &[u8]) {
    let body = bytes::Bytes::copy_from_slice(data);
    if let Ok(decoded) = RUNTIME.block_on(Decoded::from_audit_log(&body)) {
        assert!(decoded.len() <= data.len());
    }
}
