//! `plc-replica export`: the log as lines, for dumps, or as a table, for people who count things.

mod form;
mod identities;
mod output;
mod selection;

use std::path::PathBuf;
use std::process::ExitCode;

use did_plc::Did;

use self::form::{Form, Format};
use self::output::Output;
use self::selection::{Place, Selection};
use super::absence::absence;
use super::progress::Meter;
use crate::store::{Store, StoredOperation};

/// Write the log: in the lines of the directory's `/export`, or as a table in CSV or Parquet.
///
/// All accepted operations, those included that were nullified later, in the order of their numbers; of what has no
/// number see --by-time. A table (docs/SQL.md says what is in its columns) has what a line does not say: who
/// signed, and what nullified it. Ends with 0; with 1 when an identity of --did is not here, and the others were written;
/// with 2 when it could not be done.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
    /// Only what comes after this sequence number, or was created after this time (2024-01-31T12:00:00Z).
    #[arg(long, value_name = "SEQUENCE|TIME")]
    after: Option<Place>,
    /// Only what comes up to this sequence number, or was created up to this time.
    #[arg(long, value_name = "SEQUENCE|TIME")]
    until: Option<Place>,
    /// Write in the order of the export by time, and lines as that has them, with `nullified` and without sequence
    /// numbers: operations that have no number are in this one only. --after and --until take times then.
    #[arg(long)]
    by_time: bool,
    /// Only the operations of these identities: a file with a DID on each line, `-` for standard input. They are
    /// written one identity after the other in the order of the file; a table has those of them that have no number too.
    #[arg(long, value_name = "FILE")]
    did: Option<PathBuf>,
    /// Only operations that were nullified: what a recovery has undone.
    #[arg(long)]
    nullified: bool,
    /// As the directory's lines of JSON, or as a table.
    #[arg(
        long,
        value_enum,
        value_name = "lines|csv|parquet",
        default_value = "lines",
        hide_possible_values = true
    )]
    format: Format,
    /// The file to write, in place of one of this name when it is complete; without it, standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Operations that are read at once.
const PAGE: usize = 1_000;
/// Identities that are read at once.
const IDENTITIES: usize = 200;

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args { after, until, nullified, .. } = *args;
    let selection = Selection { after, until, nullified };
    if args.by_time {
        selection.check_by_time()?;
    }
    let identities = args.did.as_deref().map(identities::read).transpose()?;
    let output = Output::open(args.output.as_deref(), args.format == Format::Parquet)?;
    let store = Store::open_existing(&args.database.url).await?;
    let total = match identities {
        None if selection == Selection::default() => Some(store.statistics().await?.operations),
        _ => None,
    };
    // What is written to standard output says by itself how far it is.
    let named = args.output.as_ref().map(|path| format!("writing {}", path.display()));
    let mut export = Export {
        form: Form::begin(args.format, args.by_time, output)?,
        meter: named.map(|named| Meter::operations(&named, total)),
        read: 0,
        store,
        selection,
    };
    let missing = match identities {
        Some(identities) => export.of_identities(&identities, &args.database.url).await?,
        None if args.by_time => export.by_time().await.map(|()| 0)?,
        None => export.by_sequence().await.map(|()| 0)?,
    };
    if let Some(meter) = export.meter {
        meter.finish();
    }
    export.form.end()?;
    Ok(if missing > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// An export that is under way.
struct Export {
    store: Store,
    selection: Selection,
    form: Form,
    meter: Option<Meter>,
    /// Operations that were read.
    read: u64,
}

impl Export {
    /// Writes those that are selected.
    async fn write(&mut self, mut operations: Vec<StoredOperation>) -> anyhow::Result<()> {
        self.read += operations.len() as u64;
        operations.retain(|operation| self.selection.takes(operation));
        self.form.write(&self.store, operations).await?;
        if let Some(meter) = &self.meter {
            meter.set(self.read);
        }
        Ok(())
    }

    async fn by_sequence(&mut self) -> anyhow::Result<()> {
        let mut after = self.selection.first_number();
        loop {
            let page = self.store.export_by_sequence(after, PAGE).await?;
            let Some(last) = page.last().and_then(|last| last.sequence) else { return Ok(()) };
            self.write(page).await?;
            if self.selection.ends_by_number(last) {
                return Ok(());
            }
            after = last;
        }
    }

    async fn by_time(&mut self) -> anyhow::Result<()> {
        let mut after = self.selection.first_time();
        let mut limit = PAGE;
        loop {
            let mut page = self.store.export_by_time(after, limit).await?;
            let Some(last) = page.last().map(|last| last.created_at) else { return Ok(()) };
            let whole = page.len() < limit;
            // A page may end in the middle of operations of one millisecond: these begin the next.
            if !whole {
                page.truncate(page.partition_point(|operation| operation.created_at < last));
            }
            let Some(complete) = page.last().map(|last| last.created_at) else {
                limit *= 2;
                continue;
            };
            self.write(page).await?;
            if whole || self.selection.ends_by_time(complete) {
                return Ok(());
            }
            (after, limit) = (Some(complete), PAGE);
        }
    }

    /// How many of the identities are not there, which is told of each.
    async fn of_identities(&mut self, dids: &[Did], database: &str) -> anyhow::Result<usize> {
        let mut missing = 0;
        for some in dids.chunks(IDENTITIES) {
            let sorted = self.store.histories(some).await?;
            let mut operations = Vec::with_capacity(sorted.len());
            for did in some {
                let begin = sorted.partition_point(|operation| operation.did < *did);
                let end = sorted.partition_point(|operation| operation.did <= *did);
                if begin == end {
                    eprintln!("{}", absence(&self.store, did, database).await?);
                    missing += 1;
                }
                operations.extend(sorted[begin..end].iter().cloned());
            }
            self.write(operations).await?;
        }
        Ok(missing)
    }
}
