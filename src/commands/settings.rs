//! Settings in a file, as an alternative to flags and the environment; and what they all come to.
//!
//! A file is TOML with the long names of the flags: `upstream = "https://plc.directory"`. A flag
//! goes before the environment, that before the file. What the file says becomes the default of
//! the flag of that name, of every subcommand that has it, so that there is one description of
//! each setting, and clap checks all three in the same way. A flag without a name in the environment
//! concerns one run, and is no setting.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// Read when neither a flag nor the environment names another, and it is there.
const USUAL_FILE: &str = "plc-replica.toml";
/// The flag that names the file, and its environment name.
pub const FLAG: &str = "--config";
const VARIABLE: &str = "PLC_CONFIG";
/// The flag that prints settings.
pub const PRINT: &str = "--print-config";

/// Where settings come from that are neither flags nor environment.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// File with settings, TOML with the long names of the flags; `plc-replica.toml` in the working
    /// directory when that is there.
    #[arg(id = "config", long = "config", env = VARIABLE, value_name = "FILE", global = true)]
    path: Option<PathBuf>,
    /// Print every setting of the command with where it comes from, passwords hidden, and do
    /// nothing else.
    #[arg(long, global = true)]
    pub print_config: bool,
}

/// What a file sets.
#[derive(Debug, Default)]
pub struct Settings {
    path: PathBuf,
    /// Read once and for as long as the process lives, as clap wants its defaults.
    values: Vec<(String, Vec<&'static str>)>,
}

impl Settings {
    /// Reads the file that the arguments or the environment name, or the usual one; empty when
    /// none is named and that is not there, and where the arguments ask for help: what the file says
    /// is no default of the program, and a mistake in it must not keep anybody from reading.
    pub fn read(arguments: &[OsString]) -> anyhow::Result<Settings> {
        let asks = |argument: &OsString| {
            ["-h", "--help", "-V", "--version"].iter().any(|flag| argument == flag)
        };
        if arguments.iter().any(asks) || arguments.get(1).is_some_and(|first| first == "help") {
            return Ok(Settings::default());
        }
        let named = named(arguments).or_else(|| std::env::var_os(VARIABLE));
        let path = PathBuf::from(named.clone().unwrap_or_else(|| USUAL_FILE.into()));
        match std::fs::read_to_string(&path) {
            Ok(text) => Settings::parse(&path, &text),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Settings::default())
            }
            Err(error) => Err(error).with_context(|| format!("{FLAG} {}", path.display())),
        }
    }

    /// Reads the text of a file; the path is only told where something is wrong.
    pub fn parse(path: &Path, text: &str) -> anyhow::Result<Settings> {
        let place = || path.display().to_string();
        // The error itself would quote the line, which may hold a password.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            anyhow!("{}: line {line}: {}", place(), error.message())
        })?;
        let mut values = Vec::new();
        for (name, value) in table {
            let texts = match value {
                toml::Value::Array(items) => items.into_iter().map(scalar).collect(),
                value => scalar(value).map(|text| vec![text]),
            };
            let Some(texts) = texts else {
                bail!("{}: `{name}` is not a text, a number, true or false, or a list", place());
            };
            values.push((name, texts));
        }
        Ok(Settings { path: path.to_owned(), values })
    }

    /// Makes what the file sets the defaults of the flags of these names.
    ///
    /// # Errors
    ///
    /// What there is not, what concerns one run only, and a value that the setting does not take.
    pub fn apply(&self, command: Command) -> anyhow::Result<Command> {
        let place = self.path.display();
        for (name, values) in &self.values {
            let commands = || command.get_subcommands();
            let mut settings = commands().filter_map(|command| find(command, name)).peekable();
            if settings.peek().is_none() {
                let is_flag = |arg: &Arg| arg.get_long() == Some(name.as_str());
                if commands().any(|command| command.get_arguments().any(is_flag)) {
                    bail!("{place}: `{name}` concerns one run, and is given as the flag --{name}");
                }
                bail!("{place}: there is no setting `{name}`");
            }
            for setting in settings {
                check(setting, name, values).with_context(|| place.to_string())?;
            }
        }
        Ok(command.mut_subcommands(|mut command| {
            for (name, values) in &self.values {
                if let Some(id) = find(&command, name).map(|arg| arg.get_id().clone()) {
                    let values = values.clone();
                    command = command
                        .mut_arg(id, |arg| arg.default_values(values).hide_default_value(true));
                }
            }
            command
        }))
    }

    fn sets(&self, name: &str) -> bool {
        self.values.iter().any(|(set, _)| set == name)
    }

    /// Every setting of a subcommand as a line of such a file, with where it came from and without
    /// passwords.
    pub fn print(&self, command: &Command, matches: &ArgMatches) -> String {
        let mut out = String::new();
        for arg in command.get_arguments() {
            let Some(name) = arg.get_long().filter(|_| is_setting(arg)) else { continue };
            let shown = |value: &OsStr| match arg.is_hide_env_values_set() {
                true => without_password(&value.to_string_lossy()),
                false => value.to_string_lossy().into_owned(),
            };
            let values: Vec<String> = matches
                .try_get_raw(arg.get_id().as_str())
                .ok()
                .flatten()
                .map(|raw| raw.map(shown).collect())
                .unwrap_or_default();
            let origin = match matches.value_source(arg.get_id().as_str()) {
                Some(ValueSource::CommandLine) => "flag".to_owned(),
                Some(ValueSource::EnvVariable) => {
                    let variable = arg.get_env().map(|name| name.to_string_lossy());
                    format!("environment {}", variable.unwrap_or_default())
                }
                _ if self.sets(name) => format!("file {}", self.path.display()),
                _ => "default".to_owned(),
            };
            let line = match &values[..] {
                [] => format!("# {name} is not set"),
                [value] => format!("{name} = {}", quoted(value)),
                values => {
                    let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                    format!("{name} = [{}]", values.join(", "))
                }
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{line:<60} # {origin}");
        }
        out
    }
}

/// The value of `--config` among the arguments.
fn named(arguments: &[OsString]) -> Option<OsString> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == FLAG {
            return arguments.next().cloned();
        }
        let text = argument.to_str().unwrap_or_default();
        if let Some(path) = text.strip_prefix(FLAG).and_then(|rest| rest.strip_prefix('=')) {
            return Some(path.into());
        }
    }
    None
}

/// What a single value is as an argument; none for what cannot be one.
fn scalar(value: toml::Value) -> Option<&'static str> {
    let text = match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        // Settings that are switched say on and off.
        toml::Value::Boolean(on) => if on { "on" } else { "off" }.to_owned(),
        _ => return None,
    };
    Some(text.leak())
}

fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name) && is_setting(arg))
}

/// What has no name in the environment is about one run.
fn is_setting(arg: &Arg) -> bool {
    arg.get_env().is_some() && arg.get_long() != Some("config")
}

/// Whether a setting takes these values, asked as if they were given as its flag.
fn check(setting: &Arg, name: &str, values: &[&str]) -> anyhow::Result<()> {
    let alone = Command::new("plc-replica").no_binary_name(true).arg(setting);
    let given = values.iter().map(|value| format!("--{name}={value}"));
    alone.try_get_matches_from(given).map(drop).map_err(|error| {
        // Beyond an empty line clap says where there is help.
        let said = error.to_string();
        let said = said.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = said.trim_start_matches("error:").split_whitespace().collect();
        anyhow!("{}", words.join(" "))
    })
}

/// A text that may be a URL with its passwords replaced: what stands between the first colon and
/// the last `@`, since a password may hold anything when it was not escaped; and in a query. Of
/// what is no URL, as `host=… password=…` or `postgres:/…`, only the beginning is left.
pub fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text.find([':', '=']) {
            Some(at) => format!("{}…", &text[..=at]),
            None => text.to_owned(),
        };
    };
    let mut hidden = rest.to_owned();
    if let Some((user, host)) = rest.rsplit_once('@')
        && let Some((user, _)) = user.split_once(':')
    {
        hidden = format!("{user}:***@{host}");
    }
    if let Some((before, query)) = hidden.split_once('?') {
        let pairs: Vec<String> = query.split('&').map(pair_without_password).collect();
        hidden = format!("{before}?{}", pairs.join("&"));
    }
    format!("{scheme}://{hidden}")
}

fn pair_without_password(pair: &str) -> String {
    match pair.split_once('=') {
        Some((name, _)) if name.to_lowercase().contains("password") => format!("{name}=***"),
        _ => pair.to_owned(),
    }
}

/// A value in TOML: a number as it is, anything else as a text.
fn quoted(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(number) if number.to_string() == value => value.to_owned(),
        _ => toml::Value::from(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let serve = Command::new("serve")
            .arg(
                Arg::new("database")
                    .long("database")
                    .env("PLC_TEST_DATABASE")
                    .hide_env_values(true)
                    .default_value("sqlite://plc.db"),
            )
            .arg(
                Arg::new("rate")
                    .long("rate-limit")
                    .env("PLC_TEST_RATE")
                    .value_parser(clap::value_parser!(u32))
                    .default_value("0"),
            )
            .arg(
                Arg::new("proxies")
                    .long("trusted-proxies")
                    .env("PLC_TEST_PROXIES")
                    .action(clap::ArgAction::Append)
                    .value_delimiter(','),
            );
        let audit = Command::new("audit").arg(Arg::new("sample").long("sample"));
        Command::new("plc-replica").subcommand(serve).subcommand(audit)
    }

    fn parsed(text: &str, arguments: &[&str]) -> (Settings, ArgMatches) {
        let settings = Settings::parse(Path::new("a.toml"), text).unwrap();
        let matches = settings.apply(command()).unwrap();
        let matches = matches.get_matches_from([&["plc-replica", "serve"], arguments].concat());
        let serve = matches.subcommand_matches("serve").unwrap().clone();
        (settings, serve)
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let text = "rate-limit = 60\ntrusted-proxies = [\"127.0.0.1\", \"::1\"]";
        let (settings, matches) = parsed(text, &[]);
        assert_eq!(matches.get_one::<u32>("rate"), Some(&60));
        let serve = command();
        let serve = serve.find_subcommand("serve").unwrap();
        let printed = settings.print(serve, &matches);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(lines[0].starts_with("database = \"sqlite://plc.db\" "), "{printed}");
        assert!(lines[0].ends_with("# default"), "{printed}");
        assert!(lines[1].starts_with("rate-limit = 60 "), "{printed}");
        assert!(lines[1].ends_with("# file a.toml"), "{printed}");
        assert!(lines[2].starts_with("trusted-proxies = [\"127.0.0.1\", \"::1\"]"), "{printed}");
        // What is printed can be read again.
        Settings::parse(Path::new("b.toml"), &printed).unwrap();

        let (settings, matches) = parsed(text, &["--rate-limit", "7"]);
        assert!(settings.print(serve, &matches).contains("rate-limit = 7"));
        assert!(settings.print(serve, &matches).contains("# flag"));
    }

    #[test]
    fn a_name_that_is_no_setting_is_refused() {
        for text in ["nonsense = 1", "help = true", "config = \"x\""] {
            let settings = Settings::parse(Path::new("a.toml"), text).unwrap();
            let error = settings.apply(command()).unwrap_err().to_string();
            assert!(error.starts_with("a.toml: there is no setting `"), "{error}");
        }
        let settings = Settings::parse(Path::new("a.toml"), "sample = 3").unwrap();
        let error = settings.apply(command()).unwrap_err().to_string();
        assert_eq!(error, "a.toml: `sample` concerns one run, and is given as the flag --sample");
        assert!(Settings::parse(Path::new("a.toml"), "[table]\nx = 1").is_err());
        assert!(Settings::parse(Path::new("a.toml"), "not toml").is_err());
    }

    #[test]
    fn a_value_that_is_not_taken_is_told_with_the_file() {
        for (text, said) in [
            ("rate-limit = \"many\"", "a.toml: invalid value 'many' for '--rate-limit <rate>'"),
            ("database = [\"a\", \"b\"]", "a.toml: the argument '--database <database>' cannot"),
        ] {
            let settings = Settings::parse(Path::new("a.toml"), text).unwrap();
            let error = format!("{:#}", settings.apply(command()).unwrap_err());
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn no_password_of_the_file_is_shown() {
        let text = "database = \"postgres://plc:hunter2@db/plc\"";
        let (settings, matches) = parsed(text, &[]);
        let serve = command();
        let printed = settings.print(serve.find_subcommand("serve").unwrap(), &matches);
        assert!(printed.contains("postgres://plc:***@db/plc"), "{printed}");
        let mut applied = settings.apply(command()).unwrap();
        let help = applied.find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        assert!(help.contains("--database") && !help.contains("hunter2"), "{help}");
        let broken = format!("rate-limit = 1\n{} x", text);
        let error = format!("{:?}", Settings::parse(Path::new("a.toml"), &broken).unwrap_err());
        assert!(error.starts_with("a.toml: line 2: ") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn help_needs_no_file() {
        for asked in ["-h", "--help", "-V", "--version"] {
            let arguments = ["plc-replica", "serve", "--config", "/nonexistent", asked];
            Settings::read(&arguments.map(OsString::from)).unwrap();
        }
    }

    #[test]
    fn passwords_are_hidden() {
        for (given, shown) in [
            ("sqlite://plc.db", "sqlite://plc.db"),
            ("postgres://plc@host/plc", "postgres://plc@host/plc"),
            ("postgres://plc:secret@host/plc", "postgres://plc:***@host/plc"),
            ("postgres://plc:se/cr?et@host:5432/plc", "postgres://plc:***@host:5432/plc"),
            ("postgres://plc:a@b@host/plc", "postgres://plc:***@host/plc"),
            (
                "postgres://host/plc?user=a&password=secret&x=1",
                "postgres://host/plc?user=a&password=***&x=1",
            ),
            (
                "postgres://host/plc?sslpassword=a&password=b",
                "postgres://host/plc?sslpassword=***&password=***",
            ),
            ("postgres:/plc:secret@host/plc", "postgres:…"),
            ("host=db password=secret", "host=…"),
            ("plc.db", "plc.db"),
        ] {
            assert_eq!(without_password(given), shown);
        }
    }

    #[test]
    fn the_file_is_found_among_the_arguments() {
        let of = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            named(&arguments).map(|path| path.into_string().unwrap())
        };
        assert_eq!(of(&["serve", "--config", "a.toml"]).as_deref(), Some("a.toml"));
        assert_eq!(of(&["--config=b.toml"]).as_deref(), Some("b.toml"));
        assert_eq!(of(&["serve", "--configure"]), None);
    }
}
