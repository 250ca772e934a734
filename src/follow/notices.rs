//! What is logged of refusals and differences: an upstream that lies states thousands of them in seconds, and
//! the log has to stay readable. Of each kind there is a line now and then, with how many it stands for; each
//! single one is logged for who debugs, and is in the store anyway.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::Commit;

/// Between two lines of a kind.
const PAUSE: Duration = Duration::from_secs(10);

/// What was said, and what not yet.
#[derive(Debug, Default)]
pub struct Notices {
    refusals: Kinds,
    divergences: Kinds,
}

/// The kinds that were met.
#[derive(Debug, Default)]
struct Kinds(BTreeMap<String, Said>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// How many came since.
    left_out: usize,
}

impl Notices {
    /// Says what a commit has written that somebody should look at.
    pub fn say(&mut self, commit: &Commit, now: Instant) {
        for refusal in &commit.refusals {
            let (did, sequence) = (&refusal.did, refusal.sequence);
            let cid = refusal.cid.map(|cid| cid.to_string());
            tracing::debug!(did, sequence, cid, "refused: {}: {}", refusal.kind, refusal.detail);
        }
        for (kind, (first, count)) in by_kind(&commit.refusals, |refusal| &refusal.kind) {
            let Some(count) = self.refusals.count(kind, count, now) else { continue };
            let cid = first.cid.map(|cid| cid.to_string());
            tracing::warn!(
                count,
                did = first.did,
                sequence = first.sequence,
                cid,
                "refused: {kind}{}: {}",
                of_them(count),
                first.detail
            );
        }
        for divergence in &commit.divergences {
            let (did, subject, source) = (&divergence.did, &divergence.subject, &divergence.source);
            tracing::debug!(did, subject, source, "divergence: {}", divergence.kind);
        }
        for (kind, (first, count)) in by_kind(&commit.divergences, |divergence| &divergence.kind) {
            let Some(count) = self.divergences.count(kind, count, now) else { continue };
            tracing::warn!(
                count,
                did = first.did,
                subject = first.subject,
                source = first.source,
                "divergence: {kind}{}",
                of_them(count)
            );
        }
    }
}

impl Kinds {
    /// So many more of a kind have come. How many there are to be said now, with those that were left out
    /// before; none when the last line is too recent.
    fn count(&mut self, kind: &str, count: usize, now: Instant) -> Option<usize> {
        match self.0.get_mut(kind) {
            Some(said) if now.saturating_duration_since(said.at) < PAUSE => {
                said.left_out += count;
                None
            }
            Some(said) => {
                let left_out = std::mem::replace(said, Said { at: now, left_out: 0 }).left_out;
                Some(left_out + count)
            }
            None => {
                self.0.insert(kind.to_owned(), Said { at: now, left_out: 0 });
                Some(count)
            }
        }
    }
}

/// The first of each kind, and how many there are of it.
fn by_kind<T>(records: &[T], kind: impl Fn(&T) -> &String) -> BTreeMap<&str, (&T, usize)> {
    let mut kinds = BTreeMap::new();
    for record in records {
        kinds.entry(kind(record).as_str()).or_insert((record, 0)).1 += 1;
    }
    kinds
}

fn of_them(count: usize) -> String {
    if count == 1 { String::new() } else { format!(" ({count} of them)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_in_the_next_line_of_its_kind() {
        let begun = Instant::now();
        let mut kinds = Kinds::default();
        let mut count =
            |kind, count, millis| kinds.count(kind, count, begun + Duration::from_millis(millis));
        assert_eq!(count("malformed", 3, 0), Some(3));
        assert_eq!(count("malformed", 40, 1), None);
        // Another kind has a line of its own.
        assert_eq!(count("not-json", 1, 2), Some(1));
        assert_eq!(count("malformed", 500, 9_999), None);
        assert_eq!(count("malformed", 6_000, 10_000), Some(6_540));
        assert_eq!(count("malformed", 7, 19_999), None);
        assert_eq!(count("malformed", 1, 30_000), Some(8));
        assert_eq!(count("malformed", 1, 60_000), Some(1));
    }
}
