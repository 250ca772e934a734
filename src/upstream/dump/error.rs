//! What is wrong with a dump.

use std::io;

/// A dump that cannot be read (any further), with its name.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// No such file, no right to read it, a directory.
    #[error("{name}: cannot be opened: {source}")]
    Open { name: String, source: io::Error },
    /// Broken compression, a disk error.
    #[error("{name}: cannot be read after {read} bytes: {source}")]
    Read { name: String, read: u64, source: io::Error },
    /// Compressed in a way that is not read here.
    #[error(
        "{name}: is compressed with {format}, which is not read here; write `{decompress} | plc-replica verify -`, \
         with `-` for the file likewise elsewhere"
    )]
    Compressed { name: String, format: &'static str, decompress: &'static str },
    /// The file ends inside of an array. What it held of it has come out.
    #[error("{name}: ends before the `]` of its array, in or after the entry of line {number}")]
    CutArray { name: String, number: u64 },
    /// Something that is not another array comes after one.
    #[error(
        "{name}: something other than an array follows the array, after the entry of line {number}"
    )]
    AfterArray { name: String, number: u64 },
}
