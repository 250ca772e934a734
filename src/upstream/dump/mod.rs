//! Files of entries: exports in either format as JSON lines, audit logs as JSON arrays; plain or
//! compressed, which the first bytes tell and not the name.
//!
//! Blocking, and bounded: whatever the file holds, one block and one entry are in memory, and with
//! [`DumpReader`] the blocks that it is ahead.

mod blocks;
mod entries;
mod error;
mod input;
mod raw;
mod reader;

pub use blocks::{Block, Dump, MAX_ENTRY};
pub use error::DumpError;
pub(super) use input::Input;
pub use input::Progress;
pub use raw::Original;
pub(super) use raw::Raw;
pub use reader::DumpReader;
