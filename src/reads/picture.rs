//! The picture of the log that one answer is made from: where it is read, and how fresh that is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::metrics::{Counter, counter};
use did_plc::claim::Value;
use did_plc::{Did, Timestamp};

use super::freshness::Freshness;
use super::primary::{Conversation, Primary};
use super::standby::{Answering, Standby};
use crate::live::Status;
use crate::store::claims::{Claimants, ClaimsIndex};
use crate::store::{Store, StoreError, StoredDivergence, StoredOperation, StoredRefusal};

/// The databases that can be read from.
#[derive(Debug)]
pub struct Reads {
    primary: Primary,
    /// What is known of the primary.
    status: Arc<Status>,
    standbys: Vec<Arc<Standby>>,
    /// Whose turn it is.
    turn: AtomicUsize,
    primary_reads: Counter,
}

impl Reads {
    /// The primary, and these hot standbys of it (each by its name), which are not looked for yet.
    pub fn new(primary: Store, status: Arc<Status>, standbys: Vec<String>) -> Reads {
        let reads = |database: &str| counter!("plc_reads_total", "database" => database.to_owned());
        let standby = |name: String| {
            let reads = reads(&name);
            Arc::new(Standby::new(name, reads))
        };
        let primary_reads = if standbys.is_empty() { Counter::noop() } else { reads("primary") };
        Reads {
            primary: Primary::new(primary),
            status,
            standbys: standbys.into_iter().map(standby).collect(),
            turn: AtomicUsize::new(0),
            primary_reads,
        }
    }

    /// Whether there are standbys at all, which may lack for a moment what the primary has.
    pub fn has_standbys(&self) -> bool {
        !self.standbys.is_empty()
    }

    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    pub(super) fn standbys(&self) -> &[Arc<Standby>] {
        &self.standbys
    }

    pub(super) fn primary(&self) -> &Primary {
        &self.primary
    }

    /// Ends when the primary has fallen silent and there is a standby to be asked in its place.
    async fn is_in_vain(&self, primary: &Conversation) {
        primary.silent.cancelled().await;
        if self.standbys.iter().all(|standby| standby.answering().is_none()) {
            std::future::pending::<()>().await;
        }
    }

    /// A picture for one answer.
    pub fn picture(&self) -> Picture<'_> {
        let at = self.next(&[], false).unwrap_or_else(|| self.at_primary());
        Picture {
            reads: self,
            sought: Mutex::new(Sought { at, standbys: Vec::new(), primary: false }),
        }
    }

    fn at_primary(&self) -> At {
        At { standby: None, freshness: Freshness::now(&self.status) }
    }

    /// The next standby that answers, but those that were tried; one that is behind only where that will do.
    fn next(&self, tried: &[usize], behind_too: bool) -> Option<At> {
        if self.standbys.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let order =
            (0..self.standbys.len()).map(|place| (turn.wrapping_add(place)) % self.standbys.len());
        order.filter(|place| !tried.contains(place)).find_map(|place| {
            let answering = self.standbys[place].answering()?;
            let seen = answering.seen();
            let will_do = behind_too || !seen.behind;
            will_do.then_some(At { standby: Some((place, answering)), freshness: seen.freshness })
        })
    }
}

/// Where something is read.
#[derive(Debug, Clone)]
struct At {
    /// None: from the primary.
    standby: Option<(usize, Arc<Answering>)>,
    freshness: Freshness,
}

impl At {
    fn standby_place(&self) -> Option<usize> {
        self.standby.as_ref().map(|(place, _)| *place)
    }
}

/// The log as one answer sees it: read from one database, for as long as that answers.
#[derive(Debug)]
pub struct Picture<'a> {
    reads: &'a Reads,
    sought: Mutex<Sought>,
}

/// Where answers are sought.
#[derive(Debug)]
struct Sought {
    at: At,
    /// Those that were asked in vain.
    standbys: Vec<usize>,
    /// Whether the primary was.
    primary: bool,
}

/// Asks wherever the picture is read, and elsewhere when there is no answer there.
macro_rules! read {
    ($picture:expr, $store:ident => $question:expr) => {
        loop {
            let picture = $picture;
            let at = picture.sought().at.clone();
            let answer = match &at.standby {
                None => {
                    picture.reads.primary_reads.increment(1);
                    let primary = picture.reads.primary.conversation();
                    let $store = &primary.store;
                    tokio::select! {
                        biased;
                        answer = $question => answer,
                        () = picture.reads.is_in_vain(&primary) => {
                            Err(StoreError::Unavailable("the database is silent".to_owned()))
                        }
                    }
                }
                Some((place, answering)) => {
                    picture.reads.standbys[*place].reads.increment(1);
                    let $store = &answering.store;
                    tokio::select! {
                        biased;
                        answer = $question => answer,
                        () = answering.gone.cancelled() => {
                            Err(StoreError::Unavailable("the read database is gone".to_owned()))
                        }
                    }
                }
            };
            match answer {
                Err(error) if picture.goes_elsewhere(&at, &error) => {}
                answer => break answer,
            }
        }
    };
}

impl Picture<'_> {
    /// How fresh what it has read is: everything that this promises was there. It becomes less only where something
    /// had to be read from a standby that is further behind.
    pub fn freshness(&self) -> Freshness {
        self.sought().at.freshness
    }

    /// Whether it reads from a standby, which may lack what the primary has.
    pub fn is_of_standby(&self) -> bool {
        self.sought().at.standby.is_some()
    }

    /// Has it read from the primary from now on, of which the freshness is what counts then.
    pub fn turn_to_primary(&self) {
        self.sought().at = self.reads.at_primary();
    }

    /// See [`Store::head`]. An identity that a standby does not have at all may be new: the primary is read from then.
    pub async fn head(&self, did: &Did) -> Result<Option<StoredOperation>, StoreError> {
        let head = self.head_here(did).await?;
        if head.is_some() || !self.is_of_standby() {
            return Ok(head);
        }
        self.turn_to_primary();
        self.head_here(did).await
    }

    /// The same, wherever it is read now: to see whether there is an answer at all.
    pub async fn head_here(&self, did: &Did) -> Result<Option<StoredOperation>, StoreError> {
        read!(self, store => store.head(did))
    }

    /// See [`Store::history`]. Of an identity that a standby does not have, as [`Picture::head`].
    pub async fn history(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        let history = self.history_here(did).await?;
        if !history.is_empty() || !self.is_of_standby() {
            return Ok(history);
        }
        self.turn_to_primary();
        self.history_here(did).await
    }

    async fn history_here(&self, did: &Did) -> Result<Vec<StoredOperation>, StoreError> {
        read!(self, store => store.history(did))
    }

    /// See [`Store::export_by_sequence`].
    pub async fn export_by_sequence(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        read!(self, store => store.export_by_sequence(after, limit))
    }

    /// See [`Store::export_by_time`].
    pub async fn export_by_time(
        &self,
        after: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<StoredOperation>, StoreError> {
        read!(self, store => store.export_by_time(after, limit))
    }

    /// See [`Store::refusals`].
    pub async fn refusals(
        &self,
        did: Option<&str>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredRefusal>, StoreError> {
        read!(self, store => store.refusals(did, after_id, limit))
    }

    /// See [`Store::refused_after`].
    pub async fn refused_after(
        &self,
        did: &Did,
        head: Option<&StoredOperation>,
    ) -> Result<usize, StoreError> {
        read!(self, store => store.refused_after(did, head))
    }

    /// See [`Store::divergences`].
    pub async fn divergences(
        &self,
        did: Option<&str>,
        kind: Option<&str>,
        open: Option<bool>,
        after_id: i64,
        limit: usize,
    ) -> Result<Vec<StoredDivergence>, StoreError> {
        read!(self, store => store.divergences(did, kind, open, after_id, limit))
    }

    /// See [`Store::claims_index`].
    pub async fn claims_index(&self) -> Result<Option<ClaimsIndex>, StoreError> {
        read!(self, store => store.claims_index())
    }

    /// See [`Store::claimants`].
    pub async fn claimants(
        &self,
        value: &Value<'_>,
        after: Option<Did>,
        limit: usize,
    ) -> Result<Claimants, StoreError> {
        read!(self, store => store.claimants(value, after, limit))
    }

    /// Whether what could not be read there is to be read elsewhere, which the picture turns to.
    fn goes_elsewhere(&self, failed: &At, error: &StoreError) -> bool {
        let mut sought = self.sought();
        // Another read for the same answer may have turned it already.
        if sought.at.standby_place() != failed.standby_place() {
            return true;
        }
        match &failed.standby {
            Some((place, answering)) => {
                self.say_that_it_failed(*place, answering, error);
                sought.standbys.push(*place);
            }
            None if matches!(error, StoreError::Unavailable(_)) => sought.primary = true,
            // What is wrong with the primary itself has to be heard of.
            None => return false,
        }
        let primary = || (!sought.primary).then(|| self.reads.at_primary());
        let next = self.reads.next(&sought.standbys, false).or_else(primary);
        let Some(next) = next.or_else(|| self.reads.next(&sought.standbys, true)) else {
            return false;
        };
        sought.at = At { freshness: sought.at.freshness.least(next.freshness), ..next };
        true
    }

    fn say_that_it_failed(&self, place: usize, answering: &Answering, error: &StoreError) {
        let database = &self.reads.standbys[place].name;
        counter!("plc_reads_retried_total", "database" => database.clone()).increment(1);
        match error {
            // It conflicts with what is replayed, or is going away, which who watches it says.
            StoreError::Unavailable(reason) => {
                tracing::debug!(database, reason, "a read is asked elsewhere");
            }
            error if answering.gone.is_cancelled() => {
                tracing::debug!(database, %error, "a read is asked elsewhere");
            }
            error => tracing::warn!(database, %error, "a read is asked elsewhere"),
        }
    }

    fn sought(&self) -> MutexGuard<'_, Sought> {
        // Nothing can panic between two changes of it.
        self.sought.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
