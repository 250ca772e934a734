//! `plc-replica fsck`: check a whole store from its own bytes.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::audit::fsck::{self, StoreDamage};
use crate::store::Store;

use super::progress::Meter;

/// Check a whole store from its own bytes: tables, CIDs, signatures, chains, nullified flags, cursor.
///
/// Names every damaged row, and what the tables lack. Ends with 0 when there is none, 1 when there is one, and 2 when the
/// store cannot be read. Can run beside a replica that is serving.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
    /// Check signatures with the pure-Rust libraries, which share no code with those that checked
    /// them when they came in. Several times slower.
    #[arg(long)]
    second_opinion: bool,
    /// Print JSON: an object a line for each damaged row, and one with the totals at the end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    signatures: super::Signatures,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.database.url).await?;
    let verifier = args.signatures.verifier_or_plain(args.second_opinion);
    let total = store.statistics().await?.operations;
    let meter = Meter::operations("checking", Some(total));
    let begun = Instant::now();
    let print = |damage: StoreDamage| {
        let printed = meter.suspend(|| match serde_json::to_string(&damage) {
            Ok(json) if args.json => writeln!(io::stdout(), "{json}"),
            _ => writeln!(io::stdout(), "damaged: {}: {}", damage.place, damage.reason),
        });
        if printed.is_err() {
            // Nobody reads what the rest would be checked for.
            std::process::exit(super::UNREAD.into());
        }
    };
    let checked = fsck::check(&store, &*verifier, print, |done| meter.set(done)).await?;
    meter.finish();
    let seconds = begun.elapsed().as_secs_f64();
    let rate = checked.operations as f64 / seconds.max(1e-6);
    if args.json {
        let mut value = serde_json::to_value(&checked)?;
        value["seconds"] = seconds.into();
        value["operationsPerSecond"] = rate.round().into();
        writeln!(io::stdout(), "{value}")?;
    } else {
        writeln!(
            io::stdout(),
            "{} operations of {} identities checked, {} damaged rows; {seconds:.1} s, {rate:.0} operations a second",
            checked.operations,
            checked.identities,
            checked.damaged
        )?;
    }
    Ok(if checked.damaged == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
