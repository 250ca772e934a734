//! `plc-replica completions`: what a shell needs to complete a command line.

use std::io::Write;
use std::process::ExitCode;

use clap_complete::Shell;

/// Print the completions of a shell, for example into /etc/bash_completion.d/plc-replica.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs the command on a description of all commands.
pub fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let mut out = Vec::new();
    clap_complete::generate(args.shell, &mut command, "plc-replica", &mut out);
    std::io::stdout().write_all(&out)?;
    Ok(ExitCode::SUCCESS)
}
