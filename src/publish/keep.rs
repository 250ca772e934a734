//! Keeps a folder up to date beside the follower.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::error::PublishError;
use super::folder::Folder;
use super::run::{Publication, Published, Reread};
use crate::blocking;
use crate::clock;
use crate::live::{Mode, Status};
use crate::store::Store;

/// How often it is looked whether the log has been read to its end.
const LOOK: Duration = Duration::from_secs(1);

/// Which folder is kept up to date, and how often.
#[derive(Debug, Clone)]
pub struct KeepSettings {
    /// The folder.
    pub folder: PathBuf,
    /// Pause between two runs.
    pub every: Duration,
}

/// Runs again and again until the shutdown: what is new is added, one file at a time so that the intake has the other
/// cores, and one of the published files is compared with the log each time. It begins when the log has been read to its
/// end, and rests while much of it is read at once. What fails is said once, and tried again after the pause.
pub async fn keep(
    store: Store,
    status: Arc<Status>,
    settings: KeepSettings,
    shutdown: CancellationToken,
) {
    let every = settings.every.max(LOOK);
    let mut keeper = Keeper { store, settings, existed: false, said: false };
    loop {
        let rests = !status.caught_up() || status.mode() == Mode::CatchingUp;
        let pause = if rests { LOOK } else { every };
        if !rests && shutdown.run_until_cancelled(keeper.run()).await.is_none() {
            return;
        }
        if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

struct Keeper {
    store: Store,
    settings: KeepSettings,
    /// Whether the folder was there: if it is not any more, it is lost, and nobody wants another one in its place.
    existed: bool,
    /// Whether it is logged already that something fails.
    said: bool,
}

impl Keeper {
    async fn run(&mut self) {
        match self.publish().await {
            Ok(published) => self.tell(&published),
            // It will pass by itself, or begin.
            Err(PublishError::Renumbering | PublishError::Empty) => {}
            Err(error) => {
                let is_sought = matches!(error, PublishError::Store(_)) && self.store.is_sought();
                if !is_sought && !std::mem::replace(&mut self.said, true) {
                    tracing::warn!("the snapshot has to wait: {error}");
                }
            }
        }
    }

    async fn publish(&mut self) -> Result<Published, PublishError> {
        let (path, existed) = (self.settings.folder.clone(), self.existed);
        let folder = blocking::run("taking a folder", move || {
            if existed {
                is_there(&path)?;
            }
            Folder::take(&path)
        })
        .await?;
        self.existed = true;
        // Which turn it is follows from the time: nothing has to be remembered.
        let turn =
            clock::now().millis().unsigned_abs() / self.settings.every.max(LOOK).as_millis() as u64;
        let publication = Publication {
            store: self.store.clone(),
            folder: Arc::new(folder),
            division: None,
            reread: Reread::Turn(turn),
            at_once: 1,
        };
        publication.run(|_| ()).await
    }

    fn tell(&mut self, published: &Published) {
        gauge!("plc_snapshot_cursor").set(published.index.last() as f64);
        if std::mem::take(&mut self.said) {
            tracing::info!("the snapshot goes on");
        }
        if published.replaced > 0 {
            tracing::info!(
                files = published.replaced,
                "files of the snapshot have given way to others: the log says something else there than before"
            );
        }
        let (last, files) = (published.index.last(), published.index.files().len());
        tracing::debug!(last, files, written = published.written, "the snapshot is up to date");
    }
}

fn is_there(path: &Path) -> Result<(), PublishError> {
    path.metadata().map(drop).map_err(PublishError::at(path))
}
