//! What can be wrong with stored bytes.

/// Stored bytes that no packer has written, or that need a text that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A number without a text: another process has assigned it, or it is lost.
    #[error("the text with number {0} is missing")]
    UnknownNumber(u32),
    /// Anything else.
    #[error("{0}")]
    Other(&'static str),
}
