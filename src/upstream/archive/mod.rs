//! What `import` takes: an [`Archive`] of one or more volumes, each a [`Dump`](super::Dump). A file, standard input and
//! a file on the web are archives of one volume; a directory, a plcbundle repository and another replica have many.
//!
//! Which one it is is found by looking ([`Archive::find`]); its volumes come in their order, several fetched ahead
//! ([`Volumes`]). What an index states of a volume is checked before anything of it is handed over. Nothing is written:
//! who reads an archive says what is done with it.
//!
//! Memory: the volumes that are fetched ahead, 64 MiB each at most, of the web; a few blocks of each otherwise.

mod content;
mod directory;
mod error;
mod find;
mod index;
mod numbers;
mod plcbundle;
mod replica;
mod volume;
mod volumes;
mod web;

pub use content::Content;
pub use error::ArchiveError;
pub use plcbundle::Index as BundleIndex;
pub use volume::{Archive, Begins, Volume};
pub use volumes::{OpenVolume, Volumes};
pub use web::Web;
