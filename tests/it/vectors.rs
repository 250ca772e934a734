//! The published vectors, the recorded logs and the real ones, judged line by line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use did_plc::entry::Undecodable;
use did_plc::signature::{PlainVerifier, Verifier};
use did_plc::{Did, Refusal, Verdict};
use plc_curve::{FastVerifier, Tables};
use plc_replica::judge::{self, Candidate, Group};

use crate::shared;

/// Every verifier that the program can be told to use. The fast ones live as long as the tests, so
/// that keys become known to them.
static FAST: LazyLock<[FastVerifier; 2]> =
    LazyLock::new(|| [Tables::On, Tables::Off].map(FastVerifier::new));

/// Judges the lines of a whole log by each verifier, which must agree; the name of each refusal, and
/// the flags in the end.
pub fn judge_log(lines: &[Bytes]) -> (Vec<Option<&'static str>>, Vec<bool>) {
    let plain = judge_log_by(&PlainVerifier, lines);
    for fast in FAST.iter() {
        assert_eq!(judge_log_by(fast, lines), plain);
    }
    plain
}

fn judge_log_by(
    verifier: &dyn Verifier,
    lines: &[Bytes],
) -> (Vec<Option<&'static str>>, Vec<bool>) {
    let decoded = judge::decode(lines);
    let mut verdicts = vec![None; lines.len()];
    let mut candidates = Vec::new();
    for (index, result) in decoded.iter().enumerate() {
        match result {
            Ok(received) => {
                candidates.push(Candidate { line: index, received: received.clone() });
            }
            Err(other) if other.refusal.is_of_line() => panic!("line {index}: {other:?}"),
            Err(Undecodable { refusal, .. }) => verdicts[index] = Some(refusal.kind()),
        }
    }
    let mut groups = judge::group(candidates.into_iter());
    for judged in judge::judge(&mut groups, verifier) {
        if let Verdict::Refused(refusal) = judged.verdict {
            verdicts[judged.candidate.line] = Some(Refusal::kind(&refusal));
        }
    }
    let chains: BTreeMap<Did, Group> = groups.into_iter().collect();
    let nullified = decoded
        .iter()
        .map(|result| {
            result.as_ref().is_ok_and(|received| {
                let link = chains[&received.did].chain.find(&received.cid);
                link.is_some_and(|link| link.nullified_by.is_some())
            })
        })
        .collect();
    (verdicts, nullified)
}

fn audit_log(path: &Path) -> (Vec<Bytes>, Vec<bool>) {
    let text = std::fs::read_to_string(path).unwrap();
    let entries: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let flags = entries.iter().map(|entry| entry["nullified"].as_bool().unwrap()).collect();
    (entries.iter().map(|entry| Bytes::from(entry.to_string())).collect(), flags)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn the_published_valid_logs_verify() {
    let Some(folder) = shared::folder("vectors/valid") else { return };
    for path in files(&folder) {
        let (lines, stated) = audit_log(&path);
        let (verdicts, nullified) = judge_log(&lines);
        assert!(verdicts.iter().all(Option::is_none), "{}: {verdicts:?}", path.display());
        assert_eq!(nullified, stated, "{}", path.display());
    }
}

#[test]
fn the_published_invalid_logs_do_not() {
    let Some(folder) = shared::folder("vectors/invalid") else { return };
    let expected = BTreeMap::from([
        ("log_invalid_nullification_reused_key.json", "not-authorised"),
        ("log_invalid_nullification_too_slow.json", "recovery-too-late"),
        ("log_invalid_sig_b64_newline.json", "signature-encoding"),
        ("log_invalid_sig_b64_padding_bits.json", "signature-encoding"),
        ("log_invalid_sig_b64_padding_chars.json", "signature-encoding"),
        // Its DER was made to be 64 bytes long.
        ("log_invalid_sig_der.json", "signature-invalid"),
        ("log_invalid_sig_k256_high_s.json", "signature-invalid"),
        ("log_invalid_sig_p256_high_s.json", "signature-invalid"),
        ("log_invalid_update_nullified.json", "prev-nullified"),
        ("log_invalid_update_tombstoned.json", "prev-tombstone"),
    ]);
    for path in files(&folder) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (verdicts, _) = judge_log(&audit_log(&path).0);
        let refused: Vec<_> = verdicts.into_iter().flatten().collect();
        assert_eq!(refused.first(), expected.get(name), "{name}: {refused:?}");
    }
}

#[test]
fn the_real_audit_logs_verify() {
    let Some(folder) = shared::folder("real/audit") else { return };
    for path in files(&folder) {
        let (lines, stated) = audit_log(&path);
        let (verdicts, nullified) = judge_log(&lines);
        assert!(verdicts.iter().all(Option::is_none), "{}: {verdicts:?}", path.display());
        assert_eq!(nullified, stated, "{}", path.display());
    }
}

/// Which refusal each recorded verdict is here.
fn expected_refusals(verdict: &str) -> &'static [&'static str] {
    match verdict {
        "der-signature" | "loose-base64-bits" | "padded-signature" => &["signature-encoding"],
        "high-s" | "stranger-signed" | "tampered-body" | "self-authorised-key" => {
            &["signature-invalid"]
        }
        // The reference library does not look at the form of the DID first.
        "InvalidSignatureError" => &["signature-invalid", "malformed-did"],
        "second-genesis" => &["second-genesis"],
        "unknown-prev" => &["unknown-prev"],
        // The reference library takes whatever comes first for a genesis operation.
        "GenesisHashError" => &["genesis-mismatch", "malformed-did", "unknown-did"],
        "MisorderedOperationError" => &["unknown-prev", "unknown-did"],
        other => panic!("a verdict that this test does not know: {other}"),
    }
}

#[test]
fn the_recorded_exports_are_judged_as_the_reference_does() {
    for folder in shared::logs() {
        let name = folder.display();
        let export = std::fs::read(folder.join("export.jsonl")).unwrap();
        let export = Bytes::from(export);
        let lines: Vec<Bytes> = export
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| export.slice_ref(line))
            .collect();
        let expected = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
        let (verdicts, nullified) = judge_log(&lines);
        for (index, line) in expected.lines().enumerate() {
            let expected: serde_json::Value = serde_json::from_str(line).unwrap();
            let verdict = expected["verdict"].as_str().unwrap();
            match verdicts[index] {
                None => assert_eq!(verdict, "ok", "{name}: {line}"),
                Some(refused) => assert!(
                    verdict != "ok" && expected_refusals(verdict).contains(&refused),
                    "{name}: {refused} for {line}"
                ),
            }
            assert_eq!(nullified[index], expected["nullified"].as_bool().unwrap(), "{line}");
        }
    }
}
