//! Indexes of archives: of a snapshot, and of a plcbundle repository.

use super::content::Content;
use super::error::ArchiveError;
use super::plcbundle;
use super::volume::{Archive, Begins, Place, Volume};
use super::web::MAX_VOLUME;
use crate::snapshot::{self, IndexError};

/// The files of an archive.
pub struct Index {
    /// In their order.
    files: Vec<IndexedFile>,
    /// The directory that the operations come from, if it says so.
    origin: Option<String>,
}

/// What an index says of a file.
pub struct IndexedFile {
    /// Its name.
    pub name: String,
    /// Its number, where files have one.
    pub number: Option<u32>,
    /// Its bytes, about.
    bytes: u64,
    content: Content,
    begins: Begins,
}

impl Index {
    /// Reads an index; none where this is JSON of another kind.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Index`] with this name where it contradicts itself, or is of a version that is not read here.
    pub fn parse(name: &str, json: &[u8]) -> Result<Option<Index>, ArchiveError> {
        match snapshot::Index::parse(json) {
            Ok(index) => Ok(Some(Index::of_snapshot(&index))),
            Err(IndexError::OtherFormat) => {
                Ok(plcbundle::Index::parse(name, json)?.map(Index::of_bundles))
            }
            Err(error) => {
                let (name, reason) = (name.to_owned(), error.to_string());
                Err(ArchiveError::Index { name, reason })
            }
        }
    }

    fn of_snapshot(index: &snapshot::Index) -> Index {
        let mut begins = index.files().first().map(|first| {
            let place = index.division().place_of(first.first);
            Begins::After(index.division().before(place))
        });
        let file = |file: &snapshot::SnapshotFile| IndexedFile {
            name: file.name(),
            number: None,
            bytes: file.compressed_bytes,
            content: Content { digest: file.lines, bytes: file.bytes },
            begins: begins.take().unwrap_or(Begins::WithoutGap),
        };
        Index { files: index.files().iter().map(file).collect(), origin: None }
    }

    fn of_bundles(index: plcbundle::Index) -> Index {
        let file = |bundle: &plcbundle::Bundle| IndexedFile {
            name: bundle.file(),
            number: Some(bundle.number),
            bytes: bundle.bytes,
            content: bundle.content,
            begins: if bundle.number == 1 { Begins::After(0) } else { Begins::WithoutGap },
        };
        Index { files: index.bundles.iter().map(file).collect(), origin: Some(index.origin) }
    }

    /// Makes sure that each file can be fetched whole.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Index`] with this name.
    pub fn check_sizes(&self, name: &str) -> Result<(), ArchiveError> {
        match self.files.iter().find(|file| file.bytes > MAX_VOLUME as u64) {
            None => Ok(()),
            Some(IndexedFile { name: file, bytes, .. }) => Err(ArchiveError::Index {
                name: name.to_owned(),
                reason: format!(
                    "{file} has {bytes} bytes, and of a file on the web {MAX_VOLUME} are read at most; fetch the files \
                     with another program, and import their directory"
                ),
            }),
        }
    }

    /// The archive of this name, of which each file has a name and a place.
    pub fn archive(self, name: String, place: impl Fn(&IndexedFile) -> (String, Place)) -> Archive {
        let volume = |file: &IndexedFile| {
            let (name, place) = place(file);
            let (bytes, content) = (Some(file.bytes), Some(file.content));
            Volume { name, bytes, content, begins: file.begins, place }
        };
        let volumes = self.files.iter().map(volume).collect();
        Archive { name, volumes, origin: self.origin, is_mixed: false }
    }
}
