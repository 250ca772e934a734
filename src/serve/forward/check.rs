//! Whether an operation is certainly wrong, so that the upstream need not be asked.

use did_plc::submission::{Submission, SubmissionLimits};
use did_plc::{Did, Refusal};

use super::super::error::ServeError;
use super::super::state::Server;
use crate::clock;
use crate::judge;
use crate::live::Mode;

/// Reads what was submitted for the identity that the path names, which may be any text.
///
/// # Errors
///
/// [`ServeError::Rejected`] where the upstream would refuse it too, and those of the store: then nothing is sent
/// either.
pub async fn check(
    server: &Server,
    limits: &SubmissionLimits,
    did: &str,
    body: &str,
) -> Result<(Did, Submission), ServeError> {
    let submission = Submission::read(body, limits).map_err(ServeError::Rejected)?;
    let rejected = |refusal| ServeError::Rejected(submission.words_for(&refusal));
    let Ok(did) = did.parse::<Did>() else {
        // No operation creates that.
        return Err(rejected(Refusal::GenesisMismatch { derived: submission.creates() }));
    };
    // Before the store is read: of what is held by then, the upstream has all while it is followed live.
    let live = server.state.status.mode() == Mode::Live;
    let chain = judge::chain_of(&server.state.store.history(&did).await?)?;
    // The upstream dates an operation, and never before those that it has.
    let last = chain.links().last().map(|link| link.created_at);
    let now = last.map_or(clock::now(), |last| last.max(clock::now()));
    match submission.judge(did, chain, now, &*server.state.verifier) {
        Err(refusal) if is_certain(&refusal, live) => Err(rejected(refusal)),
        _ => Ok((did, submission)),
    }
}

/// Whether the upstream is certain to refuse an operation for this reason too.
fn is_certain(refusal: &Refusal, live: bool) -> bool {
    match refusal {
        // These follow from the operation alone, or from what `prev` names by its hash.
        Refusal::GenesisMismatch { .. }
        | Refusal::PrevTombstone { .. }
        | Refusal::SignatureEncoding
        | Refusal::SignatureInvalid => true,
        // These follow from what else there is of the identity. Whatever more the upstream has than is held here, they
        // stay true. Less it has only when it was set back, which is noticed while it is followed live.
        Refusal::SecondGenesis { .. }
        | Refusal::PrevNullified { .. }
        | Refusal::NotAuthorised { .. } => live,
        // What `prev` names may be on its way here.
        Refusal::UnknownDid { .. } | Refusal::UnknownPrev { .. } => false,
        // The upstream's clock decides; and how late a recovery is depends on what it would nullify there.
        Refusal::TimestampOrder { .. } | Refusal::RecoveryTooLate { .. } => false,
        // The directory fails at such a key, and may not for ever.
        Refusal::UnsupportedKey { .. } => false,
        // These are of lines of a log.
        Refusal::NotJson { .. }
        | Refusal::UnknownType { .. }
        | Refusal::MalformedDid
        | Refusal::Malformed { .. }
        | Refusal::CidMismatch { .. } => false,
    }
}
