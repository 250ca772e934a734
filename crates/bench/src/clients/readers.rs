//! Clients of the stream that stay, of which some read slowly: each has every operation, none twice, in order, over
//! however many connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::failures::Failures;
use crate::socket::Client;

/// Milliseconds for which a slow client reads.
const READS: std::ops::Range<u64> = 1_000..5_000;
/// Milliseconds for which it then does not read: less than the 20 s after which the server may send it away.
const PAUSES: std::ops::Range<u64> = 2_000..15_000;
/// The same of one that is to be sent away: more than those, and what the system holds for it.
const STALLS: std::ops::Range<u64> = 60_000..120_000;
/// Before a client comes back.
const AWAY: Duration = Duration::from_secs(1);
/// How long the last operation may take to reach the last of them: one that stalls may have two minutes of the log to
/// catch up with.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// At once.
    Steady,
    /// With pauses, which it must be allowed.
    Pausing,
    /// With such long pauses that it is sent away, and comes back with its cursor.
    Stalling,
    /// At once; who serves it may go away, and it comes back with its cursor.
    Returning,
}

/// How many read in which way.
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    /// At once, from somebody who stays.
    pub steady: u64,
    /// Slowly; half of them so slowly that they are sent away.
    pub slow: u64,
    /// At once, from somebody who may go away.
    pub returning: u64,
}

impl Clients {
    /// Of each one how it reads. A slow one's number is even where it is let stay.
    fn habits(self) -> impl Iterator<Item = Habit> {
        let slow = (0..self.slow).map(|number| match number % 2 {
            0 => Habit::Pausing,
            _ => Habit::Stalling,
        });
        let steady = (0..self.steady).map(|_| Habit::Steady);
        slow.chain(steady).chain((0..self.returning).map(|_| Habit::Returning))
    }
}

impl Habit {
    fn is_slow(self) -> bool {
        matches!(self, Habit::Pausing | Habit::Stalling)
    }
}

/// All of them.
pub struct Readers {
    /// How far each of those that read at once is.
    steady: Vec<Arc<AtomicU64>>,
    returned: Arc<AtomicU64>,
    failures: Arc<Failures>,
    /// The last operation, once it is known.
    end: watch::Sender<Option<u64>>,
    clients: JoinSet<()>,
}

impl Readers {
    /// Joins the stream after an operation.
    pub async fn start(
        server: SocketAddr,
        clients: Clients,
        after: u64,
        failures: &Arc<Failures>,
    ) -> anyhow::Result<Readers> {
        let mut readers = Readers {
            steady: Vec::new(),
            returned: Arc::default(),
            failures: Arc::clone(failures),
            end: watch::Sender::new(None),
            clients: JoinSet::new(),
        };
        for (number, habit) in (0..).zip(clients.habits()) {
            let position = Arc::new(AtomicU64::new(after));
            if !habit.is_slow() {
                readers.steady.push(Arc::clone(&position));
            }
            let reader = Reader {
                server,
                habit,
                position,
                random: ChaCha8Rng::seed_from_u64(number),
                returned: Arc::clone(&readers.returned),
                failures: Arc::clone(failures),
                end: readers.end.subscribe(),
            };
            // One after the other: no more come at once than the system lets wait.
            let client = reader.connect().await?;
            readers.clients.spawn(reader.run(client));
        }
        ensure!(!readers.steady.is_empty(), "no client of the stream reads at once");
        Ok(readers)
    }

    /// An operation that is held, and all before it: one that reads at once has had them.
    pub fn held(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.steady[0])
    }

    /// How far the last of those is that read at once.
    pub fn slowest(&self) -> u64 {
        self.positions().min().unwrap_or(0)
    }

    /// How far each of those is that read at once.
    pub fn positions(&self) -> impl Iterator<Item = u64> {
        self.steady.iter().map(|position| position.load(Ordering::Relaxed))
    }

    /// How often one came back that was sent away, as it must be, or whose server went away.
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Waits until all of them have had the last operation, and so every one.
    pub async fn end(mut self, last: u64) {
        self.end.send_replace(Some(last));
        let deadline = Instant::now() + PATIENCE;
        let clients = self.clients.len();
        let mut ended = 0;
        while let Ok(Some(client)) = timeout_at(deadline, self.clients.join_next()).await {
            ended += usize::from(client.is_ok());
        }
        if ended < clients {
            let lacking = clients - ended;
            self.failures.add(format!("{lacking} readers do not get to the last operation"));
        }
    }
}

/// One of them.
struct Reader {
    server: SocketAddr,
    habit: Habit,
    /// The last operation that it had.
    position: Arc<AtomicU64>,
    random: ChaCha8Rng,
    returned: Arc<AtomicU64>,
    failures: Arc<Failures>,
    end: watch::Receiver<Option<u64>>,
}

impl Reader {
    async fn connect(&self) -> anyhow::Result<Client> {
        let cursor = self.position();
        match self.habit {
            // What the system holds for one that pauses makes up for the pause, on a busy machine too.
            Habit::Steady | Habit::Pausing | Habit::Returning => {
                Client::connect(self.server, Some(cursor)).await
            }
            Habit::Stalling => Client::connect_slow(self.server, cursor).await,
        }
    }

    fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    async fn run(mut self, client: Client) {
        let mut connected = Ok(client);
        loop {
            let followed = match connected {
                Ok(client) => self.follow(client).await,
                Err(error) => Err(error),
            };
            let Err(error) = followed else { return };
            match self.habit {
                Habit::Stalling | Habit::Returning => {
                    self.returned.fetch_add(1, Ordering::Relaxed);
                }
                habit => self.failures.add(format!("a reader ({habit:?}): {error:#}")),
            }
            sleep(AWAY).await;
            connected = self.connect().await;
        }
    }

    /// Reads until it has had the last operation.
    async fn follow(&mut self, mut client: Client) -> anyhow::Result<()> {
        let mut end = self.end.clone();
        let mut stops_at = self.moment(READS);
        loop {
            let position = self.position();
            tokio::select! {
                biased;
                sequence = client.next() => self.take(sequence?)?,
                _ = end.wait_for(|end| end.is_some_and(|last| last <= position)) => return Ok(()),
            }
            if self.habit.is_slow() && Instant::now() >= stops_at {
                self.rest().await;
                stops_at = self.moment(READS);
            }
        }
    }

    fn take(&self, sequence: u64) -> anyhow::Result<()> {
        let expected = self.position() + 1;
        if sequence != expected {
            let habit = self.habit;
            self.failures.add(format!("a reader ({habit:?}) got {sequence}, not {expected}"));
            anyhow::bail!("got {sequence} instead of {expected}");
        }
        self.position.store(sequence, Ordering::Relaxed);
        Ok(())
    }

    /// Does not read for a while, unless the end has come.
    async fn rest(&mut self) {
        let until = self.moment(match self.habit {
            Habit::Stalling => STALLS,
            _ => PAUSES,
        });
        // That the time is over is no error, nor that all of it is.
        let _ = timeout_at(until, self.end.wait_for(Option::is_some)).await;
    }

    fn moment(&mut self, milliseconds: std::ops::Range<u64>) -> Instant {
        Instant::now() + Duration::from_millis(self.random.random_range(milliseconds))
    }
}
