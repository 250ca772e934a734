//! The long command in a few seconds, so that it goes on working: everything runs, and a bound that is not kept is
//! what it ends with 1 for, that one and no other.

use std::path::Path;
use std::process::Command;

#[test]
fn what_is_not_endured_is_said() {
    let bench = Path::new(env!("CARGO_BIN_EXE_plc-bench"));
    let replica = bench.with_file_name("plc-replica");
    if !replica.is_file() {
        eprintln!("skipped: {} is not built", replica.display());
        return;
    }
    // Bounds that a busy machine keeps, but for the one on lookups, which no machine does.
    let output = Command::new(bench)
        .args(["endure", "--minutes", "0.13", "--overload-seconds", "5", "--p99", "0"])
        .args(["--operations", "3000", "--rate", "20", "--lookups", "20"])
        .args(["--clients", "20", "--slow", "4", "--at-a-time", "200"])
        .args(["--behind", "30", "--recovery", "55"])
        .args(["--directory", env!("CARGO_TARGET_TMPDIR")])
        .output()
        .unwrap();
    let [out, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let complaints = out.split_once("\nNot kept:\n").map(|(_, complaints)| complaints);
    assert_eq!(complaints, Some("- the p99 is above 0.00 ms\n"), "{out}{errors}");
    assert_eq!(output.status.code(), Some(1));
}
