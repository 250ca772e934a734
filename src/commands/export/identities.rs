//! A list of identities.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use ahash::AHashSet;
use anyhow::{Context, bail};
use did_plc::Did;

use crate::escape::printable;

/// Bytes of a line at most: nothing near it is a DID.
const MAX_LINE: u64 = 4_096;
/// Bad lines that are named.
const NAMED: usize = 10;

/// Reads a file, or standard input for `-`, with a DID on each line; each is in the list once, at its first place. Empty
/// lines are passed over. A DID takes some 50 bytes of memory.
///
/// # Errors
///
/// With the lines that are no DID.
pub fn read(path: &Path) -> anyhow::Result<Vec<Did>> {
    if path == Path::new("-") {
        return read_lines("standard input", io::stdin().lock());
    }
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("--did {name}"))?;
    read_lines(&name, BufReader::new(file))
}

fn read_lines(name: &str, mut text: impl BufRead) -> anyhow::Result<Vec<Did>> {
    let (mut dids, mut known): (Vec<Did>, AHashSet<Did>) = Default::default();
    let (mut bad, mut more) = (Vec::new(), 0_usize);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = (&mut text).take(MAX_LINE).read_until(b'\n', &mut line);
        if read.with_context(|| format!("--did {name}"))? == 0 {
            break;
        }
        let stated = did_plc::entry::without_mark(&line).trim_ascii();
        match str::from_utf8(stated).ok().and_then(|stated| stated.parse().ok()) {
            Some(did) => dids.extend(known.insert(did).then_some(did)),
            None if stated.is_empty() => {}
            None if bad.len() < NAMED => {
                let stated: String = String::from_utf8_lossy(stated).chars().take(60).collect();
                bad.push(format!("line {number}: `{}`", printable(&stated)));
            }
            None => more += 1,
        }
    }
    if bad.is_empty() {
        return Ok(dids);
    }
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    bail!(
        "--did {name}: not did:plc: with 24 of a to z and 2 to 7 behind it: {}{more}; nothing was written",
        bad.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_named_and_each_identity_is_taken_once() {
        let (one, two) = ("did:plc:ewvi7nxzyoun6zhxrhs64oiz", "did:plc:a4dqobyha4dqobyha4dqobyh");
        let text = format!("\u{feff}{two}\r\n\n  {one}\n{two}\n{one}");
        let read = read_lines("list", text.as_bytes()).unwrap();
        assert_eq!(read, [two.parse().unwrap(), one.parse().unwrap()]);
        assert_eq!(read_lines("list", &b""[..]).unwrap(), []);

        let text = format!("{one}\ndid:web:a.example\n\u{1b}[2J\n{}\n", "x\n".repeat(12));
        let error = read_lines("list", text.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("line 2: `did:web:a.example`, line 3: `\\u{1b}[2J`, line 4"),
            "{error}"
        );
        assert!(error.contains("line 11: `x`, and 4 more;"), "{error}");
    }
}
