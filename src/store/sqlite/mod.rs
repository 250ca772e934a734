//! The store in a SQLite file.
//!
//! One connection writes ([`write`]), for the process that holds the lock on the file beside the
//! database; any number read ([`read`]), each in a short transaction of its own. The database is in
//! WAL mode: a reader sees what was committed when it began, and neither waits for the other.
//!
//! The index of identities is the one part of a log that is not written at its end. It
//! gets new operations half a million at a time, and until then they are known to [`recent`], in memory;
//! the log itself is what a new process reads them from again.

mod backup;
mod changes;
mod claims;
mod commit;
mod connection;
mod divergences;
mod entries;
mod error;
mod export;
mod imported;
mod news;
mod prefix;
mod read;
mod recent;
mod refusals;
mod rows;
mod tables;
#[cfg(test)]
mod tests;
mod unsettled;
mod write;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

pub use self::backup::back_up;
pub use self::changes::Changes;
use self::connection::{MIGRATIONS, Readers};
use self::recent::Recent;
use self::writer::Writer;
use super::StoreError;
use super::codec::Interned;
use super::divergence::DIVERGENCE_BYTES;
use super::refusal::SharedLimits;
use crate::blocking;

/// Reads of many rows that run at a time; more wait. Each has a connection with its own cache.
const MAX_LONG_READS: usize = 8;

/// A store in a SQLite file. Cheap to clone: clones share everything.
#[derive(Debug, Clone)]
pub struct Sqlite {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    readers: Readers,
    long_reads: Semaphore,
    /// Reads of many rows that wait for their turn.
    waiting: AtomicUsize,
    writer: Mutex<Writer>,
    /// Whether the writer holds the lease, so that nobody else changes the database.
    following: AtomicBool,
    /// Whether commits keep the index of claims when it is complete.
    keeps_claims: AtomicBool,
    /// Whether the upstream's present is followed: few operations a commit.
    live: AtomicBool,
    refusal_limits: SharedLimits,
    /// Bytes that differences may take.
    divergence_bytes: AtomicU64,
    recent: Recent,
    interned: Interned,
}

impl Sqlite {
    /// Opens the database, creating it and its tables where they are missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] when a newer version of this program has made it unreadable for this one.
    pub async fn open(path: &Path) -> Result<Sqlite, StoreError> {
        Sqlite::open_at(path, MIGRATIONS).await
    }

    /// The same, with the tables where these migrations leave them, which may be those of a version to come.
    pub async fn open_at(
        path: &Path,
        migrations: &'static [&'static str],
    ) -> Result<Sqlite, StoreError> {
        let path = path.to_owned();
        blocking::run("opening the database", move || {
            Sqlite::with(Writer::open(&path, migrations)?, path)
        })
        .await
    }

    /// See [`crate::store::Store::open_to_read`].
    pub async fn open_to_read(path: &Path) -> Result<Sqlite, StoreError> {
        let path = path.to_owned();
        blocking::run("opening the database to read", move || {
            connection::check_readable(&path)?;
            Sqlite::with(Writer::that_only_reads(&path)?, path)
        })
        .await
    }

    fn with(writer: Writer, path: PathBuf) -> Result<Sqlite, StoreError> {
        let interned = Interned::default();
        rows::load_interned(writer.connection(), &interned)?;
        Ok(Sqlite {
            shared: Arc::new(Shared {
                readers: Readers::new(path.clone()),
                long_reads: Semaphore::new(MAX_LONG_READS),
                waiting: AtomicUsize::new(0),
                writer: Mutex::new(writer),
                following: AtomicBool::new(false),
                keeps_claims: AtomicBool::new(false),
                live: AtomicBool::new(true),
                refusal_limits: SharedLimits::default(),
                divergence_bytes: AtomicU64::new(DIVERGENCE_BYTES),
                recent: Recent::default(),
                interned,
                path,
            }),
        })
    }

    /// See [`crate::store::Store::limit_divergences`].
    pub fn limit_divergences(&self, bytes: u64) {
        self.shared.divergence_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The same for a database that is there, with our tables in it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] when it is not.
    pub async fn open_existing(path: &Path) -> Result<Sqlite, StoreError> {
        let existing = path.to_owned();
        blocking::run("looking for the database", move || connection::check_existing(&existing))
            .await?;
        Sqlite::open(path).await
    }
}

impl Shared {
    /// The writer, when it is its turn. A thread that panicked with it has left a connection
    /// that rolled back, and a writer that looks after what it remembers at its next commit.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
