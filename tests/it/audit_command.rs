//! `plc-replica audit` as a process, against upstreams that lie, lag and tell two stories.

use std::process::Output;

use plc_replica::store::Store;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use crate::audit::{Log, entries, tell};
use crate::fake_upstream::{FakeUpstream, LogEntry};

/// What came of a comparison.
#[derive(Debug)]
struct Compared {
    code: Option<i32>,
    /// Each difference.
    lines: Vec<Value>,
    /// One for each peer.
    summaries: Vec<Value>,
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
        std::process::Command::new(env!("CARGO_BIN_EXE_plc-replica"))
            .args(arguments)
            .args(["--database", &self.url()])
            .output()
            .unwrap()
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
