//! `plc-replica import`: take a dump into the store, verified like everything else.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::store::Store;
use crate::sync::{BatchJudge, Lines, NotJson, Parts};
use crate::upstream::{Block, Dump, DumpError};
use did_plc::Timestamp;
use did_plc::signature::Verifier;
use tokio::sync::{mpsc, watch};

use super::progress::Meter;

/// Take a dump (an export in either format, or an audit log) into the database, verifying it.
///
/// What is there already is recognised. Following goes on from the dump's last sequence number
/// when the dump begins where the database ends or before; otherwise the cursor stays, and
/// following fetches the rest. Ends with 0, also when operations were refused (see `refused`).
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The dump: plain, `.gz` or `.zst`; `-` is standard input.
    file: PathBuf,
    #[command(flatten)]
    database: super::Database,
    /// The upstream that the dump was made from; following another later needs the same log.
    #[arg(
        long,
        env = "PLC_UPSTREAM",
        hide_env_values = true,
        value_name = "URL",
        default_value = "https://plc.directory"
    )]
    upstream: String,
    #[command(flatten)]
    signatures: super::Signatures,
}

/// Blocks that wait while others are judged and written.
const BLOCKS_AHEAD: usize = 4;

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dump = Dump::open(&args.file)?;
    let name = dump.name().to_owned();
    let store = Store::open(&args.database.url).await?;
    let upstream = args.upstream.trim_end_matches('/');
    let (lease, source) = store.follow(upstream).await?;
    store.set_durability(false).await?;
    let begun = Instant::now();
    let result = import(&store, &lease, source.cursor, upstream, args.signatures.verifier(), dump);
    let imported = result.await;
    store.set_durability(true).await?;
    store.release(lease).await?;
    let Imported { lines, accepted, known, refused } = imported?;
    writeln!(
        std::io::stdout(),
        "{name}: {lines} lines, {accepted} operations accepted, {known} known before, {refused} refused; {:.1} s",
        begun.elapsed().as_secs_f64()
    )?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Imported {
    lines: usize,
    accepted: usize,
    known: usize,
    refused: usize,
}

async fn import(
    store: &Store,
    lease: &crate::store::Lease,
    stored_cursor: i64,
    upstream: &str,
    verifier: Arc<dyn Verifier>,
    dump: Dump,
) -> anyhow::Result<Imported> {
    let progress = dump.progress();
    let meter = Meter::bytes(&format!("importing {}", dump.name()), progress.total);
    let (committed, committed_rx) = watch::channel(0);
    let mut judge =
        BatchJudge::new(store.clone(), verifier, upstream.to_owned(), committed_rx).await?;
    let mut blocks = read_ahead(dump);
    let mut imported = Imported::default();
    let mut cursor = stored_cursor;
    let mut continues = None;
    while let Some(block) = blocks.recv().await {
        let block = block?;
        let lines: Vec<_> = block.into_iter().map(|(_, line)| line).collect();
        imported.lines += lines.len();
        let continues = *continues.get_or_insert_with(|| continues_from(&lines, stored_cursor));
        let Parts { parts, cursor: after, .. } = judge
            .split(Lines {
                lines,
                received_at: Timestamp::from(SystemTime::now()),
                cursor,
                caught_up: false,
                live: false,
                not_json: NotJson::Keep,
            })
            .await;
        for part in parts {
            let mut prepared = judge.judge(part).await?;
            if !continues {
                prepared.commit.cursor_before = stored_cursor;
                prepared.commit.cursor_after = stored_cursor;
            }
            store.commit(lease, &prepared.commit).await?;
            committed.send_replace(prepared.batch);
            imported.accepted += prepared.commit.operations.len();
            imported.known += prepared.known;
            imported.refused += prepared.commit.refusals.len();
        }
        if continues {
            cursor = after;
        }
        meter.set(progress.read());
    }
    meter.finish();
    Ok(imported)
}

/// Whether a dump leaves no gap after the stored cursor.
fn continues_from(lines: &[bytes::Bytes], cursor: i64) -> bool {
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: i64,
    }
    let first = lines.first().and_then(|line| serde_json::from_slice::<Numbered>(line).ok());
    first.is_some_and(|Numbered { seq }| seq <= cursor.saturating_add(1))
}

/// Reads the dump on a thread of its own.
fn read_ahead(dump: Dump) -> mpsc::Receiver<Result<Block, DumpError>> {
    let (sender, blocks) = mpsc::channel(BLOCKS_AHEAD);
    std::thread::spawn(move || {
        for block in dump {
            if sender.blocking_send(block).is_err() {
                break;
            }
        }
    });
    blocks
}
