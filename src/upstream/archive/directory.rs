//! Directories of files, and patterns of file names.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ArchiveError;
use super::volume::Volume;
use crate::upstream::DumpError;

/// The files of a directory in the natural order of their names, hidden ones and directories apart.
pub fn files(directory: &Path) -> Result<Vec<Volume>, ArchiveError> {
    let name = directory.display().to_string();
    let failed = |source: io::Error| DumpError::Open { name: name.clone(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // A link is what it leads to.
        let is_file = fs::metadata(entry.path()).is_ok_and(|about| about.is_file());
        if is_file && !hidden {
            paths.push(entry.path());
        }
    }
    if paths.is_empty() {
        return Err(ArchiveError::Empty { name });
    }
    Ok(in_natural_order(paths).map(Volume::of_file).collect())
}

/// The files and directories that a pattern fits, in the natural order of their names.
pub fn matching(pattern: &str) -> Result<Vec<PathBuf>, ArchiveError> {
    let wrong = |reason: String| ArchiveError::Pattern { pattern: pattern.to_owned(), reason };
    let found = glob::glob(pattern).map_err(|error| wrong(error.to_string()))?;
    let paths =
        found.collect::<Result<Vec<PathBuf>, _>>().map_err(|error| wrong(error.to_string()))?;
    if paths.is_empty() {
        return Err(wrong("no file is of such a name".to_owned()));
    }
    Ok(in_natural_order(paths).collect())
}

/// Whether a name is a pattern of names.
pub fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

fn in_natural_order(mut paths: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
    paths.sort_by(|one, other| natural(&one.to_string_lossy(), &other.to_string_lossy()));
    paths.into_iter()
}

/// Compares texts as people do: `export-2` stands before `export-10`.
fn natural(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one, other);
    loop {
        let (left, right) = (run(&mut one), run(&mut other));
        if left.is_empty() || right.is_empty() {
            return left.len().cmp(&right.len());
        }
        let order = if is_number(left) && is_number(right) {
            let (number, than) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
            (number.len(), number, left).cmp(&(than.len(), than, right))
        } else {
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes a run of digits, or of anything else, off the beginning of a text; nothing at its end.
fn run<'a>(text: &mut &'a str) -> &'a str {
    let digits = is_number(text);
    let end = text.find(|character: char| character.is_ascii_digit() != digits);
    let (run, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    run
}

/// Whether a text begins with a digit.
fn is_number(text: &str) -> bool {
    text.starts_with(|character: char| character.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names =
            ["b-10.jsonl", "b-2.jsonl", "b-02.jsonl", "a", "b", "b-2", "10", "9", "é1", ""];
        names.sort_by(|one, other| natural(one, other));
        assert_eq!(
            names,
            ["", "9", "10", "a", "b", "b-02.jsonl", "b-2", "b-2.jsonl", "b-10.jsonl", "é1"]
        );
    }

    #[test]
    fn only_files_are_taken_and_hidden_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name);
        assert!(matches!(files(folder.path()), Err(ArchiveError::Empty { .. })));
        for file in ["10.jsonl", "9.jsonl", ".index"] {
            fs::write(name(file), "").unwrap();
        }
        fs::create_dir(name("1.jsonl")).unwrap();
        let names: Vec<String> =
            files(folder.path()).unwrap().into_iter().map(|volume| volume.name).collect();
        let expected = ["9.jsonl", "10.jsonl"].map(|file| name(file).display().to_string());
        assert_eq!(names, expected);
        let pattern = name("*.jsonl").display().to_string();
        assert_eq!(matching(&pattern).unwrap().len(), 3);
        let error = matching(&name("*.gz").display().to_string()).unwrap_err();
        assert!(error.to_string().contains("no file is of such a name"), "{error}");
    }
}
