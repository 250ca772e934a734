//! What an index says of the lines of a volume, and whether it is so.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::error::ArchiveError;
use crate::snapshot::Digest;
use crate::upstream::dump::Input;

/// Bytes to hash at a time.
const PIECE: usize = 256 << 10;

/// What an index says of the lines of a volume, as they are when they are decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Their digest.
    pub digest: Digest,
    /// Their bytes.
    pub bytes: u64,
}

impl Content {
    /// Decompresses what is stored, and no more of it than there should be. It is read once more then, since what it
    /// comes to would take too much memory to be kept.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Differs`] with this name; others when it cannot be read.
    pub fn check(self, name: &str, stored: impl Read + Send + 'static) -> Result<(), ArchiveError> {
        let differs = |reason: String| ArchiveError::Differs { name: name.to_owned(), reason };
        let mut lines = Input::open(name, Box::new(stored), None)?;
        let mut hash = Sha256::new();
        let (mut piece, mut bytes) = (vec![0; PIECE], 0);
        loop {
            match lines.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => {
                    bytes += read as u64;
                    if bytes > self.bytes {
                        return Err(differs(format!(
                            "there are more than {} bytes in it",
                            self.bytes
                        )));
                    }
                    hash.update(&piece[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(differs(error.to_string())),
            }
        }
        let found = Digest::from_bytes(hash.finalize().into());
        if found != self.digest {
            let stated = self.digest;
            return Err(differs(format!("the SHA-256 of its lines is {found}, and not {stated}")));
        }
        Ok(())
    }
}
