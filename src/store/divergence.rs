//! Records of where somebody says otherwise than what we hold.

use std::fmt;

use did_plc::Timestamp;
use did_plc::chain::Restated;

/// What a recorded difference is about: the one list of their names, which are stored and served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DivergenceKind {
    /// An operation came by the stream with a `createdAt` that is well before it was received, or
    /// before others that were received earlier. It is accepted all the same.
    Backdated,
    /// An operation came again under another CID.
    RestatedCid,
    /// An operation came again with another `createdAt`.
    RestatedCreatedAt,
    /// An operation came again with another sequence number.
    RestatedSequence,
    /// The upstream's log ends before what was read from it, or goes on differently from there: it
    /// was restored from a backup, or has rewritten its log.
    UpstreamRewound,
    /// We hold an operation that the log of its identity lacks there.
    MissingThere,
    /// We hold an operation that the upstream gave us and its export lacks now, under any number. The log of the
    /// identity may have it there.
    MissingInExport,
    /// Their log has a valid operation that we lack.
    MissingHere,
    /// Under a CID that we hold their log has another operation.
    OtherBytes,
    /// The same operation has another `createdAt` there.
    OtherCreatedAt,
    /// The same operation has another sequence number there.
    OtherSequence,
    /// The same operation is nullified on one side only.
    OtherNullifiedFlag,
    /// The same operations stand in another order there.
    OtherOrder,
    /// The operation that they say is the newest is not the one that their log leads to.
    OtherHead,
    /// Their document is not the one that their log leads to.
    OtherDocument,
    /// Their log has an operation that the rules refuse.
    DoesNotVerify,
}

impl DivergenceKind {
    /// All of them.
    pub const ALL: [DivergenceKind; 16] = [
        DivergenceKind::Backdated,
        DivergenceKind::RestatedCid,
        DivergenceKind::RestatedCreatedAt,
        DivergenceKind::RestatedSequence,
        DivergenceKind::UpstreamRewound,
        DivergenceKind::MissingThere,
        DivergenceKind::MissingInExport,
        DivergenceKind::MissingHere,
        DivergenceKind::OtherBytes,
        DivergenceKind::OtherCreatedAt,
        DivergenceKind::OtherSequence,
        DivergenceKind::OtherNullifiedFlag,
        DivergenceKind::OtherOrder,
        DivergenceKind::OtherHead,
        DivergenceKind::OtherDocument,
        DivergenceKind::DoesNotVerify,
    ];

    /// The name, as it is stored and served.
    pub const fn name(self) -> &'static str {
        match self {
            DivergenceKind::Backdated => "backdated",
            DivergenceKind::RestatedCid => "restated-cid",
            DivergenceKind::RestatedCreatedAt => "restated-created-at",
            DivergenceKind::RestatedSequence => "restated-sequence",
            DivergenceKind::UpstreamRewound => "upstream-rewound",
            DivergenceKind::MissingThere => "missing-there",
            DivergenceKind::MissingInExport => "missing-in-export",
            DivergenceKind::MissingHere => "missing-here",
            DivergenceKind::OtherBytes => "other-bytes",
            DivergenceKind::OtherCreatedAt => "other-created-at",
            DivergenceKind::OtherSequence => "other-sequence",
            DivergenceKind::OtherNullifiedFlag => "other-nullified-flag",
            DivergenceKind::OtherOrder => "other-order",
            DivergenceKind::OtherHead => "other-head",
            DivergenceKind::OtherDocument => "other-document",
            DivergenceKind::DoesNotVerify => "does-not-verify",
        }
    }

    /// The kind with this name; none when a later version of this program has stored it.
    pub fn of_name(name: &str) -> Option<DivergenceKind> {
        DivergenceKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// One for each thing that a second statement of an operation says otherwise.
    pub fn of_restated(restated: &Restated) -> impl Iterator<Item = DivergenceKind> {
        let differs = [
            (DivergenceKind::RestatedCid, restated.cid.is_some()),
            (DivergenceKind::RestatedCreatedAt, restated.created_at.is_some()),
            (DivergenceKind::RestatedSequence, restated.sequence.is_some()),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(kind, _)| kind)
    }
}

impl fmt::Display for DivergenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Bytes that records of differences take at most, unless it is set otherwise: as much as refusals do.
pub const DIVERGENCE_BYTES: u64 = 256 << 20;

/// A difference between what we hold and what somebody else says, with both sides' evidence.
/// One record an (source, DID, kind, subject): seeing it again moves `last_seen` only, unless it was
/// closed; then it is open again, with the evidence of this time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDivergence {
    /// Who says otherwise: the URL of an upstream, or the name of a file.
    pub source: String,
    /// The DID of the identity that it is about.
    pub did: String,
    /// What differs: the name of a [`DivergenceKind`].
    pub kind: String,
    /// What it is about, usually a CID; tells two records of one kind apart.
    pub subject: String,
    /// Our entry or entries, JSON as an audit log shows them; none when we hold nothing.
    pub ours: Option<String>,
    /// Their entry or entries, as received.
    pub theirs: Option<String>,
}

/// A recorded difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDivergence {
    /// Number of the record.
    pub id: i64,
    /// What is recorded.
    pub divergence: NewDivergence,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// When it was found to be gone.
    pub closed_at: Option<Timestamp>,
}

/// What became of the divergences that a comparison noted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// Records that were not open before: new ones, and closed ones that are open again.
    pub opened: Vec<NewDivergence>,
    /// Records that were open and are closed now.
    pub closed: usize,
}

impl Noted {
    /// Compares what was open (id, kind, subject) with what is seen now; beside it the ids of the
    /// records that are to be closed.
    pub(super) fn between(
        open: &[(i64, String, String)],
        covered: &[&str],
        seen: &[NewDivergence],
    ) -> (Noted, Vec<i64>) {
        let is = |new: &NewDivergence, kind: &str, subject: &str| {
            new.kind == kind && new.subject == subject
        };
        let was_open =
            |new: &&NewDivergence| open.iter().any(|(_, kind, subject)| is(new, kind, subject));
        let gone = open.iter().filter(|(_, kind, subject)| {
            covered.contains(&&**kind) && !seen.iter().any(|new| is(new, kind, subject))
        });
        let closed: Vec<i64> = gone.map(|(id, _, _)| *id).collect();
        let opened = seen.iter().filter(|new| !was_open(new)).cloned().collect();
        (Noted { opened, closed: closed.len() }, closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        for kind in DivergenceKind::ALL {
            assert_eq!(DivergenceKind::of_name(kind.name()), Some(kind));
        }
        assert_eq!(DivergenceKind::of_name("another"), None);
    }

    #[test]
    fn a_restatement_is_of_each_kind_that_differs() {
        let at = Some(Timestamp::from_millis(1));
        let restated = Restated { created_at: at, sequence: Some(1), ..Restated::default() };
        let kinds: Vec<_> = DivergenceKind::of_restated(&restated).collect();
        assert_eq!(kinds, [DivergenceKind::RestatedCreatedAt, DivergenceKind::RestatedSequence]);
    }
}
