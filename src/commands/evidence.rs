//! Records of differences as `/_audit/divergences` and `audit --json` write them: both sides are
//! judged, each by itself.

use std::io::Write;

use crate::audit::{DumpJudge, Finding};
use crate::escape::printable;
use anyhow::Context;
use bytes::Bytes;
use did_plc::entry::Received;
use did_plc::signature::Verifier;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What every record has, and no entry of a log.
const MARK: &[u8] = b"\"theirs\"";

/// How a page of `/_audit/divergences` begins; one without a record lacks the mark.
const PAGE: &[u8] = b"{\"divergences\":";

/// How the last line of `audit --json` begins.
const SUMMARY: &[u8] = b"{\"summary\":";

/// Bytes of a line: a page has fifty records at most, each with about a megabyte of evidence on
/// either side.
pub const MAX_LINE: usize = 128 << 20;

/// A record of a difference, as far as it is needed here.
#[derive(Debug, Deserialize)]
pub struct Record {
    id: Option<i64>,
    did: String,
    kind: String,
    subject: String,
    ours: Option<Box<RawValue>>,
    theirs: Option<Box<RawValue>>,
}

/// A page of `/_audit/divergences`.
#[derive(Debug, Deserialize)]
struct Page {
    divergences: Vec<Record>,
}

/// What one side's entries are worth by themselves.
#[derive(Debug, Serialize)]
struct Side<'a> {
    /// Number of the record, where it has one.
    divergence: Option<i64>,
    did: &'a str,
    kind: &'a str,
    subject: &'a str,
    side: &'static str,
    /// Entries of the log; none for a single statement, which has no chain below it.
    operations: Option<u64>,
    findings: Vec<Finding>,
}

/// The records of a line: a page of them, one, or no more than the summary at their end; none when
/// the line is an entry of a log.
pub fn records(line: &[u8]) -> Option<Vec<Record>> {
    if line.starts_with(SUMMARY) {
        return Some(Vec::new());
    }
    if line.starts_with(PAGE) {
        return serde_json::from_slice::<Page>(line).ok().map(|page| page.divergences);
    }
    memchr::memmem::find(line, MARK)?;
    serde_json::from_slice::<Record>(line).ok().map(|record| vec![record])
}

impl Record {
    /// Judges both sides and prints what they are worth; whether ours verifies. That theirs does
    /// not may be what the record is about.
    pub fn verify(
        &self,
        json: bool,
        verifier: &dyn Verifier,
        out: &mut impl Write,
    ) -> anyhow::Result<bool> {
        if !json {
            let number = self.id.map_or(String::new(), |id| format!(" {id}"));
            let [did, kind, subject] = [&self.did, &self.kind, &self.subject].map(|s| printable(s));
            writeln!(out, "divergence{number}: {did} {kind} {subject}")?;
        }
        let mut ours_verifies = true;
        for (side, entries) in [("ours", &self.ours), ("theirs", &self.theirs)] {
            let judged = self.judge(side, entries.as_deref(), verifier)?;
            ours_verifies &= side == "theirs" || judged.verifies();
            if json {
                serde_json::to_writer(&mut *out, &judged)?;
                writeln!(out)?;
            } else {
                judged.print(out)?;
            }
        }
        Ok(ours_verifies)
    }

    fn judge(
        &self,
        side: &'static str,
        entries: Option<&RawValue>,
        verifier: &dyn Verifier,
    ) -> anyhow::Result<Side<'_>> {
        let entries = entries.map_or("[]", RawValue::get);
        let (operations, findings) = match serde_json::from_str::<Vec<&RawValue>>(entries) {
            Ok(log) => {
                let (operations, findings) = judge_log(&log, verifier)?;
                (Some(operations), findings)
            }
            Err(_) => (None, self.judge_statement(entries)),
        };
        let Record { id, did, kind, subject, .. } = self;
        Ok(Side { divergence: *id, did, kind, subject, side, operations, findings })
    }

    /// Whether a statement about one operation is about that operation.
    fn judge_statement(&self, entry: &str) -> Vec<Finding> {
        let (cid, kind, expected) = match Received::decode(entry.as_bytes()) {
            Ok(Received { stated_cid: None, .. }) => return Vec::new(),
            Ok(Received { cid, stated_cid: Some(stated), .. }) => {
                let expected = format!("the CID of this operation, not {stated}");
                (cid.to_string(), "cid-mismatch", expected)
            }
            Err(_) => (String::new(), "malformed", "an entry of a log".to_owned()),
        };
        let (did, kind) = (self.did.clone(), kind.to_owned());
        vec![Finding { line: 1, did, cid, kind, expected }]
    }
}

fn judge_log(log: &[&RawValue], verifier: &dyn Verifier) -> anyhow::Result<(u64, Vec<Finding>)> {
    let block: Vec<(u64, Bytes)> = (1..)
        .zip(log)
        .map(|(number, entry)| (number, Bytes::copy_from_slice(entry.get().as_bytes())))
        .collect();
    let (findings, summary) =
        DumpJudge::judge_all(&block, verifier).context("judging the evidence")?;
    Ok((summary.operations, findings))
}

impl Side<'_> {
    fn verifies(&self) -> bool {
        self.findings.iter().all(Finding::is_remark)
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Side { side, operations, findings, .. } = self;
        match (operations, self.verifies()) {
            (Some(0), _) => writeln!(out, "  {side}: nothing")?,
            (Some(1), true) => writeln!(out, "  {side}: one operation, which verifies")?,
            (Some(count), true) => writeln!(out, "  {side}: {count} operations, which verify")?,
            (None, true) => {
                writeln!(out, "  {side}: a statement about the operation with this CID")?
            }
            (_, false) => writeln!(out, "  {side}: does not verify")?,
        }
        for Finding { line, cid, kind, expected, .. } in findings {
            let (cid, expected) = (printable(cid), printable(expected));
            writeln!(out, "    entry {line}: {cid} {kind}: {expected}")?;
        }
        Ok(())
    }
}
