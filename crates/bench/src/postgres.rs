//! The Postgres that is measured: one of our own, with the settings that a fresh installation
//! has, or the one that `--postgres` names.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use sqlx::{Connection, PgConnection, Row};

use crate::cgroup::Bound;
use crate::child::{kilobytes, processor};
use crate::turns::Program;

/// Runs until its standard input ends, which is when this program does. `$OPTIONS` is split into
/// words. The databases are on the disk under `$DIRECTORY`, written as carefully as always.
const SCRIPT: &str = r#"
trap '' INT
cd /
directory=$(mktemp -d "$DIRECTORY/postgres.XXXXXX") || exit 1
trap 'rm -rf "$directory"' EXIT
"$PROGRAMS/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C \
    >"$directory/log" 2>&1 || { cat "$directory/log" >&2; exit 1; }
"$PROGRAMS/postgres" -D "$directory/data" -k "$directory" -c listen_addresses= $OPTIONS \
    >"$directory/log" 2>&1 &
server=$!
until "$PROGRAMS/pg_isready" -q -h "$directory"; do
    kill -0 $server 2>/dev/null || { cat "$directory/log" >&2; exit 1; }
    sleep 0.05
done
echo "$server $directory"
cat >/dev/null
kill -INT $server
wait $server
"#;

/// A Postgres server with a database for each measurement.
pub struct Server {
    url: String,
    /// The server's main process, when it is ours.
    main: Option<u32>,
    script: Option<Child>,
    /// How many databases have been made, and which of them each program has now.
    made: u32,
    current: Vec<(Program, u32)>,
}

/// Why there is none.
pub const ABSENT: &str = "no Postgres: neither PATH nor /usr/lib/postgresql/*/bin has initdb, and \
                          --postgres names no server";

impl Server {
    /// A server that runs already.
    pub fn existing(url: &str) -> Server {
        Server { url: url.to_owned(), main: None, script: None, made: 0, current: Vec::new() }
    }

    /// Starts one of our own, if its programs are installed.
    pub fn start(directory: &Path, settings: &[String]) -> anyhow::Result<Option<Server>> {
        let Some(programs) = programs() else { return Ok(None) };
        let options: Vec<String> = settings.iter().map(|setting| format!("-c {setting}")).collect();
        let mut child = as_its_user()?
            .args(["-c", SCRIPT])
            .env("PROGRAMS", programs)
            .env("DIRECTORY", directory)
            .env("OPTIONS", options.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let Some((main, directory)) = line.trim().split_once(' ') else {
            let mut reason = String::new();
            if let Some(mut error) = child.stderr.take() {
                error.read_to_string(&mut reason)?;
            }
            bail!("Postgres did not start: {}", reason.trim());
        };
        let host = directory.replace('/', "%2F");
        Ok(Some(Server {
            url: format!("postgres://postgres@{host}/postgres"),
            main: Some(main.parse()?),
            script: Some(child),
            made: 0,
            current: Vec::new(),
        }))
    }

    /// An empty database for a program; the one that it had before is dropped.
    pub fn fresh(&mut self, program: Program) -> anyhow::Result<String> {
        if let Some(at) = self.current.iter().position(|(of, _)| *of == program) {
            let (_, before) = self.current.swap_remove(at);
            query(&self.url, &dropping(before))?;
        }
        self.made += 1;
        self.current.push((program, self.made));
        query(&self.url, &format!("CREATE DATABASE {} TEMPLATE template0", name(self.made)))?;
        // What the database before has left to be written is not this one's business.
        query(&self.url, "CHECKPOINT")?;
        let mut url = url::Url::parse(&self.url)?;
        url.set_path(&name(self.made));
        Ok(url.into())
    }

    /// Proportional memory and processor seconds of all of the server's processes; `None` of a
    /// server that is not ours.
    pub fn usage(&self) -> Option<(u64, f64)> {
        let main = self.main?;
        let ids = std::iter::once(main).chain(children(main));
        let (mut memory, mut seconds) = (0, 0.0);
        for id in ids {
            let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
            memory += kilobytes(&rollup, "Pss:").unwrap_or(0);
            seconds += processor(id).unwrap_or(0.0);
        }
        Some((memory, seconds))
    }
}

impl Server {
    /// Holds the server's processes to a bound, if it is ours.
    pub fn bind(&self, bound: &Bound) -> anyhow::Result<()> {
        let main = self.main.context("--memory-limit cannot bound the server of --postgres")?;
        // First the one whose children to come will be in it too.
        bound.add(main)?;
        children(main).into_iter().try_for_each(|id| bound.add(id))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.script.is_none() {
            // A server that stays gets rid of the last databases.
            for (_, number) in &self.current {
                let _ = query(&self.url, &dropping(*number));
            }
        }
        if let Some(mut script) = self.script.take() {
            script.stdin = None;
            let _ = script.wait();
        }
    }
}

fn name(number: u32) -> String {
    format!("plc_bench_{}_{number}", std::process::id())
}

fn dropping(number: u32) -> String {
    format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", name(number))
}

/// Bytes of all tables of a database with their indexes.
pub fn size(url: &str) -> anyhow::Result<u64> {
    let rows = query(
        url,
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::text
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'm')
           AND n.nspname NOT IN ('pg_catalog', 'information_schema')",
    )?;
    rows.first().context("no size")?.parse().context("a size that is no number")
}

/// Runs one statement; the first column of each row.
fn query(url: &str, statement: &str) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        let rows = sqlx::raw_sql(statement).fetch_all(&mut connection).await?;
        connection.close().await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    })
}

/// The directory of the server's programs: in PATH, or where Debian puts them, the newest version.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // All that is needed in one place: a link to some of them elsewhere does not do.
    let complete = |directory: &PathBuf| {
        ["initdb", "postgres", "pg_isready"].iter().all(|program| directory.join(program).exists())
    };
    let in_path = std::env::split_paths(&path).find(complete);
    in_path.or_else(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
        versions.sort_by_key(|path| number(path));
        let mut bins = versions.into_iter().rev().map(|path| path.join("bin"));
        bins.find(complete)
    })
}

/// A shell as a user that Postgres accepts, which root is not.
fn as_its_user() -> anyhow::Result<Command> {
    if Command::new("id").arg("-u").output()?.stdout != b"0\n" {
        return Ok(Command::new("sh"));
    }
    let known = Command::new("id").arg("postgres").output()?.status.success();
    let user = if known { "postgres" } else { "nobody" };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--clear-groups", "--", "sh"]);
    Ok(command)
}

/// Seconds of processor time of all of a server's processes, of which this is the first.
pub fn processor_of(main: u32) -> f64 {
    std::iter::once(main).chain(children(main)).filter_map(processor).sum()
}

/// Processes whose parent this is.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

fn parent_of(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
