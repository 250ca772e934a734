//! Unpacking, on the side of the readers.

use bytes::Bytes;
use did_plc::cbor::{write_text, write_text_head};
use did_plc::operation::MAX_OPERATION_LENGTH;

use super::damage::Damage;
use super::phrases::{FORMS, PHRASES, Then};
use super::{AT_SCHEME, HTTPS_SCHEME, Interned, PLAIN, TOKENS, token};

/// Bytes that an operation usually has at most, to grow once.
const USUAL_LENGTH: usize = 576;

/// The signed DAG-CBOR of a packed operation.
///
/// # Errors
///
/// [`Damage`]; whatever the bytes are, no more than [`MAX_OPERATION_LENGTH`] and a phrase is made
/// of them.
pub fn unpack(packed: &[u8], interned: &Interned) -> Result<Bytes, Damage> {
    match packed.split_first() {
        Some((&PLAIN, signed)) => Ok(Bytes::copy_from_slice(signed)),
        Some((&TOKENS, tokens)) => {
            let mut signed = Vec::with_capacity(USUAL_LENGTH);
            unpack_tokens(tokens, |number| interned.get(number), &mut signed)?;
            Ok(signed.into())
        }
        Some(_) => Err(Damage::Other("a codec that this program does not know")),
        None => Err(Damage::Other("an operation of no bytes")),
    }
}

/// Appends what the tokens of codec 1 stand for.
pub(super) fn unpack_tokens<'a>(
    tokens: &[u8],
    text_of: impl Fn(u32) -> Option<&'a str>,
    out: &mut Vec<u8>,
) -> Result<(), Damage> {
    let mut tokens = Tokens { bytes: tokens };
    while let Some((&token, rest)) = tokens.bytes.split_first() {
        tokens.bytes = rest;
        match token {
            token::TEXT => tokens.text("", out)?,
            token::AT_TEXT => tokens.text(AT_SCHEME, out)?,
            token::HTTPS_TEXT => tokens.text(HTTPS_SCHEME, out)?,
            token::RAW => {
                let length = tokens.length()?;
                out.extend_from_slice(tokens.take(length)?);
            }
            token::HANDLE => tokens.handle(&text_of, out)?,
            token::FORMS..token::NUMBERS => {
                let form = FORMS.get(usize::from(token - token::FORMS)).ok_or(UNKNOWN_TOKEN)?;
                form.write(tokens.take(form.payload_length())?, out);
            }
            token::NUMBERS.. => {
                let number = tokens.number(token)?;
                write_text(text_of(number).ok_or(Damage::UnknownNumber(number))?, out);
            }
            _ => {
                let phrase = PHRASES.get(usize::from(token)).ok_or(UNKNOWN_TOKEN)?;
                out.extend_from_slice(phrase.bytes);
                match phrase.then {
                    Then::Nothing => {}
                    Then::Form(form) => form.write(tokens.take(form.payload_length())?, out),
                    Then::Handle => tokens.handle(&text_of, out)?,
                }
            }
        }
        if out.len() > MAX_OPERATION_LENGTH {
            return Err(Damage::Other("an operation that is larger than any"));
        }
    }
    Ok(())
}

const UNKNOWN_TOKEN: Damage = Damage::Other("a token that this program does not know");
const ENDS_EARLY: Damage = Damage::Other("the packed bytes end in the middle of a token");

/// Reads what follows a token.
struct Tokens<'a> {
    bytes: &'a [u8],
}

impl<'a> Tokens<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(ENDS_EARLY)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Damage> {
        Ok(self.take(1)?[0])
    }

    /// A length of at most 28 bits.
    fn length(&mut self) -> Result<usize, Damage> {
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(length);
            }
        }
        Err(Damage::Other("a length that no operation has"))
    }

    /// The number that `token` is or starts.
    fn number(&mut self, token: u8) -> Result<u32, Damage> {
        Ok(match token {
            token::LONGEST_NUMBER => u32::from(self.byte()?) << 8 | u32::from(self.byte()?),
            token::LONG_NUMBERS.. => {
                let high = u32::from(token - token::LONG_NUMBERS);
                token::FIRST_LONG + (high << 8 | u32::from(self.byte()?))
            }
            token::NUMBERS.. => u32::from(token - token::NUMBERS),
            _ => return Err(UNKNOWN_TOKEN),
        })
    }

    /// A text of which the first characters are known.
    fn text(&mut self, start: &str, out: &mut Vec<u8>) -> Result<(), Damage> {
        let length = self.length()?;
        let rest = self.take(length)?;
        write_text_head(start.len() + rest.len(), out);
        out.extend_from_slice(start.as_bytes());
        out.extend_from_slice(rest);
        Ok(())
    }

    /// The URI of a handle, after its token.
    fn handle<'t>(
        &mut self,
        text_of: impl Fn(u32) -> Option<&'t str>,
        out: &mut Vec<u8>,
    ) -> Result<(), Damage> {
        let token = self.byte()?;
        let number = self.number(token)?;
        let end = text_of(number).ok_or(Damage::UnknownNumber(number))?;
        let length = self.byte()?;
        let label = self.take(usize::from(length))?;
        write_text_head(AT_SCHEME.len() + label.len() + end.len(), out);
        out.extend_from_slice(AT_SCHEME.as_bytes());
        out.extend_from_slice(label);
        out.extend_from_slice(end.as_bytes());
        Ok(())
    }
}
