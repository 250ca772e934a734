//! What is logged, and how.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::progress::{AboveBar, LEVELS};

/// How the log looks.
#[derive(Debug, clap::Args)]
pub struct Logging {
    /// Levels, as `info` or by module as `warn,plc_replica::follow=debug`.
    #[arg(long, env = "PLC_LOG", value_name = "LEVELS", default_value = "info", value_parser = levels)]
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
    /// Whether a person at a terminal reads it.
    pub fn is_for_a_person(&self) -> bool {
        self.log_format == "human" && std::io::stderr().is_terminal()
    }

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

/// Starts the log of a command that ends by itself.
pub fn start_quietly() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(LEVELS))
        .with_writer(|| AboveBar)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Levels that can be used. What is no level would be taken for a module, and turn everything else
/// off.
fn levels(text: &str) -> Result<String, String> {
    let alone = text.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    for part in alone.filter(|part| !part.is_empty()) {
        if part.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{part}` is no level; it is off, error, warn, info, debug or trace, \
                 or MODULE=LEVEL"
            ));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_refused() {
        for text in ["info", "WARN", "off", "warn,plc_replica::follow=debug", "", LEVELS] {
            assert_eq!(levels(text).as_deref(), Ok(text));
        }
        for text in ["verbos", "info,plc_replica", "plc_replica=verbos"] {
            assert!(levels(text).is_err(), "{text}");
        }
    }
}
