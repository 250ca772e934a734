//! How a process learns that another one has committed: SQLite counts, for each connection, what others have written.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::{Instant, sleep};

use super::{Sqlite, connection};
use crate::blocking;
use crate::store::StoreError;

/// How often is asked, which takes some microseconds: so that a commit is seen well within 100 ms.
const ASK: Duration = Duration::from_millis(50);
/// After so long it is looked also where nothing seems to be new.
const BENEATH: Duration = Duration::from_secs(1);

/// Tells when another process may have committed something.
#[derive(Debug)]
pub struct Changes {
    path: PathBuf,
    /// The connection that asks, and what it was told last.
    asking: Option<(Connection, i64)>,
}

impl Sqlite {
    /// See [`crate::store::Store::changes`].
    pub fn changes(&self) -> Changes {
        Changes { path: self.shared.path.clone(), asking: None }
    }
}

impl Changes {
    /// See [`crate::store::Changes::next`].
    pub async fn next(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < BENEATH {
            sleep(ASK).await;
            // Where it is dropped or fails meanwhile, the next connection has everything to be looked at.
            let (path, asking) = (self.path.clone(), self.asking.take());
            let before = asking.as_ref().map(|(_, version)| *version);
            let asked = blocking::run("asking for commits", move || ask(path, asking)).await;
            self.asking = asked.ok();
            let now = self.asking.as_ref().map(|(_, version)| *version);
            if now.is_none() || now != before {
                return true;
            }
        }
        false
    }
}

fn ask(path: PathBuf, asking: Option<(Connection, i64)>) -> Result<(Connection, i64), StoreError> {
    let connection = match asking {
        Some((connection, _)) => connection,
        None => connection::open_reader(&path)?,
    };
    let version = connection.pragma_query_value(None, "data_version", |row| row.get(0))?;
    Ok((connection, version))
}
