//! The log that is followed: made once for a seed and a size, then read from its file.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use plc_testkit::profile::write_log;

use plc_replica::commands::progress::Meter;

/// Raised when the generator makes other operations of the same seed, so that no old log is taken
/// for a new one.
const GENERATION: u32 = 2;
/// Room to read a log with.
const BUFFER: usize = 1 << 20;

/// Write a generated log: lines of a sequenced export.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Decides every byte of the log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many operations.
    #[arg(long, default_value_t = 500_000)]
    operations: u64,
    /// Where to.
    file: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    println!("{}", write(&args.file, args.seed, args.operations)?);
    Ok(ExitCode::SUCCESS)
}

/// Writes a log; says what it is made of.
fn write(path: &Path, seed: u64, operations: u64) -> anyhow::Result<String> {
    let context = || format!("cannot write {}", path.display());
    let mut out = BufWriter::with_capacity(BUFFER, File::create(path).with_context(context)?);
    let meter = Meter::operations("making the log", Some(operations));
    let profile =
        write_log(seed, operations, &mut out, |done| meter.set(done)).with_context(context)?;
    out.flush().with_context(context)?;
    meter.finish();
    Ok(format!("seed {seed}: {profile}"))
}

/// Where logs are kept unless another directory is named.
pub fn usual_directory() -> PathBuf {
    std::env::temp_dir().join("plc-replica-bench")
}

/// A generated log that is kept, with its profile in words.
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// What it is made of.
    pub profile: String,
}

/// The log of a seed and a size, made unless it is there from an earlier time.
pub fn kept(directory: &Path, seed: u64, operations: u64) -> anyhow::Result<Kept> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let path = directory.join(format!("log-{GENERATION}-{seed}-{operations}.jsonl"));
    let description = path.with_extension("txt");
    if let (true, Ok(profile)) = (path.exists(), fs::read_to_string(&description)) {
        return Ok(Kept { path, profile });
    }
    // A log that was interrupted keeps another name.
    let unfinished = path.with_extension("unfinished");
    let profile = write(&unfinished, seed, operations)?;
    fs::rename(&unfinished, &path)?;
    fs::write(&description, &profile)?;
    Ok(Kept { path, profile })
}

/// A log that is read line by line, in any order; line N has the sequence number N + 1.
pub struct Log {
    file: File,
    /// Where each line ends, its newline included.
    ends: Vec<u64>,
}

impl Log {
    /// Finds the lines.
    pub fn open(path: &Path) -> anyhow::Result<Log> {
        let context = || format!("cannot read {}", path.display());
        let mut reader = BufReader::with_capacity(BUFFER, File::open(path).with_context(context)?);
        let mut ends = Vec::new();
        let mut before = 0;
        loop {
            let buffer = reader.fill_buf().with_context(context)?;
            if buffer.is_empty() {
                break;
            }
            ends.extend(memchr::memchr_iter(b'\n', buffer).map(|at| before + at as u64 + 1));
            let length = buffer.len();
            before += length as u64;
            reader.consume(length);
        }
        Ok(Log { file: reader.into_inner(), ends })
    }

    /// How many operations there are.
    pub fn operations(&self) -> u64 {
        self.ends.len() as u64
    }

    /// The lines after a sequence number up to another one, with newlines between and one at the
    /// end.
    pub fn lines(&self, after: u64, to: u64) -> std::io::Result<Vec<u8>> {
        let end_of = |sequence: u64| match sequence {
            0 => 0,
            _ => self.ends[sequence.min(self.operations()) as usize - 1],
        };
        let (start, end) = (end_of(after), end_of(to.max(after)));
        let mut lines = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut lines, start)?;
        Ok(lines)
    }
}

/// Writes the DIDs of all identities that the first operations of a log create, one a line.
pub fn kept_dids(log: &Path, operations: u64) -> anyhow::Result<PathBuf> {
    kept_of_geneses(log, operations, "dids", |line| line.get(DID))
}

/// Writes the first handles of all those identities, one a line.
pub fn kept_handles(log: &Path, operations: u64) -> anyhow::Result<PathBuf> {
    let alias = memchr::memmem::Finder::new(r#""alsoKnownAs":["at://"#);
    kept_of_geneses(log, operations, "handles", |line| {
        let handle = &line[alias.find(line)? + alias.needle().len()..];
        handle.get(..memchr::memchr(b'"', handle)?)
    })
}

/// Writes something of each genesis operation, one a line, unless it is there from an earlier time.
fn kept_of_geneses(
    log: &Path,
    operations: u64,
    what: &str,
    of: impl Fn(&[u8]) -> Option<&[u8]>,
) -> anyhow::Result<PathBuf> {
    let path = log.with_extension(format!("{operations}.{what}"));
    if path.exists() {
        return Ok(path);
    }
    let unfinished = path.with_extension("unfinished");
    let mut out = BufWriter::new(File::create(&unfinished)?);
    let first = memchr::memmem::Finder::new(r#","prev":null,"#);
    let reader = BufReader::with_capacity(BUFFER, File::open(log)?);
    for line in reader.split(b'\n').take(usize::try_from(operations)?) {
        let line = line?;
        if first.find(&line).is_some()
            && let Some(kept) = of(&line)
        {
            out.write_all(kept)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

/// Where the DID stands in a line: after `{"did":"`, 32 characters.
const DID: std::ops::Range<usize> = 8..40;
