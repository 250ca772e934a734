//! A dump that is read and decompressed on a thread of its own, ahead of what is done with it.

use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::blocks::{Block, Dump};
use super::error::DumpError;
use crate::blocking;

/// Blocks that wait while others are worked on; a block is some megabytes at most.
const BLOCKS_AHEAD: usize = 4;

/// The blocks of a dump, in order. Once it is dropped, the thread ends with the block that it reads.
#[derive(Debug)]
pub struct DumpReader {
    blocks: mpsc::Receiver<Result<Block, DumpError>>,
    /// What comes before that, which was taken too early.
    put_back: Option<DumpError>,
    /// Until it has been waited for.
    thread: Option<JoinHandle<()>>,
}

impl DumpReader {
    /// Begins to read.
    pub fn start(dump: Dump) -> DumpReader {
        let (sender, blocks) = mpsc::channel(BLOCKS_AHEAD);
        let thread = std::thread::spawn(move || {
            for block in dump {
                if sender.blocking_send(block).is_err() {
                    break;
                }
            }
        });
        DumpReader { blocks, put_back: None, thread: Some(thread) }
    }

    /// The next block; none at the end. After an error there is nothing more. May be dropped while it
    /// waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Block, DumpError>> {
        if let Some(error) = self.put_back.take() {
            return Some(Err(error));
        }
        let block = self.blocks.recv().await;
        self.unless_ended(block)
    }

    /// The next block, if it is there already.
    pub fn ready(&mut self) -> Option<Result<Block, DumpError>> {
        self.blocks.try_recv().ok()
    }

    /// Has an error come once more.
    pub fn put_back(&mut self, error: DumpError) {
        self.put_back = Some(error);
    }

    /// The same on a thread that may be kept waiting.
    pub fn next_blocking(&mut self) -> Option<Result<Block, DumpError>> {
        let block = self.blocks.blocking_recv();
        self.unless_ended(block)
    }

    /// A thread that panicked has not come to the end of the dump.
    fn unless_ended<T>(&mut self, block: Option<T>) -> Option<T> {
        if block.is_none()
            && let Some(thread) = self.thread.take()
        {
            blocking::join("reading a dump", thread);
        }
        block
    }
}
