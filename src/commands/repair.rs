//! `plc-replica repair`: look for what is missing, and take it in.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use did_plc::Did;

use crate::blocking;
use crate::escape::printable;
use crate::follow::{Extent, Found, Progress, Repair, RepairError, Repaired};
use crate::store::{Store, StoreError};
use crate::upstream::{Dump, ExportClient, Limits};

use super::failure;
use super::progress::Meter;

/// Look for operations that are missing here, and take them in; says what was found.
///
/// `serve` does the same by itself: it asks about what was refused, and reads the whole log again behind
/// the follower. This is for now, with `serve` stopped. Ends with 0 when nothing was missing, refused or
/// different, with 1 when something was (and is here now, or on record) or is not known to the upstream, with 2
/// when it could not be done to the end.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("extent").required(true))]
pub struct Args {
    /// Identities whose audit logs are asked for.
    #[arg(value_name = "DID", group = "extent")]
    dids: Vec<String>,
    /// A dump to compare with instead: plain, `.gz` or `.zst`; `-` is standard input.
    #[arg(long, value_name = "FILE", group = "extent")]
    from: Option<PathBuf>,
    /// The upstream's whole log, page by page.
    #[arg(long, group = "extent")]
    all: bool,
    #[command(flatten)]
    database: super::Database,
    /// The upstream that is asked; it has to be the one that the database follows, which is asked without this. Of
    /// several, as `serve` takes them, that one.
    #[arg(
        long,
        env = "PLC_UPSTREAM",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ','
    )]
    upstream: Vec<String>,
    #[command(flatten)]
    request_rate: super::RequestRate,
    #[command(flatten)]
    records: super::KeptRecords,
    #[command(flatten)]
    signatures: super::Signatures,
}

impl Args {
    /// A client of the upstream that the database follows.
    fn client(&self, followed: &str) -> anyhow::Result<ExportClient> {
        let client = |url: &str| {
            let (rate, limits) = (self.request_rate.per_minute, Limits::default());
            ExportClient::new(url, rate, super::USER_AGENT, limits)
                .map_err(|error| anyhow::anyhow!("--upstream: {error}"))
        };
        if self.upstream.is_empty() {
            return client(followed);
        }
        let clients = self.upstream.iter().map(|url| client(url));
        let clients: Vec<ExportClient> = clients.collect::<anyhow::Result<_>>()?;
        let bases: Vec<&str> = clients.iter().map(ExportClient::base).collect();
        let Some(place) = bases.iter().position(|base| *base == followed) else {
            bail!(
                "the database follows {followed}, and --upstream is {}: it is repaired from the one that it follows",
                bases.join(", ")
            );
        };
        Ok(clients[place].clone())
    }
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.database.url).await?;
    args.records.limit(&store);
    let Some(source) = store.source().await? else {
        bail!("nothing was followed into this database yet: there is nothing to repair");
    };
    let client = args.client(&source.upstream)?;
    let (extent, meter) = extent(args, source.cursor).await?;
    let repair = Repair { store: &store, client: &client, verifier: args.signatures.verifier() };
    let mut found = Repaired::default();
    let mut printed = Ok(());
    let repaired = repair.run(extent, &mut found, |progress| match progress {
        Progress::Done(done) => meter.set(done),
        // What cannot be printed is repaired all the same.
        Progress::Found(found) if printed.is_ok() => {
            printed = meter.suspend(|| writeln!(io::stdout(), "{}", sentence(&found)));
        }
        Progress::Found(_) => {}
    });
    let repaired = repaired.await;
    meter.finish();
    match repaired {
        // Nothing was done.
        Err(RepairError::Store(error @ StoreError::LostLease(_))) if found.lines == 0 => {
            return Err(failure::in_use(error));
        }
        Err(error) => {
            if found != Repaired::default() {
                // It is in the database.
                print_summary(&found)?;
            }
            return Err(error.into());
        }
        Ok(()) => {}
    }
    printed.and_then(|()| print_summary(&found))?;
    Ok(if found.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where to look, and what shows how far it is.
async fn extent(args: &Args, cursor: i64) -> anyhow::Result<(Extent, Meter)> {
    if let Some(file) = args.from.clone() {
        let dump = blocking::run("opening a dump", move || Dump::open(&file)).await?;
        let meter = Meter::bytes(&format!("comparing {}", dump.name()), dump.progress().total);
        return Ok((Extent::File(dump), meter));
    }
    if args.all {
        return Ok((Extent::All, Meter::operations("reading again", Some(cursor.unsigned_abs()))));
    }
    let parse = |text: &String| -> anyhow::Result<Did> {
        text.parse().with_context(|| format!("{text} is no did:plc identifier"))
    };
    let dids: Vec<Did> = args.dids.iter().map(parse).collect::<Result<_, _>>()?;
    let meter = Meter::identities("asking", dids.len() as u64);
    Ok((Extent::Identities(dids), meter))
}

/// What is printed of something that was found.
fn sentence(found: &Found) -> String {
    match found {
        Found::Missing { did, operations: 1 } => {
            format!("{did}: 1 operation missing, which is here now")
        }
        Found::Missing { did, operations } => {
            format!("{did}: {operations} operations missing, which are here now")
        }
        Found::Refused { did, reason } => {
            format!("{}: refused: {}", printable(did), printable(reason))
        }
        Found::Recorded { did, kind } => format!("{}: recorded: {kind}", printable(did)),
        Found::Lacking { did, operations } => format!(
            "{did}: the upstream's audit log lacks operations that are here: {operations}; `plc-replica audit {did}` \
             compares and records them"
        ),
        Found::Unknown { did, held: 0 } => format!("{did}: not known to the upstream"),
        Found::Unknown { did, held } => {
            format!("{did}: not known to the upstream, and {held} operations are here")
        }
    }
}

fn print_summary(found: &Repaired) -> io::Result<()> {
    let Repaired { lines, missing, refused, recorded, lacking, .. } = found;
    let lacking = match lacking {
        0 => String::new(),
        lacking => format!(", {lacking} operations that are here are lacking there"),
    };
    writeln!(
        io::stdout(),
        "{lines} lines compared: {missing} operations were missing and are here now, {refused} refused, {recorded} \
         differences recorded{lacking}"
    )
}
