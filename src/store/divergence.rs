//! Records of where somebody says otherwise than what we hold.

use did_plc::Timestamp;

/// A difference between what we hold and what somebody else says, with both sides' evidence.
/// One record an (source, DID, kind, subject): seeing it again moves `last_seen` only, unless it was
/// closed; then it is open again, with the evidence of this time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDivergence {
    /// Who says otherwise: the URL of an upstream, or the name of a file.
    pub source: String,
    /// The identity.
    pub did: String,
    /// What differs (`restated-created-at`).
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
