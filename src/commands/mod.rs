//! The command line: one file a subcommand, and what they share.

mod absence;
mod arguments;
mod audit;
mod backup;
mod completions;
mod environment;
mod evidence;
mod export;
mod failure;
mod fsck;
mod greeting;
mod history;
mod import;
mod limits;
mod logging;
mod metrics;
mod migrate;
pub mod progress;
mod reads;
mod refused;
mod renumber;
mod repair;
mod resolve;
mod serve;
mod settings;
mod snapshot;
mod values;
mod verify;
mod writes;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

pub use self::arguments::{Database, KeptRecords, RequestRate, Signatures, USER_AGENT, preferred};
pub use self::failure::{UNREAD, is_unread, sentence};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// The version, with the commit where that is known.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("PLC_REPLICA_COMMIT"));

/// An independent, verifying replica of the PLC directory.
///
/// Follows a directory of did:plc identifiers, checks every operation itself, keeps the whole log,
/// and answers what the directory answers. Without a subcommand it runs `serve`.
#[derive(Debug, Parser)]
#[command(version = VERSION, arg_required_else_help = false)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    config: settings::ConfigFile,
    /// The settings as they are to be printed.
    #[arg(skip)]
    printed: Option<String>,
    /// What is to be said of the environment.
    #[arg(skip)]
    mistaken: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Verify(verify::Args),
    Audit(audit::Args),
    Fsck(fsck::Args),
    History(history::Args),
    Refused(refused::Args),
    Resolve(resolve::Args),
    Export(export::Args),
    Snapshot(snapshot::Args),
    Backup(backup::Args),
    Import(import::Args),
    Repair(repair::Args),
    Renumber(renumber::Args),
    Migrate(migrate::Args),
    Completions(completions::Args),
}

impl Cli {
    /// Parses the arguments of the process; the first of them may be a setting of `serve`. A mistake
    /// in them is told by clap, which ends the process.
    ///
    /// # Errors
    ///
    /// A file with settings that cannot be read, or sets what there is not.
    pub fn from_process() -> anyhow::Result<Cli> {
        let arguments = with_command(std::env::args_os().collect());
        let settings = settings::Settings::read(&arguments)?;
        let cli = Cli::with_settings(arguments, &settings).map_err(|error| {
            match error.downcast::<clap::Error>() {
                Ok(mistake) => mistake.exit(),
                Err(error) => error,
            }
        })?;
        let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        Ok(Cli { mistaken: environment::mistaken(&Cli::command(), variables), ..cli })
    }

    /// The same of these arguments, with this as the text of the file.
    ///
    /// # Errors
    ///
    /// Those, and mistakes in the arguments.
    pub fn read(arguments: Vec<OsString>, file: &str) -> anyhow::Result<Cli> {
        let settings = settings::Settings::parse("plc-replica.toml".as_ref(), file)?;
        Cli::with_settings(with_command(arguments), &settings)
    }

    fn with_settings(
        arguments: Vec<OsString>,
        settings: &settings::Settings,
    ) -> anyhow::Result<Cli> {
        let matches =
            settings.apply(with_help_of_serve(Cli::command()))?.try_get_matches_from(arguments)?;
        let mut cli = Cli::from_arg_matches(&matches)?;
        if let Some((name, given)) = matches.subcommand()
            && cli.config.print_config
        {
            // As they are declared: what the file changed has moved to the end.
            let declared = Cli::command();
            let declared = declared.find_subcommand(name).unwrap_or(&declared);
            cli.printed = Some(settings.print(declared, given));
        }
        Ok(cli)
    }

    /// Runs the subcommand.
    ///
    /// # Errors
    ///
    /// What a person should read; the process ends with 2 then.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(settings) = self.printed {
            io::stdout().write_all(settings.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        match &self.command {
            Command::Serve(args) => args.start_logging(),
            _ => logging::start_quietly(),
        }
        for said in &self.mistaken {
            tracing::warn!("{said}");
        }
        match self.command {
            Command::Serve(args) => block_on(serve::run(*args)),
            Command::Verify(args) => verify::run(&args),
            Command::Audit(args) => block_on(audit::run(&args)),
            Command::Fsck(args) => block_on(fsck::run(&args)),
            Command::History(args) => block_on(history::run(&args)),
            Command::Refused(args) => block_on(refused::run(&args)),
            Command::Resolve(args) => block_on(resolve::run(&args)),
            Command::Export(args) => block_on(export::run(&args)),
            Command::Snapshot(args) => block_on(snapshot::run(&args)),
            Command::Backup(args) => block_on(backup::run(&args)),
            Command::Import(args) => block_on(import::run(&args)),
            Command::Repair(args) => block_on(repair::run(&args)),
            Command::Renumber(args) => block_on(renumber::run(&args)),
            Command::Migrate(args) => block_on(migrate::run(&args)),
            Command::Completions(args) => completions::run(&args, Cli::command()),
        }
    }
}

/// Has the help that is shown without a command list the settings of `serve`, which is what runs then.
fn with_help_of_serve(command: clap::Command) -> clap::Command {
    // Of a copy: a command whose help was written takes none of the options that all commands have any more.
    let Some(mut serve) = command.find_subcommand("serve").cloned() else { return command };
    let help = serve.render_help().to_string();
    let settings = help.find("Options:").map_or("", |at| &help[at..]);
    let more = "Without a command it runs `serve`, with these options; `plc-replica serve --help` says more about each.";
    command.after_help(format!("{more}\n\n{settings}"))
}

/// The arguments of a process with `serve` before the first flag where no command is named. Only
/// what concerns settings may stand before a command.
fn with_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let mut at = 1;
    let first = loop {
        match arguments.get(at).map(|argument| argument.to_string_lossy()) {
            Some(flag) if flag == settings::FLAG => at += 2,
            Some(flag) if flag == settings::PRINT => at += 1,
            Some(flag) if flag.starts_with(&format!("{}=", settings::FLAG)) => at += 1,
            first => break first,
        }
    };
    let serves = match first.as_deref() {
        // Nothing follows the flag: clap says so.
        None => at == arguments.len(),
        Some("-h" | "--help" | "-V" | "--version") => false,
        Some(first) => first.starts_with('-'),
    };
    if serves {
        arguments.insert(1, "serve".into());
    }
    arguments
}

/// Runs a subcommand on a runtime with all cores.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_is_serve() {
        for (given, completed) in [
            (&[][..], &["serve"][..]),
            (&["--listen", "x"], &["serve", "--listen", "x"]),
            (&["--config", "a.toml"], &["serve", "--config", "a.toml"]),
            (&["--config=a.toml", "--index"], &["serve", "--config=a.toml", "--index"]),
            (&["--config", "a.toml", "fsck"], &["--config", "a.toml", "fsck"]),
            (&["--config=a.toml", "fsck", "--json"], &["--config=a.toml", "fsck", "--json"]),
            (&["--config", "a.toml", "--help"], &["--config", "a.toml", "--help"]),
            (&["--config"], &["--config"]),
            (&["--print-config"], &["serve", "--print-config"]),
            (&["--print-config", "fsck"], &["--print-config", "fsck"]),
            (&["-V"], &["-V"]),
        ] {
            let all = |given: &[&str]| -> Vec<OsString> {
                ["plc-replica"].iter().chain(given).map(OsString::from).collect()
            };
            assert_eq!(with_command(all(given)), all(completed));
        }
    }

    #[test]
    fn the_index_may_be_switched_with_a_space_an_equals_sign_or_alone() {
        for (given, index) in [
            (&["--index"][..], true),
            (&["--index", "off"], false),
            (&["--index=off"], false),
            (&["--index=true"], true),
            (&["--index", "no"], false),
            (&["--index", "--read-through", "on"], true),
        ] {
            let arguments = [&["plc-replica", "serve"], given].concat();
            let matches = Cli::command().get_matches_from(arguments);
            let serve = matches.subcommand_matches("serve").unwrap();
            assert_eq!(serve.get_one::<bool>("index"), Some(&index), "{given:?}");
        }
    }
}
