//! Pages fetched ahead of the one who works on them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::backoff::Backoff;
use super::batch::Batch;
use super::client::ExportClient;
use super::fault::UpstreamFault;
use super::page::Page;

/// What paging brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// A page.
    Batch(Batch),
    /// Something went wrong. It is tried again, from the same place, after this delay; there is
    /// nothing to do but to count it and to say it.
    Fault { fault: UpstreamFault, retry_in: Duration },
}

/// Pages of the export from a cursor to its end, at most [`pages_ahead`] pages and
/// [`bytes_ahead`] bytes ahead of the consumer. Dropping it ends the fetching.
///
/// [`pages_ahead`]: super::Limits::pages_ahead
/// [`bytes_ahead`]: super::Limits::bytes_ahead
#[derive(Debug)]
pub struct PagesAhead {
    fetched: mpsc::Receiver<(Fetched, Option<OwnedSemaphorePermit>)>,
    _task: AbortOnDropHandle<()>,
}

impl PagesAhead {
    /// Starts to fetch what comes after this sequence number.
    pub fn start(client: &ExportClient, after: i64) -> PagesAhead {
        let limits = client.limits();
        let (sender, fetched) = mpsc::channel(limits.pages_ahead.max(1));
        let fetcher = Fetcher {
            room: Arc::new(Semaphore::new(limits.bytes_ahead)),
            backoff: Backoff::new(limits),
            client: client.clone(),
            sender,
        };
        let task = tokio::spawn(async move {
            // An error is that nobody listens any more.
            let _ = fetcher.run(after).await;
        });
        PagesAhead { fetched, _task: AbortOnDropHandle::new(task) }
    }

    /// The next page or fault, in order. None after the page that was near the end. May be
    /// dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Fetched> {
        // The room of a page is given back here: from now on its memory is the consumer's.
        self.fetched.recv().await.map(|(fetched, _room)| fetched)
    }
}

/// The consumer is gone.
struct Gone;

struct Fetcher {
    client: ExportClient,
    backoff: Backoff,
    room: Arc<Semaphore>,
    sender: mpsc::Sender<(Fetched, Option<OwnedSemaphorePermit>)>,
}

impl Fetcher {
    /// Pages to the end. A page that leads nowhere is fetched a few times, since damage on the
    /// way looks like that, and then handed over as it is, once, so that what it holds is kept.
    /// If it was the last one, that is the end; a full one is tried for ever, at the slowest pace.
    async fn run(mut self, mut after: i64) -> Result<(), Gone> {
        let (mut attempts, mut longest) = (0, 0);
        loop {
            let page = match self.client.page(after, longest).await {
                Ok(page) => page,
                Err(fault) => {
                    self.wait_out(fault).await?;
                    continue;
                }
            };
            if let Some(fault) = page.stuck() {
                attempts += 1;
                if attempts == self.client.limits().stuck_attempts {
                    // It goes on to say so.
                    let page = page.believed();
                    let (last, next) = (page.near_end, page.next);
                    self.deliver(page).await?;
                    if next > after {
                        (after, attempts) = (next, 0);
                        if last {
                            return Ok(());
                        }
                        continue;
                    }
                    if last {
                        return Ok(());
                    }
                }
                self.wait_out(fault).await?;
                continue;
            }
            attempts = 0;
            after = page.next;
            longest = longest.max(page.count());
            self.backoff.reset();
            let cut = page.cut.clone();
            let batch_ends = page.near_end && page.tail.is_none();
            self.deliver(page).await?;
            if batch_ends {
                return Ok(());
            }
            if let Some(fault) = cut {
                self.wait_out(fault).await?;
            }
        }
    }

    /// Waits for room, then hands the page over.
    async fn deliver(&self, page: Page) -> Result<(), Gone> {
        let bytes: usize = page.lines.iter().chain(&page.tail).map(|line| line.len()).sum();
        // A page larger than all the room takes all of it, and so travels alone.
        let room = bytes.min(self.client.limits().bytes_ahead);
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.room).acquire_many_owned(room).await.ok();
        self.send(Fetched::Batch(page.into_batch()), permit).await
    }

    /// Reports a fault and waits, as long as somebody listens.
    async fn wait_out(&mut self, fault: UpstreamFault) -> Result<(), Gone> {
        let retry_in = self.backoff.after(&fault);
        self.send(Fetched::Fault { fault, retry_in }, None).await?;
        sleep(retry_in).await;
        Ok(())
    }

    async fn send(&self, fetched: Fetched, room: Option<OwnedSemaphorePermit>) -> Result<(), Gone> {
        self.sender.send((fetched, room)).await.map_err(|_| Gone)
    }
}
