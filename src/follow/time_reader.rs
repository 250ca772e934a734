//! Where lines come from when an upstream is read by time, since it has numbers of its own or none: pages of its export
//! by time to the end, and from there on the same again and again. What it states as numbers is not taken, and the
//! cursor stays where it is: an upstream with our numbers is read on from there, and numbers then what came meanwhile.
//!
//! The export gives what was created *after* a time, so that of the last moment of a page some may be left out: each
//! page begins just before the end of the one before it, and at the end of the log a little earlier than that, since an
//! operation may be seen after a later one. What is known is recognised by its CID.
//!
//! How far it is read is stored after what came of it is: a crash costs that a page is read once more. Behind it the log
//! is read a second time, as pages are by number.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use metrics::counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::again;
use super::contact::Contact;
use super::fetch::{contradicts, fetch_lines, fetch_to_believe};
use super::numbering::{Numbering, states_numbers};
use super::reader::{Event, Gone, POLL};
use super::time_pages::{Page, Pages};
use crate::clock;
use crate::judge::{Course, Decoded, Lines};
use crate::live::Mode;
use crate::store::{ByTime, Lease, Store};
use crate::upstream::{Backoff, ExportClient, Priority, UpstreamFault};
use did_plc::{Cid, Timestamp};

/// So much is read again at the end of the log: transactions of the directory do not end in the order in which they
/// began. What takes longer is found by the second reading.
const OVERLAP: Duration = Duration::from_secs(10);
/// What was created so long ago is the past.
const PAST: Duration = Duration::from_secs(60);
/// How often one without numbers is asked whether it has some now.
const ASK_FOR_NUMBERS: Duration = Duration::from_secs(600);
/// Lines that are remembered to be told from new ones at the end of the log.
const MOST_SEEN: usize = 10_000;

/// Reads one upstream by time.
pub struct TimeReader {
    /// Who is read.
    pub client: ExportClient,
    /// Which numbers it has.
    pub numbering: Numbering,
    /// Where it is noted how far it is read.
    pub store: Store,
    /// By which right.
    pub lease: Lease,
    /// Who judges what comes.
    pub events: mpsc::Sender<Event>,
    /// Who is told how it answers.
    pub contact: Arc<Contact>,
    /// Told that it answers, for those who ask for what was refused.
    pub confirmed: watch::Sender<bool>,
    /// How far it is read.
    pub position: ByTime,
    /// It is read a second time so long after the first.
    pub second_after: Duration,
    /// Whether all times that are held are its own: nothing was ever read by number.
    pub has_all_times: bool,
    /// Whether all of the log is here when its end is reached: not while the numbers that are held are given up.
    pub reaches_present: bool,
}

/// What is remembered of one reading.
struct Reading {
    of: TimeReader,
    /// What is stored of the position.
    stored: ByTime,
    pages: Pages,
    again: Pages,
    backoff: Backoff,
    /// Kind of the fault that was logged last, so that a long outage is one line.
    said: Option<&'static str>,
    /// Lines at the end of the log that were handed over, by their SHA-256.
    seen: AHashSet<Cid>,
    mode: Option<Mode>,
    ask_for_numbers: Instant,
}

impl TimeReader {
    /// Reads until nobody listens any more.
    pub async fn run(self) -> Gone {
        let mut reading = Reading {
            stored: self.position.clone(),
            pages: Pages::new(self.client.limits().page),
            again: Pages::new(self.client.limits().page),
            backoff: Backoff::new(self.client.limits()),
            said: None,
            seen: AHashSet::new(),
            mode: None,
            ask_for_numbers: Instant::now() + ASK_FOR_NUMBERS,
            of: self,
        };
        loop {
            if let Err(gone) = reading.round().await {
                return gone;
            }
        }
    }
}

impl Reading {
    /// Pages to the end of the log, and a pause.
    async fn round(&mut self) -> Result<(), Gone> {
        let pause = match self.read_to_end().await? {
            Ok(()) => {
                self.note_position().await;
                POLL
            }
            Err(fault) => {
                self.of.confirmed.send_replace(false);
                let pause = self.backoff.after(&fault);
                self.say(&fault, pause);
                self.set_mode(Mode::Waiting).await?;
                pause
            }
        };
        if self.of.events.is_closed() {
            return Err(Gone);
        }
        sleep(pause).await;
        Ok(())
    }

    async fn read_to_end(&mut self) -> Result<Result<(), UpstreamFault>, Gone> {
        let mut after = self.of.position.read - OVERLAP;
        loop {
            let page = match self.pages.fetch(&self.of.client, after, Priority::Following).await {
                Ok(page) => page,
                Err(fault) => return Ok(Err(fault)),
            };
            self.answered();
            let received_at = clock::now();
            let Page { lines, next, read } = page;
            if next.is_some_and(|next| next < received_at - PAST) {
                self.set_mode(Mode::CatchingUp).await?;
            }
            self.hand_over(lines, received_at, next.is_none()).await?;
            if let Some(read) = read.filter(|read| *read > self.of.position.read) {
                self.of.position.read = read;
                self.note_position().await;
            }
            match next {
                Some(next) => after = next,
                None => break,
            }
        }
        self.set_mode(Mode::Live).await?;
        if self.of.reaches_present {
            self.of.events.send(Event::Quiet(clock::now())).await.map_err(|_| Gone)?;
        }
        self.look_for_numbers().await?;
        if let Err(fault) = self.read_second().await? {
            // The log is read on all the same, and this is tried again.
            counter!("plc_upstream_faults_total", "kind" => fault.kind()).increment(1);
            tracing::debug!("reading the log by time again does not succeed: {fault}");
        }
        Ok(Ok(()))
    }

    /// Hands over what was not handed over before, and waits until it is stored.
    async fn hand_over(
        &mut self,
        mut decoded: Decoded,
        received_at: Timestamp,
        is_end: bool,
    ) -> Result<(), Gone> {
        let is_first_end = is_end && self.mode != Some(Mode::Live);
        let names: Vec<Cid> = decoded.lines().iter().map(|line| Cid::of(line)).collect();
        let is_new: Vec<bool> = names.iter().map(|name| !self.seen.contains(name)).collect();
        decoded.retain_those(&is_new);
        if self.seen.len() > MOST_SEEN || !is_end {
            self.seen.clear();
        }
        self.seen.extend(names);
        if decoded.is_empty() && !is_first_end {
            return Ok(());
        }
        decoded.forget_numbers();
        let lines = Lines {
            decoded,
            received_at,
            caught_up: is_end && self.of.reaches_present,
            course: Course::Elsewhere,
            source: Some(self.of.client.base().into()),
        };
        let (committed, receiver) = oneshot::channel();
        self.of.events.send(Event::Again { lines, committed }).await.map_err(|_| Gone)?;
        receiver.await.map_err(|_| Gone)
    }

    /// Reads a page the second time, so long after it was received: what is missing here is taken in, and what is stated
    /// otherwise becomes a record.
    async fn read_second(&mut self) -> Result<Result<(), UpstreamFault>, Gone> {
        let TimeReader { client, store, position, second_after, .. } = &self.of;
        let (after, count) = (position.second, client.limits().page);
        // Where the store is away it is due later.
        let held = store.export_by_time(Some(after), count).await.unwrap_or_default();
        let due = clock::now() - *second_after;
        let read_before = held.iter().take_while(|operation| operation.received_at <= due);
        let read_before = read_before.map(|operation| operation.created_at);
        let Some(through) = read_before.last().filter(|last| *last <= position.read) else {
            return Ok(Ok(()));
        };
        let fetch = || fetch_lines(client, after, count, Priority::Aside);
        let lines = match fetch_to_believe(fetch, |lines| contradicts(lines, &held)).await {
            Ok(lines) => lines,
            Err(fault) => return Ok(Err(fault)),
        };
        let Page { mut lines, next, .. } = match self.again.read(lines, after, clock::now()) {
            Ok(page) => page,
            Err(fault) => return Ok(Err(fault)),
        };
        lines.forget_numbers();
        if !lines.is_empty() {
            // Times that were damaged on their way are mended, unless they are those of one with our numbers.
            let course = if self.of.has_all_times { Course::Second } else { Course::Again };
            again::take_in(&self.of.events, lines, course, None).await?;
        }
        self.of.position.second = next.map_or(through, |next| next.min(through));
        Ok(Ok(()))
    }

    /// Asks one that had no numbers for some now and then; where it has, the session ends.
    async fn look_for_numbers(&mut self) -> Result<(), Gone> {
        if self.of.numbering != Numbering::Absent || Instant::now() < self.ask_for_numbers {
            return Ok(());
        }
        self.ask_for_numbers = Instant::now() + ASK_FOR_NUMBERS;
        if let Ok(Some(true)) = states_numbers(&self.of.client).await {
            let upstream = self.of.client.base();
            tracing::info!(upstream, "the upstream's export has numbers now: it is read by them");
            let event = Event::Numbering(Numbering::Ours);
            self.of.events.send(event).await.map_err(|_| Gone)?;
            self.of.events.closed().await;
            return Err(Gone);
        }
        Ok(())
    }

    /// All is well with the upstream.
    fn answered(&mut self) {
        self.of.contact.well_at(Instant::now());
        self.of.confirmed.send_replace(true);
        self.backoff.reset();
        self.said = None;
    }

    /// Notes how far it is read. What fails is noted the next time: the commits say what is wrong with the store.
    async fn note_position(&mut self) {
        if self.stored == self.of.position {
            return;
        }
        match self.of.store.set_by_time(&self.of.lease, &self.of.position).await {
            Ok(()) => self.stored = self.of.position.clone(),
            Err(error) => tracing::debug!("how far the upstream is read is not noted: {error}"),
        }
    }

    async fn set_mode(&mut self, mode: Mode) -> Result<(), Gone> {
        if self.mode.replace(mode) == Some(mode) {
            return Ok(());
        }
        self.of.events.send(Event::Mode(mode)).await.map_err(|_| Gone)
    }

    /// Counts a fault, and logs it unless it is the same as before.
    fn say(&mut self, fault: &UpstreamFault, retry_in: Duration) {
        counter!("plc_upstream_faults_total", "kind" => fault.kind()).increment(1);
        self.of.contact.fails(fault);
        let read = self.of.position.read;
        if self.said.replace(fault.kind()) == Some(fault.kind()) {
            tracing::debug!(%read, ?retry_in, "{fault}");
        } else {
            tracing::warn!(%read, ?retry_in, "{fault}");
        }
    }
}
