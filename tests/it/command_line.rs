//! The command line as a person meets it: mistakes, settings in a file, pipes that are closed.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use plc_replica::store::NewRefusal;
use plc_testkit::builder::Story;
use tempfile::TempDir;

use crate::process::{program, without_settings};
use plc_testkit::fake_upstream::LogEntry;

/// What came of a run.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    errors: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let [out, errors] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        Ran { code: output.status.code(), out, errors }
    }
}

/// Runs in a folder, with no settings but those that are given.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = program(arguments);
    command.current_dir(folder);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Ran {
    command(folder, arguments).output().unwrap().into()
}

/// A folder with `dump.jsonl` and, taken from it, `plc.db`.
fn begun(identities: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut story = Story::seeded(61);
    for _ in 0..identities {
        story.create().accepted();
    }
    let lines: Vec<String> =
        story.log().iter().map(|entry| LogEntry::from(entry).sequenced()).collect();
    std::fs::write(folder.path().join("dump.jsonl"), lines.join("\n")).unwrap();
    let imported = run(folder.path(), &["import", "dump.jsonl"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    folder
}

#[test]
fn a_database_that_is_not_there_is_a_mistake() {
    let folder = TempDir::new().unwrap();
    let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    std::fs::write(folder.path().join("empty.db"), "").unwrap();
    for arguments in [
        &["fsck"][..],
        &["refused"],
        &["export"],
        &["resolve", did],
        &["history", did],
        &["audit", "--full"],
    ] {
        for (name, said) in
            [("typo.db", "there is no database typo.db"), ("empty.db", "there is no log")]
        {
            let database = format!("sqlite://{name}");
            let ran = run(folder.path(), &[arguments, &["--database", &database]].concat());
            assert_eq!((ran.code, &*ran.out), (Some(2), ""), "{ran:?}");
            assert!(ran.errors.contains(said), "{ran:?}");
        }
    }
    assert!(!folder.path().join("typo.db").exists());
    assert_eq!(std::fs::metadata(folder.path().join("empty.db")).unwrap().len(), 0);
    std::fs::write(folder.path().join("dump.jsonl"), "{}").unwrap();
    for arguments in [&["fsck"][..], &["import", "dump.jsonl"]] {
        let ran = run(folder.path(), &[arguments, &["--database", "sqlite:///tmp"]].concat());
        assert!(ran.code == Some(2) && ran.errors.contains("directory"), "{ran:?}");
    }
}

/// What looks like more than the name of a file is not taken for one, and where a server is has to be said.
#[test]
fn a_database_that_is_named_wrongly_is_a_mistake() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("dump.jsonl"), "{}").unwrap();
    let said = |url: &str| {
        let import = ["import", "dump.jsonl", "--database", url];
        let serve =
            ["--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:9", "--database", url];
        let [imported, served] = [&import[..], &serve].map(|arguments| {
            let mut command = command(folder.path(), arguments);
            Ran::from(command.env_remove("PGHOST").env_remove("PGHOSTADDR").output().unwrap())
        });
        assert_eq!((imported.code, served.code), (Some(2), Some(2)), "{imported:?} {served:?}");
        assert_eq!(imported.errors, served.errors);
        imported.errors
    };
    for (url, part) in [
        ("sqlite://f.db?mode=ro", "has the query `?mode=ro`"),
        ("sqlite://f.db?", "has the query `?`"),
        ("sqlite://:memory:", "it takes the path of a file"),
        ("postgres://", "it names no host"),
        ("postgres:///plc", "it names no host"),
        ("postgresql:///plc?user=me&host=", "it names no host"),
    ] {
        assert!(said(url).contains(part), "{url}: {}", said(url));
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // The folder of a socket is a host, also where there is none.
    let fsck = run(folder.path(), &["fsck", "--database", "postgres:///plc?host=/nonexistent"]);
    assert!(fsck.errors.contains("is unavailable"), "{fsck:?}");
}

/// Every file in a folder with its bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Commands that open a database: those that create one, and the others.
fn openers(url: &str) -> ([Vec<&str>; 2], Vec<Vec<&str>>) {
    let database = ["--database", url];
    let upstream = ["--upstream", "http://127.0.0.1:9"];
    let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let creating = [
        [&["import", "dump.jsonl"][..], &database].concat(),
        [&["--listen", "127.0.0.1:0"][..], &upstream, &database].concat(),
    ];
    let looking = [
        &["fsck"][..],
        &["refused"],
        &["export"],
        &["resolve", did],
        &["history", did],
        &["audit", "--full", "--against", "dump.jsonl"],
        &["repair", "--all", upstream[0], upstream[1]],
        &["renumber", upstream[0], upstream[1]],
    ];
    (creating, looking.iter().map(|command| [command, &database[..]].concat()).collect())
}

#[test]
fn a_file_of_another_application_is_left_as_it_is() {
    for (sql, seen) in [
        ("CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('x')", "it has users"),
        ("PRAGMA journal_mode = wal; CREATE TABLE users (name TEXT)", "it has users"),
        ("PRAGMA user_version = 1; CREATE TABLE operations (sequence)", "it has operations"),
        ("PRAGMA application_id = 252006674", "application_id 252006674, user_version 0"),
        ("PRAGMA user_version = 7", "application_id 0, user_version 7"),
        ("CREATE VIEW one AS SELECT 1", "it has one"),
    ] {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("dump.jsonl"), "{}").unwrap();
        let theirs = rusqlite::Connection::open(folder.path().join("other.db")).unwrap();
        // As a crash of theirs leaves it: with all of it in the log beside the file.
        let keep = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        theirs.set_db_config(keep, true).unwrap();
        theirs.execute_batch(sql).unwrap();
        drop(theirs);
        let without_index = |folder: &Path| {
            let mut files = files(folder);
            // How it is found again what is in the log; made anew by each reader.
            files.retain(|(name, _)| !name.ends_with("-shm"));
            files
        };
        let before = without_index(folder.path());
        let (creating, looking) = openers("sqlite://other.db");
        for arguments in creating.iter().chain(&looking) {
            let ran = run(folder.path(), arguments);
            let said = format!("is of another application ({seen}, ");
            assert!(ran.code == Some(2) && ran.errors.contains(&said), "{arguments:?} {ran:?}");
            assert!(without_index(folder.path()) == before, "{arguments:?} {sql}");
        }
    }
}

/// A log of ours that an older version has written is brought up to date by who says so, and by nobody else.
#[test]
fn only_who_creates_a_database_changes_its_tables() {
    let folder = begun(1);
    let marks = || {
        let file = rusqlite::Connection::open(folder.path().join("plc.db")).unwrap();
        let mark = |name| file.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        (mark("application_id"), mark("user_version"))
    };
    assert_eq!(marks(), (i64::from(u32::from_be_bytes(*b"PLCr")), 1));
    let file = rusqlite::Connection::open(folder.path().join("plc.db")).unwrap();
    file.pragma_update(None, "user_version", 0).unwrap();
    drop(file);
    let (_, looking) = openers("sqlite://plc.db");
    for arguments in &looking {
        let ran = run(folder.path(), arguments);
        assert!(ran.code == Some(2) && ran.errors.contains("an older version"), "{ran:?}");
    }
    assert_eq!(marks().1, 0);
}

/// What is in a Postgres database: tables, views, functions and types.
const INVENTORY: &str = "SELECT string_agg(name, ' ' ORDER BY name) FROM (
    SELECT relname::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace) AS all_there";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_database_of_another_application_is_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("dump.jsonl"), "{}").unwrap();
    for (sql, said) in [
        ("CREATE TABLE users (name text)", "is of another application (its schema has users, "),
        (
            "CREATE TABLE _sqlx_migrations (version int8 PRIMARY KEY, description text NOT NULL,
                installed_on timestamptz NOT NULL DEFAULT now(), success bool NOT NULL, checksum bytea NOT NULL,
                execution_time int8 NOT NULL);
             INSERT INTO _sqlx_migrations VALUES (1, 'users', now(), true, '', 1)",
            "is of another application (its schema has _sqlx_migrations, ",
        ),
        // Nothing that we look for, and in the way.
        ("CREATE FUNCTION plc_did(did bytea) RETURNS text LANGUAGE sql AS 'SELECT 1::text'", ""),
    ] {
        let Some(database) = plc_testkit::postgres::Database::create().await else { return };
        let mut client = database.client().await;
        client.run(sql).await;
        let before = client.value(INVENTORY).await;
        let (creating, looking) = openers(&database.url);
        for arguments in &creating {
            let ran = tokio::task::block_in_place(|| run(folder.path(), arguments));
            let said = if said.is_empty() { "the tables cannot be made" } else { said };
            assert!(ran.code == Some(2) && ran.errors.contains(said), "{arguments:?} {ran:?}");
        }
        for arguments in &looking {
            let ran = tokio::task::block_in_place(|| run(folder.path(), arguments));
            let said = if said.is_empty() { "there is no log" } else { said };
            assert!(ran.code == Some(2) && ran.errors.contains(said), "{arguments:?} {ran:?}");
        }
        assert_eq!(client.value(INVENTORY).await, before);
    }
    // A schema of its own beside them is as good as a database.
    let Some(database) = plc_testkit::postgres::Database::create().await else { return };
    let mut client = database.client().await;
    client.run("CREATE TABLE users (name text); CREATE SCHEMA log").await;
    let join = if database.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{join}options=-csearch_path%3Dlog", database.url);
    let store = plc_replica::store::Store::open(&url).await.unwrap();
    drop(store);
    let ran = tokio::task::block_in_place(|| run(folder.path(), &["fsck", "--database", &url]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// As a copy leaves it that was made through SQL, statement by statement.
#[test]
fn what_the_tables_of_a_file_lack_is_found() {
    for (sql, lacking) in [
        ("DROP INDEX operations_created_at", "the index operations_created_at is missing"),
        ("DROP VIEW log", "the view log is missing"),
        (
            "DROP TABLE claims; CREATE TABLE claims (pair INTEGER)",
            "the table claims as this program makes it is missing",
        ),
    ] {
        let folder = begun(2);
        assert_eq!(run(folder.path(), &["fsck"]).code, Some(0));
        let file = rusqlite::Connection::open(folder.path().join("plc.db")).unwrap();
        file.execute_batch(sql).unwrap();
        drop(file);
        let ran = run(folder.path(), &["fsck"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.out.starts_with(&format!("damaged: the tables: {lacking}\n")), "{ran:?}");
    }
}

#[test]
fn no_password_is_told() {
    let folder = TempDir::new().unwrap();
    for url in ["postgres:/u:hunter2@db/plc", "host=db password=hunter2", "pg://u:hunter2@db/plc"] {
        let ran = run(folder.path(), &["fsck", "--database", url]);
        assert!(ran.code == Some(2) && ran.errors.contains("sqlite://PATH"), "{ran:?}");
        let config = run(folder.path(), &["--database", url, "--upstream", url, "--print-config"]);
        assert!(config.code == Some(0) && config.out.contains("database = "), "{config:?}");
        assert!(!(ran.errors + &config.out).contains("hunter2"));
    }
    let text = "upstream = \"https://u:hunter2@plc.example\"";
    std::fs::write(folder.path().join("plc-replica.toml"), text).unwrap();
    let help = command(folder.path(), &["serve", "--help"])
        .env("PLC_UPSTREAM", "https://u:hunter2@plc.example")
        .output()
        .unwrap();
    let help = Ran::from(help);
    assert!(help.out.contains("PLC_UPSTREAM") && !help.out.contains("hunter2"), "{help:?}");
}

#[test]
fn a_file_with_settings_may_come_first_and_a_mistake_in_it_is_told() {
    let folder = begun(1);
    std::fs::write(folder.path().join("x.toml"), "database = \"sqlite://plc.db\"").unwrap();
    for config in [&["--config", "x.toml"][..], &["--config=x.toml"]] {
        let ran = run(folder.path(), &[config, &["fsck"]].concat());
        assert!(ran.code == Some(0) && ran.out.contains("1 operations"), "{ran:?}");
        let printed = run(folder.path(), &[config, &["export", "--print-config"]].concat());
        assert!(printed.out.contains("# file x.toml"), "{printed:?}");
    }
    for (text, said) in [
        ("nonsense = 1", "there is no setting `nonsense`"),
        ("sample = 1", "`sample` concerns one run"),
        ("rate-limit = \"many\"", "invalid value 'many'"),
    ] {
        std::fs::write(folder.path().join("plc-replica.toml"), text).unwrap();
        let ran = run(folder.path(), &["fsck"]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.errors.starts_with("plc-replica: plc-replica.toml: "), "{ran:?}");
        assert!(ran.errors.contains(said), "{ran:?}");
        for asked in ["--help", "--version"] {
            assert_eq!(run(folder.path(), &[asked]).code, Some(0));
        }
    }
}

#[test]
fn nothing_compared_is_not_all_is_well() {
    let folder = begun(3);
    std::fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    std::fs::write(folder.path().join("noise"), [0xff_u8, 0x00, 0x0a].repeat(1_000)).unwrap();
    for how in [&["--full"][..], &["--sample", "2"], &["--since", "2020-01-01"]] {
        for file in ["empty.jsonl", "noise"] {
            let ran = run(folder.path(), &[&["audit", "--against", file], how].concat());
            assert_eq!(ran.code, Some(2), "{ran:?}");
            assert!(ran.errors.contains(&format!("{file}: there is no entry")), "{ran:?}");
        }
    }
    let well = run(folder.path(), &["audit", "--against", "dump.jsonl", "--full"]);
    assert_eq!(well.code, Some(0), "{well:?}");
    let none = ["audit", "--against", "dump.jsonl", "--since", "2039-01-01"];
    let none = run(folder.path(), &none);
    assert!(none.code == Some(2) && none.errors.contains("nothing was compared"), "{none:?}");
    let ran = run(folder.path(), &["audit", "--against", "/nope", "--full"]);
    assert_eq!(ran.errors.matches("/nope").count(), 1, "{ran:?}");
}

/// What a person takes for a good end is one.
#[test]
fn nothing_verified_is_not_all_is_well() {
    let folder = begun(2);
    for (name, text) in [("empty", &b""[..]), ("array", b"[]\n"), ("noise", b"\xff\n{}\n[1]\n")] {
        std::fs::write(folder.path().join(name), text).unwrap();
        let none = format!("plc-replica: {name}: there is no entry of a log in it");
        let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
        for (arguments, end) in [
            (&["verify", name][..], "; nothing was verified\n"),
            (&["verify", "--json", name], "; nothing was verified\n"),
            (&["verify", "dump.jsonl", name], "; nothing was verified\n"),
            (&["import", name], "; nothing was imported\n"),
            (&["history", "--from", name, did], "\n"),
            (&["repair", "--from", name], "; nothing was compared\n"),
        ] {
            let ran = run(folder.path(), arguments);
            assert_eq!((ran.code, ran.errors), (Some(2), format!("{none}{end}")), "{arguments:?}");
        }
    }
    // An operation that is refused is one that was verified.
    let story = std::fs::read_to_string(folder.path().join("dump.jsonl")).unwrap();
    let line = story.lines().next().unwrap().replace("\"operation\":{", "\"operation\":{\"x\":1,");
    std::fs::write(folder.path().join("bad"), &line).unwrap();
    assert_eq!(run(folder.path(), &["verify", "bad"]).code, Some(1));
    assert_eq!(run(folder.path(), &["import", "bad"]).code, Some(0));
}

/// With a shell's `<&-` and `>&-`.
#[test]
fn what_is_closed_is_not_read_to_its_end_nor_written_to() {
    let folder = begun(2);
    let shell = |line: &str| {
        let program = env!("CARGO_BIN_EXE_plc-replica");
        let mut command = Command::new("sh");
        without_settings(&mut command);
        command.current_dir(folder.path());
        Ran::from(command.args(["-c", &line.replace("$", program)]).output().unwrap())
    };
    for command in ["verify", "import"] {
        let ran = shell(&format!("$ {command} - <&-"));
        let said = "plc-replica: standard input: there is no entry of a log in it; nothing was ";
        assert!(ran.code == Some(2) && ran.errors.starts_with(said), "{ran:?}");
    }
    let ran = shell("$ export >&-");
    let said = "plc-replica: standard output is closed: there is nowhere to write the log to\n";
    assert_eq!((ran.code, ran.errors.as_str()), (Some(2), said));
    for wanted in ["$ export >/dev/null", "$ export >out", "$ export | cat >/dev/null"] {
        assert_eq!(shell(wanted).code, Some(0), "{wanted}");
    }
}

#[test]
fn other_compressions_are_named_with_the_way_out() {
    let folder = begun(1);
    for (format, beginning, decompress) in [
        ("xz", &b"\xfd7zXZ\0\0\x04"[..], "xz -dc FILE"),
        ("bzip2", b"BZh91AY&SY", "bzip2 -dc FILE"),
        ("zip", b"PK\x03\x04\x14\0", "unzip -p FILE"),
        ("7z", b"7z\xbc\xaf\x27\x1c\0\x04", "7z x -so FILE"),
    ] {
        let name = format!("dump.{format}");
        std::fs::write(folder.path().join(&name), beginning).unwrap();
        let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
        for arguments in [
            &["verify", &name][..],
            &["import", &name],
            &["history", "--from", &name, did],
            &["audit", "--full", "--against", &name],
        ] {
            let ran = run(folder.path(), arguments);
            let said = format!("{name}: is compressed with {format}, which is not read here");
            assert!(ran.code == Some(2) && ran.errors.contains(&said), "{ran:?}");
            assert!(ran.errors.contains(&format!("`{decompress} | plc-replica verify -`")));
        }
    }
}

/// As an editor shows them.
#[test]
fn lines_of_an_array_that_is_printed_for_people_are_those_of_the_file() {
    let folder = begun(3);
    let text = std::fs::read_to_string(folder.path().join("dump.jsonl")).unwrap();
    let mut entries: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    entries[2]["cid"] = entries[0]["cid"].clone();
    let pretty = serde_json::to_string_pretty(&entries).unwrap();
    let begins: Vec<usize> = (1..)
        .zip(pretty.lines())
        .filter_map(|(number, line)| (line == "  {").then_some(number))
        .collect();
    std::fs::write(folder.path().join("array.json"), &pretty).unwrap();
    let ran = run(folder.path(), &["verify", "array.json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.starts_with(&format!("line {}: ", begins[2])), "{ran:?}");
}

#[test]
fn a_pipe_that_is_closed_ends_a_command_quietly() {
    let folder = begun(600);
    let ends_quietly = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(folder.path(), arguments);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!((ran.code, &*ran.errors), (Some(141), ""), "{arguments:?} {ran:?}");
    };
    ends_quietly(&["export"]);
    ends_quietly(&["fsck", "--json"]);
    ends_quietly(&["completions", "bash"]);
    ends_quietly(&["import", "dump.jsonl"]);
    let database = rusqlite::Connection::open(folder.path().join("plc.db")).unwrap();
    database.execute("UPDATE operations SET operation = x'0102'", []).unwrap();
    ends_quietly(&["fsck"]);
}

#[test]
fn mistakes_are_told_in_a_sentence() {
    let folder = begun(1);
    let nothing = run(folder.path(), &["refused", "--did", "nonsense"]);
    let said = "plc-replica: nothing is on record under nonsense, which is no did:plc identifier\n";
    assert_eq!((nothing.code, nothing.out.as_str(), nothing.errors.as_str()), (Some(2), "", said));
    let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let nothing = run(folder.path(), &["refused", "--did", did]);
    let said = format!("nothing is on record under {did}\n");
    assert_eq!((nothing.code, nothing.out), (Some(0), said));
    for (arguments, said) in [
        (&["--listen", "localhost:http"][..], "expected IP:PORT"),
        (&["--log", "verbos"], "`verbos` is no level"),
        (&["audit", "--since", "yesterday"], "expected 2024-01-31T12:00:00.000Z or 2024-01-31"),
    ] {
        let ran = run(folder.path(), arguments);
        assert!(ran.code == Some(2) && ran.errors.contains(said), "{ran:?}");
    }
}

/// With its name, the reason, and the way out.
#[test]
fn what_cannot_be_used_is_told_in_a_sentence() {
    let folder = begun(1);
    std::fs::write(folder.path().join("noise.db"), [0x5a; 8_192]).unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::create_dir(folder.path().join("blocked.db-wal")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let noise = "plc-replica: the store is damaged at the database noise.db: file is not a database; put a backup in \
                 its place, or take the log into another database, with `import` or `serve` and --database";
    for (arguments, said) in [
        (
            &["--upstream", "plc.directory"][..],
            "plc-replica: --upstream: an upstream is an http:// or https:// URL without query, such as \
             https://plc.directory; \"plc.directory\" is not (it begins with neither)",
        ),
        (
            &["verify", "folder"],
            "plc-replica: folder: cannot be opened: it is a directory; name the files in it",
        ),
        (&["fsck", "--database", "sqlite://noise.db"], noise),
        (&["import", "dump.jsonl", "--database", "sqlite://noise.db"], noise),
        (&["--listen", "127.0.0.1:0", "--database", "sqlite://noise.db"], noise),
        (
            &["--listen", &taken],
            &format!(
                "plc-replica: --listen {taken}: cannot listen there (it takes an address of this machine and a free \
                 port): Address already in use (os error 98)"
            ),
        ),
        (
            // Nobody may create a file there.
            &["import", "dump.jsonl", "--database", "sqlite:///proc/plc.db"],
            "plc-replica: the database is unavailable: /proc/plc.db cannot be opened: No such file or directory \
             (os error 2); --database takes a file in a folder in which this user may write",
        ),
        (
            &["import", "dump.jsonl", "--database", "sqlite:///dev/null"],
            "plc-replica: the setting --database names /dev/null, which is a device or a pipe; it takes a file",
        ),
        (
            &["fsck", "--database", "sqlite:///dev/null"],
            "plc-replica: the setting --database names /dev/null, which is a device or a pipe; it takes a file",
        ),
        (
            // Its log cannot be written beside it.
            &["import", "dump.jsonl", "--database", "sqlite://blocked.db"],
            "plc-replica: the database is unavailable: blocked.db: disk I/O error; it needs a disk that \
             works, and beside it files of the same name with -wal and -shm",
        ),
        (
            // Nobody listens at that port.
            &["fsck", "--database", "postgres://me:secret@127.0.0.1:9/plc"],
            "plc-replica: the database is unavailable: no connection to plc at 127.0.0.1:9: Connection refused (os \
             error 111); see whether the server runs there, or name another one with --database",
        ),
    ] {
        let ran = run(folder.path(), arguments);
        assert_eq!((ran.code, ran.errors.trim_end()), (Some(2), said), "{arguments:?}");
    }
}

/// Damage in the middle is met only by what reads it.
#[test]
fn damage_in_the_middle_of_a_database_is_told_with_its_name() {
    let folder = begun(200);
    let path = folder.path().join("plc.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    bytes[4096 * 2..4096 * (pages - 1)].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    for arguments in [&["export"][..], &["history", "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"]] {
        let ran = run(folder.path(), arguments);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let begin = "plc-replica: the store is damaged at the database plc.db: ";
        assert!(ran.errors.starts_with(begin) && ran.errors.contains("put a backup"), "{ran:?}");
    }
}

#[test]
fn a_page_of_divergences_is_evidence_whatever_is_on_it() {
    let folder = begun(2);
    let log = std::fs::read_to_string(folder.path().join("dump.jsonl")).unwrap();
    let entry = log.lines().next().unwrap();
    let mut entry: serde_json::Value = serde_json::from_str(entry).unwrap();
    entry["nullified"] = false.into();
    let page = folder.path().join("page.json");
    std::fs::write(&page, "{\"divergences\":[],\"next\":null}\n").unwrap();
    let ran = run(folder.path(), &["verify", "page.json"]);
    assert_eq!((ran.code, &*ran.out), (Some(0), "page.json: no differences\n"), "{ran:?}");
    // More than an entry of a log may be.
    let long = "x".repeat(6 << 20);
    let record = serde_json::json!({
        "id": 7, "did": entry["did"], "kind": "missing-there", "subject": entry["cid"],
        "ours": [entry], "theirs": long,
    });
    let text = serde_json::json!({ "divergences": [record], "next": null }).to_string();
    std::fs::write(&page, text).unwrap();
    let ran = run(folder.path(), &["verify", "page.json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("ours: one operation, which verifies"), "{ran:?}");
}

/// What is refused is kept up to so many bytes, the newest of it.
#[tokio::test(flavor = "multi_thread")]
async fn refused_lines_are_kept_within_the_stated_bounds() {
    let mut story = Story::seeded(62);
    let thief = story.k256();
    for _ in 0..2 {
        let identity = story.create().accepted();
        for _ in 0..20 {
            story.update(&identity).signed_by(&thief).refused("signature-invalid");
        }
    }
    let lines: Vec<String> =
        story.log().iter().map(|entry| LogEntry::from(entry).sequenced()).collect();
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("dump.jsonl"), lines.join("\n")).unwrap();
    for (database, arguments, environment, of_one, in_all) in [
        ("usual.db", &[][..], "268435456", u64::MAX, u64::MAX),
        ("flag.db", &["--refused-bytes-per-identity", "6000"], "268435456", 6_000, 12_000),
        ("both.db", &["--refused-bytes-per-identity", "6000"], "5000", 6_000, 5_000),
    ] {
        let url = format!("sqlite://{}", folder.path().join(database).display());
        let import = [&["import", "dump.jsonl", "--database", &url], arguments].concat();
        let mut import = command(folder.path(), &import);
        let imported = Ran::from(import.env("PLC_REFUSED_BYTES", environment).output().unwrap());
        assert_eq!(imported.code, Some(0), "{imported:?}");
        assert!(imported.out.contains("40 refused"), "{imported:?}");
        let store = plc_replica::store::Store::open(&url).await.unwrap();
        let kept = store.refusals(None, 0, 100).await.unwrap();
        let bytes = |did: Option<&str>| -> u64 {
            let of = kept.iter().filter(|kept| did.is_none_or(|did| kept.refusal.did == did));
            let counted =
                |of: &NewRefusal| of.line.len() + of.detail.len() + 2 * of.did.len() + 300;
            of.map(|kept| counted(&kept.refusal) as u64).sum()
        };
        let forgotten = store.statistics().await.unwrap().forgotten_refusals;
        assert_eq!(kept.len() as u64 + forgotten, 40, "{database}");
        assert_eq!(forgotten > 0, in_all < u64::MAX, "{database}");
        assert!(bytes(None) <= in_all && bytes(None) > in_all.min(6_000) / 2, "{database}");
        for entry in story.log() {
            assert!(bytes(Some(&entry.did)) <= of_one, "{database}");
        }
        let newest = story.log().last().unwrap().seq;
        assert_eq!(kept.last().unwrap().refusal.sequence, Some(newest), "{database}");
    }
}

/// Neither command says of an identity that it is not there when operations of it were refused.
#[test]
fn who_has_only_refused_operations_is_not_unknown() {
    let mut story = Story::seeded(63);
    let forged = story.create().forged_signature().refused("signature-invalid");
    let unknown = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let folder = TempDir::new().unwrap();
    let line = LogEntry::from(&story.log()[0]).sequenced();
    std::fs::write(folder.path().join("dump.jsonl"), line).unwrap();
    let imported = run(folder.path(), &["import", "dump.jsonl"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    for command in ["resolve", "history"] {
        let ran = run(folder.path(), &[command, &forged.did]);
        let said = format!(
            "operations of {did} were received and none of them verifies: \
             see `plc-replica refused --did {did}`\n",
            did = forged.did
        );
        assert_eq!((ran.code, ran.errors.as_str(), ran.out.as_str()), (Some(1), &*said, ""));
        let ran = run(folder.path(), &[command, unknown]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.errors.starts_with(&format!("{unknown} is not in sqlite://")), "{ran:?}");
    }
}

#[test]
fn settings_are_taken_as_people_write_them() {
    let folder = begun(1);
    let imported = command(
        folder.path(),
        &["import", "dump.jsonl", "--database", "other.db", "--signature-tables=false"],
    )
    .env("PLC_UPSTREM", "http://127.0.0.1:9")
    .output();
    let imported = Ran::from(imported.unwrap());
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.errors.contains("did you mean PLC_UPSTREAM?"), "{imported:?}");
    assert!(folder.path().join("other.db").exists());
}

#[test]
fn import_says_what_kinds_of_lines_it_refused() {
    let folder = begun(3);
    let dump = std::fs::read_to_string(folder.path().join("dump.jsonl")).unwrap();
    let mut lines: Vec<String> = dump.lines().map(str::to_owned).collect();
    lines[0] = lines[0].replace("\"sig\":\"", "\"sig\":\"A");
    std::fs::write(folder.path().join("damaged.jsonl"), lines.join("\n")).unwrap();
    let imported = run(folder.path(), &["import", "damaged.jsonl", "--database", "other.db"]);
    let said: Vec<&str> = imported.out.lines().collect();
    assert!(said[0].contains(", 1 refused; "), "{imported:?}");
    assert_eq!(said[1..], ["    cid-mismatch  1"], "{imported:?}");
}
