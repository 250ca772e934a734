//! The folder that a snapshot is in: who may write into it, and how a file gets its name.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::PublishError;
use crate::escape::printable;
use crate::snapshot::{INDEX_NAME, Index, SnapshotFile, is_file_name};

/// The file that is locked by who writes. It stays: removing it would let two processes hold a lock on two files of the
/// same name.
const LOCK: &str = ".lock";

/// How the names of files begin that are being written.
const TEMPORARY: &str = ".writing-";

/// A folder into which this process alone writes, until this is dropped or the process ends.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    #[expect(dead_code, reason = "it is held by being open")]
    lock: File,
}

impl Folder {
    /// Takes a folder for writing; one that is not there is made in the folder that it is to be in. Blocking, as
    /// everything here.
    ///
    /// # Errors
    ///
    /// [`PublishError::Unusable`] for what is no folder, and for one in which something else is; [`PublishError::InUse`].
    pub fn take(path: &Path) -> Result<Folder, PublishError> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PublishError::at(path)(error));
            }
            Err(_) => check(path)?,
            Ok(()) => {}
        }
        let lock_path = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(PublishError::at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => Err(PublishError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(PublishError::at(&lock_path)(error)),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The index that is published; none before the first.
    ///
    /// # Errors
    ///
    /// [`PublishError::Unusable`] for what is no index of this format.
    pub fn index(&self) -> Result<Option<Index>, PublishError> {
        let path = self.path.join(INDEX_NAME);
        let document = match fs::read(&path) {
            Ok(document) => document,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PublishError::at(&path)(error)),
        };
        Index::parse(&document).map(Some).map_err(|error| PublishError::Unusable {
            path,
            reason: format!("{error}; name another folder, or remove this file to have the snapshot written anew"),
        })
    }

    /// What the file of the range at this place is called while it is written.
    pub fn temporary(&self, place: i64) -> PathBuf {
        self.path.join(format!("{TEMPORARY}{place}"))
    }

    /// Gives a file its name, under which no index has to know it yet. A crash before leaves a temporary file, after it
    /// one that nobody names: either is removed by the next run.
    pub fn name(&self, temporary: &Path, file: &SnapshotFile) -> Result<(), PublishError> {
        let path = self.path.join(file.name());
        fs::rename(temporary, &path).map_err(PublishError::at(&path))
    }

    /// Makes this index the one that is published. The files that it names are on the disk with their names before it
    /// is there, and it takes the place of the one before in one step: a crash leaves one of them.
    pub fn publish(&self, index: &Index) -> Result<(), PublishError> {
        let synchronise = || File::open(&self.path).and_then(|folder| folder.sync_all());
        synchronise().map_err(PublishError::at(&self.path))?;
        let temporary = self.path.join(format!("{TEMPORARY}{INDEX_NAME}"));
        let path = self.path.join(INDEX_NAME);
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&index.to_json())?;
            file.sync_all()
        });
        written
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| synchronise())
            .map_err(PublishError::at(&path))
    }

    /// Removes the files of a snapshot that none of these indexes names, and what a crash has left half written.
    pub fn clean(&self, indexes: &[&Index]) -> Result<(), PublishError> {
        let files = indexes.iter().flat_map(|index| index.files());
        let named: BTreeSet<String> = files.map(SnapshotFile::name).collect();
        for name in names(&self.path)? {
            if name.starts_with(TEMPORARY) || (is_file_name(&name) && !named.contains(&name)) {
                let path = self.path.join(name);
                fs::remove_file(&path).map_err(PublishError::at(&path))?;
            }
        }
        Ok(())
    }
}

/// Refuses what is there already and is not ours.
fn check(path: &Path) -> Result<(), PublishError> {
    let unusable = |reason| Err(PublishError::Unusable { path: path.to_owned(), reason });
    if !path.is_dir() {
        return unusable("it is no folder".to_owned());
    }
    let names = names(path)?;
    let is_ours =
        |name: &String| *name == LOCK || name.starts_with(TEMPORARY) || is_file_name(name);
    // Beside an index of ours anything may be: who serves the folder has reasons to put something there.
    if names.iter().any(|name| name == INDEX_NAME) {
        return Ok(());
    }
    match names.iter().find(|name| !is_ours(name)) {
        Some(other) => unusable(format!(
            "there is something else in it ({}), and no index of a snapshot; name an empty folder, or one that is \
             not there yet",
            printable(other)
        )),
        None => Ok(()),
    }
}

/// The names in a folder; what is not Unicode is shown as it can be, and is never a name of ours.
fn names(path: &Path) -> Result<Vec<String>, PublishError> {
    let entries = fs::read_dir(path).map_err(PublishError::at(path))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(PublishError::at(path))
}
