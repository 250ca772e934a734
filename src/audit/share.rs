//! Some of the identities of a log, judged as their lines come, as long as these come in the order of their
//! times. What comes otherwise is left for later.

use ahash::AHashMap;
use bytes::Bytes;

use super::finding::{Finding, Summary};
use super::said::Said;
use crate::judge::{self, Candidate, Group, Judged, Met, SpillError, SpillingChains};
use did_plc::signature::Verifier;
use did_plc::{Chain, Did, Verdict};

/// Memory of the chains that a share keeps there, 160 MB in all: about 400,000 operations. The rest
/// is in its temporary database.
const MAX_BYTES: usize = 10 << 20;
/// Findings that a share keeps until the end of the log, when they are certain: some megabytes. An identity with
/// more of them is left for later.
const MAX_SAID: usize = 10_000;

/// Some of the identities.
///
/// What is said of one is what all of its lines lead to, whatever their order. An operation that comes after all
/// others of its identity, and later than each, changes nothing of what those led to; so an identity is judged as
/// its lines come while that is so. One whose lines come otherwise is *late*.
pub(super) struct Share {
    chains: SpillingChains,
    /// What is to be said in the end, if nothing comes late.
    said: AHashMap<Did, Said>,
    /// How much that is.
    held: usize,
    /// What came in order so far.
    accepted: u64,
    identities: u64,
    late: Late,
}

/// What is left to be judged as a whole.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Late {
    /// Identities.
    pub identities: u64,
    /// Their lines, apart from those that said what another one before had said.
    pub lines: u64,
}

impl Share {
    pub fn new() -> Share {
        Share {
            chains: SpillingChains::with_room_for(MAX_BYTES),
            said: AHashMap::new(),
            held: 0,
            accepted: 0,
            identities: 0,
            late: Late::default(),
        }
    }

    /// Judges the next operations, each from a line of this block.
    pub fn judge(
        &mut self,
        block: &[(u64, Bytes)],
        candidates: Vec<Candidate>,
        verifier: &dyn Verifier,
    ) -> Result<(), SpillError> {
        let mut in_order = Vec::new();
        for (did, group) in judge::group(candidates.into_iter()) {
            match self.chains.take(&did)? {
                Met::Chain(chain) => {
                    let group = Group { chain, ..group };
                    if self.is_in_order(&did, &group) {
                        in_order.push((did, group));
                    } else {
                        let accepted = group.chain.links().len();
                        self.leave(did, accepted, group.candidates.len())?;
                    }
                }
                Met::Late => {
                    self.late.lines += group.candidates.len() as u64;
                    self.chains.put_late(did)?;
                }
            }
        }
        let judged = judge::judge(&mut in_order, verifier);
        for ((did, group), judged) in in_order.into_iter().zip(judge::by_identity(&judged)) {
            self.note(block, (did, group.chain), judged)?;
        }
        Ok(())
    }

    /// Whether everything that is new comes later than all that was judged of the identity.
    fn is_in_order(&self, did: &Did, group: &Group) -> bool {
        let refused = self.said.get(did).and_then(Said::latest_refused);
        let is_later = |Candidate { received, .. }: &Candidate| {
            refused.is_none_or(|refused| received.created_at > refused)
                || group.chain.find(&received.cid).is_some()
        };
        group.is_in_order() && group.candidates.iter().all(is_later)
    }

    /// Takes in the verdicts on an identity whose chain they led to.
    fn note(
        &mut self,
        block: &[(u64, Bytes)],
        (did, chain): (Did, Chain),
        judged: &[Judged],
    ) -> Result<(), SpillError> {
        let accepted =
            judged.iter().filter(|judged| matches!(judged.verdict, Verdict::Accepted(_))).count();
        let before = chain.links().len() - accepted;
        if judged.iter().any(|judged| may_change(judged, &chain)) {
            return self.leave(did, before, judged.len());
        }
        let mut said = self.said.remove(&did).unwrap_or_default();
        self.held -= said.len();
        for judged in judged {
            said.note(block[judged.candidate.line].0, judged);
        }
        self.accepted += accepted as u64;
        self.identities += u64::from(before == 0 && accepted > 0);
        if !said.is_empty() {
            self.held += said.len();
            self.said.insert(did, said);
            if self.held > MAX_SAID {
                return self.leave(did, chain.links().len(), 0);
            }
        }
        self.chains.put(did, chain)
    }

    /// Leaves an identity for later, with so many operations that were accepted and so many lines more, and
    /// unsays what was said of it.
    fn leave(&mut self, did: Did, accepted: usize, lines: usize) -> Result<(), SpillError> {
        let said = self.said.remove(&did).unwrap_or_default();
        self.held -= said.len();
        self.accepted -= accepted as u64;
        self.identities -= u64::from(accepted > 0);
        self.late.identities += 1;
        self.late.lines += accepted as u64 + said.refused() + lines as u64;
        self.chains.put_late(did)
    }

    /// Whether an identity was left for later.
    pub fn is_late(&self, did: &Did) -> Result<bool, SpillError> {
        self.chains.is_late(did)
    }

    /// What was left for later.
    pub fn late(&self) -> Late {
        self.late
    }

    /// How many findings are kept for the end.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Ends the log: what came of the identities whose lines came in order.
    pub fn finish(self) -> (Vec<Finding>, Summary) {
        let (accepted, identities) = (self.accepted, self.identities);
        let mut summary = Summary { accepted, identities, ..Summary::default() };
        let mut findings = Vec::new();
        for (did, said) in self.said {
            let (found, said) = said.finish(&did);
            findings.extend(found);
            summary.add(&said);
        }
        (findings, summary)
    }
}

/// Whether another verdict may follow, or another flag count, with what is still to come.
fn may_change(judged: &Judged, chain: &Chain) -> bool {
    match &judged.verdict {
        Verdict::Accepted(_) => false,
        // Which of two statements is the first is not for the order of lines to say.
        Verdict::Known(restated) => {
            !restated.agrees()
                || match judged.candidate.received.nullified {
                    None => false,
                    Some(true) => true,
                    Some(false) => chain.links().iter().any(|link| link.nullified_by.is_some()),
                }
        }
        Verdict::Refused(refusal) => refusal.lacks_prev(),
    }
}
