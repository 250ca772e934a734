//! The chain of one identity, and the rules by which it grows
//! (specification, "DID update process" and "Recovery").

use std::time::Duration;

use super::cid::Cid;
use super::did::Did;
use super::operation::{Kind, Operation};
use super::signature::{Signature, Signed, UnsupportedKey, Verifier};
use super::timestamp::Timestamp;

/// Links up to which a chain takes no more memory than it needs.
const FEW: usize = 4;
/// What an allocation takes beside what was asked for, about.
const ALLOCATION: usize = 16;
/// How long after the first operation that it nullifies a recovery may come; exactly this long is
/// in time.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(72 * 60 * 60);

/// Why an operation is not accepted. Each names what was expected; [`Refusal::kind`] is its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The DID is not `did:plc:` and 24 characters of base32.
    #[error("expected `did:plc:` and 24 characters of a-z and 2-7")]
    MalformedDid,
    /// The JSON is not exactly one of the three shapes, or its envelope is not one.
    #[error("expected exactly one operation: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// The stated CID is not that of the operation.
    #[error("the operation's CID is {computed}, stated was {stated}")]
    CidMismatch {
        /// The CID as stated.
        stated: String,
        /// The CID of the operation.
        computed: Cid,
    },
    /// A first operation from which another DID is derived.
    #[error("this genesis operation creates {derived}")]
    GenesisMismatch {
        /// The DID that it would create.
        derived: Did,
    },
    /// A genesis operation where there is one already.
    #[error("the identity begins with {genesis}, and `prev` is null")]
    SecondGenesis {
        /// The genesis operation that is held.
        genesis: Cid,
    },
    /// The first operation that is seen of an identity is not a genesis operation.
    #[error("no operation of this identity is known, and `prev` names {prev}")]
    UnknownDid {
        /// What `prev` says.
        prev: String,
    },
    /// `prev` is no operation of this identity.
    #[error("`prev` names {prev}, which is no operation of this identity")]
    UnknownPrev {
        /// What `prev` says.
        prev: String,
    },
    /// `prev` is an operation that was nullified.
    #[error("`prev` names {prev}, which was nullified")]
    PrevNullified {
        /// The nullified operation.
        prev: Cid,
    },
    /// `prev` is a tombstone.
    #[error("`prev` names {prev}, a tombstone, which nothing follows")]
    PrevTombstone {
        /// The tombstone.
        prev: Cid,
    },
    /// The signature's text is not strict base64url of 64 bytes.
    #[error("expected a signature of 64 bytes in base64url without padding, spare bits zero")]
    SignatureEncoding,
    /// No key that could have signed has signed.
    #[error("no rotation key in force made this signature, or its S is high")]
    SignatureInvalid,
    /// A rotation key that had to be tried is no key.
    #[error("rotation key {index} is not a did:key of a k256 or p256 public key")]
    UnsupportedKey {
        /// Its index in the list in force.
        index: usize,
    },
    /// Signed by a rotation key, but one that has no authority over what would be nullified.
    #[error(
        "rotation key {signer} may not nullify an operation that rotation key {disputed} signed: a key before it in the list is needed"
    )]
    NotAuthorised {
        /// Index of the key that signed.
        signer: usize,
        /// Index of the key that signed the first operation that would be nullified.
        disputed: usize,
    },
    /// Not later than what is there.
    #[error("createdAt {created_at} is not after that of the head, {head}")]
    TimestampOrder {
        /// As stated.
        created_at: Timestamp,
        /// `createdAt` of the head.
        head: Timestamp,
    },
    /// A recovery after its window.
    #[error("a recovery at {created_at} of what was signed at {disputed_at}: 72 hours are over")]
    RecoveryTooLate {
        /// As stated.
        created_at: Timestamp,
        /// `createdAt` of the first operation that would be nullified.
        disputed_at: Timestamp,
    },
    /// The sequence number belongs to another operation.
    #[error("sequence number {sequence} belongs to {holder}")]
    SequenceConflict {
        /// The number.
        sequence: i64,
        /// The operation that holds it.
        holder: Cid,
    },
}

impl Refusal {
    /// The refusal's name, as it is stored and served.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::MalformedDid => "malformed-did",
            Refusal::Malformed { .. } => "malformed",
            Refusal::CidMismatch { .. } => "cid-mismatch",
            Refusal::GenesisMismatch { .. } => "genesis-mismatch",
            Refusal::SecondGenesis { .. } => "second-genesis",
            Refusal::UnknownDid { .. } => "unknown-did",
            Refusal::UnknownPrev { .. } => "unknown-prev",
            Refusal::PrevNullified { .. } => "prev-nullified",
            Refusal::PrevTombstone { .. } => "prev-tombstone",
            Refusal::SignatureEncoding => "signature-encoding",
            Refusal::SignatureInvalid => "signature-invalid",
            Refusal::UnsupportedKey { .. } => "unsupported-key",
            Refusal::NotAuthorised { .. } => "not-authorised",
            Refusal::TimestampOrder { .. } => "timestamp-order",
            Refusal::RecoveryTooLate { .. } => "recovery-too-late",
            Refusal::SequenceConflict { .. } => "sequence-conflict",
        }
    }

    /// Whether all that is wrong is that the operation which `prev` names is not there.
    pub fn lacks_prev(&self) -> bool {
        matches!(self, Refusal::UnknownDid { .. } | Refusal::UnknownPrev { .. })
    }

    /// The operation whose acceptance would change this verdict.
    pub fn awaits(&self) -> Option<Cid> {
        match self {
            Refusal::UnknownDid { prev } | Refusal::UnknownPrev { prev } => prev.parse().ok(),
            _ => None,
        }
    }
}

/// An accepted operation in its chain: what is needed to judge those after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its CID.
    pub cid: Cid,
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// The directory's sequence number.
    pub sequence: Option<i64>,
    /// The keys that may sign what follows it, in order of authority; none of a tombstone.
    pub rotation_keys: Box<[Box<str>]>,
    /// Whether it ends the identity.
    pub tombstone: bool,
    /// Index of the rotation key that signed it, in the list that was in force.
    pub signer: u16,
    /// `created_at` of the operation that nullified it.
    pub nullified_by: Option<Timestamp>,
}

impl Link {
    /// The link that an operation makes.
    pub fn new(
        operation: &Operation<'_>,
        cid: Cid,
        created_at: Timestamp,
        sequence: Option<i64>,
        signer: u16,
    ) -> Link {
        Link {
            cid,
            created_at,
            sequence,
            rotation_keys: operation.rotation_keys().into_iter().map(Box::from).collect(),
            tombstone: operation.kind() == Kind::Tombstone,
            signer,
            nullified_by: None,
        }
    }
}

/// An operation that asks to be the next of its chain.
#[derive(Debug, Clone, Copy)]
pub struct Proposed<'a> {
    /// The identity that it claims to belong to.
    pub did: Did,
    /// Its CID.
    pub cid: Cid,
    /// When the directory says that it accepted it.
    pub created_at: Timestamp,
    /// The sequence number that the directory gave it.
    pub sequence: Option<i64>,
    /// The operation.
    pub operation: Operation<'a>,
}

/// The verdict on an operation that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The operation.
    pub cid: Cid,
    /// The rotation key that signed it: a `did:key`.
    pub signer_key: Box<str>,
    /// First index of that key in the list in force.
    pub signer: u16,
    /// `created_at` of what it nullifies, ascending.
    pub nullifies: Vec<Timestamp>,
    /// When its own 72 hours end, in which a key of higher authority can nullify it; none when the
    /// highest signed, and of a genesis, which nothing can nullify.
    pub contestable_until: Option<Timestamp>,
}

/// Every accepted operation of one identity, in the order of `created_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    links: Vec<Link>,
}

impl Chain {
    /// A chain of links that were accepted before, ascending by `created_at`.
    pub fn from_links(links: Vec<Link>) -> Chain {
        Chain { links }
    }

    /// All links, nullified ones included, ascending by `created_at`.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Bytes of memory that it takes, about. Upstreams decide how many keys an operation lists and
    /// how long they are: what a chain takes cannot be told from the number of its links.
    pub fn bytes(&self) -> usize {
        let of_keys = |keys: &[Box<str>]| -> usize {
            keys.iter().map(|key| size_of_val(key) + ALLOCATION + key.len()).sum()
        };
        let of_link = |link: &Link| size_of_val(link) + ALLOCATION + of_keys(&link.rotation_keys);
        self.links.iter().map(of_link).sum()
    }

    /// The newest operation that is not nullified.
    pub fn head(&self) -> Option<&Link> {
        self.links.iter().rev().find(|link| link.nullified_by.is_none())
    }

    /// The link with this CID.
    pub fn find(&self, cid: &Cid) -> Option<&Link> {
        self.links.iter().find(|link| link.cid == *cid)
    }

    /// Judges an operation against this chain, as the reference directory does
    /// (`assureValidNextOp` of did-method-plc). The checks stand in the order of the design's
    /// table; the first that fails names the refusal.
    ///
    /// # Errors
    ///
    /// The [`Refusal`].
    pub fn judge(
        &self,
        proposed: &Proposed<'_>,
        verifier: &dyn Verifier,
    ) -> Result<Acceptance, Refusal> {
        match (proposed.operation.prev(), self.links.first()) {
            (None, None) => judge_genesis(proposed, verifier),
            (None, Some(first)) => Err(Refusal::SecondGenesis { genesis: first.cid }),
            (Some(prev), None) => Err(Refusal::UnknownDid { prev: prev.to_owned() }),
            (Some(prev), Some(_)) => self.judge_successor(prev, proposed, verifier),
        }
    }

    fn judge_successor(
        &self,
        prev: &str,
        proposed: &Proposed<'_>,
        verifier: &dyn Verifier,
    ) -> Result<Acceptance, Refusal> {
        let at = self.find_prev(prev)?;
        let in_force = &self.links[at].rotation_keys;
        let nullified: Vec<&Link> =
            self.links[at + 1..].iter().filter(|link| link.nullified_by.is_none()).collect();
        let disputed = nullified.first();
        let authorised = match disputed {
            Some(disputed) => &in_force[..usize::from(disputed.signer).min(in_force.len())],
            None => in_force,
        };
        let signed = signed(&proposed.operation)?;
        let signer = find_signer(&signed, authorised, verifier)?.ok_or_else(|| {
            // Not one of those that may: another key of the list, or nobody's signature.
            let rest = &in_force[authorised.len()..];
            match (disputed, find_signer(&signed, rest, verifier)) {
                (Some(disputed), Ok(Some(index))) => Refusal::NotAuthorised {
                    signer: authorised.len() + index,
                    disputed: usize::from(disputed.signer),
                },
                _ => Refusal::SignatureInvalid,
            }
        })?;
        self.check_time(proposed, disputed)?;
        Ok(accept(proposed, &in_force[signer], signer, &nullified))
    }

    /// The link that `prev` names, if something may follow it.
    fn find_prev(&self, prev: &str) -> Result<usize, Refusal> {
        let unknown = || Refusal::UnknownPrev { prev: prev.to_owned() };
        let cid: Cid = prev.parse().map_err(|_| unknown())?;
        let at = self.links.iter().position(|link| link.cid == cid).ok_or_else(unknown)?;
        if self.links[at].nullified_by.is_some() {
            return Err(Refusal::PrevNullified { prev: cid });
        }
        if self.links[at].tombstone {
            return Err(Refusal::PrevTombstone { prev: cid });
        }
        Ok(at)
    }

    fn check_time(&self, proposed: &Proposed<'_>, disputed: Option<&&Link>) -> Result<(), Refusal> {
        let created_at = proposed.created_at;
        // The last link is never nullified (what nullifies comes later), so it is the head; all
        // links count, since `created_at` is what tells the operations of an identity apart.
        if let Some(head) = self.links.last().filter(|last| last.created_at >= created_at) {
            return Err(Refusal::TimestampOrder { created_at, head: head.created_at });
        }
        match disputed {
            Some(disputed) if created_at > disputed.created_at + RECOVERY_WINDOW => {
                Err(Refusal::RecoveryTooLate { created_at, disputed_at: disputed.created_at })
            }
            _ => Ok(()),
        }
    }

    /// Gives a sequence number to a link that has none.
    pub fn number(&mut self, cid: &Cid, sequence: i64) {
        if let Some(link) = self.links.iter_mut().find(|link| link.cid == *cid) {
            link.sequence.get_or_insert(sequence);
        }
    }

    /// Appends an operation that [`Chain::judge`] accepted, and marks what it nullifies.
    pub fn append(&mut self, proposed: &Proposed<'_>, acceptance: &Acceptance) {
        for link in &mut self.links {
            if acceptance.nullifies.binary_search(&link.created_at).is_ok() {
                link.nullified_by = Some(proposed.created_at);
            }
        }
        // Most identities never have more than a few operations: no room is kept for others.
        if self.links.len() < FEW {
            self.links.reserve_exact(1);
        }
        self.links.push(Link::new(
            &proposed.operation,
            proposed.cid,
            proposed.created_at,
            proposed.sequence,
            acceptance.signer,
        ));
    }
}

fn judge_genesis(proposed: &Proposed<'_>, verifier: &dyn Verifier) -> Result<Acceptance, Refusal> {
    let derived = Did::of_genesis_digest(proposed.cid.digest());
    if derived != proposed.did {
        return Err(Refusal::GenesisMismatch { derived });
    }
    let own: Vec<&str> = proposed.operation.rotation_keys();
    let signer = find_signer(&signed(&proposed.operation)?, &own, verifier)?
        .ok_or(Refusal::SignatureInvalid)?;
    Ok(Acceptance { contestable_until: None, ..accept(proposed, own[signer], signer, &[]) })
}

fn accept(
    proposed: &Proposed<'_>,
    signer_key: &str,
    signer: usize,
    nullified: &[&Link],
) -> Acceptance {
    Acceptance {
        cid: proposed.cid,
        signer_key: Box::from(signer_key),
        // A list longer than this would not fit into an operation of the accepted length.
        signer: u16::try_from(signer).unwrap_or(u16::MAX),
        nullifies: nullified.iter().map(|link| link.created_at).collect(),
        contestable_until: (signer > 0).then(|| proposed.created_at + RECOVERY_WINDOW),
    }
}

/// The signature of an operation.
fn signed(operation: &Operation<'_>) -> Result<Signed, Refusal> {
    let signature = Signature::parse(operation.sig()).ok_or(Refusal::SignatureEncoding)?;
    Ok(Signed { digest: operation.signing_digest(), signature })
}

/// The first of `keys` that made a signature. A key that is met and is none ends the trial.
fn find_signer<K: AsRef<str>>(
    signed: &Signed,
    keys: &[K],
    verifier: &dyn Verifier,
) -> Result<Option<usize>, Refusal> {
    let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
    let unsupported = |UnsupportedKey { index }| Refusal::UnsupportedKey { index };
    verifier.find_signer(&keys, signed).map_err(unsupported)
}
