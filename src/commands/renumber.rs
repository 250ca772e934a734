//! `plc-replica renumber`: follow an upstream that has the same operations under other numbers.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;

use crate::follow::{RenumberError, renumber};
use crate::store::{Store, StoreError};
use crate::upstream::{ExportClient, Limits};

use super::failure;

/// Turn the database to an upstream that has the same operations under other sequence numbers.
///
/// For a replica or a directory that was restored elsewhere, whose export counts otherwise. Nothing is
/// deleted: `serve --upstream URL` then reads that log from the beginning, recognises what is here, and gives
/// it the numbers that are stated there. Until it has come to the end, exports by number have old and new ones
/// side by side, and the header `PLC-Sequence` and the numbers in `/_health` count from the beginning again: who
/// waits for a number or keeps one as a cursor has to begin anew too. Everything else is answered as before. Needs
/// `serve` to be stopped for a moment.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
    /// The upstream to follow from now on. Of several, as `serve` takes them, the first.
    #[arg(
        long,
        env = "PLC_UPSTREAM",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        required = true
    )]
    upstream: Vec<String>,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let upstream = super::preferred(&args.upstream);
    let client = ExportClient::new(upstream, 0, super::USER_AGENT, Limits::default())
        .map_err(|error| anyhow::anyhow!("--upstream: {error}"))?;
    let store = Store::open_existing(&args.database.url).await?;
    let Some(before) = store.source().await? else {
        bail!(
            "nothing was followed into this database yet: `serve` can follow any upstream into it"
        );
    };
    renumber(&store, &client).await.map_err(|error| match error {
        RenumberError::Store(error @ StoreError::LostLease(_)) => failure::in_use(error),
        RenumberError::Upstream(fault) => {
            anyhow::Error::from(fault).context(client.base().to_owned())
        }
        error => error.into(),
    })?;
    writeln!(
        std::io::stdout(),
        "{} was followed up to number {}; from now on it is {}, whose log is read from its beginning by the next \
         `serve --upstream {}`",
        before.upstream,
        before.cursor,
        client.base(),
        client.base()
    )?;
    Ok(ExitCode::SUCCESS)
}
