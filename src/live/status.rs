//! How fresh the store is, for the answers of the server.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::gauge;
use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::{Outlook, Pace};
use super::upstreams::Upstreams;
use crate::clock;
use crate::store::{Commit, CommitId, Source, Store, StoreError, Word};
use did_plc::Timestamp;

/// What the follower is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Reading pages of the upstream's past.
    CatchingUp,
    /// Following the upstream's present.
    Live,
    /// Waiting for an upstream that cannot be reached or does not answer sense.
    Waiting,
    /// Not following: the store is only served.
    Idle,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 4] = [Mode::CatchingUp, Mode::Live, Mode::Waiting, Mode::Idle];

    /// The name in `/_health`.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::CatchingUp => "catching-up",
            Mode::Live => "live",
            Mode::Waiting => "waiting",
            Mode::Idle => "idle",
        }
    }
}

/// What this process is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes operations in.
    Follower,
    /// It serves what another process takes in.
    Reader,
}

impl Role {
    /// The name in `/_health` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Follower => "follower",
            Role::Reader => "reader",
        }
    }
}

/// A follower that has said nothing for so long does not follow, as far as a reader is concerned: it says something every
/// few seconds.
const SILENT: Duration = Duration::from_secs(20);

/// How far the store has come. Written by the follower, or by who learns of another process's, read by every answer,
/// without a lock but for the pace:
/// each figure is read for itself. What is said of the log rises, unless the cursor is set back, or a crash of the database
/// has taken commits back: what the store says of itself is what is true.
#[derive(Debug)]
pub struct Status {
    upstreams: Upstreams,
    received: AtomicI64,
    /// Commits of the log, whoever has made them.
    commits: AtomicI64,
    sequence: AtomicI64,
    last_operation: AtomicI64,
    last_word: AtomicI64,
    as_of: AtomicI64,
    read_twice: AtomicI64,
    mode: AtomicU8,
    caught_up: AtomicBool,
    /// The upstream's last sequence number when it was asked for; 0 before.
    head: AtomicI64,
    pace: Mutex<Pace>,
    role: watch::Sender<Role>,
    /// When the follower of another process said last what it does.
    said_at: AtomicI64,
    /// The last commit when this was made.
    commit: CommitId,
}

/// Stands for "never" in the times.
const NEVER: i64 = i64::MIN;

impl Status {
    /// The status of a follower of any of these upstreams (by their base URLs), the first before all others, that has
    /// just started on a store with this source, or on an empty one.
    pub fn new<'a>(
        upstreams: impl IntoIterator<Item = &'a str>,
        source: Option<&Source>,
    ) -> Status {
        let commit = source.map(|source| source.commit).unwrap_or_default();
        Status {
            upstreams: Upstreams::new(upstreams),
            received: AtomicI64::new(source.map_or(0, |source| source.cursor)),
            commits: AtomicI64::new(commit.number),
            sequence: AtomicI64::new(source.map_or(0, |source| source.cursor)),
            last_operation: AtomicI64::new(NEVER),
            last_word: AtomicI64::new(NEVER),
            as_of: AtomicI64::new(source.map_or(NEVER, complete_at)),
            read_twice: AtomicI64::new(source.map_or(0, |source| source.rereading.second)),
            mode: AtomicU8::new(Mode::Idle as u8),
            caught_up: AtomicBool::new(source.is_some_and(|source| source.caught_up_at.is_some())),
            head: AtomicI64::new(0),
            pace: Mutex::new(Pace::from(Instant::now(), source.map_or(0, |source| source.cursor))),
            role: watch::Sender::new(Role::Reader),
            said_at: AtomicI64::new(NEVER),
            commit,
        }
    }

    /// The status of a follower of any of these upstreams, the first before all others, that has just started on this
    /// store, with what the store itself
    /// says: how far it is, and when its last operation was created.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn of_store<'a>(
        upstreams: impl IntoIterator<Item = &'a str>,
        store: &Store,
    ) -> Result<Status, StoreError> {
        let source = store.source().await?;
        let status = Status::new(upstreams, source.as_ref());
        if let Some(last) = store.last_sequence().await? {
            let last = store.sequences(&[last]).await?;
            let created_at = last.first().map_or(NEVER, |last| last.created_at.millis());
            status.last_operation.store(created_at, Ordering::Release);
        }
        Ok(status)
    }

    /// The upstream has sent everything up to this sequence number. Less than before when it is read
    /// again from where the store is.
    pub fn set_received(&self, sequence: i64) {
        self.received.store(sequence, Ordering::Release);
    }

    /// This was committed, by this process: nobody else commits meanwhile.
    pub fn set_committed(&self, commit: &Commit) {
        self.commits.fetch_add(1, Ordering::Release);
        let before = self.sequence.fetch_max(commit.cursor_after, Ordering::Release);
        self.pace().reach(Instant::now(), commit.cursor_after.max(before));
        if let Some(latest) = latest(commit) {
            self.last_operation.fetch_max(latest.millis(), Ordering::Release);
            self.as_of.fetch_max(latest.millis(), Ordering::Release);
        }
        if commit.caught_up {
            self.set_complete_at(Timestamp::from_millis(commit.received_at_millis));
        }
    }

    /// The cursor was put back to this sequence number; what was read twice above it is another log's.
    pub fn set_back(&self, sequence: i64) {
        self.sequence.store(sequence, Ordering::Release);
        self.read_twice.fetch_min(sequence, Ordering::Release);
        self.head.store(0, Ordering::Release);
        self.pace().reach(Instant::now(), sequence);
    }

    /// This process has taken up following from here.
    pub fn set_following(&self, source: &Source) {
        self.set_position(source);
        if self.role() == Role::Reader {
            // What another process was doing is over.
            self.set_mode(Mode::CatchingUp);
            self.role.send_replace(Role::Follower);
        }
    }

    /// Another process follows.
    pub fn set_reading(&self) {
        self.role.send_if_modified(|role| std::mem::replace(role, Role::Reader) != Role::Reader);
    }

    /// What the store says of the log and of its follower, for a process that reads.
    pub fn learn(&self, source: &Source) {
        self.set_position(source);
        self.caught_up.fetch_or(source.caught_up_at.is_some(), Ordering::Release);
        let Some(word) = &source.word else { return };
        self.said_at.store(word.said_at, Ordering::Release);
        self.received.store(word.received, Ordering::Release);
        self.head.store(word.head, Ordering::Release);
        self.last_word.fetch_max(word.heard_at.unwrap_or(NEVER), Ordering::Release);
        self.last_operation.store(word.last_operation_at.unwrap_or(NEVER), Ordering::Release);
        let mode = Mode::ALL.into_iter().find(|mode| mode.name() == word.mode);
        self.set_mode(mode.unwrap_or(Mode::Idle));
        self.upstreams.learn(&word.followed, &word.upstreams);
    }

    /// How far the log is. It may be less than it was: a crash of the database may have taken commits back.
    fn set_position(&self, source: &Source) {
        self.commits.store(source.commit.number, Ordering::Release);
        self.as_of.store(complete_at(source), Ordering::Release);
        self.sequence.store(source.cursor, Ordering::Release);
        self.read_twice.store(source.rereading.second, Ordering::Release);
        self.pace().reach(Instant::now(), source.cursor);
    }

    /// What a reader is told, of the log as it is once this is committed; of the log as it is where nothing is.
    pub fn word(&self, now: Timestamp, commit: Option<&Commit>) -> Word {
        let some = |millis: i64| (millis != NEVER).then_some(millis);
        let latest = commit.map_or(NEVER, |commit| latest(commit).map_or(NEVER, Timestamp::millis));
        let complete_at = commit.filter(|commit| commit.caught_up);
        let complete_at = complete_at.map_or(NEVER, |commit| commit.received_at_millis);
        let as_of = self.as_of.load(Ordering::Acquire).max(latest).max(complete_at);
        Word {
            said_at: now.millis(),
            mode: self.mode().name().to_owned(),
            as_of: some(as_of),
            heard_at: some(self.last_word.load(Ordering::Acquire)),
            last_operation_at: some(self.last_operation.load(Ordering::Acquire).max(latest)),
            received: self.received_sequence(),
            head: self.head.load(Ordering::Acquire),
            followed: self.upstream().to_owned(),
            upstreams: self.upstreams.words(),
        }
    }

    /// What this process is.
    pub fn role(&self) -> Role {
        *self.role.borrow()
    }

    /// What this process is, to wait for a change.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    /// The last commit when this was made: whoever was there since then is told of what comes after.
    pub fn commit(&self) -> CommitId {
        self.commit
    }

    /// The upstream said something, if only that it is there.
    pub fn set_heard(&self, at: Timestamp) {
        self.last_word.fetch_max(at.millis(), Ordering::Release);
    }

    /// Everything that the upstream had at this time is committed.
    pub fn set_complete_at(&self, at: Timestamp) {
        self.as_of.fetch_max(at.millis(), Ordering::Release);
        self.caught_up.store(true, Ordering::Release);
        // What was received is the last number from here on, and one that was wrong is forgotten.
        self.head.store(0, Ordering::Release);
    }

    /// Everything up to this sequence number was read twice.
    pub fn set_read_twice(&self, sequence: i64) {
        self.read_twice.store(sequence, Ordering::Release);
    }

    /// The upstream's last sequence number was this one just now.
    pub fn set_head(&self, sequence: i64) {
        self.head.store(sequence, Ordering::Release);
    }

    /// The follower now does this.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Release);
    }

    /// Base URL of the upstream that is followed, without a slash at its end.
    pub fn upstream(&self) -> &str {
        self.upstreams.base()
    }

    /// All upstreams that can be followed.
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// Commits of the log. Asked for after the others, it is that of a log that has all that they say.
    pub fn commits(&self) -> i64 {
        self.commits.load(Ordering::Acquire)
    }

    /// The last sequence number that is committed; 0 before the first.
    pub fn sequence(&self) -> i64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// The last sequence number that was received.
    pub fn received_sequence(&self) -> i64 {
        self.received.load(Ordering::Acquire)
    }

    /// The sequence number up to which everything was read twice.
    pub fn read_twice(&self) -> i64 {
        self.read_twice.load(Ordering::Acquire)
    }

    /// How much of the upstream's log is read, and how long the rest will take; none before the upstream's last number
    /// is known.
    pub fn outlook(&self) -> Option<Outlook> {
        let learned = self.head.load(Ordering::Acquire);
        let head = learned.max(self.received_sequence()).max(self.sequence());
        (learned > 0 || self.caught_up()).then(|| self.pace().outlook(Instant::now(), head))
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest `createdAt` that was committed.
    pub fn last_operation(&self) -> Option<Timestamp> {
        time(&self.last_operation)
    }

    /// How long ago the upstream said something; none when it has not since the start.
    pub fn upstream_age(&self, now: Timestamp) -> Option<Duration> {
        time(&self.last_word).map(|at| now.since(at))
    }

    /// The time up to which the store has everything: while following live, the last time that
    /// everything the upstream had was committed; while catching up, the `createdAt` that the
    /// log has been read up to.
    pub fn as_of(&self) -> Option<Timestamp> {
        time(&self.as_of)
    }

    /// How old the store's picture is; none before the first commit.
    pub fn lag(&self, now: Timestamp) -> Option<Duration> {
        self.as_of().map(|at| now.since(at))
    }

    /// States all of this as metrics.
    pub fn state_metrics(&self, now: Timestamp) {
        let (received, committed) = (self.received_sequence(), self.sequence());
        gauge!("plc_received_cursor").set(received as f64);
        gauge!("plc_cursor").set(committed as f64);
        if let Some(Outlook { head, left, .. }) = self.outlook() {
            gauge!("plc_upstream_cursor").set(head as f64);
            let left = left.filter(|_| self.mode() == Mode::CatchingUp);
            gauge!("plc_catch_up_seconds").set(left.unwrap_or_default().as_secs_f64());
        }
        gauge!("plc_read_twice_cursor").set(self.read_twice() as f64);
        gauge!("plc_lag_operations").set((received - committed).max(0) as f64);
        gauge!("plc_caught_up").set(f64::from(u8::from(self.caught_up())));
        if let Some(lag) = self.lag(now) {
            gauge!("plc_lag_seconds").set(lag.as_secs_f64());
        }
        if let Some(silence) = self.upstream_age(now) {
            gauge!("plc_upstream_silence_seconds").set(silence.as_secs_f64());
        }
        for role in [Role::Follower, Role::Reader] {
            let is = f64::from(u8::from(role == self.role()));
            gauge!("plc_role", "role" => role.name()).set(is);
        }
        let doing = self.mode();
        for mode in Mode::ALL {
            let is = f64::from(u8::from(mode == doing));
            gauge!("plc_mode", "mode" => mode.name()).set(is);
        }
        self.upstreams.state_metrics();
    }

    /// What the follower is doing, in this process or in another one. One that is not heard of does nothing.
    pub fn mode(&self) -> Mode {
        let said_at = self.said_at.load(Ordering::Acquire);
        let is_silent =
            said_at != NEVER && clock::now().since(Timestamp::from_millis(said_at)) > SILENT;
        if self.role() == Role::Reader && is_silent {
            return Mode::Idle;
        }
        let mode = self.mode.load(Ordering::Acquire);
        Mode::ALL.into_iter().find(|&known| known as u8 == mode).unwrap_or(Mode::Idle)
    }

    /// Whether the log was caught up once: from then on an identity that is not here does not
    /// exist.
    pub fn caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Acquire)
    }
}

/// The time up to which the log is complete, as the store says.
fn complete_at(source: &Source) -> i64 {
    let said = source.word.as_ref().and_then(|word| word.as_of);
    source.caught_up_at.map(Timestamp::millis).max(said).unwrap_or(NEVER)
}

/// The latest `createdAt` in a commit. One that is dated into the future does not make the picture any newer.
fn latest(commit: &Commit) -> Option<Timestamp> {
    let received_at = Timestamp::from_millis(commit.received_at_millis);
    let latest = commit.operations.iter().map(|operation| operation.created_at).max();
    latest.map(|latest| latest.min(received_at))
}

fn time(millis: &AtomicI64) -> Option<Timestamp> {
    match millis.load(Ordering::Acquire) {
        NEVER => None,
        millis => Some(Timestamp::from_millis(millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::upstreams::Standing;
    use super::*;
    use crate::store::{Rereading, StoredOperation};
    use did_plc::Did;

    /// A commit up to this number, with an operation of this time.
    fn commit(cursor_after: i64, created_at: i64, received_at_millis: i64) -> Commit {
        let operation = StoredOperation {
            did: Did::from_bytes([7; 15]),
            created_at: Timestamp::from_millis(created_at),
            sequence: Some(cursor_after),
            signed: Vec::new().into(),
            signer: 0,
            nullified_by: None,
            received_at: Timestamp::from_millis(received_at_millis),
        };
        let operations = vec![operation];
        Commit { cursor_after, operations, received_at_millis, ..Commit::default() }
    }

    /// A store of which this is said.
    fn source(cursor: i64, word: Word) -> Source {
        Source {
            upstream: "https://plc.example".to_owned(),
            cursor,
            cursor_cid: None,
            epoch: 1,
            caught_up_at: Some(Timestamp::from_millis(500)),
            rereading: Rereading::default(),
            renumbering: false,
            forgotten_up_to: None,
            by_time: None,
            commit: CommitId::default(),
            word: Some(word),
        }
    }

    #[test]
    fn a_reader_says_what_the_follower_has_said() {
        let now = clock::now();
        let follower = Status::new(["https://plc.example", "https://other.example"], None);
        follower.set_committed(&commit(7, now.millis() - 5_000, now.millis()));
        follower.set_complete_at(now);
        follower.set_heard(now);
        follower.set_mode(Mode::Live);
        follower.upstreams().set(0, Standing::Away, "it does not answer");
        follower.upstreams().set_followed(1);
        let word = follower.word(now, Some(&commit(8, now.millis() - 1_000, now.millis())));

        let reader = Status::new(["https://plc.example", "https://other.example"], None);
        assert_eq!((reader.role(), reader.mode()), (Role::Reader, Mode::Idle));
        reader.learn(&source(8, word.clone()));
        assert_eq!((reader.sequence(), reader.as_of(), reader.mode()), (8, Some(now), Mode::Live));
        assert_eq!(reader.last_operation(), Some(Timestamp::from_millis(now.millis() - 1_000)));
        assert_eq!((reader.upstream_age(now), reader.caught_up()), (Some(Duration::ZERO), true));
        assert_eq!(reader.upstream(), "https://other.example");
        assert_eq!(reader.upstreams().report(0), follower.upstreams().report(0));

        // Once it is silent nobody follows, and how old the log is goes on to be said.
        let word = Word { said_at: now.millis() - 60_000, ..word };
        reader.learn(&source(8, word));
        assert_eq!((reader.mode(), reader.as_of()), (Mode::Idle, Some(now)));
        reader.set_following(&source(6, Word::default()));
        assert_eq!((reader.role(), reader.mode()), (Role::Follower, Mode::CatchingUp));
        assert_eq!(reader.sequence(), 6);
    }

    #[test]
    fn what_a_crash_of_the_database_has_taken_back_is_not_stated_any_more() {
        let at = |millis| Some(Timestamp::from_millis(millis));
        let said = |as_of| Word { as_of, last_operation_at: as_of, ..Word::default() };
        let status = Status::new(["https://plc.example"], None);
        status.learn(&source(8, said(Some(9_000))));
        assert_eq!(
            (status.sequence(), status.as_of(), status.last_operation()),
            (8, at(9_000), at(9_000))
        );
        status.learn(&source(7, said(Some(7_000))));
        assert_eq!(
            (status.sequence(), status.as_of(), status.last_operation()),
            (7, at(7_000), at(7_000))
        );
        // Who follows knows more than it has told, and has lost that too.
        status.set_following(&source(7, said(Some(7_000))));
        status.set_committed(&commit(8, 8_000, 9_000));
        status.set_complete_at(Timestamp::from_millis(9_000));
        status.set_following(&source(7, said(Some(7_000))));
        assert_eq!((status.sequence(), status.as_of(), status.commits()), (7, at(7_000), 0));
    }

    #[test]
    fn the_picture_is_as_old_as_the_last_time_that_it_was_whole() {
        let at = Timestamp::from_millis;
        let status = Status::new(["https://plc.example/"], None);
        assert_eq!(status.upstream(), "https://plc.example");
        assert_eq!((status.sequence(), status.as_of(), status.caught_up()), (0, None, false));

        status.set_committed(&commit(7, 1_000, 2_000));
        status.set_heard(at(90_000));
        assert_eq!((status.sequence(), status.as_of()), (7, Some(at(1_000))));
        assert_eq!(status.lag(at(91_000)), Some(Duration::from_secs(90)));
        assert_eq!(status.upstream_age(at(91_000)), Some(Duration::from_secs(1)));

        status.set_complete_at(at(90_000));
        // An operation that was accepted late changes nothing about how far we are.
        status.set_committed(&commit(5, 500, 90_000));
        assert_eq!((status.sequence(), status.as_of()), (7, Some(at(90_000))));
        assert_eq!(status.last_operation(), Some(at(1_000)));
        assert!(status.caught_up());
        status.set_back(6);
        assert_eq!((status.sequence(), status.as_of()), (6, Some(at(90_000))));

        status.set_committed(&commit(8, 4_000_000_000_000, 95_000));
        assert_eq!(status.lag(at(100_000)), Some(Duration::from_secs(5)));
    }

    #[test]
    fn every_mode_comes_back() {
        let status = Status::new([""], None);
        for mode in Mode::ALL {
            status.set_mode(mode);
            assert_eq!(status.mode(), mode);
        }
    }
}
