//! Content identifiers of operations: CIDv1, DAG-CBOR, SHA-256, in base32 text.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use sha2::{Digest, Sha256};

/// RFC 4648 base32, lower case, no padding: multibase `b`. Decoding refuses spare bits that are
/// not zero.
pub(crate) static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("a constant specification, correct or never")
});

/// Version 1, codec dag-cbor, hash sha2-256 of 32 bytes.
const HEADER: [u8; 4] = [0x01, 0x71, 0x12, 0x20];
/// Bytes of a binary CID: header and digest.
const BINARY_LENGTH: usize = HEADER.len() + 32;
/// Characters of the text form: `b`, then 58 of base32 (36 bytes and two spare bits).
pub const TEXT_LENGTH: usize = 59;

/// The CID of an operation, held as the SHA-256 digest of its signed DAG-CBOR.
///
/// Ordered as its digest is; the export orders by text, see [`Cid::to_ascii`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid([u8; 32]);

/// The text is not the canonical base32 of a CIDv1 with dag-cbor and sha2-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the base32 text of a CIDv1 of DAG-CBOR with SHA-256")]
pub struct MalformedCid;

impl Cid {
    /// The CID of these bytes.
    pub fn of(bytes: &[u8]) -> Cid {
        Cid(Sha256::digest(bytes).into())
    }

    /// From a SHA-256 digest.
    pub const fn from_digest(digest: [u8; 32]) -> Cid {
        Cid(digest)
    }

    /// From stored bytes of unknown length; `None` unless there are 32.
    pub fn from_slice(digest: &[u8]) -> Option<Cid> {
        digest.try_into().ok().map(Cid)
    }

    /// The SHA-256 digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text form as ASCII, without an allocation. Comparing these bytes is the order of the
    /// export by timestamp (`2`–`7` before `a`–`z`).
    pub fn to_ascii(self) -> [u8; TEXT_LENGTH] {
        let mut binary = [0; BINARY_LENGTH];
        binary[..HEADER.len()].copy_from_slice(&HEADER);
        binary[HEADER.len()..].copy_from_slice(&self.0);
        let mut text = [b'b'; TEXT_LENGTH];
        BASE32.encode_mut(&binary, &mut text[1..]);
        text
    }
}

impl FromStr for Cid {
    type Err = MalformedCid;

    fn from_str(text: &str) -> Result<Cid, MalformedCid> {
        let encoded = text.strip_prefix('b').ok_or(MalformedCid)?;
        let binary =
            base32_values::<{ TEXT_LENGTH - 1 }, BINARY_LENGTH>(encoded).ok_or(MalformedCid)?;
        let digest = binary.strip_prefix(&HEADER).ok_or(MalformedCid)?;
        Cid::from_slice(digest).ok_or(MalformedCid)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_ascii();
        f.pad(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Decodes canonical lower-case base32 (spare bits zero) of exactly `N` characters into `M` bytes.
pub(crate) fn base32_values<const N: usize, const M: usize>(text: &str) -> Option<[u8; M]> {
    let mut bytes = [0; M];
    if text.len() != N || BASE32.decode_len(N).ok()? != M {
        return None;
    }
    let length = BASE32.decode_mut(text.as_bytes(), &mut bytes).ok()?;
    (length == M).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "bafyreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbide";

    #[test]
    fn text_and_digest_are_two_forms_of_one_cid() {
        let cid: Cid = TEXT.parse().unwrap();
        assert_eq!(cid.to_string(), TEXT);
        assert_eq!(Cid::from_slice(cid.digest()), Some(cid));
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            "b",
            &TEXT[..58],
            &TEXT.to_uppercase(),
            // Spare bits that are not zero, and another codec.
            "bafyreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbidf",
            "bafkreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbide",
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        ] {
            assert_eq!(text.parse::<Cid>(), Err(MalformedCid), "{text:?}");
        }
    }
}
