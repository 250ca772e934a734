//! The unit of work: lines that came together.

use bytes::Bytes;

use did_plc::Timestamp;

/// A page or a burst of the stream, as received. The unit of work of all that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Each a line of an export or a message of the stream, raw and not empty: slices of one
    /// body, which lives as long as any of them. Copy what is kept for longer.
    pub lines: Vec<Bytes>,
    /// When the last byte of it had arrived.
    pub received_at: Timestamp,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a batch comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A page of `/export?after=…`.
    Page {
        /// The cursor that was asked for: everything is after this sequence number.
        after: i64,
        /// The cursor of the next page. The same as `after` when nothing in the page moves it:
        /// an empty page, or one whose every line is damaged or unnumbered.
        next: i64,
        /// Fewer lines came than the upstream gives, in a body that was complete: the end was near
        /// when the page was made.
        near_end: bool,
    },
    /// Messages of `/export/stream`.
    Stream,
}

impl Batch {
    /// True for what reaches the upstream's present: what its stream brings, which is only opened
    /// once a page has reached the end, and a page that says, credibly, that it has. A page of
    /// nothing but damaged or unnumbered lines says nothing about the end of the log.
    pub fn reached_end(&self) -> bool {
        match self.origin {
            Origin::Page { after, next, near_end, .. } => {
                near_end && (next > after || self.lines.is_empty())
            }
            Origin::Stream => true,
        }
    }
}
