//! Why a submission is not taken.

use std::time::Duration;

use super::super::did::Did;

/// Within how long operations are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
    /// 7 days.
    Week,
}

impl Period {
    const fn name(self) -> &'static str {
        match self {
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Week => "week",
        }
    }

    pub(super) const fn length(self) -> Duration {
        let hours = match self {
            Period::Hour => 1,
            Period::Day => 24,
            Period::Week => 7 * 24,
        };
        Duration::from_secs(hours * 60 * 60)
    }
}

/// Why a submission is not taken, in the directory's words. It answers 400 to all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The body is no JSON. (The directory has no words for that: it fails.)
    #[error("the body is not a JSON object: {reason}")]
    NotJson {
        /// What is wrong with it.
        reason: String,
    },
    /// Too many bytes.
    #[error("Operation too large ({most} bytes maximum in cbor encoding)")]
    TooLarge {
        /// The limit.
        most: usize,
    },
    /// Neither a regular operation nor a tombstone.
    #[error("Not a valid operation: {json}")]
    NotAnOperation {
        /// What was submitted.
        json: String,
    },
    /// Too many entries of `alsoKnownAs`.
    #[error("To many alsoKnownAs entries (max {most})")]
    TooManyAliases {
        /// The limit.
        most: usize,
    },
    /// An entry of `alsoKnownAs` that is too long.
    #[error("alsoKnownAs entry too long (max {most}): {alias}")]
    AliasTooLong {
        /// The limit.
        most: usize,
        /// The entry.
        alias: String,
    },
    /// An entry that stands twice in `alsoKnownAs`.
    #[error("duplicate alsoKnownAs entry: {alias}")]
    DuplicateAlias {
        /// The entry.
        alias: String,
    },
    /// Too many entries of `rotationKeys`.
    #[error("Too many rotationKey entries (max {most})")]
    TooManyRotationKeys {
        /// The limit.
        most: usize,
    },
    /// A rotation key that is no key of k256 or p256.
    #[error("Invalid rotationKey: {key}")]
    InvalidRotationKey {
        /// The entry.
        key: String,
    },
    /// Too many entries of `services`.
    #[error("To many service entries (max {most})")]
    TooManyServices {
        /// The limit.
        most: usize,
    },
    /// The name of a service is too long.
    #[error("Service id too long (max {most}): {name}")]
    ServiceNameTooLong {
        /// The limit.
        most: usize,
        /// The name.
        name: String,
    },
    /// The `type` of a service is too long.
    #[error("Service type too long (max {most})")]
    ServiceTypeTooLong {
        /// The limit.
        most: usize,
    },
    /// The `endpoint` of a service is too long.
    #[error("Service endpoint too long (max {most})")]
    ServiceEndpointTooLong {
        /// The limit.
        most: usize,
    },
    /// Too many entries of `verificationMethods`.
    #[error("Too many Verification Method entries (max {most})")]
    TooManyVerificationMethods {
        /// The limit.
        most: usize,
    },
    /// The name of a verification method is too long.
    #[error("Verification Method id too long (max {most}): {name}")]
    VerificationMethodNameTooLong {
        /// The limit.
        most: usize,
        /// The name.
        name: String,
    },
    /// The key of a verification method is too long.
    #[error("Verification Method key too long (max {most}): {key}")]
    VerificationMethodKeyTooLong {
        /// The limit.
        most: usize,
        /// The key.
        key: String,
    },
    /// The key of a verification method is not `did:key:z` and base58; of which kind it is does not matter.
    #[error("Invalid verificationMethod key: {key}")]
    InvalidVerificationMethod {
        /// The key.
        key: String,
    },
    /// `prev` names nothing that can be followed, or is null where there is something to follow.
    #[error("Operations not correctly ordered")]
    Misordered,
    /// Signed by nobody who may.
    #[error("Invalid signature on op: {json}")]
    InvalidSignature {
        /// What was submitted.
        json: String,
    },
    /// The first operation of another identity.
    #[error("Hash of genesis operation does not match DID identifier: {derived}")]
    GenesisMismatch {
        /// The DID that it would create.
        derived: Did,
    },
    /// A recovery after its window.
    #[error(
        "Recovery operation occurred outside of the allowed 72 hr recovery window. Time lapsed: {}",
        lapsed.as_millis()
    )]
    RecoveryTooLate {
        /// Time since the first operation that would be nullified.
        lapsed: Duration,
    },
    /// Too many operations in a time.
    #[error("To many operations within last {} (max {most})", period.name())]
    TooOften {
        /// The limit.
        most: usize,
        /// The time.
        period: Period,
    },
}
