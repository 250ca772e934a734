//! The format of a snapshot: the log in files that never change, with an index that names them.
//!
//! What is in each part, and what a reader makes sure of, stands in `docs/SNAPSHOTS.md`. Nothing here reads or writes a
//! file: who writes a snapshot and who reads one share the names, the index, the digests and the counting of lines.

mod digest;
mod division;
mod file;
mod index;
mod tally;

pub use digest::{Digest, MalformedDigest};
pub use division::{Division, MAX_NUMBERS_PER_FILE, NUMBERS_PER_FILE};
pub use file::{SnapshotFile, is_file_name};
pub use index::{INDEX_NAME, Index, IndexError, MAX_INDEX_BYTES};
pub use tally::{Tallied, Tally};
