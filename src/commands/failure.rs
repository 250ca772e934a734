//! What a command that failed says, and which failures are none.

use std::io;
use std::net::SocketAddr;

use crate::store::StoreError;

/// An error with its causes, but for those that are quoted already, and for what a cause itself
/// begins with; and what to do about a damaged store.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if cause.starts_with(&said) {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    let is_damage = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(StoreError::Damaged { .. }))
    };
    if error.chain().any(is_damage) {
        said += "; put a backup in its place, or take the log into another database, with `import` or `serve` and \
                 --database";
    }
    said
}

/// That an address cannot be listened on.
pub fn cannot_listen(setting: &str, address: SocketAddr) -> String {
    format!(
        "{setting} {address}: cannot listen there (it takes an address of this machine and a free port)"
    )
}

/// What is said of a dump in which nothing could be read.
pub const NO_ENTRY: &str = "there is no entry of a log in it";

/// What to do about a database that somebody else writes to.
pub fn in_use(error: StoreError) -> anyhow::Error {
    anyhow::anyhow!("{error}; stop `serve` while this runs")
}

/// What a shell says of a program that was ended by SIGPIPE.
pub const UNREAD: u8 = 128 + 13;

/// Whether a command ended because nobody reads on what it prints, as behind `| head`.
pub fn is_unread(error: &anyhow::Error) -> bool {
    let kind = match (error.downcast_ref::<io::Error>(), error.downcast_ref::<serde_json::Error>())
    {
        (Some(error), _) => Some(error.kind()),
        (None, Some(error)) => error.io_error_kind(),
        (None, None) => None,
    };
    kind == Some(io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let quoting = crate::upstream::Dump::open("/nonexistent".as_ref()).err().unwrap();
        let quoted = quoting.to_string();
        assert!(quoted.contains("(os error 2)"), "{quoted}");
        let error = anyhow::Error::new(quoting).context("import");
        assert_eq!(sentence(&error), format!("import: {quoted}"));
        let error = anyhow::anyhow!("{quoted}").context("/nonexistent");
        assert_eq!(sentence(&error), quoted);
    }
}
