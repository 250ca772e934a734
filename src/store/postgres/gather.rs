//! Gathers lookups that come at the same time into one query.
//!
//! Asking for many identities in one query costs both sides a fraction of asking for each (no
//! message, plan or snapshot for each). A lookup that finds no query under way goes at once, with those
//! that have come with it. Those that come while it is under way go together when it is answered. Where
//! enough of them wait they go in two queries beside each other, so that the server works on one while the
//! answers to the other are read and sent here.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::time::sleep;

use crate::store::StoreError;
use did_plc::Did;

/// Lookups in one query: enough to share its cost, few enough to answer within milliseconds.
const LARGEST_GATHERING: usize = 256;
/// Lookups that may wait. The answer to more is that the database does not keep up.
const LONGEST_QUEUE: usize = 16_384;

/// Lookups that are worth a query beside another one.
const WORTH_A_QUERY: usize = 8;
/// How long fewer wait for a query that is under way: far longer than one takes that finds its pages in memory, so that
/// they go beside it only where the disk is read.
const PATIENCE: Duration = Duration::from_millis(2);

type Answer<T> = oneshot::Sender<Result<Result<T, StoreError>, Panicked>>;

/// The task that was asking panicked: a bug, and none that passes.
struct Panicked;

/// A lookup that waits.
type Lookup<T> = (Did, Answer<T>);

/// What waits, for the task that has it.
type Waiting<T> = Arc<Mutex<mpsc::Receiver<Lookup<T>>>>;

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
    queue: mpsc::Sender<Lookup<T>>,
    under_way: Arc<UnderWay>,
}

/// The queries that are under way.
#[derive(Default)]
struct UnderWay {
    /// How many they are.
    queries: AtomicUsize,
    /// So many lookups wait that they are worth another one.
    enough_wait: Notify,
}

impl UnderWay {
    /// Another one begins.
    fn begin(&self) {
        self.queries.fetch_add(1, Ordering::Relaxed);
    }

    /// One is answered.
    fn end(&self) {
        self.queries.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many lookups are waiting.
    fn see_waiting(&self, lookups: usize) {
        if lookups >= WORTH_A_QUERY {
            self.enough_wait.notify_one();
        }
    }

    /// Ends when those that wait are to go beside what is under way.
    async fn another_is_due<T>(&self, queue: &mpsc::Receiver<Lookup<T>>) {
        let enough_wait = async {
            while queue.len() < WORTH_A_QUERY {
                self.enough_wait.notified().await;
            }
        };
        tokio::select! {
            () = enough_wait => {}
            () = sleep(PATIENCE) => {}
        }
    }
}

impl<T: Send + 'static> Gatherer<T> {
    /// Starts a task for each of `askers`; each asks one query at a time. They end when the
    /// gatherer is dropped.
    pub(super) fn start<A: Ask<Answer = T>>(askers: Vec<A>) -> Gatherer<T> {
        let (queue, lookups) = mpsc::channel(LONGEST_QUEUE);
        let lookups = Arc::new(Mutex::new(lookups));
        let under_way = Arc::new(UnderWay::default());
        for asker in askers {
            tokio::spawn(serve(asker, lookups.clone(), under_way.clone()));
        }
        Gatherer { queue, under_way }
    }

    /// Queries that are under way.
    pub(super) fn asking(&self) -> usize {
        self.under_way.queries.load(Ordering::Relaxed)
    }

    /// Lookups that no task has taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    #[expect(clippy::panic, reason = "the panic of the task that asks is that of who waits for it")]
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
        self.under_way.see_waiting(self.waiting());
        match answered.await {
            Ok(Ok(answer)) => answer,
            // Nobody waits out a bug as if the database were away.
            Ok(Err(Panicked)) => panic!("a lookup panicked"),
            Err(_) => Err(StoreError::Unavailable("it is being closed".to_owned())),
        }
    }
}

/// Takes the lookups that are to go together in the next query: all that wait, or half of them where that is enough for
/// two. There are none when the gatherer was dropped.
async fn gather<T>(queue: &mut mpsc::Receiver<Lookup<T>>, gathered: &mut Vec<Lookup<T>>) {
    let Some(first) = queue.recv().await else { return };
    // The other tasks have their turn first: requests that have arrived already are read in it, and come along. It costs
    // a lookup that is alone some microseconds.
    tokio::task::yield_now().await;
    let waiting = queue.len() + 1;
    let taken = if waiting >= 2 * WORTH_A_QUERY { waiting.div_ceil(2) } else { waiting };
    gathered.push(first);
    while gathered.len() < taken.min(LARGEST_GATHERING)
        && let Ok(lookup) = queue.try_recv()
    {
        gathered.push(lookup);
    }
}

/// Takes what waits, asks, answers. The queue is kept meanwhile, so that what comes goes together next; it is left to
/// another task once that is worth a query of its own.
async fn serve<A: Ask>(mut asker: A, lookups: Waiting<A::Answer>, under_way: Arc<UnderWay>) {
    let mut gathered = Vec::with_capacity(LARGEST_GATHERING);
    let mut kept = None;
    loop {
        let mut queue = match kept.take() {
            Some(queue) => queue,
            None => lookups.lock().await,
        };
        gather(&mut queue, &mut gathered).await;
        if gathered.is_empty() {
            return;
        }
        // Clients that went away while they waited are not worth a query.
        gathered.retain(|(_, answer)| !answer.is_closed());
        let dids: Vec<Did> = gathered.iter().map(|(did, _)| *did).collect();
        if dids.is_empty() {
            kept = Some(queue);
            continue;
        }
        under_way.begin();
        // The task goes on with the next ones: nothing of the question is kept.
        let mut asked = pin!(AssertUnwindSafe(asker.ask(&dids)).catch_unwind());
        let asked = tokio::select! {
            biased;
            asked = &mut asked => {
                kept = Some(queue);
                asked
            }
            () = under_way.another_is_due(&queue) => {
                drop(queue);
                asked.await
            }
        };
        under_way.end();
        answer(&mut gathered, asked);
    }
}

/// Tells everybody who waits what came.
fn answer<T>(
    gathered: &mut Vec<Lookup<T>>,
    asked: std::thread::Result<Result<Vec<Result<T, StoreError>>, StoreError>>,
) {
    // To tell somebody fails when the client has gone: nobody to tell.
    match asked {
        Ok(Ok(answers)) => {
            for ((_, waiting), answer) in gathered.drain(..).zip(answers) {
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

    /// Answers when it is told to, and says how many it was asked about.
    struct Slow {
        asked: mpsc::UnboundedSender<usize>,
        may_answer: Arc<tokio::sync::Semaphore>,
    }

    impl Ask for Slow {
        type Answer = Did;

        async fn ask(&mut self, dids: &[Did]) -> Result<Vec<Result<Did, StoreError>>, StoreError> {
            self.asked.send(dids.len()).unwrap();
            self.may_answer.acquire().await.unwrap().forget();
            Ok(dids.iter().map(|did| Ok(*did)).collect())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_a_query_is_under_way_goes_together() {
        let (sender, mut asked) = mpsc::unbounded_channel();
        let may_answer = Arc::new(tokio::sync::Semaphore::new(0));
        let slow = || Slow { asked: sender.clone(), may_answer: may_answer.clone() };
        let gatherer = Arc::new(Gatherer::start(vec![slow(), slow()]));
        let did = Did::from_bytes([7; 15]);
        let look_up = |count: usize| {
            let lookups = (0..count).map(|_| {
                let gatherer = Arc::clone(&gatherer);
                tokio::spawn(async move { gatherer.lookup(did).await.unwrap() })
            });
            lookups.collect::<Vec<_>>()
        };
        // Those that come together go at once, together.
        let mut lookups = look_up(3);
        assert_eq!(asked.recv().await, Some(3));
        // The next wait for it, and those that come meanwhile with them.
        lookups.extend(look_up(2));
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(asked.try_recv().is_err());
        lookups.extend(look_up(2));
        tokio::task::yield_now().await;
        may_answer.add_permits(1);
        assert_eq!(asked.recv().await, Some(4));
        // But not for one that takes its time.
        lookups.extend(look_up(5));
        let began = tokio::time::Instant::now();
        assert_eq!(asked.recv().await, Some(5));
        assert!(began.elapsed() >= PATIENCE);
        assert_eq!(gatherer.asking(), 2);
        may_answer.add_permits(2);
        for lookup in lookups {
            assert_eq!(lookup.await.unwrap(), did);
        }
        assert_eq!(gatherer.asking(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn many_go_in_two_queries_beside_each_other() {
        let (sender, mut asked) = mpsc::unbounded_channel();
        let may_answer = Arc::new(tokio::sync::Semaphore::new(0));
        let slow = || Slow { asked: sender.clone(), may_answer: may_answer.clone() };
        let gatherer = Arc::new(Gatherer::start(vec![slow(), slow()]));
        let did = Did::from_bytes([7; 15]);
        let lookups: Vec<_> = (0..2 * WORTH_A_QUERY + 1)
            .map(|_| {
                let gatherer = Arc::clone(&gatherer);
                tokio::spawn(async move { gatherer.lookup(did).await.unwrap() })
            })
            .collect();
        let began = tokio::time::Instant::now();
        assert_eq!(asked.recv().await, Some(WORTH_A_QUERY + 1));
        assert_eq!(asked.recv().await, Some(WORTH_A_QUERY));
        assert_eq!(began.elapsed(), Duration::ZERO);
        may_answer.add_permits(2);
        for lookup in lookups {
            assert_eq!(lookup.await.unwrap(), did);
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
