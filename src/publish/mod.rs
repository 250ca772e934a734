//! Publishing the log as a snapshot ([`crate::snapshot`]): a folder of files that a static web server serves.
//!
//! The folder is written by one process at a time. A crash at any point leaves the index of before or the new one, and
//! every file that it names; what else was left is removed by the next run.

mod error;
mod folder;
mod keep;
mod lines;
mod run;

pub use error::PublishError;
pub use folder::Folder;
pub use keep::{KeepSettings, keep};
pub use run::{Publication, Published, Reread};
