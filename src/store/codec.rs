//! How an operation is stored: packed, and back to the same bytes.
//!
//! The first byte of what is stored names the codec. Codec 0 is the signed DAG-CBOR as it is.
//! Codec 1 rewrites it item by item: the field names and their usual neighbours ([`phrases`])
//! become one byte; signatures, keys and CIDs, which DAG-CBOR holds as text, become the bytes that
//! the text encodes; and texts that the store has seen often (the rotation keys of a host, its
//! endpoint, the end of its handles) become their number in the table `interned`. An operation of
//! 500 bytes takes about 120.
//!
//! Whatever codec 1 cannot give back byte for byte is stored by codec 0: [`Packer::pack`] unpacks
//! what it has packed and compares. So nothing here has to trust that an operation is canonical.
//!
//! A text is given its number in the transaction of the first operation that uses it. The
//! numbers of a transaction that is rolled back are forgotten with it ([`Packer::rolled_back`]);
//! what [`Interned`] holds is committed and never changes.

mod damage;
mod frequent;
mod interned;
mod pack;
mod phrases;
#[cfg(test)]
mod tests;
mod unpack;

pub use self::damage::Damage;
pub use self::interned::Interned;
pub use self::pack::{Packer, is_genesis};
pub use self::unpack::unpack;

/// Codec 0: the signed DAG-CBOR follows as it is.
const PLAIN: u8 = 0;
/// Codec 1: tokens follow.
const TOKENS: u8 = 1;

/// How the URI of a handle starts.
const AT_SCHEME: &str = "at://";
/// How the URL of a host starts.
const HTTPS_SCHEME: &str = "https://";

/// Texts that can have a number. 4 MB in memory when all are in use and of the length of a key;
/// the public directory has a few hundred hosts.
pub const MAX_INTERNED: usize = 1 << 15;
/// Longest text that is given a number, in bytes: no key or host's name is longer.
pub const MAX_INTERNED_LENGTH: usize = 256;

/// The tokens of codec 1 that are not the number of a phrase, see [`phrases::PHRASES`].
mod token {
    /// A text: its length, its bytes.
    pub(super) const TEXT: u8 = 0x30;
    /// A text that starts with `at://`: the length and the bytes of the rest.
    pub(super) const AT_TEXT: u8 = 0x31;
    /// A text that starts with `https://`: the length and the bytes of the rest.
    pub(super) const HTTPS_TEXT: u8 = 0x32;
    /// Bytes as they are: how many, and they. For what is none of the text that operations hold.
    pub(super) const RAW: u8 = 0x33;
    /// `at://`, the number of the end of a handle, the length (one byte) and the bytes of its label.
    pub(super) const HANDLE: u8 = 0x34;
    /// From here on a text in one of its forms, see [`super::phrases::Form`].
    pub(super) const FORMS: u8 = 0x38;
    /// From here on the token is the number of a text, or starts it: 128 numbers take one byte.
    pub(super) const NUMBERS: u8 = 0x40;
    /// From here on another byte follows: 63 times 256 numbers.
    pub(super) const LONG_NUMBERS: u8 = 0xc0;
    /// Two bytes follow.
    pub(super) const LONGEST_NUMBER: u8 = 0xff;

    /// First of the numbers that take two bytes.
    pub(super) const FIRST_LONG: u32 = (LONG_NUMBERS - NUMBERS) as u32;
    /// First of the numbers that take three bytes.
    pub(super) const FIRST_LONGEST: u32 = FIRST_LONG + (LONGEST_NUMBER - LONG_NUMBERS) as u32 * 256;
}
