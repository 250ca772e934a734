//! What `import` takes: an [`Archive`] of one or more volumes, each a [`Dump`](super::Dump). A file, standard input and
//! a file on the web are archives of one volume; a directory, a plcbundle repository and another replica have many.
//!
//! Which one it is is found by looking ([`Archive::find`]); its volumes come in their order, several fetched ahead
//! ([`Volumes`]). What an index states of a volume is checked before anything of it is handed over, as far as the index
//! states the digest of the file as it is stored, and at its end otherwise. Nothing is written: who reads an archive says
//! what is done with.
//!
//! Memory: the volumes that are fetched ahead, [`MAX_VOLUME`] each at most, of the web; a few blocks of each otherwise.

mod directory;
mod error;
mod find;
mod numbers;
mod plcbundle;
mod replica;
mod volume;
mod volumes;
mod web;

pub use error::ArchiveError;
pub use find::Archive;
pub use volume::{Begins, Volume};
pub use volumes::{OpenVolume, Volumes};
pub use web::{MAX_VOLUME, Web};
