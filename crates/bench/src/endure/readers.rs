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
}

/// All of them.
pub struct Readers {
    /// How far each of those that read at once is.
    steady: Vec<Arc<AtomicU64>>,
    put_off: Arc<AtomicU64>,
    failures: Arc<Failures>,
    /// The last operation, once it is known.
    end: watch::Sender<Option<u64>>,
    clients: JoinSet<()>,
}

impl Readers {
    /// Joins the stream after an operation with so many clients, of which some are slow.
    pub async fn start(
        server: SocketAddr,
        clients: u64,
        slow: u64,
        after: u64,
        failures: &Arc<Failures>,
    ) -> anyhow::Result<Readers> {
        let mut readers = Readers {
            steady: Vec::new(),
            put_off: Arc::default(),
            failures: Arc::clone(failures),
            end: watch::Sender::new(None),
            clients: JoinSet::new(),
        };
        for number in 0..clients {
            let habit = match (number < slow, number % 2) {
                (false, _) => Habit::Steady,
                (true, 0) => Habit::Pausing,
                (true, _) => Habit::Stalling,
            };
            let position = Arc::new(AtomicU64::new(after));
            if habit == Habit::Steady {
                readers.steady.push(Arc::clone(&position));
            }
            let reader = Reader {
                server,
                habit,
                position,
                random: ChaCha8Rng::seed_from_u64(number),
                put_off: Arc::clone(&readers.put_off),
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
        let positions = self.steady.iter().map(|position| position.load(Ordering::Relaxed));
        positions.min().unwrap_or(0)
    }

    /// How often one that stalls was sent away.
    pub fn put_off(&self) -> u64 {
        self.put_off.load(Ordering::Relaxed)
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
    put_off: Arc<AtomicU64>,
    failures: Arc<Failures>,
    end: watch::Receiver<Option<u64>>,
}

impl Reader {
    async fn connect(&self) -> anyhow::Result<Client> {
        let cursor = self.position();
        match self.habit {
            // What the system holds for one that pauses makes up for the pause, on a busy machine too.
            Habit::Steady | Habit::Pausing => Client::connect(self.server, Some(cursor)).await,
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
                Habit::Stalling => {
                    self.put_off.fetch_add(1, Ordering::Relaxed);
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
            if self.habit != Habit::Steady && Instant::now() >= stops_at {
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
            Habit::Steady | Habit::Pausing => PAUSES,
        });
        // That the time is over is no error, nor that all of it is.
        let _ = timeout_at(until, self.end.wait_for(Option::is_some)).await;
    }

    fn moment(&mut self, milliseconds: std::ops::Range<u64>) -> Instant {
        Instant::now() + Duration::from_millis(self.random.random_range(milliseconds))
    }
}
