//! SHA-256 digests of lines, and the chain of them.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// Bytes of a digest.
const LENGTH: usize = 32;

/// A SHA-256 digest. [`fmt::Display`] writes 64 hexadecimal digits in lower case, and nothing else is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; LENGTH]);

/// The text is not that of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is written with 64 hexadecimal digits in lower case")]
pub struct MalformedDigest;

impl Digest {
    /// What the chain begins with.
    pub const BEGINNING: Digest = Digest([0; LENGTH]);

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; LENGTH]) -> Digest {
        Digest(bytes)
    }

    /// Of all of these bytes, one part after the other.
    pub fn of(parts: &[&[u8]]) -> Digest {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Digest(hash.finalize().into())
    }

    /// Its bytes.
    pub const fn bytes(self) -> [u8; LENGTH] {
        self.0
    }

    /// The chain one file on: the digest of this one, which is the chain before, followed by that of the file's lines.
    pub fn followed_by(self, lines: Digest) -> Digest {
        Digest::of(&[&self.0, &lines.0])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for Digest {
    type Err = MalformedDigest;

    fn from_str(text: &str) -> Result<Digest, MalformedDigest> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| MalformedDigest)?;
        bytes.try_into().map(Digest).map_err(|_| MalformedDigest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of nothing.
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn it_has_one_spelling() {
        assert_eq!(EMPTY.parse::<Digest>().unwrap().to_string(), EMPTY);
        for other in [&EMPTY.to_uppercase(), &EMPTY[2..], &format!("{EMPTY}00"), "", "é"] {
            assert_eq!(other.parse::<Digest>(), Err(MalformedDigest), "{other}");
        }
    }

    /// As `(head -c 32 /dev/zero; sha256sum </dev/null | xxd -r -p) | sha256sum` says.
    #[test]
    fn the_chain_can_be_computed_by_other_programs() {
        let chain = Digest::BEGINNING.followed_by(EMPTY.parse().unwrap());
        assert_eq!(
            chain.to_string(),
            "1c9ecec90e28d2461650418635878a5c91e49f47586ecf75f2b0cbb94e897112"
        );
    }
}
