//! The entries of a file, in blocks.

use std::io::{self, Read};
use std::mem;
use std::ops::Range;
use std::path::Path;

use bytes::{Bytes, BytesMut};

use super::entries::{Entries, Layout, Stray};
use super::error::DumpError;
use super::input::{Input, Progress};
use super::raw::{Original, Raw};

/// Bytes of one entry; a longer one is cut here and what remains of it is skipped, so that it
/// comes out as JSON that is not complete, and the entries after it as if nothing had been. Far
/// above any operation that the rules accept.
pub const MAX_ENTRY: usize = 4 << 20;
/// Bytes of a block, about: a thousand entries or two, which keeps all cores busy for a while.
const BLOCK: usize = 1 << 20;
/// Bytes to ask a decoder for at a time: what one zstd block holds at most.
const PIECE: usize = 128 << 10;

/// An entry of a dump with the number of the line on which it begins, from 1 (empty lines count and
/// do not come out). In an array several may begin on one line: each after the first has the number after that of the
/// one before, so that no two have the same.
pub type Block = Vec<(u64, Bytes)>;

/// The entries of a dump, in blocks. After an error there is nothing more.
pub struct Dump {
    name: String,
    input: Input,
    /// Read and not yet handed over.
    buffer: BytesMut,
    entries: Entries,
    /// Number of the last entry.
    number: u64,
    /// Of an array: ends of lines before this position of the buffer.
    lines: u64,
    /// All before this position of the buffer has been searched for them.
    counted: usize,
    /// Bytes of an entry at most.
    max_entry: usize,
    /// The entry that is being read was longer than that, and has been handed over.
    skipping: bool,
    /// The input has ended or cannot be read any further.
    ended: bool,
    /// What is left to say after the last block.
    failed: Option<DumpError>,
}

impl Dump {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: &Path) -> Result<Dump, DumpError> {
        Dump::of(Raw::open(path)?)
    }

    /// The same of what may have to be read twice.
    pub fn open_twice(path: &Path) -> Result<(Dump, Original), DumpError> {
        let (raw, original) = Raw::open_twice(path)?;
        Ok((Dump::of(raw)?, original))
    }

    /// Opens it for the second time, when it was read to its end; none where that cannot be: it came through a
    /// pipe, and was too much to be kept.
    pub fn open_again(original: Original) -> Result<Option<Dump>, DumpError> {
        original.raw()?.map(Dump::of).transpose()
    }

    /// Reads these bytes.
    pub(in crate::upstream) fn of(Raw { name, bytes, total }: Raw) -> Result<Dump, DumpError> {
        let input = Input::open(&name, bytes, total)?;
        Ok(Dump {
            name,
            input,
            buffer: BytesMut::new(),
            entries: Entries::new(),
            number: 0,
            lines: 0,
            counted: 0,
            max_entry: MAX_ENTRY,
            skipping: false,
            ended: false,
            failed: None,
        })
    }

    /// Cuts entries to so many bytes and not to [`MAX_ENTRY`], where other things than operations
    /// are expected.
    pub fn with_entries_up_to(self, max_entry: usize) -> Dump {
        Dump { max_entry, ..self }
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How far it has been read.
    pub fn progress(&self) -> Progress {
        self.input.progress().clone()
    }

    /// The next entries; none at the end of the input, or where it fails.
    fn next_block(&mut self) -> Block {
        let mut found = Vec::new();
        while !self.ended {
            if self.find_entries(&mut found).is_err() {
                self.fail(|name, number, _| DumpError::AfterArray { name, number });
                break;
            }
            if self.entries.begin >= BLOCK || self.skipping {
                if !found.is_empty() {
                    break;
                }
                self.take_what_is_done();
            }
            match self.fill() {
                Ok(0) => self.end(&mut found),
                Ok(_) => {}
                // What is there of the entry that was being read is no entry of the file.
                Err(source) => {
                    self.fail(|name, _, read| DumpError::Read { name, read, source });
                }
            }
        }
        let text = self.take_what_is_done().freeze();
        found.into_iter().map(|(number, entry)| (number, text.slice(entry))).collect()
    }

    /// Takes from the buffer what is before the entry that is being looked at.
    fn take_what_is_done(&mut self) -> BytesMut {
        let done = self.entries.forget_before_begin();
        self.count_lines(done);
        self.counted -= done;
        self.buffer.split_to(done)
    }

    /// Counts the ends of lines before this position of the buffer, if that was not done already.
    fn count_lines(&mut self, to: usize) {
        if self.entries.layout == Layout::Arrays && to > self.counted {
            let ends = memchr::memchr_iter(b'\n', &self.buffer[self.counted..to]);
            self.lines += ends.count() as u64;
        }
        self.counted = self.counted.max(to);
    }

    /// Numbers the entries that are complete in the buffer, or enough of them for a block.
    fn find_entries(&mut self, found: &mut Vec<(u64, Range<usize>)>) -> Result<(), Stray> {
        while self.entries.begin < BLOCK {
            let Some(entry) = self.entries.next(&self.buffer)? else { break };
            if mem::take(&mut self.skipping) {
                continue;
            }
            self.push(entry, found);
        }
        let Range { start, end } = self.entries.begun();
        if self.skipping {
            self.entries.begin = end;
        } else if end - start > self.max_entry {
            self.push(start..end, found);
            self.skipping = true;
            self.entries.begin = end;
        }
        Ok(())
    }

    /// Numbers an entry, cuts it, and leaves it out when it is empty.
    fn push(&mut self, entry: Range<usize>, found: &mut Vec<(u64, Range<usize>)>) {
        let text = &self.buffer[entry.clone()];
        let start = entry.start + (text.len() - text.trim_ascii_start().len());
        let end = start + text.trim_ascii().len().min(self.max_entry);
        let empty = start >= end;
        if !empty && self.entries.layout == Layout::Arrays {
            self.count_lines(start);
            self.number = (self.number + 1).max(self.lines + 1);
        } else if self.entries.layout == Layout::Lines {
            self.number += 1;
        }
        if !empty {
            found.push((self.number, start..end));
        }
    }

    /// At the end of the input: what was begun is an entry like any other, and will be found to
    /// be incomplete by who reads it.
    fn end(&mut self, found: &mut Vec<(u64, Range<usize>)>) {
        let rest = self.entries.begun();
        self.entries.begin = rest.end;
        self.ended = true;
        if !self.skipping && !rest.is_empty() {
            self.push(rest, found);
        }
        if self.entries.inside_array {
            self.fail(|name, number, _| DumpError::CutArray { name, number });
        }
    }

    fn fail(&mut self, error: impl FnOnce(String, u64, u64) -> DumpError) {
        self.ended = true;
        self.failed = Some(error(self.name.clone(), self.number, self.input.progress().read()));
    }

    /// Reads a piece; 0 bytes at the end.
    fn fill(&mut self) -> io::Result<usize> {
        let held = self.buffer.len();
        self.buffer.resize(held + PIECE, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[held..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        self.buffer.truncate(held + read.as_ref().copied().unwrap_or(0));
        read
    }
}

impl Iterator for Dump {
    type Item = Result<Block, DumpError>;

    fn next(&mut self) -> Option<Result<Block, DumpError>> {
        match self.next_block() {
            block if !block.is_empty() => Some(Ok(block)),
            _ => self.failed.take().map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    /// Gives a few bytes at a time, so that every entry is met at every place of a piece.
    struct Crumbs(Cursor<Vec<u8>>, usize);

    impl Read for Crumbs {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let size = buffer.len().min(self.1);
            self.0.read(&mut buffer[..size])
        }
    }

    fn dump(bytes: &[u8], crumbs: usize) -> Dump {
        let input = Crumbs(Cursor::new(bytes.to_vec()), crumbs);
        let (name, bytes) = ("a test".to_owned(), Box::new(input));
        Dump::of(Raw { name, bytes, total: None }).unwrap()
    }

    /// All entries, and the error at the end.
    fn read(dump: Dump) -> (Vec<(u64, String)>, Option<String>) {
        let mut entries = Vec::new();
        for block in dump {
            match block {
                Ok(block) => entries.extend(
                    block.iter().map(|(n, entry)| (*n, String::from_utf8_lossy(entry).into())),
                ),
                Err(error) => return (entries, Some(error.to_string())),
            }
        }
        (entries, None)
    }

    fn expect(text: &str, entries: &[(u64, &str)], error: Option<&str>) {
        for crumbs in [1, 2, 3, 7, 1000] {
            let (found, failed) = read(dump(text.as_bytes(), crumbs));
            let found = found.iter().map(|(n, entry)| (*n, entry.as_str())).collect::<Vec<_>>();
            assert_eq!(found, entries, "{text:?} by {crumbs}");
            assert_eq!(failed.is_some(), error.is_some(), "{text:?} by {crumbs}: {failed:?}");
            let (failed, error) = (failed.unwrap_or_default(), error.unwrap_or_default());
            assert!(failed.contains(error), "{failed}");
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn lines_are_numbered_as_in_an_editor() {
        expect("", &[], None);
        expect("\n \n", &[], None);
        expect(
            "{\"a\":1}\n\r\n{\"b\":2}\r\n{\"c",
            &[(1, "{\"a\":1}"), (3, "{\"b\":2}"), (4, "{\"c")],
            None,
        );
        expect("x[\n[{}\n", &[(1, "x["), (2, "[{}")], None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_file() {
        expect("\u{feff}", &[], None);
        expect("\u{feff}{\"a\":1}\r\n{}", &[(1, "{\"a\":1}"), (2, "{}")], None);
        expect("\u{feff}[1,2]", &[(1, "1"), (2, "2")], None);
        expect("\u{feff}\r\n [1]", &[(2, "1")], None);
        expect(&" ".repeat(10_000), &[], None);
        // Only the first one, and not half of it.
        expect("\u{feff}\u{feff}{}", &[(1, "\u{feff}{}")], None);
        for (bytes, line) in [(&b"\xef\xbb"[..], 2), (b"\xef\xbb{}", 4)] {
            let entries: Vec<_> = dump(bytes, 1).map(Result::unwrap).collect();
            assert_eq!((entries.len(), entries[0].len()), (1, 1));
            assert_eq!(entries[0][0].1.len(), line);
        }
        let (entries, error) = read(dump(&gzip("\u{feff}{}".as_bytes()), 3));
        assert_eq!((entries, error), (vec![(1, "{}".to_owned())], None));
    }

    #[test]
    fn elements_of_an_array_have_the_number_of_their_line() {
        let entries: Vec<String> =
            (0..4_000).map(|n| format!("  {{\n    \"a\": {n}\n  }}")).collect();
        let (found, error) = read(dump(format!("[\n{}\n]", entries.join(",\n")).as_bytes(), 1000));
        assert_eq!((found.len(), error), (4_000, None));
        assert!(found.iter().zip(0..).all(|((number, _), n)| *number == 2 + 3 * n));
        expect("\n[1,2,\n\n3,4]", &[(2, "1"), (3, "2"), (4, "3"), (5, "4")], None);
    }

    #[test]
    fn elements_of_an_array_on_one_line_are_counted() {
        expect("[]", &[], None);
        expect(" [ ] \n", &[], None);
        expect(
            "[{\"a\":[1,{}]},\n \"],\\\"\\\\\" , {\"b\":\"}\"}\n]\n",
            &[(1, "{\"a\":[1,{}]}"), (2, "\"],\\\"\\\\\""), (3, "{\"b\":\"}\"}")],
            None,
        );
        expect("[1][2,\n3]\n[4]", &[(1, "1"), (2, "2"), (3, "3"), (4, "4")], None);
    }

    #[test]
    fn an_array_that_is_cut_says_so_after_its_entries() {
        expect("[1,{\"a\":[", &[(1, "1"), (2, "{\"a\":[")], Some("ends before the `]`"));
        expect("[1,", &[(1, "1")], Some("in or after the entry of line 1"));
        expect("[", &[], Some("a test"));
        expect("[1] x", &[(1, "1")], Some("follows the array"));
    }

    #[test]
    fn blocks_are_bounded_and_complete() {
        let line = format!("{{\"text\":\"{}\"}}", "x".repeat(700));
        for (begin, between, end) in [("", "\n", ""), ("[", ",", "]")] {
            let text = [begin, &vec![line.as_str(); 10_000].join(between), end].concat();
            let mut next = 1;
            for block in dump(text.as_bytes(), usize::MAX) {
                let block = block.unwrap();
                assert!(block.len() * line.len() < BLOCK + PIECE);
                for (number, entry) in block {
                    assert_eq!((number, &entry[..]), (next, line.as_bytes()));
                    next += 1;
                }
            }
            assert_eq!(next, 10_001);
        }
    }

    #[test]
    fn an_endless_entry_is_cut_and_the_next_ones_are_read() {
        let endless = format!("{{\"x\":\"{}\"}}", "x".repeat(3 * MAX_ENTRY));
        for (begin, between, end) in [("", "\n", ""), ("[", ",", "]")] {
            let text = [begin, "{}", between, &endless, between, "{\"y\":1}", end].concat();
            let (entries, error) = read(dump(text.as_bytes(), usize::MAX));
            assert_eq!(error, None);
            assert_eq!(entries[0], (1, "{}".to_owned()));
            assert_eq!((entries[1].0, entries[1].1.len()), (2, MAX_ENTRY));
            assert_eq!(entries[2..], [(3, "{\"y\":1}".to_owned())]);
        }
    }

    #[test]
    fn compression_is_found_by_the_first_bytes() {
        let both = ("{}\n[]\n".repeat(2), [(1, "{}"), (2, "[]"), (3, "{}"), (4, "[]")]);
        let half = both.0.split_at(6).0.as_bytes();
        let members = [gzip(half), gzip(half)].concat();
        let frames = [zstd::encode_all(half, 3).unwrap(), zstd::encode_all(half, 3).unwrap()];
        for bytes in [both.0.into_bytes(), members, frames.concat()] {
            let (entries, error) = read(dump(&bytes, 5));
            assert_eq!(error, None);
            assert_eq!(entries, both.1.map(|(number, entry)| (number, entry.to_owned())));
        }
    }

    #[test]
    fn broken_compression_gives_what_came_before_and_an_error() {
        let text = "{\"a\":1}\n".repeat(200_000);
        let text = text.as_bytes();
        for whole in [gzip(text), zstd::encode_all(text, 3).unwrap()] {
            let (entries, error) = read(dump(&whole[..whole.len() * 3 / 4], 1000));
            let error = error.expect("an error");
            assert!(error.starts_with("a test: cannot be read after"), "{error}");
            assert!(entries.iter().all(|(_, entry)| entry == "{\"a\":1}"));
            let mut damaged = whole;
            let last = damaged.len() - 6;
            damaged[last] ^= 0xff;
            assert!(read(dump(&damaged, 1000)).1.is_some());
        }
    }

    #[test]
    fn files_are_named_in_errors_and_show_progress() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.jsonl");
        let error = Dump::open(&missing).err().unwrap().to_string();
        assert!(error.contains("missing.jsonl") && error.contains("opened"), "{error}");
        let opened = Dump::open(folder.path());
        let error = opened.and_then(|mut dump| dump.next().unwrap()).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");

        let path = folder.path().join("two.jsonl");
        std::fs::write(&path, "{}\n{}\n").unwrap();
        let dump = Dump::open(&path).unwrap();
        let progress = dump.progress();
        assert_eq!(progress.total, Some(6));
        assert_eq!(read(dump).0.len(), 2);
        assert_eq!(progress.read(), 6);
    }
}
