//! `plc-replica refused`: what was refused and kept.

use std::io::Write;
use std::process::ExitCode;

use crate::escape::printable;
use crate::store::{Store, StoredRefusal};
use anyhow::bail;
use did_plc::Did;

/// List the operations that were refused, with the reason and what was received.
///
/// Ends with 0, and with 2 when it is asked for what is no identity, and nothing is on record under that either.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
    /// Only those of this identity.
    #[arg(long, value_name = "DID")]
    did: Option<String>,
    /// Print JSON, an object a line, with the line as it was received.
    #[arg(long)]
    json: bool,
}

/// Refusals that are read at once.
const PAGE: usize = 500;

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.database.url).await?;
    let mut out = std::io::stdout().lock();
    let mut after = 0;
    let mut listed = 0;
    loop {
        let page = store.refusals(args.did.as_deref(), after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        listed += page.len();
        for kept in &page {
            if args.json {
                writeln!(out, "{}", kept.to_json())?;
            } else {
                print(kept, &mut out)?;
            }
        }
    }
    if listed > 0 {
        return Ok(ExitCode::SUCCESS);
    }
    match &args.did {
        // What was stated as a DID is kept as it is, so that any text can be on record.
        Some(did) if did.parse::<Did>().is_err() => {
            bail!("nothing is on record under {}, which is no did:plc identifier", printable(did))
        }
        Some(did) if !args.json => writeln!(out, "nothing is on record under {did}")?,
        None if !args.json => writeln!(out, "nothing was refused")?,
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn print(kept: &StoredRefusal, out: &mut impl Write) -> std::io::Result<()> {
    let refusal = &kept.refusal;
    let sequence = refusal.sequence.map_or("-".to_owned(), |number| number.to_string());
    let cid = refusal.cid.map_or("-".to_owned(), |cid| cid.to_string());
    let did = if refusal.did.is_empty() { "-" } else { &refusal.did };
    let later = kept
        .accepted_at
        .map_or(String::new(), |at| format!(" (judged again and accepted at {at})"));
    writeln!(
        out,
        "{} {} {sequence} {} {cid} {}: {}{later}",
        kept.id,
        kept.received_at,
        printable(did),
        refusal.kind,
        printable(&refusal.detail)
    )
}
