//! The bytes of a dump, decompressed and without a byte order mark.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::DumpError;
use did_plc::entry;

/// Bytes of a byte order mark in UTF-8.
const MARK_LENGTH: u64 = 3;
/// Bytes to ask the operating system for at a time.
const READ: usize = 256 << 10;

/// Bytes that tell one kind of compression from the others.
const MAGIC_LENGTH: u64 = 6;
/// What other files begin with, what they are compressed with, and what prints the text in them. No line of JSON
/// begins so.
const OTHER_COMPRESSIONS: [(&[u8], &str, &str); 7] = [
    (b"\xfd7zXZ\0", "xz", "xz -dc FILE"),
    (b"BZh", "bzip2", "bzip2 -dc FILE"),
    (b"PK\x03\x04", "zip", "unzip -p FILE"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x -so FILE"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc FILE"),
    (b"LZIP", "lzip", "lzip -dc FILE"),
    (b"\x1f\x9d", "compress", "uncompress -c FILE"),
];

/// How far a dump has been read; a handle that stays valid while the dump is read elsewhere.
#[derive(Debug, Clone)]
pub struct Progress {
    read: Arc<AtomicU64>,
    /// Size of the file in bytes; none for standard input and other pipes.
    pub total: Option<u64>,
}

impl Progress {
    /// Bytes read so far, before decompression.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A file as it was before compression, without the byte order mark that it may begin with.
pub struct Input {
    plain: Box<dyn Read + Send>,
    progress: Progress,
}

impl Input {
    /// Looks at the first bytes of a file of this size, where that is known.
    ///
    /// # Errors
    ///
    /// That it cannot be read, or is compressed otherwise, with this name.
    pub fn open(
        name: &str,
        raw: Box<dyn Read + Send>,
        total: Option<u64>,
    ) -> Result<Input, DumpError> {
        let read = Arc::new(AtomicU64::new(0));
        let counted = BufReader::with_capacity(READ, Counted { raw, read: Arc::clone(&read) });
        let progress = Progress { read, total };
        let failed = |source| {
            let (name, read) = (name.to_owned(), progress.read());
            DumpError::Read { name, read, source }
        };
        let (magic, raw) = first_bytes(counted).map_err(failed)?;
        if let Some((_, format, decompress)) =
            OTHER_COMPRESSIONS.iter().find(|(beginning, ..)| magic.starts_with(beginning))
        {
            let name = name.to_owned();
            return Err(DumpError::Compressed { name, format, decompress });
        }
        let plain = decompressed(&magic, raw).and_then(without_mark).map_err(failed)?;
        Ok(Input { plain, progress })
    }

    /// How far it has been read.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.plain.read(buffer)
    }
}

/// The first bytes, and all of the input.
fn first_bytes(mut raw: BufReader<Counted>) -> io::Result<(Vec<u8>, impl BufRead + Send)> {
    let mut magic = Vec::new();
    (&mut raw).take(MAGIC_LENGTH).read_to_end(&mut magic)?;
    let all = Read::chain(Cursor::new(magic.clone()), raw);
    Ok((magic, BufReader::with_capacity(READ, all)))
}

/// The input as it was before compression; its first bytes say which one it was.
fn decompressed(
    magic: &[u8],
    raw: impl BufRead + Send + 'static,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        // A frame, or a skippable one as parallel compressors write it first (RFC 8878, 3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(raw)?)
        }
        _ => Box::new(raw),
    })
}

/// The same from behind the byte order mark.
fn without_mark(mut plain: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut beginning = Vec::new();
    (&mut plain).take(MARK_LENGTH).read_to_end(&mut beginning)?;
    let beginning = entry::without_mark(&beginning).to_vec();
    Ok(Box::new(Cursor::new(beginning).chain(plain)))
}

/// Counts what is read.
struct Counted {
    raw: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.raw.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
