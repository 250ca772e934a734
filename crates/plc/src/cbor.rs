//! The little of DAG-CBOR that operations are made of: text, null, arrays, maps with text keys.
//!
//! The reader accepts only the canonical form (shortest heads, keys by length and then bytes,
//! none twice), so that what it reads has exactly one encoding and the CID of a value is the hash
//! of the bytes that it was read from.

use super::malformed::Malformed;

/// Major types of RFC 8949.
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
/// The simple value null, whole.
const NULL: u8 = 0xf6;

/// Reads canonical DAG-CBOR from a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

/// A value that an operation can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// The value null.
    Null,
    /// A text, whole.
    Text(&'a str),
    /// An array with this number of items to follow.
    Array(usize),
    /// A map with this number of entries to follow.
    Map(usize),
}

impl<'a> Reader<'a> {
    /// Stands before the first item of these bytes.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next item: a text or null whole, of an array or a map its head.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when the bytes end or are not canonical, or are no such item.
    pub fn item(&mut self) -> Result<Item<'a>, Malformed> {
        let first = *self.bytes.first().ok_or_else(ends_early)?;
        if first == NULL {
            self.bytes = &self.bytes[1..];
            return Ok(Item::Null);
        }
        let length = self.head(first & 0x1f)?;
        match first >> 5 {
            TEXT => self.take(length).and_then(|text| {
                str::from_utf8(text)
                    .map(Item::Text)
                    .map_err(|_| Malformed::new("a text that is not UTF-8"))
            }),
            ARRAY => Ok(Item::Array(length)),
            MAP => Ok(Item::Map(length)),
            _ => Err(Malformed::new("a value that no operation holds")),
        }
    }

    /// A length in its shortest form; `short` is the low five bits of the head's first byte.
    fn head(&mut self, short: u8) -> Result<usize, Malformed> {
        let (size, least) = match short {
            0..24 => (0, 0),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            _ => return Err(Malformed::new("a length that no operation has")),
        };
        self.bytes = &self.bytes[1..];
        let value = match size {
            0 => usize::from(short),
            _ => self.take(size)?.iter().fold(0, |value, &byte| value << 8 | usize::from(byte)),
        };
        if value < least {
            return Err(Malformed::new("a length that is not in its shortest form"));
        }
        Ok(value)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(ends_early)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// The text that must stand here.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when something else does.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        match self.item()? {
            Item::Text(text) => Ok(text),
            _ => Err(Malformed::new("something else where a text belongs")),
        }
    }

    /// The text or null that must stand here.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when something else does.
    pub fn text_or_null(&mut self) -> Result<Option<&'a str>, Malformed> {
        match self.item()? {
            Item::Text(text) => Ok(Some(text)),
            Item::Null => Ok(None),
            _ => Err(Malformed::new("something else where a text or null belongs")),
        }
    }

    /// The number of items of the array that must begin here; they are to follow.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when something else does.
    pub fn array(&mut self) -> Result<usize, Malformed> {
        match self.item()? {
            Item::Array(length) => Ok(length),
            _ => Err(Malformed::new("something else where an array belongs")),
        }
    }

    /// The number of entries of the map that must begin here; they are to follow.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when something else does.
    pub fn map(&mut self) -> Result<usize, Malformed> {
        match self.item()? {
            Item::Map(length) => Ok(length),
            _ => Err(Malformed::new("something else where a map belongs")),
        }
    }

    /// Reads the key that must stand here.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when something else does.
    pub fn key(&mut self, expected: &str) -> Result<(), Malformed> {
        if self.text()? == expected {
            return Ok(());
        }
        Err(Malformed::new(format!("another field where `{expected}` belongs")))
    }
}

fn ends_early() -> Malformed {
    Malformed::new("the bytes end in the middle of a value")
}

/// The order of keys in DAG-CBOR, which is that of Postgres `jsonb` too: shorter first, then
/// bytewise.
pub fn key_order(a: &str, b: &str) -> std::cmp::Ordering {
    a.len().cmp(&b.len()).then_with(|| a.as_bytes().cmp(b.as_bytes()))
}

/// Appends null.
pub fn write_null(out: &mut Vec<u8>) {
    out.push(NULL);
}

/// Appends a text, whole.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    write_text_head(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

/// Appends the head of a text of this many bytes, which are to follow.
pub fn write_text_head(length: usize, out: &mut Vec<u8>) {
    write_head(TEXT, length, out);
}

/// Appends the head of an array of this many items, which are to follow.
pub fn write_array(length: usize, out: &mut Vec<u8>) {
    write_head(ARRAY, length, out);
}

/// Appends the head of a map of this many entries, which are to follow.
pub fn write_map(length: usize, out: &mut Vec<u8>) {
    write_head(MAP, length, out);
}

fn write_head(major: u8, length: usize, out: &mut Vec<u8>) {
    let major = major << 5;
    let bytes = (length as u32).to_be_bytes();
    match length {
        0..24 => out.push(major | bytes[3]),
        24..0x100 => out.extend_from_slice(&[major | 24, bytes[3]]),
        0x100..0x1_0000 => out.extend_from_slice(&[major | 25, bytes[2], bytes[3]]),
        _ => out.extend_from_slice(&[major | 26, bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}
