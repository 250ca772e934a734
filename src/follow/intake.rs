//! The middle of a session: what the reader brings is judged and handed to the writer, until it is time to
//! stop.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inquiry::{Suspect, misfits, out_of_order};
use super::numbering::Numbering;
use super::reader::Event;
use super::writer::Work;
use crate::judge::{BatchJudge, Course, Cut, Lines, NotJson};
use crate::live::{Mode, Status};
use crate::store::StoreError;
use did_plc::{Did, Timestamp};

/// Lines that are judged at once, at most: what one commit can take in a fraction of a second.
/// With the pages on their way this bounds the memory of following to some tens of megabytes.
const MAX_BATCH: usize = 4_000;
/// Bytes of the lines that are judged at once, at most, apart from those of the last page: ten times
/// what ordinary lines have.
const MAX_BATCH_BYTES: usize = 32 << 20;

/// Why a session ended in order.
#[derive(Debug)]
pub enum End {
    /// Somebody asked for it; everything in hand is committed.
    Shutdown,
    /// A line that is not JSON is to be fetched again.
    NotJson { cursor: i64 },
    /// The upstream has gone back to before the number `from`.
    Rewound { cursor: i64, from: i64 },
    /// Some of what it states does not fit, and others are to be asked before it is passed.
    Suspect(Suspect),
    /// It does not state any more what it stated, and another upstream does.
    Refuted { reason: String },
    /// It has these numbers, and is to be read otherwise.
    Numbering(Numbering),
}

/// Judges the lines of one session.
pub struct Intake {
    /// What knows the chains.
    pub judge: BatchJudge,
    /// Everything up to this number is judged.
    pub cursor: i64,
    /// What to do about the next line that is not JSON.
    pub not_json: NotJson,
    /// Lines up to this number are passed whatever is wrong with them; above it others are asked first.
    pub passes_up_to: i64,
    /// The latest `createdAt` that was read on.
    pub latest: Option<Timestamp>,
    /// Where it is said what the follower does.
    pub status: Arc<Status>,
    /// What the reader brings.
    pub events: mpsc::Receiver<Event>,
    /// Events that were taken and have to wait for their turn: lines that are judged together are one.
    pub waiting: VecDeque<Event>,
    /// Who commits.
    pub writer: mpsc::Sender<Work>,
}

impl Intake {
    /// Judges until it is time to stop. When the writer has ended before, it says itself why.
    ///
    /// # Errors
    ///
    /// Those of the store; what was judged and is not committed yet must not be relied on then.
    pub async fn run(mut self, shutdown: &CancellationToken) -> Result<End, StoreError> {
        loop {
            let Some(event) = self.next_event(shutdown).await else { return Ok(End::Shutdown) };
            let end = match event {
                Event::Mode(mode) => {
                    self.status.set_mode(mode);
                    self.hand_over(Work::Live(mode == Mode::Live)).await
                }
                Event::Quiet(at) => {
                    self.status.set_heard(at);
                    self.hand_over(Work::UpToDate(at)).await
                }
                Event::Rewound { from } => Some(End::Rewound { cursor: self.cursor, from }),
                Event::Refuted { reason } => Some(End::Refuted { reason }),
                Event::Numbering(numbering) => Some(End::Numbering(numbering)),
                Event::Lines(lines) => self.take_in(lines, None).await?,
                Event::Again { lines, committed } => self.take_in(lines, Some(committed)).await?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    async fn next_event(&mut self, shutdown: &CancellationToken) -> Option<Event> {
        if shutdown.is_cancelled() {
            return None;
        }
        if self.waiting.is_empty() {
            let event = shutdown.run_until_cancelled(self.events.recv()).await.flatten()?;
            self.join_with_what_is_there(event);
        }
        let event = self.waiting.pop_front();
        if self.waiting.is_empty()
            && let Ok(event) = self.events.try_recv()
        {
            self.join_with_what_is_there(event);
        }
        event
    }

    /// What has come meanwhile is judged with it: larger commits cost less a line.
    fn join_with_what_is_there(&mut self, event: Event) {
        self.waiting.push_back(event);
        if self.passes_up_to < i64::MAX {
            // Others are asked about a page at most.
            return;
        }
        while let Some(Event::Lines(lines)) = self.waiting.back_mut()
            && lines.decoded.len() < MAX_BATCH
            && lines.decoded.bytes() < MAX_BATCH_BYTES
            && let Ok(next) = self.events.try_recv()
        {
            match next {
                Event::Lines(next) if lines.can_join(&next) => lines.join(next),
                other => return self.waiting.push_back(other),
            }
        }
    }

    /// The identities of what is judged next, where that is there already.
    fn next_dids(&self) -> Vec<Did> {
        match self.waiting.front() {
            Some(Event::Lines(lines)) => lines.decoded.dids(),
            _ => Vec::new(),
        }
    }

    /// Judges lines and hands over what is to be committed, with who waits for that.
    async fn take_in(
        &mut self,
        lines: Lines,
        committed: Option<oneshot::Sender<()>>,
    ) -> Result<Option<End>, StoreError> {
        // What others are asked for is no sign of life of the upstream.
        if lines.source.is_none() {
            self.status.set_heard(lines.received_at);
        }
        let begun = Instant::now();
        // Whoever reads again fetches what was damaged on its way by itself.
        let reads_on = matches!(lines.course, Course::Pages | Course::Stream);
        let not_json = if reads_on { self.not_json } else { NotJson::Keep };
        // What the reader brings of the upstream that is followed, what was left out included.
        let (after, through) = (self.cursor, lines.decoded.cursor_after(self.cursor));
        let asks_first =
            committed.is_none() && lines.source.is_none() && through > self.passes_up_to;
        let (course, latest) = (lines.course, self.latest);
        let is_present = course == Course::Stream || lines.caught_up;
        let mut does_not_fit = 0;
        if reads_on {
            (does_not_fit, self.latest) = out_of_order(&lines, latest, is_present);
        }
        let Cut { part, cursor, stopped, kept_damaged } =
            Cut::of(lines, self.cursor, not_json, reads_on);
        let prepared = Box::new(self.judge.judge(part, &self.next_dids()).await?);
        does_not_fit += misfits(&prepared.commit);
        if asks_first && does_not_fit > 0 {
            // What was judged is dropped: it is fetched again once others were asked.
            return Ok(Some(End::Suspect(Suspect { after, through, course, latest })));
        }
        if let Some(end) = self.hand_over(Work::Commit(prepared, committed)).await {
            return Ok(Some(end));
        }
        metrics::histogram!("plc_ingest_stage_seconds", "stage" => "judge")
            .record(begun.elapsed().as_secs_f64());
        // Until then it is still to come: a message of the stream is after an empty page.
        if reads_on && (kept_damaged || cursor != self.cursor) {
            self.not_json = NotJson::StopBefore;
        }
        self.cursor = cursor;
        Ok(stopped.then_some(End::NotJson { cursor }))
    }

    /// The end where there is no writer any more.
    async fn hand_over(&self, work: Work) -> Option<End> {
        self.writer.send(work).await.is_err().then_some(End::Shutdown)
    }
}
