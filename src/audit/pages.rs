//! The other side's log, stretch by stretch: pages of a server's export, or blocks of a dump.

use bytes::Bytes;

use super::peer::{Peer, PeerError};
use super::suspect::Order;
use crate::store::StoreError;
use crate::upstream::{Dump, DumpError, DumpReader, ExportClient, Priority, UpstreamFault};
use did_plc::Timestamp;

/// Lines of a page: the most that the directory gives.
const PAGE: usize = 1000;

/// A sweep that cannot go on (yet).
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Because of the other side.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Because of our store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<UpstreamFault> for SweepError {
    fn from(fault: UpstreamFault) -> SweepError {
        SweepError::Peer(fault.into())
    }
}

impl From<DumpError> for SweepError {
    fn from(error: DumpError) -> SweepError {
        SweepError::Peer(error.into())
    }
}

/// A line as received, and in a dump its number.
pub(super) type NumberedLine = (Option<u64>, Bytes);

/// Where stretches of the other side's log come from.
pub enum Pages {
    /// A server, asked page by page.
    Server(ExportClient),
    /// A dump that is read on a thread of its own.
    Dump {
        /// Blocks of lines, each line with its number.
        blocks: DumpReader,
        /// Lines at the end of the stretch before: more with the same key may follow.
        carried: Vec<NumberedLine>,
    },
}

impl Pages {
    /// Those of a peer.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn of(peer: &Peer) -> Result<Pages, DumpError> {
        match peer {
            Peer::Server(client) => Ok(Pages::Server(client.clone())),
            Peer::File(path) => {
                let blocks = DumpReader::start(Dump::open(path)?);
                Ok(Pages::Dump { blocks, carried: Vec::new() })
            }
        }
    }

    /// The next lines, and whether more may follow; beyond the end none. Of a server only an empty
    /// page is the end: it may give fewer lines than are asked for.
    pub(super) async fn next(
        &mut self,
        order: Order,
        after: i64,
    ) -> Result<(Vec<NumberedLine>, bool), SweepError> {
        match self {
            Pages::Server(client) => {
                let after = match order {
                    Order::Sequence => after.to_string(),
                    Order::Time => Timestamp::from_millis(after).to_string(),
                };
                let lines = client.lines(after, PAGE, Priority::Aside).await?;
                let more = !lines.is_empty();
                Ok((lines.into_iter().map(|line| (None, line)).collect(), more))
            }
            Pages::Dump { blocks, carried } => {
                let mut lines = std::mem::take(carried);
                let Some(block) = blocks.next().await else { return Ok((lines, false)) };
                lines.extend(block?.into_iter().map(|(number, line)| (Some(number), line)));
                Ok((lines, true))
            }
        }
    }

    /// Whether they are read to their end, whatever is in them: they need not be in order.
    pub(super) fn are_read_through(&self) -> bool {
        matches!(self, Pages::Dump { .. })
    }

    pub(super) fn carry(&mut self, lines: impl Iterator<Item = NumberedLine>) {
        if let Pages::Dump { carried, .. } = self {
            carried.extend(lines);
        }
    }
}
