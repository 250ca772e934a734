//! Whether the feed has told its subscribers everything that is committed.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::store::Source;

/// Stands for a cursor that is not known, and for an epoch before the first one.
const UNKNOWN: i64 = i64::MIN;

/// What this process has committed and published. Whatever else is in the store was committed by
/// another process, or by a commit whose outcome did not become known here, and subscribers miss it.
#[derive(Debug)]
pub struct Told {
    /// Cursor up to which it is all published; unknown while a commit is under way, and from then
    /// on when it does not end in order.
    cursor: AtomicI64,
    /// The lease that was taken last.
    epoch: AtomicI64,
}

impl Told {
    /// For subscribers who come after the store was seen with this cursor.
    pub fn up_to(cursor: i64) -> Told {
        Told { cursor: AtomicI64::new(cursor), epoch: AtomicI64::new(UNKNOWN) }
    }

    /// A commit begins.
    pub fn begin(&self) {
        self.cursor.store(UNKNOWN, Ordering::Release);
    }

    /// The commit has ended with this cursor, and is published.
    pub fn end(&self, cursor: i64) {
        self.cursor.store(cursor, Ordering::Release);
    }

    /// True when the store is as this process left it, now that it has taken the lease. From here
    /// on it counts as told up to its cursor.
    pub fn takes_up(&self, source: &Source) -> bool {
        let cursor = self.cursor.swap(source.cursor, Ordering::AcqRel);
        let epoch = self.epoch.swap(source.epoch, Ordering::AcqRel);
        cursor == source.cursor && (epoch == UNKNOWN || epoch + 1 == source.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(epoch: i64, cursor: i64) -> Source {
        Source { upstream: String::new(), cursor, cursor_cid: None, epoch, caught_up_at: None }
    }

    #[test]
    fn what_another_has_committed_is_not_told() {
        let told = Told::up_to(5);
        assert!(told.takes_up(&source(3, 5)));
        assert!(!told.takes_up(&source(4, 7)));
        // Another had the lease, and went back to where it began.
        assert!(!told.takes_up(&source(6, 7)));
        assert!(told.takes_up(&source(7, 7)));
        assert!(!Told::up_to(5).takes_up(&source(1, 6)));
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_not_told() {
        let told = Told::up_to(0);
        assert!(told.takes_up(&source(1, 0)));
        told.begin();
        told.end(8);
        assert!(told.takes_up(&source(2, 8)));
        // One that does not move the cursor.
        told.begin();
        assert!(!told.takes_up(&source(3, 8)));
        assert!(told.takes_up(&source(4, 8)));
    }
}
