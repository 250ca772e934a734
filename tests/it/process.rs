//! The program as a process of its own: a command that is run to its end, and `serve`, whose log is kept.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub errors: String,
}

/// Runs a command to its end, with no settings but those that are given.
pub fn run(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plc-replica"));
    for name in ["DATABASE_URL", "PLC_UPSTREAM", "PLC_CONFIG", "PLC_LISTEN", "PLC_LOG"] {
        command.env_remove(name);
    }
    let output = tokio::task::block_in_place(|| command.args(arguments).output().unwrap());
    let [out, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Ran { code: output.status.code(), out, errors }
}

/// A replica that runs until it is ended or dropped.
pub struct Served {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Served {
    /// Follows an upstream into a database in a folder, with these variables in its environment.
    pub fn start(folder: &Path, upstream: &str, environment: &[(&str, &str)]) -> Served {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = folder.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_plc-replica"))
            .args(["serve", "--upstream", upstream, "--upstream-requests-per-minute", "0"])
            .args(["--audit-requests-per-minute", "0", "--listen", &address.to_string()])
            .args(["--database", &format!("sqlite://{}", folder.join("plc.db").display())])
            .env_remove("PLC_CONFIG")
            .envs(environment.iter().copied())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Served { child, address, log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Asks it for a path; the status.
    pub async fn get(&self, path: &str) -> u16 {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.unwrap();
        answer.status().as_u16()
    }

    /// Waits until this number is committed.
    pub async fn reaches(&self, sequence: i64) {
        let health = format!("http://{}/_health", self.address);
        self.eventually(&format!("number {sequence}"), async || {
            let Ok(answer) = reqwest::get(&health).await else { return false };
            let health: serde_json::Value =
                serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            health["sequence"].as_i64() >= Some(sequence)
        })
        .await;
    }

    /// Waits until something is so.
    pub async fn eventually(&self, what: &str, is: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !is().await {
            assert!(begun.elapsed() < PATIENCE, "{what}: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it in order, as an operator does; what it has logged.
    pub fn end(mut self) -> String {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "{ended}: {}", self.log());
        self.log()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
