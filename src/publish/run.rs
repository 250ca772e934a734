//! One run: the folder is made to say what the log says.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, TryStreamExt};
use tokio::time::Instant;

use super::error::PublishError;
use super::folder::Folder;
use super::lines::Lines;
use crate::blocking;
use crate::snapshot::{Division, Index, SnapshotFile};
use crate::store::Store;

/// Operations that are read at once: a few megabytes.
const PAGE: i64 = 5_000;

/// How often the index is published while files are still being written: what a crash costs at most.
const PUBLISH_EVERY: Duration = Duration::from_secs(10);

/// What is written, from where, into which folder.
#[derive(Debug)]
pub struct Publication {
    /// The log.
    pub store: Store,
    /// The folder.
    pub folder: Arc<Folder>,
    /// How the numbers are divided; none for the division that the folder has, or else the usual one.
    pub division: Option<Division>,
    /// What is read again of what is published already.
    pub reread: Reread,
    /// Files that are read and written at a time; each takes a thread and some 50 MB.
    pub at_once: usize,
}

/// Which of the files that are published already are compared with the log once more. One that lacks an operation that
/// came late, or has one that is stated with another number or time now, gives way to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reread {
    /// All of them.
    All,
    /// The one whose turn it is: turns are counted from anywhere, and go round.
    Turn(u64),
    /// None.
    Nothing,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The index that is published now.
    pub index: Index,
    /// Files that were written.
    pub written: usize,
    /// Those of them that are in place of one that said otherwise, and not because the log has gone on since.
    pub replaced: usize,
}

impl Publication {
    /// Writes what is lacking, publishes it, and removes the files that nobody needs any more: those that are named neither
    /// by the new index nor by the one of before, which somebody may be reading by. `progress` is told how many operations
    /// were read so far.
    ///
    /// # Errors
    ///
    /// See [`PublishError`]. What was published until then stays, and the next run goes on from there.
    pub async fn run(&self, progress: impl FnMut(u64)) -> Result<Published, PublishError> {
        let source = self.store.source().await?;
        if source.is_some_and(|source| source.renumbering) {
            return Err(PublishError::Renumbering);
        }
        let folder = Arc::clone(&self.folder);
        let before = blocking::run("reading an index", move || folder.index()).await?;
        // Beyond it nothing is written, however much comes meanwhile.
        let last = self.store.last_sequence().await?.ok_or(PublishError::Empty)?;
        let division = self.division_after(before.as_ref(), last)?;
        let ranges =
            Ranges { store: self.store.clone(), folder: Arc::clone(&self.folder), division, last };
        let mut run = Run::after(before.as_ref(), ranges);
        run.go_through(self.reread, self.at_once, progress).await?;
        run.publish().await?;
        let Run { published: index, written, replaced, .. } = run;
        let (folder, kept) = (Arc::clone(&self.folder), index.clone());
        blocking::run("removing files", move || {
            folder.clean(&before.iter().chain([&kept]).collect::<Vec<_>>())
        })
        .await?;
        Ok(Published { index, written, replaced })
    }

    /// How the numbers are divided, where this is published and the log has this number at its end.
    fn division_after(&self, before: Option<&Index>, last: i64) -> Result<Division, PublishError> {
        let Some(before) = before else { return Ok(self.division.unwrap_or_default()) };
        let division = before.division();
        let reason = if self.division.is_some_and(|asked| asked != division) {
            let numbers = division.numbers();
            format!("its files are of {numbers} numbers each; name another folder for other ones")
        } else if before.last() > last {
            format!(
                "the snapshot in it goes up to number {}, and the log in the database to {last}: it is of another log, \
                 or of this one before it went back; name another folder",
                before.last()
            )
        } else {
            return Ok(division);
        };
        Err(PublishError::Unusable { path: self.folder.path().to_owned(), reason })
    }
}

/// A run that is under way.
struct Run {
    ranges: Ranges,
    /// The index as it is in the folder.
    published: Index,
    /// The last file of the index of before, to which the log may have added since.
    last_before: Option<i64>,
    /// The files that are on the disk, by the place of their range.
    files: BTreeMap<i64, SnapshotFile>,
    written: usize,
    replaced: usize,
}

impl Run {
    /// One that goes on from this index.
    fn after(before: Option<&Index>, ranges: Ranges) -> Run {
        let division = ranges.division;
        let published = before.cloned().unwrap_or_else(|| Index::new(division, Vec::new()));
        let files = published.files().iter();
        let files = files.map(|file| (division.place_of(file.first), file.clone())).collect();
        let last_before = published.files().last().map(|last| division.place_of(last.first));
        Run { ranges, published, last_before, files, written: 0, replaced: 0 }
    }

    /// Goes through the ranges in their order, and publishes now and then.
    async fn go_through(
        &mut self,
        reread: Reread,
        at_once: usize,
        mut progress: impl FnMut(u64),
    ) -> Result<(), PublishError> {
        if let Reread::Turn(turn) = reread
            && let Some(place) = self.whose_turn(turn)
        {
            let file =
                self.ranges.clone().bring_up_to_date(place, self.unless_grown(place)).await?;
            self.take_over(place, file);
        }
        // Everything before it is as it is to be.
        let mut passed = match reread {
            Reread::All => 0,
            Reread::Turn(_) | Reread::Nothing => self.last_before.unwrap_or(0),
        };
        let unless_grown: BTreeMap<i64, SnapshotFile> = self
            .files
            .keys()
            .filter_map(|&place| Some((place, self.unless_grown(place)?)))
            .collect();
        let ranges = self.ranges.clone();
        let outcomes = ranges.clone().from(passed).map_ok(|place| {
            let (ranges, published) = (ranges.clone(), unless_grown.get(&place).cloned());
            async move { Ok((place, ranges.bring_up_to_date(place, published).await?)) }
        });
        let mut outcomes = pin!(outcomes.try_buffered(at_once.max(1)));
        let (mut read, mut published_at) = (0, Instant::now());
        while let Some((place, file)) = outcomes.try_next().await? {
            // In what was passed over there is no operation any more.
            self.files.retain(|&other, _| !(passed..place).contains(&other));
            read += file.as_ref().map_or(0, |file| file.count);
            self.take_over(place, file);
            passed = place + 1;
            progress(read);
            if published_at.elapsed() >= PUBLISH_EVERY {
                self.publish().await?;
                published_at = Instant::now();
            }
        }
        self.files.retain(|&other, _| other < passed);
        Ok(())
    }

    /// The place of the file that is read again; none where there is none but the last, which is read anyway.
    fn whose_turn(&self, turn: u64) -> Option<i64> {
        let all = self.files.len().checked_sub(1).filter(|&all| all > 0)?;
        let place = usize::try_from(turn % all as u64).ok()?;
        self.files.keys().nth(place).copied()
    }

    /// The file of a range as it was published, where the log cannot have gone on in it since.
    fn unless_grown(&self, place: i64) -> Option<SnapshotFile> {
        let file = self.files.get(&place)?;
        let end = self.ranges.division.last_of(place).min(self.ranges.last);
        let grows = self.last_before == Some(place) && file.last < end;
        (!grows).then(|| file.clone())
    }

    /// Takes over what came of a range.
    fn take_over(&mut self, place: i64, file: Option<SnapshotFile>) {
        let Some(file) = file else {
            self.files.remove(&place);
            return;
        };
        let before = self.files.insert(place, file.clone());
        if before.as_ref() == Some(&file) {
            return;
        }
        self.written += 1;
        if before.is_some_and(|before| before.last == file.last || self.last_before != Some(place))
        {
            self.replaced += 1;
        }
    }

    /// Publishes the index of what is there, if it is another one than before.
    async fn publish(&mut self) -> Result<(), PublishError> {
        let index = Index::new(self.ranges.division, self.files.values().cloned().collect());
        if index == self.published && !self.published.files().is_empty() {
            return Ok(());
        }
        let (folder, document) = (Arc::clone(&self.ranges.folder), index.clone());
        blocking::run("publishing an index", move || folder.publish(&document)).await?;
        self.published = index;
        Ok(())
    }
}

/// The ranges of a log up to a number. Cheap to clone.
#[derive(Debug, Clone)]
struct Ranges {
    store: Store,
    folder: Arc<Folder>,
    division: Division,
    /// The last number that is read.
    last: i64,
}

impl Ranges {
    /// The places from this one on in which there are operations.
    fn from(self, place: i64) -> impl Stream<Item = Result<i64, PublishError>> {
        stream::try_unfold((self, place), async |(ranges, place)| {
            let next = ranges.store.export_by_sequence(ranges.division.before(place), 1).await?;
            let number = next.first().and_then(|next| next.sequence);
            Ok(number.filter(|&number| number <= ranges.last).map(|number| {
                let place = ranges.division.place_of(number);
                (place, (ranges, place + 1))
            }))
        })
    }

    /// The file of a range that says what the log says: the one that is published, if it does, or else a new one. None
    /// where there is no operation.
    async fn bring_up_to_date(
        self,
        place: i64,
        published: Option<SnapshotFile>,
    ) -> Result<Option<SnapshotFile>, PublishError> {
        if let Some(published) = published {
            let lines = self.read(place, Lines::counted()).await?.finish()?;
            if lines.is_some_and(|lines| lines.lines == published.lines) {
                return Ok(Some(published));
            }
        }
        let temporary = self.folder.temporary(place);
        let begun = temporary.clone();
        let lines = blocking::run("beginning a file", move || Lines::written_to(&begun)).await?;
        let lines = self.read(place, lines).await?;
        blocking::run("ending a file", move || {
            let file = lines.finish()?;
            if let Some(file) = &file {
                self.folder.name(&temporary, file)?;
            }
            Ok(file)
        })
        .await
    }

    /// Reads the operations of a range.
    async fn read(&self, place: i64, mut lines: Lines) -> Result<Lines, PublishError> {
        let mut after = self.division.before(place);
        let end = self.division.last_of(place).min(self.last);
        while after < end {
            let limit = PAGE.min(end - after).unsigned_abs() as usize;
            let mut page = self.store.export_by_sequence(after, limit).await?;
            page.truncate(page.partition_point(|operation| operation.sequence <= Some(end)));
            let Some(last) = page.last().and_then(|last| last.sequence) else { break };
            after = last;
            lines =
                blocking::run("writing lines", move || lines.add(&page).map(|()| lines)).await?;
        }
        Ok(lines)
    }
}
