//! What is logged, and how.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How the log looks.
#[derive(Debug, clap::Args)]
pub struct Logging {
    /// Levels, as `info` or by module as `warn,plc_replica::sync=debug`.
    #[arg(long, env = "PLC_LOG", value_name = "LEVELS", default_value = "info")]
    log: String,
    /// Form of the log: `human`, or `json` with an object a line.
    #[arg(
        long,
        env = "PLC_LOG_FORMAT",
        value_name = "human|json",
        default_value = "human",
        value_parser = clap::builder::PossibleValuesParser::new(["human", "json"])
    )]
    log_format: String,
}

impl Logging {
    /// Starts logging to standard error.
    pub fn start(&self) {
        let filter = EnvFilter::new(&self.log);
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if self.log_format == "json" {
            builder.json().flatten_event(true).init();
        } else {
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
        }
    }
}
