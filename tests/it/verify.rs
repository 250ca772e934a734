//! `plc-replica verify`: what it says of a log depends on the lines, and not on their order.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use plc_curve::{FastVerifier, Tables};
use plc_replica::audit::{DumpJudge, Finding, Summary};
use plc_replica::judge::SpillError;
use plc_testkit::profile::write_log;
use plc_testkit::{Generated, lines};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::Value;
use tempfile::TempDir;

use plc_testkit::happenings::modelled;

use crate::convergence::log;
use crate::process::program;
use crate::shared;

/// How often each log is shuffled.
const SHUFFLES: u64 = 4;

/// Judges lines in blocks of any size, with a second reading where one is called for.
fn judge(lines: &[String], random: &mut ChaCha20Rng) -> (Vec<Finding>, Summary) {
    let verifier = FastVerifier::new(Tables::On);
    let mut judge = DumpJudge::new(&verifier);
    let lines: Vec<(u64, Bytes)> = (1..).zip(lines.iter().cloned().map(Bytes::from)).collect();
    let mut findings = Vec::new();
    let size = *[1, 5, 60, 10_000].choose(random).unwrap();
    for block in lines.chunks(size) {
        findings.extend(judge.judge(block).unwrap());
    }
    if judge.late_identities() > 0 {
        for block in lines.chunks(size + 3) {
            judge.gather(block).unwrap();
        }
    }
    let tell = |finding| {
        findings.push(finding);
        Ok::<(), SpillError>(())
    };
    let summary = judge.finish(tell).unwrap();
    (findings, summary)
}

/// What was found, wherever it stands.
fn found(findings: &[Finding]) -> Vec<(&str, &str, &str, &str)> {
    let mut found: Vec<_> = findings
        .iter()
        .map(|finding| (&*finding.did, &*finding.cid, &*finding.kind, &*finding.expected))
        .collect();
    found.sort_unstable();
    found
}

/// The same statements come to the same, in whatever order.
fn any_order_comes_to_the_same(lines: &[String], seed: u64) -> (Vec<Finding>, Summary) {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    let (findings, summary) = judge(lines, &mut random);
    assert_eq!(summary.operations, lines.len() as u64);
    for order in 0..SHUFFLES {
        let mut lines = lines.to_vec();
        match order {
            0 => lines.reverse(),
            1 => {}
            _ => lines.shuffle(&mut random),
        }
        let (other_findings, other_summary) = judge(&lines, &mut random);
        assert_eq!(other_summary, summary, "seed {seed}, order {order}");
        let (found, expected) = (found(&other_findings), found(&findings));
        let mut pairs = found.iter().zip(&expected);
        // One of them, of what may be thousands.
        let differs = pairs.find(|(found, expected)| found != expected);
        assert_eq!(differs, None, "seed {seed}, order {order}");
        assert_eq!(found.len(), expected.len(), "seed {seed}, order {order}");
    }
    (findings, summary)
}

#[test]
fn any_order_of_lines_comes_to_what_the_model_says() {
    for seed in 0..2 {
        let log = log(seed);
        let (accepted, refused) = modelled(&log);
        let lines: Vec<String> = log.iter().map(Generated::sequenced_line).collect();
        let (findings, summary) = any_order_comes_to_the_same(&lines, seed);
        assert_eq!(summary.accepted as usize, accepted.values().flatten().count());
        assert_eq!(summary.identities as usize, accepted.len());
        assert_eq!((summary.repeated, summary.restated, summary.unjudged), (0, 0, 0));
        let found: BTreeSet<String> = findings
            .into_iter()
            .filter(|finding| !finding.is_remark())
            .map(|finding| finding.cid)
            .collect();
        assert_eq!(found, refused);
    }
}

#[test]
fn statements_that_contradict_each_other_come_to_the_same_in_any_order() {
    for seed in 10..12 {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let log = log(seed);
        let mut lines = Vec::new();
        for (index, entry) in log.iter().enumerate() {
            let other = log.choose(&mut random).unwrap();
            let flagged =
                |nullified_in_the_end| Generated { nullified_in_the_end, ..entry.clone() };
            lines.push(match random.random_range(0..3) {
                0 => entry.sequenced_line(),
                1 => flagged(random.random()).timestamped_line(),
                _ => flagged(random.random()).audit_entry(),
            });
            for _ in 0..random.random_range(0..3) {
                lines.push(match random.random_range(0..10) {
                    0 => Generated { created_at: other.created_at.clone(), ..entry.clone() }
                        .sequenced_line(),
                    1 => Generated { seq: entry.seq + 7, ..entry.clone() }.sequenced_line(),
                    2 => Generated { cid: other.cid.clone(), ..entry.clone() }.sequenced_line(),
                    3 => flagged(random.random()).timestamped_line(),
                    4 => {
                        Generated { operation_json: "{}".to_owned(), ..entry.clone() }.audit_entry()
                    }
                    5 => "{".to_owned(),
                    6 => entry.stream_message(),
                    _ => lines[random.random_range(index..lines.len())].clone(),
                });
            }
        }
        let (_, summary) = any_order_comes_to_the_same(&lines, seed);
        let refused: u64 = summary.refused.values().sum();
        assert_eq!(summary.accepted + summary.repeated + refused, summary.operations);
        assert!(summary.restated > 20 && summary.wrong_flags > 20, "{summary:?}");
        for kind in ["cid-mismatch", "not-json", "malformed", "timestamp-order"] {
            assert!(summary.refused.contains_key(kind), "{kind}: {summary:?}");
        }
    }
}

/// Runs the program on a file, or with this on its standard input; its exit code and what it printed.
fn verify(file: &Path, input: Option<&[u8]>) -> (Option<i32>, String) {
    let mut command = program(&[]);
    command.args(["verify", "--json"]).arg(file).stdout(Stdio::piped());
    let Some(input) = input else {
        let output = command.output().unwrap();
        return (output.status.code(), String::from_utf8(output.stdout).unwrap());
    };
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(input).unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// The summary, after no finding.
fn clean((code, out): (Option<i32>, String)) -> Value {
    assert_eq!((code, out.lines().count()), (Some(0), 1), "{out}");
    serde_json::from_str(&out).unwrap()
}

/// Verifies a log, in each way in which it may be packed, from a file and from a pipe.
fn nine_are_accepted(bytes: &[u8]) {
    let folder = TempDir::new().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    gzip.write_all(bytes).unwrap();
    let stored = [bytes.to_vec(), gzip.finish().unwrap(), zstd::encode_all(bytes, 3).unwrap()];
    for stored in stored {
        let copy = folder.path().join("copy");
        std::fs::write(&copy, &stored).unwrap();
        for ran in [verify(&copy, None), verify(Path::new("-"), Some(&stored))] {
            let summary = clean(ran);
            assert_eq!((&summary["accepted"], &summary["unjudged"]), (&9.into(), &0.into()));
        }
    }
}

#[test]
fn a_nullified_operation_may_come_after_its_nullifier() {
    let mut story = plc_testkit::builder::Story::seeded(7);
    let alice = story.create().accepted();
    story.update(&alice).accepted();
    let recovery = story.recovery.clone();
    let recovered = story.after(&alice).signed_by(&recovery).accepted();
    for _ in 3..9 {
        story.update(&recovered).accepted();
    }
    let mut log: Vec<String> =
        story.log().iter().map(plc_testkit::Generated::timestamped_line).collect();
    log.swap(1, 2);
    assert!(log[2].contains("\"nullified\":true"));
    nine_are_accepted(log.join("\n").as_bytes());
    if let Some(reports) = shared::folder("reports") {
        let reported = reports.join("nullified-after-its-nullifier.jsonl");
        nine_are_accepted(&std::fs::read(reported).unwrap());
    }
}

#[test]
fn a_log_may_be_read_backwards() {
    let mut log = Vec::new();
    write_log(5, 10_000, &mut log, |_| ()).unwrap();
    let log = String::from_utf8(log).unwrap();
    let folder = TempDir::new().unwrap();
    let (forwards, backwards) = (folder.path().join("forwards"), folder.path().join("backwards"));
    std::fs::write(&forwards, &log).unwrap();
    std::fs::write(&backwards, log.lines().rev().collect::<Vec<_>>().join("\n")).unwrap();
    let [forwards, backwards] = [forwards, backwards].map(|path| clean(verify(&path, None)));
    assert_eq!(forwards["accepted"], 10_000);
    for count in ["operations", "identities", "accepted", "repeated", "remarked", "unjudged"] {
        assert_eq!(forwards[count], backwards[count], "{count}");
    }
}

#[test]
fn what_is_too_much_to_be_read_twice_is_said() {
    let mut story = plc_testkit::builder::Story::seeded(6);
    let alice = story.create().accepted();
    story.update(&alice).accepted();
    story.create().accepted();
    let log: Vec<&Generated> = [1, 0, 2].map(|at| &story.log()[at]).to_vec();
    let text = lines(log, Generated::sequenced_line);
    assert_eq!(clean(verify(Path::new("-"), Some(text.as_bytes())))["accepted"], 3);
    // The update stands before its genesis, and far away from it.
    let long = text.replacen('\n', &"\n".repeat(64 << 20), 1).into_bytes();
    let (code, out) = verify(Path::new("-"), Some(&long));
    let [found, summary] = &out.lines().collect::<Vec<_>>()[..] else { panic!("{out}") };
    let [found, summary]: [Value; 2] =
        [found, summary].map(|line| serde_json::from_str(line).unwrap());
    assert_eq!((&found["line"], &found["kind"]), (&1.into(), &"unknown-did".into()));
    assert_eq!((code, &summary["accepted"]), (Some(1), &2.into()));
    assert_eq!((&summary["as_they_came"], &summary["unjudged"]), (&2.into(), &0.into()));
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("long"), &long).unwrap();
    assert_eq!(clean(verify(&folder.path().join("long"), None))["accepted"], 3);
    let mut child = program(&[])
        .args(["verify", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&long).unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(out.starts_with("line 1: ") && out.contains(" unknown-did: "), "{out}");
    let expected = "2 lines of 1 identities were judged as they came";
    assert!(out.contains(expected), "{out}");
    assert!(out.contains("Write it to a file, and verify that."), "{out}");
}
