//! Recorded data: the set that is part of the sources, and sets that may lie beside the checkout.

use std::path::{Path, PathBuf};

use crate::skip::skipped;

/// The generated log with the answers of the reference server; see its README.md.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The folder `name` of the data beside the checkout (or where `PLC_SHARED` says), or `None` after a
/// line that says that the test is skipped.
pub fn folder(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PLC_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let folder = root.join(name);
    if !folder.is_dir() {
        skipped("shared", &format!("there is no {}", folder.display()));
        return None;
    }
    Some(folder)
}

/// The recorded logs with verdicts and answers: the generated one, and the real one if it is here.
pub fn logs() -> Vec<PathBuf> {
    std::iter::once(golden()).chain(folder("real")).collect()
}
