//! `plc-replica import`: take a dump into the store, verified like everything else.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::blocking;
use crate::follow::{Import, ImportError, Imported};
use crate::store::{Store, StoreError};
use crate::upstream::Dump;
use anyhow::bail;

use super::failure;
use super::progress::Meter;

/// Take a dump (an export in either format, or an audit log) into the database, verifying it.
///
/// What is there already is recognised. Following goes on from the dump's last sequence number
/// when the dump begins where the database ends or before; otherwise the cursor stays, and
/// following fetches the rest. Ends with 0, also when operations were refused (see `refused`),
/// and with 2 when the dump cannot be read or holds no entry of a log.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The dump: plain, `.gz` or `.zst`; `-` is standard input.
    file: PathBuf,
    #[command(flatten)]
    database: super::Database,
    /// The upstream that the dump was made from; following another later needs the same log. Of several, as `serve`
    /// takes them, the first.
    #[arg(
        long,
        env = "PLC_UPSTREAM",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "https://plc.directory"
    )]
    upstream: Vec<String>,
    #[command(flatten)]
    records: super::KeptRecords,
    #[command(flatten)]
    signatures: super::Signatures,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = args.file.clone();
    let dump = blocking::run("opening a dump", move || Dump::open(&file)).await?;
    let name = dump.name().to_owned();
    let store = Store::open(&args.database.url).await?;
    args.records.limit(&store);
    let progress = dump.progress();
    let meter = Meter::bytes(&format!("importing {name}"), progress.total);
    let begun = Instant::now();
    let import = Import {
        store: &store,
        upstream: super::preferred(&args.upstream).trim_end_matches('/'),
        verifier: args.signatures.verifier(),
    };
    let imported = import.run(dump, || meter.set(progress.read())).await;
    meter.finish();
    let Imported { lines, accepted, known, refused, unreadable } =
        imported.map_err(|error| match error {
            ImportError::Store(error @ StoreError::LostLease(_)) => failure::in_use(error),
            error => error.into(),
        })?;
    writeln!(
        std::io::stdout(),
        "{name}: {lines} lines, {accepted} operations accepted, {known} known before, {refused} refused; {:.1} s",
        begun.elapsed().as_secs_f64()
    )?;
    if lines == unreadable {
        bail!("{name}: {}; nothing was imported", failure::NO_ENTRY);
    }
    Ok(ExitCode::SUCCESS)
}
