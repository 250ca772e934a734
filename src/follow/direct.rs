//! Lines taken straight into a store: judged and committed one batch after the other, for whoever is its one
//! follower for a while and reads from somewhere else than an upstream's log.

use std::sync::Arc;

use tokio::sync::watch;

use crate::clock;
use crate::judge::{BatchJudge, Course, Cut, Decoded, Lines, NotJson, Prepared};
use crate::store::{Lease, Source, Store, StoreError};
use did_plc::signature::Verifier;

/// Takes lines into a store under a lease.
pub struct DirectIntake<'a> {
    store: &'a Store,
    lease: &'a Lease,
    judge: BatchJudge,
    committed: watch::Sender<u64>,
    /// The cursor as it is stored.
    cursor: i64,
}

impl<'a> DirectIntake<'a> {
    /// Into a store whose lease was taken with this source. Records and refusals name `stated_by`: the URL of an
    /// upstream, or the name of a file.
    ///
    /// # Errors
    ///
    /// Those of the store, here and below.
    pub async fn new(
        store: &'a Store,
        (lease, source): (&'a Lease, &Source),
        verifier: Arc<dyn Verifier>,
        stated_by: &str,
    ) -> Result<DirectIntake<'a>, StoreError> {
        let (committed, receiver) = watch::channel(0);
        let judge =
            BatchJudge::new(store.clone(), verifier, stated_by.to_owned(), receiver).await?;
        Ok(DirectIntake { store, lease, judge, committed, cursor: source.cursor })
    }

    /// Judges lines and commits what follows from them, while the cursor stays. A crash before the commit leaves nothing
    /// of them.
    pub async fn take(&mut self, decoded: Decoded, course: Course) -> Result<Prepared, StoreError> {
        let received_at = clock::now();
        let lines = Lines { decoded, received_at, caught_up: false, course, source: None };
        let Cut { part, .. } = Cut::of(lines, self.cursor, NotJson::Keep, false);
        let prepared = self.judge.judge(part, &[]).await?;
        self.store.commit(self.lease, &prepared.commit).await?;
        self.committed.send_replace(prepared.batch);
        Ok(prepared)
    }
}
