//! What is to be said of an operation beside its verdict.

use crate::cid::Cid;
use crate::operation::Operation;

/// Something in which an operation is not what the specification says, and which the directory accepts
/// all the same. It is part of what was signed, so that it stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Remark {
    /// `prev` names an operation in another spelling than that of the specification, which is base32 in
    /// lower case without padding ([`Cid::of_any_spelling`]).
    #[error("`prev` names {prev} in a spelling that is not the specification's: {spelled}")]
    PrevSpelling {
        /// The operation that it names.
        prev: Cid,
        /// How it does.
        spelled: String,
    },
}

const PREV_SPELLING: &str = "prev-spelling";

impl Remark {
    /// The names of all of them.
    pub const KINDS: [&'static str; 1] = [PREV_SPELLING];

    /// What is to be remarked on an operation; mostly nothing.
    pub fn on(operation: &Operation<'_>) -> Option<Remark> {
        let spelled = operation.prev()?;
        let prev = operation.prev_cid()?;
        let as_specified = spelled.as_bytes() == prev.to_ascii();
        (!as_specified).then(|| Remark::PrevSpelling { prev, spelled: spelled.to_owned() })
    }

    /// A name for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Remark::PrevSpelling { .. } => PREV_SPELLING,
        }
    }
}
