//! `plc-replica snapshot`: the log as a folder of files that anybody can publish.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use crate::blocking;
use crate::publish::{Folder, Publication, Published, Reread};
use crate::snapshot::{Division, MAX_NUMBERS_PER_FILE};
use crate::store::Store;

use super::progress::Meter;

/// Write the log as a folder of files that never change, with an index, for a web server or a bucket to publish.
///
/// A second run into the same folder adds what is new, and writes those files anew that do not say any more what the log
/// says. Two replicas with the same log write the same files. `serve` may go on meanwhile. Operations that have no
/// sequence number are not in it: `export --by-time` has them. Ends with 0 when the folder says what the log says, and
/// with 2 when it could not be written; what was published before is as it was then.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The folder; it is made where it is missing.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    database: super::Database,
    /// Sequence numbers of each file, which is operations where none is left out; 100,000 without it. A folder keeps to
    /// what it was begun with.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_parser = clap::value_parser!(i64).range(1..=MAX_NUMBERS_PER_FILE)
    )]
    numbers_per_file: Option<i64>,
    /// Do not compare with the log what is published already, only add what is new. What came late, or has another number
    /// or time now, is left to a run without this.
    #[arg(long)]
    only_new: bool,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.database.url).await?;
    let path = args.folder.clone();
    let folder = blocking::run("taking a folder", move || Folder::take(&path)).await?;
    let held = store.statistics().await?.operations;
    let publication = Publication {
        store,
        folder: Arc::new(folder),
        division: args.numbers_per_file.and_then(Division::into_ranges_of),
        reread: if args.only_new { Reread::Nothing } else { Reread::All },
        at_once: available_parallelism().map_or(1, usize::from),
    };
    let total = (!args.only_new).then_some(held);
    let meter = Meter::operations(&format!("writing {}", args.folder.display()), total);
    let begun = Instant::now();
    let published = publication.run(|read| meter.set(read)).await;
    meter.finish();
    let Published { index, written, replaced } = published?;
    let mut out = io::stdout();
    writeln!(
        out,
        "{}: {} operations up to number {} in {} files, {written} of them written now, {replaced} of those in place of \
         others; chain {}; {:.1} s",
        args.folder.display(),
        index.count(),
        index.last(),
        index.files().len(),
        index.chain(),
        begun.elapsed().as_secs_f64()
    )?;
    // What came since it was counted has numbers: so many have none.
    let unnumbered = held.saturating_sub(index.count());
    if unnumbered > 0 && !args.only_new {
        writeln!(
            out,
            "{unnumbered} operations have no sequence number and are not in it; `export --by-time` has them"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
