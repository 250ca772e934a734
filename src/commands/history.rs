//! `plc-replica history`: what happened to an identity, for a person.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::audit::{OperationVerdict, Peer};
use crate::clock;
use crate::escape::printable;
use crate::store::{Store, StoredOperation};
use anyhow::Context;
use did_plc::Did;
use did_plc::history::{History, HistoryEntry, Judgement};

use super::absence::absence;

/// Tell what happened to an identity: what changed, who signed it, what was overruled by what.
///
/// Reads the log from the database, or from any directory, replica or dump, and verifies it on the
/// way. Ends with 1 when the identity is not there, and when something in its log does not verify;
/// with 2 when it cannot be read, or there is no entry of any log in the file.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The identity: `did:plc:…`.
    did: Did,
    /// Read the log from this directory or replica, or from this file, and not from the database.
    #[arg(long, value_name = "URL|FILE")]
    from: Option<String>,
    /// Print JSON: an object a line for each operation.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: super::Database,
    #[command(flatten)]
    signatures: super::Signatures,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let verifier = args.signatures.verifier();
    let history = match &args.from {
        Some(place) => {
            let peer = Peer::new(place, 0, super::USER_AGENT).context("--from")?;
            let history = peer.ask(args.did, &verifier).await.with_context(|| peer.name())?.history;
            if history.is_empty() {
                eprintln!("{} is not in {}", args.did, peer.name());
            }
            history
        }
        None => {
            let store = Store::open_existing(&args.database.url).await?;
            let stored = store.history(&args.did).await?;
            if stored.is_empty() {
                eprintln!("{}", absence(&store, &args.did, &args.database.url).await?);
            }
            let received = stored.iter().map(StoredOperation::as_received);
            History::verified(args.did, received, &*verifier)
        }
    };
    if history.is_empty() {
        return Ok(ExitCode::from(1));
    }
    let mut out = io::stdout().lock();
    for verdict in OperationVerdict::all(&history) {
        if args.json {
            serde_json::to_writer(&mut out, &verdict)?;
            writeln!(out)?;
        } else {
            print(&verdict, &mut out)?;
        }
    }
    for unreadable in &history.unreadable {
        let (cid, reason) = (printable(&unreadable.cid), unreadable.refusal.to_string());
        eprintln!("{cid}: {}: {}", unreadable.refusal.kind(), printable(&reason));
    }
    if !args.json {
        print_end(&history, &mut out)?;
    }
    Ok(if history.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// One operation: a line with its time, and below it what is to be said of it.
fn print(verdict: &OperationVerdict, out: &mut impl Write) -> io::Result<()> {
    let OperationVerdict { cid, created_at, changes, .. } = verdict;
    let sequence = verdict.sequence.map_or(String::new(), |number| format!("  number {number}"));
    writeln!(out, "{created_at}  {cid}{sequence}")?;
    for change in changes {
        writeln!(out, "    {}", printable(&change.text))?;
    }
    if let Some(signed_by) = &verdict.signed_by {
        let key = printable(&signed_by.key);
        writeln!(out, "    signed by rotation key {}, {key}", signed_by.index)?;
    }
    if let Some(remark) = &verdict.remark {
        writeln!(out, "    remark: {}", printable(&remark.text))?;
    }
    if let Some(refused) = &verdict.refused {
        writeln!(out, "    REFUSED, {}: {}", refused.kind, printable(&refused.expected))?;
    }
    for nullified in &verdict.nullifies {
        writeln!(out, "    recovers from {nullified}, which it nullifies")?;
    }
    if let Some(by) = &verdict.nullified_by {
        writeln!(out, "    NULLIFIED by {by}")?;
    }
    let now = clock::now().to_string();
    // Texts of times order as the times do.
    if let Some(until) = verdict.contestable_until.as_ref().filter(|until| **until >= now) {
        writeln!(out, "    can be overruled until {until}")?;
    }
    if let (Some(at), Some(after)) = (&verdict.received_at, verdict.received_after_seconds) {
        writeln!(out, "    received {at}, {}", delay(after))?;
    }
    Ok(())
}

fn print_end(history: &History, out: &mut impl Write) -> io::Result<()> {
    let count = |is: fn(&HistoryEntry) -> bool| history.entries.iter().filter(|of| is(of)).count();
    let nullified = count(|entry| entry.nullified_by.is_some());
    let refused = count(|entry| entry.refusal().is_some()) + history.unreadable.len();
    let repeated = count(|entry| entry.judgement == Judgement::Repeated);
    let of_these =
        |count, what| if count > 0 { format!(", {count} {what}") } else { String::new() };
    writeln!(
        out,
        "{}: {} operations{}{}{}",
        history.did,
        history.entries.len() + history.unreadable.len(),
        of_these(nullified, "nullified"),
        of_these(repeated, "there before"),
        of_these(refused, "REFUSED"),
    )
}

/// A number of seconds in the unit that a person would choose.
fn delay(seconds: f64) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 60.0 * MINUTE;
    const DAY: f64 = 24.0 * HOUR;
    let (size, side) = (seconds.abs(), if seconds < 0.0 { "before" } else { "after" });
    let amount = match size {
        size if size < 2.0 * MINUTE => format!("{size:.1} s"),
        size if size < 2.0 * HOUR => format!("{:.0} minutes", size / MINUTE),
        size if size < 2.0 * DAY => format!("{:.0} hours", size / HOUR),
        size => format!("{:.0} days", size / DAY),
    };
    format!("{amount} {side} it was accepted")
}
