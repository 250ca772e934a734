//! What a follower writes, and under which right.

use did_plc::{Did, Timestamp};

use super::codec::is_genesis;
use super::divergence::NewDivergence;
use super::news::CommitId;
use super::operation::StoredOperation;
use super::refusal::{NewRefusal, RefusalKey};
use super::word::Word;

/// Everything that one batch changes, written in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// Cursor that the batch started from: must be the stored one, or nothing is written.
    pub cursor_before: i64,
    /// Cursor after the batch.
    pub cursor_after: i64,
    /// The CID that the upstream stated under that number; none when it stated none. What is
    /// stored stays where the cursor does not move.
    pub cursor_cid: Option<String>,
    /// New operations that come after everything stored of their identities, in any order.
    /// `nullified_by` may be set already when one operation of the batch nullifies another.
    pub operations: Vec<StoredOperation>,
    /// Operations stored earlier that are now nullified: (identity, `created_at`, `created_at` of
    /// the one that nullified it). No other operation of the identity has this `created_at`.
    pub nullified: Vec<(Did, Timestamp, Timestamp)>,
    /// Operations stored earlier without a sequence number that the upstream has now numbered. No
    /// other operation of the identity has this `created_at`.
    pub numbered: Vec<(Did, Timestamp, i64)>,
    /// Identities whose stored operations are replaced: something came late, or a number went from one
    /// operation to another. No identity is in here and in `operations`, `nullified` or `numbered`.
    pub rewritten: Vec<Rewritten>,
    /// The numbers of those operations of rewritten identities that clients of the stream could not be told of before:
    /// they are new, or had no number.
    pub late: Vec<i64>,
    /// What was refused, or is refused for another reason than the one on record.
    pub refusals: Vec<NewRefusal>,
    /// Refusals on record that do not stand any more: what they are about is accepted.
    pub lifted: Vec<RefusalKey>,
    /// The numbers of what was held otherwise before, each once.
    pub unsettled: Vec<Unsettled>,
    /// Differences that were noticed while judging.
    pub divergences: Vec<NewDivergence>,
    /// When the batch arrived (milliseconds since 1970; zero in [`Commit::default`]).
    pub received_at_millis: i64,
    /// True when the batch reached the upstream's present: from then on an identity that is not
    /// here does not exist.
    pub caught_up: bool,
    /// What the follower knows from here on; what is stored stays where there is none.
    pub word: Option<Word>,
}

impl Commit {
    /// The numbers of the operations that are new for clients of the stream, in no order.
    pub(super) fn told(&self) -> impl Iterator<Item = i64> {
        let new = self.operations.iter().filter_map(|operation| operation.sequence);
        let numbered = self.numbered.iter().map(|(_, _, number)| *number);
        new.chain(numbered).chain(self.late.iter().copied())
    }

    /// Whether the cursor is put back.
    pub(super) fn goes_back(&self) -> bool {
        self.cursor_after < self.cursor_before
    }

    /// Every operation that it writes.
    pub(super) fn written(&self) -> impl Iterator<Item = &StoredOperation> {
        let rewritten = self.rewritten.iter().flat_map(|rewritten| &rewritten.operations);
        self.operations.iter().chain(rewritten)
    }

    /// How many operations more there are with it.
    pub(super) fn more_operations(&self) -> i64 {
        let replaced: usize = self.rewritten.iter().map(|rewritten| rewritten.stored).sum();
        self.written().count() as i64 - replaced as i64
    }

    /// How many genesis operations more there are with it, which is how many identities.
    pub(super) fn more_identities(&self) -> i64 {
        let replaced: usize = self.rewritten.iter().map(|rewritten| rewritten.stored_geneses).sum();
        let written = self.written().filter(|new| is_genesis(&new.signed)).count();
        written as i64 - replaced as i64
    }
}

/// Unsettled numbers that are remembered at most: a few megabytes. What finds no room is left to the rounds in which all
/// is read again.
pub(super) const MAX_UNSETTLED: i64 = 100_000;

/// A number under which the upstream states something else than it has stated before, which was taken over: it is read
/// once more, later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsettled {
    /// The number that an operation has, or had, for which another one was stated, or another time.
    pub number: i64,
    /// Whether it was another time.
    pub times: bool,
}

/// All operations of an identity, in place of those that are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The identity.
    pub did: Did,
    /// How many operations of it are stored.
    pub stored: usize,
    /// How many of them are genesis operations: none or one.
    pub stored_geneses: usize,
    /// What it consists of from now on. Those that were stored before are among them as they were received.
    pub operations: Vec<StoredOperation>,
}

/// What the store knows about the upstream that it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Base URL, without a slash at its end.
    pub upstream: String,
    /// Last sequence number that is committed; 0 before the first.
    pub cursor: i64,
    /// The CID that the upstream stated under that number, which need not be that of an operation
    /// that we hold; none when it stated none.
    pub cursor_cid: Option<String>,
    /// Raised by each follower that takes over.
    pub epoch: i64,
    /// When the log was caught up for the first time.
    pub caught_up_at: Option<Timestamp>,
    /// How far what was read is read again.
    pub rereading: Rereading,
    /// How far the upstream was read that was read by time last; none where there was none.
    pub by_time: Option<ByTime>,
    /// The numbers that operations have are an earlier upstream's, until the log of this one has been read to its
    /// end.
    pub renumbering: bool,
    /// The highest number that a refusal stated which is not kept any more.
    pub forgotten_up_to: Option<i64>,
    /// The last commit.
    pub commit: CommitId,
    /// What the follower said last of what it knows; none before it has.
    pub word: Option<Word>,
}

/// How far the log is read again, behind the follower.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rereading {
    /// Everything up to this number was read twice.
    pub second: i64,
    /// Everything up to this number was read in the round through the whole log that is under way.
    pub round: i64,
    /// When that round began; none before the first.
    pub round_began_at: Option<Timestamp>,
    /// Rounds that were completed.
    pub rounds: i64,
}

/// How far an upstream is read by time, since it has numbers of its own or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByTime {
    /// Base URL, without a slash at its end.
    pub upstream: String,
    /// All of it was read up to this `createdAt`.
    pub read: Timestamp,
    /// All of it was read twice up to this one.
    pub second: Timestamp,
}

/// The right to write as the one follower, until somebody raises the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The epoch that this follower writes under.
    pub epoch: i64,
}
