//! The index of a snapshot: one JSON document that names all of its files.

use did_plc::sequence::MAX_SEQUENCE;
use did_plc::timestamp::MalformedTimestamp;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, MalformedDigest};
use super::division::{Division, MAX_NUMBERS_PER_FILE};
use super::file::SnapshotFile;

/// The name of the index. It is the one file of a snapshot that changes.
pub const INDEX_NAME: &str = "index.json";

/// Bytes of an index at most: a quarter of a million files. Who fetches one reads no further.
pub const MAX_INDEX_BYTES: usize = 64 << 20;

/// What the document says that it is.
const FORMAT: &str = "plc-replica-snapshot";
/// Its version: another one is another format. Members that are not known are passed over.
const VERSION: u64 = 1;

/// An index: which files there are, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    division: Division,
    files: Vec<SnapshotFile>,
}

/// What cannot be an index.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Cut off, or something else altogether.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    /// JSON of another kind.
    #[error("it is not the index of a snapshot: its `format` is not \"{FORMAT}\"")]
    OtherFormat,
    /// Of a version that is not read here.
    #[error("it is an index of version {0}, and this program reads version {VERSION}")]
    OtherVersion(u64),
    /// Something is missing, or is not what it has to be.
    #[error("{0}")]
    Malformed(String),
    /// What it says of a file cannot be.
    #[error("the file {place} of the index (from 1): {reason}")]
    File {
        /// Which file, from 1.
        place: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// What it says of all files is not what they come to.
    #[error("`{member}` is {stated}, and the files come to {computed}: the index is damaged")]
    Sum {
        /// The name of the member.
        member: &'static str,
        /// What is stated.
        stated: String,
        /// What it should be.
        computed: String,
    },
}

impl Index {
    /// The index of these files, which stand in the order of their numbers, at most one in each range.
    pub fn new(division: Division, files: Vec<SnapshotFile>) -> Index {
        Index { division, files }
    }

    /// Reads a document, and makes sure that it agrees with itself: every digest of the chain is computed again, every
    /// name has to follow from what is said of its file, and the files stand in their ranges and in their order. What is
    /// in the files, only who reads them knows.
    ///
    /// # Errors
    ///
    /// See [`IndexError`].
    pub fn parse(document: &[u8]) -> Result<Index, IndexError> {
        let head: Head = serde_json::from_slice(document).map_err(|error| {
            if error.is_data() {
                IndexError::OtherFormat
            } else {
                IndexError::NotJson(error.to_string())
            }
        })?;
        if head.format != FORMAT {
            return Err(IndexError::OtherFormat);
        }
        if head.version != VERSION {
            return Err(IndexError::OtherVersion(head.version));
        }
        let written: Written = serde_json::from_slice(document)
            .map_err(|error| IndexError::Malformed(error.to_string()))?;
        let division = Division::into_ranges_of(written.numbers_per_file).ok_or_else(|| {
            IndexError::Malformed(format!(
                "`numbersPerFile` is {}, and has to be between 1 and {MAX_NUMBERS_PER_FILE}",
                written.numbers_per_file
            ))
        })?;
        let mut index = Index::new(division, Vec::with_capacity(written.files.len()));
        let mut chain = Digest::BEGINNING;
        for (at, file) in written.files.iter().enumerate() {
            let of_file = |reason| IndexError::File { place: at + 1, reason };
            let (file, stated) = file.read().map_err(of_file)?;
            index.check_place(&file).map_err(of_file)?;
            chain = chain.followed_by(file.lines);
            if stated != chain {
                return Err(of_file(format!("`chain` is {stated}, and has to be {chain}")));
            }
            index.files.push(file);
        }
        index.check_sums(&written.sums)?;
        Ok(index)
    }

    /// Whether a file can follow those that are there.
    fn check_place(&self, file: &SnapshotFile) -> Result<(), String> {
        let place = self.division.place_of(file.first);
        if self.division.place_of(file.last) != place {
            return Err(format!(
                "the numbers {} and {} belong in two files",
                file.first, file.last
            ));
        }
        let before = self.files.last().map(|before| self.division.place_of(before.last));
        if before.is_some_and(|before| before >= place) {
            return Err("it does not come after the file before it".to_owned());
        }
        Ok(())
    }

    fn check_sums(&self, stated: &Sums) -> Result<(), IndexError> {
        let computed = self.sums();
        let differs = |member, stated: &dyn ToString, computed: &dyn ToString| IndexError::Sum {
            member,
            stated: stated.to_string(),
            computed: computed.to_string(),
        };
        if stated.last != computed.last {
            return Err(differs("last", &stated.last, &computed.last));
        }
        if stated.count != computed.count {
            return Err(differs("count", &stated.count, &computed.count));
        }
        if stated.last_created_at != computed.last_created_at {
            let shown = |time: &Option<String>| time.clone().unwrap_or_else(|| "null".to_owned());
            let (stated, computed) =
                (shown(&stated.last_created_at), shown(&computed.last_created_at));
            return Err(differs("lastCreatedAt", &stated, &computed));
        }
        if stated.chain != computed.chain {
            return Err(differs("chain", &stated.chain, &computed.chain));
        }
        Ok(())
    }

    /// The document: the same files are the same bytes. A line for each file.
    pub fn to_json(&self) -> Vec<u8> {
        let head = Head { format: FORMAT.to_owned(), version: VERSION };
        let document =
            Document { head, numbers_per_file: self.division.numbers(), sums: self.sums() };
        let mut out = json(&document);
        // The files stand in its last member.
        out.pop();
        out.extend_from_slice(b",\"files\":[");
        for (at, (file, chain)) in self.files.iter().zip(self.chain_after_each()).enumerate() {
            out.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
            out.append(&mut json(&WrittenFile::of(file, chain)));
        }
        out.extend_from_slice(b"\n]}\n");
        out
    }

    fn sums(&self) -> Sums {
        Sums {
            last: self.last(),
            count: self.count(),
            last_created_at: self.files.last().map(|last| last.last_created_at.to_string()),
            chain: self.chain().to_string(),
        }
    }

    /// Which numbers stand in which file.
    pub fn division(&self) -> Division {
        self.division
    }

    /// The files, in the order of their numbers. Files never change; but each snapshot may have other ones.
    pub fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    /// Operations in all files.
    pub fn count(&self) -> u64 {
        self.files.iter().map(|file| file.count).fold(0, u64::saturating_add)
    }

    /// The highest sequence number in it; 0 where there is none.
    pub fn last(&self) -> i64 {
        self.files.last().map_or(0, |last| last.last)
    }

    /// The chain after the last file: two snapshots with the same one, divided in the same way, have the same lines.
    pub fn chain(&self) -> Digest {
        self.chain_after_each().last().unwrap_or(Digest::BEGINNING)
    }

    /// The chain after each of the files.
    pub fn chain_after_each(&self) -> impl Iterator<Item = Digest> {
        self.files.iter().scan(Digest::BEGINNING, |chain, file| {
            *chain = chain.followed_by(file.lines);
            Some(*chain)
        })
    }
}

/// Writing to memory what has no key but text cannot fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// What says which format it is.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Head {
    format: String,
    version: u64,
}

/// What all files come to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sums {
    last: i64,
    count: u64,
    last_created_at: Option<String>,
    chain: String,
}

/// The document without its files.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(flatten)]
    head: Head,
    numbers_per_file: i64,
    #[serde(flatten)]
    sums: Sums,
}

/// The document as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    numbers_per_file: i64,
    #[serde(flatten)]
    sums: Sums,
    files: Vec<WrittenFile>,
}

/// A file in the document.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenFile {
    name: String,
    first: i64,
    last: i64,
    count: u64,
    last_created_at: String,
    bytes: u64,
    compressed_bytes: u64,
    sha256: String,
    chain: String,
}

impl WrittenFile {
    fn of(file: &SnapshotFile, chain: Digest) -> WrittenFile {
        WrittenFile {
            name: file.name(),
            first: file.first,
            last: file.last,
            count: file.count,
            last_created_at: file.last_created_at.to_string(),
            bytes: file.bytes,
            compressed_bytes: file.compressed_bytes,
            sha256: file.lines.to_string(),
            chain: chain.to_string(),
        }
    }

    /// The file, and the chain as it is stated.
    fn read(&self) -> Result<(SnapshotFile, Digest), String> {
        let digest = |member: &str, text: &str| {
            text.parse().map_err(|error: MalformedDigest| format!("`{member}`: {error}"))
        };
        let last_created_at = self
            .last_created_at
            .parse()
            .map_err(|error: MalformedTimestamp| format!("`lastCreatedAt`: {error}"))?;
        let file = SnapshotFile {
            first: self.first,
            last: self.last,
            count: self.count,
            last_created_at,
            bytes: self.bytes,
            compressed_bytes: self.compressed_bytes,
            lines: digest("sha256", &self.sha256)?,
        };
        if !(1..=MAX_SEQUENCE).contains(&file.first)
            || !(file.first..=MAX_SEQUENCE).contains(&file.last)
        {
            return Err(format!("it cannot go from {} to {}", file.first, file.last));
        }
        let numbers = (file.last - file.first).unsigned_abs() + 1;
        if !(1..=numbers).contains(&file.count) {
            return Err(format!("`count` is {}, and there are {numbers} numbers", file.count));
        }
        let name = file.name();
        if self.name != name {
            return Err(format!("`name` has to be {name}"));
        }
        Ok((file, digest("chain", &self.chain)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::Timestamp;

    fn file(first: i64, last: i64) -> SnapshotFile {
        SnapshotFile {
            first,
            last,
            count: (last - first + 1).unsigned_abs(),
            last_created_at: Timestamp::from_millis(last),
            bytes: 600,
            compressed_bytes: 180,
            lines: Digest::from_bytes([u8::try_from(first % 251).unwrap(); 32]),
        }
    }

    fn index() -> Index {
        let files = vec![file(1, 10), file(12, 19), file(31, 33)];
        Index::new(Division::into_ranges_of(10).unwrap(), files)
    }

    #[test]
    fn what_is_written_is_read() {
        let document = index().to_json();
        assert_eq!(Index::parse(&document), Ok(index()));
        let text = String::from_utf8(document).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.starts_with(
            "{\"format\":\"plc-replica-snapshot\",\"version\":1,\"numbersPerFile\":10,\"last\":33,\"count\":21,\
             \"lastCreatedAt\":\"1970-01-01T00:00:00.033Z\",\"chain\":\""
        ), "{text}");
        let empty = Index::new(Division::default(), Vec::new());
        assert_eq!(Index::parse(&empty.to_json()), Ok(empty));
        // Members of another day are passed over.
        let more = text.replace("\"count\":10", "\"count\":10,\"more\":[]");
        assert_eq!(Index::parse(more.as_bytes()), Ok(index()));
    }

    /// However little of it is cut off, it is no index any more.
    #[test]
    fn half_an_index_is_none() {
        let document = index().to_json();
        let whole = document.trim_ascii_end();
        for length in 0..whole.len() {
            let cut = Index::parse(&whole[..length]);
            assert!(matches!(cut, Err(IndexError::NotJson(_))), "{length}: {cut:?}");
        }
    }

    #[test]
    fn an_index_that_contradicts_itself_is_refused() {
        let text = String::from_utf8(index().to_json()).unwrap();
        let name = index().files()[1].name();
        let chain = index().chain().to_string();
        for (from, to, said) in [
            ("plc-replica-snapshot", "other", "its `format` is not"),
            ("{\"format\"", "[{\"format\"", "its `format` is not"),
            ("\"version\":1", "\"version\":2", "of version 2"),
            ("\"numbersPerFile\":10", "\"numbersPerFile\":0", "between 1 and"),
            ("\"numbersPerFile\":10", "\"numbersPerFile\":5", "1 and 10 belong in two files"),
            (
                "\"numbersPerFile\":10",
                "\"numbersPerFile\":20",
                "the file 2 of the index (from 1): it does not come after",
            ),
            (
                "\"last\":33,\"count\":21",
                "\"last\":34,\"count\":21",
                "`last` is 34, and the files come to 33",
            ),
            ("\"count\":21", "\"count\":20", "`count` is 20, and the files come to 21"),
            (
                ".033Z\",\"chain\"",
                ".034Z\",\"chain\"",
                "`lastCreatedAt` is 1970-01-01T00:00:00.034Z",
            ),
            ("\"count\":8", "\"count\":9", "`count` is 9, and there are 8 numbers"),
            ("\"first\":12,", "\"first\":0,", "it cannot go from 0 to 19"),
            ("\"first\":12,", "\"first\":11,", "`name` has to be 0000000000000011-"),
            (&name, "../../etc/passwd", "`name` has to be"),
            (&chain, &"0".repeat(64), "`chain` is 000"),
            ("\"sha256\":\"0c0c", "\"sha256\":\"0C0c", "`sha256`: a digest is written"),
            ("\"sha256\":\"0c0c", "\"sha256\":\"0c0d", "`name` has to be"),
            ("\"files\":", "\"filed\":", "missing field `files`"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            let error = Index::parse(changed.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{from} → {to}: {error}");
        }
        // A digest that is exchanged together with its name breaks the chain.
        let digest = "0c".repeat(32);
        let changed = text.replace(&digest[..32], &"0d".repeat(16));
        let error = Index::parse(changed.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("the file 2 of the index (from 1): `chain` is"), "{error}");
    }

    /// An index of the whole directory is fetched in a moment.
    #[test]
    fn an_index_is_small() {
        let files = (0..1_500).map(|place| file(place * 100_000 + 1, (place + 1) * 100_000));
        let document = Index::new(Division::default(), files.collect()).to_json();
        assert!(document.len() < 600_000, "{}", document.len());
    }
}
