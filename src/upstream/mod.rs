//! What comes from an upstream: pages of its export, its live stream, files that somebody dumped.
//!
//! Everything here brings *raw lines*, in the order and with the bytes that were received; nothing
//! here judges an operation. What goes wrong on the way is an [`UpstreamFault`], a value that the
//! caller counts and logs; nothing that an upstream sends or withholds panics, spins or takes more
//! memory than [`Limits`] say. Nothing is written: a crash here costs what was fetched, which is fetched
//! again from the stored cursor on.
//!
//! * [`ExportClient`] asks for a page, an audit log, or any other path;
//! * [`PagesAhead`] pages from a cursor to the end, fetching ahead of its consumer;
//! * [`Stream`] follows the WebSocket;
//! * [`Submitter`] sends what a client writes;
//! * [`Dump`] reads files, and [`DumpReader`] does so on a thread of its own;
//! * [`Archive`] finds the dumps that a name stands for: files, directories, repositories, other replicas.
//!
//! Memory: [`PagesAhead`] holds at most [`Limits::bytes_ahead`] of finished pages and one body in
//! flight of at most [`Limits::body`] (which may be twice that for a moment while it grows).
//! With the pages of the public directory (750 kB) this is 5 MB; with the worst that an upstream
//! can send, 80 MB. [`Stream`] holds at most [`Limits::gather_bytes`] and one message.

mod archive;
mod backoff;
mod batch;
mod budget;
mod client;
mod dump;
mod fault;
mod limits;
mod page;
mod pages;
mod stream;
mod submitter;

pub use archive::{
    Archive, ArchiveError, Begins, BundleIndex, Content, OpenVolume, Volume, Volumes, Web,
};
pub use backoff::Backoff;
pub use batch::{Batch, Origin};
pub use budget::{ASIDE_SHARE, Priority, RequestBudget};
pub use client::{Answer, ExportClient, UnusableUpstream};
pub use dump::{Block, Dump, DumpError, DumpReader, MAX_ENTRY, Original, Progress};
pub use fault::UpstreamFault;
pub use limits::{Limits, MAX_LINES};
use page::number;
pub use page::{MAX_JUMP, Page};
pub use pages::{Fetched, PagesAhead};
pub use stream::Stream;
pub use submitter::{SubmissionAnswer, SubmissionFault, Submitter};
