//! Where an export is written to.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Standard output, or a file that gets its name when it is complete: a crash leaves one beside it whose name ends in
/// `.part`, which the next attempt replaces.
pub enum Output {
    /// Standard output.
    Standard(io::Stdout),
    /// A file.
    File {
        /// What is written.
        file: File,
        /// Its name until it is complete.
        part: PathBuf,
        /// Its name.
        path: PathBuf,
    },
}

impl Output {
    /// A file of this name, or standard output without one. What is `binary` is for no terminal.
    pub fn open(path: Option<&Path>, binary: bool) -> anyhow::Result<Output> {
        let Some(path) = path else {
            if is_closed_output() {
                bail!("standard output is closed: there is nowhere to write the log to");
            }
            if binary && io::stdout().is_terminal() {
                bail!("standard output is a terminal: name a file with --output, or redirect it");
            }
            return Ok(Output::Standard(io::stdout()));
        };
        let shown = path.display();
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            bail!(
                "--output {shown}: it is there, and no file; without --output the log goes to standard output"
            );
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file =
            File::create(&part).with_context(|| format!("--output {shown}: cannot be written"))?;
        Ok(Output::File { file, part, path: path.to_owned() })
    }

    /// After the last byte: a file is on the disk with its name.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        match self {
            Output::Standard(_) => Ok(()),
            Output::File { file, part, path } => {
                file.sync_all()?;
                fs::rename(part, path)
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Standard(out) => out.write(bytes),
            Output::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Standard(out) => out.flush(),
            Output::File { file, .. } => file.flush(),
        }
    }
}

/// Whether the process was started without a standard output. Rust's runtime has put `/dev/null` in its place by now,
/// open for reading as well, as nobody has it who sends what is written there on purpose with `>/dev/null`. Where the
/// system does not say how a file is open, it is taken to be one that is wanted.
fn is_closed_output() -> bool {
    const READ_AND_WRITE: u32 = 2;
    const ACCESS: u32 = 3;
    let access = fs::read_to_string("/proc/self/fdinfo/1").ok().and_then(|about| {
        let flags = about.lines().find_map(|line| line.strip_prefix("flags:"))?;
        Some(u32::from_str_radix(flags.trim(), 8).ok()? & ACCESS)
    });
    let device = |path| fs::metadata(path).ok().map(|about| about.rdev());
    let is_null =
        device("/proc/self/fd/1").is_some_and(|output| Some(output) == device("/dev/null"));
    is_null && access == Some(READ_AND_WRITE)
}
