//! A Postgres for the tests: the server that `DATABASE_URL` names, or one of our own.
//!
//! Our own is started at the first use, once a test run, in a directory of its own, and ends with
//! the test process, however that ends.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Column, Connection, Row, ValueRef};

/// Set where a test that cannot run is a failure.
const REQUIRE: &str = "PLC_REQUIRE_POSTGRES";

/// A database for one test, empty at first. Dropped at its end.
pub struct Database {
    /// Where it is.
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
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        Client::connect(server).await.run(&create).await;
        let mut url = url::Url::parse(server).unwrap();
        url.set_path(&name);
        Some(Database { url: url.into(), name, server })
    }

    /// A connection beside the store's, to look and to do harm.
    pub async fn client(&self) -> Client {
        Client::connect(&self.url).await
    }

    /// Ends all connections to the database; `closed` lets no new one in.
    pub async fn interrupt(&self, closed: bool) {
        let sql = format!(
            "ALTER DATABASE {0} ALLOW_CONNECTIONS {1};
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
            self.name, !closed
        );
        Client::connect(self.server).await.run(&sql).await;
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server, self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let drop = format!("DROP DATABASE {name} WITH (FORCE)");
                let mut client = Client::connect(server).await;
                let _ = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut client.connection).await;
            });
        });
        let _ = dropping.join();
    }
}

/// A connection beside the store's.
pub struct Client {
    /// For what has parameters.
    pub connection: PgConnection,
}

impl Client {
    /// Connects to the database that a URL names.
    pub async fn connect(url: &str) -> Client {
        Client { connection: PgConnection::connect(url).await.unwrap() }
    }

    /// Runs one or more statements.
    pub async fn run(&mut self, sql: &str) {
        self.rows(sql).await;
    }

    /// The rows of one or more statements, with every value as text.
    pub async fn rows(&mut self, sql: &str) -> Vec<TextRow> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let rows = query.fetch_all(&mut self.connection).await;
        rows.unwrap_or_else(|error| panic!("{error}: {sql}")).into_iter().map(TextRow).collect()
    }

    /// The first value of the first row, as text; none where it is null.
    pub async fn value(&mut self, sql: &str) -> Option<String> {
        self.rows(sql).await[0].at(0).map(str::to_owned)
    }
}

/// A row with every value as text.
pub struct TextRow(PgRow);

impl TextRow {
    /// The value in the column of this name; none where it is null.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.at(self.0.column(column).ordinal())
    }

    /// The value in a column, counted from 0; none where it is null.
    pub fn at(&self, column: usize) -> Option<&str> {
        let value = self.0.try_get_raw(column).unwrap();
        (!value.is_null()).then(|| value.as_str().unwrap())
    }
}

/// URL of the server's own database.
fn server() -> Option<&'static str> {
    static SERVER: OnceLock<Option<String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match std::env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => Some(url),
        _ => programs().map(|programs| {
            /// Open for as long as this process lives.
            static LIFE: Mutex<Option<ChildStdin>> = Mutex::new(None);
            let (directory, life) = start(&programs, &[]);
            *LIFE.lock().unwrap() = Some(life);
            format!("postgres://postgres@{}/postgres", directory.replace('/', "%2F"))
        }),
    });
    if server.is_none() {
        skipped(
            "no Postgres: DATABASE_URL names none, and neither PATH nor \
                 /usr/lib/postgresql/*/bin has initdb",
        );
    }
    server.as_deref()
}

fn skipped(reason: &str) {
    assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, but {reason}");
    eprintln!("skipped: {reason}");
}

/// A server of a test's own on localhost, which offers TLS. Ends when it is dropped.
pub struct TlsServer {
    /// Where it listens.
    pub port: u16,
    _life: ChildStdin,
}

impl TlsServer {
    /// With a certificate and its key (PEM). None, and a line that says so, where the programs are not
    /// installed.
    pub fn start(certificate: &str, key: &str) -> Option<TlsServer> {
        let Some(programs) = programs() else {
            skipped("neither PATH nor /usr/lib/postgresql/*/bin has initdb");
            return None;
        };
        // Free a moment ago: Postgres itself cannot look for a port.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [("CERTIFICATE", certificate), ("KEY", key), ("PORT", &*port.to_string())];
        let (_, life) = start(&programs, &settings);
        Some(TlsServer { port, _life: life })
    }
}

/// The directory of the server's programs, `pg_dump` among them: in PATH, or where Debian puts them, the newest version.
pub fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // All that is needed in one place: a link to some of them elsewhere does not do.
    let complete = |directory: &PathBuf| {
        let needed = ["initdb", "postgres", "pg_isready", "pg_dump", "pg_restore"];
        needed.iter().all(|program| directory.join(program).exists())
    };
    let in_path = std::env::split_paths(&path).find(complete);
    in_path.or_else(|| {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
        versions.sort_by_key(|path| number(path));
        let mut bins = versions.into_iter().rev().map(|path| path.join("bin"));
        bins.find(complete)
    })
}

/// Runs until its standard input ends, which is when the tests do. What the server has written is
/// worth nothing then, so it need not reach the disk. In /tmp whatever TMPDIR says: any user can
/// write there, and the path of a socket is bounded to a hundred bytes.
const SCRIPT: &str = r#"
trap '' INT
cd /
directory=$(mktemp -d /tmp/plc-postgres.XXXXXX) || exit 1
trap 'rm -rf "$directory"' EXIT
"$PROGRAMS/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C --no-sync \
    >"$directory/log" 2>&1 || { cat "$directory/log" >&2; exit 1; }
options=-clisten_addresses=
if [ -n "$KEY" ]; then
    umask 077
    printf '%s' "$CERTIFICATE" >"$directory/certificate"
    printf '%s' "$KEY" >"$directory/key"
    options="-c listen_addresses=localhost -p $PORT
        -c ssl=on -c ssl_cert_file=$directory/certificate -c ssl_key_file=$directory/key"
fi
"$PROGRAMS/postgres" -D "$directory/data" -k "$directory" $options \
    -c fsync=off -c full_page_writes=off -c max_connections=300 >"$directory/log" 2>&1 &
server=$!
until grep -q 'ready to accept connections' "$directory/log"; do
    kill -0 $server 2>/dev/null || { cat "$directory/log" >&2; exit 1; }
    sleep 0.05
done
echo "$directory"
cat >/dev/null
kill -INT $server
wait $server
"#;

/// The directory of a server, and what keeps it running while it is open.
// It ends by itself when our end of its input is closed, which is when nobody is left to wait.
#[allow(clippy::zombie_processes)]
fn start(programs: &Path, settings: &[(&str, &str)]) -> (String, ChildStdin) {
    // The server refuses to run as root.
    let mut command = match Command::new("id").arg("-u").output() {
        Ok(output) if output.stdout == b"0\n" => {
            let known = Command::new("id").arg("postgres").output().unwrap().status.success();
            let user = if known { "postgres" } else { "nobody" };
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", "nogroup", "--clear-groups", "--", "sh"]);
            command
        }
        _ => Command::new("sh"),
    };
    let mut child = command
        .args(["-c", SCRIPT])
        .env("PROGRAMS", programs)
        .env("LC_ALL", "C")
        .env_remove("KEY")
        .envs(settings.iter().copied())
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
    (directory.trim_end().to_owned(), child.stdin.take().unwrap())
}
