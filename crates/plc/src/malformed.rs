//! What is said of bytes or of a text that is no operation.

use std::borrow::Cow;

/// Not an operation: not exactly one of the three shapes, or not in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    reason: Cow<'static, str>,
}

impl Malformed {
    /// With what is wrong, for a person.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Malformed {
        Malformed { reason: reason.into() }
    }
}
