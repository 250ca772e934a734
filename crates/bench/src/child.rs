//! The processes that are measured, and what `/proc` says about them.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::http::get;

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to end in order.
const END: Duration = Duration::from_secs(60);
/// Files that the measured programs may open: a connection for each of some thousand clients, and more.
const OPEN_FILES: u32 = 16_384;
/// Clock ticks a second in `/proc/PID/stat`: 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// A process of this binary.
pub struct Process {
    child: Child,
    name: String,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// The most memory that was ever resident, in bytes.
    pub peak_memory: u64,
    /// Processor time of all threads, in seconds.
    pub processor: f64,
}

/// What a process holds at the moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    /// Memory that is resident, in bytes.
    pub memory: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

impl Process {
    /// Starts a subcommand of a program. Nothing of the surroundings' settings reaches it.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        cgroup: Option<&Path>,
    ) -> anyhow::Result<Process> {
        Process::spawn(program, arguments, cgroup, Stdio::null())
    }

    fn spawn(
        program: &Path,
        arguments: &[&str],
        cgroup: Option<&Path>,
        out: Stdio,
    ) -> anyhow::Result<Process> {
        let limit = format!("ulimit -n {OPEN_FILES} 2>/dev/null");
        let join = match cgroup {
            Some(cgroup) => format!("echo $$ > '{}/cgroup.procs' || exit", cgroup.display()),
            None => "true".to_owned(),
        };
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}; {join}; exec \"$@\""), "sh"]);
        command.arg(program).args(arguments);
        for (name, _) in std::env::vars_os() {
            let setting = name.to_str().is_some_and(|name| name.starts_with("PLC_"));
            if setting || name == "DATABASE_URL" {
                command.env_remove(name);
            }
        }
        let child = command.stdin(Stdio::null()).stdout(out).spawn()?;
        Ok(Process { child, name: arguments.join(" ") })
    }

    /// Memory and processor time so far; nothing of a process that has ended.
    pub fn usage(&self) -> Usage {
        usage(self.child.id())
    }

    /// What it holds now.
    pub fn held(&self) -> anyhow::Result<Held> {
        let of = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{of}/status"))?;
        let memory = kilobytes(&status, "VmRSS:").context("a process that has ended")?;
        let descriptors = fs::read_dir(format!("{of}/fd"))?.count() as u64;
        Ok(Held { memory, descriptors })
    }

    /// Ends it in order, as an operator does, and waits for the end.
    pub fn end(mut self) -> anyhow::Result<()> {
        let id = self.child.id().to_string();
        Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status()?;
        let mut status = None;
        wait_until(END, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("`{}` does not end", self.name))?;
        ensure!(
            status.is_some_and(|status| status.success()),
            "`{}` ended with {status:?}",
            self.name
        );
        Ok(())
    }

    /// Fails when it has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`{}` has ended: {status}", self.name),
        }
    }
}

impl Drop for Process {
    /// Whatever went wrong, nothing is left running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a subcommand that ran to its end said and used.
pub struct Ended {
    /// Its standard output.
    pub output: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it had used when it was last looked at, shortly before its end.
    pub usage: Usage,
    /// How long it ran.
    pub seconds: f64,
}

/// This program's own file: the parts of the benchmark are its subcommands.
pub fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Runs a subcommand of a program to its end.
pub fn run_to_end(
    program: &Path,
    arguments: &[&str],
    cgroup: Option<&Path>,
) -> anyhow::Result<Ended> {
    let begun = Instant::now();
    let mut process = Process::spawn(program, arguments, cgroup, Stdio::piped())?;
    let mut stdout = process.child.stdout.take().context("no standard output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut stdout));
    let mut usage = Usage::default();
    let status = loop {
        if let Some(status) = process.child.try_wait()? {
            break status;
        }
        let now = process.usage();
        // A process that is ending has no memory any more.
        if now.peak_memory > 0 {
            usage = now;
        }
        std::thread::sleep(POLL);
    };
    let seconds = begun.elapsed().as_secs_f64();
    let output = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(Ended { output, status, usage, seconds })
}

fn usage(id: u32) -> Usage {
    Usage { peak_memory: peak_memory(id).unwrap_or(0), processor: processor(id).unwrap_or(0.0) }
}

fn peak_memory(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    kilobytes(&status, "VmHWM:")
}

/// The value of a line such as `Pss:  1234 kB`, in bytes.
pub fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|number| number * 1024)
}

/// Seconds of processor time of a process, its threads and its ended children included.
pub fn processor(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; user and system time are the 14th to 17th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<f64>().ok());
    Some(ticks.sum::<Option<f64>>()? / TICKS)
}

/// What a replica says about itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Health {
    /// Last sequence number that is committed.
    #[serde(default)]
    pub sequence: u64,
}

/// Asks a replica for its health.
pub fn health(replica: SocketAddr) -> anyhow::Result<Health> {
    let (status, body) = get(replica, "/_health")?;
    ensure!(status == 200, "/_health answers {status}");
    Ok(serde_json::from_slice(&body)?)
}

/// Looks again and again until it is so.
pub fn wait_until(
    patience: Duration,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < patience, "waited {patience:?} in vain");
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// An address on this machine where nobody listens.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
