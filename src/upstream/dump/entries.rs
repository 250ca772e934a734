//! Where the entries of a dump begin and end.

use std::mem;
use std::ops::Range;

/// What the first character of a dump says about the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Nothing but white space has been read yet.
    Unknown,
    /// An entry a line.
    Lines,
    /// Arrays, one after another.
    Arrays,
}

impl Layout {
    /// What can be told from the beginning of a file.
    fn of(beginning: &[u8]) -> Layout {
        match beginning.trim_ascii_start() {
            [] if beginning.len() <= MAX_LEADING_SPACE => Layout::Unknown,
            [b'[', ..] => Layout::Arrays,
            _ => Layout::Lines,
        }
    }
}

/// White space that may stand before the first character; with more than this it is a file of lines.
const MAX_LEADING_SPACE: usize = 4096;

/// Finds where entries begin and end in a buffer that grows at its end and is consumed at its
/// beginning. Positions are those of the buffer.
#[derive(Debug)]
pub struct Entries {
    /// What the file is made of.
    pub layout: Layout,
    /// Where the entry begins that is being looked at. All before it is done with.
    pub begin: usize,
    /// All before this has been looked at.
    at: usize,
    /// The array that holds the entry is not closed yet.
    pub inside_array: bool,
    /// Of objects and arrays, inside of the entry.
    depth: usize,
    inside_string: bool,
    /// The character before was a backslash, inside of a string.
    escaped: bool,
}

/// Something between two arrays.
pub struct Stray;

impl Entries {
    /// At the beginning of a file.
    pub fn new() -> Entries {
        Entries {
            layout: Layout::Unknown,
            begin: 0,
            at: 0,
            inside_array: false,
            depth: 0,
            inside_string: false,
            escaped: false,
        }
    }

    /// The next complete entry, white space around it included; none before more has been read.
    pub fn next(&mut self, buffer: &[u8]) -> Result<Option<Range<usize>>, Stray> {
        if self.layout == Layout::Unknown {
            self.layout = Layout::of(buffer);
        }
        match self.layout {
            Layout::Unknown => Ok(None),
            Layout::Lines => Ok(self.next_line(buffer)),
            Layout::Arrays => self.next_element(buffer),
        }
    }

    fn next_line(&mut self, buffer: &[u8]) -> Option<Range<usize>> {
        match memchr::memchr(b'\n', &buffer[self.at..]) {
            Some(offset) => Some(self.entry_ends(self.at + offset)),
            None => {
                self.at = buffer.len();
                None
            }
        }
    }

    /// Elements are told apart by the commas between them, without a look at what they are.
    fn next_element(&mut self, buffer: &[u8]) -> Result<Option<Range<usize>>, Stray> {
        while let Some(&byte) = buffer.get(self.at) {
            if self.inside_string {
                self.leave_string(buffer);
                continue;
            }
            let before_entry = self.begin == self.at;
            match byte {
                // Between arrays and before an entry, white space takes no room.
                _ if byte.is_ascii_whitespace() && before_entry => self.begin += 1,
                b'[' if !self.inside_array => {
                    self.inside_array = true;
                    self.begin += 1;
                }
                _ if !self.inside_array => return Err(Stray),
                b',' | b']' if self.depth == 0 => {
                    self.inside_array = byte == b',';
                    return Ok(Some(self.entry_ends(self.at)));
                }
                b'"' => self.inside_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
        }
        Ok(None)
    }

    /// Goes on to the end of the string, or of what there is of it.
    fn leave_string(&mut self, buffer: &[u8]) {
        if mem::take(&mut self.escaped) {
            self.at += 1;
            return;
        }
        match memchr::memchr2(b'"', b'\\', &buffer[self.at..]) {
            Some(offset) => {
                self.at += offset + 1;
                self.escaped = buffer[self.at - 1] == b'\\';
                self.inside_string = self.escaped;
            }
            None => self.at = buffer.len(),
        }
    }

    /// The entry ends before the separator at this position.
    fn entry_ends(&mut self, end: usize) -> Range<usize> {
        let entry = self.begin..end;
        self.at = end + 1;
        self.begin = end + 1;
        entry
    }

    /// What there is of an entry that is not complete.
    pub fn begun(&self) -> Range<usize> {
        self.begin..self.at
    }

    /// Positions begin anew after so many bytes, which are then taken from the buffer.
    pub fn forget_before_begin(&mut self) -> usize {
        self.at -= self.begin;
        mem::take(&mut self.begin)
    }
}
