//! The upstream that is followed: pages read straight from the log's file, and a stream of what
//! is added to it. Costs a hundredth of what the follower needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use did_plc::Timestamp;
use did_plc::entry::Entry;
use http::{StatusCode, header};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::log::Log;

/// Lines of a page at most, as the directory has it.
const PAGE: u64 = 1_000;
/// Lines that a stream reads at once while it catches up.
const STREAM_PAGE: u64 = 500;
/// Between two looks at how much should have been added: operations come in twos and threes when
/// more than 500 are added in a second.
const TICK: Duration = Duration::from_millis(2);

/// Serve a generated log as a directory does: pages and stream.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The log.
    #[arg(long)]
    log: PathBuf,
    /// Address and port to serve on.
    #[arg(long, default_value = "127.0.0.1:2583")]
    listen: SocketAddr,
    /// How many operations of the log there are at first; all by default.
    #[arg(long)]
    operations: Option<u64>,
    /// Operations that are added each second, until the log ends.
    #[arg(long, default_value_t = 0)]
    live_rate: u32,
}

/// Runs the command, until it is killed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = Log::open(&args.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let upstream = Upstream::new(log, args.operations);
        let serving = tokio::spawn(upstream.clone().serve(args.listen));
        if args.live_rate > 0 {
            upstream.grow(args.live_rate, u64::MAX, |_| {}).await;
        }
        serving.await?
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A log of which only the beginning has happened yet.
#[derive(Clone)]
pub struct Upstream {
    log: Arc<Log>,
    /// When its operations happen; none where all of them have, which keep the times of the log.
    times: Option<Arc<Times>>,
    /// The last sequence number that there is.
    present: Arc<watch::Sender<u64>>,
}

/// A number of a query; nobody sends this upstream anything else.
fn parameter(query: Option<&str>, name: &str) -> Option<u64> {
    let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(key, _)| key == name)?.1.parse().ok()
}

impl Upstream {
    /// An upstream that has so many operations of the log; all when it is not said.
    pub fn new(log: Log, operations: Option<u64>) -> Upstream {
        let operations = operations.unwrap_or(u64::MAX).min(log.operations());
        let times = Times::after(&log, operations).map(Arc::new);
        let present = Arc::new(watch::Sender::new(operations));
        Upstream { log: Arc::new(log), times, present }
    }

    /// Lines of the log after a number up to another one, as they are now.
    fn lines(&self, after: u64, to: u64) -> std::io::Result<String> {
        let lines = String::from_utf8(self.log.lines(after, to)?).map_err(std::io::Error::other)?;
        let Some(times) = &self.times else { return Ok(lines) };
        let dated = lines.lines().zip(after + 1..).map(|(line, number)| times.date(line, number));
        let dated: Option<String> = dated.map(|line| Some(line? + "\n")).collect();
        dated.ok_or_else(|| std::io::Error::other("a line that is not of a log"))
    }

    /// The last sequence number that there is.
    pub fn present(&self) -> u64 {
        *self.present.borrow()
    }

    /// How many operations there are to come to.
    pub fn operations(&self) -> u64 {
        self.log.operations()
    }

    /// Serves until the process ends.
    pub async fn serve(self, address: SocketAddr) -> anyhow::Result<()> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("{address}: cannot listen there"))?;
        let router = Router::new()
            .route("/export", get(export))
            .route("/export/stream", get(stream))
            // Whom a replica does not know, it does not know either.
            .fallback(async || StatusCode::NOT_FOUND)
            .with_state(self);
        Ok(axum::serve(listener, router).await?)
    }

    /// Adds operations at an even rate, until so many are added or the log ends. `added` is
    /// called with each one's number just before it is there.
    pub async fn grow(&self, rate: u32, most: u64, added: impl Fn(u64)) {
        let begun = Instant::now();
        if let Some(times) = &self.times {
            times.grows.get_or_init(|| (Timestamp::from(SystemTime::now()), rate));
        }
        let first = *self.present.borrow();
        let last = self.log.operations().min(first.saturating_add(most));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut present = first;
        while present < last {
            ticks.tick().await;
            let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            while present < last.min(first + due) {
                present += 1;
                added(present);
                self.present.send_replace(present);
            }
        }
    }

    /// Messages of the stream for the lines after one number up to another.
    fn messages(&self, after: u64, to: u64) -> Option<Vec<Utf8Bytes>> {
        let lines = self.lines(after, to).ok()?;
        lines.lines().map(|line| message(line).map(Utf8Bytes::from)).collect()
    }
}

/// When operations happen of which some are still to come: those that are there have ended just now, at the pace of the
/// log, and the others come as they do. A replica would put on record that old ones come live.
struct Times {
    /// How many are there at first.
    operations: u64,
    /// How much later than in the log those have happened.
    later: Duration,
    /// Since when others come, and how many in a second.
    grows: OnceLock<(Timestamp, u32)>,
}

impl Times {
    /// None where nothing is to come.
    fn after(log: &Log, operations: u64) -> Option<Times> {
        if operations == log.operations() {
            return None;
        }
        let last = log.lines(operations.checked_sub(1)?, operations).ok()?;
        let last = String::from_utf8(last).ok()?;
        let last: Timestamp = Entry::read(last.trim_end()).ok()?.created_at.parse().ok()?;
        let now = Timestamp::from(SystemTime::now());
        let later = Duration::from_millis(u64::try_from(now.millis() - last.millis()).ok()?);
        Some(Times { operations, later, grows: OnceLock::new() })
    }

    /// A line of the log with the time at which its operation happens.
    fn date(&self, line: &str, number: u64) -> Option<String> {
        let stated = Entry::read(line).ok()?.created_at;
        let at = match number.checked_sub(self.operations).filter(|more| *more > 0) {
            None => stated.parse::<Timestamp>().ok()? + self.later,
            Some(more) => {
                let (since, rate) = self.grows.get()?;
                *since + Duration::from_secs(more) / *rate
            }
        };
        Some(line.replace(&*stated, &at.to_string()))
    }
}

/// A line of the export as a message of the stream.
fn message(line: &str) -> Option<String> {
    let entry = Entry::read(line).ok()?;
    Some(format!(
        r#"{{"seq":{},"type":"sequenced_op","did":"{}","operation":{},"cid":"{}","createdAt":"{}"}}"#,
        entry.seq?,
        entry.did,
        entry.operation(),
        entry.cid,
        entry.created_at
    ))
}

async fn export(State(upstream): State<Upstream>, RawQuery(query): RawQuery) -> Response {
    let present = *upstream.present.borrow();
    let after = parameter(query.as_deref(), "after").unwrap_or(0).min(present);
    let count = parameter(query.as_deref(), "count").unwrap_or(PAGE).min(PAGE);
    match upstream.lines(after, present.min(after + count)) {
        Ok(mut lines) => {
            // Lines are joined by newlines, not ended by them.
            lines.pop();
            ([(header::CONTENT_TYPE, "application/jsonlines")], lines).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn stream(
    State(upstream): State<Upstream>,
    RawQuery(query): RawQuery,
    upgrade: WebSocketUpgrade,
) -> Response {
    let mut present = upstream.present.subscribe();
    let cursor = parameter(query.as_deref(), "cursor");
    let mut sent = cursor.unwrap_or(*present.borrow_and_update());
    upgrade.on_upgrade(move |mut socket| async move {
        loop {
            let now = *present.borrow_and_update();
            while sent < now {
                let to = now.min(sent + STREAM_PAGE);
                let Some(messages) = upstream.messages(sent, to) else { return };
                if send(&mut socket, messages).await.is_err() {
                    return;
                }
                sent = to;
            }
            tokio::select! {
                changed = present.changed() => if changed.is_err() { return },
                received = socket.recv() => if !matches!(received, Some(Ok(_))) { return },
            }
        }
    })
}

async fn send(socket: &mut WebSocket, messages: Vec<Utf8Bytes>) -> Result<(), axum::Error> {
    for message in messages {
        socket.send(Message::Text(message)).await?;
    }
    Ok(())
}
