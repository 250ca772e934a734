//! `plc-replica migrate`: bring the tables up to date, and do nothing else.

use std::process::ExitCode;

use crate::store::Store;

use super::settings::without_password;

/// Create the tables of the database, or bring them up to date, and end.
///
/// `serve` and `import` do so by themselves. This is for a database of which they may not change the tables, and for
/// upgrades that are made step by step.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    database: super::Database,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    Store::open(&args.database.url).await?;
    println!("the tables of {} are up to date", without_password(&args.database.url));
    Ok(ExitCode::SUCCESS)
}
