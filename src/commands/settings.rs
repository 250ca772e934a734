//! Settings in a file, as an alternative to flags and the environment; and what they all come to.
//!
//! A file is TOML with the long names of the flags: `upstream = "https://plc.directory"`. A flag
//! goes before the environment, that before the file. What the file says becomes the default of
//! the flag of that name, of every subcommand that has it, so that there is one description of
//! each setting, and clap checks all three in the same way.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// Read when neither a flag nor the environment names another, and it is there.
const USUAL_FILE: &str = "plc-replica.toml";
/// The flag that names the file, and its environment name.
const FLAG: &str = "--config";
const VARIABLE: &str = "PLC_CONFIG";

/// Where settings come from that are neither flags nor environment.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// File with settings, TOML with the long names of the flags; `plc-replica.toml` in the working
    /// directory when that is there.
    #[arg(id = "config", long = "config", env = VARIABLE, value_name = "FILE", global = true)]
    path: Option<PathBuf>,
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
    /// none is named and that is not there.
    pub fn read(arguments: &[OsString]) -> anyhow::Result<Settings> {
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

    fn parse(path: &Path, text: &str) -> anyhow::Result<Settings> {
        let place = || path.display().to_string();
        let table: toml::Table = text.parse().with_context(place)?;
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
    pub fn apply(&self, command: Command) -> anyhow::Result<Command> {
        for (name, _) in &self.values {
            if !command.get_subcommands().any(|command| find(command, name).is_some()) {
                bail!("{}: there is no setting `{name}`", self.path.display());
            }
        }
        Ok(command.mut_subcommands(|mut command| {
            for (name, values) in &self.values {
                if let Some(id) = find(&command, name).map(|arg| arg.get_id().clone()) {
                    let values = values.clone();
                    command = command.mut_arg(id, |arg| arg.default_values(values));
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
            let Some(name) = arg.get_long().filter(|name| is_setting(name)) else { continue };
            let values: Vec<String> = matches
                .try_get_raw(arg.get_id().as_str())
                .ok()
                .flatten()
                .map(|raw| raw.map(|value| without_password(&value.to_string_lossy())).collect())
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
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name)
            && is_setting(name)
            && arg.get_action().takes_values()
            && !arg.is_required_set()
    })
}

/// What is about one run is no setting.
fn is_setting(name: &str) -> bool {
    !matches!(name, "help" | "version" | "config" | "print-config")
}

/// A text with the password of a URL in it replaced: what stands between the first colon and the
/// last `@`, since a password may hold anything when it was not escaped; and in a query.
pub fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let mut hidden = rest.to_owned();
    if let Some((user, host)) = rest.rsplit_once('@')
        && let Some((user, _)) = user.split_once(':')
    {
        hidden = format!("{user}:***@{host}");
    }
    if let Some((before, after)) = hidden.split_once("password=") {
        let end = after.find('&').unwrap_or(after.len());
        hidden = format!("{before}password=***{}", &after[end..]);
    }
    format!("{scheme}://{hidden}")
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
            .arg(Arg::new("database").long("database").default_value("sqlite://plc.db"))
            .arg(Arg::new("rate").long("rate-limit").env("PLC_TEST_RATE").default_value("0"))
            .arg(Arg::new("proxies").long("trusted-proxies").value_delimiter(',').num_args(1..));
        Command::new("plc-replica").subcommand(serve)
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
        assert_eq!(matches.get_one::<String>("rate").unwrap(), "60");
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
            assert!(settings.apply(command()).is_err(), "{text}");
        }
        assert!(Settings::parse(Path::new("a.toml"), "[table]\nx = 1").is_err());
        assert!(Settings::parse(Path::new("a.toml"), "not toml").is_err());
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
            ("127.0.0.1:2582", "127.0.0.1:2582"),
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
