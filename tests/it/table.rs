//! The log as a table, and parts of the log: what `plc-replica export` writes beside all lines.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use did_plc::history::History;
use did_plc::signature::PlainVerifier;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use plc_testkit::builder::Story;
use plc_testkit::{Expected, Generated, audit_log};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::follow::{Place, places};
use crate::process::{program, run};
use crate::replica::UPSTREAM;

/// Everything that can stand in a column.
fn story() -> Story {
    let mut story = Story::seeded(141);
    let (thief, p256, recovery) = (story.k256(), story.p256(), story.recovery.clone());
    let alice = story.create().handle("alice.example.com").accepted();
    let aliases = ["at://A,b\"c\n.example", "https://a.example", "at://\u{0}\u{202e}é🦀", "at://"];
    let named = story.update(&alice).also_known_as(aliases).accepted();
    let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
    story.update(&alice).signed_by(&thief).handle("thief.example.com").accepted();
    story.after(&named).signed_by(&recovery).just_in_time_for(&stolen).accepted();
    let legacy =
        story.create_legacy().handle("http://old.example").host("ftp://old.example").accepted();
    story.update(&legacy).rotation_keys([&p256, &recovery, &p256]).accepted();
    story.update(&legacy).signed_by(&p256).host("").accepted();
    story.update(&legacy).padded_signature().refused("signature-encoding");
    let bare = story.create().also_known_as([]).empty_maps().accepted();
    story.update(&bare).rotation_key_texts(["", "not\u{0}a,key"]).accepted();
    let ended = story.create().verification_method("other", "did:key:zOther").accepted();
    story.tombstone(&ended).accepted();
    story
}

/// The columns, and what is expected in them of each accepted operation, from the JSON of the story and a verification of
/// its own.
fn expected(story: &Story) -> Vec<Value> {
    let accepted = |entry: &&Generated| entry.expected == Expected::Accepted;
    let mut histories = BTreeMap::new();
    for did in story.log().iter().map(|entry| &entry.did) {
        let own = story.log().iter().filter(accepted).filter(|entry| entry.did == *did);
        let history =
            History::of_audit_log(did.parse().unwrap(), audit_log(own).as_bytes(), &PlainVerifier);
        histories.insert(did, history.unwrap());
    }
    let row = |entry: &Generated| {
        let operation: Value = serde_json::from_str(&entry.operation_json).unwrap();
        let history = &histories[&entry.did];
        let is_it = |cid: &str| {
            history.entries.iter().position(|held| held.received.cid.to_string() == cid)
        };
        let index = is_it(&entry.cid).unwrap();
        let held = &history.entries[index];
        let (mut handles, mut keys) = (Vec::new(), Vec::new());
        let (mut host, mut signing_key) = (Value::Null, Value::Null);
        match operation["type"].as_str().unwrap() {
            "create" => {
                let bare = operation["handle"].as_str().unwrap();
                let bare = bare.strip_prefix("at://").unwrap_or(bare);
                handles.push(json!(bare.replacen("http://", "", 1)));
                keys.extend([operation["recoveryKey"].clone(), operation["signingKey"].clone()]);
                host = json!(format!("https://{}", operation["service"].as_str().unwrap()));
                signing_key = operation["signingKey"].clone();
            }
            "plc_operation" => {
                for alias in operation["alsoKnownAs"].as_array().unwrap() {
                    let handle = alias.as_str().unwrap().strip_prefix("at://");
                    handles.extend(handle.map(|handle| json!(handle)));
                }
                keys.extend(operation["rotationKeys"].as_array().unwrap().iter().cloned());
                host = operation["services"]["atproto_pds"]["endpoint"].clone();
                signing_key = operation["verificationMethods"]["atproto"].clone();
            }
            _ => {}
        }
        json!({
            "did": entry.did,
            "cid": entry.cid,
            "sequence": entry.seq,
            "created_at": entry.created_at,
            "type": operation["type"],
            "prev": operation["prev"],
            "handles": handles,
            "host": host,
            "rotation_keys": keys,
            "signing_key": signing_key,
            "signer": history.signer_key(index).unwrap(),
            "signer_index": held.signer().unwrap(),
            "nullified": entry.nullified_in_the_end,
            "nullified_by": held.nullified_by.map(|by| history.entries[by].received.cid.to_string()),
        })
    };
    story.log().iter().filter(accepted).map(row).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Int(value) => json!(value),
        Field::Long(value) => json!(value),
        Field::Str(value) => json!(value),
        Field::TimestampMillis(value) => json!(did_plc::Timestamp::from_millis(*value).to_string()),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        other => panic!("{other:?}"),
    }
}

fn parquet_rows(file: &Path) -> Vec<Value> {
    let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    let row = |row: parquet::record::Row| {
        let columns = row.into_columns().into_iter();
        Value::Object(columns.map(|(name, field)| (name, value(&field))).collect())
    };
    rows.map(|found| row(found.unwrap())).collect()
}

/// An empty cell is what is not there; an empty text looks the same.
fn csv_rows(text: &[u8]) -> Vec<Value> {
    let mut reader = csv::Reader::from_reader(text);
    let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let cell = |name: &str, text: &str| match name {
        _ if text.is_empty() => Value::Null,
        "sequence" | "signer_index" | "nullified" | "handles" | "rotation_keys" => {
            serde_json::from_str(text).unwrap()
        }
        _ => json!(text),
    };
    let rows = reader.records().map(|record| {
        let record = record.unwrap();
        let cells = names.iter().zip(record.iter());
        Value::Object(cells.map(|(name, text)| (name.clone(), cell(name, text))).collect())
    });
    rows.collect()
}

fn import(place: &Place, folder: &TempDir, lines: impl Iterator<Item = String>) {
    let dump = folder.path().join("dump.jsonl");
    fs::write(&dump, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let dump = dump.to_str().unwrap();
    let ran = run(&["import", "--upstream", UPSTREAM, "--database", &place.url, dump]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// What was written to standard output; it has to end well.
fn export(place: &Place, more: &[&str]) -> Vec<u8> {
    let mut command = program(&["export", "--database", &place.url]);
    let ran = command.args(more).output().unwrap();
    assert!(ran.status.success(), "{more:?}: {}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

fn text(place: &Place, more: &[&str]) -> String {
    String::from_utf8(export(place, more)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_says_what_the_log_says() {
    let story = story();
    let expected = expected(&story);
    // All of it is met.
    let all = Value::Array(expected.clone()).to_string();
    for met in [
        "\\u0000",
        "plc_tombstone",
        "create",
        "\"handles\":[]",
        "\"rotation_keys\":[]",
        "\"host\":null",
        "\"nullified\":true",
        "\"signing_key\":null",
        "\"host\":\"\"",
        "\"signer_index\":1",
        "https://ftp://old",
    ] {
        assert!(all.contains(met), "{met}");
    }
    let mut files = Vec::new();
    for place in places().await {
        let folder = TempDir::new().unwrap();
        import(&place, &folder, story.log().iter().map(Generated::sequenced_line));
        let file = folder.path().join("log.parquet");
        fs::write(&file, "of before").unwrap();
        let named = file.to_str().unwrap();
        assert!(export(&place, &["--format", "parquet", "--output", named]).is_empty());
        assert_eq!(parquet_rows(&file), expected);
        // On standard output, and in a file, it is the same.
        assert_eq!(export(&place, &["--format", "parquet"]), fs::read(&file).unwrap());
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".part")), "{left:?}");

        let mut without_empty = expected.clone();
        for row in &mut without_empty {
            if row["host"] == "" {
                row["host"] = Value::Null;
            }
        }
        let csv = export(&place, &["--format", "csv"]);
        assert_eq!(csv_rows(&csv), without_empty);
        files.push((fs::read(&file).unwrap(), csv));
    }
    assert!(files.windows(2).all(|pair| pair[0] == pair[1]), "two backends differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_number_is_in_the_table_by_time() {
    let story = story();
    let mut expected = expected(&story);
    expected.sort_by_key(|row| (row["created_at"].to_string(), row["cid"].to_string()));
    for row in &mut expected {
        row["sequence"] = Value::Null;
    }
    for place in places().await {
        let folder = TempDir::new().unwrap();
        import(&place, &folder, story.log().iter().map(Generated::timestamped_line));
        let file = folder.path().join("log.parquet");
        let arguments = ["--format", "parquet", "--output", file.to_str().unwrap()];
        export(&place, &arguments);
        assert_eq!(parquet_rows(&file), [] as [Value; 0]);
        export(&place, &[&arguments[..], &["--by-time"]].concat());
        assert_eq!(parquet_rows(&file), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_log_is_what_was_asked_for() {
    let story = story();
    for place in places().await {
        let folder = TempDir::new().unwrap();
        import(&place, &folder, story.log().iter().map(Generated::sequenced_line));
        let lines = text(&place, &[]);
        let all: Vec<&str> = lines.lines().collect();
        let entries: Vec<Value> =
            all.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let those = |keep: &dyn Fn(&Value) -> bool| {
            let kept = all.iter().zip(&entries).filter(|(_, entry)| keep(entry));
            kept.map(|(line, _)| format!("{line}\n")).collect::<String>()
        };
        let number = |entry: &Value| entry["seq"].as_i64().unwrap();
        assert_eq!(text(&place, &["--until", "7"]), those(&|entry| number(entry) <= 7));
        let between = ["--after", "3", "--until", "9"];
        assert_eq!(text(&place, &between), those(&|entry| (4..=9).contains(&number(entry))));
        let time = entries[4]["createdAt"].as_str().unwrap();
        let is_later = |entry: &Value| entry["createdAt"].as_str().unwrap() > time;
        assert_eq!(text(&place, &["--after", time]), those(&is_later));
        assert_eq!(text(&place, &["--until", time]), those(&|entry| !is_later(entry)));
        let by_time = text(&place, &["--by-time"]);
        let until = text(&place, &["--by-time", "--until", time]);
        let after = text(&place, &["--by-time", "--after", time]);
        assert!(!until.is_empty() && !after.is_empty());
        assert_eq!([until, after].concat(), by_time);

        let nullified: Vec<&str> = story
            .log()
            .iter()
            .filter(|entry| entry.nullified_in_the_end)
            .map(|entry| &*entry.cid)
            .collect();
        let is_undone = |entry: &Value| nullified.contains(&entry["cid"].as_str().unwrap());
        assert_eq!(nullified.len(), 2);
        assert_eq!(text(&place, &["--nullified"]), those(&is_undone));

        // Of two identities, in the order of the list.
        let list = folder.path().join("list");
        let (first, last) = (&entries[0]["did"], &entries.last().unwrap()["did"]);
        let named = |did: &Value| did.as_str().unwrap().to_owned();
        fs::write(&list, format!("{}\r\n\n{}\n{0}\n", named(last), named(first))).unwrap();
        let of = |did: &Value| those(&|entry| entry["did"] == *did);
        let both = [of(last), of(first)].concat();
        let list = list.to_str().unwrap();
        assert_eq!(text(&place, &["--did", list]), both);
        let some = text(&place, &["--did", list, "--until", "2", "--format", "csv"]);
        let cids: Vec<Value> =
            csv_rows(some.as_bytes()).iter().map(|row| row["cid"].clone()).collect();
        assert_eq!(cids, [entries[0]["cid"].clone(), entries[1]["cid"].clone()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_what_is_asked_for_are_told() {
    let story = story();
    for place in places().await {
        let folder = TempDir::new().unwrap();
        import(&place, &folder, story.log().iter().map(Generated::sequenced_line));
        let is_told = |code: i32, more: &[&str], input: &str, said: &str| {
            let mut command = program(&["export", "--database", &place.url]);
            command.args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let ran = child.wait_with_output().unwrap();
            let errors = String::from_utf8(ran.stderr).unwrap();
            assert!(ran.status.code() == Some(code) && errors.contains(said), "{more:?}: {errors}");
            String::from_utf8(ran.stdout).unwrap()
        };
        let known = &story.log()[0].did;
        let list = format!("{known}\ndid:web:a.example\n");
        let out = is_told(2, &["--did", "-"], &list, "--did standard input: not did:plc: with 24");
        assert_eq!(out, "");
        is_told(2, &["--did", "-"], &list, "line 2: `did:web:a.example`; nothing was written");
        let absent = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        let list = format!("{absent}\n{known}\n");
        let out = is_told(1, &["--did", "-"], &list, &format!("{absent} is not in "));
        assert_eq!(out.lines().count(), 5);
        is_told(2, &["--did", "/nonexistent"], "", "--did /nonexistent: No such file");
        for place in ["--after", "--until"] {
            is_told(2, &[place, "yesterday"], "", "expected a sequence number, or a time as 2024-");
            is_told(
                2,
                &["--by-time", place, "7"],
                "",
                "a number is no place in the export --by-time",
            );
        }
        let nowhere = folder.path().join("nowhere/log.csv");
        is_told(
            2,
            &["--output", nowhere.to_str().unwrap()],
            "",
            "log.csv: cannot be written: No such file",
        );
        is_told(2, &["--output", "/dev/null"], "", "--output /dev/null: it is there, and no file");
        is_told(2, &["--format", "xlsx"], "", "[possible values: lines, csv, parquet]");
    }
}
