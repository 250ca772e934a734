//! What is to be said of one identity of a log, from the verdicts on its operations in their order.

use ahash::AHashMap;

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
    stated_nullified: AHashMap<Cid, u64>,
    /// The latest time that a refused operation has.
    latest_refused: Option<Timestamp>,
}

impl Said {
    /// Takes in the verdict on an operation of the identity, which comes after all those before it.
    pub fn note(&mut self, line: u64, judged: &Judged) {
        self.note_but_flags(line, judged);
        if let Verdict::Accepted(acceptance) = &judged.verdict {
            self.compare_flags(line, &judged.candidate.received, &acceptance.nullifies);
        }
    }

    /// The same without a word on `nullified` flags, for which one has to know all lines of the identity.
    pub fn note_but_flags(&mut self, line: u64, judged: &Judged) {
        let received = &judged.candidate.received;
        match &judged.verdict {
            Verdict::Accepted(_) => {
                if let Some(remark) = remark_on(received) {
                    self.summary.remarked += 1;
                    self.findings.push(Finding::remark(line, received, &remark));
                }
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
            self.stated_nullified.insert(received.cid, line);
        }
        let mut unstated = nullifies.to_vec();
        unstated.retain(|cid| self.stated_nullified.remove(cid).is_none());
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

    /// What was found so far, without a word on `nullified` flags, which later lines may state otherwise.
    pub fn so_far(mut self) -> (Vec<Finding>, Summary) {
        self.findings.retain(|found| !found.is_of_flag());
        self.summary.wrong_flags = 0;
        (self.findings, self.summary)
    }

    /// Ends the log of this identity: flags that nothing in it bore out.
    pub fn finish(mut self, did: &Did) -> (Vec<Finding>, Summary) {
        self.summary.wrong_flags += self.stated_nullified.len() as u64;
        let mut flags: Vec<(Cid, u64)> = self.stated_nullified.into_iter().collect();
        flags.sort_unstable_by_key(|(_, line)| *line);
        let flags = flags.iter();
        self.findings.extend(flags.map(|(cid, line)| Finding::nothing_nullifies(*line, did, cid)));
        (self.findings, self.summary)
    }
}

fn remark_on(received: &Received) -> Option<Remark> {
    Remark::on(&Operation::read(&received.signed).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Candidate;
    use did_plc::chain::Acceptance;

    #[test]
    fn flags_are_compared_in_a_time_that_does_not_grow_with_their_square() {
        let length = 50_000_i64;
        let cid = |n: i64| Cid::of(&n.to_le_bytes());
        let did = Did::from_bytes([0; 15]);
        let accepted = |n: i64, nullified: bool, nullifies: Vec<Cid>| Judged {
            candidate: Candidate {
                line: 0,
                received: Received {
                    did,
                    cid: cid(n),
                    stated_cid: None,
                    created_at: Timestamp::from_millis(n),
                    sequence: None,
                    nullified: Some(nullified),
                    received_at: None,
                    signed: n.to_le_bytes().to_vec().into(),
                },
            },
            verdict: Verdict::Accepted(Acceptance { signer: 0, nullifies }),
        };
        let begun = std::time::Instant::now();
        let mut said = Said::default();
        for n in 0..length {
            said.note(n as u64, &accepted(n, true, Vec::new()));
        }
        // Each of the others nullifies one, but for the last three.
        for n in 3..length {
            said.note((length + n) as u64, &accepted(length + n, false, vec![cid(n)]));
        }
        let never_stated = vec![cid(-1), cid(0), cid(-2)];
        said.note(3 * length as u64, &accepted(3 * length, false, never_stated));
        let (found, summary) = said.finish(&did);
        let lines: Vec<u64> = found.iter().map(|found| found.line).collect();
        assert_eq!(lines, [3 * length as u64, 1, 2]);
        assert!(found[0].expected.contains(&format!("{} and {}", cid(-1), cid(-2))));
        assert_eq!(summary.wrong_flags, 4);
        // Looking through all of them for each takes minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
