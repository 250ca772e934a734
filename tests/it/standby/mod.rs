//! A primary and hot standbys of it, as servers of their own, and `serve` as a process that reads from the standbys:
//! what is answered while any of them comes and goes.

mod failures;
mod roles;
mod servers;
mod settings;
mod versions;
mod witness;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use plc_testkit::builder::{Story, Told};
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::postgres::{Client, Server};
use plc_testkit::telling::Telling;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::process::Served;

/// The name of the database.
const DATABASE: &str = "plc";
/// How far a read database may be behind here.
const MOST: &str = "1";

/// An upstream, and a primary for what it says.
struct Fleet {
    primary: Server,
    upstream: Arc<FakeUpstream>,
    told: Arc<Telling>,
}

impl Fleet {
    /// None where Postgres is not installed.
    async fn start() -> Option<Fleet> {
        let primary = Server::start()?;
        let create = format!("CREATE DATABASE {DATABASE}");
        Client::connect(&primary.url("postgres")).await.run(&create).await;
        let upstream = Arc::new(FakeUpstream::start([]).await);
        Some(Fleet { primary, upstream, told: Arc::default() })
    }

    /// A replica on the primary that reads from these.
    fn serve(&self, standbys: &[&Server]) -> Replica {
        Replica::start(&self.primary, standbys, &self.upstream.url(), &[])
    }

    /// Has the upstream say what a story has told from a place on.
    fn tell(&self, story: &Story, from: usize) {
        for generated in &story.log()[from..] {
            let entry = LogEntry::from(generated);
            self.upstream.append(entry.clone());
            self.told.note(&entry.did, &entry.cid, entry.seq);
        }
    }

    /// Has the upstream say something new of some identities all the time, until this is dropped.
    fn grow(&self, mut story: Story, identities: Vec<Told>) -> Growing {
        let stop = CancellationToken::new();
        let (stopped, upstream, told) =
            (stop.clone(), Arc::clone(&self.upstream), Arc::clone(&self.told));
        tokio::spawn(async move {
            for identity in identities.iter().cycle() {
                story.update(identity).accepted();
                let entry = LogEntry::from(story.log().last().unwrap());
                upstream.append(entry.clone());
                told.note(&entry.did, &entry.cid, entry.seq);
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = sleep(Duration::from_millis(30)) => {}
                }
            }
        });
        Growing { stop }
    }

    /// Identities of which all of this is told.
    fn begin(&self, story: &mut Story) -> Vec<Told> {
        let identities = (0..8).map(|_| story.create().accepted()).collect();
        self.tell(story, 0);
        identities
    }
}

/// An upstream that says something new.
struct Growing {
    stop: CancellationToken,
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The database on a server, as a metric and the log name it.
fn name(server: &Server) -> String {
    format!("{DATABASE} in {} (port 5432)", server.directory())
}

/// `serve`, with its metrics.
struct Replica {
    served: Served,
    metrics: SocketAddr,
}

impl Replica {
    fn start(
        primary: &Server,
        standbys: &[&Server],
        upstream: &str,
        environment: &[(&str, &str)],
    ) -> Replica {
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let standbys: Vec<String> = standbys.iter().map(|standby| standby.url(DATABASE)).collect();
        let (standbys, listen) = (standbys.join(","), metrics.to_string());
        let mut all = vec![("PLC_METRICS_LISTEN", &*listen), ("PLC_READ_LAG_SECONDS", MOST)];
        if !standbys.is_empty() {
            all.push(("PLC_READ_DATABASE", &standbys));
        }
        all.extend(environment);
        let served = Served::start_on(&primary.url(DATABASE), upstream, &all);
        Replica { served, metrics }
    }

    fn url(&self) -> String {
        format!("http://{}", self.served.address())
    }

    /// A metric of a database; none while it is not there.
    async fn metric(&self, name: &str, database: &str) -> Option<f64> {
        let answer = reqwest::get(format!("http://{}/metrics", self.metrics)).await.ok()?;
        let text = answer.text().await.ok()?;
        let start = format!("{name}{{database=\"{database}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start))?.parse().ok()
    }

    /// Waits until these are read from, or are not.
    async fn uses(&self, standbys: &[&Server], used: bool) {
        for standby in standbys {
            let what = format!("{} is in use: {used}", name(standby));
            let expected = f64::from(u8::from(used));
            let is = async || {
                let in_use = self.metric("plc_read_database_in_use", &name(standby)).await;
                in_use == Some(expected)
            };
            self.served.eventually(&what, is).await;
        }
    }

    /// Waits until another lookup was asked of a database.
    async fn is_read_from(&self, database: &str) {
        let reads = async || self.metric("plc_reads_total", database).await.unwrap_or_default();
        let before = reads().await;
        let more = async || reads().await > before;
        self.served.eventually(&format!("reads from {database}"), more).await;
    }
}
