//! Where the bytes of a dump come from, and whether they can be had from there once more.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::DumpError;

/// Bytes that are kept of what cannot be read again, at most: the audit log of any identity, and the export of
/// some days.
const MAX_KEPT: usize = 64 << 20;

/// The bytes of a dump, as they are stored.
pub struct Raw {
    /// What they are called in messages.
    pub name: String,
    /// The bytes.
    pub bytes: Box<dyn Read + Send>,
    /// How many there are; none where that is not known before they are read.
    pub total: Option<u64>,
}

/// What a dump can be read from once more, when it has been read to its end.
#[derive(Debug)]
pub struct Original {
    name: String,
    bytes: OriginalBytes,
}

#[derive(Debug)]
enum OriginalBytes {
    File(File),
    Kept(Arc<Mutex<Kept>>),
}

/// Everything that was read, unless it has become too much.
type Kept = Option<Vec<u8>>;

impl Raw {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: &Path) -> Result<Raw, DumpError> {
        if path == Path::new("-") {
            let name = "standard input".to_owned();
            return Ok(Raw { name, bytes: Box::new(io::stdin()), total: None });
        }
        let (name, file, total) = open_file(path)?;
        Ok(Raw { name, bytes: Box::new(file), total })
    }

    /// The same of what may have to be read twice. Of what is no file a copy is kept.
    pub fn open_twice(path: &Path) -> Result<(Raw, Original), DumpError> {
        if path == Path::new("-") {
            return Ok(Raw::open(path)?.with_copy());
        }
        let (name, file, total) = open_file(path)?;
        if total.is_none() {
            return Ok(Raw { name, bytes: Box::new(file), total }.with_copy());
        }
        let again = file.try_clone().map_err(|source| opening(&name, source))?;
        let original = Original { name: name.clone(), bytes: OriginalBytes::File(again) };
        Ok((Raw { name, bytes: Box::new(file), total }, original))
    }

    fn with_copy(self) -> (Raw, Original) {
        let kept = Arc::new(Mutex::new(Some(Vec::new())));
        let bytes = Box::new(Copied { bytes: self.bytes, kept: Arc::clone(&kept) });
        let original = Original { name: self.name.clone(), bytes: OriginalBytes::Kept(kept) };
        (Raw { bytes, ..self }, original)
    }
}

impl Original {
    /// Whether the bytes can be had once more however many they are.
    pub fn is_certain(&self) -> bool {
        matches!(self.bytes, OriginalBytes::File(_))
    }

    /// The bytes once more; none where there were too many to keep.
    pub fn raw(self) -> Result<Option<Raw>, DumpError> {
        let Original { name, bytes } = self;
        match bytes {
            OriginalBytes::File(mut file) => {
                file.rewind().map_err(|source| opening(&name, source))?;
                let total = file.metadata().ok().map(|about| about.len());
                Ok(Some(Raw { name, bytes: Box::new(file), total }))
            }
            OriginalBytes::Kept(kept) => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(kept.map(|kept| {
                    let total = Some(kept.len() as u64);
                    Raw { name, bytes: Box::new(io::Cursor::new(kept)), total }
                }))
            }
        }
    }
}

/// Opens a file; its name, and its size where it is one that can be read again.
fn open_file(path: &Path) -> Result<(String, File, Option<u64>), DumpError> {
    let name = path.display().to_string();
    let opened = File::open(path).and_then(|file| file.metadata().map(|about| (file, about)));
    match opened {
        Ok((_, about)) if about.is_dir() => {
            let reason = "it is a directory; name the files in it";
            Err(opening(&name, io::Error::new(io::ErrorKind::IsADirectory, reason)))
        }
        Ok((file, about)) => Ok((name, file, about.is_file().then_some(about.len()))),
        Err(source) => Err(opening(&name, source)),
    }
}

fn opening(name: &str, source: io::Error) -> DumpError {
    DumpError::Open { name: name.to_owned(), source }
}

/// Keeps a copy of what is read.
struct Copied {
    bytes: Box<dyn Read + Send>,
    kept: Arc<Mutex<Kept>>,
}

impl Read for Copied {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *kept {
            Some(bytes) if bytes.len() + read <= MAX_KEPT => {
                bytes.extend_from_slice(&buffer[..read])
            }
            // What there is of it goes, too.
            _ => *kept = None,
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: Raw) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut bytes_left = raw.bytes;
        bytes_left.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn piped(bytes: Vec<u8>) -> (Raw, Original) {
        let bytes = Box::new(io::Cursor::new(bytes));
        Raw { name: "a test".to_owned(), bytes, total: None }.with_copy()
    }

    #[test]
    fn a_file_is_read_again_from_its_beginning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{}\n[]").unwrap();
        let (raw, original) = Raw::open_twice(file.path()).unwrap();
        assert_eq!(read(raw), b"{}\n[]");
        // Whatever has become of its name.
        std::fs::remove_file(file.path()).unwrap();
        let again = original.raw().unwrap().unwrap();
        assert_eq!(again.total, Some(5));
        assert_eq!(read(again), b"{}\n[]");
    }

    #[test]
    fn what_comes_through_a_pipe_is_kept_up_to_a_bound() {
        let (raw, original) = piped(b"{}".to_vec());
        assert_eq!(read(raw), b"{}");
        assert_eq!(read(original.raw().unwrap().unwrap()), b"{}");

        let much = vec![b' '; MAX_KEPT];
        let (raw, original) = piped(much.clone());
        assert!(read(raw) == much);
        assert!(read(original.raw().unwrap().unwrap()) == much);
        let (raw, original) = piped(vec![b' '; MAX_KEPT + 1]);
        assert_eq!(read(raw).len(), MAX_KEPT + 1);
        assert!(original.raw().unwrap().is_none());
    }
}
