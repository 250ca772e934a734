//! Some of the identities of a log, judged as their lines come, as long as these come in the order of their
//! times. What comes otherwise is left for later.

use ahash::AHashMap;
use bytes::Bytes;

use super::as_it_comes::AsItComes;
use super::finding::{Finding, Summary};
use super::said::Said;
use crate::judge::{self, Candidate, Group, Judged, Met, SpillError, SpillingChains};
use did_plc::signature::Verifier;
use did_plc::{Chain, Did, Verdict};

/// Memory of the chains that a share keeps there, 160 MB in all: about 400,000 operations. The rest
/// is in its temporary database.
const MAX_BYTES: usize = 10 << 20;
/// Findings on all of its identities that a share keeps until the end of the log, when they are certain: some
/// megabytes. An identity of which there is something to be said beyond them is left for later.
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
    /// What late identities come to as they come, where the log may not come a second time.
    as_it_comes: Option<AsItComes>,
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
    /// Nothing yet. With `may_come_once` the log may not come a second time.
    pub fn new(may_come_once: bool) -> Share {
        Share {
            chains: SpillingChains::with_room_for(MAX_BYTES),
            said: AHashMap::new(),
            held: 0,
            accepted: 0,
            identities: 0,
            late: Late::default(),
            as_it_comes: may_come_once.then(AsItComes::new),
        }
    }

    /// Judges the next operations, each from a line of this block.
    pub fn judge(
        &mut self,
        block: &[(u64, Bytes)],
        candidates: Vec<Candidate>,
        verifier: &dyn Verifier,
    ) -> Result<(), SpillError> {
        let (mut in_order, mut late) = (Vec::new(), Vec::new());
        for (did, group) in judge::group(candidates.into_iter()) {
            match self.chains.take(&did)? {
                Met::Chain(chain) => {
                    let group = Group { chain, ..group };
                    if self.is_in_order(&did, &group) {
                        in_order.push((did, group));
                    } else {
                        let accepted = group.chain.links().len();
                        self.leave(did, accepted, group.candidates.len())?;
                        late.push((did, group));
                    }
                }
                Met::Late => {
                    self.late.lines += group.candidates.len() as u64;
                    self.chains.put_late(did)?;
                    if let Some(as_it_comes) = &mut self.as_it_comes {
                        let chain = as_it_comes.chain(&did)?;
                        late.push((did, Group { chain, ..group }));
                    }
                }
            }
        }
        let judged = judge::judge(&mut in_order, verifier);
        for ((did, group), judged) in in_order.into_iter().zip(judge::by_identity(&judged)) {
            self.note(block, (did, group.chain), judged)?;
        }
        if let Some(as_it_comes) = &mut self.as_it_comes {
            let judged = judge::judge(&mut late, verifier);
            for ((did, group), judged) in late.into_iter().zip(judge::by_identity(&judged)) {
                as_it_comes.note(block, (did, group.chain), judged)?;
            }
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
        if may_change(judged, &chain) {
            self.leave(did, before, judged.len())?;
            return match &mut self.as_it_comes {
                Some(as_it_comes) => as_it_comes.note(block, (did, chain), judged),
                None => Ok(()),
            };
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
                self.leave(did, chain.links().len(), 0)?;
                return match &mut self.as_it_comes {
                    Some(as_it_comes) => as_it_comes.note(block, (did, chain), &[]),
                    None => Ok(()),
                };
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
        if let Some(as_it_comes) = &mut self.as_it_comes {
            as_it_comes.begin(did, said, accepted as u64);
        }
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

    /// Takes away what was found of late identities since the last time, as they came.
    pub fn take_found(&mut self) -> Vec<(Did, Finding)> {
        self.as_it_comes.as_mut().map(AsItComes::take_found).unwrap_or_default()
    }

    /// What the late identities come to as they came, where that was looked for.
    pub fn as_it_came(&self) -> Option<&Summary> {
        self.as_it_comes.as_ref().map(AsItComes::summary)
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

/// Whether other verdicts than these may follow, or other flags count, with what is still to come of an identity.
fn may_change(judged: &[Judged], chain: &Chain) -> bool {
    // The chain is looked at once, however many lines come again.
    let mut come_again_unnullified = false;
    for Judged { candidate, verdict } in judged {
        match verdict {
            Verdict::Accepted(_) => {}
            // Which of two statements is the first is not for the order of lines to say.
            Verdict::Known(restated) if !restated.agrees() => return true,
            Verdict::Known(_) => match candidate.received.nullified {
                None => {}
                Some(true) => return true,
                Some(false) => come_again_unnullified = true,
            },
            Verdict::Refused(refusal) if refusal.lacks_prev() => return true,
            Verdict::Refused(_) => {}
        }
    }
    come_again_unnullified && chain.links().iter().any(|link| link.nullified_by.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::chain::{Link, Restated};
    use did_plc::entry::Received;
    use did_plc::{Cid, Timestamp};

    #[test]
    fn a_chain_is_looked_at_once_however_many_lines_come_again() {
        let length = 100_000_i64;
        let link = |n: i64| Link {
            cid: Cid::of(&n.to_le_bytes()),
            created_at: Timestamp::from_millis(n),
            sequence: None,
            rotation_keys: Box::default(),
            tombstone: false,
            signer: 0,
            nullified_by: None,
        };
        let again = |n: i64| Judged {
            candidate: Candidate {
                line: 0,
                received: Received {
                    did: Did::from_bytes([0; 15]),
                    cid: Cid::of(&n.to_le_bytes()),
                    stated_cid: None,
                    created_at: Timestamp::from_millis(n),
                    sequence: None,
                    nullified: Some(false),
                    received_at: None,
                    signed: n.to_le_bytes().to_vec().into(),
                },
            },
            verdict: Verdict::Known(Restated::default()),
        };
        let judged: Vec<Judged> = (0..length).map(again).collect();
        let mut links: Vec<Link> = (0..length).map(link).collect();
        let begun = std::time::Instant::now();
        assert!(!may_change(&judged, &Chain::from_links(links.clone())));
        links[0].nullified_by = Some(Timestamp::from_millis(length));
        assert!(may_change(&judged, &Chain::from_links(links)));
        // A chain that is looked at for each of them takes minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
