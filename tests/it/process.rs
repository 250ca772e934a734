//! The program as a process of its own: a command that is run to its end, one that is ended with a value, and
//! `serve`, whose log is kept.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use tokio::time::sleep;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub errors: String,
}

impl Ran {
    /// All that it said.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.errors)
    }
}

/// The program with these arguments, and no settings but those that are given.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plc-replica"));
    without_settings(&mut command);
    command.args(arguments);
    command
}

/// Has a command not see what is set here.
pub fn without_settings(command: &mut Command) {
    let settings = |name: &String| name == "DATABASE_URL" || name.starts_with("PLC_");
    std::env::vars().map(|(name, _)| name).filter(settings).for_each(|name| {
        command.env_remove(name);
    });
}

/// `serve` as its user runs it, but that it may ask as often as it likes.
pub fn serve(database: &str, upstream: &str) -> Command {
    let mut command = program(&["serve", "--upstream-requests-per-minute", "0"]);
    command.args(["--audit-requests-per-minute", "0"]);
    command.args(["--database", database, "--upstream", upstream]);
    command
}

/// Runs a command to its end.
pub fn run(arguments: &[&str]) -> Ran {
    let output = tokio::task::block_in_place(|| program(arguments).output().unwrap());
    let [out, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Ran { code: output.status.code(), out, errors }
}

/// A process that is killed when this is dropped.
pub struct Running {
    child: Child,
    log: NamedTempFile,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Running {
        let log = NamedTempFile::new().unwrap();
        let child = command.stdout(Stdio::null()).stderr(log.reopen().unwrap()).spawn().unwrap();
        Running { child, log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Whether it runs; it ends by itself only when it cannot go on.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A replica that runs until it is ended or dropped.
pub struct Served {
    running: Running,
    address: SocketAddr,
}

impl Served {
    /// Follows an upstream into a database in a folder, with these variables in its environment.
    pub fn start(folder: &Path, upstream: &str, environment: &[(&str, &str)]) -> Served {
        let database = format!("sqlite://{}", folder.join("plc.db").display());
        Served::start_on(&database, upstream, environment)
    }

    /// The same with a limit to how often it asks, which is in the environment.
    pub fn start_at_its_pace(
        folder: &Path,
        upstream: &str,
        environment: &[(&str, &str)],
    ) -> Served {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let database = format!("sqlite://{}", folder.join("plc.db").display());
        let mut command = program(&["serve", "--database", &database, "--upstream", upstream]);
        command.args(["--listen", &address.to_string()]).envs(environment.iter().copied());
        Served { running: Running::start(command), address }
    }

    /// The same into any database.
    pub fn start_on(database: &str, upstream: &str, environment: &[(&str, &str)]) -> Served {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = serve(database, upstream);
        command.args(["--listen", &address.to_string()]).envs(environment.iter().copied());
        Served { running: Running::start(command), address }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.running.log()
    }

    /// Sends it a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let id = self.running.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leaves it so many file descriptors beside those that are open.
    #[cfg(target_os = "linux")]
    pub fn limit_descriptors(&self, more: usize) {
        let id = self.running.child.id();
        let open = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
        let limit = format!("--nofile={0}:{0}", open + more);
        let set = Command::new("prlimit").args(["--pid", &id.to_string(), &limit]).status();
        assert!(set.unwrap().success());
    }

    /// Lets no file become larger than so many bytes; `unlimited` for no limit.
    #[cfg(target_os = "linux")]
    pub fn limit_files(&self, bytes: &str) {
        let id = self.running.child.id().to_string();
        let limit = format!("--fsize={bytes}:unlimited");
        let set = Command::new("prlimit").args(["--pid", &id, &limit]).status();
        assert!(set.unwrap().success());
    }

    /// Kilobytes of memory that it has taken at most so far.
    #[cfg(target_os = "linux")]
    pub fn peak_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.running.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.split_whitespace().next().unwrap().parse().unwrap()
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
        let child = &mut self.running.child;
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        let ended = child.wait().unwrap();
        assert!(ended.success(), "{ended}: {}", self.log());
        self.log()
    }
}
