//! The phrases of codec 1: what operations say again and again, as one byte.

use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;

use did_plc::cbor::write_text_head;
use did_plc::key::{self, Curve, EVEN, ODD, PublicKey};
use did_plc::signature::{SIGNATURE_LENGTH, Signature};
use did_plc::{Cid, cid};

/// Texts that encode bytes, and are stored as those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// 64 bytes in base64url.
    Signature,
    /// The text of a CID: its digest.
    Cid,
    /// `did:key` of a curve, and the first byte of the point; the X coordinate is stored.
    KeyK256Even,
    KeyK256Odd,
    KeyP256Even,
    KeyP256Odd,
}

/// All forms, each at its own number.
pub(super) const FORMS: [Form; 6] = [
    Form::Signature,
    Form::Cid,
    Form::KeyK256Even,
    Form::KeyK256Odd,
    Form::KeyP256Even,
    Form::KeyP256Odd,
];

/// Bytes of a digest, and of an X coordinate.
const SHORT_PAYLOAD: usize = 32;
/// Longest of the payloads.
pub(super) const MAX_PAYLOAD: usize = SIGNATURE_LENGTH;
/// Characters of a signature.
const SIGNATURE_TEXT: usize = 86;

impl Form {
    /// Bytes that are stored for it.
    pub(super) const fn payload_length(self) -> usize {
        match self {
            Form::Signature => SIGNATURE_LENGTH,
            _ => SHORT_PAYLOAD,
        }
    }

    /// The form of a text and its payload.
    pub(super) fn of(text: &str) -> Option<(Form, [u8; MAX_PAYLOAD])> {
        let mut payload = [0; MAX_PAYLOAD];
        let form = match text.len() {
            SIGNATURE_TEXT => {
                payload = Signature::parse(text)?.0;
                Form::Signature
            }
            key::TEXT_LENGTH => {
                let key = PublicKey::from_ascii(text.as_bytes())?;
                payload[..SHORT_PAYLOAD].copy_from_slice(&key.point[1..]);
                match (key.curve, key.point[0]) {
                    (Curve::K256, EVEN) => Form::KeyK256Even,
                    (Curve::K256, _) => Form::KeyK256Odd,
                    (Curve::P256, EVEN) => Form::KeyP256Even,
                    (Curve::P256, _) => Form::KeyP256Odd,
                }
            }
            cid::TEXT_LENGTH => {
                payload[..SHORT_PAYLOAD].copy_from_slice(text.parse::<Cid>().ok()?.digest());
                Form::Cid
            }
            _ => return None,
        };
        Some((form, payload))
    }

    /// Appends, as DAG-CBOR, the text that a payload of this form's length stands for.
    pub(super) fn write(self, payload: &[u8], out: &mut Vec<u8>) {
        let (curve, first) = match self {
            Form::Signature => {
                write_text_head(SIGNATURE_TEXT, out);
                let start = out.len();
                out.resize(start + SIGNATURE_TEXT, 0);
                BASE64URL_NOPAD.encode_mut(payload, &mut out[start..]);
                return;
            }
            Form::Cid => {
                let mut digest = [0; SHORT_PAYLOAD];
                digest.copy_from_slice(payload);
                write_text_head(cid::TEXT_LENGTH, out);
                out.extend_from_slice(&Cid::from_digest(digest).to_ascii());
                return;
            }
            Form::KeyK256Even => (Curve::K256, EVEN),
            Form::KeyK256Odd => (Curve::K256, ODD),
            Form::KeyP256Even => (Curve::P256, EVEN),
            Form::KeyP256Odd => (Curve::P256, ODD),
        };
        let mut point = [first; key::POINT_LENGTH];
        point[1..].copy_from_slice(payload);
        write_text_head(key::TEXT_LENGTH, out);
        out.extend_from_slice(&PublicKey { curve, point }.to_ascii());
    }
}

/// What a phrase takes along of the text after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing: whatever follows has a token of its own.
    Nothing,
    /// A text of this form.
    Form(Form),
    /// `at://`, a label, and from its first dot on a text that has a number.
    Handle,
}

/// Bytes that stand in many operations, and what follows them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phrase {
    pub(super) bytes: &'static [u8],
    pub(super) then: Then,
}

const fn phrase(bytes: &'static [u8]) -> Phrase {
    Phrase { bytes, then: Then::Nothing }
}

const fn before(form: Form, bytes: &'static [u8]) -> Phrase {
    Phrase { bytes, then: Then::Form(form) }
}

const fn before_handle(bytes: &'static [u8]) -> Phrase {
    Phrase { bytes, then: Then::Handle }
}

/// The phrases by their number, which is their token: **part of the stored format**. A phrase can
/// be added at the end while there is room below [`super::token::TEXT`], and none ever changes.
///
/// DAG-CBOR sorts keys by length, so that `sig`, `prev` and `type` always come first.
pub(super) static PHRASES: &[Phrase] = &[
    // 0: how a regular operation and a legacy one start, and a tombstone.
    before(Form::Signature, b"\xa7\x63sig"),
    before(Form::Signature, b"\xa3\x63sig"),
    // 2: a genesis, up to its host.
    phrase(
        b"\x64prev\xf6\x64type\x6dplc_operation\x68services\xa1\x6batproto_pds\xa2\
          \x64type\x78\x19AtprotoPersonalDataServer\x68endpoint",
    ),
    // 3: an update.
    before(Form::Cid, b"\x64prev"),
    phrase(
        b"\x64type\x6dplc_operation\x68services\xa1\x6batproto_pds\xa2\
          \x64type\x78\x19AtprotoPersonalDataServer\x68endpoint",
    ),
    // 5: the rest of both.
    before_handle(b"\x6balsoKnownAs\x81"),
    phrase(b"\x6balsoKnownAs\x81"),
    phrase(b"\x6crotationKeys\x82"),
    phrase(b"\x6crotationKeys\x81"),
    phrase(b"\x6crotationKeys\x83"),
    before(Form::KeyK256Even, b"\x73verificationMethods\xa1\x67atproto"),
    before(Form::KeyK256Odd, b"\x73verificationMethods\xa1\x67atproto"),
    before(Form::KeyP256Even, b"\x73verificationMethods\xa1\x67atproto"),
    before(Form::KeyP256Odd, b"\x73verificationMethods\xa1\x67atproto"),
    phrase(b"\x73verificationMethods\xa1\x67atproto"),
    // 15: the other two shapes.
    phrase(b"\x64type\x6dplc_tombstone"),
    phrase(b"\x64prev\xf6\x64type\x66create\x66handle"),
    phrase(b"\x67service"),
    before(Form::KeyK256Even, b"\x6asigningKey"),
    before(Form::KeyK256Odd, b"\x6asigningKey"),
    phrase(b"\x6asigningKey"),
    phrase(b"\x6brecoveryKey"),
    // 22: the pieces, for what is put together otherwise.
    phrase(b"\x63sig"),
    phrase(b"\x64prev\xf6"),
    phrase(b"\x64prev"),
    phrase(b"\x64type\x6dplc_operation\x68services"),
    phrase(b"\x64type"),
    phrase(b"\x68endpoint"),
    phrase(b"\x68services"),
    phrase(b"\x6balsoKnownAs"),
    phrase(b"\x6crotationKeys"),
    phrase(b"\x73verificationMethods"),
    phrase(b"\x67atproto"),
    phrase(b"\x6batproto_pds"),
    phrase(b"\x78\x19AtprotoPersonalDataServer"),
    phrase(b"\x6fatproto_labeler"),
    phrase(b"\x6eAtprotoLabeler"),
    phrase(b"\x6datproto_label"),
    // 38: small maps and arrays, null, the empty text.
    phrase(b"\xa0"),
    phrase(b"\xa1"),
    phrase(b"\xa2"),
    phrase(b"\xa3"),
    phrase(b"\x80"),
    phrase(b"\x81"),
    phrase(b"\x82"),
    phrase(b"\xf6"),
    phrase(b"\x60"),
];

/// The numbers of the phrases that start with a byte, longest phrase first.
pub(super) static BY_FIRST_BYTE: LazyLock<[Vec<u8>; 256]> = LazyLock::new(|| {
    let mut numbers = [const { Vec::new() }; 256];
    for (number, phrase) in PHRASES.iter().enumerate() {
        numbers[usize::from(phrase.bytes[0])].push(number as u8);
    }
    for numbers in &mut numbers {
        // Of phrases with the same bytes, those that take the following text along come first.
        numbers.sort_by_key(|&number| {
            let phrase = &PHRASES[usize::from(number)];
            (std::cmp::Reverse(phrase.bytes.len()), phrase.then == Then::Nothing)
        });
    }
    numbers
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::codec::token;

    #[test]
    fn tokens_do_not_overlap() {
        assert!(PHRASES.len() <= usize::from(token::TEXT));
        assert!(FORMS.len() <= usize::from(token::NUMBERS - token::FORMS));
        for (number, form) in FORMS.into_iter().enumerate() {
            assert_eq!(form as usize, number);
        }
    }
}
