//! One volume of an archive, and how it is opened.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::ArchiveError;
use super::numbers;
use super::web::Site;
use crate::blocking;
use crate::upstream::digest::Digest;
use crate::upstream::dump::Raw;
use crate::upstream::{Dump, DumpError};

/// A part of an archive that is read from its beginning to its end.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its file or its URL, without credentials.
    pub name: String,
    /// Bytes that are stored or sent of it; none where that is not known before.
    pub bytes: Option<u64>,
    /// What its lines hash to, by which it is known again; none where no index says it.
    pub content: Option<Digest>,
    /// Where its sequence numbers begin.
    pub begins: Begins,
    /// What it hashes to as it is stored; none where no index says it.
    pub(super) stored: Option<Digest>,
    pub(super) place: Place,
}

/// What is known of where the sequence numbers of a volume begin, if it has any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// It has all operations from this number on, which itself is not among them.
    After(i64),
    /// It goes on where the volume before it in its archive ends.
    WithoutGap,
    /// With the number of its first line.
    WithItsFirst,
}

#[derive(Debug, Clone)]
pub(super) enum Place {
    /// Standard input, for the path `-`, or a file.
    File(PathBuf),
    /// A file of some size on the web, which is read while it comes.
    Stream(Site),
    /// One that is fetched whole before it is read.
    Whole { site: Site, path: String },
    /// The operations of another replica with numbers above `after`, up to `to`.
    Numbers { site: Site, after: i64, to: i64 },
}

impl Volume {
    /// A file, or standard input for `-`.
    pub(super) fn of_file(path: PathBuf) -> Volume {
        let bytes = std::fs::metadata(&path).ok().filter(|about| about.is_file());
        Volume {
            name: if is_standard_input(&path) {
                "standard input".to_owned()
            } else {
                path.display().to_string()
            },
            bytes: bytes.map(|about| about.len()),
            content: None,
            begins: Begins::WithItsFirst,
            stored: None,
            place: Place::File(path),
        }
    }

    /// Whether it has nothing above this number; never of what does not say which numbers it has.
    pub fn ends_by(&self, number: i64) -> bool {
        matches!(self.place, Place::Numbers { to, .. } if to <= number)
    }

    /// Opens it for reading; what is fetched whole is there then, and is what the index says.
    pub(super) async fn open(&self) -> Result<Dump, ArchiveError> {
        let raw = match &self.place {
            Place::File(path) => {
                let (path, stored) = (path.clone(), self.stored);
                blocking::run("opening a dump", move || open_file(&path, stored)).await?
            }
            Place::Stream(site) => site.stream().await?,
            Place::Whole { site, path } => self.raw_of(site.file(path, self.stored).await?),
            Place::Numbers { site, after, to } => {
                self.raw_of(numbers::lines(site, *after, *to).await?)
            }
        };
        let raw = Raw { content: self.content, ..raw };
        // The first bytes are looked at, which may be on their way.
        Ok(blocking::run("opening a dump", move || Dump::of(raw)).await?)
    }

    fn raw_of(&self, bytes: Bytes) -> Raw {
        let total = Some(bytes.len() as u64);
        let bytes = Box::new(std::io::Cursor::new(bytes));
        Raw { name: self.name.clone(), bytes, total, content: None }
    }
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

/// Opens a file that is stored as its index says. It is read twice, the second time from memory mostly.
fn open_file(path: &Path, stored: Option<Digest>) -> Result<Raw, ArchiveError> {
    if let Some(stated) = stored {
        let name = path.display().to_string();
        let failed = |source| DumpError::Open { name: name.clone(), source };
        let found = File::open(path).and_then(Digest::of_all).map_err(failed)?;
        if found != stated {
            return Err(ArchiveError::Differs { name, found, stated });
        }
    }
    Ok(Raw::open(path)?)
}
