//! The recorded test data that may lie beside the checkout, and saying so where it does not.

use std::path::PathBuf;

/// The folder `name` of the recorded data, or `None` after a line that says what is skipped.
pub fn folder(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PLC_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no recorded data in {}", folder.display());
    None
}
