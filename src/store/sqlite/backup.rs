//! A copy of the database that is made while others write to it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::connection::{check_existing, open_reader};
use super::error::in_file;
use crate::store::StoreError;

/// Pages that are copied before progress is told: 64 MB.
const PAGES: i32 = 16_384;
/// How long to wait for a lock that another process holds for a moment.
const PAUSE: Duration = Duration::from_millis(50);

/// Copies a database into a file that is not there yet, by SQLite's online backup, and returns its bytes. The copy is the
/// database as it was at the beginning, whatever is written meanwhile; that stays in the write-ahead log until the copy
/// has ended. `progress` is told the bytes that are copied, and those of all.
///
/// The copy gets its name when it is complete and on the disk. A crash leaves a file beside it whose name ends in
/// `.part`, which the next attempt replaces.
///
/// # Errors
///
/// [`StoreError::Unusable`] when there is no database of ours, or something has the name already;
/// [`StoreError::Unavailable`] when the copy cannot be written; those of the database.
pub fn back_up(
    path: &Path,
    to: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<u64, StoreError> {
    check_existing(path)?;
    if to.symlink_metadata().is_ok() {
        return Err(StoreError::Unusable(format!(
            "{} is there already: a backup is written into a new file",
            to.display()
        )));
    }
    let part = part_of(to);
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(unwritable(to, &error));
        }
        _ => {}
    }
    let bytes = copy(path, &part, &mut progress)?;
    let named = File::open(&part)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&part, to))
        .and_then(|()| File::open(folder_of(to)).and_then(|folder| folder.sync_all()));
    named.map_err(|error| unwritable(to, &error))?;
    Ok(bytes)
}

fn copy(path: &Path, part: &Path, progress: &mut impl FnMut(u64, u64)) -> Result<u64, StoreError> {
    let of_source = |error: rusqlite::Error| in_file(path, error.into());
    let of_copy = |error: rusqlite::Error| unwritable(part, &error);
    let source = open_reader(path)?;
    // One view of the database for all of the copy: otherwise each commit of another process would begin it anew.
    source.execute_batch("BEGIN").map_err(of_source)?;
    let page: i64 = source
        .query_row("SELECT page_size FROM pragma_page_size", [], |row| row.get(0))
        .map_err(of_source)?;
    source.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(of_source)?;
    let mut copy = Connection::open(part).map_err(of_copy)?;
    // It is complete or replaced: nothing of it is ever rolled back, and it is synchronised in the end.
    copy.pragma_update(None, "journal_mode", "off").map_err(of_copy)?;
    copy.pragma_update(None, "synchronous", "off").map_err(of_copy)?;
    let backup = Backup::new(&source, &mut copy).map_err(of_copy)?;
    loop {
        let step = backup.step(PAGES).map_err(of_copy)?;
        let pages = backup.progress();
        let bytes = |pages: i32| (page * i64::from(pages)).unsigned_abs();
        let (all, left) = (bytes(pages.pagecount), bytes(pages.remaining));
        progress(all - left, all);
        match step {
            StepResult::Done => return Ok(all),
            StepResult::More => {}
            _ => std::thread::sleep(PAUSE),
        }
    }
}

/// What the copy is called until it is complete.
fn part_of(to: &Path) -> PathBuf {
    let mut name = OsString::from(to);
    name.push(".part");
    name.into()
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn unwritable(to: &Path, error: &impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("the backup cannot be written to {}: {error}", to.display()))
}
