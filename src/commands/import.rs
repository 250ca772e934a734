//! `plc-replica import`: take archives into the store, verified like everything else.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use crate::follow::{Import, ImportError, ImportProgress, Imported};
use crate::store::{Store, StoreError};
use crate::upstream::{Archive, Limits, Web};
use anyhow::bail;

use super::failure;
use super::progress::Meter;

/// Take operations into the database, verifying them, from wherever there are many at once.
///
/// What is there already is recognised, so that an import that was interrupted is begun again by the same command; of
/// archives with an index, what was imported whole is not even fetched again. Following goes on from the last sequence
/// number when an archive begins where the database ends or before; otherwise the cursor stays, and
/// following fetches the rest. Ends with 0, also when operations were refused (see `refused`),
/// and with 2 when an archive cannot be read or holds no entry of a log.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Where they are: files (an export in either format, or audit logs; plain, gzip or zstd), `-` for
    /// standard input, directories of them, patterns such as 'logs/*.gz', plcbundle repositories; http:// or https://
    /// URLs of such files and repositories, or of another replica. What it is is found by looking.
    #[arg(required = true, value_name = "SOURCE")]
    archives: Vec<String>,
    #[command(flatten)]
    database: super::Database,
    /// The upstream that the archives were made from; following another later needs the same log. Of several, as
    /// `serve` takes them, the first.
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
    let upstream = super::preferred(&args.upstream).trim_end_matches('/');
    let archives = find(&args.archives, upstream).await?;
    let store = Store::open(&args.database.url).await?;
    args.records.limit(&store);
    let meter = Meter::bytes(&what(&archives), total(&archives));
    let mut begun = Instant::now();
    let (mut empty, mut unread) = (Vec::new(), None);
    let import = Import { store: &store, upstream, verifier: args.signatures.verifier() };
    let imported = import.run(archives, |progress| match progress {
        ImportProgress::Bytes(read) => meter.set(read),
        ImportProgress::Archive(name, imported) => {
            let seconds = std::mem::replace(&mut begun, Instant::now()).elapsed().as_secs_f64();
            let said = sentence(&name, &imported, seconds);
            // That nobody reads it is no reason to end before everything is imported.
            if let Err(error) = meter.suspend(|| writeln!(std::io::stdout(), "{said}")) {
                unread = Some(error);
            }
            if imported.lines == imported.unreadable && imported.passed_over == 0 {
                empty.push(name);
            }
        }
    });
    let imported = imported.await;
    meter.finish();
    imported.map_err(|error| match error {
        ImportError::Store(error @ StoreError::LostLease(_)) => failure::in_use(error),
        error => error.into(),
    })?;
    if let Some(error) = unread {
        return Err(error.into());
    }
    if let [name, ..] = &empty[..] {
        bail!("{name}: {}; nothing was imported", failure::NO_ENTRY);
    }
    Ok(ExitCode::SUCCESS)
}

/// What these names stand for; whatever is wrong with one is said before anything is written.
async fn find(names: &[String], upstream: &str) -> anyhow::Result<Vec<Archive>> {
    let web = Web::new(super::USER_AGENT, Limits::default());
    let mut archives = Vec::new();
    for name in names {
        archives.extend(Archive::find(name, &web).await?);
    }
    for Archive { name, origin, .. } in &archives {
        if let Some(origin) = origin.as_deref().map(|origin| origin.trim_end_matches('/'))
            && origin != upstream
        {
            tracing::warn!(
                "{name}: its index says that it was made from {origin}, and {upstream} is what is followed later; that \
                 works if the two have the same log"
            );
        }
    }
    Ok(archives)
}

fn what(archives: &[Archive]) -> String {
    match archives {
        [Archive { name, .. }] => format!("importing {name}"),
        archives => format!("importing {} archives", archives.len()),
    }
}

/// Bytes of all, where all are known.
fn total(archives: &[Archive]) -> Option<u64> {
    archives.iter().flat_map(|archive| &archive.volumes).map(|volume| volume.bytes).sum()
}

fn sentence(name: &str, imported: &Imported, seconds: f64) -> String {
    let Imported { volumes, passed_over, lines, accepted, known, .. } = imported;
    let files = match (volumes, passed_over) {
        (0 | 1, 0) => String::new(),
        (_, 0) => format!(" in {volumes} files"),
        _ => format!(" in {volumes} files, {passed_over} files imported before"),
    };
    let later = match imported.accepted_later {
        0 => String::new(),
        later => format!(", {later} accepted later"),
    };
    let kinds = imported.refused.iter().map(|(kind, count)| format!("\n    {kind}  {count}"));
    format!(
        "{name}: {lines} lines{files}, {accepted} operations accepted, {known} known before, {} refused{later}; \
         {seconds:.1} s{}",
        imported.all_refused(),
        kinds.collect::<String>()
    )
}
