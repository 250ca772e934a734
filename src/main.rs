//! The binary: arguments, logging, dispatch.

use std::process::ExitCode;

use plc_replica::commands;

/// Most of what is allocated here is small and freed by another thread than the one that made it:
/// that costs glibc's allocator a tenth of all time, and more memory than is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match commands::Cli::from_process().and_then(commands::Cli::run) {
        Ok(code) => code,
        Err(error) if commands::is_unread(&error) => ExitCode::from(commands::UNREAD),
        Err(error) => {
            eprintln!("plc-replica: {}", commands::sentence(&error));
            ExitCode::from(2)
        }
    }
}
