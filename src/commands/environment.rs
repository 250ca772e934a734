//! Settings in the environment whose names are mistaken.

use std::collections::BTreeSet;

use clap::Command;

/// What the names of settings begin with.
const PREFIX: &str = "PLC_";
/// From where on a name is likely to be meant, of 0 to 1.
const ALIKE: f64 = 0.9;

/// A sentence about each variable that looks like a setting and is none.
pub fn mistaken(command: &Command, variables: impl Iterator<Item = String>) -> Vec<String> {
    let arguments = command.get_subcommands().chain([command]).flat_map(Command::get_arguments);
    let known: BTreeSet<&str> =
        arguments.filter_map(|argument| argument.get_env()?.to_str()).collect();
    let unknown = variables
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name.as_str()))
        .collect::<BTreeSet<_>>();
    unknown.iter().map(|name| sentence(name, &known)).collect()
}

fn sentence(name: &str, known: &BTreeSet<&str>) -> String {
    let likeness = |setting: &&str| strsim::jaro(name, setting);
    let nearest =
        known.iter().copied().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    match nearest.filter(|setting| likeness(setting) >= ALIKE) {
        Some(setting) => {
            format!("{name} in the environment is no setting; did you mean {setting}?")
        }
        None => format!("{name} in the environment is no setting"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn what_is_meant_is_named() {
        let command = super::super::Cli::command();
        let said = |name: &str| mistaken(&command, [name.to_owned()].into_iter());
        let meant = |name: &str, setting: &str| {
            vec![format!("{name} in the environment is no setting; did you mean {setting}?")]
        };
        assert_eq!(said("PLC_UPSTREM"), meant("PLC_UPSTREM", "PLC_UPSTREAM"));
        assert_eq!(said("PLC_LISTENS"), meant("PLC_LISTENS", "PLC_LISTEN"));
        assert_eq!(said("PLC_PORT"), ["PLC_PORT in the environment is no setting"]);
        for name in ["PLC_UPSTREAM", "PLC_CONFIG", "PLCUPSTREAM", "DATABASE_URL", "PATH"] {
            assert!(said(name).is_empty(), "{name}");
        }
    }
}
