//! The lines of one range of the log, as they are published.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use did_plc::Timestamp;
use zstd::stream::write::Encoder;

use super::error::PublishError;
use crate::snapshot::{SnapshotFile, Tally};
use crate::store::{StoreError, StoredOperation};

/// The level of zstd, always this one and on one thread, so that the same lines are the same bytes. A reader does not
/// care.
const LEVEL: i32 = 9;

/// Lines that are counted and hashed as they come, and written into a file if they are to be.
pub struct Lines {
    file: Option<Compressed>,
    tally: Tally,
    first: Option<i64>,
    last: i64,
    last_created_at: Timestamp,
}

/// A file that is being written.
struct Compressed {
    path: PathBuf,
    encoder: Encoder<'static, BufWriter<File>>,
}

impl Lines {
    /// Only counted and hashed.
    pub fn counted() -> Lines {
        let (tally, last_created_at) = (Tally::default(), Timestamp::from_millis(0));
        Lines { file: None, tally, first: None, last: 0, last_created_at }
    }

    /// Compressed into this file as well.
    ///
    /// # Errors
    ///
    /// [`PublishError::File`], here and below.
    pub fn written_to(path: &Path) -> Result<Lines, PublishError> {
        let encoder = File::create(path).and_then(|file| {
            let mut encoder = Encoder::new(BufWriter::new(file), LEVEL)?;
            // A file that is damaged on its way is found to be when it is read, by whatever reads it.
            encoder.include_checksum(true)?;
            Ok(encoder)
        });
        let encoder = encoder.map_err(PublishError::at(path))?;
        let file = Some(Compressed { path: path.to_owned(), encoder });
        Ok(Lines { file, ..Lines::counted() })
    }

    /// Adds operations, which all have numbers and come in their order.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] for an operation that cannot be read.
    pub fn add(&mut self, operations: &[StoredOperation]) -> Result<(), PublishError> {
        let mut lines = Vec::new();
        for stored in operations {
            stored.logged(&stored.cid()).write_sequenced(&mut lines).map_err(|error| {
                StoreError::Damaged {
                    place: format!("{}, operation of {}", stored.did, stored.created_at),
                    reason: error.to_string(),
                }
            })?;
            lines.push(b'\n');
        }
        self.tally.add(&lines);
        if let Some(Compressed { path, encoder }) = &mut self.file {
            encoder.write_all(&lines).map_err(PublishError::at(path))?;
        }
        if let (Some(first), Some(last)) = (operations.first(), operations.last()) {
            self.first = self.first.or(first.sequence);
            self.last = last.sequence.unwrap_or(self.last);
            self.last_created_at = last.created_at;
        }
        Ok(())
    }

    /// What they have come to, and are on the disk as; none where there were none. Of a file that is not written its size
    /// is not known, and zero.
    pub fn finish(self) -> Result<Option<SnapshotFile>, PublishError> {
        let compressed_bytes = match self.file {
            Some(Compressed { path, encoder }) => {
                finish(encoder).map_err(PublishError::at(&path))?
            }
            None => 0,
        };
        let tallied = self.tally.finish();
        Ok(self.first.map(|first| SnapshotFile {
            first,
            last: self.last,
            count: tallied.lines,
            last_created_at: self.last_created_at,
            bytes: tallied.bytes,
            compressed_bytes,
            lines: tallied.digest,
        }))
    }
}

/// The end of a file, which is on the disk afterwards; its size.
fn finish(encoder: Encoder<'static, BufWriter<File>>) -> io::Result<u64> {
    let file = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}
