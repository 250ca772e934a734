//! Reading archives for an import: volume after volume, in batches that are decoded while the one before is judged.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::judge::Decoded;
use crate::snapshot::Digest;
use crate::store::StoreError;
use crate::upstream::{
    Archive, ArchiveError, Begins, DumpError, DumpReader, OpenVolume, Volume, Volumes,
};

/// Lines of a batch, about: so many that what a commit costs by itself is little beside them.
const MAX_BATCH: usize = 4_000;
/// Bytes of the lines of a batch, about: ten times what ordinary lines have.
const MAX_BATCH_BYTES: usize = 32 << 20;

/// Archives that were not taken in to their end. What came before is in the store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Because of an archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The numbers of the log are an earlier upstream's: an archive of the one that is followed would move the cursor
    /// over what still has them.
    #[error(
        "the numbers of another upstream are being taken over (`renumber`); import when `serve` has read its log to the end"
    )]
    Renumbering,
}

impl From<DumpError> for ImportError {
    fn from(error: DumpError) -> ImportError {
        ImportError::Archive(error.into())
    }
}

/// What is met in archives, in this order.
#[derive(Debug)]
pub enum Step {
    /// A volume that was imported before, and is passed over.
    PassedOver { begins: Begins },
    /// A volume begins.
    Volume { name: Arc<str>, begins: Begins },
    /// Lines of it; so many bytes of all archives are read by now.
    Lines { decoded: Decoded, read: u64 },
    /// It has been read to its end.
    VolumeEnd { content: Option<Digest> },
    /// The last volume of an archive has.
    ArchiveEnd { name: String },
}

/// Reads archives, as far ahead as there is room for.
pub struct ArchiveReader {
    /// Volumes that were imported before, by the SHA-256 of their lines.
    pub imported: HashSet<Digest>,
    /// Operations up to this number are not asked of a replica.
    pub cursor: i64,
    /// Who takes what is read.
    pub steps: mpsc::Sender<Result<Step, ImportError>>,
    /// Bytes that were read, or passed over.
    pub read: u64,
}

/// Nobody takes what is read any more.
struct Unwanted;

impl ArchiveReader {
    /// Reads these archives to their end, or until one cannot be read any further.
    pub async fn run(mut self, archives: Vec<Archive>) {
        for Archive { name, volumes, is_mixed, .. } in archives {
            match self.read_volumes(volumes, is_mixed).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    // Whoever does not read on need not be told.
                    self.steps.send(Err(error)).await.ok();
                    return;
                }
                Err(Unwanted) => return,
            }
            if self.step(Step::ArchiveEnd { name }).await.is_err() {
                return;
            }
        }
    }

    async fn read_volumes(
        &mut self,
        volumes: Vec<Volume>,
        is_mixed: bool,
    ) -> Result<Result<(), ImportError>, Unwanted> {
        let (mut to_read, mut plan) = (Vec::new(), Vec::new());
        for volume in volumes {
            if volume.ends_by(self.cursor) {
                plan.push((true, Begins::After(self.cursor), volume.bytes));
                continue;
            }
            let is_imported = volume.content.is_some_and(|it| self.imported.contains(&it.digest));
            plan.push((is_imported, volume.begins, volume.bytes));
            if !is_imported {
                to_read.push(volume);
            }
        }
        let mut volumes = Volumes::start(to_read);
        for (is_imported, begins, bytes) in plan {
            if is_imported {
                self.read += bytes.unwrap_or(0);
                self.step(Step::PassedOver { begins }).await?;
                continue;
            }
            let open = match volumes.next().await {
                Some(Ok(open)) => open,
                Some(Err(error)) => return Ok(Err(error.into())),
                None => break,
            };
            if let Err(error) = self.read_volume(open, is_mixed).await? {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    async fn read_volume(
        &mut self,
        open: OpenVolume,
        is_mixed: bool,
    ) -> Result<Result<(), ImportError>, Unwanted> {
        let OpenVolume { volume, mut blocks, progress } = open;
        let before = self.read;
        let mut has_begun = false;
        while let Some(lines) = batch(&mut blocks).await {
            let decoded = match lines {
                Ok(lines) => Decoded::from_lines(lines).await,
                Err(error) => return Ok(Err(error.into())),
            };
            if !has_begun {
                if is_mixed && decoded.unreadable() == decoded.len() {
                    let name = &volume.name;
                    tracing::warn!("{name}: there is no entry of a log in it; it is left out");
                    break;
                }
                has_begun = true;
                let name = volume.name.as_str().into();
                self.step(Step::Volume { name, begins: volume.begins }).await?;
            }
            self.read = before + progress.read();
            self.step(Step::Lines { decoded, read: self.read }).await?;
        }
        if has_begun {
            let content = volume.content.map(|content| content.digest);
            self.step(Step::VolumeEnd { content }).await?;
        }
        // All of it, also where a file is left out.
        self.read = before + volume.bytes.unwrap_or_else(|| progress.read());
        Ok(Ok(()))
    }

    async fn step(&self, step: Step) -> Result<(), Unwanted> {
        self.steps.send(Ok(step)).await.map_err(|_| Unwanted)
    }
}

/// The next lines: those of the next block, and of as many more as are there already and make a batch.
async fn batch(blocks: &mut DumpReader) -> Option<Result<Vec<Bytes>, DumpError>> {
    let (mut lines, mut bytes) = (Vec::new(), 0);
    let mut next = blocks.next().await;
    while let Some(block) = next {
        let block = match block {
            Ok(block) => block,
            // What came before it is judged first; the error comes again.
            Err(error) if lines.is_empty() => return Some(Err(error)),
            Err(error) => {
                blocks.put_back(error);
                break;
            }
        };
        bytes += block.iter().map(|(_, line)| line.len()).sum::<usize>();
        lines.extend(block.into_iter().map(|(_, line)| line));
        let is_full = lines.len() >= MAX_BATCH || bytes >= MAX_BATCH_BYTES;
        next = if is_full { None } else { blocks.ready() };
    }
    (!lines.is_empty()).then_some(Ok(lines))
}
