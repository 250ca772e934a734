//! `plc-replica export`: the log as lines, for dumps.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use crate::store::{Store, StoredOperation};
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
