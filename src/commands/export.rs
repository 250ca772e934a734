//! `plc-replica export`: the log as lines, for dumps.

use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use crate::store::{Store, StoredOperation};
use anyhow::bail;
use did_plc::Timestamp;
use did_plc::entry::Logged;
use did_plc::operation::Malformed;

/// Write the log to standard output, in the lines of the directory's `/export`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
    /// Start after this sequence number.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0, conflicts_with = "by_time")]
    after: i64,
    /// Write the lines of the export by time, with `nullified` and without sequence numbers:
    /// operations that have no number are in this one only.
    #[arg(long)]
    by_time: bool,
}

/// Operations that are read at once.
const PAGE: usize = 1_000;

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if is_closed_output() {
        bail!("standard output is closed: there is nowhere to write the log to");
    }
    let store = Store::open_existing(&args.database.url).await?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    if args.by_time {
        by_time(&store, &mut out).await?;
    } else {
        by_sequence(&store, args.after, &mut out).await?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
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

async fn by_sequence(store: &Store, mut after: i64, out: &mut impl Write) -> anyhow::Result<()> {
    loop {
        let page = store.export_by_sequence(after, PAGE).await?;
        let Some(last) = page.last().and_then(|last| last.sequence) else { return Ok(()) };
        after = last;
        for operation in &page {
            write(operation, |logged, line| logged.write_sequenced(line), out)?;
        }
    }
}

async fn by_time(store: &Store, out: &mut impl Write) -> anyhow::Result<()> {
    let mut after: Option<Timestamp> = None;
    let mut limit = PAGE;
    loop {
        let page = store.export_by_time(after, limit).await?;
        let Some(last) = page.last().map(|last| last.created_at) else { return Ok(()) };
        let whole = page.len() < limit;
        // A page may end in the middle of operations of one millisecond: these begin the next.
        let complete = match whole {
            true => page.len(),
            false => page.partition_point(|operation| operation.created_at < last),
        };
        if complete == 0 {
            limit *= 2;
            continue;
        }
        for operation in &page[..complete] {
            write(operation, |logged, line| logged.write_timestamped(line), out)?;
        }
        if whole {
            return Ok(());
        }
        after = Some(page[complete - 1].created_at);
        limit = PAGE;
    }
}

fn write(
    stored: &StoredOperation,
    form: impl Fn(&Logged<'_>, &mut Vec<u8>) -> Result<(), Malformed>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let cid = stored.cid();
    let logged = stored.logged(&cid);
    let mut line = Vec::with_capacity(1024);
    form(&logged, &mut line)?;
    line.push(b'\n');
    out.write_all(&line)?;
    Ok(())
}
