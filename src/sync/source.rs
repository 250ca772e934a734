//! Where batches come from: pages of the export until the present is near, then the stream, and
//! back whenever the stream says so.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::OptionFuture;
use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::batch;
use super::stated::Stated;
use crate::live::{Mode, Status};
use crate::upstream::{
    Backoff, Batch, ExportClient, Fetched, Origin, PagesAhead, Priority, Stream, UpstreamFault,
};
use did_plc::Timestamp;

/// Pause between pages where the upstream has no stream: an operation is some seconds late, and
/// the upstream is asked twelve times a minute.
const POLL: Duration = Duration::from_secs(5);
/// After this long an upstream without a stream is asked for one again.
const ASK_FOR_STREAM: Duration = Duration::from_secs(600);
/// How often a quiet stream is looked at for signs of life, which is how exactly the age of the
/// upstream's last word is known.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How often in a row an upstream has to say that our cursor is in its future, or that the last
/// operation it gave us is not there: one of several servers behind one name may be some operations
/// behind the others.
const REWINDS: u32 = 3;

/// What the source tells the follower.
#[derive(Debug)]
pub enum Event {
    /// Lines, in the order in which they follow one another.
    Batch(Batch),
    /// From here on this is where batches come from.
    Mode(Mode),
    /// The upstream was heard at this time and had nothing new to say.
    Quiet(Timestamp),
    /// The upstream's last number is below the cursor, or it has something else where it gave us
    /// something, and that stays so. Nothing from this number on is what both had.
    Rewound { from: i64 },
}

/// The follower has gone.
#[derive(Debug)]
pub struct Gone;

/// Reads one upstream from a cursor on.
pub struct Reader {
    client: ExportClient,
    events: mpsc::Sender<Event>,
    status: Arc<Status>,
    /// Last sequence number that was handed over.
    cursor: i64,
    backoff: Backoff,
    /// Kind of the fault that was logged last, so that a long outage is one line.
    said: Option<&'static str>,
    /// Until when the upstream is only paged, since it has no stream.
    streamless_until: Option<Instant>,
    /// What the upstream stated for the cursor's number.
    last: Option<Stated>,
    /// What that was when the upstream was asked for it last. What took the place of the log
    /// unnoticed since then, without a fault in between, does not have it.
    anchor: Option<Stated>,
    /// When the upstream was asked last whether it still has what it gave us; none while that is in
    /// doubt, as it is after every fault.
    checked: Option<Instant>,
    /// Between two such questions while the answer is not the one that is hoped for.
    check_again: Backoff,
    /// How often in a row the upstream did not have what it gave us.
    missing: u32,
    /// How often in a row its stream did not know our cursor.
    unknown: u32,
}

impl Reader {
    /// A reader of what comes after this sequence number, for which the upstream stated this.
    pub fn new(
        client: ExportClient,
        cursor: i64,
        last: Option<Stated>,
        events: mpsc::Sender<Event>,
        status: Arc<Status>,
    ) -> Reader {
        Reader {
            backoff: Backoff::new(client.limits()),
            check_again: Backoff::new(client.limits()),
            client,
            events,
            status,
            cursor,
            said: None,
            streamless_until: None,
            anchor: last.clone(),
            last,
            checked: None,
            missing: 0,
            unknown: 0,
        }
    }

    /// Reads until nobody listens any more.
    pub async fn run(mut self) -> Gone {
        loop {
            if let Err(gone) = self.round().await {
                return gone;
            }
        }
    }

    /// Pages to the present, then the stream for as long as it lasts.
    async fn round(&mut self) -> Result<(), Gone> {
        if !self.read_pages().await? {
            return Ok(());
        }
        if self.streamless_until.is_some_and(|until| Instant::now() < until) {
            sleep(POLL).await;
            return Ok(());
        }
        self.streamless_until = None;
        let fault = self.read_stream().await?;
        self.after_stream(fault).await
    }

    /// Whether what was fetched comes after what we have read. A log that was restored from a backup
    /// and has grown past the cursor since cannot be told by its numbers. It is asked after the
    /// fetching: a log that still has what it gave us had it when the page was made.
    async fn check(&mut self) -> Result<bool, Gone> {
        if !self.check_is_due() {
            return Ok(true);
        }
        let mut stated: Vec<Stated> = self.anchor.iter().chain(&self.last).cloned().collect();
        stated.dedup();
        for stated in stated {
            let fault = UpstreamFault::GoneBack { sequence: stated.sequence };
            let from = stated.sequence;
            match still_has(self.client.clone(), stated).await {
                Ok(true) => continue,
                Ok(false) => self.missing += 1,
                // Nothing is taken before it is known: who was away may come back from a backup.
                Err(fault) => return self.put_off_check(&fault).await,
            }
            if self.missing < REWINDS {
                return self.put_off_check(&fault).await;
            }
            self.say(&fault, Duration::ZERO);
            self.send(Event::Rewound { from }).await?;
            return Ok(false);
        }
        self.is_the_same();
        Ok(true)
    }

    /// Whether it is in doubt, or nothing was wrong for so long that it is to be asked.
    fn check_is_due(&self) -> bool {
        self.checked.is_none_or(|at| at.elapsed() >= self.client.limits().check_shared)
    }

    /// The upstream still has what it gave us.
    fn is_the_same(&mut self) {
        self.checked = Some(Instant::now());
        self.anchor = self.last.clone();
        self.missing = 0;
        self.check_again.reset();
    }

    /// False, since nothing is known yet.
    async fn put_off_check(&mut self, fault: &UpstreamFault) -> Result<bool, Gone> {
        let pause = self.check_again.after(fault);
        self.send(Event::Mode(Mode::Waiting)).await?;
        self.rest(fault, pause).await?;
        Ok(false)
    }

    /// What reading pages means: of an upstream without a stream they are its present.
    fn paging(&self) -> Mode {
        if self.streamless_until.is_some() { Mode::Live } else { Mode::CatchingUp }
    }

    /// Pages until one says that the end was near. False when it cannot be told (yet) whether they
    /// come after what we hold.
    async fn read_pages(&mut self) -> Result<bool, Gone> {
        let mut pages = PagesAhead::start(&self.client, self.cursor);
        let mut resumed = true;
        while let Some(fetched) = pages.next().await {
            match fetched {
                Fetched::Batch(batch) => {
                    if !self.check().await? {
                        return Ok(false);
                    }
                    if std::mem::take(&mut resumed) {
                        self.said = None;
                        self.send(Event::Mode(self.paging())).await?;
                    }
                    if let Origin::Page { next, .. } = batch.origin {
                        self.cursor = self.cursor.max(next);
                    }
                    self.last = Stated::among(&batch.lines, self.cursor).or(self.last.take());
                    self.send(Event::Batch(batch)).await?;
                }
                Fetched::Fault { fault, retry_in } => {
                    (self.checked, resumed) = (None, true);
                    self.say(&fault, retry_in);
                    self.send(Event::Mode(Mode::Waiting)).await?;
                }
            }
        }
        Ok(true)
    }

    /// Follows the stream until it ends, and says why it did.
    async fn read_stream(&mut self) -> Result<UpstreamFault, Gone> {
        let mut stream = match Stream::open(&self.client, self.cursor).await {
            Ok(stream) => stream,
            Err(fault) => return Ok(fault),
        };
        tracing::info!(cursor = self.cursor, "following the stream");
        counter!("plc_upstream_streams_total").increment(1);
        self.send(Event::Mode(Mode::Live)).await?;
        // A stream may go on over a database that was restored underneath. It is read on while that
        // is asked.
        let mut question = OptionFuture::default();
        loop {
            if self.check_is_due() {
                match self.anchor.clone() {
                    Some(anchor) => {
                        self.checked = Some(Instant::now());
                        let asking = still_has(self.client.clone(), anchor);
                        question = Some(Box::pin(asking)).into();
                    }
                    None => self.is_the_same(),
                }
            }
            tokio::select! {
                Some(answer) = &mut question => {
                    question = OptionFuture::default();
                    match answer {
                        Ok(true) => self.is_the_same(),
                        // What came since is of the other log.
                        Ok(false) => {
                            self.last = self.anchor.clone();
                            let sequence = self.last.as_ref().map_or(0, |last| last.sequence);
                            return Ok(UpstreamFault::GoneBack { sequence });
                        }
                        // The stream goes on, and it is asked again when it is due the next time.
                        Err(fault) => self.say(&fault, self.client.limits().check_shared),
                    }
                }
                next = tokio::time::timeout(SIGN_OF_LIFE, stream.next()) => match next {
                    Ok(Ok(batch)) => {
                        self.backoff.reset();
                        (self.said, self.unknown) = (None, 0);
                        self.cursor = cursor_after(self.cursor, &batch);
                        self.last = Stated::among(&batch.lines, self.cursor).or(self.last.take());
                        self.send(Event::Batch(batch)).await?;
                    }
                    Ok(Err(fault)) => return Ok(fault),
                    Err(_) => {
                        let heard = Timestamp::from(SystemTime::now()) - stream.silent_for();
                        self.send(Event::Quiet(heard)).await?;
                    }
                }
            }
        }
    }

    /// What to do when the stream has ended: always pages next, sooner or later.
    async fn after_stream(&mut self, fault: UpstreamFault) -> Result<(), Gone> {
        self.checked = None;
        if matches!(fault, UpstreamFault::FutureCursor) {
            self.unknown += 1;
            if self.unknown == REWINDS {
                self.say(&fault, Duration::ZERO);
                return self.send(Event::Rewound { from: self.cursor }).await;
            }
        }
        let pause = match fault {
            UpstreamFault::OutdatedCursor => Duration::ZERO,
            UpstreamFault::NoStream { .. } => {
                self.streamless_until = Some(Instant::now() + ASK_FOR_STREAM);
                self.send(Event::Mode(Mode::Live)).await?;
                POLL
            }
            _ => self.backoff.after(&fault),
        };
        self.rest(&fault, pause).await
    }

    /// Says what is wrong, and waits.
    async fn rest(&mut self, fault: &UpstreamFault, pause: Duration) -> Result<(), Gone> {
        self.say(fault, pause);
        if self.events.is_closed() {
            return Err(Gone);
        }
        sleep(pause).await;
        Ok(())
    }

    /// Counts a fault, and logs it unless it is the same as before.
    fn say(&mut self, fault: &UpstreamFault, retry_in: Duration) {
        counter!("plc_upstream_faults_total", "kind" => fault.kind()).increment(1);
        let repeated = self.said.replace(fault.kind()) == Some(fault.kind());
        let cursor = self.cursor;
        match fault {
            _ if repeated => tracing::debug!(cursor, ?retry_in, "{fault}"),
            UpstreamFault::GoneBack { .. } => {
                tracing::error!(
                    cursor,
                    ?retry_in,
                    "{fault}; serving goes on, and it is asked again"
                );
            }
            UpstreamFault::FutureCursor => tracing::error!(
                cursor,
                ?retry_in,
                upstream = self.client.base(),
                "the upstream has fewer operations than we hold: its last sequence number is \
                 below our cursor; serving goes on, and it is asked again"
            ),
            _ => tracing::warn!(cursor, ?retry_in, "{fault}"),
        }
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.status.received(self.cursor);
        self.events.send(event).await.map_err(|_| Gone)
    }
}

/// Whether the upstream has this line, which it stated before, still.
async fn still_has(client: ExportClient, stated: Stated) -> Result<bool, UpstreamFault> {
    let line = client.first_from(stated.sequence, Priority::Following).await?;
    Ok(line.and_then(|line| Stated::of(&line)) == Some(stated))
}

/// The cursor after messages of the stream.
fn cursor_after(cursor: i64, batch: &Batch) -> i64 {
    let numbers =
        || batch.lines.iter().filter_map(|line| Stated::of(line)).map(|line| line.sequence);
    batch::cursor_after(cursor, numbers())
}
