//! `plc-replica import` of archives: repositories of bundles, files on the web, directories, other replicas.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use did_plc::signature::{PlainVerifier, Signed, UnsupportedKey, Verifier};
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::file_server::{FileFault, FileServer};
use plc_testkit::plcbundle;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use crate::follow::{Place, Running, entries, places};
use crate::process::{Ran, program, run};

/// Operations of a bundle; those of a real one are ten thousand.
const BUNDLE: usize = 100;

/// Lives of so many operations, under numbers with gaps between them.
fn log(seed: u64, operations: usize) -> Vec<LogEntry> {
    let mut story = Story::seeded(seed);
    while story.log().len() < operations {
        let alice = story.create().accepted();
        story.update(&alice).handle("a.example.com").accepted();
        story.create_legacy().accepted();
        story.tombstone(&alice).accepted();
    }
    let mut log = entries(&story);
    log.truncate(operations);
    log.iter_mut().for_each(|entry| entry.seq *= 7);
    log
}

fn sequenced(log: &[LogEntry]) -> Vec<String> {
    log.iter().map(LogEntry::sequenced).collect()
}

fn import(place: &Place, archives: &[&str]) -> Ran {
    let options = ["--upstream", "https://plc.example", "--database", &place.url];
    run(&[&["import"][..], archives, &options].concat())
}

/// What is held is this log, to the byte, and the cursor stands at the end of so much of it.
async fn holds(place: &Place, log: &[LogEntry], cursor: i64) {
    let exported = run(&["export", "--database", &place.url]);
    assert_eq!(exported.out, sequenced(log).join("\n") + "\n");
    let store = plc_replica::store::Store::open(&place.url).await.unwrap();
    assert_eq!(store.source().await.unwrap().unwrap().cursor, cursor);
    let whole = run(&["fsck", "--database", &place.url]);
    assert_eq!(whole.code, Some(0), "{whole:?}");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_are_taken_in_and_only_new_ones_the_next_time() {
    let folder = TempDir::new().unwrap();
    let log = log(901, 8 * BUNDLE + 40);
    let lines = sequenced(&log);
    let write = |operations| {
        plcbundle::write(folder.path(), "https://plc.example", &lines[..operations], BUNDLE);
    };
    let server = FileServer::start(folder.path()).await;
    for place in places().await {
        write(5 * BUNDLE + 40);
        let ran = import(&place, &[path(folder.path())]);
        assert!(ran.out.contains(": 500 lines in 5 files, 500 operations accepted, 0"), "{ran:?}");
        assert_eq!(ran.errors, "");
        holds(&place, &log[..5 * BUNDLE], log[5 * BUNDLE - 1].seq).await;

        write(8 * BUNDLE);
        server.asked();
        let ran = import(&place, &[&server.url()]);
        let said =
            ": 300 lines in 3 files, 5 files imported before, 300 operations accepted, 0 known";
        assert!(ran.out.contains(said), "{ran:?}");
        let asked = server.asked();
        let expected = [
            "/index.json",
            "/plc_bundles.json",
            "/000006.jsonl.zst",
            "/000007.jsonl.zst",
            "/000008.jsonl.zst",
        ];
        assert_eq!(BTreeSet::from_iter(asked.iter().map(String::as_str)), BTreeSet::from(expected));
        assert_eq!(asked.len(), expected.len());
        holds(&place, &log[..8 * BUNDLE], log[8 * BUNDLE - 1].seq).await;

        let ran = import(&place, &[&server.url()]);
        assert!(ran.out.contains(": 0 lines in 0 files, 8 files imported before"), "{ran:?}");
        assert_eq!(ran.code, Some(0));
    }
}

/// The server of the format's own program has other paths.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_bundles_is_known() {
    let folder = TempDir::new().unwrap();
    let log = log(902, 2 * BUNDLE);
    plcbundle::write(folder.path(), "https://plc.directory/", &sequenced(&log), BUNDLE);
    fs::rename(folder.path().join("plc_bundles.json"), folder.path().join("index.json")).unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    for number in 1..=2 {
        let file = folder.path().join(format!("{number:06}.jsonl.zst"));
        fs::rename(file, folder.path().join(format!("data/{number}"))).unwrap();
    }
    let server = FileServer::start(folder.path()).await;
    let place = places().await.remove(0);
    let ran = import(&place, &[&format!("{}/", server.url())]);
    assert!(
        ran.errors.contains("made from https://plc.directory, and https://plc.example is what"),
        "{ran:?}"
    );
    holds(&place, &log, log.last().unwrap().seq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_in_a_repository_is_named() {
    let folder = TempDir::new().unwrap();
    let log = log(903, 4 * BUNDLE);
    plcbundle::write(folder.path(), "https://plc.example", &sequenced(&log), BUNDLE);
    let (third, index) =
        (folder.path().join("000003.jsonl.zst"), folder.path().join("plc_bundles.json"));
    let server = FileServer::start(folder.path()).await;
    let place = places().await.remove(0);

    // On its way: it is asked for again, and then not any more. The index comes first.
    server.fail([FileFault::Unavailable]);
    let ran = import(&place, &[&server.url()]);
    assert!(ran.errors.contains("answered 503; asked again after"), "{ran:?}");
    holds(&place, &log, log.last().unwrap().seq).await;

    let place = &places().await.remove(0);
    let whole = fs::read(&third).unwrap();
    let mut damaged = whole.clone();
    damaged[2000] ^= 1;
    fs::write(&third, damaged).unwrap();
    for archive in [path(folder.path()), &server.url()] {
        let ran = import(place, &[archive]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let said = "000003.jsonl.zst: is not what its index says: ";
        assert!(
            ran.errors.contains(said) && ran.errors.contains("nothing of it was taken"),
            "{ran:?}"
        );
        holds(place, &log[..2 * BUNDLE], log[2 * BUNDLE - 1].seq).await;
    }

    fs::remove_file(&third).unwrap();
    let ran = import(place, &[path(folder.path())]);
    assert!(
        ran.code == Some(2) && ran.errors.contains("000003.jsonl.zst: cannot be opened"),
        "{ran:?}"
    );
    let ran = import(place, &[&server.url()]);
    assert!(
        ran.code == Some(2) && ran.errors.contains("000003.jsonl.zst: the server answered 404"),
        "{ran:?}"
    );

    // Whoever changes a bundle and what is stated of it breaks the chain.
    let text = fs::read_to_string(&index).unwrap();
    let chain: serde_json::Value = serde_json::from_str(&text).unwrap();
    let of_second = |field: &str| chain["bundles"][1][field].as_str().unwrap().to_owned();
    for (what, found, said) in [
        (
            "content",
            of_second("content_hash"),
            "bundle 2: its hash is not that of its parent and its content",
        ),
        ("hash", of_second("hash"), "bundle 2: its hash is not"),
        ("version", "\"1.0\"".to_owned(), "its version is"),
        (
            "number",
            "\"bundle_number\":3".to_owned(),
            "bundle 9: it stands where bundle 3 has to be",
        ),
    ] {
        let other = match what {
            "version" => "\"2.0\"".to_owned(),
            "number" => "\"bundle_number\":9".to_owned(),
            _ => found.replace(|digit: char| digit.is_ascii_digit(), "0"),
        };
        fs::write(&index, text.replacen(&found, &other, 1)).unwrap();
        let ran = import(place, &[path(folder.path())]);
        assert!(ran.code == Some(2) && ran.errors.contains(said), "{what}: {ran:?}");
        assert!(
            ran.errors.contains("plc_bundles.json: cannot be relied on as an index"),
            "{ran:?}"
        );
    }
    let large = text.replacen("\"compressed_size\":", "\"compressed_size\":9999999", 1);
    fs::write(&index, large).unwrap();
    let ran = import(place, &[&server.url()]);
    let said = "of a file on the web 67108864 are read at most";
    assert!(ran.code == Some(2) && ran.errors.contains(said), "{ran:?}");

    fs::write(&index, text).unwrap();
    fs::write(&third, whole).unwrap();
    let ran = import(place, &[path(folder.path())]);
    assert!(ran.out.contains(": 200 lines in 2 files, 2 files imported before"), "{ran:?}");
    holds(place, &log, log.last().unwrap().seq).await;
}

/// A kill at some moment, and the same command again.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_is_begun_again_by_the_same_command() {
    let folder = TempDir::new().unwrap();
    let log = log(904, 60 * BUNDLE);
    plcbundle::write(folder.path(), "https://plc.example", &sequenced(&log), BUNDLE);
    for place in places().await {
        let store = plc_replica::store::Store::open(&place.url).await.unwrap();
        let cursor = async || store.source().await.unwrap().map_or(0, |source| source.cursor);
        let options = ["--upstream", "https://plc.example", "--database", &place.url];
        // On a server what a kill has left is waited for.
        let kills = if place.url.starts_with("postgres") { 1 } else { 3 };
        for _ in 0..kills {
            let before = cursor().await;
            let mut command = program(&[&["import", path(folder.path())][..], &options].concat());
            let mut import = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            while cursor().await == before && import.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            import.kill().unwrap();
            import.wait().unwrap();
        }
        let ran = import(&place, &[path(folder.path())]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        holds(&place, &log, log.last().unwrap().seq).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_on_the_web_is_read_while_it_comes() {
    let folder = TempDir::new().unwrap();
    let log = log(905, 2_000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    gzip.write_all(sequenced(&log).join("\n").as_bytes()).unwrap();
    fs::write(folder.path().join("log.jsonl.gz"), gzip.finish().unwrap()).unwrap();
    fs::write(folder.path().join("page.html"), "<html>").unwrap();
    let place = &places().await.remove(0);
    let server = FileServer::start(folder.path()).await;
    let url = format!("{}/log.jsonl.gz?of=today", server.url());
    server.fail([
        FileFault::Unavailable,
        FileFault::Cut(100_000),
        FileFault::Cut(0),
        FileFault::Cut(70_001),
    ]);
    let ran = import(place, &[&url]);
    assert!(
        ran.code == Some(0) && ran.errors.contains("after 170001 bytes; asked for the rest"),
        "{ran:?}"
    );
    assert_eq!(server.asked().len(), 5);
    holds(place, &log, 0).await;

    let place = &places().await.remove(0);
    let server = FileServer::start_without_ranges(folder.path()).await;
    server.fail([FileFault::Cut(100_000)]);
    let url = format!("{}/log.jsonl.gz", server.url());
    let ran = import(place, &[&url]);
    let said = "broke off after 100000 bytes";
    assert!(ran.code == Some(2) && ran.errors.contains(said), "{ran:?}");
    assert!(ran.errors.contains("the server does not send the rest of a file"), "{ran:?}");

    for (archive, said) in [
        (format!("{}/none.jsonl", server.url()), "/none.jsonl: the server answered 404"),
        (server.url(), ": the server answered 404"),
        ("http://".to_owned(), "is not a URL that can be asked"),
        ("https://user:secret@h:port/".to_owned(), "is not a URL that can be asked"),
        ("nowhere.jsonl".to_owned(), "nowhere.jsonl: cannot be opened"),
        ("no*where".to_owned(), "no*where: no file is of such a name"),
    ] {
        let ran = import(place, &[&archive]);
        assert!(ran.code == Some(2) && ran.errors.contains(said), "{archive}: {ran:?}");
        assert!(!ran.errors.contains("secret"), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_files_is_read_in_natural_order() {
    let folder = TempDir::new().unwrap();
    let log = log(906, 330);
    let lines = sequenced(&log);
    let file = |name: &str| folder.path().join(name);
    fs::write(file("export-1.jsonl"), lines[..110].join("\n")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    gzip.write_all(lines[110..220].join("\n").as_bytes()).unwrap();
    fs::write(file("export-2.jsonl.gz"), gzip.finish().unwrap()).unwrap();
    let rest = lines[220..].join("\n");
    fs::write(file("export-10.jsonl.zst"), zstd::encode_all(rest.as_bytes(), 3).unwrap()).unwrap();
    fs::write(file("README.txt"), "What these files are.\n").unwrap();
    let pattern = format!("{}/export-*", folder.path().display());
    for archive in [path(folder.path()), &pattern] {
        let place = places().await.remove(0);
        let ran = import(&place, &[archive]);
        assert!(ran.code == Some(0) && ran.out.contains(" 0 refused"), "{ran:?}");
        let left_out = "README.txt: there is no entry of a log in it; it is left out";
        assert_eq!(ran.errors.contains(left_out), archive != pattern, "{ran:?}");
        // Where there is no index nobody knows what is in the gap between two files.
        let first = log[0].seq;
        assert!(first > 1);
        holds(&place, &log, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_is_read_in_ranges_of_numbers() {
    let log: Vec<LogEntry> =
        log(907, 900).into_iter().map(|entry| LogEntry { seq: entry.seq * 4, ..entry }).collect();
    let (early, last) = (&log[..600], log.last().unwrap().seq);
    assert!(early.last().unwrap().seq > 10_000);
    for (first, second) in places().await.iter().zip(places().await) {
        let upstream = FakeUpstream::start(early.to_vec()).await;
        let replica = Running::start(&first.url, &upstream.url()).await;
        replica.live_at(early.last().unwrap().seq).await;
        let ran = import(&second, &[&replica.url()]);
        assert!(ran.out.contains(": 600 lines in 2 files, 600 operations accepted, 0"), "{ran:?}");
        holds(&second, early, early.last().unwrap().seq).await;

        upstream.append_all(log[600..].to_vec());
        replica.live_at(last).await;
        let ran = import(&second, &[&replica.url()]);
        assert!(ran.out.contains(", 300 operations accepted, "), "{ran:?}");
        holds(&second, &log, last).await;
        let ran = import(&second, &[&replica.url()]);
        assert!(ran.code == Some(0) && ran.out.contains(": 0 lines in 0 files, "), "{ran:?}");
        replica.end().await;
    }
}

/// Written by the format's own program (plcbundle 0.9.0-alpha.2, made to put 100 operations into a bundle), which
/// synced with a replica of ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_the_formats_own_program_is_read() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/plcbundle");
    let mut lines = String::new();
    for number in 1..=3 {
        let bundle = fs::read(repository.join(format!("{number:06}.jsonl.zst"))).unwrap();
        lines += std::str::from_utf8(&zstd::decode_all(&bundle[..]).unwrap()).unwrap();
    }
    for place in places().await {
        let ran = import(&place, &[path(&repository)]);
        assert!(ran.out.contains(": 300 lines in 3 files, 300 operations accepted, 0"), "{ran:?}");
        let exported = run(&["export", "--by-time", "--database", &place.url]);
        assert_eq!(exported.out, lines);
        let ran = import(&place, &[path(&repository)]);
        assert!(ran.out.contains(": 0 lines in 0 files, 3 files imported before"), "{ran:?}");
    }
}

/// Counts what it is asked.
#[derive(Default)]
pub struct Counting(pub AtomicUsize);

impl Verifier for Counting {
    fn find_signer(&self, keys: &[&str], signed: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        self.0.fetch_add(1, Ordering::Relaxed);
        PlainVerifier.find_signer(keys, signed)
    }
}

/// The lines of the export by time, in any order, and then the pages of the directory: numbers are given by CID.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_number_gets_it_from_pages_and_no_signature_is_checked_again() {
    let log = log(908, 3_000);
    let last = log.last().unwrap().seq;
    let mut shuffled: Vec<String> = log[..2_900].iter().map(LogEntry::timestamped).collect();
    shuffled.shuffle(&mut ChaCha8Rng::seed_from_u64(908));
    let folder = TempDir::new().unwrap();
    let dump = folder.path().join("legacy.jsonl");
    fs::write(&dump, shuffled.join("\n")).unwrap();
    for place in places().await {
        let upstream = FakeUpstream::start(log.clone()).await;
        let options = ["--upstream", &upstream.url(), "--database", &place.url];
        let ran = run(&[&["import", path(&dump)][..], &options].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let exported = run(&["export", "--by-time", "--database", &place.url]);
        assert_eq!(exported.out.lines().count(), 2_900);

        let counting = Arc::new(Counting::default());
        let verifier = Arc::clone(&counting);
        let replica = Running::start_verifying_with(&place.url, &upstream.url(), verifier).await;
        replica.live_at(last).await;
        assert_eq!(counting.0.load(Ordering::Relaxed), 100);
        replica.end().await;
        holds(&place, &log, last).await;
    }
}

/// A snapshot of ours, from its directory and from the web; and when a published range has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_in_and_only_new_files_the_next_time() {
    let log = log(909, 1_000);
    let folder = TempDir::new().unwrap();
    let server = FileServer::start(folder.path()).await;
    for (first, second) in places().await.iter().zip(places().await) {
        let published = TempDir::new_in(folder.path()).unwrap();
        let name = published.path().file_name().unwrap().to_str().unwrap().to_owned();
        let url = format!("{}/{name}", server.url());
        let upstream = FakeUpstream::start(log[..600].to_vec()).await;
        let replica = Running::start(&first.url, &upstream.url()).await;
        let publish = async |last: i64| {
            replica.live_at(last).await;
            let options = ["--numbers-per-file", "1000", "--database", &first.url];
            let ran = run(&[&["snapshot", path(published.path())][..], &options].concat());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            server.asked();
        };
        publish(log[599].seq).await;
        let ran = import(&second, &[path(published.path())]);
        assert!(ran.out.contains(": 600 lines in 5 files, 600 operations accepted, 0"), "{ran:?}");
        holds(&second, &log[..600], log[599].seq).await;

        upstream.append_all(log[600..].to_vec());
        publish(log[999].seq).await;
        let ran = import(&second, &[&url]);
        let said =
            ": 429 lines in 3 files, 4 files imported before, 400 operations accepted, 29 known";
        assert!(ran.out.contains(said), "{ran:?}");
        assert_eq!(server.asked().len(), 4);
        holds(&second, &log, log[999].seq).await;
        replica.end().await;
    }
}

/// What was written, what of it was lost, and what is no index.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_in_a_snapshot_is_named() {
    let log = log(910, 500);
    let [first, second] = [places().await.remove(0), places().await.remove(0)];
    let (folder, dump) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dump = dump.path().join("log.jsonl");
    fs::write(&dump, sequenced(&log).join("\n")).unwrap();
    import(&first, &[path(&dump)]);
    let options = ["--numbers-per-file", "1000", "--database", &first.url];
    let ran = run(&[&["snapshot", path(folder.path())][..], &options].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let mut files: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "zst"));
    files.sort();
    // Another file of the same lines is as good.
    let lines = |file: &Path| zstd::decode_all(&fs::read(file).unwrap()[..]).unwrap();
    let again = zstd::encode_all(&lines(&files[0])[..], 1).unwrap();
    fs::write(&files[0], again).unwrap();
    let server = FileServer::start(folder.path()).await;
    server.fail([FileFault::None, FileFault::Damaged]);

    let more = [&lines(&files[1])[..], b"{}\n"].concat();
    fs::write(&files[1], zstd::encode_all(&more[..], 1).unwrap()).unwrap();
    for archive in [path(folder.path()), &server.url()] {
        let ran = import(&second, &[archive]);
        let said = ".jsonl.zst: is not what its index says: there are more than ";
        assert!(ran.code == Some(2) && ran.errors.contains(said), "{ran:?}");
    }
    fs::remove_file(&files[1]).unwrap();
    let ran = import(&second, &[&server.url()]);
    assert!(ran.code == Some(2) && ran.errors.contains(".zst: the server answered 404"), "{ran:?}");
    fs::write(folder.path().join("index.json"), "{\"format\":\"plc-replica-snap").unwrap();
    let ran = import(&second, &[path(folder.path())]);
    let said = "index.json: cannot be relied on as an index: it is not JSON";
    assert!(ran.code == Some(2) && ran.errors.contains(said), "{ran:?}");
}

/// Of a file nobody says that it is whole: what it leaves out is for following to fetch.
#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_does_not_follow_a_file_that_leaves_something_out() {
    let mut log = log(911, 40);
    log.iter_mut().for_each(|entry| entry.seq /= 7);
    log[30..].iter_mut().for_each(|entry| entry.seq += 5_000);
    let folder = TempDir::new().unwrap();
    let [whole, excerpt] = ["whole.jsonl", "excerpt.jsonl"].map(|name| folder.path().join(name));
    fs::write(&whole, sequenced(&log[..30]).join("\n")).unwrap();
    fs::write(&excerpt, sequenced(&log[20..]).join("\n")).unwrap();
    for place in places().await {
        let ran = import(&place, &[path(&whole), path(&excerpt)]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        holds(&place, &log, 30).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_imported_while_numbers_are_taken_over() {
    let log = log(912, 8);
    let folder = TempDir::new().unwrap();
    let dump = folder.path().join("log.jsonl");
    fs::write(&dump, sequenced(&log).join("\n")).unwrap();
    for place in places().await {
        import(&place, &[path(&dump)]);
        let store = plc_replica::store::Store::open(&place.url).await.unwrap();
        let (lease, _) = store.follow("https://plc.example").await.unwrap();
        store.begin_renumbering(&lease, "https://other.example").await.unwrap();
        store.release(lease).await.unwrap();
        let ran = import(&place, &[path(&dump)]);
        let said = "the numbers of another upstream are being taken over (`renumber`)";
        assert!(ran.code == Some(2) && ran.errors.contains(said), "{ran:?}");
        assert_eq!(store.source().await.unwrap().unwrap().cursor, 0);
    }
}
