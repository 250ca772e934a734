//! The targets of `cargo fuzz`, with what they begin with and some thousand inputs made from that, and what each of them
//! may cost. The same seed makes the same inputs: a number that fails is told, and fails again.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use did_plc::Timestamp;
use plc_replica::snapshot::{Division, Index, SnapshotFile, Tallied, Tally};
use plc_replica::store::codec::{Interned, Packer};
use plc_testkit::Generated;
use plc_testkit::builder::Story;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

#[path = "../../fuzz/src/lib.rs"]
pub mod targets;

/// Inputs for each target.
const INPUTS: u64 = 3_000;
/// Inputs for the target with this name.
fn inputs(target: &str) -> u64 {
    match target {
        // The slow model takes its time for each.
        "log" => 30,
        _ => INPUTS,
    }
}

/// Every so many inputs one is large.
const LARGE_EVERY: u64 = 50;
/// Bytes of a large one.
const LARGE: usize = 256 << 10;

/// Processor time that an input may take without optimisation: for each of its bytes, and beside that.
const TIME_OF_BYTE: Duration = Duration::from_micros(20);
const TIME: Duration = Duration::from_secs(2);
/// Memory that a process may take beyond what it has taken after the corpus, whatever it is given: for each byte of a
/// large input, and beside that.
const MEMORY_OF_BYTE: u64 = 100;
const MEMORY: u64 = 64 << 20;

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

/// One of them with a part of it repeated until it is large: inside of a text it stays what it is.
fn blown_up(corpus: &[Vec<u8>], random: &mut ChaCha20Rng) -> Vec<u8> {
    let mut data = corpus.choose(random).cloned().unwrap_or_default();
    let at = random.random_range(0..=data.len());
    let end = (at + random.random_range(1..200)).min(data.len());
    let again = data[at..end].repeat(LARGE / (end - at).max(1));
    data.splice(at..at, again);
    data
}

/// Names the target that a process of its own is to run.
const TARGET: &str = "PLC_FUZZ_TARGET";

#[test]
fn nothing_that_comes_from_outside_ends_in_a_panic_or_costs_too_much() {
    match std::env::var(TARGET) {
        Ok(name) => try_target(&name),
        Err(_) => try_all(),
    }
}

/// Each target in a process of its own, in which the test above finds its name.
fn try_all() {
    const TEST: &str = "fuzz::nothing_that_comes_from_outside_ends_in_a_panic_or_costs_too_much";
    for (name, _) in targets::TARGETS {
        // What a process has taken is only known of all that it has done.
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(TARGET, name)
            .output()
            .unwrap();
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(ran.status.success() && said.contains("1 passed"), "{name}: {said}");
        said.lines().filter(|line| line.starts_with("fuzz: ")).for_each(|line| println!("{line}"));
    }
}

fn try_target(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let corpus = corpus(name);
    assert!(!corpus.is_empty());
    corpus.iter().for_each(|data| target(data));
    let memory_before = peak_memory();
    let (mut longest, mut largest) = ((Duration::ZERO, 0), 0);
    for number in 0..inputs(name) {
        let mut random = ChaCha20Rng::seed_from_u64(number);
        let data = match number % LARGE_EVERY {
            0 => blown_up(&corpus, &mut random),
            _ => mutated(&corpus, &mut random),
        };
        let before = processor_time();
        let ran = std::panic::catch_unwind(|| target(&data));
        let took = processor_time() - before;
        let shown = data[..data.len().min(2_000)].escape_ascii();
        assert!(ran.is_ok(), "{name}, input {number}: {shown}");
        let allowed = TIME + TIME_OF_BYTE * u32::try_from(data.len()).unwrap();
        assert!(took <= allowed, "{name}, input {number} took {took:?}: {shown}");
        longest = longest.max((took, data.len()));
        largest = largest.max(data.len());
    }
    let memory = peak_memory() - memory_before;
    let (took, bytes) = longest;
    println!(
        "fuzz: {name}: {took:?} at most, for {bytes} bytes; {memory} bytes of memory, {largest} of the largest input"
    );
    assert!(memory <= MEMORY + MEMORY_OF_BYTE * largest as u64, "{name} took {memory} bytes");
}

/// What all threads of this process have taken so far, those that have ended included. That others are busy makes
/// no difference to it.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The name of the program, in brackets, may hold anything. User and system follow as the 12th and 13th, in
    // hundredths of a second.
    let (_, numbers) = stat.rsplit_once(')').unwrap();
    let ticks =
        numbers.split_whitespace().skip(11).take(2).map(|text| text.parse::<u64>().unwrap());
    Duration::from_millis(10 * ticks.sum::<u64>())
}

/// The most that this process has held at a time, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What a target begins with: its name, the name of the file, and the bytes.
type Seed = (&'static str, String, Vec<u8>);

/// Operations of every kind by the project's own builder, for each target.
fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, name: &str, data: &[u8]| {
        seeds.push((target, name.to_owned(), data.to_vec()));
    };
    let mut story = targets::story();
    let key = story.k256();
    let log = story.log();
    let lines: Vec<String> = log.iter().map(Generated::sequenced_line).collect();
    for (number, (entry, line)) in log.iter().zip(&lines).enumerate() {
        let name = number.to_string();
        add("line", &name, line.as_bytes());
        add("submission", &name, entry.operation_json.as_bytes());
        add("operation", &name, &entry.signed);
        add("stored", &name, &Packer::new(Interned::default()).pack(&entry.signed));
        add("text", &format!("did{name}"), entry.did.as_bytes());
        add("text", &format!("cid{name}"), entry.cid.as_bytes());
        add("text", &format!("time{name}"), entry.created_at.as_bytes());
    }
    add("text", "key", key.did_key().as_bytes());
    add("text", "p256", Story::seeded(1).p256().did_key().as_bytes());
    add("text", "upstream", b"https://user:secret@plc.example:8443/directory");
    add("text", "network", b"2001:db8::/32");
    let (joined, array) = (lines.join("\n"), format!("[\n  {}\n]", lines.join(",\n  ")));
    add("audit_log", "array", array.as_bytes());
    add("dump", "array", array.as_bytes());
    add("dump", "lines", joined.as_bytes());
    add("dump", "windows", format!("\u{feff}{}", lines.join("\r\n")).as_bytes());
    add("dump", "zstd", &zstd::encode_all(joined.as_bytes(), 3).unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(joined.as_bytes()).unwrap();
    add("dump", "gzip", &gzip.finish().unwrap());
    let messages: Vec<String> = log.iter().map(Generated::stream_message).collect();
    add("line", "message", messages[0].as_bytes());
    let text = 1;
    let frames: Vec<u8> = messages.iter().flat_map(|message| frame(text, message)).collect();
    add("stream", "messages", &frames);
    let (continued, binary, close, ping) = (0, 2, 8, 9);
    let halves = messages[0].split_at(300);
    let mut first_half = frame(text, halves.0);
    first_half[0] ^= FINAL;
    add("stream", "halves", &[first_half, frame(ping, "?"), frame(continued, halves.1)].concat());
    let closed = [frame(binary, &messages[1]), frame(close, "\u{3}\u{68}OutdatedCursor")].concat();
    // 1000, in two bytes.
    add("stream", "closed", &closed);
    let (did, cid) = (&*log[0].did, &*log[0].cid);
    for (name, target) in [
        ("document", did.to_owned()),
        ("escaped", format!("{}/log/audit/", did.replace(':', "%3A"))),
        ("wait", format!("{did}/data?cid={cid}")),
        ("verdicts", format!("{did}/log/verdicts")),
        ("export", "export?after=2023-03-16T00:32:01.250+02:00&count=+7x".to_owned()),
        ("numbers", "export?after=1&count=1000".to_owned()),
        ("stream", "export/stream?cursor=-1".to_owned()),
        ("version", format!("1.0/identifiers/{did}?versionTime=2024-01-01T00:01:00Z")),
        ("id", format!("1.0/identifiers/{did}?versionId={cid}")),
        ("lookup", "_lookup?handle=a.example&at=2024".to_owned()),
        ("refused", format!("_audit/refused?did={did}&after=0&count=10")),
        ("divergences", "_audit/divergences?kind=restated-cid&open=true".to_owned()),
        ("side", "_audit/divergences/1/theirs".to_owned()),
        ("explorer", format!("explore/{did}?compare={cid}")),
        ("search", "explore?q=a.example".to_owned()),
        ("health", "_health".to_owned()),
        ("ready", "_ready?x=%zz".to_owned()),
    ] {
        add("request", name, target.as_bytes());
    }
    for (name, file) in [
        ("usual", SETTINGS),
        ("list", "also-ask = [\"https://a.example\", \"https://b.example\"]\n"),
        ("wrong", "listen = \"localhost\"\n"),
    ] {
        add("settings", name, file.as_bytes());
    }
    for numbers in [1, 2, 100] {
        add("archive_index", &numbers.to_string(), &archive_index(&lines, numbers));
    }
    for seed in 0..8 {
        let mut decisions = [0; 250];
        ChaCha20Rng::seed_from_u64(seed).fill(&mut decisions[..]);
        add("log", &seed.to_string(), &decisions);
    }
    seeds
}

/// The index of a snapshot of these lines, so many of them in a file.
fn archive_index(lines: &[String], numbers: usize) -> Vec<u8> {
    let files = lines.chunks(numbers).enumerate().map(|(place, lines)| {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.add(format!("{line}\n").as_bytes()));
        let Tallied { lines: count, bytes, digest } = tally.finish();
        let first = (place * numbers + 1) as i64;
        SnapshotFile {
            first,
            last: first + lines.len() as i64 - 1,
            count,
            last_created_at: Timestamp::from_millis(first),
            bytes,
            compressed_bytes: bytes / 2,
            lines: digest,
        }
    });
    let division = Division::into_ranges_of(numbers as i64).unwrap();
    Index::new(division, files.collect()).to_json()
}

/// Marks the last frame of a message.
const FINAL: u8 = 0x80;

/// A frame of a WebSocket's message, as a server sends it.
fn frame(kind: u8, text: &str) -> Vec<u8> {
    let mut frame = vec![FINAL | kind];
    match u8::try_from(text.len()) {
        Ok(length @ ..126) => frame.push(length),
        _ => {
            frame.push(126);
            frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend(text.as_bytes());
    frame
}

const SETTINGS: &str = r#"
database = "postgres://plc:secret@db.example:5433/plc?sslmode=require"
upstream = "https://plc.example"
listen = "[::1]:2582"
upstream-requests-per-minute = 100
second-reading-minutes = 0.5
rereading-days = 30
index = true
log = "warn,plc_replica::follow=debug"
trusted-proxies = ["127.0.0.1", "10.0.0.0/8"]
request-seconds = 18446744073709551615
"#;

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
