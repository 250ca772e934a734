//! `plc-replica resolve`: the DID document of an identity, from the store.

use std::io::Write;
use std::process::ExitCode;

use crate::store::Store;
use did_plc::operation::OperationKind;
use did_plc::{Did, Operation, document};

use super::absence::absence;

/// Print the DID document of an identity, from the store alone.
///
/// Ends with 1 when the store does not hold the identity, or when it was ended by a tombstone.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The identity: `did:plc:…`.
    did: Did,
    /// Print what the operation says (`/{did}/data`) and not the document.
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    database: super::Database,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.database.url).await?;
    let Some(head) = store.head(&args.did).await? else {
        eprintln!("{}", absence(&store, &args.did, &args.database.url).await?);
        return Ok(ExitCode::from(1));
    };
    if Operation::read(&head.signed)?.kind() == OperationKind::Tombstone {
        eprintln!("{} was ended by a tombstone at {}", args.did, head.created_at);
        return Ok(ExitCode::from(1));
    }
    let mut out = Vec::new();
    if args.data {
        document::write_data(&args.did, &head.signed, &mut out)?;
    } else {
        document::write_document(&args.did, &head.signed, &mut out)?;
    }
    out.push(b'\n');
    std::io::stdout().write_all(&out)?;
    Ok(ExitCode::SUCCESS)
}
