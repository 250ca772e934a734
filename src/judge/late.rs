//! Lines of identities that are judged as a whole, wherever in a log they stand: put in as the log is read, and
//! given back identity by identity.

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::temporary::{self, SpillError};
use did_plc::Did;

/// Memory of the temporary database, in kB.
const CACHE: u32 = 32 << 10;
/// Bytes of lines that are given back at once, about: enough to keep all cores busy.
const GROUP: usize = 4 << 20;

const SCHEMA: &str =
    "CREATE TABLE lines (did BLOB NOT NULL, number INTEGER NOT NULL, line BLOB NOT NULL)";

/// Lines with their numbers, in a temporary database.
#[derive(Debug)]
pub struct LateLines {
    connection: Connection,
}

impl LateLines {
    /// None yet.
    ///
    /// # Errors
    ///
    /// When the temporary database fails, here and below.
    pub fn new() -> Result<LateLines, SpillError> {
        Ok(LateLines { connection: temporary::open(SCHEMA, CACHE)? })
    }

    /// Adds lines, each with its identity and its number.
    pub fn add<'a>(
        &mut self,
        lines: impl IntoIterator<Item = (Did, u64, &'a Bytes)>,
    ) -> Result<(), SpillError> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO lines (did, number, line) VALUES (?1, ?2, ?3)")?;
            for (did, number, line) in lines {
                insert.execute(params![did.as_bytes(), number.cast_signed(), &line[..]])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Gives back all lines of some identities at a time, those of one identity together and in the order of
    /// their numbers.
    pub fn for_each_group<E: From<SpillError>>(
        &self,
        mut take: impl FnMut(&[(u64, Bytes)]) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error: rusqlite::Error| E::from(SpillError::from(error));
        let mut select = self
            .connection
            .prepare("SELECT did, number, line FROM lines ORDER BY did, number")
            .map_err(failed)?;
        let mut rows = select.query([]).map_err(failed)?;
        let (mut group, mut bytes) = (Vec::new(), 0);
        let mut last: Option<[u8; 15]> = None;
        while let Some(row) = rows.next().map_err(failed)? {
            let did = row.get(0).map_err(failed)?;
            let number: i64 = row.get(1).map_err(failed)?;
            let line: Vec<u8> = row.get(2).map_err(failed)?;
            if bytes >= GROUP && last != Some(did) {
                take(&group)?;
                group.clear();
                bytes = 0;
            }
            last = Some(did);
            bytes += line.len();
            group.push((number.cast_unsigned(), Bytes::from(line)));
        }
        if group.is_empty() { Ok(()) } else { take(&group) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(n: u8) -> Did {
        Did::from_bytes([n; 15])
    }

    #[test]
    fn the_lines_of_an_identity_come_back_together() {
        let mut late = LateLines::new().unwrap();
        let line = Bytes::from(vec![b'x'; GROUP / 8]);
        // Each of ten identities has lines at both ends of the log; more than two groups in all.
        let numbers = |n: u8| [u64::from(n), 100 - u64::from(n)];
        for n in (0..10).rev() {
            late.add([(did(n), numbers(n)[1], &line)]).unwrap();
        }
        late.add((0..10).map(|n| (did(n), numbers(n)[0], &line))).unwrap();
        let mut groups: Vec<Vec<u64>> = Vec::new();
        late.for_each_group(|group| {
            groups.push(group.iter().map(|(number, _)| *number).collect());
            Ok::<(), SpillError>(())
        })
        .unwrap();
        assert!(groups.len() > 2 && groups.iter().all(|group| group.len() % 2 == 0), "{groups:?}");
        assert_eq!(groups.concat(), (0..10).flat_map(numbers).collect::<Vec<_>>());
    }
}
