//! Why a snapshot is not written.

use std::io;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// A snapshot that was not written to its end. What was published before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder cannot be used for this log.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Another process writes into it.
    #[error("{}: another process writes a snapshot into it", .0.display())]
    InUse(PathBuf),
    /// Reading or writing failed: a full disk, a right that is missing, a folder that is gone.
    #[error("{}: {source}", path.display())]
    File {
        /// What was read or written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is nothing to write.
    #[error("the database holds no operation with a sequence number: there is nothing to write")]
    Empty,
    /// The numbers of the log are of two upstreams.
    #[error(
        "the operations in the database are being given the numbers of another upstream; there can be a snapshot once \
         `serve` has read the log of that one to its end"
    )]
    Renumbering,
}

impl PublishError {
    /// For `map_err`: what the system says of a path.
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> PublishError + '_ {
        |source| PublishError::File { path: path.to_owned(), source }
    }
}
