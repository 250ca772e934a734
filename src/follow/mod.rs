//! Following an upstream, and taking in what others have dumped of it: lines → verdicts → commit, from the
//! committed cursor on.
//!
//! ```text
//! reader ──lines──▶ intake ──batches──▶ writer ──▶ store
//!  pages, stream     verdicts            one transaction at a time, then Status
//! ```
//!
//! Three tasks work at once: the reader fetches and decodes, the intake judges ([`crate::judge`]), and the
//! writer commits what was judged. Beside the reader two others ask for what was read already, and hand it over the
//! same way: the doubts about what was refused, and the second reading of everything. They wait while it is not known
//! whether the upstream still has the log that was read from it. A session begins at the cursor that the store holds; when anything about the
//! store is in doubt the session ends, with everything that was verified on top, and the next one begins
//! at the cursor that is read back. Which of several upstreams is followed is decided between two sessions
//! (`candidates.rs`), and watched meanwhile.
//!
//! What a crash leaves behind: until a commit has ended, what the commit before it left, since nothing else is
//! written; all that was fetched and judged since is fetched again from the stored cursor on. After it, the
//! operations and the cursor that goes with them. What is asked again is stored after what came of it: a crash costs
//! that it is asked once more. Who reads the stream is told after the commit, of what
//! the commit itself has noted ([`crate::live`]): other processes go on with that after a crash, and a client that comes back
//! finds in the store what it was not sent. The lease of a process that is gone runs out by itself.

mod again;
mod agreement;
mod archive_reader;
mod bearing_out;
mod by_cid;
mod candidate;
mod candidates;
mod claims_index;
mod contact;
mod continuity;
mod direct;
mod doubts;
mod error;
mod fetch;
mod follower;
mod gaps;
mod head;
mod import;
mod inquiry;
mod intake;
mod lease;
mod missing;
mod notices;
mod numbering;
mod pauses;
mod read_again;
mod reader;
mod renumber;
mod repair;
mod repaired;
mod same_log;
mod second_reading;
mod session;
mod step_back;
mod switching;
mod time_pages;
mod time_reader;
mod writer;

pub use archive_reader::ImportError;
pub use claims_index::keep as keep_claims_index;
pub use doubts::DoubtSettings;
pub use error::FollowError;
pub use follower::Follower;
pub use import::{Import, ImportProgress, Imported};
pub use renumber::{RenumberError, renumber};
pub use repair::{Extent, Progress, Repair, RepairError};
pub use repaired::{Found, Repaired};
pub use second_reading::RereadingSettings;
pub use switching::SwitchSettings;
