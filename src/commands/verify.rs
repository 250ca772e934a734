//! `plc-replica verify`: judge a dump offline, whoever it comes from.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crate::audit::{DumpJudge, Finding, Summary};
use crate::escape::printable;
use crate::upstream::{Block, Dump, DumpReader, MAX_ENTRY};
use anyhow::Context;
use bytes::Bytes;
use did_plc::signature::Verifier;

use super::evidence;
use super::failure;
use super::progress::Meter;

/// Judge an audit log or an export offline, by the rules of did:plc alone.
///
/// Reads an audit log (a JSON array), an export in either format (JSON lines), or the records of
/// `/_audit/divergences` and `audit --json`, of which it judges both sides; plain or compressed
/// with gzip or zstd. Prints a line for each operation that is refused, for each that comes again
/// with another CID, `createdAt` or number, for each `nullified` flag that the log does not lead
/// to, and, which is no fault, for each in which something is to be remarked; then a summary.
///
/// Ends with 0 when every line was judged and nothing is wrong; remarks are no fault. Ends with 1 when a line is
/// refused, says otherwise than another, has a wrong flag, or could not be judged for certain (of records: when our
/// side does not verify). Ends with 2 when the input cannot be read, or holds no entry of a log, so that nothing was
/// verified.
///
/// The order of the lines does not matter. An identity is judged from a second reading of the file when its
/// operations do not come in the order of their times, when one is refused because its `prev` has not come, when one
/// comes again with another CID, `createdAt`, number or `nullified` flag, or when very much is to be said of a log.
///
/// There are two reasons for which that is not done. What comes through a pipe can be read twice up to 64 MiB; beyond
/// that such identities are judged as their lines come, some megabytes at a time, the `nullified` flags of these lines
/// are not compared, and it is said how many lines they are. And of an identity that is judged from a second reading,
/// 128 MiB of lines are kept in memory at most: those of one that has more are not judged, and that is told. Either
/// ends with 1.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Files to verify, each on its own; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print JSON: an object a line for each finding, and one with the summary at the end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    signatures: super::Signatures,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let verifier = args.signatures.verifier();
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut clean, mut complete) = (true, true);
    for path in &args.files {
        match verify(path, args.json, &*verifier, &mut out)? {
            Outcome::Clean => {}
            Outcome::Faults => clean = false,
            Outcome::Nothing => complete = false,
        }
    }
    out.flush().context("cannot write to standard output")?;
    Ok(match (clean, complete) {
        (true, true) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(1),
        (true, false) => ExitCode::from(2),
    })
}

/// What a file comes to.
enum Outcome {
    /// Everything in it verifies.
    Clean,
    /// Something in it does not.
    Faults,
    /// There was nothing in it to be verified.
    Nothing,
}

impl Outcome {
    fn of(verifies: bool) -> Outcome {
        if verifies { Outcome::Clean } else { Outcome::Faults }
    }
}

fn verify(
    path: &Path,
    json: bool,
    verifier: &dyn Verifier,
    out: &mut impl Write,
) -> anyhow::Result<Outcome> {
    let (dump, original) = Dump::open_twice(path)?;
    let name = dump.name().to_owned();
    let begun = Instant::now();
    let mut judge = match original.is_certain() {
        true => DumpJudge::new(verifier),
        false => DumpJudge::of_pipe(verifier),
    };
    let (mut is_evidence, mut records, mut records_verify) = (false, 0_u64, true);
    read("verifying", dump, |block, meter| {
        let (entries, found) = tell_apart(block);
        is_evidence |= found.is_some();
        for record in found.into_iter().flatten() {
            records += 1;
            records_verify &= meter.suspend(|| record.verify(json, verifier, out))?;
        }
        for finding in judge.judge(&entries)? {
            meter.suspend(|| print_finding(&finding, json, out))?;
        }
        Ok(())
    })?;
    let late_identities = judge.late_identities();
    if late_identities > 0
        && let Some(dump) = Dump::open_again(original)?
    {
        let what = format!("reading {late_identities} identities again of");
        read(&what, dump, |block, _| Ok(judge.gather(&tell_apart(block).0)?))?;
    }
    let summary = judge.finish(|finding| print_finding(&finding, json, out))?;
    if is_evidence && summary.operations == 0 {
        if records == 0 && !json {
            writeln!(out, "{name}: no differences")?;
        }
        return Ok(Outcome::of(records_verify));
    }
    print_summary(&name, &summary, begun.elapsed().as_secs_f64(), json, out)?;
    if summary.as_they_came > 0 && !json {
        writeln!(out, "{}", as_they_came(&summary, late_identities))?;
    }
    if !is_evidence && !summary.has_entries() {
        out.flush()?;
        eprintln!("plc-replica: {name}: {}; nothing was verified", failure::NO_ENTRY);
        return Ok(Outcome::Nothing);
    }
    Ok(Outcome::of(summary.is_clean() && records_verify))
}

/// Reads a dump to its end.
fn read(
    what: &str,
    dump: Dump,
    mut take: impl FnMut(Block, &Meter) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dump = dump.with_entries_up_to(evidence::MAX_LINE);
    let progress = dump.progress();
    let meter = Meter::bytes(&format!("{what} {}", dump.name()), progress.total);
    let mut blocks = DumpReader::start(dump);
    while let Some(block) = blocks.next_blocking() {
        take(block?, &meter)?;
        meter.set(progress.read());
    }
    meter.finish();
    Ok(())
}

/// What to do about lines that were judged as they came.
fn as_they_came(summary: &Summary, identities: u64) -> String {
    format!(
        "  {} lines of {identities} identities were judged as they came, some megabytes at a time, and their \
         nullified flags were not compared: what they come to may depend on lines that come later, and what came \
         through the pipe was too much to be read a second time. Write it to a file, and verify that.",
        summary.as_they_came
    )
}

/// Entries of a log, and records of differences where a line is about these.
fn tell_apart(block: Block) -> (Block, Option<Vec<evidence::Record>>) {
    let mut records: Option<Vec<evidence::Record>> = None;
    let mut entry = |(number, mut line): (u64, Bytes)| match evidence::records(&line) {
        Some(found) => {
            records.get_or_insert_default().extend(found);
            None
        }
        None => {
            // As any other reader of a dump gets it.
            line.truncate(MAX_ENTRY);
            Some((number, line))
        }
    };
    let entries = block.into_iter().filter_map(&mut entry).collect();
    (entries, records)
}

fn print_finding(finding: &Finding, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, finding)?;
        writeln!(out)?;
    } else {
        let Finding { line, did, cid, kind, expected } = finding;
        let shown = |text| if str::is_empty(text) { "-".into() } else { printable(text) };
        let expected = printable(expected);
        writeln!(out, "line {line}: {} {} {kind}: {expected}", shown(did), shown(cid))?;
    }
    Ok(())
}

fn print_summary(
    name: &str,
    summary: &Summary,
    seconds: f64,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let rate = summary.operations as f64 / seconds.max(1e-6);
    if json {
        let mut value = serde_json::to_value(summary)?;
        value["file"] = name.into();
        value["seconds"] = seconds.into();
        value["operationsPerSecond"] = rate.round().into();
        writeln!(out, "{value}")?;
        return Ok(());
    }
    let Summary { operations, identities, accepted, repeated, restated, .. } = summary;
    let Summary { refused, wrong_flags, remarked, unjudged, .. } = summary;
    writeln!(out, "{name}: {operations} operations of {identities} identities")?;
    writeln!(out, "  accepted  {accepted}")?;
    if *remarked > 0 {
        writeln!(out, "    with a remark  {remarked}")?;
    }
    if *repeated > 0 {
        writeln!(out, "  repeated  {repeated}")?;
    }
    if *restated > 0 {
        writeln!(out, "  stated otherwise than before  {restated}")?;
    }
    let total: u64 = refused.values().sum();
    writeln!(out, "  refused   {total}")?;
    for (kind, count) in refused {
        writeln!(out, "    {kind}  {count}")?;
    }
    if *wrong_flags > 0 {
        writeln!(out, "  nullified flags that the log does not lead to  {wrong_flags}")?;
    }
    if *unjudged > 0 {
        writeln!(out, "  not judged  {unjudged}")?;
    }
    writeln!(out, "  {seconds:.1} s, {rate:.0} operations a second")?;
    Ok(())
}
