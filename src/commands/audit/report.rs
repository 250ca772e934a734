//! What an audit prints.

use std::collections::BTreeMap;
use std::io::{self, Write};

use did_plc::Timestamp;

use crate::audit::{CheckedIdentity, NewestOperations};
use crate::escape::printable;

/// What came of the comparison with one peer.
#[derive(Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) against: String,
    /// Compared in full.
    pub(super) identities: u64,
    /// Compared side by side.
    pub(super) operations: u64,
    pub(super) differences: BTreeMap<&'static str, u64>,
    /// Identities with something that the other side cannot have yet, or we.
    pub(super) set_aside: u64,
    /// Operations that one side alone has in a sweep and that are newer than the last word of the
    /// other; of theirs, as far as they were read.
    pub(super) too_new: u64,
    /// What both sides had said last, when something is newer than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_words: Option<NewestOperations>,
    /// Lines of theirs that name no identity.
    pub(super) unreadable: u64,
    /// Identities that they failed to answer for, however often they were asked.
    pub(super) unanswered: u64,
    pub(super) seconds: f64,
}

/// Prints differences as they are found, and a summary at the end of each comparison.
pub(super) struct Report {
    /// As JSON, an object a line.
    pub(super) json: bool,
    pub(super) out: io::Stdout,
}

impl Report {
    /// Counts and prints what was found about one identity.
    pub(super) fn differences(
        &mut self,
        found: &CheckedIdentity,
        summary: &mut Summary,
    ) -> anyhow::Result<()> {
        for (difference, record) in
            found.comparison.differences.iter().zip(found.divergences(&summary.against))
        {
            *summary.differences.entry(difference.kind.name()).or_default() += 1;
            let (kind, subject, detail) =
                (difference.kind, &difference.subject, &difference.detail);
            if !self.json {
                let (subject, detail) = (printable(subject), printable(detail));
                writeln!(self.out, "{} {kind} {subject}: {detail}", found.did)?;
                continue;
            }
            let side = |text: Option<String>| {
                text.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
            };
            let line = serde_json::json!({
                "against": summary.against,
                "did": found.did.to_string(),
                "kind": kind.name(),
                "subject": subject,
                "detail": detail,
                "ours": side(record.ours),
                "theirs": side(record.theirs),
            });
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    /// Prints what came of the comparison with one peer.
    pub(super) fn end(&mut self, summary: &Summary) -> anyhow::Result<()> {
        if self.json {
            writeln!(self.out, "{}", serde_json::json!({ "summary": summary }))?;
            return Ok(());
        }
        let Summary { against, identities, operations, differences, set_aside, .. } = summary;
        let out = &mut self.out;
        writeln!(out, "against {against}:")?;
        if *operations > 0 {
            writeln!(out, "  {operations} operations side by side")?;
        }
        writeln!(out, "  {identities} identities in full")?;
        if *set_aside > 0 {
            writeln!(out, "  {set_aside} of them with what is too new for one side")?;
        }
        if summary.too_new > 0 {
            let count = summary.too_new;
            writeln!(out, "  {count} operations set aside: newer than the other's last word")?;
        }
        if let Some(NewestOperations { ours, theirs, .. }) = summary.last_words {
            let name = |at: Option<Timestamp>| at.map_or("not known".into(), |at| at.to_string());
            writeln!(out, "  last word: ours {}, theirs {}", name(ours), name(theirs))?;
        }
        if summary.unreadable > 0 {
            writeln!(out, "  {} lines of theirs that name no identity", summary.unreadable)?;
        }
        if summary.unanswered > 0 {
            writeln!(out, "  {} that they did not answer for", summary.unanswered)?;
        }
        let total: u64 = differences.values().sum();
        writeln!(out, "  {total} differences")?;
        for (kind, count) in differences {
            writeln!(out, "    {kind}  {count}")?;
        }
        writeln!(out, "  {:.1} s", summary.seconds)?;
        Ok(())
    }
}
