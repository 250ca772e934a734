//! Why something is refused: the one list of reasons.

use super::cid::Cid;
use super::did::Did;
use super::timestamp::Timestamp;

/// The [kind](Refusal::kind) of [`Refusal::UnknownType`].
pub const UNKNOWN_TYPE: &str = "unknown-type";

/// Why a line of a log or its operation is not accepted. Each says what was expected;
/// [`Refusal::kind`] is its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The line is not JSON: damaged on its way, perhaps.
    #[error("expected a JSON object: {reason}")]
    NotJson {
        /// What is wrong with it.
        reason: String,
    },
    /// The line is of a `type` that this program does not know, and carries no operation.
    #[error("expected the type `sequenced_op`, not `{stated}`")]
    UnknownType {
        /// The `type` of the line.
        stated: String,
    },
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
        /// CID of the tombstone.
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
    /// Dated before what it builds on.
    #[error("createdAt {created_at} is before that of what it builds on, {head}")]
    TimestampOrder {
        /// As stated.
        created_at: Timestamp,
        /// `createdAt` of the operation before it.
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
}

impl Refusal {
    /// The refusal's name, as it is stored and served.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::NotJson { .. } => "not-json",
            Refusal::UnknownType { .. } => UNKNOWN_TYPE,
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
        }
    }

    /// Whether it is the line that is refused: it carries no operation that could be judged.
    pub fn is_of_line(&self) -> bool {
        matches!(self, Refusal::NotJson { .. } | Refusal::UnknownType { .. })
    }

    /// Whether all that is wrong is that the operation which `prev` names is not there.
    pub fn lacks_prev(&self) -> bool {
        Refusal::kind_lacks_prev(self.kind())
    }

    /// The same of the [kind](Refusal::kind) of a refusal.
    pub fn kind_lacks_prev(kind: &str) -> bool {
        matches!(kind, "unknown-did" | "unknown-prev")
    }

    /// The operation that `prev` names, where it is not there.
    pub fn lacking_prev(&self) -> Option<Cid> {
        match self {
            Refusal::UnknownDid { prev } | Refusal::UnknownPrev { prev } => {
                Cid::of_any_spelling(prev)
            }
            _ => None,
        }
    }
}
