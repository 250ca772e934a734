//! What is said of late identities of a log that may not come a second time: they are judged as they come, block by
//! block, with the lines of a block in the order of their times. It counts only where there was no second reading.

use bytes::Bytes;

use super::finding::{Finding, Summary};
use super::said::Said;
use crate::judge::{Judged, Met, SpillError, SpillingChains};
use did_plc::{Chain, Did, Verdict};

/// Memory of the chains that are kept there, beside those of identities that are in order.
const MAX_BYTES: usize = 5 << 20;

/// The late identities of a share, as their lines come.
pub(super) struct AsItComes {
    chains: SpillingChains,
    /// What it comes to.
    summary: Summary,
    /// What was found since it was taken away.
    found: Vec<(Did, Finding)>,
}

impl AsItComes {
    pub fn new() -> AsItComes {
        let chains = SpillingChains::with_room_for(MAX_BYTES);
        AsItComes { chains, summary: Summary::default(), found: Vec::new() }
    }

    /// Takes in what was said of an identity before it was late, and how many of its operations were accepted.
    pub fn begin(&mut self, did: Did, said: Said, accepted: u64) {
        self.add(did, said);
        self.summary.accepted += accepted;
        self.summary.identities += u64::from(accepted > 0);
    }

    /// The chain that an identity has here, to be judged against and put back.
    pub fn chain(&mut self, did: &Did) -> Result<Chain, SpillError> {
        Ok(match self.chains.take(did)? {
            Met::Chain(chain) => chain,
            Met::Late => Chain::default(),
        })
    }

    /// Takes in the verdicts on an identity whose chain they led to.
    pub fn note(
        &mut self,
        block: &[(u64, Bytes)],
        (did, chain): (Did, Chain),
        judged: &[Judged],
    ) -> Result<(), SpillError> {
        let is_accepted = |judged: &&Judged| matches!(judged.verdict, Verdict::Accepted(_));
        let accepted = judged.iter().filter(is_accepted).count();
        let is_new = accepted > 0 && chain.links().len() == accepted;
        self.summary.accepted += accepted as u64;
        self.summary.identities += u64::from(is_new);
        let mut said = Said::default();
        for judged in judged {
            said.note_but_flags(block[judged.candidate.line].0, judged);
        }
        self.add(did, said);
        self.chains.put(did, chain)
    }

    fn add(&mut self, did: Did, said: Said) {
        let (found, summary) = said.so_far();
        self.found.extend(found.into_iter().map(|found| (did, found)));
        self.summary.add(&summary);
    }

    /// Takes away what was found since the last time.
    pub fn take_found(&mut self) -> Vec<(Did, Finding)> {
        std::mem::take(&mut self.found)
    }

    /// What it came to.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}
