//! The documents agree with each other and with the program: links lead somewhere, no page is left out, and routes,
//! commands and flags that are named exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use plc_replica::commands::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages of a folder.
fn pages_of(folder: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(root().join(folder)).unwrap();
    let mut pages: Vec<PathBuf> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}

/// All pages for people.
fn pages() -> Vec<PathBuf> {
    ["", "docs", "ops"].into_iter().flat_map(pages_of).collect()
}

/// The lines of a page with whether each stands in a block of code, the marks of blocks left out.
fn lines(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut language = None;
    text.lines().filter_map(move |line| match (line.trim().strip_prefix("```"), language) {
        (Some(of), None) => {
            language = Some(of);
            None
        }
        (Some(_), Some(_)) => {
            language = None;
            None
        }
        (None, _) => Some((line, language)),
    })
}

/// What stands in a page outside of blocks, each piece with whether it is code.
fn pieces(text: &str) -> Vec<(String, bool)> {
    let prose: Vec<&str> =
        lines(text).filter(|(_, language)| language.is_none()).map(|(line, _)| line).collect();
    prose
        .join("\n")
        .split('`')
        .zip([false, true].into_iter().cycle())
        .map(|(piece, is_code)| (piece.to_owned(), is_code))
        .collect()
}

/// Where the links of a page lead.
fn links(text: &str) -> Vec<String> {
    // The text of a link may be code, so that its target begins a piece.
    let prose: String = pieces(text)
        .into_iter()
        .map(|(piece, is_code)| if is_code { "`".to_owned() } else { piece })
        .collect();
    let ends = prose.split("](").skip(1);
    ends.map(|rest| rest.split(')').next().unwrap().to_owned()).collect()
}

/// The anchors of a page, as code hosts and mdBook make them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        lines(text).filter(|(line, language)| language.is_none() && line.starts_with('#'));
    let mut anchors = BTreeSet::new();
    for (line, _) in headings {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        assert!(anchors.insert(anchor.clone()), "two headings are {anchor}");
    }
    anchors
}

#[test]
fn every_link_leads_somewhere() {
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            let (file, anchor) =
                link.split_once('#').map_or((&**link, None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{} links to {link}", page.display());
            if let Some(anchor) = anchor {
                assert!(
                    anchors(&read(&target)).contains(anchor),
                    "{} links to {link}",
                    page.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn the_book_has_every_page() {
    let listed = links(&read(&root().join("docs/SUMMARY.md")));
    for page in pages_of("docs") {
        let name = page.file_name().unwrap().to_str().unwrap();
        let times = listed.iter().filter(|link| *link == name).count();
        assert_eq!(times, usize::from(name != "SUMMARY.md"), "{name}");
    }
}

/// Of what is outside of `docs/` the book has `ops/` alone.
#[test]
fn the_book_has_all_that_its_pages_link_to() {
    for page in pages_of("docs") {
        let links = links(&read(&page));
        let outside =
            links.iter().find(|link| link.starts_with("..") && !link.starts_with("../ops/"));
        assert_eq!(outside, None, "{}", page.display());
    }
}

/// The paths of the router, each as people write it.
fn routes() -> BTreeSet<String> {
    let text = read(&root().join("src/serve/router.rs"));
    let code = text.split("#[cfg(test)]").next().unwrap();
    let paths = code.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/'));
    // DID Resolution also takes its path without a DID, to say that this is none.
    let whole = paths.filter(|path| path.trim_end_matches('/') != "/1.0/identifiers");
    whole.map(|path| path.replace("{*did}", "{did}")).collect()
}

#[test]
fn every_route_is_in_the_reference() {
    let reference = read(&root().join("docs/API.md"));
    let headings = lines(&reference).filter(|(_, language)| language.is_none());
    let described: BTreeSet<String> = headings
        .filter_map(|(line, _)| line.trim_start_matches('#').trim().strip_prefix("`GET "))
        .map(|path| path.trim_end_matches('`').to_owned())
        .collect();
    assert_eq!(described, routes());
}

#[test]
fn every_command_is_in_the_table() {
    let cli = Cli::command();
    let text = read(&root().join("docs/COMMANDS.md"));
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let described: Vec<&str> = rows
        .map(|row| row.split(['`', ' ']).next().unwrap())
        .take(cli.get_subcommands().count())
        .collect();
    let mut commands: Vec<&str> = cli.get_subcommands().map(Command::get_name).collect();
    let mut sorted = described.clone();
    sorted.sort_unstable();
    commands.sort_unstable();
    assert_eq!(sorted, commands);
}

/// The command lines of a page that call the program.
fn calls(text: &str) -> Vec<String> {
    let blocks = lines(text)
        .filter(|(line, language)| {
            language.is_some_and(|of| of != "text") || line.starts_with("    ")
        })
        .map(|(line, _)| line.to_owned());
    let inline = pieces(text)
        .into_iter()
        .filter(|(_, is_code)| *is_code)
        .map(|(piece, _)| piece.replace('\n', " "));
    let mut calls = Vec::new();
    // What a backslash ends goes on in the next line.
    let text = blocks.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    for line in text.lines().map(str::to_owned).chain(inline) {
        let line = line.split(" #").next().unwrap();
        for call in line.split("plc-replica ").skip(1) {
            calls.push(call.split(['|', ';', '>', '<']).next().unwrap().trim().to_owned());
        }
    }
    calls
}

#[test]
fn every_command_that_is_named_exists() {
    let cli = Cli::command();
    let mut checked = 0;
    for page in pages() {
        for call in calls(&read(&page)) {
            let mut words = call.split_whitespace();
            let Some(name) = words.next() else { continue };
            let named = if name.starts_with('-') { "serve" } else { name };
            let Some(command) = cli.find_subcommand(named) else {
                // What stands for any command is written in capital letters.
                let stands_for_any = !name.chars().all(|c| c.is_ascii_lowercase());
                assert!(stands_for_any, "{}: plc-replica {call}", page.display());
                continue;
            };
            for flag in call.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
                let flag = flag.split(['=', ',', '.']).next().unwrap();
                assert!(has(&cli, command, flag), "{}: plc-replica {call}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

fn has(cli: &Command, command: &Command, flag: &str) -> bool {
    let mut all = command.get_arguments().chain(cli.get_arguments());
    ["help", "version", ""].contains(&flag) || all.any(|arg| arg.get_long() == Some(flag))
}
