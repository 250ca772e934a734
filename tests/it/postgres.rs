//! A Postgres for the tests: the server that `DATABASE_URL` names, or one of our own.
//!
//! Our own is started at the first use, once a test run, in a directory of its own, and ends with
//! the test process, however that ends.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use tokio_postgres::{Client, NoTls};

/// Set where a test that cannot run is a failure.
const REQUIRE: &str = "PLC_REQUIRE_POSTGRES";

/// A database for one test, empty at first. Dropped at its end.
pub struct Database {
    pub url: String,
    name: String,
    server: &'static str,
}

impl Database {
    /// None, and a line that says so, when there is no server to be had.
    pub async fn create() -> Option<Database> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = server()?;
        let name =
            format!("plc_test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = connect(server).await;
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await.unwrap();
        let mut url = url::Url::parse(server).unwrap();
        url.set_path(&name);
        Some(Database { url: url.into(), name, server })
    }

    /// A connection beside the store's, to look and to do harm.
    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }

    /// Ends all connections to the database; `closed` lets no new one in.
    pub async fn interrupt(&self, closed: bool) {
        let sql = format!(
            "ALTER DATABASE {0} ALLOW_CONNECTIONS {1};
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
            self.name, !closed
        );
        connect(self.server).await.batch_execute(&sql).await.unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server, self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let drop = format!("DROP DATABASE {name} WITH (FORCE)");
                let _ = connect(server).await.batch_execute(&drop).await;
            });
        });
        let _ = dropping.join();
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// URL of the server's own database.
fn server() -> Option<&'static str> {
    static SERVER: OnceLock<Option<String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match std::env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => Some(url),
        _ => programs().map(|programs| start(&programs)),
    });
    if server.is_none() {
        let reason = "no Postgres: DATABASE_URL names none, and neither PATH nor \
                      /usr/lib/postgresql/*/bin has initdb";
        assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, but {reason}");
        eprintln!("skipped: {reason}");
    }
    server.as_deref()
}

/// The directory of the server's programs: in PATH, or where Debian puts them, the newest version.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_all = |directory: &PathBuf| {
        ["initdb", "postgres", "pg_isready"].iter().all(|name| directory.join(name).exists())
    };
    let in_path = std::env::split_paths(&path).find(has_all);
    in_path.or_else(|| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
        versions.sort_by_key(|path| number(path));
        let mut bins = versions.into_iter().rev().map(|path| path.join("bin"));
        bins.find(has_all)
    })
}

/// Runs until its standard input ends, which is when the tests do. What the server has written is
/// worth nothing then, so it need not reach the disk.
const SCRIPT: &str = r#"
trap '' INT
cd /
directory=$(mktemp -d "${TMPDIR:-/tmp}/plc-postgres.XXXXXX") || exit 1
trap 'rm -rf "$directory"' EXIT
"$PROGRAMS/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C --no-sync \
    >"$directory/log" 2>&1 || { cat "$directory/log" >&2; exit 1; }
"$PROGRAMS/postgres" -D "$directory/data" -k "$directory" -c listen_addresses= \
    -c fsync=off -c full_page_writes=off -c max_connections=300 >"$directory/log" 2>&1 &
server=$!
until "$PROGRAMS/pg_isready" -q -h "$directory"; do
    kill -0 $server 2>/dev/null || { cat "$directory/log" >&2; exit 1; }
    sleep 0.05
done
echo "$directory"
cat >/dev/null
kill -INT $server
wait $server
"#;

fn start(programs: &Path) -> String {
    /// Open for as long as this process lives.
    static LIFE: Mutex<Option<ChildStdin>> = Mutex::new(None);
    // The server refuses to run as root.
    let mut command = match Command::new("id").arg("-u").output() {
        Ok(output) if output.stdout == b"0\n" => {
            let known = Command::new("id").arg("postgres").output().unwrap().status.success();
            let user = if known { "postgres" } else { "nobody" };
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--clear-groups", "--", "sh"]);
            command
        }
        _ => Command::new("sh"),
    };
    let mut child = command
        .args(["-c", SCRIPT])
        .env("PROGRAMS", programs)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut directory = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut directory).unwrap();
    if directory.is_empty() {
        let mut reason = String::new();
        child.stderr.take().unwrap().read_to_string(&mut reason).unwrap();
        panic!("Postgres of {} does not start: {reason}", programs.display());
    }
    *LIFE.lock().unwrap() = child.stdin.take();
    format!("postgres://postgres@localhost/postgres?host={}", directory.trim_end())
}
