//! The newest operation of each side, by which being behind is told from a difference.

use serde::Serialize;

use super::check::CheckError;
use super::clock::{latest, settled};
use super::peer::{Peer, PeerError};
use crate::store::{Store, StoreError};
use crate::upstream::{ExportClient, Priority, UpstreamFault};
use did_plc::Timestamp;
use did_plc::entry::{Received, without_mark};

/// How far back, in milliseconds, the newest operation is looked for at first: whoever is up to
/// date has it right there. The next steps are a minute, an hour, and so on by [`STEP_GROWS`].
const FIRST_STEP: i64 = 1;
const SECOND_STEP: i64 = 60_000;
const STEP_GROWS: i64 = 60;
/// Lines of a page, the most that the directory gives.
const PAGE: usize = 1000;

/// The `createdAt` of the newest operation of both sides when a comparison began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NewestOperations {
    /// Of ours; none in an empty store.
    #[serde(serialize_with = "as_text")]
    pub ours: Option<Timestamp>,
    /// Of theirs, or one that is as new as ours; none where that cannot be known beforehand.
    #[serde(serialize_with = "as_text")]
    pub theirs: Option<Timestamp>,
    /// What was accepted until then has reached everybody who is up to date.
    #[serde(skip)]
    pub settled: Timestamp,
}

impl NewestOperations {
    /// Asks both. Of a dump it is known when it has been read.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub async fn ask(store: &Store, peer: &Peer) -> Result<NewestOperations, CheckError> {
        let (settled, latest) = (settled(), latest());
        let ours = newest_of_store(store, settled, latest).await?;
        let theirs = match peer {
            Peer::Server(client) => {
                let bound = ours.map_or(settled, |ours| ours.min(settled));
                newest_of_server(client, bound, latest).await.map_err(PeerError::from)?
            }
            Peer::File(_) => None,
        };
        Ok(NewestOperations { ours, theirs, settled })
    }

    /// The time up to which both sides can be expected to be complete.
    pub fn horizon(&self) -> Timestamp {
        let nothing = Timestamp::from_millis(0);
        let ours = self.ours.unwrap_or(nothing).min(self.settled);
        self.theirs.map_or(ours, |theirs| theirs.min(ours))
    }
}

fn as_text<S: serde::Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => to.collect_str(at),
        None => to.serialize_none(),
    }
}

/// What is dated later than `latest` says nothing about how new a log is, here and below.
async fn newest_of_store(
    store: &Store,
    bound: Timestamp,
    latest: Timestamp,
) -> Result<Option<Timestamp>, StoreError> {
    let after = async |at| {
        let found = store.export_by_time(Some(Timestamp::from_millis(at)), 1).await?;
        let at = found.last().map(|operation| operation.created_at.millis());
        Ok::<_, StoreError>(at.filter(|at| *at <= latest.millis()))
    };
    Ok(newest(bound.millis(), after).await?.map(Timestamp::from_millis))
}

/// None where there is no export by time.
async fn newest_of_server(
    client: &ExportClient,
    bound: Timestamp,
    latest: Timestamp,
) -> Result<Option<Timestamp>, UpstreamFault> {
    let after = async |at| {
        let at = Timestamp::from_millis(at);
        let lines = client.lines(at, PAGE, Priority::Aside).await?;
        let read = lines.iter().filter_map(|line| Received::decode(line).ok());
        let times: Vec<i64> = read.map(|read| read.created_at.millis()).collect();
        let newest = times.iter().copied().filter(|at| *at <= latest.millis()).max();
        match (newest, lines.first()) {
            (None, Some(_)) if !times.is_empty() => Ok(None),
            (None, Some(line)) if !without_mark(line).trim_ascii_start().starts_with(b"{") => {
                let beginning = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
                Err(UpstreamFault::NotAnExport { beginning })
            }
            _ => Ok(newest.filter(|newest| *newest > at.millis())),
        }
    };
    match newest(bound.millis(), after).await {
        Ok(newest) => Ok(Some(Timestamp::from_millis(newest.unwrap_or(0)))),
        Err(UpstreamFault::UnexpectedStatus { status: 400..=499 })
        | Err(UpstreamFault::NotAnExport { .. }) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// The newest time of a log, or any from `bound` on, found with few questions for something that
/// is newer than a time.
async fn newest<E>(
    bound: i64,
    newer_than: impl AsyncFn(i64) -> Result<Option<i64>, E>,
) -> Result<Option<i64>, E> {
    // There is nothing after `end`, as far as it matters.
    let (mut end, mut step) = (bound, FIRST_STEP);
    let mut known = loop {
        let from = (bound - step).max(0);
        match newer_than(from).await? {
            Some(found) => break found,
            None if from == 0 => return Ok(None),
            None => end = from,
        }
        step = (step * STEP_GROWS).max(SECOND_STEP);
    };
    while known < end {
        // Mostly nothing follows any more; if something does, much may.
        match newer_than(known).await? {
            Some(found) => known = found,
            None => break,
        }
        let middle = known + (end - known) / 2;
        if middle > known {
            match newer_than(middle).await? {
                Some(found) => known = found,
                None => end = middle,
            }
        }
    }
    Ok(Some(known))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    /// The newest of these times, and the questions that it took in pages of so many.
    async fn found(times: &[i64], bound: i64, page: usize) -> (Option<i64>, u32) {
        let asked = Cell::new(0);
        let newer_than = async |after| {
            asked.set(asked.get() + 1);
            let newer = times.iter().copied().filter(|at| *at > after);
            Ok::<_, Infallible>(newer.take(page).last())
        };
        let Ok(newest) = newest(bound, newer_than).await;
        (newest, asked.get())
    }

    #[tokio::test]
    async fn the_newest_is_found_with_few_questions() {
        let bound = 1_700_000_000_000;
        assert_eq!(found(&[], bound, 1).await.0, None);
        assert_eq!(found(&[bound], bound, 1).await, (Some(bound), 1));
        assert_eq!(found(&[5, bound + 7], bound, 1).await, (Some(bound + 7), 1));
        let every_second: Vec<i64> = (1..100_000).map(|n| bound - n * 1000 - 70_000).collect();
        let times: Vec<i64> = every_second.into_iter().rev().collect();
        for page in [1, 1000] {
            let (newest, asked) = found(&times, bound, page).await;
            assert_eq!(newest, Some(bound - 71_000));
            assert!(asked < 60, "{asked}");
        }
        for last in [1, 1_000, 1_600_000_000_000] {
            let (newest, asked) = found(&[1, last], bound, 1).await;
            assert_eq!(newest, Some(last));
            assert!(asked < 12, "{asked}");
        }
    }
}
