//! The connection that writes, and the lease that gives the right to.
//!
//! The lease is the lock of the operating system on a file beside the database. It ends with the
//! process, however that ends, so that there is nothing to wait for. The file stays: removing it
//! would let two processes hold a lock on two files of the same name.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::connection::{self, MIGRATIONS, Version};
use super::error::in_file;
use crate::store::codec::Packer;
use crate::store::{Lease, StoreError};

/// The connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    /// Which file the path stood for when it was opened.
    file: FileIdentity,
    /// Steps of the tables that the version which writes knows.
    known: usize,
    pub(super) held: Option<Held>,
}

/// Tells a file from another one of the same name.
#[derive(Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(path: &Path) -> Result<FileIdentity, StoreError> {
        let found = path.metadata().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(FileIdentity { device: found.dev(), inode: found.ino() })
    }
}

/// What the holder of the lease has.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) epoch: i64,
    pub(super) packer: Packer,
    /// Locked as long as it is open.
    #[expect(dead_code, reason = "it is held by being open")]
    pub(super) lock: File,
}

impl Writer {
    pub(super) fn open(path: &Path, migrations: &[&str]) -> Result<Writer, StoreError> {
        let connection = connection::open_writer(path, migrations)?;
        Writer::with(connection, path, migrations.len())
    }

    /// One that is refused whatever it tries to write.
    pub(super) fn that_only_reads(path: &Path) -> Result<Writer, StoreError> {
        Writer::with(connection::open_reader(path)?, path, MIGRATIONS.len())
    }

    fn with(connection: Connection, path: &Path, known: usize) -> Result<Writer, StoreError> {
        let file = FileIdentity::of(path).map_err(|error| in_file(path, error))?;
        Ok(Writer { connection, path: path.to_owned(), file, known, held: None })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// SQLite goes on writing to a file that was removed, and nobody would ever read it. One that
    /// is moved back is as good as before.
    pub(super) fn check_file(&self) -> Result<(), StoreError> {
        if FileIdentity::of(&self.path)? == self.file {
            return Ok(());
        }
        Err(StoreError::Unusable(format!(
            "another file has taken the place of the database {} while it was in use; start again \
             to use that one",
            self.path.display()
        )))
    }

    /// A transaction of the follower, and what it packs with.
    pub(super) fn transaction(
        &mut self,
        lease: &Lease,
    ) -> Result<(Transaction<'_>, &mut Packer), StoreError> {
        self.check_file()?;
        let Some(held) = self.held.as_mut().filter(|held| held.epoch == lease.epoch) else {
            return Err(over(lease));
        };
        let behaviour = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behaviour)?;
        // Nobody raises the epoch without the lock; but files can be copied, and locks lost with
        // the file system that they are on.
        let epoch: i64 = transaction
            .prepare_cached("SELECT epoch FROM sources")?
            .query_row([], |row| row.get(0))?;
        if epoch != lease.epoch {
            return Err(over(lease));
        }
        Ok((transaction, &mut held.packer))
    }

    /// A transaction of somebody who is not the follower.
    ///
    /// # Errors
    ///
    /// [`StoreError::Outdated`] where the tables are of a newer version.
    pub(super) fn bare_transaction(&mut self) -> Result<Transaction<'_>, StoreError> {
        self.check_file()?;
        let behaviour = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behaviour)?;
        let steps = Version::of(&transaction)?.steps;
        if steps > self.known {
            return Err(StoreError::Outdated(format!(
                "the database {} is of a newer version of plc-replica (its tables are of version {steps}, this one knows \
                 {}), which alone may write to it",
                self.path.display(),
                self.known
            )));
        }
        Ok(transaction)
    }

    pub(super) fn lock(&self) -> Result<File, StoreError> {
        let path = beside(&self.path, ".lock");
        let unavailable = |error| StoreError::Unavailable(format!("{}: {error}", path.display()));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(unavailable)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StoreError::LostLease(format!(
                "another process, or this one already, holds the lock on {}",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(unavailable(error)),
        }
    }
}

/// The error of a lease that somebody else has taken over.
pub(super) fn over(lease: &Lease) -> StoreError {
    StoreError::LostLease(format!("epoch {} is over", lease.epoch))
}

/// The file whose name is that of the database with an addition.
pub(super) fn beside(path: &Path, addition: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(addition);
    name.into()
}
