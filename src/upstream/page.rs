//! A page of the export: its complete lines, and where the next page begins.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::batch::{Batch, Origin};
use super::fault::UpstreamFault;
use crate::clock;
use did_plc::entry::without_mark;
use did_plc::{Timestamp, sequence};

/// How much of a body that is no export is quoted.
const QUOTED: usize = 60;
/// How far a sequence number may be above the one before it. The directory's own are without large gaps.
pub const MAX_JUMP: i64 = 1_000_000;

/// A page of the export as far as it can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The complete lines; see [`Batch::lines`].
    pub lines: Vec<Bytes>,
    /// The last line of a complete body when it is not JSON. It is cut, as far as one can tell, and
    /// left to the next page; should it be all that there is, then there is nothing else to take.
    pub tail: Option<Bytes>,
    /// The cursor that was asked for.
    pub after: i64,
    /// The cursor of the next page: the number of the last line that has one above `after`;
    /// `after` itself when there is none.
    pub next: i64,
    /// Lines that begin with a number which is far above those before it, left out until that is believed.
    pub beyond: Option<Beyond>,
    /// Fewer lines than the upstream gives, in a complete body.
    pub near_end: bool,
    /// Why the body is not complete. Its complete lines are as good as those of any other.
    pub cut: Option<UpstreamFault>,
    /// When its last byte arrived.
    pub received_at: Timestamp,
}

/// The lines of a page from the first on that states a number far above those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    lines: Vec<Bytes>,
    /// The number that the first of them states.
    stated: i64,
    /// The cursor after all of them.
    next: i64,
    /// Whether the page with them is near the end.
    near_end: bool,
}

impl Page {
    /// Takes a body apart. `longest` is the most lines that one of the pages before it had: an upstream may give fewer
    /// than are asked for, so that only a shorter page, or one that leads nowhere, is its last one. `cut` says why the
    /// body is not complete.
    pub(super) fn read(
        body: &Bytes,
        after: i64,
        (asked, longest): (usize, usize),
        cut: Option<UpstreamFault>,
    ) -> Result<Page, UpstreamFault> {
        let mut split = split_lines(body);
        // What was not asked for is not kept: millions of empty objects fit into a body.
        let mut lines: Vec<Bytes> = split.by_ref().take(asked).collect();
        let count = lines.len();
        // Lines are joined by newlines, so that nothing but its JSON shows whether the last one
        // is whole. All before it are, whatever they are.
        let is_last = split.next().is_none();
        let last = lines.last().map(|line| Form::of(line));
        let tail = lines.pop_if(|_| is_last && last == Some(Form::NotJson));
        let next = match last {
            Some(Form::Numbered(number)) if number > after => Some(number),
            _ => lines.iter().rev().filter_map(number).find(|&number| number > after),
        };
        if let (Some(fault), None) = (&cut, next) {
            return Err(fault.clone());
        }
        require_export(lines.iter().chain(&tail), body)?;
        let page = Page {
            tail: tail.filter(|_| cut.is_none()),
            lines,
            after,
            next: next.unwrap_or(after),
            beyond: None,
            near_end: cut.is_none() && count < asked && (count < longest || next.is_none()),
            cut,
            received_at: clock::now(),
        };
        Ok(page.up_to_jump())
    }

    /// Leaves out what begins with a number far above those before it.
    fn up_to_jump(mut self) -> Page {
        if self.next.saturating_sub(self.after) <= MAX_JUMP {
            return self;
        }
        let mut before = self.after;
        for index in 0..self.lines.len() {
            let Some(stated) = number(&self.lines[index]) else { continue };
            if stated.saturating_sub(before) > MAX_JUMP {
                let lines = self.lines.split_off(index);
                let (next, near_end) = (self.next, self.near_end);
                self.beyond = Some(Beyond { lines, stated, next, near_end });
                (self.next, self.near_end) = (before, false);
                break;
            }
            before = before.max(stated);
        }
        self
    }

    /// How many lines came.
    pub fn count(&self) -> usize {
        let beyond = self.beyond.as_ref().map_or(0, |beyond| beyond.lines.len());
        self.lines.len() + beyond + usize::from(self.tail.is_some())
    }

    /// The page with the numbers that were not plausible at first.
    pub fn believed(mut self) -> Page {
        if let Some(beyond) = self.beyond.take() {
            self.lines.extend(beyond.lines);
            (self.next, self.near_end) = (beyond.next, beyond.near_end);
        }
        self
    }

    /// What to give as the reason when the next page would be this one again: there is something
    /// in it, and nothing that moves the cursor.
    pub fn stuck(&self) -> Option<UpstreamFault> {
        if let Some(beyond) = &self.beyond
            && self.next == self.after
        {
            let (after, stated) = (self.after, beyond.stated);
            return Some(UpstreamFault::ImplausibleNumber { after, stated });
        }
        match (&self.tail, self.lines.is_empty()) {
            _ if self.next > self.after => None,
            (Some(_), true) => {
                let reason = "its only line is not JSON".to_owned();
                Some(UpstreamFault::Truncated { reason })
            }
            (None, true) => None,
            (_, false) => Some(UpstreamFault::NotAdvancing { after: self.after }),
        }
    }

    /// The page as a batch. The tail is part of it only when the page is [`stuck`](Page::stuck):
    /// it would be the first line of the next page, and there is none.
    pub fn into_batch(self) -> Batch {
        let Page { mut lines, tail, after, next, near_end, received_at, .. } = self;
        let stuck = next == after;
        // With the last line still to be fetched, it is not the end.
        let near_end = near_end && (stuck || tail.is_none());
        lines.extend(tail.filter(|_| stuck));
        Batch { lines, received_at, origin: Origin::Page { after, next, near_end } }
    }
}

/// The lines of a body, without copying; empty ones are left out.
pub(super) fn split_lines(body: &Bytes) -> impl Iterator<Item = Bytes> {
    let ends = memchr::memchr_iter(b'\n', body).chain([body.len()]);
    ends.scan(0, |start, end| {
        let line = *start..end;
        *start = end + 1;
        Some(line)
    })
    .filter(|line| !body[line.clone()].trim_ascii().is_empty())
    .map(|line| body.slice(line))
}

/// What can be said of a line before it is decoded, which is done on all cores and later: fetching goes on
/// from the last number of a page, and only its last line is looked at.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// It was cut on its way, or is something else.
    NotJson,
    /// It states no number, or what cannot be one.
    Unnumbered,
    /// It states this number.
    Numbered(i64),
}

impl Form {
    /// Parsed, not searched for: an operation may hold any text, `"seq":7` included.
    fn of(line: &[u8]) -> Form {
        #[derive(Deserialize)]
        struct Numbered {
            #[serde(default, deserialize_with = "sequence::deserialize")]
            seq: Option<i64>,
        }
        let line = without_mark(line);
        match serde_json::from_slice::<Numbered>(line) {
            Ok(Numbered { seq: Some(number) }) => Form::Numbered(number),
            Ok(Numbered { seq: None }) => Form::Unnumbered,
            // The parser ends at what it did not expect: what follows may be anything.
            Err(error) if error.is_data() && is_json(line) => Form::Unnumbered,
            Err(_) => Form::NotJson,
        }
    }
}

/// The sequence number that a line states.
pub(super) fn number(line: &Bytes) -> Option<i64> {
    match Form::of(line) {
        Form::Numbered(number) => Some(number),
        Form::Unnumbered | Form::NotJson => None,
    }
}

fn is_json(line: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(line).is_ok()
}

/// Looks like a JSON object from its beginning.
fn is_object(line: &Bytes) -> bool {
    without_mark(line).trim_ascii_start().starts_with(b"{")
}

/// Makes sure that these lines of a body are of an export: one of them looks like an object, if there is any.
pub(super) fn require_export<'a>(
    lines: impl Iterator<Item = &'a Bytes>,
    body: &Bytes,
) -> Result<(), UpstreamFault> {
    let mut lines = lines.peekable();
    if lines.peek().is_none() || lines.any(is_object) { Ok(()) } else { Err(not_an_export(body)) }
}

/// The fault of a body that is no export.
pub(super) fn not_an_export(body: &Bytes) -> UpstreamFault {
    let beginning: Cow<'_, str> = String::from_utf8_lossy(&body[..body.len().min(QUOTED)]);
    UpstreamFault::NotAnExport { beginning: beginning.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut() -> Option<UpstreamFault> {
        Some(UpstreamFault::Truncated { reason: "as a test".to_owned() })
    }

    fn read(body: &str, after: i64, cut: Option<UpstreamFault>) -> Result<Page, UpstreamFault> {
        Page::read(&Bytes::copy_from_slice(body.as_bytes()), after, (3, 3), cut)
    }

    #[test]
    fn an_upstream_may_give_fewer_lines_than_are_asked_for() {
        let two = Bytes::from_static(b"{\"seq\":1}\n{\"seq\":2}");
        let is_near_end =
            |after, longest| Page::read(&two, after, (10, longest), None).unwrap().near_end;
        assert_eq!(
            [0, 1, 2, 3].map(|longest| is_near_end(0, longest)),
            [false, false, false, true]
        );
        // It would be the next one again.
        assert!(is_near_end(2, 2));
    }

    #[test]
    fn a_page_leads_to_the_number_of_its_last_line() {
        let page = read("{\"seq\":1}\n{\"seq\":2,\"operation\":{\"seq\":7}}", 0, None).unwrap();
        assert_eq!((page.lines.len(), page.next, page.near_end), (2, 2, true));
        assert_eq!(page.stuck(), None);
        let full = read("{\"seq\":1}\n\n{\"seq\":2}\r\n{\"seq\":5}\n", 0, None).unwrap();
        assert_eq!((full.lines.len(), full.next, full.near_end), (3, 5, false));
    }

    #[test]
    fn what_was_not_asked_for_is_left_to_the_next_page() {
        let page = read("{\"seq\":1}\n{\"seq\":2}\nnonsense\n{\"seq\":4}\n{", 0, None).unwrap();
        assert_eq!((page.lines.len(), page.next, page.near_end), (3, 2, false));
        assert_eq!((page.tail.clone(), page.cut.clone()), (None, None));
        assert_eq!(page.into_batch().lines.len(), 3);
        let many = read(&"{}\n".repeat(1_000), 0, None).unwrap();
        assert_eq!(many.lines.len(), 3);
        assert!(many.stuck().is_some());
    }

    #[test]
    fn an_empty_page_is_the_end() {
        let page = read("", 9, None).unwrap();
        assert_eq!((page.next, page.near_end, page.stuck()), (9, true, None));
        assert!(page.into_batch().reached_end());
    }

    #[test]
    fn numbers_out_of_order_never_lead_back() {
        assert_eq!(read("{\"seq\":8}\n{\"seq\":9}\n{\"seq\":3}", 7, None).unwrap().next, 9);
        assert_eq!(read("{\"seq\":9}\n{\"seq\":8}", 7, None).unwrap().next, 8);
    }

    #[test]
    fn what_is_no_sequence_number_leads_nowhere() {
        for no_number in ["9223372036854775807", "9007199254740992", "0", "-1", "8.5", "\"8\""] {
            let body = format!("{{\"seq\":8}}\n{{\"seq\":{no_number}}}");
            let page = read(&body, 7, None).unwrap();
            assert_eq!((page.lines.len(), page.next), (2, 8), "{no_number}");
            let alone = read(&format!("{{\"seq\":{no_number}}}"), 7, None).unwrap();
            assert_eq!(alone.stuck(), Some(UpstreamFault::NotAdvancing { after: 7 }));
        }
        assert_eq!(read("{\"seq\":8}\n{\"seq\":9.0}", 7, None).unwrap().next, 9);
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_are_no_part_of_a_line() {
        let marked = read("\u{feff}{\"seq\":1}\r\n\u{feff}{\"seq\":2}\r\n", 0, None).unwrap();
        assert_eq!((marked.lines.len(), marked.next, marked.tail), (2, 2, None));
        let only = read("\u{feff}{\"seq\":1}", 0, None).unwrap();
        assert_eq!((only.lines.len(), only.next), (1, 1));
        assert!(read("\u{feff}", 0, None).is_err());
    }

    #[test]
    fn a_last_line_that_is_not_json_is_left_to_the_next_page() {
        let page = read("{\"seq\":1}\n{\"seq\":2,", 0, None).unwrap();
        assert_eq!((page.lines.len(), page.next), (1, 1));
        assert_eq!(page.tail.as_deref(), Some(&b"{\"seq\":2,"[..]));
        let batch = page.into_batch();
        assert_eq!(batch.lines.len(), 1);
        assert!(!batch.reached_end());
    }

    #[test]
    fn one_in_the_middle_is_handed_over() {
        let page = read("{\"seq\":1}\nnonsense\n{\"seq\":3}", 0, None).unwrap();
        assert_eq!((page.lines.len(), page.next), (3, 3));
    }

    #[test]
    fn the_complete_lines_of_a_cut_body_count() {
        let page = read("{\"seq\":1}\n{\"se", 0, cut()).unwrap();
        assert_eq!((page.next, page.near_end, page.tail.is_none()), (1, false, true));
        assert_eq!(read("{\"se", 0, cut()), Err(cut().unwrap()));
        assert_eq!(read("{\"seq\":1}\n{\"seq\":2", 1, cut()), Err(cut().unwrap()));
        assert_eq!(read("", 0, cut()), Err(cut().unwrap()));
    }

    #[test]
    fn a_page_that_does_not_move_the_cursor_is_stuck() {
        let old = read("{\"seq\":1}\n{\"seq\":2}\n{\"seq\":3}", 3, None).unwrap();
        assert_eq!(old.stuck(), Some(UpstreamFault::NotAdvancing { after: 3 }));
        let unnumbered = read("{\"type\":\"news\"}", 3, None).unwrap();
        assert!(unnumbered.stuck().is_some());
        let batch = unnumbered.into_batch();
        assert!(matches!(batch.origin, Origin::Page { near_end: true, .. }));
        assert!(!batch.reached_end());
        let damaged = read("{\"seq\":4", 3, None).unwrap();
        assert!(matches!(damaged.stuck(), Some(UpstreamFault::Truncated { .. })));
        assert_eq!(damaged.into_batch().lines.len(), 1);
    }

    #[test]
    fn what_has_no_object_is_no_export() {
        for body in ["<html>\n<body>", "Busy, try again", "[]"] {
            let fault = read(body, 0, None).unwrap_err();
            assert_eq!(fault.kind(), "not-an-export", "{body}");
        }
    }
}
