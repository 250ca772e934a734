//! Inputs on which the program was wrong once: taken in by both backends, judged, and compared.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use serde_json::Value;

use crate::follow::{Place, places};
use crate::replica::Replica;
use crate::shared;
use crate::vectors::judge_log;
use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;

/// A file of the reports, or `None` where they are not here.
fn report(name: &str) -> Option<PathBuf> {
    Some(shared::folder("reports")?.join(name))
}

fn lines(path: &Path) -> Vec<Bytes> {
    let text = Bytes::from(std::fs::read(path).unwrap());
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| text.slice_ref(line)).collect()
}

/// Runs the program; its exit code and what it printed.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = tokio::task::block_in_place(|| {
        Command::new(env!("CARGO_BIN_EXE_plc-replica"))
            .args(arguments)
            .env_remove("PLC_CONFIG")
            .output()
            .unwrap()
    });
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Imports a file, of which so many operations are accepted and so many refused.
fn import(place: &Place, path: &Path, accepted: usize, refused: usize) {
    let (code, out) = run(&["import", path.to_str().unwrap(), "--database", &place.url]);
    let expected = format!("{accepted} operations accepted, 0 known before, {refused} refused");
    assert!(code == Some(0) && out.contains(&expected), "{}: {out}", place.url);
}

/// What a store exports by time.
fn export(place: &Place) -> Vec<Value> {
    let (code, out) = run(&["export", "--by-time", "--database", &place.url]);
    assert_eq!(code, Some(0), "{out}");
    out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What is answered from a store on these paths.
async fn answers<const N: usize>(place: &Place, paths: [&str; N]) -> [String; N] {
    let replica = Replica::start_at(&place.url, ServeSettings::default(), Feed::new()).await;
    let mut answers = [const { String::new() }; N];
    for (answered, path) in answers.iter_mut().zip(paths) {
        let answer = replica.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answered.push_str(answer.text());
    }
    answers
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn times_without_a_fraction_are_served_in_the_directorys_spelling() {
    let Some(path) = report("createdAt-without-fraction.jsonl") else { return };
    for place in places().await {
        import(&place, &path, 9, 0);
        let exported = export(&place);
        let times: Vec<&str> =
            exported.iter().map(|line| line["createdAt"].as_str().unwrap()).collect();
        assert_eq!(times.len(), 9);
        assert!(times.iter().all(|at| at.len() == 24 && at.ends_with('Z')), "{times:?}");
        assert!(times.contains(&"2025-01-25T06:13:21.000Z"), "{times:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_is_read_over() {
    let Some(path) = report("bom.jsonl") else { return };
    for place in places().await {
        import(&place, &path, 12, 0);
        assert_eq!(export(&place).len(), 12);
    }
    let (code, out) = run(&["verify", path.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prev_in_base58_is_accepted_kept_and_remarked_on() {
    let Some(path) = report("prev-in-base58.jsonl") else { return };
    let file = path.to_str().unwrap();
    let last: Value = serde_json::from_slice(&lines(&path)[1]).unwrap();
    let did = last["did"].as_str().unwrap();
    let prev = &last["operation"]["prev"];
    for place in places().await {
        import(&place, &path, 2, 0);
        assert_eq!(export(&place)[1]["operation"]["prev"], *prev);
        let (code, out) = run(&["history", did, "--database", &place.url]);
        let remark =
            format!("in a spelling that is not the specification's: {}", prev.as_str().unwrap());
        assert!(code == Some(0) && out.contains(&remark), "{out}");
        let paths = ["log/verdicts", "log/audit"].map(|path| format!("/{did}/{path}"));
        let page = format!("/explore/{did}");
        let [verdicts, log, page] = answers(&place, [&paths[0], &paths[1], &page]).await;
        assert!(page.contains("in a spelling that is not the specification's"), "{page}");
        let (verdicts, log) = (json(&verdicts), json(&log));
        assert_eq!(verdicts["verdicts"][0]["remark"], Value::Null);
        assert_eq!(verdicts["verdicts"][1]["remark"]["kind"], "prev-spelling");
        assert_eq!(log[1]["operation"]["prev"], *prev);
        let (code, out) = run(&["fsck", "--database", &place.url]);
        assert_eq!(code, Some(0), "{out}");
    }
    assert_eq!(judge_log(&lines(&path)).0, [None, None]);
    let (code, out) = run(&["verify", file]);
    assert!(
        code == Some(0) && out.contains("prev-spelling") && out.contains("accepted  2"),
        "{out}"
    );
    let (_, out) = run(&["verify", "--json", file]);
    let summary: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["remarked"], &summary["accepted"]), (&1.into(), &2.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_zero_width_space_is_none() {
    let Some(path) = report("key-with-zero-width-space.jsonl") else { return };
    assert_eq!(judge_log(&lines(&path)).0, [Some("unsupported-key")]);
    for place in places().await {
        import(&place, &path, 0, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_with_x_zero_is_no_key() {
    let Some(path) = report("p256-x-zero-method.jsonl") else { return };
    let line: Value = serde_json::from_slice(&lines(&path)[0]).unwrap();
    let did = line["did"].as_str().unwrap();
    for place in places().await {
        import(&place, &path, 1, 0);
        let [document] = answers(&place, [&format!("/{did}")]).await.map(|text| json(&text));
        let contexts = ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"];
        assert_eq!(document["@context"], serde_json::json!(contexts));
        assert_eq!(document["verificationMethod"].as_array().unwrap().len(), 1);
        assert_eq!(export(&place)[0]["operation"], line["operation"]);
    }
    assert_eq!(judge_log(&lines(&path)).0, [None]);
    let Some(path) = report("p256-x-zero-rotation.jsonl") else { return };
    assert_eq!(judge_log(&lines(&path)).0, [Some("unsupported-key")]);
    for place in places().await {
        import(&place, &path, 0, 1);
    }
}

/// A number that cannot be one is a fault of its line: that is kept, and the cursor stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sequence_number_moves_no_cursor() {
    let mut story = plc_testkit::builder::Story::seeded(91);
    for _ in 0..8 {
        story.create().accepted();
    }
    let numbers =
        ["1", "0", "-4", "9007199254740992", "9223372036854775807", "2.5", "\"3\"", "4.0"];
    let text: Vec<String> = story
        .log()
        .iter()
        .zip(numbers)
        .map(|(entry, number)| {
            let line = entry.sequenced_line();
            line.replace(&format!("\"seq\":{},", entry.seq), &format!("\"seq\":{number},"))
        })
        .collect();
    let dump = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(dump.path(), text.join("\n")).unwrap();
    for place in places().await {
        import(&place, dump.path(), 2, 6);
        let store = plc_replica::store::Store::open(&place.url).await.unwrap();
        assert_eq!(store.source().await.unwrap().unwrap().cursor, 4);
        drop(store);
        let (_, refused) = run(&["refused", "--database", &place.url]);
        for number in &numbers[1..7] {
            let reason = format!(
                "a sequence number is whole and between 1 and 9007199254740991, not `{number}`"
            );
            assert!(refused.contains(&reason), "{number}: {refused}");
        }
    }
}

/// (kind, subject) of what a comparison finds, and how it ends.
fn audit(
    place: &Place,
    how: &[&str],
    against: &str,
) -> (Option<i32>, Vec<(String, String)>, String) {
    let common = ["audit", "--json", "--requests-per-minute", "0", "--database", &place.url];
    let (code, out) = run(&[&common, how, &["--against", against]].concat());
    let found = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let name = |line: &Value| {
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        Some((text("kind")?, text("subject")?))
    };
    let mut found: Vec<_> = found.filter_map(|line| name(&line)).collect();
    found.sort_unstable();
    (code, found, out)
}

/// The three operations of another branch, which nobody has ever submitted.
const OTHER_BRANCH: [&str; 3] = [
    "bafyreiatwpsxrmrmcpupomzzqx4eqj4lmhpmpmbrgy7eciebmc7c5f3u4m",
    "bafyreiby4hgv4knbljcvdowe2q3tr2f4fgl3tzciqav43ocnwrl7anwaza",
    "bafyreig3hukakzmg6hhenkmpnd6fsk5wx2shawsvpz6ubuhqd26ca6h6om",
];

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_cannot_be_placed_are_differences() {
    let Some(reports) = shared::folder("reports") else { return };
    let real = shared::folder("real").unwrap();
    let ours = report("createdAt-without-fraction.jsonl").unwrap();
    let did = "did:plc:ee7kjipyhx3cf6nmh2l5scbl";
    let other_branch = "other_branch_of_did_plc_ee7kjipyhx3cf6nmh2l5scbl.json";
    for place in places().await {
        import(&place, &ours, 9, 0);
        let honest = audit(&place, &["--full"], ours.to_str().unwrap());
        assert_eq!((honest.0, honest.1), (Some(0), vec![]), "{}", honest.2);
        for theirs in [
            reports.join("audit-entries-without-time.jsonl"),
            reports.join("audit-entries-dated-2099.jsonl"),
            real.join(other_branch),
        ] {
            for how in [&[did][..], &["--full"], &["--full", "--by-sequence"]] {
                let (code, found, out) = audit(&place, how, theirs.to_str().unwrap());
                assert_eq!(code, Some(1), "{} {how:?}: {out}", theirs.display());
                for cid in OTHER_BRANCH {
                    let named = |(_, subject): &(String, String)| subject == cid;
                    assert!(found.iter().any(named), "{} {how:?}: {out}", theirs.display());
                }
            }
        }
    }
}
