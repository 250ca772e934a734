//! `plc-replica backup`: a copy of the database while it is in use.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::blocking;
use crate::store::Store;

use super::progress::Meter;

/// Copy the database into a new file while `serve` goes on.
///
/// For SQLite, where a copy of the file that somebody writes to is no backup: what was written last is in other files
/// beside it. The copy is the database as it was when this began, and is used like any other: `--database
/// sqlite://COPY`. Following goes on from its cursor. Postgres has its own programs for this, such as `pg_dump`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The file to write; there must be none of this name.
    #[arg(value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    database: super::Database,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (url, to) = (args.database.url.clone(), args.to.clone());
    let bytes = blocking::run("copying the database", move || {
        let mut meter = None;
        let copied = Store::back_up(&url, &to, |done, all| {
            meter.get_or_insert_with(|| Meter::bytes("copying the database", Some(all))).set(done);
        });
        if let Some(meter) = meter {
            meter.finish();
        }
        copied
    })
    .await?;
    writeln!(io::stdout(), "{bytes} bytes are in {}", args.to.display())?;
    Ok(ExitCode::SUCCESS)
}
