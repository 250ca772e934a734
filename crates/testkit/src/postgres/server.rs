//! Postgres servers of our own, which a test may kill, freeze, start again and promote: a primary, and hot standbys of it.
//!
//! Each is kept by a shell that reads what to do from its standard input, and ends the server and removes its
//! directory when that input ends: so nothing is left behind, however the test process ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use super::client::Client;

/// Set where a test that cannot run is a failure.
const REQUIRE: &str = "PLC_REQUIRE_POSTGRES";

/// A server in a directory of its own. Ends when this is dropped.
pub struct Server {
    programs: PathBuf,
    directory: String,
    /// Where clients reach it; none where that is its socket.
    address: Option<SocketAddr>,
    keeper: Mutex<Keeper>,
}

/// A machine's part of this one.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Where the server listens, for anybody without a password; none for its socket alone.
    pub address: Option<SocketAddr>,
    /// The program and the arguments after which a command runs there; none where it runs here.
    pub enter: Vec<String>,
}

/// The shell that keeps a server.
struct Keeper {
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    errors: ChildStderr,
}

impl Server {
    /// One that is reached by its socket alone. None, and a line that says so, where the programs are not installed.
    pub fn start() -> Option<Server> {
        Server::start_at(&Place::default())
    }

    /// One somewhere else.
    pub fn start_at(place: &Place) -> Option<Server> {
        Some(keep(installed()?, place, &[]))
    }

    /// One that listens on a port of localhost too, and offers TLS there with a certificate and its key (PEM); with the
    /// port.
    pub fn with_tls(certificate: &str, key: &str) -> Option<(Server, u16)> {
        // Free a moment ago: Postgres itself cannot look for a port.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [("CERTIFICATE", certificate), ("KEY", key), ("PORT", &*port.to_string())];
        Some((keep(installed()?, &Place::default(), &settings), port))
    }

    /// A hot standby of this server, to which the server sends what it writes: made by `pg_basebackup`.
    pub fn standby(&self) -> Server {
        self.standby_at(&Place::default())
    }

    /// The same somewhere else.
    pub fn standby_at(&self, place: &Place) -> Server {
        keep(self.programs.clone(), place, &[("PRIMARY", &*self.conninfo())])
    }

    /// Where it is, as Postgres' own programs are told, and `primary_conninfo` of a standby.
    pub fn conninfo(&self) -> String {
        match self.address {
            None => format!("host={} user=postgres", self.directory),
            Some(address) => {
                format!("host={} port={} user=postgres", address.ip(), address.port())
            }
        }
    }

    /// The first of its processes, of which the others are children.
    pub fn process(&self) -> u32 {
        let file = format!("{}/data/postmaster.pid", self.directory);
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// The directory of its socket.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// Where a database on it is. Of a socket, its name is the usual one.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The same for another user. Nobody is asked for a password.
    pub fn url_as(&self, user: &str, database: &str) -> String {
        let host = match self.address {
            None => self.directory.replace('/', "%2F"),
            Some(address) => address.to_string(),
        };
        format!("postgres://{user}@{host}/{database}")
    }

    /// Kills all processes of the server, as a machine that loses its power does.
    pub fn kill(&self) {
        self.order("kill");
    }

    /// Stops all of its processes where they are: connections stay, and nothing answers.
    pub fn freeze(&self) {
        self.order("freeze");
    }

    /// Has them go on.
    pub fn thaw(&self) {
        self.order("thaw");
    }

    /// Starts it after it was killed, with its recovery; returns when it lets clients in.
    pub fn start_again(&self) {
        self.order("start");
    }

    /// Makes a primary of a standby; returns when it takes writes.
    pub fn promote(&self) {
        self.order("promote");
    }

    /// Has a standby receive what comes, and not replay it.
    pub async fn pause_replay(&self) {
        let mut client = Client::connect(&self.url("postgres")).await;
        client.run("SELECT pg_wal_replay_pause()").await;
        let paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'";
        while client.value(paused).await.as_deref() != Some("t") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Has it go on.
    pub async fn resume_replay(&self) {
        Client::connect(&self.url("postgres")).await.run("SELECT pg_wal_replay_resume()").await;
    }

    fn order(&self, order: &str) {
        let mut keeper = self.keeper.lock().unwrap();
        writeln!(keeper.orders, "{order}").unwrap();
        assert_eq!(keeper.answer(), "done", "to {order} Postgres of {}", self.directory);
    }
}

impl Keeper {
    /// The next line that the shell says. When it has ended, what went wrong is said in place of it.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut reason = String::new();
            self.errors.read_to_string(&mut reason).unwrap();
            panic!("Postgres does not run: {reason}");
        }
        line.trim_end().to_owned()
    }
}

/// Where the programs are; none, and a line that says so, where they are not installed.
fn installed() -> Option<PathBuf> {
    let programs = programs();
    if programs.is_none() {
        let reason = "no Postgres: DATABASE_URL names none, and neither PATH nor \
                      /usr/lib/postgresql/*/bin has its programs";
        assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, but {reason}");
        eprintln!("skipped: {reason}");
    }
    programs
}

/// The directory of the server's programs, `pg_dump` among them: in PATH, or where Debian puts them, the newest version.
pub fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // All that is needed in one place: a link to some of them elsewhere does not do.
    let complete = |directory: &PathBuf| {
        let needed = [
            "initdb",
            "postgres",
            "pg_basebackup",
            "pg_ctl",
            "pg_dump",
            "pg_isready",
            "pg_restore",
            "psql",
        ];
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
/// worth nothing then, so it need not reach the disk: a process that is killed leaves it in the page cache. In /tmp
/// whatever TMPDIR says: any user can write there, and the path of a socket is bounded to a hundred bytes.
const SCRIPT: &str = r#"
trap '' INT
cd /
directory=$(mktemp -d /tmp/plc-postgres.XXXXXX) || exit 1
trap 'rm -rf "$directory"' EXIT
if [ -n "$PRIMARY" ]; then
    "$PROGRAMS/pg_basebackup" -D "$directory/data" -d "$PRIMARY" --write-recovery-conf \
        --checkpoint=fast --no-sync >"$directory/log" 2>&1
else
    "$PROGRAMS/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$directory/log" 2>&1
fi || { cat "$directory/log" >&2; exit 1; }
options=-clisten_addresses=
if [ -n "$LISTEN" ]; then
    echo 'host all,replication all all trust' >>"$directory/data/pg_hba.conf"
    options="-c listen_addresses=$LISTEN -p $PORT"
fi
if [ -n "$KEY" ]; then
    umask 077
    printf '%s' "$CERTIFICATE" >"$directory/certificate"
    printf '%s' "$KEY" >"$directory/key"
    options="-c listen_addresses=localhost -p $PORT
        -c ssl=on -c ssl_cert_file=$directory/certificate -c ssl_key_file=$directory/key"
fi

start() {
    "$PROGRAMS/postgres" -D "$directory/data" -k "$directory" $options \
        -c fsync=off -c full_page_writes=off -c max_connections=300 -c wal_keep_size=256MB >"$directory/log" 2>&1 &
    server=$!
    until grep -q 'ready to accept' "$directory/log"; do
        kill -0 $server 2>/dev/null || { cat "$directory/log" >&2; exit 1; }
        sleep 0.05
    done
}

# All processes of the server. Each child is in a session of its own, so that they have no group.
processes() {
    echo $server $(cat /proc/$server/task/$server/children 2>/dev/null)
}

start
echo "$directory"
while read -r order; do
    case $order in
        start) start ;;
        # The first one is held, so that it starts no others meanwhile.
        freeze) kill -STOP $server; kill -STOP $(processes) 2>/dev/null ;;
        thaw) kill -CONT $(processes) 2>/dev/null ;;
        kill) kill -STOP $server; kill -KILL $(processes) 2>/dev/null; wait $server 2>/dev/null ;;
        promote) "$PROGRAMS/pg_ctl" promote --wait -D "$directory/data" >"$directory/promoted" 2>&1 || {
            cat "$directory/promoted" "$directory/log" >&2
            exit 1
        } ;;
    esac
    echo done
done
kill -QUIT $server 2>/dev/null
kill -CONT $(processes) 2>/dev/null
wait $server 2>/dev/null
"#;

/// Starts a server with these settings of the script.
// It ends by itself when our end of its input is closed, which is when nobody is left to wait.
#[allow(clippy::zombie_processes)]
fn keep(programs: PathBuf, place: &Place, settings: &[(&str, &str)]) -> Server {
    let mut shell = shell(&place.enter);
    shell.args(["-c", SCRIPT]).env("PROGRAMS", &programs).env("LC_ALL", "C");
    for setting in ["KEY", "LISTEN", "PRIMARY"] {
        shell.env_remove(setting);
    }
    if let Some(address) = place.address {
        shell.env("LISTEN", address.ip().to_string()).env("PORT", address.port().to_string());
    }
    shell.envs(settings.iter().copied());
    let streams = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child: Child = streams.spawn().unwrap();
    let mut keeper = Keeper {
        orders: child.stdin.take().unwrap(),
        answers: BufReader::new(child.stdout.take().unwrap()),
        errors: child.stderr.take().unwrap(),
    };
    let directory = keeper.answer();
    Server { directory, programs, address: place.address, keeper: Mutex::new(keeper) }
}

/// A shell, somewhere, of somebody who may run the server, which refuses to run as root.
fn shell(enter: &[String]) -> Command {
    let mut words = enter.to_vec();
    if let Ok(output) = Command::new("id").arg("-u").output()
        && output.stdout == b"0\n"
    {
        let known = Command::new("id").arg("postgres").output().unwrap().status.success();
        let user = if known { "postgres" } else { "nobody" };
        let as_user = ["setpriv", "--reuid", user, "--regid", "nogroup", "--clear-groups", "--"];
        words.extend(as_user.map(str::to_owned));
    }
    words.push("sh".to_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}
