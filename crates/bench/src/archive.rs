//! A generated log in the other forms in which logs lie about: as old dumps have it, and as a repository of plcbundle.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use plc_testkit::plcbundle;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Operations of a bundle, by the specification of plcbundle.
const BUNDLE: usize = 10_000;

/// Write a generated log in another form, to be imported.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Which one.
    #[arg(long, value_enum)]
    form: Form,
    /// Decides the order of the lines, where the form has none.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The log, as `generate` has written it.
    log: PathBuf,
    /// The file or the directory to write.
    target: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Form {
    /// The export without sequence numbers, zstd, in no order at all.
    Legacy,
    /// A repository of bundles; operations that do not fill one are left out.
    Plcbundle,
}

/// A line with its number and without.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    did: &'a str,
    #[serde(borrow)]
    operation: &'a RawValue,
    cid: &'a str,
    #[serde(default)]
    nullified: bool,
    created_at: &'a str,
}

/// Runs the command. Holds the whole log in memory.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = fs::read_to_string(&args.log)
        .with_context(|| format!("cannot read {}", args.log.display()))?;
    match args.form {
        Form::Legacy => legacy(&log, args.seed, &args.target)?,
        Form::Plcbundle => {
            let lines: Vec<String> = log.lines().map(str::to_owned).collect();
            plcbundle::write(&args.target, "https://plc.example", &lines, BUNDLE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn legacy(log: &str, seed: u64, target: &Path) -> anyhow::Result<()> {
    let mut lines: Vec<&str> = log.lines().collect();
    lines.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let file =
        File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let mut out = BufWriter::new(zstd::Encoder::new(file, 1)?);
    for line in lines {
        let line: Line<'_> = serde_json::from_str(line)?;
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()?;
    Ok(())
}
