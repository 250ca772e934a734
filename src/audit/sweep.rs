//! A full sweep: our log and another side by side, stretch by stretch, in one order.
//!
//! A stretch is a page of the other side's export, or a block of a dump. What is not exactly the
//! same on both sides makes its identity a suspect, and only suspects are then compared in full:
//! a sweep may suspect too many, never too few.

use std::collections::BTreeMap;

use ahash::AHashMap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::clock::latest;
use super::newest::NewestOperations;
use super::pages::{NumberedLine, Pages, SweepError};
use super::suspect::{MAX_SUSPICIONS, Order, Suspicion};
use crate::judge;
use crate::store::{Store, StoreError, StoredOperation};
use crate::upstream::UpstreamFault;
use did_plc::entry::{Received, Undecodable, stated_time};
use did_plc::{Cid, Did, Timestamp};

/// Operations that are read from the store at once.
const PAGE: usize = 1000;

/// Milliseconds by which `createdAt` may go back from one number to the next: transactions of the
/// directory do not end in the order in which they began.
const OUT_OF_ORDER: i64 = 60_000;

/// Where a sweep is and what it has found: all that is needed to go on with it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// How both sides are read.
    pub order: Order,
    /// Where it began: what is not after this is not asked for.
    pub from: i64,
    /// Everything up to this time (milliseconds since 1970) or number has been compared.
    pub after: i64,
    /// The last time or number to compare.
    pub until: i64,
    /// Operations of ours that were compared.
    pub compared: u64,
    /// Operations that one side alone was seen to have and that are newer than the newest of the
    /// other.
    pub too_new: u64,
    /// Identities to be compared in full, as text, and what made them suspects: at most
    /// [`MAX_SUSPICIONS`] each.
    pub suspects: BTreeMap<String, Vec<Suspicion>>,
    /// Lines of theirs that name no identity.
    pub unreadable: u64,
    /// The latest `createdAt` of theirs so far, in milliseconds.
    pub latest: i64,
    /// The last line of a dump that has been read. What was compared of the lines up to it is
    /// what is not later than `after`.
    pub lines: u64,
}

/// A line of theirs.
struct SweptLine {
    number: Option<u64>,
    text: Bytes,
    decoded: Result<Received, Undecodable>,
    /// Its time or number, where it states one.
    key: Option<i64>,
    /// When it is its turn: without a key, with the line before it.
    turn: i64,
}

/// One operation as a side states it, as far as a sweep compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SweptOperation {
    /// Its place in the order; without one, the beginning of the stretch.
    at: i64,
    created_at: i64,
    sequence: Option<i64>,
    nullified: Option<bool>,
}

impl SweptOperation {
    /// Whether nothing that both state differs.
    fn agrees(&self, other: &SweptOperation) -> bool {
        fn same<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.zip(other).is_none_or(|(one, other)| one == other)
        }
        self.created_at == other.created_at
            && same(self.sequence, other.sequence)
            && same(self.nullified, other.nullified)
    }
}

/// What they state in a stretch.
type TheirStretch = AHashMap<(Did, Cid), SweptOperation>;

impl Sweep {
    /// A sweep of everything after a time or number and up to another.
    pub fn new(order: Order, after: i64, until: i64) -> Sweep {
        Sweep {
            order,
            from: after,
            after,
            until,
            compared: 0,
            too_new: 0,
            suspects: BTreeMap::new(),
            unreadable: 0,
            latest: i64::MIN,
            lines: 0,
        }
    }

    /// Whether everything was compared.
    pub fn is_done(&self) -> bool {
        self.after >= self.until
    }

    /// Compares the next stretch. What is newer than the horizon of the newest operations and on
    /// one side only is no suspect.
    ///
    /// # Errors
    ///
    /// [`SweepError`]; of a server, the same stretch can be tried again.
    pub async fn step(
        &mut self,
        store: &Store,
        pages: &mut Pages,
        newest: &NewestOperations,
    ) -> Result<(), SweepError> {
        let (lines, more) = pages.next(self.order, self.after).await?;
        let mut lines = self.read(lines);
        let last_line = lines.iter().filter_map(|line| line.number).max();
        lines.retain(|line| !self.is_compared(line));
        let read_through = pages.are_read_through();
        let more = more && (read_through || self.leads_on(&lines)?);
        let end = self.end_of_stretch(&lines, more, read_through);
        // A server that is past the horizon has nothing more that could be compared, but for what it
        // dates into the future.
        let beyond = self.order == Order::Time && end >= newest.horizon().millis();
        let last = !more || (beyond && !read_through);
        let end = if last { self.until } else { end };
        let ends = end >= self.until;
        if ends && more && self.order == Order::Time {
            self.suspect_their_future(pages).await?;
        }
        if !last && !read_through {
            // What has no place behind the last that has one comes again with the next page.
            let placed = lines.iter().rposition(|line| line.key.is_some());
            lines.truncate(placed.map_or(0, |last| last + 1));
        }
        let mut theirs = AHashMap::with_capacity(lines.len());
        for line in &lines {
            self.note(line, end, &mut theirs);
        }
        let horizon = self.horizon(newest, more);
        self.compare_ours(store, end, horizon, &mut theirs).await?;
        self.note_theirs_alone(theirs, horizon);
        let later = lines.into_iter().filter(|line| line.turn > end);
        if ends {
            later.for_each(|line| self.note_beyond(&line, horizon));
            self.suspect_our_future(store).await?;
        } else {
            pages.carry(later.map(|line| (line.number, line.text)));
        }
        self.after = end;
        self.lines = last_line.map_or(self.lines, |last| last.max(self.lines));
        Ok(())
    }

    /// Decodes lines, and notes the latest time in them.
    fn read(&mut self, lines: Vec<NumberedLine>) -> Vec<SweptLine> {
        let (numbers, texts): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
        let decoded = judge::decode(&texts);
        // What is dated into the future says nothing about how new their log is.
        let now = latest().millis();
        let times = decoded.iter().flatten().map(|read| read.created_at.millis());
        self.latest = times.filter(|at| *at <= now).fold(self.latest, i64::max);
        let all = numbers.into_iter().zip(texts).zip(decoded);
        let mut turn = self.after;
        all.map(|((number, text), decoded)| {
            let key = self.key(&text, &decoded);
            // A line of a dump is read once, so that its turn is now.
            turn = key.unwrap_or(if number.is_some() { self.after } else { turn });
            SweptLine { number, text, decoded, key, turn }
        })
        .collect()
    }

    /// Whether it is a line of a dump, which is always read from its first line on, that was
    /// compared before an interruption, or that nobody asks for.
    fn is_compared(&self, line: &SweptLine) -> bool {
        let Some(number) = line.number else { return false };
        let before_all = line.key.is_some_and(|key| key <= self.from);
        let done = number <= self.lines && line.key.is_none_or(|key| key <= self.after);
        before_all || done
    }

    fn key(&self, text: &[u8], decoded: &Result<Received, Undecodable>) -> Option<i64> {
        match (decoded, self.order) {
            (Ok(read), Order::Time) => Some(read.created_at.millis()),
            (Ok(read), Order::Sequence) => read.sequence,
            // Its operation is none, but it has its place.
            (Err(undecodable), _) if undecodable.refusal.is_of_line() => None,
            (Err(undecodable), Order::Sequence) => undecodable.sequence,
            (Err(_), Order::Time) => stated_time(text).map(Timestamp::millis),
        }
    }

    /// Whether a page of a server brings the sweep further. One of nothing but lines without a
    /// place is the last that can be asked for.
    fn leads_on(&self, lines: &[SweptLine]) -> Result<bool, UpstreamFault> {
        let further = lines.iter().any(|line| line.key.is_some_and(|key| key > self.after));
        match !further && lines.iter().any(|line| line.decoded.is_ok()) {
            true => Err(UpstreamFault::NotAdvancing { after: self.after }),
            false => Ok(further),
        }
    }

    /// Up to where both sides are known. Where more follows, other operations of the same
    /// millisecond may.
    fn end_of_stretch(&self, lines: &[SweptLine], more: bool, read_through: bool) -> i64 {
        // What is read to its end ends nowhere before, wherever one line has its place.
        let bound = if more && read_through { self.until - 1 } else { self.until };
        let keys = lines.iter().filter_map(|line| line.key);
        let last = keys.filter(|key| !read_through || *key <= self.until).max();
        let end = match (more, last, self.order) {
            (false, ..) => self.until,
            (true, None, _) => self.after,
            (true, Some(last), Order::Sequence) => last,
            (true, Some(last), Order::Time) => before_others_of(last, self.after),
        };
        end.min(bound).max(self.after)
    }

    /// Up to when both can be expected to be complete. Whose newest operation was not known
    /// beforehand has shown it when there is nothing more.
    fn horizon(&self, newest: &NewestOperations, more: bool) -> i64 {
        let horizon = newest.horizon().millis();
        match (more, newest.theirs) {
            (false, None) => horizon.min(self.latest),
            _ => horizon,
        }
    }

    /// Notes a line of this stretch; what comes after its turn is a suspect, since nothing of ours
    /// is beside it.
    fn note(&mut self, line: &SweptLine, end: i64, theirs: &mut TheirStretch) {
        if line.turn > end {
            return;
        }
        let at = line.key.unwrap_or(self.after + 1);
        let read = match &line.decoded {
            Ok(read) => read,
            Err(undecodable) => return self.note_undecodable(undecodable, at),
        };
        let stated = SweptOperation {
            at,
            created_at: read.created_at.millis(),
            sequence: read.sequence.filter(|_| self.order == Order::Sequence),
            nullified: read.nullified,
        };
        let in_order = line.key.is_some_and(|key| key > self.after);
        let repeated = theirs.insert((read.did, read.cid), stated).is_some();
        if read.stated_cid.is_some() || repeated || !in_order {
            self.suspect(read.did.to_string(), read.cid.to_string(), at);
        }
    }

    fn note_undecodable(&mut self, undecodable: &Undecodable, at: i64) {
        let Undecodable { did, cid, .. } = undecodable;
        match did.parse::<Did>() {
            Ok(_) => self.suspect(did.clone(), cid.clone(), at),
            Err(_) => self.unreadable += 1,
        }
    }

    /// Notes a line that has its place behind everything that is compared. What was not asked for, or can
    /// be news on its way, is left out; what is dated into the future is neither, nor is what stands
    /// under a number to come without a time, or with one that is well past.
    fn note_beyond(&mut self, line: &SweptLine, horizon: i64) {
        let created_at = match &line.decoded {
            Ok(read) => Some(read.created_at),
            Err(_) => stated_time(&line.text),
        };
        let from = match self.order {
            Order::Time => self.until,
            Order::Sequence => horizon - OUT_OF_ORDER,
        };
        let latest = latest().millis();
        if created_at.is_some_and(|at| from < at.millis() && at.millis() <= latest) {
            return;
        }
        match &line.decoded {
            Ok(read) => self.suspect(read.did.to_string(), read.cid.to_string(), line.turn),
            Err(undecodable) => self.note_undecodable(undecodable, line.turn),
        }
    }

    /// Suspects what a server dates into the future, where a sweep by time does not come to.
    async fn suspect_their_future(&mut self, pages: &mut Pages) -> Result<(), SweepError> {
        let mut after = latest().millis();
        loop {
            let (lines, _) = pages.next(Order::Time, after).await?;
            let mut last = after;
            for SweptLine { decoded, key, .. } in self.read(lines) {
                // Not what was asked for.
                if key.is_some_and(|at| at <= after) {
                    continue;
                }
                let at = key.unwrap_or(after);
                last = last.max(at);
                match decoded {
                    Ok(read) => self.suspect(read.did.to_string(), read.cid.to_string(), at),
                    Err(undecodable) => self.note_undecodable(&undecodable, at),
                }
            }
            if last == after {
                return Ok(());
            }
            after = before_others_of(last, after);
        }
    }

    /// Suspects what we hold that is dated into the future: it is here already.
    async fn suspect_our_future(&mut self, store: &Store) -> Result<(), StoreError> {
        if self.order == Order::Sequence {
            return Ok(());
        }
        let mut after = latest();
        loop {
            let held = store.export_by_time(Some(after), PAGE).await?;
            let Some(last) = held.last().map(|operation| operation.created_at.millis()) else {
                return Ok(());
            };
            after = Timestamp::from_millis(before_others_of(last, after.millis()));
            for operation in &held {
                let at = operation.created_at.millis();
                self.suspect(operation.did.to_string(), operation.cid().to_string(), at);
            }
        }
    }

    fn suspect(&mut self, did: String, cid: String, at: i64) {
        let suspicions = self.suspects.entry(did).or_default();
        let suspicion = Suspicion { cid, at };
        if suspicions.len() < MAX_SUSPICIONS && !suspicions.contains(&suspicion) {
            suspicions.push(suspicion);
        }
    }

    async fn compare_ours(
        &mut self,
        store: &Store,
        end: i64,
        horizon: i64,
        theirs: &mut TheirStretch,
    ) -> Result<(), StoreError> {
        let mut from = self.after;
        while from < end {
            let (held, next) = self.read_ours(store, from, end).await?;
            for operation in held {
                let ours = SweptOperation {
                    at: self.place(&operation),
                    created_at: operation.created_at.millis(),
                    sequence: operation.sequence.filter(|_| self.order == Order::Sequence),
                    nullified: Some(operation.nullified_by.is_some()),
                };
                let cid = operation.cid();
                let there = theirs.remove(&(operation.did, cid));
                if there.is_none() && ours.created_at > horizon {
                    self.too_new += 1;
                    continue;
                }
                self.compared += 1;
                if !there.is_some_and(|there| there.agrees(&ours)) {
                    let at = there.unwrap_or(ours).at;
                    self.suspect(operation.did.to_string(), cid.to_string(), at);
                }
            }
            from = next;
        }
        Ok(())
    }

    fn note_theirs_alone(&mut self, theirs: TheirStretch, horizon: i64) {
        // What they date later than now is no news on its way.
        let latest = latest().millis();
        for ((did, cid), stated) in theirs {
            match horizon < stated.created_at && stated.created_at <= latest {
                true => self.too_new += 1,
                false => self.suspect(did.to_string(), cid.to_string(), stated.at),
            }
        }
    }

    /// Operations of ours after `from` and up to `end`, and from where to go on.
    async fn read_ours(
        &self,
        store: &Store,
        from: i64,
        end: i64,
    ) -> Result<(Vec<StoredOperation>, i64), StoreError> {
        let mut held = match self.order {
            Order::Sequence => store.export_by_sequence(from, PAGE).await?,
            Order::Time => store.export_by_time(Some(Timestamp::from_millis(from)), PAGE).await?,
        };
        let full = held.len() == PAGE;
        let last = held.last().map_or(end, |operation| self.place(operation));
        let next = match (full, self.order) {
            (false, _) => end,
            (true, Order::Sequence) => last,
            (true, Order::Time) => before_others_of(last, from),
        };
        let next = next.min(end);
        held.retain(|operation| self.place(operation) <= next);
        Ok((held, next))
    }

    fn place(&self, operation: &StoredOperation) -> i64 {
        match self.order {
            Order::Sequence => operation.sequence.unwrap_or(0),
            Order::Time => operation.created_at.millis(),
        }
    }
}

/// From where a page that follows `after` and ends with this millisecond is gone on from: others of that
/// millisecond may come. A page of nothing but one millisecond cannot be told apart by time.
fn before_others_of(last: i64, after: i64) -> i64 {
    if last - 1 > after { last - 1 } else { last }
}
