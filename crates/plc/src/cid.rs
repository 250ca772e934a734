//! Content identifiers of operations: CIDv1, DAG-CBOR, SHA-256, in base32 text.

use std::fmt;
use std::str::FromStr;

use multibase::Base;
use sha2::{Digest, Sha256};

use super::base32::BASE32;

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

    /// The text form as ASCII, without an allocation: faster than `Display`. Comparing these bytes is the order of the
    /// export by timestamp (`2`–`7` before `a`–`z`).
    pub fn to_ascii(self) -> [u8; TEXT_LENGTH] {
        let mut text = [b'b'; TEXT_LENGTH];
        BASE32.encode_mut(&self.to_binary(), &mut text[1..]);
        text
    }

    /// Header and digest.
    fn to_binary(self) -> [u8; BINARY_LENGTH] {
        let mut binary = [0; BINARY_LENGTH];
        binary[..HEADER.len()].copy_from_slice(&HEADER);
        binary[HEADER.len()..].copy_from_slice(&self.0);
        binary
    }
}

impl FromStr for Cid {
    type Err = MalformedCid;

    fn from_str(text: &str) -> Result<Cid, MalformedCid> {
        // A text of another length is none of these, and some bases take long to decode.
        if text.len() != TEXT_LENGTH {
            return Err(MalformedCid);
        }
        let (_, binary) = multibase::decode(text).map_err(|_| MalformedCid)?;
        let digest = binary.strip_prefix(&HEADER).ok_or(MalformedCid)?;
        let cid = Cid::from_slice(digest).ok_or(MalformedCid)?;
        // Multibase knows more spellings than the canonical one: other bases, and capitals.
        if cid.to_ascii() == text.as_bytes() { Ok(cid) } else { Err(MalformedCid) }
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&multibase::encode(Base::Base32Lower, self.to_binary()))
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "bafyreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbide";

    #[test]
    fn text_and_digest_are_two_forms_of_one_cid() {
        let cid: Cid = TEXT.parse().unwrap();
        assert_eq!(cid.to_string(), TEXT);
        assert_eq!(cid.to_ascii(), TEXT.as_bytes());
        assert_eq!(Cid::from_slice(cid.digest()), Some(cid));
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            "b",
            &TEXT[..58],
            &TEXT.to_uppercase(),
            &TEXT.replace("mbide", "MBIDE"),
            // Spare bits that are not zero, and another codec.
            "bafyreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbidf",
            "bafkreifcs3qkws2pnksfeqeolu77e52sr2dctptox5jkq37myjkhjmbide",
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
            // The same CID in base58btc and base16, and 59 bytes that are no multibase.
            &multibase::encode(Base::Base58Btc, TEXT.parse::<Cid>().unwrap().to_binary()),
            &multibase::encode(Base::Base16Lower, TEXT.parse::<Cid>().unwrap().to_binary()),
            &format!("{}b", "é".repeat(29)),
        ] {
            assert_eq!(text.parse::<Cid>(), Err(MalformedCid), "{text:?}");
        }
    }
}
