//! The file in which sweeps are kept, so that one that was interrupted can be gone on with.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::suspect::Order;
use super::sweep::Sweep;
use did_plc::Timestamp;

/// What a sweep was asked to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepScope {
    /// How both sides are read.
    pub order: Order,
    /// Everything after this time, in milliseconds since 1970.
    pub since: Option<i64>,
    /// Everything up to this time.
    pub until: Option<i64>,
}

impl fmt::Display for SweepScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |millis: i64| Timestamp::from_millis(millis);
        f.write_str("a sweep by ")?;
        f.write_str(match self.order {
            Order::Time => "time",
            Order::Sequence => "sequence number",
        })?;
        match self.since {
            Some(since) => write!(f, " since {}", at(since))?,
            None => f.write_str(" from the beginning")?,
        }
        self.until.map_or(Ok(()), |until| write!(f, " until {}", at(until)))
    }
}

/// A state that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SweepFileError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Name of the file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{}: not the state of a sweep ({source}): name another file, or remove this one",
        path.display()
    )]
    NotAState {
        /// Name of the file.
        path: PathBuf,
        /// Where its JSON is not that of sweeps.
        source: serde_json::Error,
    },
    /// It is of another sweep.
    #[error(
        "{}: holds {held} of {peer}, and {asked} was asked for: say the same again to go on with \
         it, or name another file, or remove this one to begin anew",
        path.display()
    )]
    OfOtherOptions {
        /// Name of the file.
        path: PathBuf,
        /// With whom.
        peer: String,
        /// What it holds, in words.
        held: String,
        /// What was asked for, likewise.
        asked: String,
    },
}

/// A file with the sweeps that are not reported yet.
#[derive(Debug)]
pub struct SweepFile {
    path: PathBuf,
    sweeps: BTreeMap<String, KeptSweep>,
}

/// The sweep of one peer.
#[derive(Debug, Serialize, Deserialize)]
struct KeptSweep {
    asked: SweepScope,
    sweep: Sweep,
}

impl SweepFile {
    /// Reads the file; where there is none, nothing was begun.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is none.
    pub fn open(path: &Path) -> Result<SweepFile, SweepFileError> {
        let path = path.to_owned();
        let sweeps = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(source) => return Err(SweepFileError::File { path, source }),
        };
        match sweeps {
            Ok(sweeps) => Ok(SweepFile { path, sweeps }),
            Err(source) => Err(SweepFileError::NotAState { path, source }),
        }
    }

    /// The sweep of this peer that was begun, if any.
    ///
    /// # Errors
    ///
    /// When it is not what is asked for now.
    pub fn begun(&self, peer: &str, asked: SweepScope) -> Result<Option<Sweep>, SweepFileError> {
        match self.sweeps.get(peer) {
            Some(part) if part.asked != asked => Err(SweepFileError::OfOtherOptions {
                path: self.path.clone(),
                peer: peer.to_owned(),
                held: part.asked.to_string(),
                asked: asked.to_string(),
            }),
            part => Ok(part.map(|part| part.sweep.clone())),
        }
    }

    /// Remembers how far a sweep is.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn keep(
        &mut self,
        peer: &str,
        asked: SweepScope,
        sweep: &Sweep,
    ) -> Result<(), SweepFileError> {
        self.sweeps.insert(peer.to_owned(), KeptSweep { asked, sweep: sweep.clone() });
        self.write()
    }

    /// Forgets a sweep that was reported: the next one begins anew. Without any left there is no
    /// file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn forget(&mut self, peer: &str) -> Result<(), SweepFileError> {
        if self.sweeps.remove(peer).is_none() {
            return Ok(());
        }
        match self.sweeps.is_empty() {
            true => std::fs::remove_file(&self.path).map_err(|source| self.error(source)),
            false => self.write(),
        }
    }

    /// A crash leaves the file of before or this one.
    fn write(&self) -> Result<(), SweepFileError> {
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let text = serde_json::to_vec(&self.sweeps).map_err(io::Error::from);
        let written = text.and_then(|text| std::fs::write(&new, text));
        let renamed = written.and_then(|()| std::fs::rename(&new, &self.path));
        renamed.map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> SweepFileError {
        SweepFileError::File { path: self.path.clone(), source }
    }
}
