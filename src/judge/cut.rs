//! Lines as far as they can be judged at once.

use std::sync::Arc;

use super::decode::Decoded;
use crate::upstream::{Batch, Origin};
use did_plc::Timestamp;

/// Lines to be judged together, in the order of receipt.
#[derive(Debug)]
pub struct Lines {
    /// As received, and decoded.
    pub decoded: Decoded,
    /// When the last of them came.
    pub received_at: Timestamp,
    /// They reach the upstream's present.
    pub caught_up: bool,
    /// Where they come from.
    pub course: Course,
    /// Who states them, where that is not the upstream.
    pub source: Option<Arc<str>>,
}

/// Where lines come from, which says what follows from them beside the verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// From the upstream, by its stream, as they happened.
    Stream,
    /// From the upstream's pages.
    Pages,
    /// From the upstream once more: what was missing is taken in. Other times than those of before are put on record
    /// and not taken over.
    Again,
    /// From the upstream for the second time, or because somebody asked for it: the times that it states now are
    /// taken over, since those of the first time may have been damaged on their way.
    Second,
    /// From a dump, or from somebody beside the upstream: their sequence numbers are only taken for operations
    /// without one, where nothing else has them. Other numbers are no difference.
    Elsewhere,
}

impl Course {
    /// Whether a number that is stated belongs to the operation that it is stated for, whoever had it.
    pub fn states_numbers(self) -> bool {
        self != Course::Elsewhere
    }
}

impl Lines {
    /// Decodes what came from an upstream that is followed.
    pub async fn from_batch(batch: Batch) -> Lines {
        Lines {
            received_at: batch.received_at,
            caught_up: batch.reached_end(),
            course: match batch.origin {
                Origin::Stream => Course::Stream,
                Origin::Page { .. } => Course::Pages,
            },
            source: None,
            decoded: Decoded::from_lines(batch.lines).await,
        }
    }

    /// Whether lines that came after these can be judged with them.
    pub fn can_join(&self, next: &Lines) -> bool {
        let follows = |lines: &Lines| matches!(lines.course, Course::Stream | Course::Pages);
        follows(self) && follows(next)
    }

    /// Takes those that came after these.
    pub fn join(&mut self, next: Lines) {
        self.decoded.extend(next.decoded);
        self.received_at = next.received_at;
        self.caught_up = next.caught_up;
        if next.course == Course::Pages {
            self.course = Course::Pages;
        }
    }
}

/// What to do about a line that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotJson {
    /// Stop before it: it may have been damaged on its way.
    StopBefore,
    /// Keep it as it is and go on: it has been fetched often enough.
    Keep,
}

/// A run of lines that is judged and committed at once.
#[derive(Debug)]
pub struct Part {
    pub(super) decoded: Decoded,
    pub(super) received_at: Timestamp,
    pub(super) cursor_before: i64,
    pub(super) cursor_after: i64,
    pub(super) cursor_cid: Option<String>,
    pub(super) caught_up: bool,
    pub(super) course: Course,
    pub(super) source: Option<Arc<str>>,
}

/// Lines cut off where they cannot be judged.
#[derive(Debug)]
pub struct Cut {
    /// What is to be judged and handed over to be committed before anything else is judged.
    pub part: Part,
    /// Cursor after it.
    pub cursor: i64,
    /// A line that is not JSON stands after it.
    pub stopped: bool,
    /// One that is not JSON is among it.
    pub kept_damaged: bool,
}

impl Cut {
    /// Cuts lines before the first that is not JSON, where it is not to be kept. With `leads` the cursor follows
    /// them from where it is.
    pub fn of(lines: Lines, cursor: i64, not_json: NotJson, leads: bool) -> Cut {
        let Lines { mut decoded, received_at, mut caught_up, course, source } = lines;
        let damaged = decoded.first_damaged();
        let stop = damaged.filter(|_| not_json == NotJson::StopBefore);
        if let Some(stop) = stop {
            decoded.truncate(stop);
            caught_up = false;
        }
        let cursor_after = if leads { decoded.cursor_after(cursor) } else { cursor };
        let cursor_cid = decoded.position_at(cursor_after).and_then(|position| position.cid);
        let part = Part {
            decoded,
            received_at,
            cursor_before: cursor,
            cursor_after,
            cursor_cid,
            caught_up,
            course,
            source,
        };
        let stopped = stop.is_some();
        Cut { part, cursor: cursor_after, stopped, kept_damaged: !stopped && damaged.is_some() }
    }
}
