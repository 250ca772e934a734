//! Taking archives into a store, by the same way as what is followed: while a batch is judged the next one is read and
//! decoded, and the one before it is committed.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::archive_reader::{ArchiveReader, ImportError, Step};
use super::lease::{self, while_renewing};
use super::numbering::BEGINNING;
use crate::blocking;
use crate::clock;
use crate::judge::{BatchJudge, Course, Cut, Decoded, Lines, NotJson, Prepared};
use crate::snapshot::Digest;
use crate::store::{ByTime, Lease, Source, Store, StoreError};
use crate::upstream::{Archive, Begins};
use did_plc::signature::Verifier;
use did_plc::{Did, Timestamp};

/// How far a number may be above the one before it in a file of which no index says that it is whole. The directory's
/// own are without large gaps.
const MAX_GAP: i64 = 1_000;
/// Batches that were read and wait to be judged, and as many that were judged and wait to be committed.
const WAITING: usize = 2;

/// Archives are taken into this store.
pub struct Import<'a> {
    /// Where operations go.
    pub store: &'a Store,
    /// The upstream that the archives were made from, without a slash at its end.
    pub upstream: &'a str,
    /// Who checks signatures.
    pub verifier: Arc<dyn Verifier>,
}

/// What came of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Volumes that were read.
    pub volumes: usize,
    /// Volumes that were not, since they were imported before.
    pub passed_over: usize,
    /// Lines that were read.
    pub lines: usize,
    /// Operations that are new in the store.
    pub accepted: usize,
    /// Lines with an operation that was there before.
    pub known: usize,
    /// Lines that were refused and kept, by the refusals' names.
    pub refused: BTreeMap<String, usize>,
    /// Refusals, of these or on record before, that do not stand any more: what they are about is accepted.
    pub accepted_later: usize,
    /// Lines that state no identity, and so are no entry of a log.
    pub unreadable: usize,
}

impl Imported {
    /// Lines that were refused and kept.
    pub fn all_refused(&self) -> usize {
        self.refused.values().sum()
    }
}

/// How far an import is.
#[derive(Debug)]
pub enum ImportProgress {
    /// So many bytes of all archives are read.
    Bytes(u64),
    /// All of the archive of this name is in the store.
    Archive(String, Imported),
}

impl Import<'_> {
    /// Takes in all of these archives as the one follower of the store. A crash leaves what was committed. The
    /// same archives again go on after the last volume that was imported whole, where an index tells volumes apart; else
    /// what is there already is recognised.
    ///
    /// # Errors
    ///
    /// [`ImportError`]; [`StoreError::LostLease`] while somebody follows.
    pub async fn run(
        &self,
        archives: Vec<Archive>,
        progress: impl FnMut(ImportProgress),
    ) -> Result<(), ImportError> {
        let (lease, source) = lease::take(self.store, self.upstream).await?;
        if source.renumbering {
            self.store.release(lease).await?;
            return Err(ImportError::Renumbering);
        }
        self.store.set_durability(false).await?;
        let work = self.take_in(&lease, &source, archives, progress);
        // An archive may come slowly, and the lease does not wait for it.
        let imported = while_renewing(self.store, &lease, work).await;
        self.store.set_durability(true).await?;
        self.store.release(lease).await?;
        imported
    }

    async fn take_in(
        &self,
        lease: &Lease,
        source: &Source,
        archives: Vec<Archive>,
        progress: impl FnMut(ImportProgress),
    ) -> Result<(), ImportError> {
        let (committed, receiver) = watch::channel(0);
        let (store, verifier) = (self.store.clone(), Arc::clone(&self.verifier));
        let judge =
            BatchJudge::new(store.clone(), verifier, self.upstream.to_owned(), receiver).await?;

        let (sender, steps) = mpsc::channel(WAITING);
        let reader = ArchiveReader {
            imported: self.imported_of(&archives).await?,
            cursor: source.cursor,
            steps: sender,
            read: 0,
        };
        // Dropped, it ends.
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run(archives)));
        let (works, work) = mpsc::channel(WAITING);
        let upstream = self.upstream.to_owned();
        let committer = Committer { store, lease: lease.clone(), upstream, committed };
        let committer = AbortOnDropHandle::new(tokio::spawn(committer.run(work)));

        let intake = Intake {
            judge,
            cursor: source.cursor,
            works,
            volume: Arc::default(),
            refused_before: 0,
            leads: None,
            may_have_gaps: true,
            read_by_time: None,
            imported: Imported::default(),
        };
        let judged = intake.run(Steps { receiver: steps, peeked: None }, progress).await;
        // What was judged is committed, also before an archive that cannot be read any further.
        blocking::finished("committing", committer.await).await?;
        judged?;
        blocking::finished("reading archives", reader.await).await;
        Ok(())
    }

    /// Which of the volumes of these archives were imported before.
    async fn imported_of(&self, archives: &[Archive]) -> Result<HashSet<Digest>, StoreError> {
        let volumes = archives.iter().flat_map(|archive| &archive.volumes);
        let contents: Vec<[u8; 32]> =
            volumes.filter_map(|volume| volume.content).map(|it| it.digest.bytes()).collect();
        Ok(self.store.imported(&contents).await?.into_iter().map(Digest::from_bytes).collect())
    }
}

/// What the reader brings.
struct Steps {
    receiver: mpsc::Receiver<Result<Step, ImportError>>,
    /// The next one, when it was looked at.
    peeked: Option<Result<Step, ImportError>>,
}

impl Steps {
    async fn next(&mut self) -> Option<Result<Step, ImportError>> {
        match self.peeked.take() {
            Some(step) => Some(step),
            None => self.receiver.recv().await,
        }
    }

    /// The identities of the next batch, where it is there already.
    fn next_dids(&mut self) -> Vec<Did> {
        if self.peeked.is_none() {
            self.peeked = self.receiver.try_recv().ok();
        }
        match &self.peeked {
            Some(Ok(Step::Lines { decoded, .. })) => decoded.dids(),
            _ => Vec::new(),
        }
    }
}

/// Judges what is read.
struct Intake {
    judge: BatchJudge,
    /// The cursor once everything that was judged is committed.
    cursor: i64,
    works: mpsc::Sender<Work>,
    /// The volume that is being read, which records and refusals name.
    volume: Arc<str>,
    /// What was refused before it.
    refused_before: usize,
    /// Whether it leaves no gap after the cursor, which follows it then; none where its first line will tell.
    leads: Option<bool>,
    /// Whether something may be left out within it.
    may_have_gaps: bool,
    /// Up to this time an archive that leaves nothing out has everything, and has no numbers.
    read_by_time: Option<Timestamp>,
    /// What came of the archive so far.
    imported: Imported,
}

impl Intake {
    /// Judges until everything is read. Ends early, and well, where the committer has: it says why.
    async fn run(
        mut self,
        mut steps: Steps,
        mut progress: impl FnMut(ImportProgress),
    ) -> Result<(), ImportError> {
        while let Some(step) = steps.next().await {
            let work = match step? {
                Step::PassedOver { begins } => {
                    self.begin_volume(begins);
                    self.imported.passed_over += 1;
                    continue;
                }
                Step::Volume { name, begins } => {
                    self.begin_volume(begins);
                    self.imported.volumes += 1;
                    self.volume = name;
                    continue;
                }
                Step::Lines { decoded, read } => {
                    progress(ImportProgress::Bytes(read));
                    Work::Commit(Box::new(self.take(decoded, &steps.next_dids()).await?))
                }
                Step::VolumeEnd { content } => match content {
                    // What was refused for lack of what it builds on may be forgotten before that comes.
                    Some(content) if self.imported.all_refused() == self.refused_before => {
                        Work::Imported(content)
                    }
                    _ => continue,
                },
                Step::ArchiveEnd { name } => {
                    if let Some(read) = self.read_by_time.take()
                        && self.works.send(Work::ReadByTime(read)).await.is_err()
                    {
                        break;
                    }
                    let (told, all_committed) = oneshot::channel();
                    if self.works.send(Work::Tell(told)).await.is_err()
                        || all_committed.await.is_err()
                    {
                        break;
                    }
                    progress(ImportProgress::Archive(name, std::mem::take(&mut self.imported)));
                    continue;
                }
            };
            if self.works.send(work).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn begin_volume(&mut self, begins: Begins) {
        self.refused_before = self.imported.all_refused();
        self.may_have_gaps = begins == Begins::WithItsFirst;
        self.leads = match begins {
            Begins::After(number) => Some(number <= self.cursor),
            Begins::WithoutGap => self.leads,
            Begins::WithItsFirst => None,
        };
    }

    async fn take(&mut self, decoded: Decoded, next: &[Did]) -> Result<Prepared, StoreError> {
        self.imported.lines += decoded.len();
        self.imported.unreadable += decoded.unreadable();
        let cursor = self.cursor;
        let leads = *self.leads.get_or_insert_with(|| {
            decoded.first_number().is_some_and(|first| first <= cursor.saturating_add(1))
        });
        // What is left out is for following to fetch.
        let leads = leads && !(self.may_have_gaps && decoded.has_gap_above(MAX_GAP));
        self.leads = Some(leads);
        if leads && !self.may_have_gaps && decoded.numbers().is_empty() {
            self.read_by_time = self.read_by_time.max(decoded.latest_until(clock::now()));
        }
        let (received_at, source) = (clock::now(), Some(Arc::clone(&self.volume)));
        let course = Course::Elsewhere;
        let lines = Lines { decoded, received_at, caught_up: false, course, source };
        let Cut { part, cursor, .. } = Cut::of(lines, cursor, NotJson::Keep, leads);
        let prepared = self.judge.judge(part, next).await?;
        self.cursor = cursor;
        self.imported.accepted += prepared.accepted;
        self.imported.known += prepared.known;
        self.imported.accepted_later += prepared.commit.lifted.len();
        for refusal in &prepared.commit.refusals {
            *self.imported.refused.entry(refusal.kind.clone()).or_default() += 1;
        }
        Ok(prepared)
    }
}

/// What the committer is given.
enum Work {
    /// A batch to be written.
    Commit(Box<Prepared>),
    /// The volume with these lines was imported whole.
    Imported(Digest),
    /// All that was created before this time was in archives without numbers that leave nothing out.
    ReadByTime(Timestamp),
    /// Somebody waits until everything before this is written.
    Tell(oneshot::Sender<()>),
}

/// Commits what was judged, in its order.
struct Committer {
    store: Store,
    lease: Lease,
    /// The upstream that the archives were made from.
    upstream: String,
    /// Number of the last batch that is committed.
    committed: watch::Sender<u64>,
}

impl Committer {
    /// Commits until nothing more comes. A crash leaves the batches before it; a volume is only noted after all of its
    /// batches.
    async fn run(self, mut work: mpsc::Receiver<Work>) -> Result<(), StoreError> {
        while let Some(work) = work.recv().await {
            match work {
                Work::Commit(prepared) => {
                    self.store.commit(&self.lease, &prepared.commit).await?;
                    self.committed.send_replace(prepared.batch);
                }
                Work::Imported(content) => {
                    self.store.note_imported(&self.lease, content.bytes()).await?;
                }
                Work::ReadByTime(read) => self.note_by_time(read).await?,
                // Whoever does not wait any more need not be told.
                Work::Tell(waiting) => drop(waiting.send(())),
            }
        }
        Ok(())
    }

    /// Has an upstream without numbers be read by time from there on. A crash before it has it be read from earlier.
    async fn note_by_time(&self, read: Timestamp) -> Result<(), StoreError> {
        let before = self.store.source().await?.and_then(|source| source.by_time);
        let before = before.filter(|before| before.upstream == self.upstream);
        let before = before.unwrap_or_else(|| ByTime {
            upstream: self.upstream.clone(),
            read: BEGINNING,
            second: BEGINNING,
        });
        let by_time = ByTime { read: before.read.max(read), ..before };
        self.store.set_by_time(&self.lease, &by_time).await
    }
}
