//! Judging a log that somebody has dumped, from its first line to its last, in bounded memory:
//! the chains of identities not met for long go to a temporary database.
//!
//! No identity has to do with another, so that they are dealt out to a number of shares that are
//! worked on side by side.

use ahash::AHashMap;
use bytes::Bytes;
use rayon::prelude::*;

use super::finding::{Finding, Summary};
use crate::judge::{self, Candidate, Group, Judged, SpillError, SpillingChains};
use did_plc::entry::Received;
use did_plc::history::Remark;
use did_plc::signature::Verifier;
use did_plc::{Acceptance, Cid, Did, Operation, Verdict};

/// Shares that the identities are dealt out to: enough for the cores of most machines.
const SHARES: usize = 16;
/// Memory of the chains that a share keeps there, 160 MB in all: about 400,000 operations. The rest
/// is in its temporary database.
const MAX_BYTES: usize = 10 << 20;

/// Judges a log block by block.
pub struct DumpJudge<'a> {
    verifier: &'a dyn Verifier,
    shares: Vec<Share>,
    /// Of all shares.
    summary: Summary,
}

/// Some of the identities.
struct Share {
    chains: SpillingChains,
    /// Operations stated to be nullified, until something in the log nullifies them.
    stated_nullified: AHashMap<(Did, Cid), u64>,
}

/// What came of a share of a block.
#[derive(Default)]
struct Outcome {
    findings: Vec<Finding>,
    summary: Summary,
}

impl<'a> DumpJudge<'a> {
    /// A judge that has seen nothing.
    pub fn new(verifier: &'a dyn Verifier) -> DumpJudge<'a> {
        let shares = (0..SHARES).map(|_| Share::new()).collect();
        DumpJudge { verifier, shares, summary: Summary::default() }
    }

    /// Judges the next lines of the log, each with its number; what is wrong with them, in order.
    ///
    /// # Errors
    ///
    /// When the temporary database fails.
    pub fn judge(&mut self, block: &[(u64, Bytes)]) -> Result<Vec<Finding>, SpillError> {
        let lines: Vec<Bytes> = block.iter().map(|(_, line)| line.clone()).collect();
        let mut findings = Vec::new();
        let mut dealt: Vec<Vec<Candidate>> = self.shares.iter().map(|_| Vec::new()).collect();
        for (index, decoded) in judge::decode(&lines).into_iter().enumerate() {
            match decoded {
                Ok(received) => {
                    dealt[share_of(&received.did)].push(Candidate { line: index, received });
                }
                Err(undecodable) => {
                    findings.push(Finding::undecodable(block[index].0, undecodable));
                }
            }
        }
        let verifier = self.verifier;
        let outcomes: Vec<Outcome> = self
            .shares
            .par_iter_mut()
            .zip(dealt)
            .map(|(share, candidates)| share.judge(block, candidates, verifier))
            .collect::<Result<_, _>>()?;
        self.summary.operations += block.len() as u64;
        for outcome in outcomes {
            self.summary.add(&outcome.summary);
            findings.extend(outcome.findings);
        }
        for finding in findings.iter().filter(|finding| finding.is_refusal()) {
            *self.summary.refused.entry(finding.kind.clone()).or_default() += 1;
        }
        findings.sort_by_key(|finding| finding.line);
        Ok(findings)
    }

    /// Ends the log: flags that nothing in it bore out, and the summary.
    pub fn finish(mut self) -> (Vec<Finding>, Summary) {
        let stated = self.shares.into_iter().flat_map(|share| share.stated_nullified);
        let mut findings: Vec<Finding> =
            stated.map(|((did, cid), line)| Finding::nothing_nullifies(line, &did, &cid)).collect();
        findings.sort_by_key(|finding| finding.line);
        self.summary.wrong_flags += findings.len() as u64;
        (findings, self.summary)
    }
}

fn remark_on(received: &Received) -> Option<Remark> {
    Remark::on(&Operation::read(&received.signed).ok()?)
}

/// By the last bits of an identity, which are as random as a hash; [`SpillingChains`] go by the first.
fn share_of(did: &Did) -> usize {
    let [.., last] = did.as_bytes();
    usize::from(*last) % SHARES
}

impl Share {
    fn new() -> Share {
        let chains = SpillingChains::with_room_for(MAX_BYTES);
        Share { chains, stated_nullified: AHashMap::new() }
    }

    fn judge(
        &mut self,
        block: &[(u64, Bytes)],
        candidates: Vec<Candidate>,
        verifier: &dyn Verifier,
    ) -> Result<Outcome, SpillError> {
        let mut groups = judge::group(candidates.into_iter());
        for (did, group) in &mut groups {
            group.chain = self.chains.take(did)?;
        }
        let unknown = |groups: &[(Did, Group)]| {
            groups.iter().filter(|(_, group)| group.chain.links().is_empty()).count() as u64
        };
        let before = unknown(&groups);
        let judged = judge::judge(&mut groups, verifier);
        let mut outcome = Outcome::default();
        outcome.summary.identities = before - unknown(&groups);
        for judged in judged {
            self.note(block[judged.candidate.line].0, judged, &mut outcome);
        }
        for (did, Group { chain, .. }) in groups {
            self.chains.put(did, chain)?;
        }
        Ok(outcome)
    }

    fn note(&mut self, line: u64, judged: Judged, outcome: &mut Outcome) {
        let received = judged.candidate.received;
        match judged.verdict {
            Verdict::Accepted(acceptance) => {
                outcome.summary.accepted += 1;
                if let Some(remark) = remark_on(&received) {
                    outcome.summary.remarked += 1;
                    outcome.findings.push(Finding::remark(line, &received, &remark));
                }
                self.compare_flags(line, &received, acceptance, outcome);
            }
            Verdict::Known(restated) => {
                outcome.summary.repeated += 1;
                outcome.summary.restated += u64::from(!restated.agrees());
                outcome.findings.extend(Finding::restated(line, &received, &restated));
            }
            Verdict::Refused(refusal) => {
                outcome.findings.push(Finding::refused(line, &received, &refusal));
            }
        }
    }

    /// Compares what an operation nullifies with the flags of the log. Logs without flags state nothing that
    /// could be wrong.
    fn compare_flags(
        &mut self,
        line: u64,
        received: &Received,
        acceptance: Acceptance,
        outcome: &mut Outcome,
    ) {
        let did = received.did;
        if received.nullified == Some(true) {
            self.stated_nullified.insert((did, received.cid), line);
        }
        let mut unstated = acceptance.nullifies;
        unstated.retain(|cid| self.stated_nullified.remove(&(did, *cid)).is_none());
        if received.nullified.is_some() && !unstated.is_empty() {
            outcome.summary.wrong_flags += unstated.len() as u64;
            outcome.findings.push(Finding::nullifies_unstated(line, received, &unstated));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::signature::PlainVerifier;
    use plc_testkit::Generated;
    use plc_testkit::builder::Story;

    #[test]
    fn a_line_that_comes_again_and_says_otherwise_is_found() {
        let mut story = Story::seeded(1);
        story.create().accepted();
        let honest = &story.log()[0];
        let later = "2030-01-01T00:00:00.000Z".to_owned();
        let moved = Generated { seq: honest.seq + 1, created_at: later, ..honest.clone() };
        let renamed = Generated { cid: Cid::of(b"another").to_string(), ..honest.clone() };
        let block: Vec<(u64, Bytes)> = (1..)
            .zip([honest, honest, &moved, &renamed])
            .map(|(number, entry)| (number, entry.sequenced_line().into()))
            .collect();
        let mut judge = DumpJudge::new(&PlainVerifier);
        let findings = judge.judge(&block).unwrap();
        let found: Vec<_> = findings.iter().map(|found| (found.line, &*found.kind)).collect();
        assert_eq!(
            found,
            [(3, "restated-created-at"), (3, "restated-sequence"), (4, "restated-cid")]
        );
        let (_, summary) = judge.finish();
        assert_eq!((summary.accepted, summary.repeated, summary.restated), (1, 3, 2));
        assert!(summary.refused.is_empty() && !summary.is_clean());
    }
}
