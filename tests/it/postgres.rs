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
    // All that is needed in one place: a link to some of them elsewhere does not do.
    let complete = |directory: &PathBuf| {
        ["initdb", "postgres", "pg_isready"].iter().all(|program| directory.join(program).exists())
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
"$PROGRAMS/postgres" -D "$directory/data" -k "$directory" -c listen_addresses= \
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

// It ends by itself when our end of its input is closed, which is when nobody is left to wait.
#[allow(clippy::zombie_processes)]
fn start(programs: &Path) -> String {
    /// Open for as long as this process lives.
    static LIFE: Mutex<Option<ChildStdin>> = Mutex::new(None);
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
    format!("postgres://postgres@{}/postgres", directory.trim_end().replace('/', "%2F"))
}

mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use did_plc::{Did, Timestamp};
    use plc_replica::store::{Commit, NewRefusal, Store, StoreError, StoredOperation};
    use plc_testkit::builder::Story;

    use super::Database;

    const UPSTREAM: &str = "http://127.0.0.1:1";

    /// A story's log as it is stored, each identity with two operations.
    fn operations(identities: usize) -> Vec<StoredOperation> {
        let mut story = Story::seeded(7);
        for _ in 0..identities {
            let identity = story.create().accepted();
            story.update(&identity).host("https://elsewhere.example.com").accepted();
        }
        let stored = |entry: &plc_testkit::Generated| StoredOperation {
            did: entry.did.parse().unwrap(),
            created_at: entry.created_at.parse().unwrap(),
            sequence: Some(entry.seq),
            signed: Bytes::from(entry.signed.clone()),
            signer: 1,
            nullified_by: None,
            received_at: Timestamp::from_millis(1_800_000_000_123),
        };
        story.log().iter().map(stored).collect()
    }

    fn commit(cursor_before: i64, operations: &[StoredOperation]) -> Commit {
        let last = operations.iter().filter_map(|new| new.sequence).max();
        Commit {
            cursor_before,
            cursor_after: last.unwrap_or(cursor_before),
            operations: operations.to_vec(),
            received_at_millis: 1_800_000_000_123,
            ..Commit::default()
        }
    }

    /// Lookups at the same time share queries, and each gets its own answer.
    #[tokio::test(flavor = "multi_thread")]
    async fn gathered_lookups_are_told_apart() {
        let Some(database) = Database::create().await else { return };
        let store = Store::open(&database.url).await.unwrap();
        let log = operations(300);
        let (lease, source) = store.follow(UPSTREAM).await.unwrap();
        assert_eq!((source.cursor, source.epoch), (0, 1));
        // In two pieces and backwards: the order of rows is not that of the log.
        let mut backwards = log[..400].to_vec();
        backwards.reverse();
        store.commit(&lease, &commit(0, &backwards)).await.unwrap();
        store.commit(&lease, &commit(400, &log[400..])).await.unwrap();

        let unknown = Did::from_bytes([7; 15]);
        let lookups = log.chunks(2).map(|chain| {
            let store = store.clone();
            async move {
                assert_eq!(store.head(&chain[0].did).await.unwrap().as_ref(), chain.last());
                assert_eq!(store.history(&chain[0].did).await.unwrap(), chain);
                assert_eq!(store.head(&unknown).await.unwrap(), None);
                assert_eq!(store.history(&unknown).await.unwrap(), []);
            }
        });
        futures::future::join_all(lookups).await;
        assert_eq!(store.export_by_sequence(0, 1000).await.unwrap(), log);
        let statistics = store.statistics().await.unwrap();
        assert_eq!((statistics.operations, statistics.identities), (600, 300));
    }

    /// Numbers that another process gave to texts are found when they are met.
    #[tokio::test(flavor = "multi_thread")]
    async fn another_process_reads_what_is_interned_meanwhile() {
        let Some(database) = Database::create().await else { return };
        let log = operations(600);
        let writer = Store::open(&database.url).await.unwrap();
        let reader = Store::open(&database.url).await.unwrap();
        let (lease, _) = writer.follow(UPSTREAM).await.unwrap();
        let mut cursor = 0;
        for piece in log.chunks(200) {
            writer.commit(&lease, &commit(cursor, piece)).await.unwrap();
            assert_eq!(reader.export_by_sequence(cursor, 1000).await.unwrap(), piece);
            assert_eq!(reader.head(&piece[199].did).await.unwrap().as_ref(), piece.last());
            cursor += 200;
        }
        let client = database.client().await;
        let row = client.query_one("SELECT count(*) FROM interned", &[]).await.unwrap();
        assert!(row.get::<_, i64>(0) > 0, "nothing was interned: the test shows nothing");

        // The one who takes over goes on with the numbers of the one before.
        writer.release(lease).await.unwrap();
        let (lease, source) = reader.follow(UPSTREAM).await.unwrap();
        let more = operations(700);
        reader.commit(&lease, &commit(source.cursor, &more[1200..])).await.unwrap();
        assert_eq!(writer.export_by_sequence(0, 2000).await.unwrap(), more);
    }

    /// While catching up COMMIT does not wait for the disk, unless it gives numbers to texts: this
    /// process refers to them from then on, whatever a crash of the server takes back.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_interned_is_durable_also_while_catching_up() {
        let Some(database) = Database::create().await else { return };
        let store = Store::open(&database.url).await.unwrap();
        // Deferred triggers run when COMMIT does.
        let client = database.client().await;
        let noting = "CREATE TABLE noted (what text, setting text);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO public.noted
                    VALUES (TG_TABLE_NAME, current_setting('synchronous_commit'));
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER note AFTER INSERT ON interned
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
            CREATE CONSTRAINT TRIGGER note AFTER INSERT ON operations
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()";
        client.batch_execute(noting).await.unwrap();
        let log = operations(10);
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        store.set_durability(false).await.unwrap();
        store.commit(&lease, &commit(0, &log[..10])).await.unwrap();
        let rows = client.query("SELECT DISTINCT what, setting FROM noted ORDER BY 1", &[]);
        let noted: Vec<(String, String)> =
            rows.await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        let on = |what: &str| (what.to_owned(), "on".to_owned());
        assert_eq!(noted, [on("interned"), on("operations")]);

        client.batch_execute("TRUNCATE noted").await.unwrap();
        store.commit(&lease, &commit(10, &log[10..11])).await.unwrap();
        let rows = client.query("SELECT DISTINCT what, setting FROM noted", &[]).await.unwrap();
        assert_eq!(rows.len(), 1, "nothing new to intern was expected");
        assert_eq!((rows[0].get(0), rows[0].get(1)), ("operations", "off"));
    }

    /// While the server is away requests fail at once; when it is back they succeed again.
    #[tokio::test(flavor = "multi_thread")]
    async fn connections_come_back_by_themselves() {
        let Some(database) = Database::create().await else { return };
        let store = Store::open(&database.url).await.unwrap();
        let log = operations(10);
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        store.commit(&lease, &commit(0, &log[..10])).await.unwrap();
        assert_eq!(store.head(&log[0].did).await.unwrap().as_ref(), Some(&log[1]));

        database.interrupt(true).await;
        let began = Instant::now();
        for _ in 0..200 {
            let error = store.head(&log[0].did).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            let error = store.export_by_sequence(0, 1).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            let error = store.commit(&lease, &commit(10, &log[10..])).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

        database.interrupt(false).await;
        let back = async {
            while store.head(&log[0].did).await.is_err()
                || store.renew(&lease).await.is_err()
                // Pages are read by three connections in turn, and each has a back-off of its own.
                || store.export_by_sequence(0, 1).await.is_err()
                || store.export_by_sequence(0, 1).await.is_err()
                || store.export_by_sequence(0, 1).await.is_err()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), back).await.unwrap();
        store.commit(&lease, &commit(10, &log[10..])).await.unwrap();
        assert_eq!(store.export_by_sequence(0, 100).await.unwrap(), log);
    }

    /// Whatever goes wrong in a commit, and wherever it is dropped, leaves nothing behind.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_is_whole_or_nothing() {
        let Some(database) = Database::create().await else { return };
        let store = Store::open(&database.url).await.unwrap();
        let log = operations(500);
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();

        let mut twice = commit(0, &log[..10]);
        twice.operations.push(log[0].clone());
        let error = store.commit(&lease, &twice).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        let mut missing = commit(0, &log[..10]);
        missing.nullified = vec![(log[20].did, log[20].created_at, log[21].created_at)];
        let error = store.commit(&lease, &missing).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        let error = store.commit(&lease, &commit(1, &log[..10])).await.unwrap_err();
        assert!(matches!(error, StoreError::LostLease(_)), "{error}");
        assert_eq!(store.export_by_time(None, 10).await.unwrap(), []);
        assert_eq!(store.source().await.unwrap().unwrap().cursor, 0);

        // Dropped after ever longer times, until it is through.
        let all = commit(0, &log);
        for step in 0.. {
            let time = Duration::from_micros(200 * step);
            let ended = tokio::time::timeout(time, store.commit(&lease, &all)).await;
            let cursor = store.source().await.unwrap().unwrap().cursor;
            let stored = store.export_by_sequence(0, 2000).await.unwrap().len() as i64;
            assert_eq!(stored, cursor);
            match ended {
                Ok(ended) => ended.unwrap(),
                Err(_) if cursor == 0 => continue,
                Err(_) => {}
            }
            assert_eq!(cursor, 1000);
            break;
        }
        assert_eq!(store.export_by_sequence(0, 2000).await.unwrap(), log);
    }

    /// A commit that is dropped at COMMIT, whose outcome nobody here has heard, keeps nobody waiting
    /// who comes after it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_in_doubt_holds_up_nothing() {
        let Some(database) = Database::create().await else { return };
        let store = Store::open(&database.url).await.unwrap();
        let client = database.client().await;
        // Deferred triggers run when COMMIT does.
        let delaying = "CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_sleep(2);
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER delay AFTER INSERT ON operations
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION delay()";
        client.batch_execute(delaying).await.unwrap();
        let log = operations(1);
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let delayed = commit(0, &log[..1]);
        let dropped = store.commit(&lease, &delayed);
        tokio::time::timeout(Duration::from_secs(1), dropped).await.unwrap_err();

        let soon = Duration::from_secs(10);
        let after = tokio::time::timeout(soon, store.commit(&lease, &delayed)).await.unwrap();
        assert!(matches!(after, Err(StoreError::LostLease(_))), "{after:?}");
        let released = tokio::time::timeout(soon, store.release(lease)).await.unwrap();
        released.unwrap();

        // Who takes the lease has waited for the row: nobody who reads has to do it again.
        let (_, source) = store.follow(UPSTREAM).await.unwrap();
        assert_eq!(source.cursor, 1);
        client.batch_execute("BEGIN; SELECT FROM sources FOR UPDATE").await.unwrap();
        let read = tokio::time::timeout(soon, store.source()).await.unwrap().unwrap();
        assert_eq!(read, Some(source));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn people_read_the_text_forms() {
        let Some(database) = Database::create().await else { return };
        let store = Store::open(&database.url).await.unwrap();
        let log = operations(1);
        let (lease, _) = store.follow(UPSTREAM).await.unwrap();
        let mut commit = commit(0, &log);
        let refusal = |did: &str, line: &'static [u8]| NewRefusal {
            did: did.to_owned(),
            sequence: None,
            cid: Some(log[0].cid()),
            kind: "malformed".to_owned(),
            detail: String::new(),
            awaits: None,
            line: Bytes::from_static(line),
        };
        commit.refusals = vec![refusal("did:plc:\0é", b"{}"), refusal("é", b"\xff")];
        store.commit(&lease, &commit).await.unwrap();
        assert_eq!(store.refusals(Some("did:plc:\0é"), 0, 10).await.unwrap().len(), 1);

        let client = database.client().await;
        let text = async |sql: &str| -> String {
            client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap()
        };
        let did = log[0].did.to_string();
        assert_eq!(text("SELECT did FROM history LIMIT 1").await, did);
        let back = format!(
            "SELECT DISTINCT encode(did, 'hex') FROM operations WHERE did = plc_did('{did}')"
        );
        assert_eq!(text(&back).await, data_encoding::HEXLOWER.encode(log[0].did.as_bytes()));
        let sql = "SELECT plc_did(plc_did('did:plc:77777777777777777777zzzz'))";
        assert_eq!(text(sql).await, "did:plc:77777777777777777777zzzz");
        assert_eq!(
            text("SELECT cid FROM readable_refusals LIMIT 1").await,
            log[0].cid().to_string()
        );
        assert_eq!(
            text("SELECT string_agg(did || ' ' || line, ', ' ORDER BY id) FROM readable_refusals")
                .await,
            r"did:plc:\000\303\251 {}, é \377"
        );
        let sql = "SELECT to_char(min(created_at) AT TIME ZONE 'UTC',
            'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') FROM history";
        assert_eq!(text(sql).await, log[0].created_at.to_string());
        client.batch_execute("SELECT * FROM readable_divergences").await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_database_that_cannot_be_used_is_named_in_a_sentence() {
        let Some(database) = Database::create().await else { return };
        let sentence = async |url: &str| match Store::open(url).await {
            Err(StoreError::Unusable(sentence)) => sentence,
            other => panic!("{url}: {other:?}"),
        };
        let missing = database.url.replace("plc_test", "no_such");
        assert!(
            sentence(&missing).await.contains("does not exist"),
            "{}",
            sentence(&missing).await
        );
        let wrong = sentence("postgres://user:secret@localhost:none/plc").await;
        assert!(wrong.contains("port") && !wrong.contains("secret"), "{wrong}");
        let wrong = sentence("postgres://localhost/plc?sslmode=perhaps").await;
        assert!(wrong.contains("sslmode=perhaps"), "{wrong}");

        match Store::open_existing(&database.url).await {
            Err(StoreError::Unusable(sentence)) => assert!(sentence.contains("there is no log")),
            other => panic!("{other:?}"),
        }

        // Opened by two at once, then by one, then left by a newer version.
        let (one, other) = tokio::join!(Store::open(&database.url), Store::open(&database.url));
        one.unwrap();
        other.unwrap();
        Store::open_existing(&database.url).await.unwrap();
        let client = database.client().await;
        client
            .batch_execute("INSERT INTO migrations (name, digest) VALUES ('9999_later', '\\x00')")
            .await
            .unwrap();
        assert!(sentence(&database.url).await.contains("newer version"));
    }

    /// The lease runs on the server's clock, and one follower at a time has it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_follower_is_kept_out() {
        let Some(database) = Database::create().await else { return };
        let first = Store::open(&database.url).await.unwrap();
        let second = Store::open(&database.url).await.unwrap();
        let (lease, _) = first.follow(UPSTREAM).await.unwrap();
        let error = second.follow(UPSTREAM).await.unwrap_err();
        assert!(error.to_string().contains("another 15 s"), "{error}");
        let client = database.client().await;
        client.batch_execute("UPDATE sources SET lease_until = now()").await.unwrap();
        let (taken, source) = second.follow(UPSTREAM).await.unwrap();
        assert_eq!((taken.epoch, source.cursor), (2, 0));
        for error in [
            first.renew(&lease).await.unwrap_err(),
            first.commit(&lease, &Commit::default()).await.unwrap_err(),
            first.set_upstream(&lease, "http://127.0.0.1:2").await.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::LostLease(_)), "{error}");
        }
        first.release(lease).await.unwrap();
        second.commit(&taken, &Commit::default()).await.unwrap();
    }
}
