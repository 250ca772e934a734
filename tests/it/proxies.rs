//! What `ops/` sets up before a replica, run by the programs that it is for.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry};
use plc_testkit::nginx;
use reqwest::{Client, Response};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::connect_async;

use crate::process::{Running, Served};
use crate::skip::skipped;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy that runs until it is dropped.
struct Proxy {
    running: Running,
    address: SocketAddr,
    client: Client,
    _folder: TempDir,
}

impl Proxy {
    fn start(command: Command, address: SocketAddr, folder: TempDir) -> Proxy {
        // As a browser or a CDN does, it remembers nothing by itself.
        let client = Client::builder().timeout(PATIENCE).build().unwrap();
        Proxy { running: Running::start(command), address, client, _folder: folder }
    }

    /// nginx with the configuration of `ops/`, without TLS; none where it is not installed.
    fn nginx(replica: SocketAddr) -> Option<Proxy> {
        let (folder, address) = (TempDir::new().unwrap(), free());
        let at = |name: &str| folder.path().join(name).display().to_string();
        let without_tls = |line: &&str| !line.contains("ssl_") && !line.contains("listen [::]");
        let site: Vec<String> = ops("nginx.conf")
            .lines()
            .filter(without_tls)
            .map(|line| {
                line.replace("listen 443 ssl", &format!("listen {address}"))
                    .replace("127.0.0.1:2582", &replica.to_string())
                    .replace("/var/cache/nginx/plc", &at("cache"))
            })
            .collect();
        let mut command = installed("nginx")?;
        command.args(nginx::arguments(&site.join("\n"), folder.path()).unwrap());
        Some(Proxy::start(command, address, folder))
    }

    /// Caddy before several replicas, likewise.
    fn caddy(replicas: &[SocketAddr]) -> Option<Proxy> {
        let (folder, address) = (TempDir::new().unwrap(), free());
        let replicas: Vec<String> = replicas.iter().map(SocketAddr::to_string).collect();
        let site = ops("Caddyfile")
            .replace("plc.example.com {", &format!("http://{address} {{"))
            .replace("127.0.0.1:2582", &replicas.join(" "))
            .replace("/_health", "/_ready")
            .replace("health_interval 10s", "health_interval 200ms");
        let file = folder.path().join("Caddyfile");
        std::fs::write(&file, format!("{{\n\tadmin off\n\tauto_https off\n}}\n{site}")).unwrap();
        let mut command = installed("caddy")?;
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
        command.env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path());
        Some(Proxy::start(command, address, folder))
    }

    /// Asks for a path with these headers, as soon as it listens.
    async fn get_with(&self, path: &str, headers: &[(&'static str, &str)]) -> Response {
        let ask = async || {
            let mut request = self.client.get(format!("http://{}{path}", self.address));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.send().await
        };
        for _ in 0..600 {
            match ask().await {
                Err(error) if error.is_connect() => sleep(Duration::from_millis(50)).await,
                answer => return answer.unwrap(),
            }
        }
        panic!("it does not listen: {}", self.running.log());
    }

    async fn get(&self, path: &str) -> Response {
        self.get_with(path, &[]).await
    }

    /// The next message of a stream through it, once `then` was done.
    async fn streams(&self, then: impl FnOnce()) -> String {
        let url = format!("ws://{}/export/stream", self.address);
        let (mut stream, _) = connect_async(url).await.unwrap();
        then();
        let next = async {
            loop {
                let message = stream.next().await.unwrap().unwrap();
                if message.is_text() {
                    return message.into_text().unwrap().to_string();
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap()
    }
}

fn ops(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn installed(program: &str) -> Option<Command> {
    if Command::new(program).arg("version").output().is_ok() {
        return Some(Command::new(program));
    }
    skipped(program, &format!("there is no {program} here"));
    None
}

fn header(answer: &Response, name: &str) -> String {
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_what_it_may_keep_and_no_longer() {
    let mut story = Story::seeded(71);
    let alice = story.create().accepted();
    let bob = story.create().accepted();
    let upstream = FakeUpstream::start(story.log().iter().map(LogEntry::from)).await;
    let folder = TempDir::new().unwrap();
    let caching = [("PLC_CACHE_SECONDS", "2"), ("PLC_TRUSTED_PROXIES", "127.0.0.1")];
    let replica = Served::start(folder.path(), &upstream.url(), &caching);
    replica.reaches(2).await;
    let Some(nginx) = Proxy::nginx(replica.address()) else { return };

    let path = format!("/{}", alice.did);
    let first = nginx.get(&path).await;
    assert_eq!(header(&first, "plc-cache"), "MISS", "{}", nginx.running.log());
    let kept = "public, max-age=2, stale-while-revalidate=2, stale-if-error=86400";
    assert_eq!(header(&first, "cache-control"), kept);
    let (etag, as_of) = (header(&first, "etag"), header(&first, "plc-as-of"));
    let before = first.text().await.unwrap();
    let again = nginx.get(&path).await;
    assert_eq!((again.status().as_u16(), header(&again, "plc-as-of")), (200, as_of));
    assert_ne!(header(&again, "plc-cache"), "MISS");
    assert_eq!(again.text().await.unwrap(), before);
    let known = nginx.get_with(&path, &[("if-none-match", &etag)]).await;
    assert_eq!(known.status(), 304);

    story.update(&alice).handle("new.example").accepted();
    let update = LogEntry::from(&story.log()[2]);
    let message = nginx.streams(|| upstream.append(update.clone())).await;
    assert!(message.contains(&update.cid), "{message}");
    // Who asks for the present has it at once.
    let waits = nginx.get(&format!("{path}?cid={}", update.cid)).await;
    assert!(waits.text().await.unwrap().contains("new.example"));
    let present = nginx.get_with(&path, &[("cache-control", "no-cache")]).await;
    assert_eq!(header(&present, "plc-cache"), "BYPASS");
    assert!(present.text().await.unwrap().contains("new.example"));
    let after = nginx.get(&path).await;
    assert!(after.text().await.unwrap().contains("new.example"));

    // What was asked for before is there while the replica is not, and nothing else.
    let log = replica.end();
    sleep(Duration::from_secs(5)).await;
    let stale = nginx.get(&path).await;
    assert_eq!(
        (stale.status().as_u16(), header(&stale, "plc-cache").as_str()),
        (200, "STALE"),
        "{log}"
    );
    assert!(stale.text().await.unwrap().contains("new.example"));
    assert_eq!(nginx.get(&format!("/{}", bob.did)).await.status(), 502);
    upstream.withhold();
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_nothing_where_it_is_to_ask_every_time() {
    let mut story = Story::seeded(72);
    let alice = story.create().accepted();
    let upstream = FakeUpstream::start(story.log().iter().map(LogEntry::from)).await;
    let folder = TempDir::new().unwrap();
    let replica = Served::start(folder.path(), &upstream.url(), &[]);
    replica.reaches(1).await;
    let Some(nginx) = Proxy::nginx(replica.address()) else { return };
    for _ in 0..3 {
        let answer = nginx.get(&format!("/{}", alice.did)).await;
        assert_eq!(header(&answer, "cache-control"), "public, no-cache");
        assert_eq!(header(&answer, "plc-cache"), "MISS");
        assert_eq!(answer.status(), 200);
    }
    story.update(&alice).handle("new.example").accepted();
    upstream.append(LogEntry::from(&story.log()[1]));
    replica.reaches(2).await;
    let answer = nginx.get(&format!("/{}", alice.did)).await;
    assert!(answer.text().await.unwrap().contains("new.example"));
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_goes_to_the_replica_that_is_there() {
    let mut story = Story::seeded(73);
    let alice = story.create().accepted();
    let upstream = FakeUpstream::start(story.log().iter().map(LogEntry::from)).await;
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [first, second] = [0, 1].map(|at: usize| {
        Served::start(folders[at].path(), &upstream.url(), &[("PLC_TRUSTED_PROXIES", "127.0.0.1")])
    });
    first.reaches(1).await;
    second.reaches(1).await;
    let Some(caddy) = Proxy::caddy(&[first.address(), second.address()]) else { return };
    let path = format!("/{}", alice.did);
    assert_eq!(caddy.get(&path).await.status(), 200, "{}", caddy.running.log());
    story.update(&alice).accepted();
    let update = LogEntry::from(&story.log()[1]);
    let message = caddy.streams(|| upstream.append(update.clone())).await;
    assert!(message.contains(&update.cid), "{message}");
    drop(first);
    for _ in 0..20 {
        assert_eq!(caddy.get(&path).await.status(), 200, "{}", caddy.running.log());
        sleep(Duration::from_millis(50)).await;
    }
}
