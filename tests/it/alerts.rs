//! Each alert, provoked: a replica runs as a process of its own, what the alert is about is done to
//! it, and Prometheus' own tool says which alerts its metrics fire.
//!
//! Nobody waits for an hour here. What was scraped before is taken to have been so for an hour,
//! and what was scraped afterwards to go on as it did between two scrapes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use did_plc::Timestamp;
use futures::future::join_all;
use plc_testkit::builder::{Story, Told};
use plc_testkit::postgres::{Client, Server};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::connect_async;

use crate::follow::entries;
use crate::process::program;
use crate::skip::skipped;
use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};

/// The upstream sends pings all the time, and gauges are set every five seconds: whatever is this old
/// grows older, and what is younger is well.
const OLD: f64 = 10.0;
/// Between two pings of an upstream.
const PINGS: Duration = Duration::from_millis(250);
/// Between two scrapes from which a rate is taken, at least.
const SCRAPES: Duration = Duration::from_secs(5);
/// Long enough for a busy machine, on which the store's figures may come a minute after the start.
const PATIENCE: Duration = Duration::from_secs(90);
/// Nobody can make a library compute wrongly from outside. `alerts_test.yml` fires it with series that
/// are made up.
const OUT_OF_REACH: &str = "PlcSignatureDisagreement";
/// An upstream that always fails is asked again after so many minutes in the end, and not as often
/// as in the first seconds.
const MINUTES_BETWEEN_FAULTS: f64 = 1.0;

/// Series and their values; none of a replica that does not answer.
type Scrape = Option<BTreeMap<String, f64>>;

/// `serve` on a database of its own.
struct Replica {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
}

/// A port that nobody uses.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Replica {
    fn start(database: &Path, upstream: &str) -> Replica {
        Replica::start_with(database, upstream, &[])
    }

    /// Nothing is compared, and everything is read twice at once and not again, unless these settings say
    /// otherwise.
    fn start_with(database: &Path, upstream: &str, settings: &[(&str, &str)]) -> Replica {
        Replica::start_on(&format!("sqlite://{}", database.display()), upstream, settings)
    }

    /// The same on any database.
    fn start_on(database: &str, upstream: &str, settings: &[(&str, &str)]) -> Replica {
        let (address, metrics) = (free(), free());
        let child = program(&[])
            .args(["serve", "--upstream-requests-per-minute", "0", "--upstream", upstream])
            .args(["--listen", &address.to_string(), "--metrics-listen", &metrics.to_string()])
            .args(["--database", database])
            .env("PLC_AUDIT_REQUESTS_PER_MINUTE", "0")
            .env("PLC_SECOND_READING_MINUTES", "0")
            .env("PLC_REREADING_DAYS", "0")
            .envs(settings.iter().copied())
            .env("PLC_LOG", "off")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Replica { child, address, metrics }
    }

    async fn scrape(&self) -> Scrape {
        let answer = reqwest::get(format!("http://{}/metrics", self.metrics)).await.ok()?;
        let text = answer.text().await.unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let parse = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        Some(samples.map(parse).collect())
    }

    /// Scrapes until a series has a value as it should be.
    async fn until(&self, series: &str, is: impl Fn(f64) -> bool) -> Scrape {
        let begun = Instant::now();
        loop {
            let scrape = self.scrape().await;
            if scrape.as_ref().is_some_and(|scrape| scrape.get(series).is_some_and(|of| is(*of))) {
                return scrape;
            }
            assert!(begun.elapsed() < PATIENCE, "{series}: {scrape:#?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Scrapes when this number is committed and all is well.
    async fn well(&self, sequence: i64) -> Scrape {
        self.until("plc_read_twice_cursor", |cursor| cursor == sequence as f64).await;
        self.follows(sequence).await
    }

    /// Scrapes when this number is committed.
    async fn follows(&self, sequence: i64) -> Scrape {
        self.until("plc_cursor", |cursor| cursor == sequence as f64).await;
        self.until("plc_caught_up", |caught_up| caught_up == 1.0).await;
        // One that was started again has caught up long ago, and has not heard anything yet.
        self.until("plc_lag_seconds", |seconds| seconds < OLD).await;
        self.until("plc_store_operations", |operations| operations > 0.0).await
    }

    async fn get(&self, path: &str) -> u16 {
        reqwest::get(format!("http://{}{path}", self.address)).await.unwrap().status().as_u16()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was scraped before something went wrong, and twice afterwards.
struct Provoked {
    alerts: &'static [&'static str],
    before: Scrape,
    after: [(Instant, Scrape); 2],
}

impl Provoked {
    /// Scrapes twice from now on.
    async fn now(replica: &Replica, alerts: &'static [&'static str], before: Scrape) -> Provoked {
        let first = (Instant::now(), replica.scrape().await);
        Provoked::since(replica, alerts, before, first).await
    }

    /// Scrapes once more, some seconds after the first scrape, and when what grows has been seen to.
    async fn since(
        replica: &Replica,
        alerts: &'static [&'static str],
        before: Scrape,
        first: (Instant, Scrape),
    ) -> Provoked {
        sleep(SCRAPES.saturating_sub(first.0.elapsed())).await;
        for (alert, gauge) in [
            ("PlcUpstreamSilent", "plc_upstream_silence_seconds"),
            ("PlcReplicaLagging", "plc_lag_seconds"),
        ] {
            if alerts.contains(&alert) {
                replica.until(gauge, |seconds| seconds > OLD).await;
            }
        }
        let second = (Instant::now(), replica.scrape().await);
        Provoked { alerts, before, after: [first, second] }
    }

    /// As a test of promtool: an hour of what was before, an hour and a half of what came of it.
    fn write(&self, out: &mut String) {
        let [(from, first), (to, second)] = &self.after;
        let minutes = (*to - *from).as_secs_f64() / 60.0;
        out.push_str("  - interval: 1m\n    input_series:\n");
        let up = |scrape: &Scrape| u8::from(scrape.is_some());
        let (before, after) = (up(&self.before), up(second));
        writeln!(out, "      - {{ series: 'up{{instance=\"a\", job=\"plc-replica\"}}', values: '{before}x59 {after}x90' }}").unwrap();
        let none = BTreeMap::new();
        let [before, first, second] =
            [&self.before, first, second].map(|scrape| scrape.as_ref().unwrap_or(&none));
        let all: BTreeMap<&String, ()> =
            before.keys().chain(second.keys()).map(|series| (series, ())).collect();
        for series in all.into_keys() {
            // So many values are left out; and of a value, so many more follow.
            let was = before.get(series).map_or("_x60".to_owned(), |value| format!("{value}x59"));
            let is = second.get(series).map_or("_x90".to_owned(), |value| {
                format!("{value}{:+}x90", each_minute(series, first.get(series), *value, minutes))
            });
            let series = match series.strip_suffix('}') {
                Some(labelled) => format!("{labelled},instance=\"a\",job=\"plc-replica\"}}"),
                None => format!("{series}{{instance=\"a\",job=\"plc-replica\"}}"),
            };
            writeln!(out, "      - {{ series: '{series}', values: '{was} {is}' }}").unwrap();
        }
        let expression = "count by (alertname) (ALERTS{alertstate=\"firing\"}) > bool 0";
        writeln!(out, "    promql_expr_test:").unwrap();
        writeln!(out, "      - {{ expr: '{expression}', eval_time: 59m }}").unwrap();
        writeln!(out, "      - expr: '{expression}'\n        eval_time: 110m").unwrap();
        writeln!(out, "        exp_samples:").unwrap();
        for alert in self.alerts {
            writeln!(out, "          - {{ labels: '{{alertname=\"{alert}\"}}', value: 1 }}")
                .unwrap();
        }
    }
}

/// By how much a series goes on to rise each minute.
fn each_minute(series: &str, first: Option<&f64>, second: f64, minutes: f64) -> f64 {
    let name = series.split('{').next().unwrap();
    let counts = ["_total", "_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end));
    let rise = second - first.copied().unwrap_or(0.0);
    match name {
        "plc_upstream_faults_total" => (rise / minutes).min(1.0 / MINUTES_BETWEEN_FAULTS),
        _ if counts => rise / minutes,
        "plc_lag_seconds" | "plc_upstream_silence_seconds" if second > OLD => rise / minutes,
        _ => 0.0,
    }
}

/// A log of three identities, and an upstream that has it.
async fn begin(folder: &TempDir) -> (Story, FakeUpstream, Replica) {
    let mut story = Story::seeded(41);
    for _ in 0..3 {
        story.create().accepted();
    }
    let upstream = FakeUpstream::start(entries(&story)).await;
    upstream.ping_streams_every(PINGS);
    let replica = Replica::start(&folder.path().join("plc.db"), &upstream.url());
    (story, upstream, replica)
}

fn last(story: &Story) -> LogEntry {
    story.log().last().unwrap().into()
}

async fn the_replica_ends() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (_, _upstream, mut replica) = begin(&folder).await;
    let before = replica.well(3).await;
    replica.child.kill().unwrap();
    replica.child.wait().unwrap();
    Provoked::now(&replica, &["PlcReplicaDown"], before).await
}

async fn a_row_is_damaged() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (mut story, upstream, replica) = begin(&folder).await;
    replica.well(3).await;
    drop(replica);
    let database = folder.path().join("plc.db");
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.execute("UPDATE operations SET operation = x'0102' WHERE sequence = 1", []).unwrap();
    let replica = Replica::start(&database, &upstream.url());
    let before = replica.well(3).await;
    // The identity moves on, so that its chain has to be read.
    let damaged = story.log()[0].did.clone();
    let identity = Told {
        did: damaged.clone(),
        cid: story.log()[0].cid.clone(),
        created_at: story.log()[0].created_at.parse().unwrap(),
    };
    story.update(&identity).accepted();
    upstream.append(last(&story));
    let first =
        (Instant::now(), replica.until("plc_store_damaged", |damaged| damaged == 1.0).await);
    for _ in 0..20 {
        assert_eq!(replica.get(&format!("/{damaged}")).await, 500);
    }
    let alerts = &[
        "PlcIngestStuck",
        "PlcReplicaLagging",
        "PlcServerErrors",
        "PlcStoreDamaged",
        "PlcUpstreamSilent",
    ];
    Provoked::since(&replica, alerts, before, first).await
}

async fn the_upstream_is_gone() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (_, mut upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    upstream.stop().await;
    sleep(Duration::from_secs(2)).await;
    let alerts = &["PlcReplicaLagging", "PlcUpstreamFaults", "PlcUpstreamSilent"];
    Provoked::now(&replica, alerts, before).await
}

async fn the_second_of_two_upstreams_is_gone() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (_story, upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    drop(replica);
    let gone = format!("http://{}", free());
    let both = format!("{},{gone}", upstream.url());
    let replica = Replica::start(&folder.path().join("plc.db"), &both);
    replica.follows(3).await;
    let away = format!("plc_upstream_state{{upstream=\"{gone}\",state=\"away\"}}");
    replica.until(&away, |away| away == 1.0).await;
    Provoked::now(&replica, &["PlcUpstreamNotWell"], before).await
}

async fn the_database_takes_no_writes() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (mut story, upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    let connection = rusqlite::Connection::open(folder.path().join("plc.db")).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    story.create().accepted();
    upstream.append(last(&story));
    replica.until("plc_lag_operations", |lag| lag == 1.0).await;
    let alerts = &["PlcIngestStuck", "PlcReplicaLagging", "PlcUpstreamSilent"];
    Provoked::now(&replica, alerts, before).await
}

async fn an_operation_is_forged() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (mut story, upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    story.create().forged_signature().refused("signature-invalid");
    upstream.append(last(&story));
    let refused = "plc_operations_refused_total{kind=\"signature-invalid\"}";
    // It is asked about again, and read a second time: what is refused once more is counted once more.
    replica.until(refused, |refused| refused >= 1.0).await;
    Provoked::now(&replica, &["PlcOperationsRefused"], before).await
}

async fn the_upstream_tells_another_story() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (story, upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    let mut told_again = last(&story);
    told_again.seq = 4;
    told_again.created_at = "2024-06-01T00:00:00.000Z".to_owned();
    upstream.append(told_again);
    replica.until("plc_store_open_divergences", |open| open > 0.0).await;
    Provoked::now(&replica, &["PlcDivergenceNew", "PlcDivergenceOpen"], before).await
}

async fn more_changes_than_can_be_compared() -> Provoked {
    let folder = TempDir::new().unwrap();
    let mut story = Story::seeded(42);
    for _ in 0..3 {
        story.create().accepted();
    }
    let upstream = FakeUpstream::start(entries(&story)).await;
    upstream.ping_streams_every(PINGS);
    let settings = [("PLC_AUDIT_REQUESTS_PER_MINUTE", "60")];
    let replica = Replica::start_with(&folder.path().join("plc.db"), &upstream.url(), &settings);
    let before = replica.well(3).await;
    // Nothing can be compared with an upstream that does not answer for its identities.
    upstream.fail(Route::Identity, usize::MAX, Fault::Status(500, None));
    let now = Timestamp::from(SystemTime::now()).to_string();
    for _ in 0..200 {
        story.create().at(&now).accepted();
    }
    upstream.append_all(story.log()[3..].iter().map(LogEntry::from));
    replica.until("plc_audit_waiting", |waiting| waiting > 150.0).await;
    Provoked::now(&replica, &["PlcAuditBehind"], before).await
}

/// As far as anybody can tell who reads nothing a second time.
async fn nothing_is_read_twice() -> Provoked {
    let folder = TempDir::new().unwrap();
    let mut story = Story::seeded(43);
    story.create().accepted();
    let upstream = FakeUpstream::start(entries(&story)).await;
    upstream.ping_streams_every(PINGS);
    let settings = [("PLC_SECOND_READING_MINUTES", "36500")];
    let replica = Replica::start_with(&folder.path().join("plc.db"), &upstream.url(), &settings);
    let before = replica.follows(1).await;
    Provoked::now(&replica, &["PlcSecondReadingBehind"], before).await
}

async fn the_upstream_answers_slowly() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (_, upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    upstream.fail(Route::Identity, usize::MAX, Fault::Silence);
    let first = (Instant::now(), replica.scrape().await);
    // Identities that are not here are asked for there.
    let unknown = ["a", "b", "c"].map(|letter| format!("/did:plc:{}", letter.repeat(24)));
    join_all(unknown.iter().map(|path| replica.get(path))).await;
    Provoked::since(&replica, &["PlcSlowAnswers"], before, first).await
}

async fn clients_do_not_read_their_stream() -> Provoked {
    let folder = TempDir::new().unwrap();
    let (mut story, upstream, replica) = begin(&folder).await;
    let before = replica.well(3).await;
    let url = format!("ws://{}/export/stream", replica.address);
    let clients = join_all((0..8).map(|_| connect_async(&url))).await;
    assert!(clients.iter().all(Result::is_ok));
    let first = (Instant::now(), replica.scrape().await);
    let now = Timestamp::from(SystemTime::now()).to_string();
    // More than the system keeps for a client that does not read. Writing so much takes seconds, in
    // which the other replicas are not kept waiting.
    let writing = tokio::task::spawn_blocking(move || {
        for _ in 0..120 {
            story.create().also_known_as([&*"long ".repeat(20_000)]).at(&now).accepted();
        }
        story
    });
    let story = writing.await.unwrap();
    upstream.append_all(story.log()[3..].iter().map(LogEntry::from));
    let ended = "plc_stream_ended_total{reason=\"too-slow\"}";
    replica.until(ended, |ended| ended == 8.0).await;
    Provoked::since(&replica, &["PlcStreamClientsTooSlow"], before, first).await
}

/// None where Postgres is not installed.
async fn a_read_database_is_gone() -> Option<Provoked> {
    let primary = Server::start()?;
    Client::connect(&primary.url("postgres")).await.run("CREATE DATABASE plc").await;
    let standby = primary.standby();
    let mut story = Story::seeded(44);
    story.create().accepted();
    let upstream = FakeUpstream::start(entries(&story)).await;
    upstream.ping_streams_every(PINGS);
    let settings = [("PLC_READ_DATABASE", &*standby.url("plc"))];
    let replica = Replica::start_on(&primary.url("plc"), &upstream.url(), &settings);
    let name = format!("plc in {} (port 5432)", standby.directory());
    let in_use = format!("plc_read_database_in_use{{database=\"{name}\"}}");
    replica.until(&in_use, |in_use| in_use == 1.0).await;
    let before = replica.well(1).await;
    standby.kill();
    replica.until(&in_use, |in_use| in_use == 0.0).await;
    Some(Provoked::now(&replica, &["PlcReadDatabaseLeftOut"], before).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_fires_when_its_cause_is_there() {
    if Command::new("promtool").arg("--version").output().is_err() {
        skipped("promtool", "there is no promtool here");
        return;
    }
    // All at once: each waits most of the time.
    let (provoked, of_standbys): ([Provoked; 11], _) = tokio::join!(
        async {
            tokio::join!(
                the_replica_ends(),
                a_row_is_damaged(),
                the_upstream_is_gone(),
                the_second_of_two_upstreams_is_gone(),
                the_database_takes_no_writes(),
                an_operation_is_forged(),
                the_upstream_tells_another_story(),
                more_changes_than_can_be_compared(),
                nothing_is_read_twice(),
                the_upstream_answers_slowly(),
                clients_do_not_read_their_stream(),
            )
            .into()
        },
        a_read_database_is_gone(),
    );
    let without_postgres = of_standbys.is_none();
    let provoked: Vec<Provoked> = provoked.into_iter().chain(of_standbys).collect();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/prometheus/alerts.yml");
    let text = std::fs::read_to_string(&rules).unwrap();
    for alert in text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let is_provoked = provoked.iter().any(|provoked| provoked.alerts.contains(&alert));
        let is_out_of_reach =
            alert == OUT_OF_REACH || without_postgres && alert == "PlcReadDatabaseLeftOut";
        assert!(is_provoked != is_out_of_reach, "nothing here provokes {alert}");
    }
    let mut test =
        format!("rule_files: ['{}']\nevaluation_interval: 1m\ntests:\n", rules.display());
    provoked.iter().for_each(|provoked| provoked.write(&mut test));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("provoked.yml");
    std::fs::write(&file, &test).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{test}");
}
