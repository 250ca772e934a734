//! A bound on the memory of what is measured, its page cache included: what a store is like when
//! it is larger than the machine's memory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// What Linux says of a process that is no more: ESRCH.
const NO_SUCH_PROCESS: i32 = 3;

/// A control group of our own; removed at the end.
pub struct Bound {
    path: PathBuf,
}

impl Bound {
    /// Makes the group. Takes root, or a part of the hierarchy that was handed to the user.
    pub fn new(megabytes: u64) -> anyhow::Result<Bound> {
        let (root, file) = hierarchy()?;
        let path = root.join(format!("plc-bench-{}", std::process::id()));
        fs::create_dir_all(&path)
            .and_then(|()| fs::write(path.join(file), (megabytes << 20).to_string()))
            .with_context(|| {
                format!("--memory-limit: cannot bound memory in {}", path.display())
            })?;
        Ok(Bound { path })
    }

    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a process into it, unless it has just ended; its children to come follow.
    pub fn add(&self, process: u32) -> anyhow::Result<()> {
        let file = self.path.join("cgroup.procs");
        match fs::write(&file, process.to_string()) {
            Err(error) if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Ok(()),
            result => result.with_context(|| format!("cannot write to {}", file.display())),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Stays, empty and harmless, while a process of it is still ending.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Where groups with a memory controller are made, and the name of the bound there: of the
/// unified hierarchy, or of the older one.
fn hierarchy() -> anyhow::Result<(PathBuf, &'static str)> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_whitespace().any(|controller| controller == "memory") {
        return Ok((root, "memory.max"));
    }
    let older = root.join("memory");
    if older.join("memory.limit_in_bytes").exists() {
        return Ok((older, "memory.limit_in_bytes"));
    }
    bail!("--memory-limit: this machine has no control groups for memory in {}", root.display())
}
