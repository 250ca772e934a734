//! Whether everything that is committed has been published on the feed.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::store::Source;

/// Stands for a cursor that is not known, and for an epoch before the first one.
const UNKNOWN: i64 = i64::MIN;

/// What this process has committed and published. Whatever else is in the store was committed by
/// another process, or by a commit whose outcome did not become known here, and subscribers miss it.
#[derive(Debug)]
pub struct Published {
    /// Cursor up to which it is all published; unknown while a commit is under way, and from then
    /// on when it does not end in order.
    cursor: AtomicI64,
    /// The lease that was taken last.
    epoch: AtomicI64,
}

impl Published {
    /// For subscribers who come after the store was seen with this cursor.
    pub fn up_to(cursor: i64) -> Published {
        Published { cursor: AtomicI64::new(cursor), epoch: AtomicI64::new(UNKNOWN) }
    }

    /// A commit begins.
    pub fn commit_begins(&self) {
        self.cursor.store(UNKNOWN, Ordering::Release);
    }

    /// The commit has ended with this cursor, and is published.
    pub fn commit_published(&self, cursor: i64) {
        self.cursor.store(cursor, Ordering::Release);
    }

    /// Takes up from a store whose lease this process has just taken: from here on it counts as published up to
    /// its cursor. True when the store is as this process left it; otherwise subscribers miss something.
    pub fn take_up(&self, source: &Source) -> bool {
        let cursor = self.cursor.swap(source.cursor, Ordering::AcqRel);
        let epoch = self.epoch.swap(source.epoch, Ordering::AcqRel);
        cursor == source.cursor && (epoch == UNKNOWN || epoch + 1 == source.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Rereading;

    fn source(epoch: i64, cursor: i64) -> Source {
        Source {
            upstream: String::new(),
            cursor,
            cursor_cid: None,
            epoch,
            caught_up_at: None,
            rereading: Rereading::default(),
            renumbering: false,
            forgotten_up_to: None,
            by_time: None,
        }
    }

    #[test]
    fn what_another_has_committed_is_not_published() {
        let published = Published::up_to(5);
        assert!(published.take_up(&source(3, 5)));
        assert!(!published.take_up(&source(4, 7)));
        // Another had the lease, and went back to where it began.
        assert!(!published.take_up(&source(6, 7)));
        assert!(published.take_up(&source(7, 7)));
        assert!(!Published::up_to(5).take_up(&source(1, 6)));
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_not_published() {
        let published = Published::up_to(0);
        assert!(published.take_up(&source(1, 0)));
        published.commit_begins();
        published.commit_published(8);
        assert!(published.take_up(&source(2, 8)));
        // One that does not move the cursor.
        published.commit_begins();
        assert!(!published.take_up(&source(3, 8)));
        assert!(published.take_up(&source(4, 8)));
    }
}
