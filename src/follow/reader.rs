//! Where lines come from: pages of the export until the present is near, then the stream, and
//! back whenever the stream says so.
//!
//! What is read is decoded here, beside the judging of what came before: its numbers and CIDs lead the
//! reading on.

use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use metrics::counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::candidates::Followed;
use super::contact::Contact;
use super::continuity::{Beside, Continuity, REWINDS, Shared};
use super::fetch::{fetch_lines, fetch_through};
use super::gaps::Gaps;
use super::numbering::{Numbering, may_know_no_numbers, states_numbers};
use crate::clock;
use crate::judge::{Course, Decoded, Lines};
use crate::live::{Mode, Status};
use crate::store::Source;
use crate::upstream::{
    Backoff, Batch, ExportClient, Fetched, MAX_JUMP, Origin, PagesAhead, Priority, Stream,
    UpstreamFault,
};
use did_plc::Timestamp;

/// Pause between pages where the upstream has no stream: an operation is some seconds late, and
/// the upstream is asked twelve times a minute.
pub const POLL: Duration = Duration::from_secs(5);
/// After this long an upstream without a stream is asked for one again.
const ASK_FOR_STREAM: Duration = Duration::from_secs(600);
/// How often a quiet stream is looked at for signs of life, which is how exactly the age of the
/// upstream's last word is known.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What the reader tells.
#[derive(Debug)]
pub enum Event {
    /// Lines, in the order in which they follow one another.
    Lines(Lines),
    /// Lines that were asked for once more, and who waits until what follows from them is committed.
    Again { lines: Lines, committed: oneshot::Sender<()> },
    /// From here on this is where lines come from.
    Mode(Mode),
    /// The upstream was heard at this time and had nothing new to say.
    Quiet(Timestamp),
    /// The upstream's last number is below the cursor, or it has something else where it gave us
    /// something, and that stays so. Nothing from this number on is what both had.
    Rewound { from: i64 },
    /// The upstream states something else now than it did, and another one states what is held.
    Refuted { reason: String },
    /// The upstream's export turned out to have these numbers, so that it is to be read otherwise.
    Numbering(Numbering),
}

/// Nobody listens any more.
#[derive(Debug)]
pub struct Gone;

/// Reads one upstream from a cursor on.
pub struct Reader {
    client: ExportClient,
    /// Other upstreams, who are asked for what it leaves out.
    others: Vec<ExportClient>,
    events: mpsc::Sender<Event>,
    status: Arc<Status>,
    contact: Arc<Contact>,
    /// Last sequence number that was handed over.
    cursor: i64,
    /// After a stream, whatever ended it; only a stream that leads on makes the next delay a first one.
    backoff: Backoff,
    /// Kind of the fault that was logged last, so that a long outage is one line.
    said: Option<&'static str>,
    /// Until when the upstream is only paged, since it has no stream.
    streamless_until: Option<Instant>,
    continuity: Continuity,
    /// Between two questions about continuity while the answer is not the one that is hoped for.
    ask_again: Backoff,
    /// How often in a row the stream did not know our cursor.
    unknown: u32,
    /// Whether gaps between numbers are its way of numbering.
    gaps: Gaps,
    /// A number that its export has, beside the stream.
    exported: i64,
    /// It has stated some number.
    is_numbered: bool,
}

impl Reader {
    /// A reader of what comes after what is stored. It says in `confirmed` whether the upstream has the log
    /// that was read from it.
    pub fn new(
        followed: &Followed,
        source: &Source,
        events: mpsc::Sender<Event>,
        status: Arc<Status>,
        confirmed: watch::Sender<bool>,
    ) -> Reader {
        let cursor = source.cursor;
        let Followed { client, others, contact, .. } = followed.clone();
        Reader {
            backoff: Backoff::new(client.limits()),
            ask_again: Backoff::new(client.limits()),
            continuity: Continuity::of_source(client.clone(), source, confirmed),
            client,
            others,
            events,
            status,
            contact,
            cursor,
            said: None,
            streamless_until: None,
            unknown: 0,
            gaps: Gaps::default(),
            exported: 0,
            is_numbered: false,
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

    /// Pages until one says that the end was near. False when it cannot be told (yet) whether they
    /// come after what we hold.
    async fn read_pages(&mut self) -> Result<bool, Gone> {
        let mut pages = PagesAhead::start(&self.client, self.cursor);
        let mut resumed = true;
        while let Some(fetched) = pages.next().await {
            match fetched {
                Fetched::Batch(page) => {
                    if !self.check().await? {
                        return Ok(false);
                    }
                    self.contact.well_at(Instant::now());
                    if std::mem::take(&mut resumed) {
                        self.said = None;
                        self.send(Event::Mode(self.paging())).await?;
                    }
                    self.hand_over(page).await?;
                }
                Fetched::Fault { fault, retry_in } => {
                    if !self.is_numbered && may_know_no_numbers(&fault) {
                        // Where it does not answer it is asked again at the next fault.
                        self.look_for_numbers().await?.ok();
                    }
                    resumed = true;
                    self.continuity.put_in_doubt();
                    self.say(&fault, retry_in);
                    self.send(Event::Mode(Mode::Waiting)).await?;
                }
            }
        }
        if self.cursor == 0
            && let Err(fault) = self.look_for_numbers().await?
        {
            // Nothing has a number, and it could not be told whether that will be so.
            let pause = self.ask_again.after(&fault);
            self.rest(&fault, pause).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether what was fetched comes after what we have read.
    async fn check(&mut self) -> Result<bool, Gone> {
        if !self.continuity.is_due() {
            return Ok(true);
        }
        match self.continuity.ask().await {
            Shared::All => {
                self.ask_again.reset();
                Ok(true)
            }
            Shared::Unknown(fault) => {
                let pause = self.ask_again.after(&fault);
                self.send(Event::Mode(Mode::Waiting)).await?;
                self.rest(&fault, pause).await?;
                Ok(false)
            }
            Shared::Before(from) => {
                self.look_for_numbers().await?.ok();
                self.say(&UpstreamFault::GoneBack { sequence: from }, Duration::ZERO);
                self.send(Event::Rewound { from }).await?;
                Ok(false)
            }
        }
    }

    /// Asks whether the export has numbers at all. Where it has none, it is read by time, and this ends.
    async fn look_for_numbers(&mut self) -> Result<Result<(), UpstreamFault>, Gone> {
        match states_numbers(&self.client).await {
            Ok(Some(false)) => {}
            Ok(_) => return Ok(Ok(())),
            Err(fault) => return Ok(Err(fault)),
        }
        let upstream = self.client.base();
        tracing::info!(upstream, "the upstream's export has no numbers: it is read by time");
        self.send(Event::Numbering(Numbering::Absent)).await?;
        self.events.closed().await;
        Err(Gone)
    }

    /// What reading pages means: of an upstream without a stream they are its present.
    fn paging(&self) -> Mode {
        if self.streamless_until.is_some() { Mode::Live } else { Mode::CatchingUp }
    }

    /// Decodes a page and hands it over, after what it has left out.
    async fn hand_over(&mut self, page: Batch) -> Result<(), Gone> {
        let next = match page.origin {
            Origin::Page { next, .. } => next,
            Origin::Stream => self.cursor,
        };
        let lines = Lines::from_batch(page).await;
        let cursor = self.cursor.max(next);
        let gap = lines.decoded.gap_between(self.cursor, cursor);
        if let Err(fault) = self.read_gap(gap).await? {
            // The page is good for what is in it; the rest is found when it is read again.
            self.say(&fault, Duration::ZERO);
        }
        self.is_numbered |= cursor > self.cursor;
        self.cursor = cursor;
        self.continuity.remember(&lines.decoded, self.cursor);
        self.send(Event::Lines(lines)).await
    }

    /// Decodes what the stream brought and hands it over, after what the stream has left out. Why the stream
    /// is not to be read on, if it is not.
    async fn hand_over_stream(&mut self, batch: Batch) -> Result<Option<UpstreamFault>, Gone> {
        let lines = Lines::from_batch(batch).await;
        let cursor = lines.decoded.cursor_after(self.cursor);
        if cursor.saturating_sub(self.cursor) > MAX_JUMP {
            // Pages say whether it is to be believed.
            return Ok(Some(UpstreamFault::ImplausibleNumber {
                after: self.cursor,
                stated: cursor,
            }));
        }
        let gap = lines.decoded.gap_between(self.cursor, cursor);
        if let Err(fault) = self.read_gap(gap).await? {
            return Ok(Some(fault));
        }
        self.cursor = cursor;
        self.continuity.remember(&lines.decoded, self.cursor);
        self.send(Event::Lines(lines)).await?;
        Ok(None)
    }

    /// Asks for what was left out between two numbers. It may be that there is nothing. Where the upstream ends
    /// before the second one, that is the end: what comes there from now on is not what was left out.
    async fn read_gap(
        &mut self,
        gap: Option<(i64, i64)>,
    ) -> Result<Result<(), UpstreamFault>, Gone> {
        let Some((mut after, before)) = gap else {
            self.gaps.add_batch_without();
            return Ok(Ok(()));
        };
        if !self.gaps.are_worth_asking() || before - after > MAX_JUMP {
            return Ok(Ok(()));
        }
        tracing::debug!(after, before, "a gap between sequence numbers");
        counter!("plc_upstream_gaps_total").increment(1);
        self.gaps.add_empty();
        while after + 1 < before {
            let missing = usize::try_from(before - after - 1).unwrap_or(usize::MAX);
            let count = missing.min(self.client.limits().page);
            let fetched = fetch_lines(&self.client, after, count, Priority::Following).await;
            let mut decoded = match fetched {
                Ok(decoded) => decoded,
                Err(fault) => return Ok(Err(fault)),
            };
            let at_end = decoded.len() < count;
            let read_to = decoded.cursor_after(after);
            decoded.retain_up_to(before - 1);
            let end = if read_to > after { read_to.min(before - 1) } else { before - 1 };
            if let Some(lines) = self.read_elsewhere(after, end, &decoded).await {
                self.gaps.add_filled();
                self.send(Event::Lines(lines)).await?;
            }
            if decoded.is_empty() || read_to <= after {
                break;
            }
            after = read_to;
            self.gaps.add_filled();
            let received_at = clock::now();
            let lines = Lines {
                decoded,
                received_at,
                caught_up: false,
                course: Course::Again,
                source: None,
            };
            self.send(Event::Lines(lines)).await?;
            if at_end {
                break;
            }
        }
        Ok(Ok(()))
    }

    /// What another upstream has up to the second of two numbers, where it has more between them than is stated. It
    /// begins where nothing is handed over yet, so that what was left out comes in its order.
    async fn read_elsewhere(&self, after: i64, end: i64, stated: &Decoded) -> Option<Lines> {
        let numbers = stated.numbers();
        if numbers.len() as i64 >= end - after {
            return None;
        }
        let upstreams = self.status.upstreams();
        for other in self.others.iter().filter(|other| upstreams.is_ready(other.base())) {
            let fetched = fetch_through(other, self.cursor, end, Priority::Following).await;
            let Ok(mut decoded) = fetched else { continue };
            decoded.retain_up_to(end);
            let mut others = decoded.numbers().into_iter();
            if !others.any(|number| number > after && !numbers.contains(&number)) {
                continue;
            }
            let upstream = self.client.base();
            tracing::warn!(upstream, other = other.base(), after, end, "operations were left out");
            return Some(Lines {
                decoded,
                received_at: clock::now(),
                caught_up: false,
                course: Course::Elsewhere,
                source: Some(other.base().into()),
            });
        }
        None
    }

    /// Follows the stream until it ends, and says why it did.
    async fn read_stream(&mut self) -> Result<UpstreamFault, Gone> {
        let mut stream = match Stream::open(&self.client, self.cursor).await {
            Ok(stream) => stream,
            Err(fault) => return Ok(fault),
        };
        tracing::info!(cursor = self.cursor, "following the stream");
        self.contact.well_at(Instant::now());
        self.exported = 0;
        counter!("plc_upstream_streams_total").increment(1);
        self.send(Event::Mode(Mode::Live)).await?;
        // A stream may go on over a database that was restored underneath. It is read on while that
        // is asked.
        let mut question = OptionFuture::default();
        loop {
            if self.continuity.is_due() {
                question = self.continuity.question().map(Box::pin).into();
            }
            tokio::select! {
                Some(answer) = &mut question => {
                    question = OptionFuture::default();
                    if let Some(fault) = self.take_answer(answer) {
                        return Ok(fault);
                    }
                }
                next = timeout(SIGN_OF_LIFE, stream.next()) => match next {
                    Ok(Ok(batch)) => {
                        self.contact.well_at(Instant::now());
                        let before = self.cursor;
                        if let Some(fault) = self.hand_over_stream(batch).await? {
                            return Ok(fault);
                        }
                        // What we have already, or what is no operation, is no progress.
                        if self.cursor > before {
                            self.backoff.reset();
                            (self.said, self.unknown) = (None, 0);
                        }
                    }
                    Ok(Err(fault)) => return Ok(fault),
                    // Whatever was on its way has come.
                    Err(_) if self.exported > self.cursor => {
                        return Ok(UpstreamFault::LeftOut { after: self.cursor });
                    }
                    Err(_) => {
                        let silence = stream.silent_for();
                        self.contact.well_at(Instant::now() - silence);
                        let heard = clock::now() - silence;
                        self.send(Event::Quiet(heard)).await?;
                    }
                }
            }
        }
    }

    /// Whether the log is still there on which the stream goes on; why the stream is over when it is not.
    fn take_answer(&mut self, answer: Result<Beside, UpstreamFault>) -> Option<UpstreamFault> {
        match answer {
            Ok(Beside { has_it: true, next }) => {
                self.exported = next.unwrap_or(0);
                self.continuity.set_confirmed();
                self.ask_again.reset();
                None
            }
            Ok(Beside { has_it: false, .. }) => Some(self.continuity.fall_back_to_anchor()),
            // The stream goes on, and it is asked again when it is due the next time.
            Err(fault) => {
                self.say(&fault, self.client.limits().check_shared);
                None
            }
        }
    }

    /// What to do when the stream has ended: always pages next, sooner or later.
    async fn after_stream(&mut self, fault: UpstreamFault) -> Result<(), Gone> {
        self.continuity.put_in_doubt();
        if matches!(fault, UpstreamFault::FutureCursor) {
            self.unknown += 1;
            if self.unknown == REWINDS {
                self.say(&fault, Duration::ZERO);
                return self.send(Event::Rewound { from: self.cursor }).await;
            }
        }
        let pause = match fault {
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
        self.contact.fails(fault);
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
        self.status.set_received(self.cursor);
        self.events.send(event).await.map_err(|_| Gone)
    }
}
