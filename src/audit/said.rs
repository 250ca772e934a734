//! What is to be said of one identity of a log, from the verdicts on its operations in their order.

use super::finding::{Finding, Summary};
use crate::judge::Judged;
use did_plc::entry::Received;
use did_plc::history::Remark;
use did_plc::{Cid, Did, Operation, Timestamp, Verdict};

/// What is to be said of one identity so far; mostly nothing.
#[derive(Debug, Default)]
pub(super) struct Said {
    findings: Vec<Finding>,
    /// Of the findings: what they count as.
    summary: Summary,
    /// Operations stated to be nullified, each with its line, until something in the log nullifies them.
    stated_nullified: Vec<(Cid, u64)>,
    /// The latest time that a refused operation has.
    latest_refused: Option<Timestamp>,
}

impl Said {
    /// Takes in the verdict on an operation of the identity, which comes after all those before it.
    pub fn note(&mut self, line: u64, judged: &Judged) {
        let received = &judged.candidate.received;
        match &judged.verdict {
            Verdict::Accepted(acceptance) => {
                if let Some(remark) = remark_on(received) {
                    self.summary.remarked += 1;
                    self.findings.push(Finding::remark(line, received, &remark));
                }
                self.compare_flags(line, received, &acceptance.nullifies);
            }
            Verdict::Known(restated) => {
                self.summary.restated += u64::from(!restated.agrees());
                self.findings.extend(Finding::restated(line, received, restated));
            }
            Verdict::Refused(refusal) => {
                self.latest_refused = self.latest_refused.max(Some(received.created_at));
                self.summary.count_refused(refusal.kind());
                self.findings.push(Finding::refused(line, received, refusal));
            }
        }
    }

    /// Compares what an operation nullifies with the flags of the log. Logs without flags state nothing that
    /// could be wrong.
    fn compare_flags(&mut self, line: u64, received: &Received, nullifies: &[Cid]) {
        if received.nullified == Some(true) {
            self.stated_nullified.push((received.cid, line));
        }
        let stated = |cid: &Cid| self.stated_nullified.iter().any(|(stated, _)| stated == cid);
        let unstated: Vec<Cid> = nullifies.iter().filter(|cid| !stated(cid)).copied().collect();
        self.stated_nullified.retain(|(stated, _)| !nullifies.contains(stated));
        if received.nullified.is_some() && !unstated.is_empty() {
            self.summary.wrong_flags += unstated.len() as u64;
            self.findings.push(Finding::nullifies_unstated(line, received, &unstated));
        }
    }

    /// The latest time that a refused operation has.
    pub fn latest_refused(&self) -> Option<Timestamp> {
        self.latest_refused
    }

    /// How many lines are refused.
    pub fn refused(&self) -> u64 {
        self.summary.refused.values().sum()
    }

    /// How much there is to keep in memory.
    pub fn len(&self) -> usize {
        self.findings.len() + self.stated_nullified.len()
    }

    /// Whether there is nothing to be said.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the log of this identity: flags that nothing in it bore out.
    pub fn finish(mut self, did: &Did) -> (Vec<Finding>, Summary) {
        self.summary.wrong_flags += self.stated_nullified.len() as u64;
        let flags = self.stated_nullified.iter();
        self.findings.extend(flags.map(|(cid, line)| Finding::nothing_nullifies(*line, did, cid)));
        (self.findings, self.summary)
    }
}

fn remark_on(received: &Received) -> Option<Remark> {
    Remark::on(&Operation::read(&received.signed).ok()?)
}
