//! The watch: what changed here is compared with the upstream a little later, and a slow random
//! sample covers the rest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use metrics::{counter, gauge};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::check::{CheckError, CheckedIdentity, Checker, Depth};
use super::clock::settled;
use super::peer::{Peer, PeerError};
use super::recheck::{is_of_export, is_still_stated};
use crate::live::{Mode, Status};
use crate::store::{NewDivergence, StoreError, StoredDivergence};
use did_plc::Did;

/// How long after a change an identity is compared: longer than what is on its way may be on one
/// side only ([`super::clock::GRACE`]).
const LATER: Duration = Duration::from_secs(15);
/// A difference is looked at again after this long before it is recorded: one that is gone by
/// then was two pictures of a change.
const CONFIRM: Duration = Duration::from_secs(5);
/// How often the log is read for what changed.
const LOOK: Duration = Duration::from_secs(1);
/// Changes that are read from the log at once.
const READ: usize = 1000;
/// Identities that wait to be compared. More of them are left to the sample: some 10 MB.
const MAX_WAITING: usize = 200_000;
/// What comes first in one comparison after the other: nothing that waits keeps the rest waiting
/// for ever, however much of it there is.
const TURNS: [&[Queue]; 4] = [
    &[Queue::Changed, Queue::Again, Queue::Recorded],
    &[Queue::Again, Queue::Changed, Queue::Recorded],
    &[Queue::Recorded, Queue::Changed, Queue::Again],
    // The sample's.
    &[],
];
/// Of so many comparisons one is of what the export states, while any such record is open.
const EXPORT_SHARE: u64 = 3;
/// Of so many comparisons one asks for head and document too, which takes three requests.
const EVERYTHING_SHARE: u32 = 8;
/// How often one identity may go without an answer before it is left to the sample.
const ATTEMPTS: u32 = 5;
/// Identities whose difference is still to be confirmed, or that are compared again since
/// something about them was too new.
const MAX_AGAIN: usize = 10_000;
/// Open differences that are looked at again in one round of [`RECHECK`].
const RECHECKED: usize = 100;
/// How often what is on record as different is looked at again.
const RECHECK: Duration = Duration::from_secs(30);
/// After the upstream or the store could not be asked.
const PAUSE: Duration = Duration::from_secs(10);

/// How the watch can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchSettings {
    /// Comparisons a minute; most take one request.
    pub per_minute: u32,
    /// How long after a change an identity is compared.
    pub later: Duration,
    /// How long a difference has to last to be recorded.
    pub confirm: Duration,
    /// How often what is on record is looked at again.
    pub recheck: Duration,
    /// How long to wait after the upstream or the store could not be asked.
    pub pause: Duration,
}

impl WatchSettings {
    /// So many comparisons a minute, and the usual times.
    pub fn per_minute(per_minute: u32) -> WatchSettings {
        WatchSettings { per_minute, later: LATER, confirm: CONFIRM, recheck: RECHECK, pause: PAUSE }
    }
}

/// Compares the store with the upstream that is followed, in the background.
pub struct Watch {
    checker: Checker,
    /// Those that can be followed, in order of preference.
    upstreams: Vec<Peer>,
    /// The one among them that was followed when it was looked at last.
    followed: usize,
    status: Arc<Status>,
    settings: WatchSettings,
    /// Everything up to this number is or was waiting.
    read_up_to: i64,
    /// What changed and when it is to be compared, in the order of both.
    changed: VecDeque<(Instant, Did)>,
    /// What is in `changed`.
    waiting: AHashSet<Did>,
    /// What is to be compared once more, in order of time.
    again: VecDeque<Again>,
    /// What is on record as different and is to be compared again.
    recorded: VecDeque<Chosen>,
    recheck_at: Instant,
    /// Records up to this id have been looked at again in this round.
    rechecked: i64,
    /// Records of what the export states that are to be looked at again.
    of_export: VecDeque<StoredDivergence>,
    /// Where the sample is: it goes through all identities in the order of their bytes, which are
    /// as random as a hash, from a random place on.
    sampled: Did,
    /// Comparisons so far.
    count: u64,
}

/// An identity that is to be compared once more.
struct Again {
    at: Instant,
    chosen: Chosen,
}

/// An identity to be compared.
#[derive(Clone)]
struct Chosen {
    did: Did,
    /// What was found the time before, or is on record.
    before: Option<Vec<DifferenceName>>,
    /// How often in a row nobody answered for it.
    failures: u32,
}

/// Kind and subject of a difference.
type DifferenceName = (String, String);

impl Chosen {
    fn new(did: Did) -> Chosen {
        Chosen { did, before: None, failures: 0 }
    }
}

/// What the next identity may have waited in; the sample is always there.
#[derive(Clone, Copy)]
enum Queue {
    Changed,
    Again,
    Recorded,
}

impl Watch {
    /// A watch over what changes from now on. Compared is what the one says that is followed, of these that can be, in
    /// order of preference; at least one.
    pub fn new(
        checker: Checker,
        upstreams: Vec<Peer>,
        status: Arc<Status>,
        settings: WatchSettings,
    ) -> Watch {
        Watch {
            read_up_to: status.sequence(),
            checker,
            followed: status.upstreams().followed(),
            upstreams,
            status,
            settings,
            changed: VecDeque::new(),
            waiting: AHashSet::new(),
            again: VecDeque::new(),
            recorded: VecDeque::new(),
            recheck_at: Instant::now(),
            rechecked: 0,
            of_export: VecDeque::new(),
            sampled: Did::from_bytes(rand::random()),
            count: 0,
        }
    }

    /// Watches until `shutdown`. A crash loses what was waiting: the sample gets to it.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let Some(interval) = Duration::from_secs(60).checked_div(self.settings.per_minute) else {
            return;
        };
        let mut next = Instant::now();
        loop {
            let turn = async {
                sleep_until(next).await;
                self.turn().await
            };
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = turn => outcome,
            };
            next = Instant::now()
                + match outcome {
                    Ok(true) => interval,
                    Ok(false) => interval.max(LOOK),
                    Err(error) => {
                        counter!("plc_audit_failures_total").increment(1);
                        tracing::debug!("cannot compare with the upstream: {error}");
                        self.settings.pause
                    }
                };
        }
    }

    /// Compares one identity, if there is one to be compared.
    async fn turn(&mut self) -> Result<bool, CheckError> {
        // While catching up everything is new, and the upstream's requests are needed for pages.
        if self.status.mode() != Mode::Live {
            let ahead = self.status.sequence() - self.read_up_to;
            // What comes in after an interruption waits like everything else that changes.
            if !self.status.caught_up() || ahead > MAX_WAITING as i64 {
                self.read_up_to = self.status.sequence();
            }
            return Ok(false);
        }
        let followed = self.status.upstreams().followed().min(self.upstreams.len() - 1);
        if followed != self.followed {
            // What was found at another one is not confirmed by this one.
            self.followed = followed;
            (self.again, self.recorded, self.of_export) = Default::default();
            self.rechecked = 0;
        }
        // The cursor was put back.
        self.read_up_to = self.read_up_to.min(self.status.sequence());
        self.read_changes().await?;
        self.read_recorded().await?;
        self.count += 1;
        if self.count.is_multiple_of(EXPORT_SHARE)
            && let Some(record) = self.of_export.pop_front()
        {
            self.recheck_export(&record).await?;
            return Ok(true);
        }
        let Some(chosen) = self.choose().await? else { return Ok(false) };
        let did = chosen.did;
        // By chance: what comes by regularly must not always have the same identity in its turn.
        let depth = match chosen.before.is_some() || rand::random_ratio(1, EVERYTHING_SHARE) {
            true => Depth::Everything,
            false => Depth::Log,
        };
        let found = match self.checker.check(self.upstream(), did, depth, settled()).await {
            Ok(found) => found,
            Err(CheckError::Peer(PeerError::NotALog { did, source })) => {
                counter!("plc_audit_failures_total").increment(1);
                tracing::warn!(%did, "the upstream's answer cannot be compared: {source}");
                return Ok(true);
            }
            Err(error) => {
                self.try_again(chosen, &error);
                return Err(error);
            }
        };
        counter!("plc_audit_comparisons_total").increment(1);
        self.conclude(found, chosen.before).await?;
        Ok(true)
    }

    fn upstream(&self) -> &Peer {
        &self.upstreams[self.followed]
    }

    /// Records what was found twice; what was found once, or could not be told yet, is looked at
    /// again.
    async fn conclude(
        &mut self,
        found: CheckedIdentity,
        before: Option<Vec<DifferenceName>>,
    ) -> Result<(), StoreError> {
        let differences = &found.comparison.differences;
        let seen: Vec<DifferenceName> = differences
            .iter()
            .map(|difference| (difference.kind.name().to_owned(), difference.subject.clone()))
            .collect();
        let again = match &before {
            _ if seen.is_empty() => found.comparison.set_aside > 0,
            Some(before) => !seen.iter().all(|now| before.contains(now)),
            None => true,
        };
        if !again || seen.is_empty() {
            self.checker.note(&self.upstream().name(), &found).await?;
        }
        if again {
            let wait = if seen.is_empty() { self.settings.later } else { self.settings.confirm };
            let before = (!seen.is_empty()).then_some(seen);
            self.look_again(Chosen { did: found.did, before, failures: 0 }, wait);
        }
        Ok(())
    }

    /// The others have their turns while one identity is not answered for, and in the end it is
    /// left to the sample.
    fn try_again(&mut self, chosen: Chosen, error: &CheckError) {
        let failures = chosen.failures + 1;
        if failures == ATTEMPTS {
            tracing::warn!(did = %chosen.did, "cannot be compared with the upstream: {error}");
            return;
        }
        self.look_again(
            Chosen { failures, ..chosen },
            self.settings.pause * 2u32.pow(failures - 1),
        );
    }

    fn look_again(&mut self, chosen: Chosen, wait: Duration) {
        // What finds no room is left to the sample.
        if self.again.len() < MAX_AGAIN {
            let at = Instant::now() + wait;
            let place = self.again.partition_point(|other| other.at <= at);
            self.again.insert(place, Again { at, chosen });
        }
    }

    /// Queues what was committed since the last look.
    async fn read_changes(&mut self) -> Result<(), StoreError> {
        let due = Instant::now() + self.settings.later;
        while self.read_up_to < self.status.sequence() {
            let new = self.checker.store.export_by_sequence(self.read_up_to, READ).await?;
            let Some(last) = new.last().and_then(|operation| operation.sequence) else { break };
            self.read_up_to = last;
            for operation in new {
                if self.waiting.len() < MAX_WAITING && self.waiting.insert(operation.did) {
                    self.changed.push_back((due, operation.did));
                }
            }
        }
        gauge!("plc_audit_waiting").set(self.waiting.len() as f64);
        Ok(())
    }

    /// Queues what is on record as different, now and then: it may be gone. What was queued before
    /// has its turn first, however long that takes.
    async fn read_recorded(&mut self) -> Result<(), StoreError> {
        let queued = !self.recorded.is_empty() || !self.of_export.is_empty();
        if queued || Instant::now() < self.recheck_at {
            return Ok(());
        }
        self.recheck_at = Instant::now() + self.settings.recheck;
        let name = self.upstream().name();
        let store = &self.checker.store;
        let mut open = store.divergences(None, None, Some(true), self.rechecked, RECHECKED).await?;
        let last = open.last().map(|record| record.id);
        // Behind the last one, the first one is next.
        self.rechecked = last.filter(|_| open.len() == RECHECKED).unwrap_or(0);
        open.retain(|record| record.divergence.source == name);
        let (of_export, others): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|record| is_of_export(&record.divergence.kind));
        self.of_export.extend(of_export);
        let mut recorded: BTreeMap<Did, Vec<DifferenceName>> = BTreeMap::new();
        for NewDivergence { did, kind, subject, .. } in
            others.into_iter().map(|record| record.divergence)
        {
            if let Ok(did) = did.parse() {
                recorded.entry(did).or_default().push((kind, subject));
            }
        }
        recorded.retain(|did, _| self.again.iter().all(|other| other.chosen.did != *did));
        self.recorded.extend(
            recorded
                .into_iter()
                .map(|(did, recorded)| Chosen { before: Some(recorded), ..Chosen::new(did) }),
        );
        Ok(())
    }

    /// Asks again for what the upstream stated on its export, and closes the record when it does
    /// not contradict us any more.
    async fn recheck_export(&self, record: &StoredDivergence) -> Result<(), CheckError> {
        let divergence = &record.divergence;
        match is_still_stated(divergence, &self.checker.store, self.upstream()).await? {
            true => {
                let seen = std::slice::from_ref(divergence);
                self.checker.note_seen(&divergence.source, &divergence.did, &[], seen).await?;
            }
            false => self.checker.close(record).await?,
        }
        Ok(())
    }

    /// What to compare now: what changed, what waits for another look, or the sample's next.
    async fn choose(&mut self) -> Result<Option<Chosen>, StoreError> {
        let turn = TURNS[(self.count % TURNS.len() as u64) as usize];
        let chosen = turn.iter().find_map(|waiting| self.take_due(*waiting));
        match chosen {
            Some(chosen) => Ok(Some(chosen)),
            None => Ok(self.next_of_sample().await?.map(Chosen::new)),
        }
    }

    /// What has waited long enough in one of the queues.
    fn take_due(&mut self, waiting: Queue) -> Option<Chosen> {
        let now = Instant::now();
        match waiting {
            Queue::Again => {
                self.again.pop_front_if(|again| again.at <= now).map(|again| again.chosen)
            }
            Queue::Recorded => self.recorded.pop_front(),
            Queue::Changed => {
                let (_, did) = self.changed.pop_front_if(|(at, _)| *at <= now)?;
                self.waiting.remove(&did);
                Some(Chosen::new(did))
            }
        }
    }

    /// The next identity of the sample; none while there is none at all.
    async fn next_of_sample(&mut self) -> Result<Option<Did>, StoreError> {
        let store = &self.checker.store;
        let next = match store.next_identity(Some(self.sampled)).await? {
            None => store.next_identity(None).await?,
            next => next,
        };
        self.sampled = next.unwrap_or(self.sampled);
        Ok(next)
    }
}
