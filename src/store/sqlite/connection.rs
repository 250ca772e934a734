//! Connections: their settings, the tables, and those that read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use super::error::in_file;
use crate::escape::printable;
use crate::store::StoreError;

/// The steps from an empty file to the tables of today; `user_version` counts those taken ([`Version`]), and the first of
/// them comes with [`APPLICATION_ID`]. A released one is never edited.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/sqlite/0001_log.sql")];

/// Tells our files from those of other applications: `PLCr`, in the header of the file.
const APPLICATION_ID: i64 = 0x504c_4372;

/// The follower commits nothing more: its epoch is over.
const END_LEASE: &str = "UPDATE sources SET epoch = epoch + 1";

/// Bytes of a page, fixed when the file is created. A row takes some 180 bytes, so of every page a
/// few hundredths are wasted at its end.
const PAGE_SIZE: u32 = 4096;
/// Memory of the connection that writes: the inner pages of the index of identities, for a log of
/// any size, and the leaves that one commit touches.
const WRITER_CACHE_KIB: u32 = 16 * 1024;
/// Memory of each connection that reads: the inner pages of what it looks up. The rest comes from
/// the system's cache.
const READER_CACHE_KIB: u32 = 2 * 1024;
/// Pages of the write-ahead log after which it is copied into the database while catching up (80 MB): a page that
/// many commits change is copied once. SQLite's own 1,000 copy four times as much.
const CHECKPOINT_PAGES: u32 = 20_000;
/// The same while little is written (4 MB): a quiet log is not to take the room of a busy one in the course of hours.
const CHECKPOINT_PAGES_LIVE: u32 = 1_000;
/// What is left of the write-ahead log's file after it was copied, in bytes: about what it needs,
/// whatever a slow reader once made of it.
const LOG_SIZE: u32 = 100 << 20;
/// How long to wait for another process that creates or changes the tables.
const BUSY: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared: all that one that writes has, or one that reads.
const STATEMENTS: usize = 64;
/// How long a read waits for the connection of another one, where none can be opened.
const WAIT_FOR_ANOTHER: Duration = Duration::from_secs(1);
/// Connections that are kept when nobody reads.
const MAX_IDLE: usize = 16;

/// Opens the connection that writes, creating the database and its tables where they are missing.
pub(super) fn open_writer(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(missing) = folder.filter(|folder| !folder.is_dir()) {
        return Err(StoreError::Unusable(format!(
            "there is no folder {} for the database {}",
            missing.display(),
            path.display()
        )));
    }
    refuse_what_is_no_file(path)?;
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    with_tables(connection, path, migrations).map_err(|error| match in_file(path, error) {
        StoreError::Unavailable(reason) => StoreError::Unavailable(format!(
            "{reason}; it needs a disk that works, and beside it files of the same name with -wal and -shm"
        )),
        error => error,
    })
}

fn with_tables(
    mut connection: Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<Connection, StoreError> {
    look(&connection, path, migrations.len())?;
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "cache_size", -i64::from(WRITER_CACHE_KIB))?;
    connection.pragma_update(None, "journal_size_limit", LOG_SIZE)?;
    set_durability(&connection, true)?;
    migrate(&mut connection, migrations)?;
    Ok(connection)
}

/// Refuses a directory, a device, a pipe. A file that is not there is to be made.
fn refuse_what_is_no_file(path: &Path) -> Result<(), StoreError> {
    let named = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(StoreError::Unusable(format!(
            "the setting --database names the directory {named}; it takes a file in it"
        ))),
        Ok(found) if !found.is_file() => Err(StoreError::Unusable(format!(
            "the setting --database names {named}, which is a device or a pipe; it takes a file"
        ))),
        _ => Ok(()),
    }
}

/// Makes sure that there is a database of ours, without touching what there is.
pub(super) fn check_existing(path: &Path) -> Result<(), StoreError> {
    const WRITER: &str = "`serve` or `import`";
    let version = check(path, OpenFlags::SQLITE_OPEN_READ_WRITE, WRITER)?;
    if version.steps < MIGRATIONS.len() {
        return Err(StoreError::Unusable(format!(
            "the database {} was written by an older version of this program; {WRITER} brings it up to date",
            path.display()
        )));
    }
    Ok(())
}

/// The same without the right to write. What is old is for another process to bring up to date.
pub(super) fn check_readable(path: &Path) -> Result<(), StoreError> {
    const WRITER: &str = "a process that may follow (`serve --follow auto` or `on`)";
    let version = check(path, OpenFlags::SQLITE_OPEN_READ_ONLY, WRITER)?;
    if version.steps < MIGRATIONS.len() {
        return Err(StoreError::Unavailable(format!(
            "the tables of {} are of an older version of plc-replica, and wait for `plc-replica migrate`, or {WRITER} of \
             this version, to bring them up to date",
            path.display()
        )));
    }
    Ok(())
}

/// `writer` is who makes it where it is not there.
fn check(path: &Path, flags: OpenFlags, writer: &str) -> Result<Version, StoreError> {
    let unusable = |what: &str| {
        let file = path.display();
        StoreError::Unusable(format!("{what} {file}; {writer} creates one"))
    };
    refuse_what_is_no_file(path)?;
    if !path.exists() {
        return Err(unusable("there is no database"));
    }
    let connection = open(path, flags)?;
    match look(&connection, path, MIGRATIONS.len()).map_err(|error| in_file(path, error))? {
        Contents::Nothing => Err(unusable("there is no log in the database")),
        Contents::Log(version) => Ok(version),
    }
}

/// How far the tables are: what `user_version` says, in two halves of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    /// Steps that were taken, in the lower half.
    pub(super) steps: usize,
    /// The last of them after which the version before cannot read any more, in the upper half; 0 where it always can.
    breaking: usize,
}

impl Version {
    /// As a connection sees it.
    pub(super) fn of(connection: &Connection) -> Result<Version, StoreError> {
        let marks: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let marks = marks.cast_unsigned();
        Ok(Version { steps: (marks & 0xffff) as usize, breaking: (marks >> 16) as usize })
    }
}

/// What a file is to us.
enum Contents {
    /// Nobody has written anything into it.
    Nothing,
    /// Our tables.
    Log(Version),
}

/// Looks at what there is before anything is written, for a version of the program that knows so many steps.
///
/// # Errors
///
/// [`StoreError::Unusable`] where it is somebody else's, or a newer version has made it unreadable.
fn look(connection: &Connection, path: &Path, known: usize) -> Result<Contents, StoreError> {
    // Whoever has left a log beside a file that is not ours finds it there again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // At one moment: tables that another process makes meanwhile would be taken for somebody else's.
    let moment = connection.unchecked_transaction()?;
    let application: i64 = moment.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = Version::of(&moment)?;
    let contents = if application == APPLICATION_ID {
        if version.breaking > known {
            return Err(StoreError::Unusable(format!(
                "the database {} was written by a newer version of this program, and this one cannot read it any more (its \
                 tables are of version {}, this one knows {known})",
                path.display(),
                version.steps
            )));
        }
        Contents::Log(version)
    } else {
        let table: Option<String> = moment
            .query_row("SELECT name FROM sqlite_schema LIMIT 1", [], |row| row.get(0))
            .optional()?;
        match (table, application, version) {
            (None, 0, Version { steps: 0, breaking: 0 }) => Contents::Nothing,
            (Some(table), ..) => {
                return Err(foreign(path, &format!("it has {}", printable(&table))));
            }
            (None, ..) => {
                let marks = format!(
                    "application_id {application}, user_version {}",
                    version.breaking << 16 | version.steps
                );
                return Err(foreign(path, &marks));
            }
        }
    };
    drop(moment);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(contents)
}

/// That a file is not ours, and by what that is seen.
fn foreign(path: &Path, seen: &str) -> StoreError {
    StoreError::Unusable(format!(
        "the database {} is of another application ({seen}, and is not marked as a log of plc-replica); --database \
         takes a file of its own",
        path.display()
    ))
}

/// Whether each commit waits for the disk. It is the checkpoints that do otherwise, so that a
/// loss of power takes back whole commits, the last ones.
pub(super) fn set_durability(connection: &Connection, live: bool) -> Result<(), StoreError> {
    connection.pragma_update(None, "synchronous", if live { "full" } else { "normal" })?;
    let pages = if live { CHECKPOINT_PAGES_LIVE } else { CHECKPOINT_PAGES };
    connection.pragma_update(None, "wal_autocheckpoint", pages)?;
    Ok(())
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    // Each connection is used by one thread at a time, so it needs no lock of its own.
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| StoreError::Unavailable(cannot_be_opened(path, flags, &error)))?;
    connection.busy_timeout(BUSY)?;
    // Plans do not depend on the values that are looked for: otherwise, with statistics compiled
    // in, a statement is planned again each time that it is given another one.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Opens a connection that reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.pragma_update(None, "cache_size", -i64::from(READER_CACHE_KIB))?;
    Ok(connection)
}

/// That a database cannot be opened, and why: the system says it to whoever opens the file in the same way, and
/// SQLite does not tell.
fn cannot_be_opened(path: &Path, flags: OpenFlags, error: &rusqlite::Error) -> String {
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE))
        .create(flags.contains(OpenFlags::SQLITE_OPEN_CREATE))
        .open(path);
    let reason = opened.err().map_or_else(|| error.to_string(), |error| error.to_string());
    format!(
        "{} cannot be opened: {reason}; --database takes a file in a folder in which this user may write",
        path.display()
    )
}

/// Takes the steps that are missing, all in one transaction: a crash leaves the tables of before. What a newer version has
/// made is left as it is.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let missing = |version: Version| migrations.get(version.steps..).unwrap_or_default();
    if missing(Version::of(connection)?).is_empty() {
        return Ok(());
    }
    // Another process may be doing the same: what is missing is asked again under the lock.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = Version::of(&transaction)?;
    let missing = missing(version);
    if missing.is_empty() {
        return Ok(());
    }
    if version.steps > 0 {
        transaction.execute_batch(END_LEASE)?;
    }
    for step in missing {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
    transaction.commit()?;
    Ok(())
}

/// The connections that read. As many as are in use at a time, some of which are kept.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    connections: Mutex<Connections>,
    /// Told when one that was lent comes back, or is closed.
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Connections {
    idle: Vec<Connection>,
    lent: usize,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Readers {
        Readers { path, connections: Mutex::default(), returned: Condvar::new() }
    }

    /// Lends a connection for a read that ends its transaction itself.
    pub(super) fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (connection, mut lent) = self.lend()?;
        let result = read(&connection).map_err(|error| in_file(&self.path, error));
        // One that failed may have hit a file that was replaced: a new one sees what is there now. One whose
        // reader panicked is closed with it.
        if result.is_ok() {
            lent.returned = Some(connection);
        }
        result
    }

    /// A connection that is idle, or else another one. Where no other one can be opened (the file was moved away, or
    /// there are no descriptors left), the next that comes back: what is open reads on.
    fn lend(&self) -> Result<(Connection, Lent<'_>), StoreError> {
        let idle = self.connections().lend();
        let connection = match idle {
            Some(connection) => connection,
            None => match open_reader(&self.path) {
                Ok(connection) => {
                    self.connections().lent += 1;
                    connection
                }
                Err(error) => self.next_returned().ok_or(error)?,
            },
        };
        Ok((connection, Lent { readers: self, returned: None }))
    }

    /// Waits for one of those that are lent.
    fn next_returned(&self) -> Option<Connection> {
        let none_yet =
            |connections: &mut Connections| connections.idle.is_empty() && connections.lent > 0;
        let waited =
            self.returned.wait_timeout_while(self.connections(), WAIT_FOR_ANOTHER, none_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0.lend()
    }

    /// How many connections are lent, and how many are kept for the next read.
    pub(super) fn lent_and_idle(&self) -> (usize, usize) {
        let connections = self.connections();
        (connections.lent, connections.idle.len())
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    fn lend(&mut self) -> Option<Connection> {
        let connection = self.idle.pop()?;
        self.lent += 1;
        Some(connection)
    }
}

/// A connection that is lent until this is dropped, by a panic too.
struct Lent<'a> {
    readers: &'a Readers,
    /// The connection, once it is to be kept for the next read.
    returned: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut connections = self.readers.connections();
        connections.lent -= 1;
        if connections.idle.len() < MAX_IDLE {
            connections.idle.extend(self.returned.take());
        }
        drop(connections);
        self.readers.returned.notify_all();
    }
}
