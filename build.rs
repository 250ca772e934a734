//! Says what the SQL in the program is checked against while it is built, and which commit that is.

use std::path::Path;
use std::process::Command;

fn main() {
    // The migrations are part of the program, and `.sqlx` is what the statements looked like when they
    // were last checked against a database with these migrations.
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=.sqlx");
    // DATABASE_URL is where the program keeps its log. A build has no business there, so that
    // statements are checked against `.sqlx` unless SQLX_OFFLINE says otherwise, as `.ci/sql` does.
    println!("cargo::rerun-if-env-changed=SQLX_OFFLINE");
    println!("cargo::rerun-if-env-changed=SQLX_OFFLINE_DIR");
    if std::env::var_os("SQLX_OFFLINE").is_none() {
        println!("cargo::rustc-env=SQLX_OFFLINE=true");
    }
    let commit = packaged_commit().or_else(checked_out_commit);
    let suffix = commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
    println!("cargo::rustc-env=PLC_REPLICA_COMMIT={suffix}");
}

/// The commit that a package was made from, as cargo notes it in each.
fn packaged_commit() -> Option<String> {
    let about = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, after) = about.split_once("\"sha1\"")?;
    Some(after.split('"').nth(1)?.chars().take(SHORT).collect())
}

/// The commit that is checked out; none where this is no checkout of its own, or there is no git.
fn checked_out_commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim().to_owned())
    };
    // What lies in a folder of another project's checkout is not that project's commit.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // Written whenever another commit is checked out, or one is made.
    let moves = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&moves).exists() {
        println!("cargo::rerun-if-changed={moves}");
    }
    git(&["rev-parse", &format!("--short={SHORT}"), "HEAD"])
}

/// Digits of a commit.
const SHORT: usize = 9;
