//! The binary: arguments, logging, dispatch.

mod commands;

use std::process::ExitCode;

fn main() -> ExitCode {
    match commands::Cli::from_process().and_then(commands::Cli::run) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("plc-replica: {}", commands::sentence(&error));
            ExitCode::from(2)
        }
    }
}
