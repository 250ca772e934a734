//! `did:plc` identifiers: 24 characters of lower-case base32, which are 15 bytes.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::base32::BASE32;

/// The method's prefix.
const PREFIX: &str = "did:plc:";
/// Characters after the prefix.
const ENCODED_LENGTH: usize = 24;
/// Bytes that those characters stand for (24 × 5 bits).
const LENGTH: usize = 15;

/// An identifier of the method `plc`, held as the 15 bytes that its 24 characters encode.
///
/// Ordered as its bytes are, which is not the order of the text (`2`–`7` come after `z` here).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Did([u8; LENGTH]);

/// The text is not `did:plc:` and 24 characters of `[a-z2-7]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a did:plc identifier is `did:plc:` and 24 characters of a-z and 2-7")]
pub struct MalformedDid;

impl Did {
    /// The identifier that a genesis operation with these signed DAG-CBOR bytes creates: the
    /// first 24 characters of the base32 of their SHA-256 (did:plc, "Identifier derivation").
    pub fn of_genesis(signed: &[u8]) -> Did {
        Did::of_genesis_digest(&Sha256::digest(signed).into())
    }

    /// [`Did::of_genesis`] from the digest, which is that of the operation's CID too.
    pub fn of_genesis_digest(digest: &[u8; 32]) -> Did {
        let mut bytes = [0; LENGTH];
        bytes.copy_from_slice(&digest[..LENGTH]);
        Did(bytes)
    }

    /// From the 15 bytes as stored.
    pub const fn from_bytes(bytes: [u8; LENGTH]) -> Did {
        Did(bytes)
    }

    /// From stored bytes of unknown length; `None` unless there are 15.
    pub fn from_slice(bytes: &[u8]) -> Option<Did> {
        bytes.try_into().ok().map(Did)
    }

    /// The 15 bytes, for storage.
    pub const fn as_bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// The whole identifier as ASCII, without an allocation.
    pub fn to_ascii(self) -> [u8; PREFIX.len() + ENCODED_LENGTH] {
        let mut text = [0; PREFIX.len() + ENCODED_LENGTH];
        text[..PREFIX.len()].copy_from_slice(PREFIX.as_bytes());
        BASE32.encode_mut(&self.0, &mut text[PREFIX.len()..]);
        text
    }
}

impl FromStr for Did {
    type Err = MalformedDid;

    fn from_str(text: &str) -> Result<Did, MalformedDid> {
        let encoded = text.strip_prefix(PREFIX).ok_or(MalformedDid)?;
        if encoded.len() != ENCODED_LENGTH {
            return Err(MalformedDid);
        }
        let mut bytes = [0; LENGTH];
        BASE32.decode_mut(encoded.as_bytes(), &mut bytes).map_err(|_| MalformedDid)?;
        Ok(Did(bytes))
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_ascii();
        f.pad(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_two_forms_of_one_identifier() {
        let text = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        let did: Did = text.parse().unwrap();
        assert_eq!(did.to_string(), text);
        assert_eq!(Did::from_slice(did.as_bytes()), Some(did));
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            "did:plc:",
            "did:web:example.com",
            "did:plc:ewvi7nxzyoun6zhxrhs64oi",
            "did:plc:ewvi7nxzyoun6zhxrhs64oizz",
            "did:plc:EWVI7nxzyoun6zhxrhs64oiz",
            "did:plc:ewvi7nxzyoun6zhxrhs64oi1",
            "did:plc:ewvi7nxzyoun6zhxrhs64oi=",
            " did:plc:ewvi7nxzyoun6zhxrhs64oiz",
        ] {
            assert_eq!(text.parse::<Did>(), Err(MalformedDid), "{text:?}");
        }
    }
}
