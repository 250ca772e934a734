//! What is done with bytes that come from outside. Whatever they are, nothing may panic, and what is accepted has to come
//! back as it was. `cargo fuzz` looks for bytes with which that is not so; a test of the program tries some at each run.

pub mod any_order;
pub mod chances;
mod server;
mod websocket;

use std::io::Write;
use std::sync::{Arc, LazyLock};

use did_plc::document::{write_data, write_document};
use did_plc::entry::Received;
use did_plc::json::{read_operation, write_operation};
use did_plc::key::PublicKey;
use did_plc::operation::Operation;
use did_plc::signature::Verifier;
use did_plc::submission::{Submission, SubmissionLimits};
use did_plc::{Cid, Did, Timestamp};
use plc_curve::{FastVerifier, Tables};
use plc_replica::commands::Cli;
use plc_replica::judge::Decoded;
use plc_replica::serve::client_address::Network;
use plc_replica::snapshot::Index;
use plc_replica::store::Store;
use plc_replica::store::codec::{Interned, Packer, unpack};
use plc_replica::upstream::{BundleIndex, Dump, DumpReader, ExportClient, Limits};
use plc_testkit::builder::Story;
use plc_testkit::happenings;
use rand::RngExt;

use chances::Chances;

/// A target: its name, under which its corpus is kept, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("line", line),
    ("submission", submission),
    ("operation", operation),
    ("text", text),
    ("stored", stored),
    ("dump", dump),
    ("audit_log", audit_log),
    ("stream", stream),
    ("request", request),
    ("settings", settings),
    ("archive_index", archive_index),
    ("log", log),
];

/// Two identities to which most of what there is happens.
pub fn story() -> Story {
    let mut story = Story::seeded(1);
    let p256 = story.p256();
    let alice = story.create().also_known_as(["at://a.example", "\u{0}\u{202e}é🦀"]).accepted();
    story.update(&alice).service("33", "kind", "https://host.example").empty_maps().accepted();
    story.tombstone(&alice).accepted();
    let bob = story.create_legacy().handle("bob.example").host("pds.example").accepted();
    story.update(&bob).rotation_keys([&p256]).accepted();
    story.update(&bob).padded_signature().refused("signature-encoding");
    story
}

/// A line of an export, or a message of a stream.
pub fn line(data: &[u8]) {
    if let Ok(received) = Received::decode(data) {
        assert_eq!(Cid::of(&received.signed), received.cid);
        comes_back(&received.did, &received.signed);
    }
}

/// The body of an operation that is submitted.
pub fn submission(data: &[u8]) {
    let limits = SubmissionLimits::default();
    match Submission::read(&String::from_utf8_lossy(data), &limits) {
        // What is sent to the upstream is what was read.
        Ok(submission) => {
            assert_eq!(Submission::read(submission.json(), &limits).as_ref(), Ok(&submission));
            comes_back(&submission.creates(), submission.signed());
        }
        Err(rejection) => assert!(!rejection.to_string().is_empty()),
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

/// The short texts: a DID, a CID, a key, a time; of settings the URL of an upstream, and a network.
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
    let _ = text.parse::<Network>();
    if let Ok(client) = ExportClient::new(text, 0, "fuzz", Limits::default()) {
        // Without the credentials that it may hold.
        let again = ExportClient::new(client.base(), 0, "fuzz", Limits::default());
        assert_eq!(again.unwrap().base(), client.base());
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

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
});

/// The answer to a question for an audit log.
pub fn audit_log(data: &[u8]) {
    let body = bytes::Bytes::copy_from_slice(data);
    if let Ok(decoded) = RUNTIME.block_on(Decoded::from_audit_log(&body)) {
        assert!(decoded.len() <= data.len());
    }
}

/// A live stream, from its frames on.
pub fn stream(data: &[u8]) {
    let messages = websocket::messages(data);
    let bytes: usize = messages.iter().map(|message| message.len()).sum();
    assert!(bytes <= data.len(), "nothing is made of nothing");
    for message in messages {
        let _ = Received::decode(&message);
    }
}

/// The path and the query of a request.
pub fn request(data: &[u8]) {
    let answer = server::answer(data);
    let head = &answer[..answer.len().min(200)];
    assert!(head.starts_with(b"HTTP/1."), "no answer");
    assert!(!head.starts_with(b"HTTP/1.1 500"), "a bug: {}", head.escape_ascii());
}

/// A file with settings.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Cli::read(["plc-replica", "serve", "--print-config"].map(Into::into).into(), text);
}

/// The index of a snapshot, or of a plcbundle repository.
pub fn archive_index(data: &[u8]) {
    if let Ok(Some(bundles)) = BundleIndex::parse("fuzz", data) {
        assert!(bundles.bundles.iter().zip(1..).all(|(bundle, number)| bundle.number == number));
    }
    if let Ok(index) = Index::parse(data) {
        assert_eq!(Index::parse(&index.to_json()), Ok(index));
    }
}

static VERIFIER: LazyLock<Arc<dyn Verifier>> =
    LazyLock::new(|| Arc::new(FastVerifier::new(Tables::On)));

/// What happens to a few identities, and in which lines, order and batches that comes: whatever it is, what is held
/// then is what the slow model makes of it.
pub fn log(data: &[u8]) {
    let mut chances = Chances(data);
    let identities = chances.random_range(1..4);
    let log = happenings::log(&mut Story::seeded(2), &mut chances, identities);
    let lines = happenings::shuffled(&log, &mut chances);
    let lines = lines.into_iter().map(Into::into).collect();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/plc.db", folder.path().display());
    RUNTIME.block_on(async {
        let open = async || Store::open(&url).await.unwrap();
        let store = any_order::take(open, &VERIFIER, lines, &mut chances).await;
        any_order::is_as_modelled(&store, &**VERIFIER, &log, "as the bytes say").await;
    });
}
