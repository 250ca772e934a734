//! The binary: arguments, logging, dispatch.

mod commands;

use std::process::ExitCode;

fn main() -> ExitCode {
    match commands::Cli::from_process().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("plc-replica: {error:#}");
            ExitCode::from(2)
        }
    }
}
