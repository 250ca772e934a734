//! The database of a plan: where it is, by which ways it is reached, and when its disk is full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use plc_replica::store::{Store, StoreError};
use plc_testkit::postgres::{Client, Database as PostgresDatabase};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::link::Link;
use super::time::{Time, UnderWay};

/// The clock of the database server is driven too. A sequence is written without a transaction.
const DRIVEN_CLOCK: &str = "
    CREATE SCHEMA sim;
    CREATE SEQUENCE sim.clock;
    CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
        AS 'SELECT to_timestamp(last_value / 1000.0) FROM sim.clock'";

/// A disk of the size that a SQLite plan needs, and a little more.
const DISK: &str = "size=16m";

/// A database, and what it is on.
pub enum Database {
    Sqlite { disk: Disk },
    Postgres { database: PostgresDatabase, clean: Link, admin: Box<Client> },
}

impl Database {
    /// An empty one in a file.
    pub fn sqlite() -> Database {
        Database::Sqlite { disk: Disk::new() }
    }

    /// An empty one on the server of the tests, where there is one.
    pub async fn postgres(under_way: &Arc<UnderWay>) -> Option<Database> {
        let database = PostgresDatabase::create().await?;
        let clean = Link::to(&database.url, under_way).await;
        let url = clean.url(&database.url);
        let mut admin = Client::connect(&url).await;
        let name = admin.value("SELECT current_database()").await.unwrap();
        admin.run(DRIVEN_CLOCK).await;
        // Unlike other schemas, that of the server itself can be named last.
        admin
            .run(&format!("ALTER DATABASE {name} SET search_path = public, sim, pg_catalog"))
            .await;
        Some(Database::Postgres { database, clean, admin: Box::new(admin) })
    }

    /// Its URL, by a way without faults.
    pub fn url(&self) -> String {
        match self {
            Database::Sqlite { disk } => {
                format!("sqlite://{}", disk.path().join("plc.db").display())
            }
            Database::Postgres { database, clean, .. } => clean.url(&database.url),
        }
    }

    /// Its URL, by no way at all, for when the plan is over.
    pub fn url_afterwards(&self) -> String {
        match self {
            Database::Sqlite { .. } => self.url(),
            Database::Postgres { database, .. } => database.url.clone(),
        }
    }

    /// A way for a process, where it takes one, and the URL by that.
    pub async fn way(&self, under_way: &Arc<UnderWay>) -> (Option<Link>, String) {
        match self {
            Database::Sqlite { .. } => (None, self.url()),
            Database::Postgres { database, .. } => {
                let link = Link::to(&database.url, under_way).await;
                let url = link.url(&database.url);
                (Some(link), url)
            }
        }
    }

    /// Whether the disk is full.
    pub async fn set_full(&mut self, full: bool) {
        match self {
            Database::Sqlite { disk } => disk.set_full(full),
            Database::Postgres { admin, .. } if full => {
                let sql =
                    "CREATE OR REPLACE FUNCTION sim.full() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$;
                    DO $$ BEGIN IF to_regclass('operations') IS NOT NULL THEN
                        CREATE OR REPLACE TRIGGER full_disk BEFORE INSERT ON operations
                            FOR EACH STATEMENT EXECUTE FUNCTION sim.full();
                    END IF; END $$";
                admin.run(sql).await;
            }
            Database::Postgres { admin, .. } => {
                let sql = "DO $$ BEGIN IF to_regclass('operations') IS NOT NULL THEN
                        DROP TRIGGER IF EXISTS full_disk ON operations;
                    END IF; END $$";
                admin.run(sql).await;
            }
        }
    }

    /// Somebody else locks the tables, for so long by the clock of the machine.
    pub fn lock(&self, lasts: Duration) {
        let url = self.url_afterwards();
        std::thread::spawn(move || {
            let Some(path) = url.strip_prefix("sqlite://") else {
                return lock_on_server(&url, lasts);
            };
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
            // There may be nothing to lock yet, and others may have locked it.
            let Ok(connection) = Connection::open_with_flags(path, flags) else { return };
            if connection.execute_batch("BEGIN IMMEDIATE").is_ok() {
                std::thread::sleep(lasts);
            }
        });
    }

    /// The server's own clock goes on.
    pub async fn tell_time(&mut self, time: &Time) {
        if let Database::Postgres { admin, .. } = self {
            admin.run(&format!("SELECT setval('sim.clock', {})", time.right().millis())).await;
        }
    }

    /// The store, for who looks on.
    pub async fn look(&self) -> Store {
        patiently(async || Store::open_existing(&self.url()).await).await
    }
}

/// What a store answers. Time may run on while a busy machine makes a connection.
pub async fn patiently<T>(ask: impl AsyncFn() -> Result<T, StoreError>) -> T {
    loop {
        match ask().await {
            Err(StoreError::Unavailable(_)) => sleep(Duration::from_secs(1)).await,
            answer => return answer.unwrap(),
        }
    }
}

fn lock_on_server(url: &str, lasts: Duration) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect(url).await;
        let sql = format!(
            "BEGIN;
             DO $$ BEGIN IF to_regclass('operations') IS NOT NULL THEN
                LOCK TABLE operations IN EXCLUSIVE MODE;
             END IF; END $$;
             SELECT pg_sleep({});
             ROLLBACK",
            lasts.as_secs_f64()
        );
        client.run(&sql).await;
    });
}

/// A folder: where that may be done a disk of its own, which can be full.
pub struct Disk {
    folder: TempDir,
    mounted: bool,
}

impl Disk {
    fn new() -> Disk {
        let folder = TempDir::new().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "plc-simulation"])
            .arg(folder.path())
            .output();
        Disk { mounted: mount.is_ok_and(|mount| mount.status.success()), folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Fills what is left of it, or empties that.
    fn set_full(&self, full: bool) {
        if !self.mounted {
            return;
        }
        if full {
            let mut filler = std::fs::File::create(self.filler()).unwrap();
            let zeros = vec![0; 1 << 20];
            while std::io::Write::write(&mut filler, &zeros).is_ok_and(|written| written > 0) {}
        } else {
            let _ = std::fs::remove_file(self.filler());
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // What is still open goes with the last who has it.
            let _ = Command::new("umount").arg("-l").arg(self.path()).output();
        }
    }
}
