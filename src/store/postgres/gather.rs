//! Gathers lookups that come at the same time into one query.
//!
//! Asking for many identities in one query costs the server a fraction of asking for each (no
//! message, plan or snapshot for each). Nothing waits for company: a lookup that finds a
//! connection idle goes alone, and those that come while it is under way go together next.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::store::StoreError;
use did_plc::Did;

/// Lookups in one query: enough to share its cost, few enough to answer within milliseconds.
const LARGEST_GATHERING: usize = 256;
/// Lookups that may wait. The answer to more is that the database does not keep up.
const LONGEST_QUEUE: usize = 16_384;

type Answer<T> = oneshot::Sender<Result<Result<T, StoreError>, Panicked>>;

/// The task that was asking panicked: a bug, and none that passes.
struct Panicked;

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
        match answered.await {
            Ok(Ok(answer)) => answer,
            // Nobody waits out a bug as if the database were away.
            Ok(Err(Panicked)) => panic!("a lookup panicked"),
            Err(_) => Err(StoreError::Unavailable("it is being closed".to_owned())),
        }
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
        // The task goes on with the next ones: nothing of the question is kept.
        let asked = AssertUnwindSafe(asker.ask(&dids)).catch_unwind().await;
        asking.fetch_sub(1, Ordering::Relaxed);
        match asked {
            Ok(Ok(answers)) => {
                for ((_, waiting), answer) in gathered.drain(..).zip(answers) {
                    // It fails when the client has gone: nobody to tell.
                    let _ = waiting.send(Ok(answer));
                }
            }
            Ok(Err(error)) => {
                for (_, waiting) in gathered.drain(..) {
                    let _ = waiting.send(Ok(Err(error.clone())));
                }
            }
            Err(_) => {
                for (_, waiting) in gathered.drain(..) {
                    let _ = waiting.send(Err(Panicked));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics when it is first asked.
    struct Faulty {
        asked: bool,
    }

    impl Ask for Faulty {
        type Answer = Did;

        async fn ask(&mut self, dids: &[Did]) -> Result<Vec<Result<Did, StoreError>>, StoreError> {
            assert!(std::mem::replace(&mut self.asked, true), "a bug");
            Ok(dids.iter().map(|did| Ok(*did)).collect())
        }
    }

    #[tokio::test]
    async fn a_panic_is_that_of_who_waits_and_the_next_are_answered() {
        let gatherer = Arc::new(Gatherer::start(vec![Faulty { asked: false }]));
        let did = Did::from_bytes([7; 15]);
        let first = Arc::clone(&gatherer);
        let asked = tokio::spawn(async move { first.lookup(did).await });
        assert!(asked.await.unwrap_err().is_panic());
        assert_eq!(gatherer.lookup(did).await.unwrap(), did);
        assert_eq!(gatherer.asking(), 0);
    }
}
