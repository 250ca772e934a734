//! Base32 as RFC 4648 has it, in lower case and without padding: the alphabet of `did:plc`
//! identifiers, and of CIDs after their `b`.

use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};

/// Decoding refuses capitals, and spare bits that are not zero.
#[expect(clippy::expect_used, reason = "a constant specification, correct or never")]
pub(crate) static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("the alphabet of base32")
});
