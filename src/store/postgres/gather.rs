//! Gathers lookups that come at the same time into one query.
//!
//! Asking for many identities in one query costs the server a fraction of asking for each (no
//! message, plan or snapshot for each). Nothing waits for company: a lookup that finds a
//! connection idle goes alone, and those that come while it is under way go together next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::store::StoreError;
use did_plc::Did;

/// Lookups in one query: enough to share its cost, few enough to answer within milliseconds.
const LARGEST_GATHERING: usize = 256;
/// Lookups that may wait. The answer to more is that the database does not keep up.
const LONGEST_QUEUE: usize = 16_384;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What waits, for whichever task is idle.
type Waiting<T> = Arc<Mutex<mpsc::Receiver<(Did, Answer<T>)>>>;

/// Asks one question about many identities in one query.
pub(super) trait Ask: Send + 'static {
    type Answer: Send + 'static;

    /// An answer for each of `dids`, in their order.
    fn ask(
        &mut self,
        dids: &[Did],
    ) -> impl Future<Output = Result<Vec<Result<Self::Answer, StoreError>>, StoreError>> + Send;
}

/// The queue of one kind of lookup.
pub(super) struct Gatherer<T> {
    queue: mpsc::Sender<(Did, Answer<T>)>,
    /// Tasks whose query is under way.
    asking: Arc<AtomicUsize>,
}

impl<T: Send + 'static> Gatherer<T> {
    /// Starts a task for each of `askers`; each asks one query at a time. They end when the
    /// gatherer is dropped.
    pub(super) fn start<A: Ask<Answer = T>>(askers: Vec<A>) -> Gatherer<T> {
        let (queue, lookups) = mpsc::channel(LONGEST_QUEUE);
        let lookups = Arc::new(Mutex::new(lookups));
        let asking = Arc::new(AtomicUsize::new(0));
        for asker in askers {
            tokio::spawn(serve(asker, lookups.clone(), asking.clone()));
        }
        Gatherer { queue, asking }
    }

    /// Queries that are under way.
    pub(super) fn asking(&self) -> usize {
        self.asking.load(Ordering::Relaxed)
    }

    /// Lookups that no task has taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    pub(super) async fn lookup(&self, did: Did) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send((did, answer)).map_err(|error| {
            StoreError::Unavailable(match error {
                mpsc::error::TrySendError::Full(_) => {
                    format!("{LONGEST_QUEUE} lookups are waiting already")
                }
                mpsc::error::TrySendError::Closed(_) => "it is being closed".to_owned(),
            })
        })?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("a lookup failed".into())))
    }
}

/// Takes what waits, asks, answers.
async fn serve<A: Ask>(mut asker: A, lookups: Waiting<A::Answer>, asking: Arc<AtomicUsize>) {
    let mut gathered = Vec::with_capacity(LARGEST_GATHERING);
    loop {
        // Held only while there is nothing to do: whichever task is idle takes what comes.
        if lookups.lock().await.recv_many(&mut gathered, LARGEST_GATHERING).await == 0 {
            return;
        }
        // Clients that went away while they waited are not worth a query.
        gathered.retain(|(_, answer)| !answer.is_closed());
        let dids: Vec<Did> = gathered.iter().map(|(did, _)| *did).collect();
        if dids.is_empty() {
            continue;
        }
        asking.fetch_add(1, Ordering::Relaxed);
        let asked = asker.ask(&dids).await;
        asking.fetch_sub(1, Ordering::Relaxed);
        match asked {
            Ok(answers) => {
                for ((_, waiting), answer) in gathered.drain(..).zip(answers) {
                    // It fails when the client has gone: nobody to tell.
                    let _ = waiting.send(answer);
                }
            }
            Err(error) => {
                for (_, waiting) in gathered.drain(..) {
                    let _ = waiting.send(Err(error.clone()));
                }
            }
        }
    }
}
