//! Content identifiers of operations: CIDv1, DAG-CBOR, SHA-256, written in base32.

use std::fmt;
use std::str::FromStr;

use multibase::Base;
use sha2::{Digest, Sha256};

use super::base32::BASE32;

const VERSION: u8 = 0x01;
/// Multicodec of DAG-CBOR.
const CODEC: u8 = 0x71;
/// How a multihash begins: sha2-256, of 32 bytes.
const SHA_256: [u8; 2] = [0x12, 0x20];
const HEADER: [u8; 4] = [VERSION, CODEC, SHA_256[0], SHA_256[1]];
/// Bytes of a binary CID: header and digest.
const BINARY_LENGTH: usize = HEADER.len() + 32;
/// Bytes that the directory's library takes for a number below 128: it adds up powers of two until
/// they are too large for it, and then it has no number any more.
const LONGEST_NUMBER: usize = 147;
/// Bytes of a binary CID in any spelling.
const LONGEST_BINARY: usize = 2 * LONGEST_NUMBER + SHA_256.len() + 32;
/// Characters of those in base32, which says less in a character than base58.
const LONGEST_TEXT: usize = LONGEST_BINARY * 8 / 5 + 2;
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

    /// Reads a CID in any spelling that the directory takes for it: as `FromStr` does, and beyond
    /// that what `CID.parse` of the library makes of it that its server runs (multiformats 9):
    ///
    /// * base32 in lower case with any number of `=` at its end, or base58btc;
    /// * version and codec as varints that are longer than need be. Not so those of the multihash, which the
    ///   library compares byte by byte.
    ///
    /// Capitals, base36 and other bases are beyond that version. What it reads of a base58btc text with
    /// characters outside of the alphabet is an accident, which is not repeated here.
    pub fn of_any_spelling(text: &str) -> Option<Cid> {
        text.parse().ok().or_else(|| Cid::from_binary(&decode(text)?))
    }

    /// From header and digest.
    fn from_binary(binary: &[u8]) -> Option<Cid> {
        let binary = strip_number(binary, VERSION)?;
        let binary = strip_number(binary, CODEC)?;
        Cid::from_slice(binary.strip_prefix(&SHA_256)?)
    }

    /// Header and digest.
    fn to_binary(self) -> [u8; BINARY_LENGTH] {
        let mut binary = [0; BINARY_LENGTH];
        binary[..HEADER.len()].copy_from_slice(&HEADER);
        binary[HEADER.len()..].copy_from_slice(&self.0);
        binary
    }
}

/// The bytes of a text in one of the bases that the library tells by their prefix. A text that begins
/// with `Q` is base58btc without one, meant for CIDs of version 0, of which it asks no version.
fn decode(text: &str) -> Option<Vec<u8>> {
    match text.as_bytes().first()? {
        b'b' => {
            let digits = text[1..].trim_end_matches('=');
            within_bounds(digits).and_then(|digits| BASE32.decode(digits.as_bytes()).ok())
        }
        b'z' => within_bounds(&text[1..]).and_then(|digits| Base::Base58Btc.decode(digits).ok()),
        b'Q' => within_bounds(text).and_then(|digits| Base::Base58Btc.decode(digits).ok()),
        _ => None,
    }
}

/// Decoding base58 takes a time that grows with the square of the length.
fn within_bounds(digits: &str) -> Option<&str> {
    (digits.len() <= LONGEST_TEXT).then_some(digits)
}

/// Takes a number below 128 off the beginning, written as a varint (seven bits a byte, the lowest
/// first; the highest bit says that more follow), with or without zeros at its end.
fn strip_number(bytes: &[u8], number: u8) -> Option<&[u8]> {
    let (&first, rest) = bytes.split_first()?;
    if first == number {
        return Some(rest);
    }
    let zeros = rest.iter().take_while(|&&byte| byte == 0x80).count();
    let is_number = first == number | 0x80 && zeros + 2 <= LONGEST_NUMBER;
    rest[zeros..].strip_prefix(&[0]).filter(|_| is_number)
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

    fn cid() -> Cid {
        TEXT.parse().unwrap()
    }

    /// A binary CID with numbers of these bytes in front of this multihash.
    fn binary(version: &[u8], codec: &[u8], hash: &[u8]) -> Vec<u8> {
        [version, codec, hash, cid().digest()].concat()
    }

    /// `number` as a varint of so many bytes.
    fn varint(number: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0x80; length];
        bytes[0] |= number;
        bytes[length - 1] &= 0x7f;
        bytes
    }

    fn base32(binary: &[u8]) -> String {
        format!("b{}", BASE32.encode(binary))
    }

    fn base58(binary: &[u8]) -> String {
        multibase::encode(Base::Base58Btc, binary)
    }

    /// Each was given to `CID.parse` of multiformats 9.9.0 and compared with its `equals`.
    #[test]
    fn the_spellings_of_the_directory_are_the_same_cid() {
        let plain = cid().to_binary();
        for text in [
            TEXT.to_owned(),
            format!("{TEXT}="),
            format!("{TEXT}======"),
            format!("{TEXT}{}", "=".repeat(5_000)),
            base58(&plain),
            "zdpuAwN7xzYroDUofFMkYQBW4k8BAkVgkcZBUS1RaMPKm3X5i".to_owned(),
            base58(&binary(&varint(1, 2), &[0x71], &SHA_256)),
            base32(&binary(&[1], &varint(0x71, 2), &SHA_256)),
            base32(&binary(&varint(1, 3), &varint(0x71, 7), &SHA_256)),
            base32(&binary(&varint(1, 147), &varint(0x71, 147), &SHA_256)),
            base58(&binary(&varint(1, 147), &varint(0x71, 147), &SHA_256)),
        ] {
            assert_eq!(Cid::of_any_spelling(&text), Some(cid()), "{text:?}");
            assert_eq!(text.parse::<Cid>().is_ok(), text == TEXT, "{text:?}");
        }
    }

    /// A base58btc text needs no prefix when it begins with `Q`.
    #[test]
    fn a_text_that_begins_with_q_is_read_as_it_is() {
        let bare = (1..147).find_map(|length| {
            let text = base58(&binary(&varint(1, length), &[0x71], &SHA_256));
            text.strip_prefix('z').filter(|bare| bare.starts_with('Q')).map(str::to_owned)
        });
        assert_eq!(Cid::of_any_spelling(&bare.unwrap()), Some(cid()));
        assert_eq!(Cid::of_any_spelling(&base58(&cid().to_binary())[1..]), None);
    }

    #[test]
    fn other_spellings_are_none_of_the_directory() {
        let plain = cid().to_binary();
        let mut spare = TEXT.to_owned();
        spare.replace_range(58.., "f");
        for text in [
            // Bases and letters that the library knows in no version, or in later ones only.
            TEXT.to_uppercase(),
            format!("B{}", TEXT[1..].to_uppercase()),
            format!("b{}", TEXT[1..].to_uppercase()),
            multibase::encode(Base::Base36Lower, plain),
            multibase::encode(Base::Base16Lower, plain),
            multibase::encode(Base::Base58Flickr, plain),
            multibase::encode(Base::Base32PadLower, plain),
            multibase::encode(Base::Base64Url, plain),
            // Padding in another place, spare bits, a character too many, and characters of no base.
            format!("={TEXT}"),
            format!("b={}", &TEXT[1..]),
            format!("{TEXT}= "),
            spare,
            format!("{TEXT}a"),
            format!("z1{}", &base58(&plain)[1..]),
            format!("{}=", base58(&plain)),
            format!("z\u{200b}{}", &base58(&plain)[1..]),
            format!("{} ", base58(&plain)),
            // Another version, codec or hash.
            base58(&binary(&[0], &[0x71], &SHA_256)),
            base58(&binary(&[2], &[0x71], &SHA_256)),
            base58(&binary(&[1], &[0x70], &SHA_256)),
            base58(&binary(&[1], &[0x55], &SHA_256)),
            base58(&binary(&[1], &[0x71], &[0x13, 0x20])),
            base58(&binary(&[], &[], &SHA_256))[1..].to_owned(),
            base58(&binary(&[], &[], &SHA_256)),
            // Numbers of the multihash that are longer, numbers that are none, and others.
            base58(&binary(&[1], &[0x71], &[0x92, 0x00, 0x20])),
            base58(&binary(&[1], &[0x71], &[0x12, 0xa0, 0x00])),
            base58(&binary(&varint(1, 148), &[0x71], &SHA_256)),
            base58(&binary(&[0x81, 0x01], &[0x71], &SHA_256)),
            base58(&binary(&[0x81, 0x80, 0x01], &[0x71], &SHA_256)),
            // Bytes missing or left over.
            base58(&plain[..35]),
            base58(&[&plain[..], &[0]].concat()),
            String::new(),
            "b".to_owned(),
            "z".to_owned(),
            "z".repeat(1 << 20),
            "é".to_owned(),
        ] {
            assert_eq!(Cid::of_any_spelling(&text), None, "{text:?}");
        }
    }
}
