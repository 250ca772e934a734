//! What commits tell clients of the stream, for the processes that did not make them.
//!
//! Each commit notes in its transaction which operations are new for these clients. So a process that looks knows them
//! exactly, whoever made the commit, and whatever crashed meanwhile. The last [`KEPT`] commits are kept.

use std::collections::HashMap;

use super::StoreError;
use super::operation::StoredOperation;

/// Commits that are kept: at 200 a second those of 20 seconds. Who looks more rarely sends its clients back to their
/// cursors.
pub(super) const KEPT: i64 = 4_096;
/// Runs of numbers that a commit lists at most, so that all that is kept takes some 40 MB at worst. A commit of the present
/// has a few; where there are more, clients are sent back to their cursors.
const MOST_RUNS: usize = 512;
/// Operations that are told of between two looks: a follower that catches up writes as many in a few seconds.
const MOST_TOLD: usize = 100_000;
/// Operations that are read at once, unless one commit has more.
const AT_ONCE: usize = 2_000;

/// One commit of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitId {
    /// Which one it is, from 1 on; 0 stands for the empty log.
    pub number: i64,
    /// The epoch of the follower that made it. A crash of the database server may take the last commits back while the log is
    /// caught up; the next follower gives their numbers out again.
    pub epoch: i64,
}

/// What some commits tell.
#[derive(Debug, Default)]
pub struct News {
    /// The last commit that is told of here.
    pub through: CommitId,
    /// The last commit that there was.
    pub last: CommitId,
    /// The operations that each of them tells of, by ascending numbers. One that was told of again by a later commit is only
    /// there.
    pub commits: Vec<Vec<StoredOperation>>,
}

/// A row of `commits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) id: CommitId,
    pub(super) told: Option<String>,
}

/// Which operations are to be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) through: CommitId,
    pub(super) last: CommitId,
    /// Their numbers, ascending, of each commit.
    pub(super) commits: Vec<Vec<i64>>,
}

/// The place of a commit's row.
pub(super) fn slot(number: i64) -> i64 {
    number.rem_euclid(KEPT)
}

/// The numbers as they are stored: `1-3,7`. None where they are too scattered.
pub(super) fn listed(numbers: impl Iterator<Item = i64>) -> Option<String> {
    let mut numbers: Vec<i64> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    let runs: Vec<&[i64]> = numbers.chunk_by(|a, b| a + 1 == *b).collect();
    let run = |run: &&[i64]| match run {
        [only] => only.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    (runs.len() <= MOST_RUNS).then(|| runs.iter().map(run).collect::<Vec<_>>().join(","))
}

/// The runs of numbers that a text lists.
fn runs(told: &str) -> Option<Vec<(i64, i64)>> {
    let run = |run: &str| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    told.split(',').filter(|run| !run.is_empty()).map(run).collect()
}

impl Plan {
    /// What is to be read for those who were told of everything up to `after`, of all rows from that one on, ascending. None
    /// where some of it is gone.
    pub(super) fn after(after: CommitId, noted: &[Noted]) -> Result<Option<Plan>, StoreError> {
        let Some(last) = noted.last().map(|last| last.id) else {
            return Ok((after.number == 0).then(Plan::default));
        };
        let numbers = noted.iter().map(|noted| noted.id.number);
        // The first is the one that is known, unless there is none before them.
        let first = if after.number == 0 { 1 } else { after.number };
        let is_whole = numbers.eq(first..=last.number);
        let is_known = after.number == 0 || noted[0].id == after;
        if !is_whole || !is_known {
            return Ok(None);
        }
        let new = if after.number == 0 { noted } else { &noted[1..] };
        let mut told: HashMap<i64, usize> = HashMap::new();
        for (place, noted) in new.iter().enumerate() {
            let Some(text) = &noted.told else { return Ok(None) };
            for (first, last) in runs(text).ok_or_else(|| damaged(noted))? {
                let more = usize::try_from(last.saturating_sub(first)).unwrap_or(usize::MAX);
                if told.len().saturating_add(more) >= MOST_TOLD {
                    return Ok(None);
                }
                told.extend((first..=last).map(|number| (number, place)));
            }
        }
        let mut commits: Vec<Vec<i64>> = vec![Vec::new(); new.len()];
        for (number, place) in told {
            commits[place].push(number);
        }
        let mut plan = Plan { through: last, last, commits };
        plan.cut(new);
        Ok(Some(plan))
    }

    /// Leaves what is more than is read at once for the next look.
    fn cut(&mut self, new: &[Noted]) {
        let mut operations = 0;
        let fits = |commit: &&Vec<i64>| {
            let fits = operations == 0 || operations + commit.len() <= AT_ONCE;
            operations += commit.len();
            fits
        };
        let kept = self.commits.iter().take_while(fits).count();
        self.commits.truncate(kept);
        self.commits.iter_mut().for_each(|commit| commit.sort_unstable());
        if let Some(through) = kept.checked_sub(1).and_then(|last| new.get(last)) {
            self.through = through.id;
        }
    }

    /// The numbers of all of them.
    pub(super) fn numbers(&self) -> Vec<i64> {
        self.commits.concat()
    }

    /// With the operations that hold these numbers. One that holds none any more is told of by a commit that is still to
    /// come, or was taken out of the log.
    pub(super) fn with(self, operations: Vec<StoredOperation>) -> News {
        let numbered =
            operations.into_iter().filter_map(|it| it.sequence.map(|number| (number, it)));
        let mut held: HashMap<i64, StoredOperation> = numbered.collect();
        let operations =
            |numbers: Vec<i64>| numbers.iter().filter_map(|number| held.remove(number)).collect();
        let commits = self.commits.into_iter().map(operations).collect();
        News { through: self.through, last: self.last, commits }
    }
}

fn damaged(noted: &Noted) -> StoreError {
    StoreError::Damaged {
        place: format!("table commits, number {}", noted.id.number),
        reason: "a list of numbers that is none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(number: i64, told: &str) -> Noted {
        Noted { id: CommitId { number, epoch: 1 }, told: Some(told.to_owned()) }
    }

    fn at(number: i64) -> CommitId {
        CommitId { number, epoch: 1 }
    }

    fn plan(after: i64, noted: &[Noted]) -> Option<Vec<Vec<i64>>> {
        let after = if after == 0 { CommitId::default() } else { at(after) };
        Plan::after(after, noted).unwrap().map(|plan| plan.commits)
    }

    #[test]
    fn numbers_are_listed_in_runs() {
        assert_eq!(listed([7, 1, 3, 2, 3].into_iter()).as_deref(), Some("1-3,7"));
        assert_eq!(listed([].into_iter()).as_deref(), Some(""));
        assert_eq!(runs("1-3,7"), Some(vec![(1, 3), (7, 7)]));
        assert_eq!((runs(""), runs("1-x")), (Some(vec![]), None));
        let scattered = |count: i64| listed((0..count).map(|number| 2 * number));
        assert!(scattered(MOST_RUNS as i64).is_some());
        assert!(scattered(MOST_RUNS as i64 + 1).is_none());
    }

    #[test]
    fn what_is_new_is_what_comes_after_what_is_known() {
        assert_eq!(plan(0, &[]), Some(vec![]));
        assert_eq!(plan(0, &[noted(1, "1-2"), noted(2, "3")]), Some(vec![vec![1, 2], vec![3]]));
        assert_eq!(plan(1, &[noted(1, "1-2"), noted(2, "3")]), Some(vec![vec![3]]));
        assert_eq!(plan(2, &[noted(2, "3")]), Some(vec![]));
        // A number that went to another operation is told of where that happened.
        let moved = [noted(1, "1"), noted(2, "2-3"), noted(3, "2")];
        assert_eq!(plan(1, &moved), Some(vec![vec![3], vec![2]]));
    }

    #[test]
    fn what_is_gone_is_missed() {
        // Others have taken the places of those in between, or all of it was taken back.
        assert_eq!(plan(3, &[noted(5, "9")]), None);
        assert_eq!(plan(3, &[]), None);
        assert_eq!(plan(0, &[noted(2, "9")]), None);
        let other = Noted { id: CommitId { number: 3, epoch: 2 }, ..noted(3, "8") };
        assert_eq!(plan(3, &[other]), None);
        let unlisted = Noted { told: None, ..noted(2, "") };
        assert_eq!(plan(1, &[noted(1, "1"), unlisted]), None);
        assert_eq!(plan(1, &[noted(1, "1"), noted(2, "2-200000")]), None);
    }

    #[test]
    fn much_is_read_in_parts() {
        let much = [noted(1, ""), noted(2, "1-1500"), noted(3, "1501-1600"), noted(4, "1601-9000")];
        let first = Plan::after(at(1), &much).unwrap().unwrap();
        assert_eq!((first.through, first.last, first.numbers().len()), (at(3), at(4), 1_600));
        let second = Plan::after(first.through, &much[2..]).unwrap().unwrap();
        assert_eq!((second.through, second.numbers().len()), (at(4), 7_400));
    }
}
