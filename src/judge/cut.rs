//! Lines cut into parts that can each be judged at once.

use ahash::AHashMap;

use super::decode::Decoded;
use crate::upstream::{Batch, Origin};
use did_plc::entry::{Received, Undecodable};
use did_plc::{Cid, Did, Timestamp};

/// Lines to be judged together, in the order of receipt.
#[derive(Debug)]
pub struct Lines {
    /// As received, and decoded.
    pub decoded: Decoded,
    /// When the last of them came.
    pub received_at: Timestamp,
    /// They reach the upstream's present.
    pub caught_up: bool,
    /// They all came by the stream, as they happened.
    pub live: bool,
}

impl Lines {
    /// Decodes what came from an upstream.
    pub async fn from_batch(batch: Batch) -> Lines {
        Lines {
            received_at: batch.received_at,
            caught_up: batch.reached_end(),
            live: batch.origin == Origin::Stream,
            decoded: Decoded::from_lines(batch.lines).await,
        }
    }

    /// Takes those that came after these.
    pub fn join(&mut self, next: Lines) {
        self.decoded.extend(next.decoded);
        self.received_at = next.received_at;
        self.caught_up = next.caught_up;
        self.live &= next.live;
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
    /// All of it came by the stream.
    pub(super) live: bool,
}

/// Lines as far as they can be judged at once.
#[derive(Debug)]
pub struct Parts {
    /// Each to be judged and handed over to be committed before the next one is judged. Usually it
    /// is one; where a sequence number is claimed twice there are more, since whether the second
    /// claim stands depends on the first.
    pub parts: Vec<Part>,
    /// Cursor after them.
    pub cursor: i64,
    /// A line that is not JSON stands after them.
    pub stopped: bool,
    /// One that is not JSON is among them.
    pub kept_damaged: bool,
}

impl Parts {
    /// Cuts lines that follow this cursor where they cannot be judged at once.
    pub fn of(lines: Lines, cursor: i64, not_json: NotJson) -> Parts {
        let Lines { mut decoded, received_at, mut caught_up, live } = lines;
        let damaged = decoded.first_damaged();
        let stop = damaged.filter(|_| not_json == NotJson::StopBefore);
        if let Some(stop) = stop {
            decoded.truncate(stop);
            caught_up = false;
        }
        let cursor_after = decoded.cursor_after(cursor);
        let cursor_cid = decoded.position_at(cursor_after).and_then(|position| position.cid);
        let ends = ends_of_unique_numbers(decoded.entries());
        let mut from = 0;
        let mut parts = Vec::with_capacity(ends.len());
        for (index, &end) in ends.iter().enumerate() {
            let last = index + 1 == ends.len();
            parts.push(Part {
                decoded: decoded.split_before(end - from),
                received_at,
                cursor_before: cursor,
                // The cursor moves with the last part only: after a crash all of it comes again.
                cursor_after: if last { cursor_after } else { cursor },
                cursor_cid: cursor_cid.clone().filter(|_| last),
                caught_up: caught_up && last,
                live,
            });
            from = end;
        }
        let stopped = stop.is_some();
        Parts { parts, cursor: cursor_after, stopped, kept_damaged: !stopped && damaged.is_some() }
    }
}

/// Where to cut so that in no part two different operations claim one number; the last cut is the
/// end.
fn ends_of_unique_numbers(entries: &[Result<Received, Undecodable>]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut claims: AHashMap<i64, (Did, Cid)> = AHashMap::with_capacity(entries.len());
    for (index, received) in entries.iter().enumerate() {
        let Ok(received) = received else { continue };
        let Some(number) = received.sequence else { continue };
        let claim = (received.did, received.cid);
        if claims.insert(number, claim).is_some_and(|earlier| earlier != claim) {
            ends.push(index);
            claims.clear();
            claims.insert(number, claim);
        }
    }
    ends.push(entries.len());
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(number: Option<i64>, operation: u8) -> Result<Received, Undecodable> {
        Ok(Received {
            did: Did::from_bytes([operation; 15]),
            cid: Cid::of(&[operation]),
            stated_cid: None,
            created_at: Timestamp::from_millis(0),
            sequence: number,
            nullified: None,
            received_at: None,
            signed: bytes::Bytes::new(),
        })
    }

    #[test]
    fn a_batch_is_cut_where_a_number_is_claimed_by_another_operation() {
        let batch = [
            received(Some(1), 1),
            received(None, 2),
            received(Some(1), 1),
            received(Some(1), 3),
            received(None, 2),
            received(Some(2), 4),
            received(Some(1), 1),
        ];
        assert_eq!(ends_of_unique_numbers(&batch), [3, 6, 7]);
        assert_eq!(ends_of_unique_numbers(&[]), [0]);
    }
}
