//! An archive, its volumes, and how they are opened.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::content::Content;
use super::error::ArchiveError;
use super::numbers;
use super::web::Site;
use crate::blocking;
use crate::upstream::Dump;
use crate::upstream::dump::Raw;

/// Something that holds operations, in volumes.
#[derive(Debug)]
pub struct Archive {
    /// How it is called in messages.
    pub name: String,
    /// In the order in which they are read.
    pub volumes: Vec<Volume>,
    /// The directory that its index says the operations come from.
    pub origin: Option<String>,
    /// It was found in a directory without an index, where there may be other files as well.
    pub is_mixed: bool,
}

impl Archive {
    /// The archive that is one volume.
    pub(super) fn of_one(volume: Volume) -> Archive {
        let name = volume.name.clone();
        Archive { name, volumes: vec![volume], origin: None, is_mixed: false }
    }
}

/// A part of an archive that is read from its beginning to its end.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its file or its URL, without credentials.
    pub name: String,
    /// Bytes that are stored or sent of it; none where that is not known before.
    pub bytes: Option<u64>,
    /// What its lines are, by which it is known again; none where no index says it.
    pub content: Option<Content>,
    /// Where its sequence numbers begin.
    pub begins: Begins,
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
    /// The operations of another replica with numbers above `after`, up to `to`; whether these are its last.
    Numbers { site: Site, after: i64, to: i64, is_last: bool },
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
            place: Place::File(path),
        }
    }

    /// A file on the web.
    pub(super) fn of_stream(site: Site) -> Volume {
        Volume {
            name: site.url().to_owned(),
            bytes: None,
            content: None,
            begins: Begins::WithItsFirst,
            place: Place::Stream(site),
        }
    }

    /// Whether it has nothing above this number; never of what does not say which numbers it has.
    pub fn ends_by(&self, number: i64) -> bool {
        matches!(self.place, Place::Numbers { to, .. } if to <= number)
    }

    /// Opens it for reading; what an index tells of is what the index says then.
    pub(super) async fn open(&self) -> Result<Dump, ArchiveError> {
        let raw = match &self.place {
            Place::File(path) => {
                let (path, content) = (path.clone(), self.content);
                blocking::run("opening a dump", move || open_file(&path, content)).await?
            }
            Place::Stream(site) => site.stream().await?,
            Place::Whole { site, path } => self.raw_of(site.file(path, self.content).await?),
            Place::Numbers { site, after, to, is_last } => {
                self.raw_of(numbers::lines(site, *after, *to, *is_last).await?)
            }
        };
        // The first bytes are looked at, which may be on their way.
        Ok(blocking::run("opening a dump", move || Dump::of(raw)).await?)
    }

    fn raw_of(&self, bytes: Bytes) -> Raw {
        let total = Some(bytes.len() as u64);
        let bytes = Box::new(std::io::Cursor::new(bytes));
        Raw { name: self.name.clone(), bytes, total }
    }
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

fn open_file(path: &Path, content: Option<Content>) -> Result<Raw, ArchiveError> {
    if let Some(content) = content {
        let Raw { name, bytes, .. } = Raw::open(path)?;
        content.check(&name, bytes)?;
    }
    Ok(Raw::open(path)?)
}
