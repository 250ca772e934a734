//! Lookups that come by the clock: each is due at its time, whether those before it are answered or not, and its
//! latency is counted from then. A slow answer cannot hide behind the requests that it held up.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::failures::Failures;
use super::questions::{Identities, Question, Questions};
use crate::http::{self, Answer, Reader};

/// Connections that they come on: enough that none waits for another unless answers take a quarter of a second.
const CONNECTIONS: u64 = 500;
/// A request that takes longer has failed: clients of a directory do not wait for longer either.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is thought of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what must be answered.
    Right,
    /// The client is put off with 503 or 429 and `Retry-After`.
    PutOff,
    /// It lacks what it says that it has.
    Older(String),
    /// It is something else.
    Wrong(String),
}

/// Thinks something of answers.
pub trait Judge: Send + Sync + 'static {
    /// What it thinks of this one.
    fn judge(&self, question: &Question, answer: &Answer) -> Verdict;
}

/// Looks at the status alone.
pub struct ByStatus;

impl Judge for ByStatus {
    fn judge(&self, question: &Question, answer: &Answer) -> Verdict {
        if question.expected.allows(answer.status) {
            Verdict::Right
        } else if answer.puts_off() {
            Verdict::PutOff
        } else {
            Verdict::Wrong(format!("answered with {}", answer.status))
        }
    }
}

/// What was answered in some time.
#[derive(Debug, Default)]
pub struct Window {
    /// The latency of each request that was answered as it must be.
    pub microseconds: Vec<u32>,
    /// Requests that were put off.
    pub put_off: u64,
    /// Answers that lack what they say that they have.
    pub older: u64,
    /// Requests that were not answered, or not as they must be.
    pub failed: u64,
}

impl Window {
    /// Requests that were answered as they must be, or put off.
    pub fn answered(&self) -> u64 {
        self.microseconds.len() as u64 + self.put_off
    }

    /// All of them.
    pub fn asked(&self) -> u64 {
        self.answered() + self.older + self.failed
    }

    /// Adds what was answered later.
    pub fn extend(&mut self, later: Window) {
        self.microseconds.extend(later.microseconds);
        self.put_off += later.put_off;
        self.older += later.older;
        self.failed += later.failed;
    }
}

/// Clients that ask until this is dropped.
pub struct Lookups {
    window: Arc<Mutex<Window>>,
    _clients: JoinSet<()>,
}

/// When the next request is due.
struct Pace {
    begun: Instant,
    /// Requests a second.
    rate: f64,
    given: AtomicU64,
}

impl Pace {
    fn next(&self) -> Instant {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        self.begun + Duration::from_secs_f64(number as f64 / self.rate)
    }
}

impl Lookups {
    /// Asks so many times a second about what is held, of which `held` is kept up to date.
    pub fn start(
        server: SocketAddr,
        rate: u32,
        identities: &Arc<Identities>,
        held: &Arc<AtomicU64>,
        judge: Arc<dyn Judge>,
        failures: &Arc<Failures>,
    ) -> Lookups {
        let (begun, given) = (Instant::now(), AtomicU64::new(0));
        let pace = Arc::new(Pace { begun, rate: f64::from(rate), given });
        let window = Arc::new(Mutex::default());
        let mut clients = JoinSet::new();
        for seed in 0..CONNECTIONS {
            let random = ChaCha8Rng::seed_from_u64(seed);
            let client = Client {
                server,
                connection: None,
                questions: Questions { identities: Arc::clone(identities), random },
                pace: Arc::clone(&pace),
                held: Arc::clone(held),
                judge: Arc::clone(&judge),
                window: Arc::clone(&window),
                failures: Arc::clone(failures),
            };
            clients.spawn(client.run());
        }
        Lookups { window, _clients: clients }
    }

    /// What was answered since this was asked last.
    pub fn take(&self) -> Window {
        std::mem::take(&mut lock(&self.window))
    }
}

fn lock(window: &Mutex<Window>) -> MutexGuard<'_, Window> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Client {
    server: SocketAddr,
    connection: Option<(TcpStream, Reader)>,
    questions: Questions<ChaCha8Rng>,
    pace: Arc<Pace>,
    held: Arc<AtomicU64>,
    judge: Arc<dyn Judge>,
    window: Arc<Mutex<Window>>,
    failures: Arc<Failures>,
}

impl Client {
    async fn run(mut self) {
        loop {
            let due = self.pace.next();
            sleep_until(due).await;
            let question = self.questions.next(self.held.load(Ordering::Relaxed));
            match timeout(PATIENCE, self.ask(&question)).await {
                Ok(Ok(answer)) => self.answered(&question, &answer, due.elapsed()),
                Ok(Err(error)) => self.failed(&format!("{}: {error:#}", question.path)),
                Err(_) => self.failed(&format!("{}: no answer in {PATIENCE:?}", question.path)),
            }
        }
    }

    async fn ask(&mut self, question: &Question) -> anyhow::Result<Answer> {
        // Put back when it is known to be sound.
        let (mut connection, mut reader) = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(self.server).await?;
                connection.set_nodelay(true)?;
                (connection, Reader::default())
            }
        };
        connection.write_all(&http::request(self.server, &question.path)).await?;
        let answer = reader.read(&mut connection).await?;
        self.connection = Some((connection, reader));
        Ok(answer)
    }

    fn answered(&self, question: &Question, answer: &Answer, took: Duration) {
        match self.judge.judge(question, answer) {
            Verdict::Right => lock(&self.window).microseconds.push(took.as_micros() as u32),
            Verdict::PutOff => lock(&self.window).put_off += 1,
            Verdict::Older(what) => {
                lock(&self.window).older += 1;
                self.failures.add(format!("GET {}: {what}", question.path));
            }
            Verdict::Wrong(what) => self.failed(&format!("{}: {what}", question.path)),
        }
    }

    fn failed(&self, what: &str) {
        lock(&self.window).failed += 1;
        self.failures.add(format!("GET {what}"));
    }
}
