//! The targets of `cargo fuzz`, with what they begin with and some thousand inputs made from that. The same seed makes the
//! same inputs: a number that fails is told, and fails again.

use std::fs;
use std::io::Write;
use std::path::Path;

use plc_replica::store::codec::{Interned, Packer};
use plc_testkit::Generated;
use plc_testkit::builder::Story;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// Inputs for each target.
const INPUTS: u64 = 3_000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One of them with some bytes changed, left out, repeated, or put in from another one.
fn mutated(corpus: &[Vec<u8>], random: &mut ChaCha20Rng) -> Vec<u8> {
    let pick = |random: &mut ChaCha20Rng| corpus.choose(random).cloned().unwrap_or_default();
    let mut data = pick(random);
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=data.len());
        let end = (at + random.random_range(0..16)).min(data.len());
        match random.random_range(0..5) {
            0 => data[at..end].iter_mut().for_each(|byte| *byte = random.random()),
            1 => drop(data.drain(at..end)),
            2 => {
                let again = data[at..end].to_vec();
                data.splice(at..at, again);
            }
            3 => {
                let other = pick(random);
                let from = random.random_range(0..=other.len());
                data.splice(at..end, other[from..].iter().copied());
            }
            _ => {
                const TEXTS: [&str; 8] =
                    ["null", "\"", "\\u0000", "\\ud800", "[[[[", "{\"a\":", "-1e999", "\u{feff}"];
                data.splice(at..end, TEXTS.choose(random).unwrap().bytes());
            }
        }
    }
    data
}

#[test]
fn nothing_that_comes_from_outside_ends_in_a_panic() {
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty());
        corpus.iter().for_each(|data| target(data));
        for number in 0..INPUTS {
            let data = mutated(&corpus, &mut ChaCha20Rng::seed_from_u64(number));
            let ran = std::panic::catch_unwind(|| target(&data));
            assert!(ran.is_ok(), "{name}, input {number}: {}", data.escape_ascii());
        }
    }
}

/// What a target begins with: its name, the name of the file, and the bytes.
type Seed = (&'static str, String, Vec<u8>);

/// Operations of every kind by the project's own builder, for each target.
fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, name: &str, data: &[u8]| {
        seeds.push((target, name.to_owned(), data.to_vec()));
    };
    let mut story = Story::seeded(1);
    let p256 = story.p256();
    let alice = story.create().also_known_as(["at://a.example", "\u{0}\u{202e}é🦀"]).accepted();
    story.update(&alice).service("33", "kind", "https://host.example").empty_maps().accepted();
    story.tombstone(&alice).accepted();
    let bob = story.create_legacy().handle("bob.example").host("pds.example").accepted();
    story.update(&bob).rotation_keys([&p256]).accepted();
    story.update(&bob).padded_signature().refused("signature-encoding");
    let log = story.log();
    let lines: Vec<String> = log.iter().map(Generated::sequenced_line).collect();
    for (number, (entry, line)) in log.iter().zip(&lines).enumerate() {
        let name = number.to_string();
        add("line", &name, line.as_bytes());
        add("operation", &name, &entry.signed);
        add("stored", &name, &Packer::new(Interned::default()).pack(&entry.signed));
        add("text", &format!("did{name}"), entry.did.as_bytes());
        add("text", &format!("cid{name}"), entry.cid.as_bytes());
        add("text", &format!("time{name}"), entry.created_at.as_bytes());
    }
    add("text", "key", story.k256().did_key().as_bytes());
    add("text", "p256", p256.did_key().as_bytes());
    let (joined, array) = (lines.join("\n"), format!("[\n  {}\n]", lines.join(",\n  ")));
    add("audit_log", "array", array.as_bytes());
    add("dump", "array", array.as_bytes());
    add("dump", "lines", joined.as_bytes());
    add("dump", "windows", format!("\u{feff}{}", lines.join("\r\n")).as_bytes());
    add("dump", "zstd", &zstd::encode_all(joined.as_bytes(), 3).unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(joined.as_bytes()).unwrap();
    add("dump", "gzip", &gzip.finish().unwrap());
    seeds
}

/// Written anew, where the builder has changed, with PLC_WRITE_CORPUS set.
#[test]
fn the_corpus_has_what_the_builder_makes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let writes = std::env::var_os("PLC_WRITE_CORPUS").is_some();
    for (target, name, data) in seeds() {
        let file = corpus.join(target).join(name);
        if writes {
            fs::create_dir_all(corpus.join(target)).unwrap();
            fs::write(&file, &data).unwrap();
        }
        assert_eq!(fs::read(&file).unwrap(), data, "{}", file.display());
    }
}
