//! A fleet as `ops/fleet` has it: a primary and a hot standby, a follower and a spare one, and two readers behind nginx.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use plc_testkit::nginx;
use plc_testkit::postgres::{Client, Place, Server, programs};
use serde::Deserialize;

use super::network::{Machine, Network};
use crate::child::{Process, run_to_end, wait_until};
use crate::http::get;
use crate::postgres;

/// The name of the database.
const DATABASE: &str = "plc";
/// How long anybody may take to be there.
const START: Duration = Duration::from_secs(60);
/// What the fleet runs before its readers.
const SITE: &str = include_str!("../../../../ops/fleet/nginx.conf");
/// Who has which rights.
const ROLES: &str = include_str!("../../../../ops/roles.sql");

/// All of it. Whatever it has started ends with it.
pub struct Fleet {
    pub primary: Server,
    pub standby: Server,
    /// Whether the standby is the primary now.
    pub is_switched_over: bool,
    pub follower: Member,
    /// It follows when the follower dies.
    pub spare: Member,
    pub readers: [Member; 2],
    /// nginx, and where it listens.
    proxy: Process,
    pub proxy_address: SocketAddr,
    pub network: Network,
    program: PathBuf,
    _folder: Folder,
}

/// A `serve`, which may be killed and started again.
pub struct Member {
    pub name: &'static str,
    pub address: SocketAddr,
    metrics: SocketAddr,
    /// The program, and before it what enters its machine.
    program: Vec<String>,
    /// Those that stay the same.
    settings: Vec<String>,
    process: Option<Process>,
}

/// What a member says about itself.
#[derive(Deserialize)]
struct Health {
    role: String,
    state: String,
}

impl Fleet {
    /// Starts all of it, to follow an upstream that is there already; each process logs at this level.
    pub fn start(
        network: Network,
        program: PathBuf,
        upstream: SocketAddr,
        log: &str,
    ) -> anyhow::Result<Fleet> {
        let (near, far) = (&network.near, &network.far);
        let primary = Server::start_at(&place(near)?).context(postgres::ABSENT)?;
        prepare(&primary, &program)?;
        let standby = primary.standby_at(&place(far)?);

        let member = |name, machine: &Machine, settings: &[&str]| {
            let upstream = format!("http://{upstream}");
            let general = ["--upstream", &*upstream, "--upstream-requests-per-minute", "0"];
            // The generated upstream has no audit logs to compare with.
            let quiet = ["--audit-requests-per-minute", "0", "--log", log];
            Member::new(name, machine, &program, &[&general[..], &quiet, settings].concat())
        };
        let reader = |name| member(name, far, &["--follow", "off"]);
        let follower = member("the follower", near, &[])?;
        let spare = member("the spare follower", near, &[])?;
        let readers = [reader("reader 1")?, reader("reader 2")?];
        let folder = Folder::new()?;
        let proxy_address = far.free_address()?;
        let proxy = proxy(far, proxy_address, &readers, &folder.0)?;
        let mut fleet = Fleet {
            primary,
            standby,
            is_switched_over: false,
            follower,
            spare,
            readers,
            proxy,
            proxy_address,
            network,
            program,
            _folder: folder,
        };
        fleet.start_members()?;
        Ok(fleet)
    }

    /// The follower first, so that it is the one that follows.
    fn start_members(&mut self) -> anyhow::Result<()> {
        let following = self.following(&self.primary);
        let reading = self.reading();
        self.follower.start(&following)?;
        wait_until(START, || Ok(self.follower.is("follower")))?;
        self.spare.start(&following)?;
        for reader in &mut self.readers {
            reader.start(&reading)?;
        }
        Ok(())
    }

    /// How one that may follow reaches its database.
    pub fn following(&self, primary: &Server) -> Vec<String> {
        ["--database", &primary.url_as("plc_follower", DATABASE)].map(str::to_owned).to_vec()
    }

    /// How readers reach theirs.
    pub fn reading(&self) -> Vec<String> {
        let [primary, standby] =
            [&self.primary, &self.standby].map(|server| server.url_as("plc_reader", DATABASE));
        ["--database", &primary, "--read-database", &standby].map(str::to_owned).to_vec()
    }

    /// How readers reach one of them alone.
    pub fn reading_alone(&self, server: &Server) -> Vec<String> {
        ["--database", &server.url_as("plc_reader", DATABASE)].map(str::to_owned).to_vec()
    }

    /// All processes.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        [&self.follower, &self.spare].into_iter().chain(&self.readers)
    }

    /// Who is not as all have to be when nothing is wrong.
    pub fn unwell(&self) -> Option<&'static str> {
        let reads_as_it_has_to =
            |reader: &&Member| self.is_switched_over || reader.reads_from_standby();
        let ill = self.members().find(|member| !member.is_ready());
        ill.or_else(|| self.readers.iter().find(|reader| !reads_as_it_has_to(reader)))
            .map(|member| member.name)
    }

    /// Fails when something has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.proxy.check()?;
        let members = [&mut self.follower, &mut self.spare].into_iter().chain(&mut self.readers);
        members.filter_map(|member| member.process.as_mut()).try_for_each(Process::check)
    }

    /// Checks all that the database holds.
    pub fn check_database(&self) -> anyhow::Result<()> {
        let server = if self.is_switched_over { &self.standby } else { &self.primary };
        let mut words = self.network.far.enter();
        words.extend([self.program.display().to_string(), "fsck".to_owned()]);
        words.extend(["--database".to_owned(), server.url_as("plc_reader", DATABASE)]);
        run(&words)
    }
}

/// Somewhere on a machine.
fn place(machine: &Machine) -> anyhow::Result<Place> {
    Ok(Place { address: Some(machine.free_address()?), enter: machine.enter() })
}

/// Makes the database, its roles and its tables, as `ops/fleet/primary.sh` and the fleet's `migrate` do.
fn prepare(primary: &Server, program: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let create = format!("CREATE DATABASE {DATABASE}");
        Client::connect(&primary.url("postgres")).await.run(&create).await;
    });
    let psql = programs().context(postgres::ABSENT)?.join("psql");
    let mut grants = Command::new(psql)
        .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname"])
        .arg(primary.url(DATABASE))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut roles = grants.stdin.take().context("psql without an input")?;
    std::io::Write::write_all(&mut roles, ROLES.as_bytes())?;
    drop(roles);
    ensure!(grants.wait()?.success(), "ops/roles.sql failed");
    let owner = primary.url_as("plc_owner", DATABASE);
    run(&[&*program.to_string_lossy(), "migrate", "--database", &owner].map(str::to_owned))
}

/// Runs a program with its arguments to its end.
fn run(words: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (program, arguments) = words.split_first().context("there is no program")?;
    let ended = run_to_end(Path::new(program), arguments, None)?;
    ensure!(ended.status.success(), "`{}`: {}", words.join(" "), ended.output);
    Ok(())
}

/// Starts nginx with the fleet's configuration, in which only the addresses are others.
fn proxy(
    machine: &Machine,
    address: SocketAddr,
    readers: &[Member; 2],
    folder: &Path,
) -> anyhow::Result<Process> {
    let site = SITE
        .replace("reader-1:2582", &readers[0].address.to_string())
        .replace("reader-2:2582", &readers[1].address.to_string())
        .replace("listen 2582", &format!("listen {address}"));
    let mut words = machine.enter();
    words.push("nginx".to_owned());
    words.extend(nginx::arguments(&site, folder)?);
    start(&words)
}

/// Starts a program with its arguments.
fn start(words: &[String]) -> anyhow::Result<Process> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (program, arguments) = words.split_first().context("there is no program")?;
    Process::start(Path::new(program), arguments, None)
}

impl Member {
    fn new(
        name: &'static str,
        machine: &Machine,
        program: &Path,
        settings: &[&str],
    ) -> anyhow::Result<Member> {
        let (address, metrics) = (machine.free_address()?, machine.free_address()?);
        let listen = ["--listen", &address.to_string(), "--metrics-listen", &metrics.to_string()]
            .map(str::to_owned);
        let settings = settings.iter().map(|setting| (*setting).to_owned()).chain(listen).collect();
        let mut words = machine.enter();
        words.extend([program.display().to_string(), "serve".to_owned()]);
        Ok(Member { name, address, metrics, program: words, settings, process: None })
    }

    /// Starts it, at the place where it was before, on this database; returns when it answers.
    pub fn start(&mut self, database: &[String]) -> anyhow::Result<()> {
        let words = [&self.program[..], database, &self.settings].concat();
        self.process = Some(start(&words)?);
        wait_until(START, || {
            self.process.as_mut().map_or(Ok(()), Process::check)?;
            Ok(self.health().is_some())
        })
        .with_context(|| format!("{} does not answer", self.name))
    }

    /// Kills it, with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it in order.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::end)
    }

    /// Whether it was started, and not ended since.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Seconds of processor time so far.
    pub fn processor(&self) -> f64 {
        self.process.as_ref().map_or(0.0, |process| process.usage().processor)
    }

    fn health(&self) -> Option<Health> {
        let (status, body) = get(self.address, "/_health").ok()?;
        (status == 200).then(|| serde_json::from_slice(&body).ok()).flatten()
    }

    /// Whether it is this, and up to date.
    pub fn is(&self, role: &str) -> bool {
        self.health().is_some_and(|health| health.role == role && health.state == "live")
    }

    fn is_ready(&self) -> bool {
        get(self.address, "/_ready").is_ok_and(|(status, _)| status == 200)
    }

    fn reads_from_standby(&self) -> bool {
        let Ok((_, metrics)) = get(self.metrics, "/metrics") else { return false };
        let metrics = String::from_utf8_lossy(&metrics);
        let in_use =
            |line: &str| line.starts_with("plc_read_database_in_use{") && line.ends_with(" 1");
        metrics.lines().any(in_use)
    }
}

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("plc-bench-fleet-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
