//! One file of a snapshot, as the index describes it.

use did_plc::Timestamp;

use super::digest::Digest;

/// Digits of a sequence number in a name: as many as the largest one has, so that names stand in the order of numbers.
const NUMBER_LENGTH: usize = 16;
/// Digits of the digest in a name: half of it, which nobody makes two files for.
const DIGEST_LENGTH: usize = 32;
/// How names end.
const ENDING: &str = ".jsonl.zst";

/// A file: which operations are in it, and what it has to be when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Sequence number of the first operation in it.
    pub first: i64,
    /// Sequence number of the last operation in it.
    pub last: i64,
    /// Operations in it, which is lines. There are fewer than numbers from the first to the last where the log has gaps.
    pub count: u64,
    /// When the directory accepted the last operation in it.
    pub last_created_at: Timestamp,
    /// Bytes of the lines.
    pub bytes: u64,
    /// Bytes of the file, in which the lines are compressed.
    pub compressed_bytes: u64,
    /// Digest of the lines, each with the newline behind it.
    pub lines: Digest,
}

impl SnapshotFile {
    /// Its name. It follows from what is in the file, so that a name never stands for anything else.
    pub fn name(&self) -> String {
        let digest = self.lines.to_string();
        let digest = &digest[..DIGEST_LENGTH];
        format!("{:0NUMBER_LENGTH$}-{:0NUMBER_LENGTH$}.{digest}{ENDING}", self.first, self.last)
    }
}

/// Whether a file of a snapshot could have this name.
pub fn is_file_name(name: &str) -> bool {
    let is_number = |text: &str| {
        text.len() == NUMBER_LENGTH && text.bytes().all(|digit| digit.is_ascii_digit())
    };
    let is_digest = |text: &str| {
        text.len() == DIGEST_LENGTH
            && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    name.strip_suffix(ENDING).and_then(|name| name.split_once('.')).is_some_and(
        |(numbers, digest)| {
            let numbers = numbers.split_once('-');
            numbers.is_some_and(|(first, last)| is_number(first) && is_number(last))
                && is_digest(digest)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::sequence::MAX_SEQUENCE;

    #[test]
    fn names_are_in_the_order_of_the_numbers() {
        let named = |first, last| {
            let (created_at, lines) = (Timestamp::from_millis(0), Digest::BEGINNING);
            let (count, bytes, compressed_bytes) = (1, 1, 1);
            SnapshotFile {
                first,
                last,
                count,
                last_created_at: created_at,
                bytes,
                compressed_bytes,
                lines,
            }
            .name()
        };
        assert_eq!(
            named(100_001, 200_000),
            "0000000000100001-0000000000200000.00000000000000000000000000000000.jsonl.zst"
        );
        let names =
            [named(1, 9), named(10, 90), named(100, 900), named(MAX_SEQUENCE, MAX_SEQUENCE)];
        assert!(names.is_sorted() && names.iter().all(|name| is_file_name(name)), "{names:?}");
        let cut = &names[0][1..];
        for other in
            ["index.json", ".lock", "", &names[0].to_uppercase(), cut, &format!("../{cut}")]
        {
            assert!(!is_file_name(other), "{other}");
        }
    }
}
