//! Read-through: what is not here, or must be fresh, is fetched from the upstream, verified in
//! full and answered; it is never stored, since it has no sequence number yet. Of several upstreams the one that is
//! followed is asked, and the next that is well where that does not answer; what none of them knows is asked for at
//! those that are only asked, such as the directory of a test network.
//!
//! However many clients ask for whatever they make up, the upstream sees few requests: of one
//! identity one at a time, of all [`MAX_IN_FLIGHT`], within the share of the request budget that
//! is not for following, and none for an identity that was just found not to exist.

use std::collections::HashMap;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::metrics::counter;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::live::Status;
use crate::reads::Picture;
use crate::store::StoredOperation;
use crate::upstream::ExportClient;
use did_plc::history::{History, HistoryEntry};
use did_plc::signature::Verifier;
use did_plc::{Did, Timestamp};

use crate::blocking;
use crate::metrics;

use super::error::ServeError;

/// Requests to the upstream, sent or waiting for their turn. With the usual budget a turn comes
/// every 2.4 s: more would only wait longer than a client does.
const MAX_IN_FLIGHT: usize = 4;
/// How long a client waits for the upstream, the turn in its budget included.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it is remembered that the upstream does not know an identity.
const MISS: Duration = Duration::from_secs(30);
/// Misses that are remembered: some 100 kB. The compiler sees that it is not zero.
const MAX_MISSES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const HEADER: HeaderName = HeaderName::from_static("plc-read-through");

/// What came of a question to the upstream. Cloned for all who asked it.
#[derive(Debug, Clone)]
enum Fetched {
    /// The identity's operations, all verified, and what is said of who had them.
    Known(Arc<Vec<StoredOperation>>, Outcome),
    /// The upstream does not know it.
    Unknown,
    /// The upstream's log of it does not verify.
    DoesNotVerify,
    /// The upstream cannot be asked.
    Unavailable,
    /// A bug of ours kept us from asking, or from judging what came.
    Bug,
}

type Fetching = Shared<BoxFuture<'static, Fetched>>;

/// What read-through did, for the client: the header `PLC-Read-Through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is the upstream's, verified.
    Upstream,
    /// The answer is that of another one that is asked for what the upstream does not know, verified.
    Elsewhere,
    /// The upstream does not know the identity.
    Unknown,
    /// The answer is our own, since the upstream cannot be asked.
    Unavailable,
    /// The answer is our own, since too much is being asked already.
    Limited,
    /// The answer is our own, since the upstream's does not verify.
    DoesNotVerify,
    /// The answer is our own, since the upstream's lacks what we hold.
    Behind,
    /// The answer is our own, since the upstream's states other times for what we hold.
    Restated,
}

impl Outcome {
    /// Its value in the header.
    const fn name(self) -> &'static str {
        match self {
            Outcome::Upstream => "upstream",
            Outcome::Elsewhere => "elsewhere",
            Outcome::Unknown => "unknown-upstream",
            Outcome::Unavailable => "upstream-unavailable",
            Outcome::Limited => "limited",
            Outcome::DoesNotVerify => "upstream-does-not-verify",
            Outcome::Behind => "upstream-lacks-operations",
            Outcome::Restated => "upstream-restates-times",
        }
    }

    /// States it.
    pub fn state(self, headers: &mut HeaderMap) {
        headers.insert(HEADER, HeaderValue::from_static(self.name()));
    }
}

/// Whether the client asks for an answer of the upstream: `Cache-Control: no-cache`.
pub fn wants_upstream(request: &HeaderMap) -> bool {
    let values = request.get_all(header::CACHE_CONTROL).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"))
}

/// Asks the upstream, if that is switched on. The operations, when the answer is to be made from
/// the upstream's.
///
/// # Errors
///
/// Whatever failed on our side: without it nobody can say that the identity does not exist, nor that the
/// upstream's answer does not go back behind ours.
pub async fn read(
    upstream: Option<&Arc<ReadThrough>>,
    log: &Picture<'_>,
    did: Did,
) -> Result<(Option<Outcome>, Option<Vec<StoredOperation>>), ServeError> {
    let Some(upstream) = upstream else { return Ok((None, None)) };
    let outcome = match upstream.ask(did).await {
        Err(outcome) => outcome,
        Ok(Fetched::Unknown) => Outcome::Unknown,
        Ok(Fetched::DoesNotVerify) => Outcome::DoesNotVerify,
        Ok(Fetched::Unavailable) => Outcome::Unavailable,
        Ok(Fetched::Bug) => return Err(ServeError::Bug),
        Ok(Fetched::Known(theirs, outcome)) => {
            let ours = log.history(&did).await?;
            match objection(&ours, &theirs) {
                Some(outcome) => outcome,
                None => {
                    counter!("plc_read_through_total", "outcome" => outcome.name()).increment(1);
                    return Ok((Some(outcome), Some(theirs.to_vec())));
                }
            }
        }
    };
    counter!("plc_read_through_total", "outcome" => outcome.name()).increment(1);
    Ok((Some(outcome), None))
}

/// Why what the upstream says is not to be answered: an answer must not go back behind what was
/// answered before, nor tell otherwise, under the same entity tag, what was told before.
fn objection(ours: &[StoredOperation], theirs: &[StoredOperation]) -> Option<Outcome> {
    ours.iter().find_map(|held| match theirs.iter().find(|of| of.signed == held.signed) {
        None => Some(Outcome::Behind),
        Some(of) => (of.created_at != held.created_at).then_some(Outcome::Restated),
    })
}

/// Asks upstreams for single identities.
pub struct ReadThrough {
    /// In order of preference.
    upstreams: Vec<ExportClient>,
    /// How it stands with them.
    status: Arc<Status>,
    /// Those that are asked for what an upstream does not know, in turn.
    elsewhere: Vec<ExportClient>,
    verifier: Arc<dyn Verifier>,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    in_flight: HashMap<Did, Fetching>,
    misses: LruCache<Did, Instant>,
}

impl ReadThrough {
    /// Asks these upstreams, of which the status says how it stands with them, and others for what they do not know:
    /// each within its budget.
    pub fn new(
        upstreams: &[ExportClient],
        elsewhere: &[ExportClient],
        status: Arc<Status>,
        verifier: Arc<dyn Verifier>,
    ) -> ReadThrough {
        let of =
            |clients: &[ExportClient]| clients.iter().map(ExportClient::for_read_through).collect();
        ReadThrough {
            upstreams: of(upstreams),
            status,
            elsewhere: of(elsewhere),
            verifier,
            places: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            state: Mutex::new(State {
                in_flight: HashMap::new(),
                misses: LruCache::new(MAX_MISSES),
            }),
        }
    }

    /// Forgets what the upstream was found to know of this identity, and has nobody join a question that was
    /// asked before now: it has changed.
    pub fn forget(&self, did: &Did) {
        let mut state = self.state();
        state.misses.pop(did);
        state.in_flight.remove(did);
    }

    async fn ask(self: &Arc<Self>, did: Did) -> Result<Fetched, Outcome> {
        let fetching = match self.begin(did)? {
            Ok(fetching) => fetching,
            Err(known) => return Ok(known),
        };
        timeout(PATIENCE, fetching).await.map_err(|_| Outcome::Unavailable)
    }

    /// Joins the question that is being asked, or begins one; or what is known without asking.
    fn begin(self: &Arc<Self>, did: Did) -> Result<Result<Fetching, Fetched>, Outcome> {
        let mut state = self.state();
        if let Some(until) = state.misses.get(&did) {
            if *until > Instant::now() {
                metrics::cache("unknown-identities", 1, 0);
                return Ok(Err(Fetched::Unknown));
            }
            state.misses.pop(&did);
        }
        metrics::cache("unknown-identities", 0, 1);
        if let Some(fetching) = state.in_flight.get(&did) {
            return Ok(Ok(fetching.clone()));
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Outcome::Limited)?;
        let of = Arc::clone(self);
        // A task of its own: it goes on for the others when the one who began it has gone.
        let task = tokio::spawn(async move {
            let asking = InFlight { of, did, _place: place };
            let fetching = asking.of.fetch(did);
            let fetched = timeout(PATIENCE, fetching).await.unwrap_or(Fetched::Unavailable);
            if matches!(fetched, Fetched::Unknown) {
                asking.of.state().misses.put(did, Instant::now() + MISS);
            }
            fetched
        });
        let done = task.map(move |done| {
            done.unwrap_or_else(|bug| {
                tracing::error!(%did, %bug, "reading through failed");
                Fetched::Bug
            })
        });
        let fetching = done.boxed().shared();
        state.in_flight.insert(did, fetching.clone());
        Ok(Ok(fetching))
    }

    /// Asks one after the other. Who does not know the identity has answered; who is away, or whose log of it does not
    /// verify, leaves it to the next one.
    async fn fetch(&self, did: Did) -> Fetched {
        let mut fetched = Fetched::Unavailable;
        for place in self.status.upstreams().to_ask() {
            let Some(upstream) = self.upstreams.get(place) else { continue };
            fetched = self.fetch_from(upstream, did, Outcome::Upstream).await;
            if matches!(fetched, Fetched::Known(..) | Fetched::Unknown) {
                break;
            }
        }
        if matches!(fetched, Fetched::Known(..)) {
            return fetched;
        }
        for other in &self.elsewhere {
            match self.fetch_from(other, did, Outcome::Elsewhere).await {
                known @ Fetched::Known(..) => return known,
                // Whether it knows it cannot be told.
                Fetched::Unavailable => fetched = Fetched::Unavailable,
                _ => {}
            }
        }
        fetched
    }

    async fn fetch_from(&self, upstream: &ExportClient, did: Did, outcome: Outcome) -> Fetched {
        let unavailable = |error: &dyn Display| {
            tracing::debug!(%did, %error, "cannot be read through");
            Fetched::Unavailable
        };
        let log = match upstream.audit_log(&did).await {
            Ok(Some(log)) => log,
            Ok(None) => return Fetched::Unknown,
            Err(error) => return unavailable(&error),
        };
        let verifier = Arc::clone(&self.verifier);
        let judged = move || History::of_audit_log(did, &log, &*verifier);
        match blocking::run("judging an audit log", judged).await {
            Ok(history) if history.is_empty() => Fetched::Unknown,
            Ok(history) => match operations(&history) {
                Some(operations) => Fetched::Known(Arc::new(operations), outcome),
                None => Fetched::DoesNotVerify,
            },
            Err(error) => unavailable(&error),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in this module can panic between two changes of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that is being asked: it is over when this is dropped, by a panic too.
struct InFlight {
    of: Arc<ReadThrough>,
    did: Did,
    _place: OwnedSemaphorePermit,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.of.state().in_flight.remove(&self.did);
    }
}

/// A verified history as if it were stored, without number and time of receipt; none unless all
/// of it is in order.
fn operations(history: &History) -> Option<Vec<StoredOperation>> {
    if !history.is_clean() {
        return None;
    }
    let created_at = |index: usize| history.entries[index].received.created_at;
    let stored = |entry: &HistoryEntry| {
        Some(StoredOperation {
            did: history.did,
            created_at: entry.received.created_at,
            sequence: None,
            signed: entry.received.signed.clone(),
            signer: entry.signer()?,
            nullified_by: entry.nullified_by.map(created_at),
            received_at: Timestamp::from_millis(0),
        })
    };
    history.entries.iter().map(stored).collect()
}
