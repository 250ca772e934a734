//! The volumes of an archive, opened in their order, several ahead.

use std::collections::VecDeque;

use tokio_util::task::AbortOnDropHandle;

use super::error::ArchiveError;
use super::volume::Volume;
use crate::blocking;
use crate::upstream::{DumpReader, Progress};

/// Volumes that are opened, or fetched, while one is read.
const AHEAD: usize = 4;

/// Opens volumes.
pub struct Volumes {
    left: std::vec::IntoIter<Volume>,
    opening: VecDeque<AbortOnDropHandle<Result<OpenVolume, ArchiveError>>>,
}

/// A volume that is being read.
#[derive(Debug)]
pub struct OpenVolume {
    /// Which one.
    pub volume: Volume,
    /// What it holds.
    pub blocks: DumpReader,
    /// How far it was read.
    pub progress: Progress,
}

impl Volumes {
    /// Begins with the first ones. Dropped, it ends what is under way.
    pub fn start(volumes: Vec<Volume>) -> Volumes {
        let mut volumes = Volumes { left: volumes.into_iter(), opening: VecDeque::new() };
        volumes.open_ahead();
        volumes
    }

    /// The next volume; none after the last one.
    pub async fn next(&mut self) -> Option<Result<OpenVolume, ArchiveError>> {
        let next = self.opening.pop_front()?;
        self.open_ahead();
        Some(blocking::finished("opening a volume", next.await).await)
    }

    fn open_ahead(&mut self) {
        while self.opening.len() < AHEAD {
            let Some(volume) = self.left.next() else { break };
            let opening = tokio::spawn(async move {
                let dump = volume.open().await?;
                let progress = dump.progress();
                Ok(OpenVolume { volume, blocks: DumpReader::start(dump), progress })
            });
            self.opening.push_back(AbortOnDropHandle::new(opening));
        }
    }
}
