//! Tests that need something from outside, and say so where it is missing.

use std::io::Write;

/// Says in one line that a test is skipped, or the rest of it, since `need` is not here. Fails the
/// test where the environment says that it has to be: `PLC_REQUIRE_PROMTOOL` for `promtool`.
pub fn skipped(need: &str, reason: &str) {
    let variable = format!("PLC_REQUIRE_{}", need.to_uppercase().replace('-', "_"));
    assert!(std::env::var_os(&variable).is_none(), "{reason}, and {variable} is set");
    let thread = std::thread::current();
    // Not `eprintln!`, which the test harness keeps to itself when the test passes.
    let _ = writeln!(std::io::stderr(), "skipped: {}: {reason}", thread.name().unwrap_or_default());
}
