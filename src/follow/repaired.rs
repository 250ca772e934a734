//! What a repair finds, and how much it was.

use std::collections::BTreeMap;

use crate::store::Commit;
use did_plc::Did;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Operations of an identity were missing here. They are here now.
    Missing {
        /// The identity.
        did: Did,
        /// How many.
        operations: usize,
    },
    /// A line was refused.
    Refused {
        /// The identity, as the line states it.
        did: String,
        /// Why.
        reason: String,
    },
    /// A difference was recorded.
    Recorded {
        /// The identity, as a line states it.
        did: String,
        /// The name of its [`crate::store::DivergenceKind`].
        kind: String,
    },
    /// The upstream's audit log of an identity lacks operations that are here.
    Lacking {
        /// The identity.
        did: Did,
        /// How many.
        operations: usize,
    },
    /// The upstream does not know an identity.
    Unknown {
        /// The identity.
        did: Did,
        /// How many operations of it are here.
        held: usize,
    },
}

/// How much was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Lines that were compared.
    pub lines: usize,
    /// Operations that were missing here, and are here now.
    pub missing: usize,
    /// Lines that were refused.
    pub refused: usize,
    /// Differences that were recorded.
    pub recorded: usize,
    /// Operations that the upstream's audit logs lack.
    pub lacking: usize,
    /// Identities that the upstream does not know.
    pub unknown: usize,
}

impl Repaired {
    /// Whether nothing was missing, refused, different, lacking or unknown.
    pub fn is_clean(&self) -> bool {
        *self == Repaired { lines: self.lines, ..Repaired::default() }
    }

    pub(super) fn add(&mut self, found: &Found) {
        match found {
            Found::Missing { operations, .. } => self.missing += operations,
            Found::Refused { .. } => self.refused += 1,
            Found::Recorded { .. } => self.recorded += 1,
            Found::Lacking { operations, .. } => self.lacking += operations,
            Found::Unknown { .. } => self.unknown += 1,
        }
    }
}

/// What was found in lines from which this commit follows.
pub(super) fn found_in(commit: &Commit) -> Vec<Found> {
    let mut missing: BTreeMap<Did, usize> = BTreeMap::new();
    for operation in &commit.operations {
        *missing.entry(operation.did).or_default() += 1;
    }
    for rewritten in &commit.rewritten {
        let more = rewritten.operations.len().saturating_sub(rewritten.stored);
        *missing.entry(rewritten.did).or_default() += more;
    }
    let missing = missing.into_iter().filter(|(_, operations)| *operations > 0);
    let missing = missing.map(|(did, operations)| Found::Missing { did, operations });
    let refused = commit.refusals.iter().map(|new| Found::Refused {
        did: new.did.clone(),
        reason: format!("{}: {}", new.kind, new.detail),
    });
    let recorded = commit
        .divergences
        .iter()
        .map(|new| Found::Recorded { did: new.did.clone(), kind: new.kind.clone() });
    missing.chain(refused).chain(recorded).collect()
}
