//! docs/SETTINGS.md says what the command line says. Its tables are written anew with PLC_WRITE_SETTINGS set.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use plc_replica::commands::Cli;

/// Ends what is written by hand.
const BEGINNING: &str =
    "<!-- What follows is written by `PLC_WRITE_SETTINGS=1 cargo test --test it settings`. -->\n";

#[test]
fn the_settings_are_written_down() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SETTINGS.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (by_hand, _) = text.split_once(BEGINNING).expect("where the tables begin");
    let current = format!("{by_hand}{BEGINNING}{}", reference(&Cli::command()));
    if std::env::var_os("PLC_WRITE_SETTINGS").is_some() {
        return std::fs::write(file, current).unwrap();
    }
    assert!(text == current, "docs/SETTINGS.md is not current: write it with PLC_WRITE_SETTINGS=1");
}

/// A section for each command. Of what a command takes as `serve` does, only the names.
fn reference(cli: &Command) -> String {
    let serve = cli.find_subcommand("serve").unwrap();
    let mut out = String::new();
    for command in cli.get_subcommands() {
        let is_serve = command.get_name() == "serve";
        let (shared, own): (Vec<&Arg>, Vec<&Arg>) =
            shown(command).partition(|arg| !is_serve && shown(serve).any(|of| is_same(of, arg)));
        writeln!(out, "\n## {}\n", command.get_name()).unwrap();
        writeln!(out, "{}", sentence(command.get_about().unwrap())).unwrap();
        // In the order in which `--help` has them.
        let mut headings: Vec<Option<&str>> =
            own.iter().map(|arg| arg.get_help_heading()).collect();
        headings.dedup();
        for heading in headings {
            if let Some(heading) = heading {
                writeln!(out, "\n### {heading}").unwrap();
            }
            out.push_str("\n| flag | environment | default | |\n| --- | --- | --- | --- |\n");
            let of_it = own.iter().filter(|arg| arg.get_help_heading() == heading);
            of_it.for_each(|arg| out.push_str(&row(arg)));
        }
        let names: Vec<String> = shared.iter().map(|arg| format!("`{}`", name(arg))).collect();
        if !names.is_empty() {
            writeln!(out, "\nAs [`serve`](#serve): {}.", names.join(", ")).unwrap();
        }
    }
    writeln!(out, "\n## Of every command\n").unwrap();
    out.push_str("| flag | environment | default | |\n| --- | --- | --- | --- |\n");
    cli.get_arguments().filter(|arg| arg.is_global_set()).for_each(|arg| out.push_str(&row(arg)));
    out
}

/// All that a command takes but what every one does.
fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_global_set() && !arg.is_hide_set())
}

fn is_same(of_serve: &Arg, arg: &Arg) -> bool {
    row(of_serve) == row(arg)
}

/// `--flag`, or what stands without one.
fn name(arg: &Arg) -> String {
    match arg.get_long() {
        Some(long) => format!("--{long}"),
        None => value(arg),
    }
}

/// What is given to it, as `--help` names that.
fn value(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let many = arg.get_action().takes_values()
        && arg.get_long().is_none()
        && arg.get_num_args().is_some_and(|number| number.max_values() > 1);
    let value = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if many { value + "…" } else { value }
}

fn row(arg: &Arg) -> String {
    let code = |text: String| if text.is_empty() { text } else { format!("`{}`", cell(&text)) };
    let flag = match arg.get_long() {
        Some(_) if arg.get_action().takes_values() => format!("{} {}", name(arg), value(arg)),
        _ => name(arg),
    };
    let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
    let default = match arg.get_action().takes_values() {
        true => defaults.collect::<Vec<_>>().join(","),
        false => String::new(),
    };
    let help = arg.get_long_help().or(arg.get_help()).unwrap();
    format!(
        "| {} | {} | {} | {} |\n",
        code(flag),
        code(variable.unwrap_or_default()),
        code(default),
        cell(&sentence(help))
    )
}

/// A text of the command line, which leaves out the last full stop.
fn sentence(text: &clap::builder::StyledStr) -> String {
    let text = text.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    if text.ends_with('.') { text } else { text + "." }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
