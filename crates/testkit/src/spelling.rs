//! Spellings of a CID that the directory takes for the same one, and that are not the specification's.

use multibase::Base;

/// In base58btc, with padding, and with a version that takes a byte more than it need.
///
/// # Panics
///
/// When it is no CID.
pub fn spellings(cid: &str) -> [String; 3] {
    let (_, plain) = multibase::decode(cid).unwrap();
    let longer = [&[0x81, 0x00], &plain[1..]].concat();
    [
        multibase::encode(Base::Base58Btc, &plain),
        format!("{cid}=="),
        multibase::encode(Base::Base32Lower, longer),
    ]
}
