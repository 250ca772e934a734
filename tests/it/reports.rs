//! Inputs on which the program was wrong once: taken in by both backends, judged, and compared. Each is told here,
//! and once more by the file that was reported, where that is here.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use did_plc::key::{Curve, PublicKey};
use plc_testkit::builder::{Story, Told};
use plc_testkit::spelling::spellings;
use plc_testkit::{Generated, audit_log, lines as joined};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::follow::{Place, places};
use crate::process::{Ran, run};
use crate::replica::Replica;
use crate::shared;
use crate::vectors::judge_log;
use plc_replica::live::Feed;
use plc_replica::serve::ServeSettings;

/// A file with this text, gone with the value.
fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".jsonl").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// What is told here, and the file of the reports where it is here.
fn with_report(told: &NamedTempFile, name: &str) -> Vec<PathBuf> {
    let report = shared::folder("reports").map(|folder| folder.join(name));
    [told.path().to_owned()].into_iter().chain(report).collect()
}

fn lines(path: &Path) -> Vec<Bytes> {
    let text = Bytes::from(std::fs::read(path).unwrap());
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| text.slice_ref(line)).collect()
}

/// A story of one identity with so many operations.
fn one_identity(seed: u64, operations: usize) -> (Story, Told) {
    let mut story = Story::seeded(seed);
    let alice = story.create().accepted();
    for _ in 1..operations {
        story.update(&alice).accepted();
    }
    (story, alice)
}

/// Imports a file, of which so many operations are accepted and so many refused.
fn import(place: &Place, path: &Path, accepted: usize, refused: usize) {
    let ran = run(&["import", path.to_str().unwrap(), "--database", &place.url]);
    let expected = format!("{accepted} operations accepted, 0 known before, {refused} refused");
    assert!(ran.code == Some(0) && ran.said().contains(&expected), "{}: {ran:?}", place.url);
}

/// What a store exports by time.
fn export(place: &Place) -> Vec<Value> {
    let ran = run(&["export", "--by-time", "--database", &place.url]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
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
    let (mut story, alice) = one_identity(92, 8);
    story.update(&alice).at("2025-01-25T06:13:21.000Z").accepted();
    let told = file(&joined(story.log(), Generated::sequenced_line).replace(".000Z\"", "Z\""));
    for path in with_report(&told, "createdAt-without-fraction.jsonl") {
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_is_read_over() {
    let (story, _) = one_identity(93, 12);
    let told = file(&format!("\u{feff}{}", joined(story.log(), Generated::timestamped_line)));
    for path in with_report(&told, "bom.jsonl") {
        for place in places().await {
            import(&place, &path, 12, 0);
            assert_eq!(export(&place).len(), 12);
        }
        let ran = run(&["verify", path.to_str().unwrap()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prev_in_base58_is_accepted_kept_and_remarked_on() {
    let (mut story, alice) = one_identity(94, 1);
    story.update(&alice).prev(&spellings(&alice.cid)[0]).accepted();
    let told = file(&joined(story.log(), Generated::timestamped_line));
    for path in with_report(&told, "prev-in-base58.jsonl") {
        let file = path.to_str().unwrap();
        let last: Value = serde_json::from_slice(&lines(&path)[1]).unwrap();
        let did = last["did"].as_str().unwrap();
        let prev = &last["operation"]["prev"];
        assert!(prev.as_str().unwrap().starts_with('z'));
        for place in places().await {
            import(&place, &path, 2, 0);
            assert_eq!(export(&place)[1]["operation"]["prev"], *prev);
            let ran = run(&["history", did, "--database", &place.url]);
            let remark = format!(
                "in a spelling that is not the specification's: {}",
                prev.as_str().unwrap()
            );
            assert!(ran.code == Some(0) && ran.out.contains(&remark), "{ran:?}");
            let paths = ["log/verdicts", "log/audit"].map(|path| format!("/{did}/{path}"));
            let page = format!("/explore/{did}");
            let [verdicts, log, page] = answers(&place, [&paths[0], &paths[1], &page]).await;
            assert!(page.contains("in a spelling that is not the specification's"), "{page}");
            let (verdicts, log) = (json(&verdicts), json(&log));
            assert_eq!(verdicts["verdicts"][0]["remark"], Value::Null);
            assert_eq!(verdicts["verdicts"][1]["remark"]["kind"], "prev-spelling");
            assert_eq!(log[1]["operation"]["prev"], *prev);
            let ran = run(&["fsck", "--database", &place.url]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
        assert_eq!(judge_log(&lines(&path)).0, [None, None]);
        let ran = run(&["verify", file]);
        let tells = ran.out.contains("prev-spelling") && ran.out.contains("accepted  2");
        assert!(ran.code == Some(0) && tells, "{ran:?}");
        let ran = run(&["verify", "--json", file]);
        let summary: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
        assert_eq!((&summary["remarked"], &summary["accepted"]), (&1.into(), &2.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_zero_width_space_is_none() {
    let mut story = Story::seeded(95);
    let spaced = story.signing.did_key().replace(":z", ":z\u{200b}");
    story.create().rotation_key_texts([&*spaced]).refused("unsupported-key");
    let told = file(&joined(story.log(), Generated::timestamped_line));
    for path in with_report(&told, "key-with-zero-width-space.jsonl") {
        assert_eq!(judge_log(&lines(&path)).0, [Some("unsupported-key")]);
        for place in places().await {
            import(&place, &path, 0, 1);
        }
    }
}

/// A P-256 key whose point has x = 0.
fn x_zero() -> String {
    let mut point = [0; 33];
    point[0] = 2;
    PublicKey { curve: Curve::P256, point }.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_with_x_zero_is_no_key_of_a_document() {
    let mut story = Story::seeded(96);
    story.create().verification_method("atproto", &x_zero()).accepted();
    let told = file(&joined(story.log(), Generated::timestamped_line));
    for path in with_report(&told, "p256-x-zero-method.jsonl") {
        let line: Value = serde_json::from_slice(&lines(&path)[0]).unwrap();
        let did = line["did"].as_str().unwrap();
        for place in places().await {
            import(&place, &path, 1, 0);
            let [document] = answers(&place, [&format!("/{did}")]).await.map(|text| json(&text));
            let contexts =
                ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"];
            assert_eq!(document["@context"], serde_json::json!(contexts));
            assert_eq!(document["verificationMethod"].as_array().unwrap().len(), 1);
            assert_eq!(export(&place)[0]["operation"], line["operation"]);
        }
        assert_eq!(judge_log(&lines(&path)).0, [None]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_with_x_zero_signs_nothing() {
    let mut story = Story::seeded(97);
    let signing = story.signing.did_key().to_owned();
    story.create().rotation_key_texts([&*x_zero(), &*signing]).refused("unsupported-key");
    let told = file(&joined(story.log(), Generated::timestamped_line));
    for path in with_report(&told, "p256-x-zero-rotation.jsonl") {
        assert_eq!(judge_log(&lines(&path)).0, [Some("unsupported-key")]);
        for place in places().await {
            import(&place, &path, 0, 1);
        }
    }
}

/// A number that cannot be one is a fault of its line: that is kept, and the cursor stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sequence_number_moves_no_cursor() {
    let mut story = Story::seeded(91);
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
    let dump = file(&text.join("\n"));
    for place in places().await {
        import(&place, dump.path(), 2, 6);
        let store = plc_replica::store::Store::open(&place.url).await.unwrap();
        assert_eq!(store.source().await.unwrap().unwrap().cursor, 4);
        drop(store);
        let refused = run(&["refused", "--database", &place.url]).out;
        for number in &numbers[1..7] {
            let reason = format!(
                "a sequence number is whole and between 1 and 9007199254740991, not `{number}`"
            );
            assert!(refused.contains(&reason), "{number}: {refused}");
        }
    }
}

/// What a comparison says.
fn audit(place: &Place, how: &[&str], against: &Path) -> Ran {
    let common = ["audit", "--json", "--requests-per-minute", "0", "--database", &place.url];
    run(&[&common, how, &["--against", against.to_str().unwrap()]].concat())
}

/// The CIDs of which a difference is told.
fn differing(ran: &Ran) -> Vec<String> {
    let told = ran.out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    told.filter_map(|line| Some(line["subject"].as_str()?.to_owned())).collect()
}

/// A log that verifies, and logs of the same identity with operations that stand in no log but these.
struct OtherBranch {
    did: String,
    ours: PathBuf,
    theirs: Vec<PathBuf>,
    cids: Vec<String>,
}

/// Imports our log and finds no difference in it; finds each operation of the other branch in theirs, however it is
/// compared.
async fn the_other_branch_is_found(case: OtherBranch) {
    let OtherBranch { did, ours, theirs, cids } = case;
    for place in places().await {
        import(&place, &ours, 9, 0);
        let honest = audit(&place, &["--full"], &ours);
        assert!(honest.code == Some(0) && differing(&honest).is_empty(), "{honest:?}");
        for theirs in &theirs {
            for how in [&[&*did][..], &["--full"], &["--full", "--by-sequence"]] {
                let ran = audit(&place, how, theirs);
                let told = differing(&ran);
                let found = cids.iter().all(|cid| told.contains(cid));
                assert!(ran.code == Some(1) && found, "{} {how:?}: {ran:?}", theirs.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_cannot_be_placed_are_differences() {
    let (mut story, alice) = one_identity(98, 9);
    let ours = file(&joined(story.log(), Generated::sequenced_line));
    let first = story.log()[0].clone();
    let recovery = story.recovery.clone();
    // Before our last word: what is later than that could be news.
    let pause = Duration::from_secs(30);
    let mut other = alice.clone();
    for _ in 0..3 {
        let draft = story.after(&other).signed_by(&recovery).later_than(&other, pause);
        other = draft.accepted();
    }
    let branch = &story.log()[9..];
    let of_branch = |entry: fn(&Generated) -> String| {
        file(
            &[first.audit_entry()]
                .into_iter()
                .chain(branch.iter().map(entry))
                .collect::<Vec<_>>()
                .join("\n"),
        )
    };
    let undated = of_branch(|entry| {
        entry.audit_entry().replace(&format!("\"{}\"", entry.created_at), "null")
    });
    let dated_2099 = of_branch(|entry| entry.audit_entry().replace(&entry.created_at[..4], "2099"));
    let dated = file(&audit_log([&first].into_iter().chain(branch)));
    the_other_branch_is_found(OtherBranch {
        did: alice.did.clone(),
        ours: ours.path().to_owned(),
        theirs: [&undated, &dated_2099, &dated].map(|file| file.path().to_owned()).to_vec(),
        cids: branch.iter().map(|entry| entry.cid.clone()).collect(),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_cannot_be_placed_were_reported() {
    let (Some(reports), Some(real)) = (shared::folder("reports"), shared::folder("real")) else {
        return;
    };
    let cids = [
        "bafyreiatwpsxrmrmcpupomzzqx4eqj4lmhpmpmbrgy7eciebmc7c5f3u4m",
        "bafyreiby4hgv4knbljcvdowe2q3tr2f4fgl3tzciqav43ocnwrl7anwaza",
        "bafyreig3hukakzmg6hhenkmpnd6fsk5wx2shawsvpz6ubuhqd26ca6h6om",
    ];
    the_other_branch_is_found(OtherBranch {
        did: "did:plc:ee7kjipyhx3cf6nmh2l5scbl".to_owned(),
        ours: reports.join("createdAt-without-fraction.jsonl"),
        theirs: vec![
            reports.join("audit-entries-without-time.jsonl"),
            reports.join("audit-entries-dated-2099.jsonl"),
            real.join("other_branch_of_did_plc_ee7kjipyhx3cf6nmh2l5scbl.json"),
        ],
        cids: cids.map(str::to_owned).to_vec(),
    })
    .await;
}
