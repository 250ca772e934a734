//! The identities of which a refusal stands, so that nearly every lookup knows without asking the store that
//! there is nothing to say of that.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use ahash::AHashSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::reads::Picture;
use crate::store::{Store, StoreError};
use did_plc::Did;

/// Identities that are remembered: some 3 MB.
const MOST: usize = 100_000;
/// Refusals of which the identities are read at once.
const PAGE: usize = 1_000;
/// How often it is looked what was refused since: soon after it was received, it is said.
const LOOK: Duration = Duration::from_secs(2);
/// How often all of them are read. Those of which no refusal stands any more go then. What is refused again
/// under the number of an old record is found then too.
const LOOK_AT_ALL: Duration = Duration::from_secs(60);

/// What is remembered. Until it was read for the first time it is nothing, and the store is asked.
#[derive(Debug)]
pub struct RefusedIdentities {
    known: RwLock<Known>,
    most: usize,
}

#[derive(Debug, Default)]
struct Known {
    dids: AHashSet<Did>,
    /// No refusal stands of any other identity.
    complete: bool,
}

impl RefusedIdentities {
    /// Nothing yet.
    pub fn new() -> RefusedIdentities {
        RefusedIdentities::with_room_for(MOST)
    }

    fn with_room_for(most: usize) -> RefusedIdentities {
        RefusedIdentities { known: RwLock::default(), most }
    }

    /// How many refusals of an identity stand of what was stated after its head ([`Store::refused_after`]).
    ///
    /// # Errors
    ///
    /// Those of the store, which is asked only where there may be some.
    pub async fn standing(&self, log: &Picture<'_>, did: &Did) -> Result<usize, StoreError> {
        if !self.may_include(did) {
            return Ok(0);
        }
        // Boxed, since it is seldom asked: what a request keeps for it would be moved about with each.
        Box::pin(async {
            // What is accepted in between does not stand any more, and is not counted.
            let head = log.head(did).await?;
            log.refused_after(did, head.as_ref()).await
        })
        .await
    }

    fn may_include(&self, did: &Did) -> bool {
        let known = self.known();
        !known.complete || known.dids.contains(did)
    }

    /// Keeps up with the store until the shutdown.
    pub async fn keep_up(&self, store: &Store, shutdown: &CancellationToken) {
        shutdown.run_until_cancelled(self.look_again_and_again(store)).await;
    }

    async fn look_again_and_again(&self, store: &Store) {
        let mut last = 0;
        let mut all_read_at: Option<Instant> = None;
        loop {
            let all_are_due = all_read_at.is_none_or(|at| at.elapsed() >= LOOK_AT_ALL);
            let looked = match all_are_due {
                true => self.look_at_all(store).await,
                false => self.look_after(store, last).await,
            };
            match looked {
                Ok(read_to) => {
                    last = read_to;
                    if all_are_due {
                        all_read_at = Some(Instant::now());
                    }
                }
                Err(error) => tracing::debug!(%error, "which identities were refused is not known"),
            }
            sleep(LOOK).await;
        }
    }

    /// Reads all that there are. The number of the last record that was looked at.
    async fn look_at_all(&self, store: &Store) -> Result<i64, StoreError> {
        let mut all = Known { dids: AHashSet::new(), complete: true };
        let last = read_after(store, 0, |dids| all.add(dids, self.most)).await?;
        *self.change() = all;
        Ok(last)
    }

    /// Reads those with records after this number.
    async fn look_after(&self, store: &Store, last: i64) -> Result<i64, StoreError> {
        read_after(store, last, |dids| self.change().add(dids, self.most)).await
    }

    // Nothing can panic between two changes of it.
    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Adds identities as their lines state them. Whether there is room for all of them.
    fn add(&mut self, dids: Vec<String>, most: usize) -> bool {
        // What is no DID is asked for by nobody.
        for did in dids.iter().filter_map(|did| did.parse().ok()) {
            if self.dids.len() < most {
                self.dids.insert(did);
            } else if !self.dids.contains(&did) {
                self.complete = false;
            }
        }
        self.complete
    }
}

/// Reads the identities with records after this number until one page of them is too much. The number of the
/// last record that was looked at.
async fn read_after(
    store: &Store,
    mut last: i64,
    mut add: impl FnMut(Vec<String>) -> bool,
) -> Result<i64, StoreError> {
    loop {
        let (dids, read_to) = store.refused_identities(last, PAGE).await?;
        let is_end = dids.is_empty();
        if is_end || !add(dids) {
            return Ok(read_to);
        }
        last = read_to;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::state;
    use super::*;
    use crate::store::{Commit, Lease, NewRefusal};

    fn did(letter: &str) -> String {
        format!("did:plc:{}", letter.repeat(24))
    }

    fn refusal(did: &str) -> NewRefusal {
        let line = Bytes::from(did.to_owned());
        NewRefusal {
            key: NewRefusal::key_of_line(&line),
            source: "https://plc.example".to_owned(),
            did: did.to_owned(),
            sequence: None,
            cid: None,
            kind: "malformed".to_owned(),
            detail: String::new(),
            line,
        }
    }

    async fn refuse(store: &Store, lease: &Lease, dids: &[&str]) {
        let refusals = dids.iter().map(|letter| refusal(&did(letter))).collect();
        store.commit(lease, &Commit { refusals, ..Commit::default() }).await.unwrap();
    }

    fn may_include(identities: &RefusedIdentities) -> [bool; 4] {
        ["a", "b", "c", "d"].map(|letter| identities.may_include(&did(letter).parse().unwrap()))
    }

    #[tokio::test]
    async fn only_identities_with_refusals_are_asked_for() {
        let (server, _folder) = state::tests::server().await;
        let store = &server.state.store;
        let (lease, _) = store.follow("https://plc.example").await.unwrap();
        let identities = RefusedIdentities::new();
        refuse(store, &lease, &["a"]).await;
        // Before the first look nobody knows.
        assert_eq!(may_include(&identities), [true; 4]);
        let last = identities.look_at_all(store).await.unwrap();
        assert_eq!(may_include(&identities), [true, false, false, false]);
        refuse(store, &lease, &["b", "b", "c"]).await;
        let last = identities.look_after(store, last).await.unwrap();
        assert_eq!(may_include(&identities), [true, true, true, false]);
        // Nothing new is no reason to begin from the start.
        assert_eq!(identities.look_after(store, last).await.unwrap(), last);
        let standing = async |letter: &str| {
            identities.standing(&server.picture(), &did(letter).parse().unwrap()).await.unwrap()
        };
        assert_eq!((standing("b").await, standing("d").await), (1, 0));

        let lifted = vec![refusal(&did("b")).key];
        store.commit(&lease, &Commit { lifted, ..Commit::default() }).await.unwrap();
        assert_eq!(standing("b").await, 0);
        identities.look_at_all(store).await.unwrap();
        assert_eq!(may_include(&identities), [true, false, true, false]);
    }

    #[tokio::test]
    async fn with_more_than_are_remembered_the_store_is_asked() {
        let (server, _folder) = state::tests::server().await;
        let store = &server.state.store;
        let (lease, _) = store.follow("https://plc.example").await.unwrap();
        let identities = RefusedIdentities::with_room_for(2);
        refuse(store, &lease, &["a", "b"]).await;
        let last = identities.look_at_all(store).await.unwrap();
        assert_eq!(may_include(&identities), [true, true, false, false]);
        refuse(store, &lease, &["c"]).await;
        identities.look_after(store, last).await.unwrap();
        assert_eq!(may_include(&identities), [true; 4]);
        assert_eq!(identities.known().dids.len(), 2);
        identities.look_at_all(store).await.unwrap();
        assert_eq!(may_include(&identities), [true; 4]);
        let standing =
            identities.standing(&server.picture(), &did("c").parse().unwrap()).await.unwrap();
        assert_eq!(standing, 1);
        // When there are fewer again, they are remembered.
        let lifted = vec![refusal(&did("a")).key];
        store.commit(&lease, &Commit { lifted, ..Commit::default() }).await.unwrap();
        identities.look_at_all(store).await.unwrap();
        assert_eq!(may_include(&identities), [false, true, true, false]);
    }
}
