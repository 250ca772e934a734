//! The index of a plcbundle repository (its specification, version 1): bundles of ten thousand operations with their
//! hashes, of which each one continues a chain.

use serde::Deserialize;

use super::content::Content;
use super::error::ArchiveError;
use crate::snapshot::Digest;

/// The name of the index in a repository.
pub const INDEX: &str = "plc_bundles.json";
/// The version that is read here.
const VERSION: &str = "1.0";
/// What is hashed before the content of the first bundle (6.3).
const GENESIS: &str = "plcbundle:genesis";

/// What an index says.
#[derive(Debug)]
pub struct Index {
    /// The directory that the operations come from.
    pub origin: String,
    /// In their order.
    pub bundles: Vec<Bundle>,
}

/// What it says of a bundle.
#[derive(Debug)]
pub struct Bundle {
    /// From 1.
    pub number: u32,
    /// Of its file, or a few less.
    pub bytes: u64,
    /// Its lines.
    pub content: Content,
}

impl Bundle {
    /// Its name in a repository (4.1).
    pub fn file(&self) -> String {
        format!("{:06}.jsonl.zst", self.number)
    }
}

#[derive(Deserialize)]
struct Stated {
    version: String,
    origin: String,
    bundles: Vec<StatedBundle>,
}

#[derive(Deserialize)]
struct StatedBundle {
    bundle_number: u32,
    hash: String,
    content_hash: String,
    #[serde(default)]
    parent: String,
    compressed_size: u64,
    uncompressed_size: u64,
}

impl Index {
    /// Reads an index and checks that it is one chain; none where this is JSON of another kind.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Index`] with this name.
    pub fn parse(name: &str, json: &[u8]) -> Result<Option<Index>, ArchiveError> {
        let Ok(stated) = serde_json::from_slice::<Stated>(json) else { return Ok(None) };
        let wrong = |reason: String| ArchiveError::Index { name: name.to_owned(), reason };
        if stated.version != VERSION {
            return Err(wrong(format!(
                "its version is {:?}, and {VERSION} is read here",
                stated.version
            )));
        }
        let mut bundles: Vec<Bundle> = Vec::with_capacity(stated.bundles.len());
        let mut before: Option<&StatedBundle> = None;
        for bundle in &stated.bundles {
            let read = bundle.read(before);
            bundles.push(
                read.map_err(|reason| wrong(format!("bundle {}: {reason}", bundle.bundle_number)))?,
            );
            before = Some(bundle);
        }
        Ok(Some(Index { origin: stated.origin, bundles }))
    }
}

impl StatedBundle {
    /// What is stated, if it continues the chain after the bundle before it (6.3).
    fn read(&self, before: Option<&StatedBundle>) -> Result<Bundle, String> {
        let number = before.map_or(0, |before| before.bundle_number).saturating_add(1);
        if self.bundle_number != number {
            return Err(format!("it stands where bundle {number} has to be"));
        }
        let parent = before.map_or("", |before| &before.hash);
        if self.parent != parent {
            return Err(format!(
                "its parent is {:?}, and not the hash of the one before",
                self.parent
            ));
        }
        let links_to = if parent.is_empty() { GENESIS } else { parent };
        let link = [links_to.as_bytes(), b":", self.content_hash.as_bytes()];
        if Digest::of(&link).to_string() != self.hash {
            return Err("its hash is not that of its parent and its content".to_owned());
        }
        let digest = self.content_hash.parse::<Digest>();
        let digest = digest.map_err(|error| format!("its content_hash is wrong: {error}"))?;
        Ok(Bundle {
            number,
            bytes: self.compressed_size,
            content: Content { digest, bytes: self.uncompressed_size },
        })
    }
}
