//! Base58 (Bitcoin's alphabet) of the one size that matters here: 35 bytes, which are a multicodec
//! and a compressed point, as 48 characters.
//!
//! The general algorithm divides a long number by 58 once a character. With the size known, the
//! number is taken from base 2³² to base 58⁵ by one multiplication with a constant matrix, and back
//! by another: a store packs and unpacks a key for each operation, and multibase takes five times as
//! long.

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// What [`DIGITS`] holds for characters outside of the alphabet.
const NO_DIGIT: u8 = 0xff;
/// The value of each character.
const DIGITS: [u8; 256] = digits();

/// Bytes that are encoded.
pub(crate) const DECODED_LENGTH: usize = 35;
/// Characters that they become: 58⁴⁸ is just above 2²⁸⁰. Small numbers start with zeros (`1`).
pub(crate) const ENCODED_LENGTH: usize = 48;

/// The greater digit: five characters.
const GROUP: u64 = 58 * 58 * 58 * 58 * 58;
/// Characters of a greater digit.
const GROUP_CHARACTERS: usize = 5;
/// Greater digits that hold 48 characters, and two more in front that are zero.
const GROUPS: usize = 10;
/// Characters in front of the 48.
const SPARE_CHARACTERS: usize = GROUPS * GROUP_CHARACTERS - ENCODED_LENGTH;
/// Words of 32 bits that hold 35 bytes, and one more in front that is zero.
const WORDS: usize = 9;

/// Row `i`: what the word at place `i` counts, 2^(32·(8−i)), in greater digits.
const WORDS_IN_GROUPS: [[u64; GROUPS]; WORDS] = words_in_groups();
/// Row `i`: what the greater digit at place `i` counts, 58^(5·(9−i)), in words.
const GROUPS_IN_WORDS: [[u64; WORDS]; GROUPS] = groups_in_words();

// The sums of the two multiplications, with what is carried into them, fit into 64 bits.
const _: () = assert!(column_fits(&WORDS_IN_GROUPS, u32::MAX as u64));
const _: () = assert!(column_fits(&GROUPS_IN_WORDS, GROUP - 1));

const fn digits() -> [u8; 256] {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        digits[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    digits
}

/// Powers of `factor` in digits of `base`, the highest power first.
const fn powers<const ROWS: usize, const PLACES: usize>(
    factor: u64,
    base: u64,
) -> [[u64; PLACES]; ROWS] {
    let mut rows = [[0; PLACES]; ROWS];
    rows[ROWS - 1][PLACES - 1] = 1;
    let mut row = ROWS - 1;
    while row > 0 {
        let (mut place, mut carry) = (PLACES, 0);
        while place > 0 {
            place -= 1;
            let value = rows[row][place] * factor + carry;
            rows[row - 1][place] = value % base;
            carry = value / base;
        }
        row -= 1;
    }
    rows
}

const fn words_in_groups() -> [[u64; GROUPS]; WORDS] {
    powers(1 << 32, GROUP)
}

const fn groups_in_words() -> [[u64; WORDS]; GROUPS] {
    powers(GROUP, 1 << 32)
}

const fn column_fits<const ROWS: usize, const PLACES: usize>(
    rows: &[[u64; PLACES]; ROWS],
    highest: u64,
) -> bool {
    let mut place = 0;
    while place < PLACES {
        // A carry is below 2^64 divided by the smaller of the two bases.
        let (mut sum, mut row) = ((u64::MAX / GROUP) as u128, 0);
        while row < ROWS {
            sum += rows[row][place] as u128 * highest as u128;
            row += 1;
        }
        if sum > u64::MAX as u128 {
            return false;
        }
        place += 1;
    }
    true
}

/// Whether a text of any length is one of this alphabet.
pub(crate) fn is_text(text: &str) -> bool {
    text.bytes().all(|character| DIGITS[usize::from(character)] != NO_DIGIT)
}

/// The 48 characters of 35 bytes.
pub(crate) fn encode(bytes: &[u8; DECODED_LENGTH]) -> [u8; ENCODED_LENGTH] {
    let mut padded = [0; WORDS * 4];
    padded[1..].copy_from_slice(bytes);
    let mut groups = [0u64; GROUPS];
    for (row, word) in WORDS_IN_GROUPS.iter().zip(padded.as_chunks::<4>().0) {
        let word = u64::from(u32::from_be_bytes(*word));
        for (group, count) in groups.iter_mut().zip(row) {
            *group += word * count;
        }
    }
    for place in (1..GROUPS).rev() {
        groups[place - 1] += groups[place] / GROUP;
        groups[place] %= GROUP;
    }
    let mut characters = [0; GROUPS * GROUP_CHARACTERS];
    for (characters, group) in
        characters.as_chunks_mut::<GROUP_CHARACTERS>().0.iter_mut().zip(groups)
    {
        let mut group = group as u32;
        for character in characters.iter_mut().rev() {
            *character = ALPHABET[(group % 58) as usize];
            group /= 58;
        }
    }
    let mut text = [0; ENCODED_LENGTH];
    text.copy_from_slice(&characters[SPARE_CHARACTERS..]);
    text
}

/// The 35 bytes of 48 characters, or `None` when one is outside of the alphabet or the number is
/// too large. Inverse of [`encode`], in both directions.
pub(crate) fn decode(text: &[u8; ENCODED_LENGTH]) -> Option<[u8; DECODED_LENGTH]> {
    let mut characters = [ALPHABET[0]; GROUPS * GROUP_CHARACTERS];
    characters[SPARE_CHARACTERS..].copy_from_slice(text);
    let mut words = [0u64; WORDS];
    let mut seen = 0;
    for (row, characters) in
        GROUPS_IN_WORDS.iter().zip(characters.as_chunks::<GROUP_CHARACTERS>().0)
    {
        let group = characters.iter().fold(0u64, |group, &character| {
            let digit = DIGITS[usize::from(character)];
            seen |= digit;
            group * 58 + u64::from(digit)
        });
        for (word, count) in words.iter_mut().zip(row) {
            *word = word.wrapping_add(group.wrapping_mul(*count));
        }
    }
    // Digits are below 64; what is no digit has the highest bit, and made the sums meaningless.
    if seen & 0x80 != 0 {
        return None;
    }
    let mut bytes = [0; WORDS * 4];
    let mut carry = 0;
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words).rev() {
        let value = word + carry;
        *four = (value as u32).to_be_bytes();
        carry = value >> 32;
    }
    if carry != 0 || bytes[0] != 0 {
        return None;
    }
    let mut decoded = [0; DECODED_LENGTH];
    decoded.copy_from_slice(&bytes[1..]);
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use multibase::Base;
    use proptest::prelude::*;

    use super::*;

    /// 35 bytes as multibase writes them, with as many zeros in front as there are here.
    fn by_multibase(bytes: &[u8; DECODED_LENGTH]) -> String {
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        format!("{:1>48}", &Base::Base58Btc.encode(bytes)[zeros..])
    }

    /// What multibase reads, with as many zeros in front as there are here.
    fn read_by_multibase(text: &[u8; ENCODED_LENGTH]) -> Option<[u8; DECODED_LENGTH]> {
        let read = Base::Base58Btc.decode(str::from_utf8(text).ok()?).ok()?;
        let number = &read[read.iter().take_while(|&&byte| byte == 0).count()..];
        let mut bytes = [0; DECODED_LENGTH];
        bytes[DECODED_LENGTH.checked_sub(number.len())?..].copy_from_slice(number);
        Some(bytes)
    }

    proptest! {
        #[test]
        fn written_as_by_multibase(
            bytes in prop::collection::vec(any::<u8>(), DECODED_LENGTH), zeros in 0..DECODED_LENGTH,
        ) {
            let mut bytes: [u8; DECODED_LENGTH] = bytes.try_into().unwrap();
            for zeros in [0, zeros] {
                bytes[..zeros].fill(0);
                let text = encode(&bytes);
                prop_assert_eq!(str::from_utf8(&text).unwrap(), by_multibase(&bytes));
                prop_assert_eq!(decode(&text), Some(bytes));
            }
        }

        #[test]
        fn read_as_by_multibase(text in "[1-9A-HJ-NP-Za-km-z]{48}|[1-5].{0,4}[0-9A-Za-z]{43,47}") {
            if let Ok(text) = text.into_bytes().try_into() {
                prop_assert_eq!(decode(&text), read_by_multibase(&text));
            }
        }

        #[test]
        fn what_is_decoded_is_encoded_the_same(text in "[1-9A-HJ-NP-Za-km-z]{48}") {
            let text: [u8; ENCODED_LENGTH] = text.into_bytes().try_into().unwrap();
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }

        // A larger first character would be refused for what it stands for.
        #[test]
        fn other_characters_are_refused(at in 1..ENCODED_LENGTH, other in any::<u8>()) {
            let mut text = encode(&[1; DECODED_LENGTH]);
            text[at] = other;
            prop_assert_eq!(decode(&text).is_some(), ALPHABET.contains(&other));
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        for byte in [0, 0xff] {
            let bytes = [byte; DECODED_LENGTH];
            assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
        assert_eq!(decode(&[b'z'; ENCODED_LENGTH]), None, "58⁴⁸ - 1 takes 36 bytes");
    }
}
