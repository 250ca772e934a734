//! Counts lines as they are written or read.

use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// Counts and hashes what it is given, in pieces that may end anywhere.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    hash: Sha256,
    lines: u64,
    bytes: u64,
}

/// What lines have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tallied {
    /// Ends of lines.
    pub lines: u64,
    /// Bytes, ends of lines included.
    pub bytes: u64,
    /// The digest of all of it.
    pub digest: Digest,
}

impl Tally {
    /// Takes in the next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.lines += memchr::memchr_iter(b'\n', piece).count() as u64;
        self.bytes += piece.len() as u64;
    }

    /// Bytes that were taken in so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it has come to.
    pub fn finish(self) -> Tallied {
        Tallied {
            lines: self.lines,
            bytes: self.bytes,
            digest: Digest::from_bytes(self.hash.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_pieces_end_does_not_matter() {
        let text = b"{\"a\":1}\n{\"b\":2}\n";
        let mut whole = Tally::default();
        whole.add(text);
        let whole = whole.finish();
        assert_eq!((whole.lines, whole.bytes), (2, 16));
        for piece in 1..text.len() {
            let mut pieces = Tally::default();
            text.chunks(piece).for_each(|piece| pieces.add(piece));
            assert_eq!(pieces.finish(), whole, "by {piece}");
        }
    }
}
