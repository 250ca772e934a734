//! `plc-replica snapshot`: the log in files that never change, whoever writes them and in however many runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use did_plc::Timestamp;
use plc_replica::snapshot::{Digest, INDEX_NAME, Index, Tally, is_file_name};
use plc_replica::store::{Commit, Rewritten, Store};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::{Generated, lines};
use tempfile::TempDir;

use crate::follow::{Place, lives_with_attacks, places};
use crate::process::{Ran, Served, program, run, without_settings};
use crate::replica::UPSTREAM;

/// Lines of the export, in a file that is imported.
fn import(place: &Place, folder: &TempDir, lines: impl IntoIterator<Item = String>) {
    let dump = folder.path().join("dump.jsonl");
    fs::write(&dump, lines.into_iter().collect::<Vec<_>>().join("\n")).unwrap();
    let dump = dump.to_str().unwrap();
    succeeds(&["import", "--upstream", UPSTREAM, "--database", &place.url, dump]);
}

fn succeeds(arguments: &[&str]) -> String {
    let ran = run(arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    ran.out
}

fn snapshot(place: &Place, to: &Path, more: &[&str]) -> Ran {
    let arguments = ["snapshot", to.to_str().unwrap(), "--database", &place.url];
    run(&[&arguments, more].concat())
}

/// Brings it up to date; what was said.
fn written(place: &Place, to: &Path, more: &[&str]) -> String {
    let ran = snapshot(place, to, more);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out
}

const BY_TEN: [&str; 2] = ["--numbers-per-file", "10"];

fn index(folder: &Path) -> Index {
    Index::parse(&fs::read(folder.join(INDEX_NAME)).unwrap()).unwrap()
}

/// The names of the files of a snapshot in a folder, if that is there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| is_file_name(name)).collect()
}

/// The files of a folder with what is in them, but for what is hidden.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read(path).unwrap())
    });
    named.filter(|(name, _)| !name.starts_with('.')).collect()
}

/// All lines, after it is made sure that each file is what the index says.
fn checked_lines(folder: &Path) -> String {
    let index = index(folder);
    let mut all = Vec::new();
    let mut chain = Digest::BEGINNING;
    for (file, chained) in index.files().iter().zip(index.chain_after_each()) {
        let compressed = fs::read(folder.join(file.name())).unwrap();
        assert_eq!(compressed.len() as u64, file.compressed_bytes);
        let lines = zstd::decode_all(&compressed[..]).unwrap();
        let mut tally = Tally::default();
        tally.add(&lines);
        let tallied = tally.finish();
        assert_eq!((tallied.lines, tallied.bytes), (file.count, file.bytes));
        assert_eq!(tallied.digest, file.lines);
        chain = chain.followed_by(tallied.digest);
        assert_eq!(chain, chained);
        let entry = |line: &str| -> (i64, String) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["seq"].as_i64().unwrap(), line["createdAt"].as_str().unwrap().to_owned())
        };
        let text = std::str::from_utf8(&lines).unwrap();
        assert_eq!(entry(text.lines().next().unwrap()).0, file.first);
        let last = entry(text.lines().last().unwrap());
        assert_eq!(last, (file.last, file.last_created_at.to_string()));
        all.extend(lines);
    }
    String::from_utf8(all).unwrap()
}

/// A log with attacks, of which some are refused: there are gaps in the numbers.
fn log(operations: usize) -> Vec<LogEntry> {
    lives_with_attacks(131, operations)
}

fn told(log: &[LogEntry]) -> impl Iterator<Item = String> {
    log.iter().map(LogEntry::sequenced)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_the_export_whoever_writes_it_and_when() {
    let log = log(200);
    let mut by_all = Vec::new();
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        // In three runs, and in one.
        import(&place, &folder, told(&log[..95]));
        let said = written(&place, &at("grown"), &BY_TEN);
        assert!(said.contains(" written now, 0 of those in place of others; chain "), "{said}");
        let first = (index(&at("grown")), files(&at("grown")));
        import(&place, &folder, told(&log[95..150]));
        written(&place, &at("grown"), &[]);
        let second = files(&at("grown"));
        // What was named before is there as it was, also the last one, which has given way.
        for (name, content) in &first.1 {
            assert!(name == INDEX_NAME || second[name] == *content, "{name}");
        }
        import(&place, &folder, told(&log[150..]));
        let said = written(&place, &at("grown"), &["--only-new"]);
        assert!(said.contains(" 0 of those in place of others"), "{said}");
        let third = files(&at("grown"));
        let given_way = first.0.files().last().unwrap().name();
        assert!(second.contains_key(&given_way) && !third.contains_key(&given_way));
        written(&place, &at("at once"), &BY_TEN);

        assert_eq!(checked_lines(&at("grown")), succeeds(&["export", "--database", &place.url]));
        // What is left over in the one is what was published last.
        let named: Vec<String> =
            index(&at("grown")).files().iter().map(|file| file.name()).collect();
        let mut grown = third;
        grown.retain(|name, _| name == INDEX_NAME || named.contains(name));
        assert_eq!(grown.keys().filter(|name| is_file_name(name)).count(), named.len());
        assert_eq!(grown, files(&at("at once")));
        by_all.push(grown);
    }
    assert!(by_all.windows(2).all(|pair| pair[0] == pair[1]), "two backends differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_anything_new_changes_nothing() {
    let log = log(60);
    for place in places().await {
        let folder = TempDir::new().unwrap();
        import(&place, &folder, told(&log));
        let to = folder.path().join("snapshot");
        written(&place, &to, &BY_TEN);
        let changed = || {
            let entries = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap());
            let times =
                entries.map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap()));
            times.collect::<BTreeMap<PathBuf, _>>()
        };
        let before = changed();
        for more in [&[][..], &["--only-new"], &BY_TEN] {
            let said = written(&place, &to, more);
            assert!(said.contains(" 0 of them written now, 0 of those"), "{said}");
            assert_eq!(changed(), before);
        }
    }
}

/// An operation that comes under an old number: its file, and no other, gives way to the one that there would have been.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_is_noticed() {
    let mut story = Story::seeded(132);
    for _ in 0..60 {
        story.create().accepted();
    }
    let sequenced: Vec<String> = story.log().iter().map(Generated::sequenced_line).collect();
    // All of one range is missing at first, and one line of another.
    let is_late = |number: usize| number == 14 || (30..40).contains(&number);
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let to = folder.path().join("snapshot");
        let (late, timely): (Vec<_>, Vec<_>) = (0..60).partition(|&number| is_late(number));
        import(&place, &folder, timely.iter().map(|&number| sequenced[number].clone()));
        written(&place, &to, &BY_TEN);
        let before = index(&to);
        assert_eq!((before.files().len(), before.count()), (5, 49));
        import(&place, &folder, late.iter().map(|&number| sequenced[number].clone()));
        let said = written(&place, &to, &["--only-new"]);
        assert!(said.contains(" 0 of them written now"), "{said}");
        let said = written(&place, &to, &[]);
        assert!(
            said.contains("in 6 files, 2 of them written now, 1 of those in place of others"),
            "{said}"
        );
        let after = index(&to);
        assert_eq!(checked_lines(&to), sequenced.join("\n") + "\n");
        let chains: Vec<bool> = before
            .chain_after_each()
            .zip(after.chain_after_each())
            .map(|(before, after)| before == after)
            .collect();
        assert_eq!(chains, [true, false, false, false, false]);
        // Who reads by the index of before still finds all that it names.
        assert!(before.files().iter().all(|file| to.join(file.name()).exists()));
        written(&place, &to, &[]);
        assert!(!to.join(before.files()[1].name()).exists());
        let fresh = folder.path().join("fresh");
        written(&place, &fresh, &BY_TEN);
        assert_eq!(files(&to), files(&fresh));
    }
}

/// A number that goes from one operation to another, and a time that is stated otherwise, change no count.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stated_otherwise_is_noticed() {
    let mut story = Story::seeded(137);
    for _ in 0..40 {
        story.create().accepted();
    }
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let to = folder.path().join("snapshot");
        import(&place, &folder, story.log().iter().map(Generated::sequenced_line));
        written(&place, &to, &BY_TEN);
        let before = index(&to);
        let store = Store::open(&place.url).await.unwrap();
        let (lease, source) = store.follow(UPSTREAM).await.unwrap();
        // Two that exchange their numbers, in two files, and one in a third that gets another time.
        let mut told = store.sequences(&[5, 15, 25]).await.unwrap();
        (told[0].sequence, told[1].sequence) = (Some(15), Some(5));
        told[2].created_at = Timestamp::from_millis(told[2].created_at.millis() + 1);
        let rewritten = told.into_iter().map(|operation| Rewritten {
            did: operation.did,
            stored: 1,
            stored_geneses: 1,
            operations: vec![operation],
        });
        let commit = Commit {
            cursor_before: source.cursor,
            cursor_after: source.cursor,
            rewritten: rewritten.collect(),
            ..Commit::default()
        };
        store.commit(&lease, &commit).await.unwrap();
        store.release(lease).await.unwrap();
        let said = written(&place, &to, &[]);
        assert!(said.contains("in 4 files, 3 of them written now, 3 of those in place"), "{said}");
        let after = index(&to);
        assert_eq!((after.count(), after.files().last()), (40, before.files().last()));
        assert_eq!(checked_lines(&to), succeeds(&["export", "--database", &place.url]));
    }
}

const BY_THREE: [&str; 2] = ["--numbers-per-file", "3"];

/// Brings it up to date, and is killed when there are so many files more than before, unless it has ended. True when it
/// was killed.
async fn killed_after(place: &Place, to: &Path, more: usize) -> bool {
    let arguments = ["snapshot", to.to_str().unwrap(), "--database", &place.url];
    let mut command = program(&[&arguments[..], &BY_THREE].concat());
    let before = names(to).len();
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() && names(to).len() < before + more {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

/// Killed again and again: whatever there is at any moment is a whole snapshot or none, and in the end it is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_a_snapshot() {
    let log = log(1_500);
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let (killed, calm) = (folder.path().join("killed"), folder.path().join("calm"));
        let exported = || succeeds(&["export", "--database", &place.url]);
        import(&place, &folder, told(&log[..750]));
        let mut kills = 0;
        for _ in 0..4 {
            kills += usize::from(killed_after(&place, &killed, 10).await);
            if killed.join(INDEX_NAME).exists() {
                assert_eq!(checked_lines(&killed), exported());
            }
        }
        written(&place, &killed, &BY_THREE);
        let before = checked_lines(&killed);
        import(&place, &folder, told(&log[750..]));
        for _ in 0..4 {
            kills += usize::from(killed_after(&place, &killed, 10).await);
            assert!([&before, &exported()].contains(&&checked_lines(&killed)));
        }
        assert!(kills > 1, "no kill came in time");
        written(&place, &killed, &BY_THREE);
        written(&place, &calm, &BY_THREE);
        // The run before has not removed what its index of before named.
        written(&place, &killed, &BY_THREE);
        assert_eq!(files(&killed), files(&calm));
        let hidden = fs::read_dir(&killed).unwrap().map(|entry| entry.unwrap().file_name());
        let hidden: Vec<_> =
            hidden.filter(|name| name.to_string_lossy().starts_with('.')).collect();
        assert_eq!(hidden, [".lock"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_without_a_number_are_counted() {
    let (mut story, mut older) = (Story::seeded(133), Story::seeded(134));
    for _ in 0..5 {
        story.create().accepted();
        older.create().accepted();
    }
    for place in places().await {
        let folder = TempDir::new().unwrap();
        import(&place, &folder, older.log().iter().map(Generated::timestamped_line));
        let to = folder.path().join("snapshot");
        let ran = snapshot(&place, &to, &[]);
        assert_eq!(ran.code, Some(2));
        assert!(ran.errors.contains("holds no operation with a sequence number"), "{ran:?}");
        import(&place, &folder, story.log().iter().map(Generated::sequenced_line));
        let said = written(&place, &to, &[]);
        assert!(said.contains("\n5 operations have no sequence number"), "{said}");
        assert_eq!(checked_lines(&to), lines(story.log(), Generated::sequenced_line) + "\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_told() {
    let log = log(60);
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        import(&place, &folder, told(&log));
        let is_told = |to: &Path, more: &[&str], said: &str| {
            let ran = snapshot(&place, to, more);
            assert!(ran.code == Some(2) && ran.errors.contains(said), "{said}: {ran:?}");
        };
        is_told(&at("dump.jsonl"), &[], "dump.jsonl: it is no folder");
        is_told(&at("nowhere/snapshot"), &[], "nowhere/snapshot: No such file or directory");
        is_told(folder.path(), &[], "there is something else in it (dump.jsonl)");
        assert!(!folder.path().join(".lock").exists(), "something was written into it");
        is_told(&at("snapshot"), &["--numbers-per-file", "0"], "0 is not in 1..=10000000");

        let to = at("snapshot");
        written(&place, &to, &BY_TEN);
        fs::write(to.join("robots.txt"), "").unwrap();
        is_told(&to, &["--numbers-per-file", "20"], "its files are of 10 numbers each");
        let lock = File::options().write(true).open(to.join(".lock")).unwrap();
        lock.lock().unwrap();
        is_told(&to, &[], "another process writes a snapshot into it");
        drop(lock);
        let document = fs::read(to.join(INDEX_NAME)).unwrap();
        let before = files(&to);
        fs::write(to.join(INDEX_NAME), &document[..document.len() / 2]).unwrap();
        is_told(&to, &[], "index.json: it is not JSON");
        fs::write(to.join(INDEX_NAME), "{\"a\":1}").unwrap();
        is_told(&to, &[], "it is not the index of a snapshot");
        // The way out that it names.
        fs::remove_file(to.join("robots.txt")).unwrap();
        fs::remove_file(to.join(INDEX_NAME)).unwrap();
        written(&place, &to, &BY_TEN);
        assert!(files(&to).iter().all(|(name, content)| before[name] == *content));
    }
    for (longer, shorter) in places().await.iter().zip(&places().await) {
        let folder = TempDir::new().unwrap();
        import(longer, &folder, told(&log));
        import(shorter, &folder, told(&log[..40]));
        let to = folder.path().join("snapshot");
        written(longer, &to, &[]);
        let before = files(&to);
        let ran = snapshot(shorter, &to, &[]);
        let last = index(&to).last();
        assert!(
            ran.errors
                .contains(&format!("goes up to number {last}, and the log in the database to ")),
            "{ran:?}"
        );
        assert_eq!((ran.code, files(&to)), (Some(2), before));
        let store = Store::open(&longer.url).await.unwrap();
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        store.begin_renumbering(&lease, "https://other.example").await.unwrap();
        store.release(lease).await.unwrap();
        let ran = snapshot(longer, &to, &[]);
        assert!(
            ran.code == Some(2) && ran.errors.contains("the numbers of another upstream"),
            "{ran:?}"
        );
    }
}

/// A disk without room, as by a limit on how large a file may become.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_what_was_published_stays() {
    let log = log(3_000);
    let place = places().await.remove(0);
    let folder = TempDir::new().unwrap();
    import(&place, &folder, told(&log[..100]));
    let to = folder.path().join("snapshot");
    written(&place, &to, &[]);
    import(&place, &folder, told(&log[100..]));
    let before = files(&to);
    let script = format!(
        "trap '' XFSZ; ulimit -f 128; exec {} snapshot {} --database {}",
        env!("CARGO_BIN_EXE_plc-replica"),
        to.display(),
        place.url
    );
    let mut shell = Command::new("sh");
    without_settings(&mut shell);
    let ran = shell.args(["-c", &script]).output().unwrap();
    let errors = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{errors}");
    assert!(errors.contains("/.writing-0: File too large"), "{errors}");
    assert_eq!(files(&to), before);
    written(&place, &to, &[]);
    assert_eq!(checked_lines(&to), succeeds(&["export", "--database", &place.url]));
}

/// What has been published up to this number.
async fn publishes(served: &Served, folder: &Path, last: i64) {
    let is_published = async || {
        let document = fs::read(folder.join(INDEX_NAME)).unwrap_or_default();
        Index::parse(&document).is_ok_and(|index| index.last() == last)
    };
    served.eventually(&format!("{last} published"), is_published).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_keeps_one_up_to_date() {
    // All are accepted: the last number is that of the last operation.
    let mut story = Story::seeded(135);
    for _ in 0..90 {
        story.create().accepted();
    }
    let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let (to, away) = (folder.path().join("snapshot"), folder.path().join("away"));
        import(&place, &folder, told(&log[..25]));
        written(&place, &to, &BY_TEN);
        let upstream = FakeUpstream::start(log[..30].to_vec()).await;
        let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let environment = [
            ("PLC_SNAPSHOTS", to.to_str().unwrap()),
            ("PLC_SNAPSHOT_MINUTES", "0.02"),
            ("PLC_METRICS_LISTEN", &metrics.to_string()),
        ];
        // It was filled from another name of the same log.
        let served = Served::start_on(&place.url, &upstream.url(), &environment);
        publishes(&served, &to, 30).await;
        for entry in &log[30..60] {
            upstream.append(entry.clone());
        }
        publishes(&served, &to, 60).await;
        // One that is lost is waited for, and not made anew.
        fs::rename(&to, &away).unwrap();
        for entry in &log[60..] {
            upstream.append(entry.clone());
        }
        let said = async || served.log().contains("the snapshot has to wait");
        served.eventually("a lost folder is told", said).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!to.exists());
        fs::rename(&away, &to).unwrap();
        publishes(&served, &to, 90).await;
        let said = async || served.log().contains("the snapshot goes on");
        served.eventually("it goes on", said).await;
        let scraped = reqwest::get(format!("http://{metrics}/metrics")).await.unwrap();
        let scraped = scraped.text().await.unwrap();
        assert!(scraped.contains("\nplc_snapshot_cursor 90\n"), "{scraped}");
        let said = served.end();
        assert_eq!(said.matches("the snapshot has to wait").count(), 1, "{said}");
        assert_eq!(checked_lines(&to), lines(story.log(), Generated::sequenced_line) + "\n");
    }
}

/// Each file has its turn to be compared with the log, while nothing new comes.
#[tokio::test(flavor = "multi_thread")]
async fn serve_notices_what_came_late() {
    let mut story = Story::seeded(136);
    for _ in 0..40 {
        story.create().accepted();
    }
    let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
    for place in places().await {
        let folder = TempDir::new().unwrap();
        let to = folder.path().join("snapshot");
        import(
            &place,
            &folder,
            told(&log).enumerate().filter(|(at, _)| *at != 14).map(|(_, line)| line),
        );
        written(&place, &to, &BY_TEN);
        import(&place, &folder, told(&log[14..15]));
        let upstream = FakeUpstream::start(log.clone()).await;
        let environment =
            [("PLC_SNAPSHOTS", to.to_str().unwrap()), ("PLC_SNAPSHOT_MINUTES", "0.02")];
        let served = Served::start_on(&place.url, &upstream.url(), &environment);
        let is_there = async || {
            let document = fs::read(to.join(INDEX_NAME)).unwrap();
            Index::parse(&document).unwrap().count() == 40
        };
        served.eventually("the late one is published", is_there).await;
        let said = async || served.log().contains("files of the snapshot have given way");
        served.eventually("that is told", said).await;
        served.end();
        assert_eq!(checked_lines(&to), lines(story.log(), Generated::sequenced_line) + "\n");
    }
}
