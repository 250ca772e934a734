//! What is wrong with an archive.

use crate::upstream::{DumpError, UpstreamFault};

/// An archive that cannot be read (any further), with its name.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Because of one of its files.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A pattern that no file fits, or that is none.
    #[error("{pattern}: {reason}")]
    Pattern { pattern: String, reason: String },
    /// A directory with nothing to read.
    #[error("{name}: there is no file in this directory that could hold a log")]
    Empty { name: String },
    /// No URL, or none that is asked over HTTP.
    #[error("{name}: is not a URL that can be asked: {reason}")]
    Url { name: String, reason: String },
    /// The server has no answer, also when it is asked again.
    #[error(
        "{url}: {fault}; what was read before is in the database, and the same command goes on after it"
    )]
    Web { url: String, fault: UpstreamFault },
    /// The server has an answer of its own.
    #[error("{url}: the server answered {status}")]
    Status { url: String, status: u16 },
    /// What is there is a page for people, or a directory that has to be followed at its own pace.
    #[error(
        "{url}: is neither a file nor an archive that is known here; `serve --upstream` follows a directory, and a file \
         of lines is named by its own URL"
    )]
    Unknown { url: String },
    /// The transfer broke, and the server cannot send the rest.
    #[error(
        "{url}: broke off after {read} bytes ({reason}), and the server does not send the rest of a file: fetch it with \
         another program, and import what it has written"
    )]
    Broken { url: String, read: u64, reason: String },
    /// A replica that has less than it said, as when there are several behind one name.
    #[error(
        "{url}: its export ends at number {after}, and it has said that it goes on to {to}; the same command goes on from \
         there later"
    )]
    Short { url: String, after: i64, to: i64 },
    /// An index that is no index, or contradicts itself.
    #[error("{name}: cannot be relied on as an index: {reason}")]
    Index { name: String, reason: String },
    /// A volume that is not the one of the index.
    #[error(
        "{name}: is not what its index says: {reason}; it is damaged, or was changed, and nothing of it was taken"
    )]
    Differs { name: String, reason: String },
}
