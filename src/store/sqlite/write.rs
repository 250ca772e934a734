//! The connection that writes, and the lease that gives the right to.
//!
//! The lease is the lock of the operating system on a file beside the database. It ends with the
//! process, however that ends, so that there is nothing to wait for. The file stays: removing it
//! would let two processes hold a lock on two files of the same name.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{Shared, Sqlite, beside, connection, read, rows};
use crate::blocking;
use crate::store::codec::Packer;
use crate::store::{Commit, Lease, NewDivergence, Noted, Source, StoreError};
use did_plc::Timestamp;

const CREATE_SOURCE: &str =
    "INSERT INTO sources (id, upstream) VALUES (1, ?1) ON CONFLICT DO NOTHING";

const RAISE_EPOCH: &str = "UPDATE sources SET epoch = epoch + 1";

const SET_UPSTREAM: &str = "UPDATE sources SET upstream = ?1";

/// The connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    /// Which file the path stood for when it was opened.
    file: FileIdentity,
    held: Option<Held>,
}

/// Tells a file from another one of the same name.
#[derive(Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(path: &Path) -> Result<FileIdentity, StoreError> {
        let found = path.metadata().map_err(|error| {
            StoreError::Unavailable(format!("the database {}: {error}", path.display()))
        })?;
        Ok(FileIdentity { device: found.dev(), inode: found.ino() })
    }
}

/// What the holder of the lease has.
#[derive(Debug)]
pub(super) struct Held {
    epoch: i64,
    pub(super) packer: Packer,
    /// Locked as long as it is open.
    _lock: File,
}

impl Writer {
    pub(super) fn open(path: &Path, migrations: &[&str]) -> Result<Writer, StoreError> {
        let connection = connection::open_writer(path, migrations)?;
        let file = FileIdentity::of(path)?;
        Ok(Writer { connection, path: path.to_owned(), file, held: None })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// SQLite goes on writing to a file that was removed, and nobody would ever read it. One that
    /// is moved back is as good as before.
    fn check_file(&self) -> Result<(), StoreError> {
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
    pub(super) fn bare_transaction(&mut self) -> Result<Transaction<'_>, StoreError> {
        self.check_file()?;
        Ok(self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
    }

    fn lock(&self) -> Result<File, StoreError> {
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

fn over(lease: &Lease) -> StoreError {
    StoreError::LostLease(format!("epoch {} is over", lease.epoch))
}

impl Shared {
    fn follow(&self, upstream: &str) -> Result<(Lease, Source), StoreError> {
        let mut writer = self.writer();
        writer.check_file()?;
        let lock = writer.lock()?;
        // From here on nobody else writes. A crash leaves a source that nobody follows.
        let behaviour = TransactionBehavior::Immediate;
        let transaction = writer.connection.transaction_with_behavior(behaviour)?;
        transaction.execute(CREATE_SOURCE, [upstream])?;
        transaction.execute(RAISE_EPOCH, [])?;
        let source = transaction.query_row(read::SOURCE, [], rows::source)?;
        rows::load_interned(&transaction, &self.interned)?;
        while !self.recent.catch_up(&transaction)? {}
        transaction.commit()?;
        let lease = Lease { epoch: source.epoch };
        let packer = Packer::new(self.interned.clone());
        writer.held = Some(Held { epoch: lease.epoch, packer, _lock: lock });
        self.following.store(true, Ordering::Release);
        Ok((lease, source))
    }

    fn release(&self, lease: &Lease) {
        let mut writer = self.writer();
        if writer.held.as_ref().is_some_and(|held| held.epoch == lease.epoch) {
            self.following.store(false, Ordering::Release);
            writer.held = None;
        }
    }
}

impl Sqlite {
    /// Does something with the connection that writes. `doing` is what a panic in it is logged with.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking::run(doing, move || work(&shared)).await
    }

    /// See [`crate::store::Store::follow`].
    pub async fn follow(&self, upstream: &str) -> Result<(Lease, Source), StoreError> {
        let upstream = upstream.to_owned();
        self.write("taking the lease", move |shared| shared.follow(&upstream)).await
    }

    /// See [`crate::store::Store::renew`]. The lock needs no renewal; a lease that was given up
    /// does not come back.
    pub async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write("renewing the lease", move |shared| {
            let writer = shared.writer();
            match &writer.held {
                Some(held) if held.epoch == lease.epoch => writer.check_file(),
                _ => Err(over(&lease)),
            }
        })
        .await
    }

    /// See [`crate::store::Store::release`].
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        self.write("giving the lease back", move |shared| {
            shared.release(&lease);
            Ok(())
        })
        .await
    }

    /// See [`crate::store::Store::set_upstream`].
    pub async fn set_upstream(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        let (lease, upstream) = (lease.clone(), upstream.to_owned());
        self.write("remembering an upstream", move |shared| {
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            transaction.execute(SET_UPSTREAM, [upstream])?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// See [`crate::store::Store::set_durability`].
    pub async fn set_durability(&self, live: bool) -> Result<(), StoreError> {
        self.write("setting the durability", move |shared| {
            shared.live.store(live, Ordering::Release);
            connection::set_durability(shared.writer().connection(), live)
        })
        .await
    }

    /// See [`crate::store::Store::commit`].
    pub async fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        let (lease, commit) = (lease.clone(), commit.clone());
        self.write("committing", move |shared| shared.commit(&lease, &commit)).await
    }

    /// See [`crate::store::Store::note_divergences`].
    pub async fn note_divergences(
        &self,
        source: &str,
        did: &str,
        covered: &[&str],
        seen: &[NewDivergence],
        now: Timestamp,
    ) -> Result<Noted, StoreError> {
        let (source, did, seen) = (source.to_owned(), did.to_owned(), seen.to_vec());
        let covered: Vec<String> = covered.iter().map(|&kind| kind.to_owned()).collect();
        self.write("recording divergences", move |shared| {
            let covered: Vec<&str> = covered.iter().map(String::as_str).collect();
            shared.note_divergences(&source, &did, &covered, &seen, now)
        })
        .await
    }

    /// See [`crate::store::Store::close_divergence`].
    pub async fn close_divergence(&self, id: i64, now: Timestamp) -> Result<(), StoreError> {
        self.write("closing a divergence", move |shared| shared.close_divergence(id, now)).await
    }
}
