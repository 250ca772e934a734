//! Packing, on the side of the one writer.

use std::collections::HashMap;

use super::frequent::Frequent;
use super::phrases::{BY_FIRST_BYTE, Form, MAX_PAYLOAD, PHRASES, Then};
use super::unpack::unpack_tokens;
use super::{
    AT_SCHEME, HTTPS_SCHEME, Interned, MAX_INTERNED, MAX_INTERNED_LENGTH, PLAIN, TOKENS, token,
};
use did_plc::cbor::{Item, Reader};
use did_plc::operation::MAX_OPERATION_LENGTH;

/// Texts of one operation that are counted as candidates for a number. An ordinary operation has
/// five; one that repeats a text all over shall not thereby make it frequent.
const MAX_COUNTED: usize = 8;
/// Shortest text that is given a number: shorter ones save nothing.
const MIN_INTERNED_LENGTH: usize = 4;
/// Bytes that a packed operation usually takes at most.
const USUAL_LENGTH: usize = 192;

/// Packs operations, and gives numbers to the texts that come often.
#[derive(Debug)]
pub struct Packer {
    interned: Interned,
    /// The numbers of all texts, of the new ones too.
    numbers: HashMap<Box<str>, u32, ahash::RandomState>,
    /// Texts that were given a number since the last commit, in the order of their numbers.
    new: Vec<Box<str>>,
    /// Number of the first of them.
    first_new: u32,
    frequent: Frequent,
    /// What was packed, unpacked again; kept for its memory.
    unpacked: Vec<u8>,
}

/// A text as it is stored.
#[derive(Clone, Copy)]
enum Coded<'a> {
    /// As its number.
    Number(u32),
    /// As the bytes that it encodes.
    Bytes(Form, [u8; MAX_PAYLOAD]),
    /// As a label and the number of what follows it.
    Handle(u32, &'a str),
    /// As it is.
    Plain,
}

impl Packer {
    /// Goes on from the texts that are committed.
    pub fn new(interned: Interned) -> Packer {
        let first_new = interned.len();
        let numbers =
            (0..first_new).filter_map(|number| Some((interned.get(number)?.into(), number)));
        Packer {
            numbers: numbers.collect(),
            new: Vec::new(),
            first_new,
            frequent: Frequent::new(),
            unpacked: Vec::new(),
            interned,
        }
    }

    /// Packs signed DAG-CBOR, or whatever the bytes are.
    pub fn pack(&mut self, signed: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(USUAL_LENGTH);
        if signed.len() <= MAX_OPERATION_LENGTH {
            packed.push(TOKENS);
            self.write_tokens(signed, &mut packed);
            if packed.len() <= signed.len() && self.comes_back(&packed, signed) {
                return packed;
            }
            packed.clear();
        }
        packed.reserve_exact(1 + signed.len());
        packed.push(PLAIN);
        packed.extend_from_slice(signed);
        packed
    }

    /// The rows that the transaction of what was packed has to add to `interned`.
    pub fn new_texts(&self) -> impl Iterator<Item = (u32, &str)> {
        (self.first_new..).zip(self.new.iter().map(|text| &**text))
    }

    /// The transaction is committed: its new texts can be read.
    pub fn committed(&mut self) {
        for (number, text) in (self.first_new..).zip(self.new.drain(..)) {
            // Only this packer gives numbers while it is in use, so the place is free.
            let _ = self.interned.insert(number, &text);
            self.first_new = number + 1;
        }
    }

    /// The transaction is rolled back: its new texts have no number again, and what was packed
    /// with them is not to be used.
    pub fn rolled_back(&mut self) {
        for text in self.new.drain(..) {
            self.numbers.remove(&text);
        }
    }

    /// Whether the packed bytes unpack to the signed ones.
    fn comes_back(&mut self, packed: &[u8], signed: &[u8]) -> bool {
        let text_of = |number: u32| match number.checked_sub(self.first_new) {
            Some(new) => self.new.get(new as usize).map(|text| &**text),
            None => self.interned.get(number),
        };
        self.unpacked.clear();
        unpack_tokens(&packed[1..], text_of, &mut self.unpacked).is_ok() && self.unpacked == signed
    }

    fn write_tokens(&mut self, signed: &[u8], out: &mut Vec<u8>) {
        let mut rest = signed;
        let mut counted = 0;
        while !rest.is_empty() {
            rest = match self.write_phrase(rest, &mut counted, out) {
                Some(after) => after,
                None => self.write_item(rest, &mut counted, out),
            };
        }
    }

    /// Writes the longest phrase that starts here, with the text after it where the phrase takes
    /// one along, and returns what follows.
    fn write_phrase<'a>(
        &mut self,
        rest: &'a [u8],
        counted: &mut usize,
        out: &mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        // The text after the phrases that were tried, with the number of bytes left at its start:
        // phrases that differ only in the form they expect stand one after the other.
        let mut ahead: Option<(usize, Coded, &[u8])> = None;
        for &number in &BY_FIRST_BYTE[usize::from(rest[0])] {
            let phrase = &PHRASES[usize::from(number)];
            let Some(after) = rest.strip_prefix(phrase.bytes) else { continue };
            if phrase.then == Then::Nothing {
                out.push(number);
                return Some(after);
            }
            if ahead.is_none_or(|(at, ..)| at != after.len()) {
                let Some((text, beyond)) = read_text(after) else { continue };
                ahead = Some((after.len(), self.code(text, counted), beyond));
            }
            match (phrase.then, ahead) {
                (Then::Form(form), Some((_, Coded::Bytes(found, payload), beyond)))
                    if found == form =>
                {
                    out.push(number);
                    out.extend_from_slice(&payload[..form.payload_length()]);
                    return Some(beyond);
                }
                (Then::Handle, Some((_, Coded::Handle(end, label), beyond))) => {
                    out.push(number);
                    write_handle(end, label, out);
                    return Some(beyond);
                }
                _ => {}
            }
        }
        None
    }

    /// Writes one item that no phrase starts with, and returns what follows.
    fn write_item<'a>(
        &mut self,
        rest: &'a [u8],
        counted: &mut usize,
        out: &mut Vec<u8>,
    ) -> &'a [u8] {
        let Some((text, after)) = read_text(rest) else {
            out.extend_from_slice(&[token::RAW, 1, rest[0]]);
            return &rest[1..];
        };
        match self.code(text, counted) {
            Coded::Number(number) => write_number(number, out),
            Coded::Bytes(form, payload) => {
                out.push(token::FORMS + form as u8);
                out.extend_from_slice(&payload[..form.payload_length()]);
            }
            Coded::Handle(end, label) => {
                out.push(token::HANDLE);
                write_handle(end, label, out);
            }
            Coded::Plain => write_plain(text, out),
        }
        after
    }

    /// How a text is to be stored. Counts it where a number would make it shorter.
    fn code<'t>(&mut self, text: &'t str, counted: &mut usize) -> Coded<'t> {
        if let Some((label, end)) = split_handle(text) {
            return match self.number(end, counted) {
                Some(number) => Coded::Handle(number, label),
                None => Coded::Plain,
            };
        }
        let bytes = Form::of(text);
        if let Some((form @ (Form::Signature | Form::Cid), payload)) = bytes {
            return Coded::Bytes(form, payload);
        }
        match (self.number(text, counted), bytes) {
            (Some(number), _) => Coded::Number(number),
            (None, Some((form, payload))) => Coded::Bytes(form, payload),
            (None, None) => Coded::Plain,
        }
    }

    /// The number of a text, which it is given if it has come often enough by now.
    fn number(&mut self, text: &str, counted: &mut usize) -> Option<u32> {
        if !(MIN_INTERNED_LENGTH..=MAX_INTERNED_LENGTH).contains(&text.len()) {
            return None;
        }
        if let Some(&number) = self.numbers.get(text) {
            return Some(number);
        }
        let taken = self.numbers.len();
        if *counted == MAX_COUNTED || taken == MAX_INTERNED {
            return None;
        }
        *counted += 1;
        if !self.frequent.is_often(text, taken, MAX_INTERNED) {
            return None;
        }
        let number = taken as u32;
        self.numbers.insert(text.into(), number);
        self.new.push(text.into());
        Some(number)
    }
}

/// The text that starts here, in canonical form, and what follows it.
fn read_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let mut reader = Reader::new(bytes);
    match reader.item() {
        Ok(Item::Text(text)) => Some((text, reader.rest())),
        _ => None,
    }
}

/// The label of a handle's URI and the rest from the first dot on.
fn split_handle(text: &str) -> Option<(&str, &str)> {
    let handle = text.strip_prefix(AT_SCHEME)?;
    let (label, end) = handle.split_at(handle.find('.')?);
    (label.len() <= usize::from(u8::MAX)).then_some((label, end))
}

fn write_handle(end: u32, label: &str, out: &mut Vec<u8>) {
    write_number(end, out);
    // Labels of more bytes are not split off.
    out.push(label.len() as u8);
    out.extend_from_slice(label.as_bytes());
}

fn write_number(number: u32, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    if number < token::FIRST_LONG {
        out.push(token::NUMBERS + bytes[3]);
    } else if number < token::FIRST_LONGEST {
        let [.., high, low] = (number - token::FIRST_LONG).to_be_bytes();
        out.extend_from_slice(&[token::LONG_NUMBERS + high, low]);
    } else {
        out.extend_from_slice(&[token::LONGEST_NUMBER, bytes[2], bytes[3]]);
    }
}

fn write_plain(text: &str, out: &mut Vec<u8>) {
    let (token, text) = match (text.strip_prefix(AT_SCHEME), text.strip_prefix(HTTPS_SCHEME)) {
        (Some(rest), _) => (token::AT_TEXT, rest),
        (_, Some(rest)) => (token::HTTPS_TEXT, rest),
        _ => (token::TEXT, text),
    };
    out.push(token);
    write_length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn write_length(mut length: usize, out: &mut Vec<u8>) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// True for the signed DAG-CBOR of a genesis: its `prev` is null. One accepted genesis is one
/// identity, which is how identities are counted without reading them all.
pub fn is_genesis(signed: &[u8]) -> bool {
    let mut reader = Reader::new(signed);
    // `sig` and `prev` are the shortest keys of all three shapes, so they come first.
    reader.map().is_ok()
        && reader.key("sig").is_ok()
        && reader.text().is_ok()
        && reader.key("prev").is_ok()
        && reader.item() == Ok(Item::Null)
}
