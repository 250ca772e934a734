//! `plc-replica audit` as a process, against upstreams that lie, lag and tell two stories.

use std::path::Path;
use std::process::Output;

use plc_replica::audit::{NewestOperations, Order, Pages, Peer, Sweep, SweepFile, SweepScope};
use plc_replica::store::Store;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use crate::audit::{Log, entries, tell};
use crate::process::program;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};

/// What came of a comparison.
#[derive(Debug)]
struct Compared {
    code: Option<i32>,
    /// Each difference.
    lines: Vec<Value>,
    /// One for each peer.
    summaries: Vec<Value>,
    errors: String,
}

impl Compared {
    /// (kind, subject) of the differences.
    fn found(&self) -> Vec<(&str, &str)> {
        assert!(self.lines.iter().all(|line| line["detail"] != ""), "{self:?}");
        let mut found: Vec<_> = self
            .lines
            .iter()
            .map(|line| (line["kind"].as_str().unwrap(), line["subject"].as_str().unwrap()))
            .collect();
        found.sort_unstable();
        found
    }
}

/// A store of this log, taken from a dump.
struct Ours {
    folder: TempDir,
}

impl Ours {
    fn of(log: &[LogEntry]) -> Ours {
        let ours = Ours { folder: TempDir::new().unwrap() };
        let dump = dump(log);
        let output = ours.run(&["import", dump.path().to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        ours
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.folder.path().join("plc.db").display())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        program(&[]).args(arguments).args(["--database", &self.url()]).output().unwrap()
    }

    /// Compares without a limit of requests.
    async fn audit(&self, arguments: &[&str]) -> Compared {
        let output = tokio::task::block_in_place(|| {
            let all = [&["audit", "--json", "--requests-per-minute", "0"], arguments].concat();
            self.run(&all)
        });
        let text = String::from_utf8(output.stdout).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let (summaries, lines): (Vec<_>, Vec<_>) =
            all.partition(|line| line["summary"].is_object());
        Compared {
            code: output.status.code(),
            lines,
            summaries: summaries.into_iter().map(|mut line| line["summary"].take()).collect(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The log as lines with sequence numbers.
fn dump(log: &[LogEntry]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let lines: Vec<String> = log.iter().map(LogEntry::sequenced).collect();
    std::fs::write(file.path(), lines.join("\n")).unwrap();
    file
}

/// The story, and its entries as an upstream tells them.
fn told() -> (Log, Vec<LogEntry>) {
    let told = tell();
    let log = entries(&told.story);
    (told, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lags_is_behind_and_not_different() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let upstream = FakeUpstream::start(log[..5].to_vec()).await;
    let url = upstream.url();
    for how in [&["--full"][..], &["--full", "--by-sequence"]] {
        let compared = ours.audit(&[how, &["--against", &url]].concat()).await;
        assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
        let summary = &compared.summaries[0];
        assert_eq!((&summary["operations"], &summary["tooNew"]), (&5.into(), &2.into()));
        assert_eq!(summary["lastWords"]["ours"], *log[6].created_at);
        assert_eq!(summary["lastWords"]["theirs"], *log[4].created_at);
    }
    let dump = dump(&log[..5]);
    let compared = ours.audit(&["--full", "--against", dump.path().to_str().unwrap()]).await;
    assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
    assert_eq!(compared.summaries[0]["tooNew"], 2);

    // By name: looked at again, and still behind.
    let compared = ours.audit(&[&log[6].did, "--against", &url]).await;
    assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
    assert_eq!(compared.summaries[0]["setAside"], 1);
    // What is older than their last word is missing all the same.
    upstream.delete(2);
    let compared = ours.audit(&["--full", "--against", &url]).await;
    assert_eq!(compared.code, Some(1));
    assert!(compared.found().contains(&("missing-there", &log[1].cid)), "{compared:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lags_is_behind_and_not_different() {
    let (_, log) = told();
    let ours = Ours::of(&log[..5]);
    let upstream = FakeUpstream::start(log.clone()).await;
    let url = upstream.url();
    let dump = dump(&log);
    for against in [&*url, dump.path().to_str().unwrap()] {
        let compared = ours.audit(&["--full", "--against", against]).await;
        assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
        let summary = &compared.summaries[0];
        assert_eq!((&summary["operations"], &summary["tooNew"]), (&5.into(), &2.into()));
        assert_eq!(summary["lastWords"]["ours"], *log[4].created_at);
    }
    let compared = ours.audit(&["--full", "--by-sequence", "--against", &url]).await;
    assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
    upstream.append(LogEntry { seq: 8, nullified: false, ..log[2].clone() });
    let compared = ours.audit(&[&log[5].did, "--against", &url]).await;
    assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
    assert_eq!(compared.summaries[0]["setAside"], 1);
}

/// A peer may give fewer lines than it is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_page_is_not_the_end() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let store = Store::open(&ours.url()).await.unwrap();
    assert_eq!(store.last_sequence().await.unwrap(), Some(7));
    let upstream = FakeUpstream::start(log.clone()).await;
    upstream.give_at_most(2);
    for how in [&["--full"][..], &["--full", "--by-sequence"]] {
        let compared = ours.audit(&[how, &["--against", &upstream.url()]].concat()).await;
        assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
        let summary = &compared.summaries[0];
        assert_eq!((&summary["operations"], &summary["identities"]), (&7.into(), &0.into()));
    }
}

/// Answers about the identities stay what they are, whatever becomes of the log: from now on only
/// the export follows it.
async fn keep_answers(upstream: &FakeUpstream, told: &Log) {
    for did in [&told.alice.did, &told.bob.did] {
        for path in ["", "/log/last", "/log/audit"] {
            let path = format!("/{did}{path}");
            let answer = reqwest::get(format!("{}{path}", upstream.url())).await.unwrap();
            upstream.answer(&path, 200, &answer.text().await.unwrap());
        }
    }
}

/// What a full comparison finds when only the export lies.
async fn export_lies(how: &[&str], lie: impl Fn(&FakeUpstream, &Log)) -> Compared {
    let (told, log) = told();
    let ours = Ours::of(&log);
    let upstream = FakeUpstream::start(log.clone()).await;
    keep_answers(&upstream, &told).await;
    let url = upstream.url();
    let how = [how, &["--full", "--against", &url]].concat();
    let honest = ours.audit(&how).await;
    assert_eq!((honest.code, honest.found()), (Some(0), vec![]), "{honest:?}");
    lie(&upstream, &told);
    let compared = ours.audit(&how).await;
    for line in &compared.lines {
        assert!(line["detail"].as_str().unwrap().starts_with("on their export: "), "{line}");
        assert!(line["ours"].as_array().is_some_and(|ours| !ours.is_empty()), "{line}");
        assert!(line["theirs"].is_array(), "{line}");
    }
    compared
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_numbers_on_the_export_alone_are_found() {
    let (_, log) = told();
    let compared = export_lies(&["--by-sequence"], |upstream, _| {
        upstream.rewind(5);
        upstream.append(LogEntry { seq: 6, ..log[6].clone() });
        upstream.append(LogEntry { seq: 7, ..log[5].clone() });
    })
    .await;
    let mut expected = [("other-sequence", &*log[5].cid), ("other-sequence", &*log[6].cid)];
    expected.sort_unstable();
    assert_eq!((compared.code, compared.found()), (Some(1), expected.to_vec()), "{compared:?}");
    let theirs = compared.lines.iter().map(|line| line["theirs"][0]["seq"].as_i64().unwrap());
    assert_eq!(theirs.sum::<i64>(), 13);
    assert_eq!(compared.summaries[0]["differences"]["other-sequence"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_the_export_alone_drops_is_found() {
    let (_, log) = told();
    for how in [&[][..], &["--by-sequence"]] {
        let compared = export_lies(how, |upstream, _| upstream.delete(2)).await;
        let expected = vec![("missing-there", &*log[1].cid)];
        assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_the_export_alone_changes_is_found() {
    let (_, log) = told();
    // Later and earlier than it was, both within what is compared.
    for other in [&log[5].created_at, &log[0].created_at] {
        let other = format!("{}7Z", &other[..other.len() - 2]);
        for how in [&[][..], &["--by-sequence"]] {
            let compared = export_lies(how, |upstream, _| {
                upstream.alter(4, |entry| entry.created_at.clone_from(&other));
            })
            .await;
            let expected = vec![("other-created-at", &*log[3].cid)];
            assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
            assert_eq!(compared.lines[0]["theirs"][0]["createdAt"], *other);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_that_the_export_alone_flips_is_found() {
    let (_, log) = told();
    let compared = export_lies(&[], |upstream, _| {
        upstream.alter(2, |entry| entry.nullified = true);
    })
    .await;
    let expected = vec![("other-nullified-flag", &*log[1].cid)];
    assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_the_export_alone_has_is_found() {
    let (_, log) = told();
    let at = &log[5].created_at;
    let mut other = tell();
    let bob = plc_testkit::builder::Told { cid: log[4].cid.clone(), ..other.bob.clone() };
    other.story.after(&bob).at(at).host("https://evil.example").accepted();
    let evil = LogEntry::from(other.story.log().last().unwrap());
    for how in [&[][..], &["--by-sequence"]] {
        let compared = export_lies(how, |upstream, _| {
            upstream.alter(6, |entry| {
                *entry = LogEntry { seq: 6, nullified: false, ..evil.clone() };
            });
        })
        .await;
        let expected = vec![("missing-here", &*evil.cid), ("missing-there", &*log[5].cid)];
        assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
        // Something else under the CID that we hold, and what is no operation at all.
        let compared = export_lies(how, |upstream, _| {
            upstream.alter(6, |entry| entry.operation.clone_from(&evil.operation));
            upstream.alter(2, |entry| entry.operation = r#"{"type":"news"}"#.into());
        })
        .await;
        let expected = vec![("does-not-verify", &*log[1].cid), ("other-bytes", &*log[5].cid)];
        assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
    }
}

/// A time that nobody's clock has come to is never newer than the last word of the other side.
#[tokio::test(flavor = "multi_thread")]
async fn what_they_date_into_the_future_is_found() {
    let (mut told, log) = told();
    let ours = Ours::of(&log);
    let bob = told.bob.clone();
    told.story.update(&bob).at("2099-02-01T00:00:00.123Z").accepted();
    let future = LogEntry::from(told.story.log().last().unwrap());
    for lines in [1000, 2] {
        let upstream = FakeUpstream::start(log.clone()).await;
        upstream.append(future.clone());
        upstream.give_at_most(lines);
        let url = upstream.url();
        let day = ["--since", "2024-01-01", "--until", "2024-01-02"];
        for how in [&["--full"][..], &["--full", "--by-sequence"], &day, &[&*bob.did]] {
            let compared = ours.audit(&[how, &["--against", &url]].concat()).await;
            let expected = vec![("missing-here", &*future.cid)];
            assert_eq!(
                (compared.code, compared.found()),
                (Some(1), expected),
                "{how:?} {compared:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_is_none_on_the_export_alone_is_found() {
    let (_, log) = told();
    for how in [&[][..], &["--by-sequence"]] {
        let compared = export_lies(how, |upstream, _| {
            upstream.alter(4, |entry| entry.created_at = "never".into());
        })
        .await;
        let expected = vec![("does-not-verify", &*log[3].cid)];
        assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
    }
}

/// Wherever in it a line has its place that is beyond what is compared.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_read_to_its_end() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let mut other = plc_testkit::builder::Story::seeded(77);
    other.create().accepted();
    let unknown = LogEntry { seq: 5, ..LogEntry::from(&other.log()[0]) };
    let restated = LogEntry {
        seq: 9_000_000_000,
        created_at: "2099-02-01T00:00:00.123Z".into(),
        ..log[0].clone()
    };
    let junk = format!("\"{}\"", "x".repeat(700 << 10));
    let mut lines = vec![restated.sequenced(), junk.clone(), junk.clone()];
    lines.extend(log[1..].iter().map(LogEntry::sequenced));
    lines.extend([junk.clone(), junk, unknown.sequenced()]);
    let dump = NamedTempFile::new().unwrap();
    std::fs::write(dump.path(), lines.join("\n")).unwrap();
    let place = dump.path().to_str().unwrap();
    for how in [&["--full"][..], &["--full", "--by-sequence"]] {
        let compared = ours.audit(&[how, &["--against", place]].concat()).await;
        let expected = vec![
            ("missing-here", &*unknown.cid),
            ("other-created-at", &*log[0].cid),
            ("other-sequence", &*log[0].cid),
        ];
        assert_eq!((compared.code, compared.found()), (Some(1), expected), "{how:?} {compared:?}");
        assert_eq!(compared.summaries[0]["unreadable"], 4);
    }
}

/// Lines that name no identity are counted, also when identities are asked for by name.
#[tokio::test(flavor = "multi_thread")]
async fn what_names_no_identity_is_counted() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let mut lines: Vec<String> = log.iter().map(LogEntry::sequenced).collect();
    lines[0] = format!("\u{feff}{}", lines[0]);
    lines.insert(3, r#"{"cid":"bafy","createdAt":"2024-01-01T00:00:00.000Z"}"#.into());
    lines.insert(5, "{".into());
    let dump = NamedTempFile::new().unwrap();
    std::fs::write(dump.path(), lines.join("\r\n")).unwrap();
    let place = dump.path().to_str().unwrap();
    for how in [&["--full"][..], &[&log[6].did]] {
        let compared = ours.audit(&[how, &["--against", place]].concat()).await;
        assert_eq!((compared.code, compared.found()), (Some(1), vec![]), "{how:?} {compared:?}");
        assert_eq!(compared.summaries[0]["unreadable"], 2);
    }
}

/// Compares the next stretch, as a process does that is then killed: what is left is the state.
async fn one_step(store: &Store, place: &str, sweep: Sweep) -> Sweep {
    let peer = Peer::new(place, 0, "test").unwrap();
    let words = NewestOperations::ask(store, &peer).await.unwrap();
    let mut pages = Pages::of(&peer).unwrap();
    let text = serde_json::to_string(&sweep).unwrap();
    let mut sweep: Sweep = serde_json::from_str(&text).unwrap();
    for _ in 0..100 {
        let before = sweep.clone();
        sweep.step(store, &mut pages, &words).await.unwrap();
        if (before.after, before.lines) != (sweep.after, sweep.lines) {
            break;
        }
    }
    sweep
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_gone_on_with_where_it_was_left() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let store = Store::open(&ours.url()).await.unwrap();
    // Each operation is in a block of its own, between lines that nobody can read.
    let junk = "x".repeat(700 << 10);
    let lines: Vec<String> =
        log.iter().flat_map(|entry| [junk.clone(), entry.sequenced(), junk.clone()]).collect();
    let dump = NamedTempFile::new().unwrap();
    std::fs::write(dump.path(), lines.join("\n")).unwrap();
    let place = dump.path().to_str().unwrap();
    for (order, until) in [(Order::Sequence, 7), (Order::Time, 1_800_000_000_000)] {
        let mut sweep = Sweep::new(order, 0, until);
        let mut steps = 0;
        while !sweep.is_done() {
            sweep = one_step(&store, place, sweep).await;
            steps += 1;
        }
        assert!(steps > 5, "{steps}");
        assert_eq!((sweep.compared, sweep.suspects.len()), (7, 0), "{order:?}");
        // A sweep by number ends with the last one.
        assert!([13, 14].contains(&sweep.unreadable), "{}", sweep.unreadable);
    }
    // What comes before the time that is asked for is not compared.
    let after = log[4].created_at.parse::<did_plc::Timestamp>().unwrap();
    let mut sweep = Sweep::new(Order::Time, after.millis(), 1_800_000_000_000);
    while !sweep.is_done() {
        sweep = one_step(&store, place, sweep).await;
    }
    assert_eq!((sweep.compared, sweep.suspects.len(), sweep.unreadable), (2, 0, 14));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_of_one_peer_and_of_what_was_asked() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let store = Store::open(&ours.url()).await.unwrap();
    let first = FakeUpstream::start(log.clone()).await;
    let second = FakeUpstream::start(log.clone()).await;
    let (first_url, second_url) = (first.url(), second.url());
    let path = ours.folder.path().join("state.json");
    let file = path.to_str().unwrap();
    let full = async |options: &[&str]| {
        let arguments = ["--full", "--by-sequence", "--state", file, "--against", &first_url];
        ours.audit(&[&arguments, options].concat()).await
    };

    // The first two of the first one were compared already.
    first.give_at_most(2);
    let asked = SweepScope { order: Order::Sequence, since: None, until: None };
    let begun = one_step(&store, &first_url, Sweep::new(Order::Sequence, 0, 7)).await;
    assert_eq!(begun.after, 2);
    SweepFile::open(Path::new(file)).unwrap().keep(&first_url, asked, &begun).unwrap();

    // Whoever asks for something else is told so, and nothing is lost.
    let other = ["--full", "--state", file, "--against", &second_url, "--against", &first_url];
    let other = ours.audit(&other).await;
    assert_eq!((other.code, other.summaries.len()), (Some(2), 0), "{other:?}");
    for part in [file, &*first_url, "a sweep by sequence number from the beginning", "remove"] {
        assert!(other.errors.contains(part), "{}", other.errors);
    }

    first.delete(1);
    let resumed = full(&["--against", &second_url]).await;
    assert_eq!((resumed.code, resumed.found()), (Some(0), vec![]), "{resumed:?}");
    assert_eq!(resumed.summaries[0]["operations"], 7);
    assert_eq!(resumed.summaries[1]["operations"], 7);
    assert!(!path.exists());
    // Once it has been reported, it begins anew.
    let anew = full(&[]).await;
    assert_eq!((anew.code, anew.found()), (Some(1), vec![("missing-there", &*log[0].cid)]));
    assert!(!path.exists());

    std::fs::write(file, "[]").unwrap();
    let damaged = full(&[]).await;
    assert_eq!(damaged.code, Some(2));
    assert!(damaged.errors.contains("not the state of a sweep"), "{}", damaged.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_nobody_can_read_are_counted_once() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let upstream = FakeUpstream::start(log.clone()).await;
    for (seq, lines) in [(3, 1000), (7, 1000), (3, 2), (6, 2)] {
        upstream.mend();
        upstream.give_at_most(lines);
        upstream.garble(seq, usize::MAX, "{\"did\"");
        let url = upstream.url();
        let compared = ours.audit(&["--full", "--by-sequence", "--against", &url]).await;
        // What is not there is asked for by name, and is in the audit log.
        let found = compared.found();
        assert_eq!(found, [("missing-there", &*log[seq as usize - 1].cid)], "{compared:?}");
        assert_eq!(compared.code, Some(1));
        assert_eq!(compared.summaries[0]["unreadable"], 1, "{seq} by {lines}: {compared:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_an_export_can_be_asked_by_name() {
    let (_, log) = told();
    let ours = Ours::of(&log);
    let upstream = FakeUpstream::start(log.clone()).await;
    for fault in [Fault::Status(404, None), Fault::WebPage] {
        upstream.mend();
        upstream.fail(Route::Export, usize::MAX, fault);
        let url = upstream.url();
        let named = [&*log[6].did, &*log[5].did, "--against", &url];
        let compared = ours.audit(&named).await;
        assert_eq!((compared.code, compared.found()), (Some(0), vec![]), "{compared:?}");
        upstream.delete(7);
        let compared = ours.audit(&named).await;
        let expected = vec![("missing-there", &*log[6].cid)];
        assert_eq!((compared.code, compared.found()), (Some(1), expected), "{compared:?}");
        upstream.append(log[6].clone());
    }
}
