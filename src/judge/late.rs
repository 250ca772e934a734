//! Lines of identities that are judged as a whole, wherever in a log they stand: put in as the log is read, and
//! given back identity by identity.

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::decode::decode;
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
    max_identity: usize,
}

/// What is given back at once.
#[derive(Debug, PartialEq, Eq)]
pub enum GatheredLines<'a> {
    /// All lines of some identities, those of one identity together and in the order of their numbers.
    Whole(&'a [(u64, Bytes)]),
    /// Of an identity that has more bytes of lines than may be in memory.
    TooMany {
        /// The identity.
        did: Did,
        /// The number of its first line.
        first: u64,
        /// How many of its lines carry an operation.
        lines: u64,
    },
}

impl LateLines {
    /// Bytes of lines of one identity that are given back, at most: some 150,000 operations. Judging them takes a few
    /// times as much memory.
    pub const MAX_IDENTITY: usize = 128 << 20;

    /// None yet.
    ///
    /// # Errors
    ///
    /// When the temporary database fails, here and below.
    pub fn new() -> Result<LateLines, SpillError> {
        LateLines::with_identities_up_to(LateLines::MAX_IDENTITY)
    }

    /// The same with another bound of the bytes of one identity.
    pub(crate) fn with_identities_up_to(max_identity: usize) -> Result<LateLines, SpillError> {
        Ok(LateLines { connection: temporary::open(SCHEMA, CACHE)?, max_identity })
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

    /// Gives back all lines of some identities at a time.
    pub fn for_each_group<E: From<SpillError>>(
        &self,
        mut take: impl FnMut(GatheredLines<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error: rusqlite::Error| E::from(SpillError::from(error));
        let mut select = self
            .connection
            .prepare("SELECT did, number, line FROM lines ORDER BY did, number")
            .map_err(failed)?;
        let mut rows = select.query([]).map_err(failed)?;
        let mut group: Vec<(u64, Bytes)> = Vec::new();
        let mut bytes = 0;
        let mut last: Option<LastIdentity> = None;
        while let Some(row) = rows.next().map_err(failed)? {
            let did = Did::from_bytes(row.get(0).map_err(failed)?);
            let number: i64 = row.get(1).map_err(failed)?;
            let line: Vec<u8> = row.get(2).map_err(failed)?;
            let (number, line) = (number.cast_unsigned(), Bytes::from(line));
            if last.as_ref().is_none_or(|last| last.did != did) {
                if let Some(told) = last.and_then(LastIdentity::told) {
                    take(told)?;
                }
                if bytes >= GROUP {
                    take(GatheredLines::Whole(&group))?;
                    group.clear();
                    bytes = 0;
                }
                let begin = group.len();
                last = Some(LastIdentity { did, first: number, begin, bytes: 0, left_out: None });
            }
            let Some(identity) = &mut last else { continue };
            identity.bytes += line.len();
            bytes += line.len();
            group.push((number, line));
            if identity.left_out.is_some() || identity.bytes > self.max_identity {
                let left_out: Vec<Bytes> =
                    group.drain(identity.begin..).map(|(_, line)| line).collect();
                bytes -= left_out.iter().map(Bytes::len).sum::<usize>();
                let operations = decode_in_parts(&left_out);
                *identity.left_out.get_or_insert(0) += operations;
            }
        }
        if let Some(told) = last.and_then(LastIdentity::told) {
            take(told)?;
        }
        if group.is_empty() { Ok(()) } else { take(GatheredLines::Whole(&group)) }
    }

    /// Gives back line by line, in the order of the numbers, whose they are.
    pub fn for_each_line<E: From<SpillError>>(
        &self,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error: rusqlite::Error| E::from(SpillError::from(error));
        let mut select = self
            .connection
            .prepare("SELECT number, line FROM lines ORDER BY number")
            .map_err(failed)?;
        let mut rows = select.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let number: i64 = row.get(0).map_err(failed)?;
            let line: Vec<u8> = row.get(1).map_err(failed)?;
            take(number.cast_unsigned(), &line)?;
        }
        Ok(())
    }
}

/// The identity whose lines are being put together.
struct LastIdentity {
    did: Did,
    /// The number of its first line.
    first: u64,
    /// Where it begins in the group.
    begin: usize,
    bytes: usize,
    /// How many operations of it were left out, when it has too many lines.
    left_out: Option<u64>,
}

impl LastIdentity {
    /// What is to be told of it where it was left out.
    fn told(self) -> Option<GatheredLines<'static>> {
        let LastIdentity { did, first, left_out, .. } = self;
        left_out.map(|lines| GatheredLines::TooMany { did, first, lines })
    }
}

/// How many of these lines carry an operation, with no more than a few of them decoded at a time.
fn decode_in_parts(lines: &[Bytes]) -> u64 {
    let decoded = |part: &[Bytes]| decode(part).iter().filter(|decoded| decoded.is_ok()).count();
    lines.chunks(1_000).map(|part| decoded(part) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plc_testkit::Generated;
    use plc_testkit::builder::Story;

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
        late.for_each_group(|gathered| {
            let GatheredLines::Whole(group) = gathered else { panic!("{gathered:?}") };
            groups.push(group.iter().map(|(number, _)| *number).collect());
            Ok::<(), SpillError>(())
        })
        .unwrap();
        assert!(groups.len() > 2 && groups.iter().all(|group| group.len() % 2 == 0), "{groups:?}");
        assert_eq!(groups.concat(), (0..10).flat_map(numbers).collect::<Vec<_>>());
    }

    #[test]
    fn an_identity_with_too_many_bytes_is_left_out_and_the_others_are_not() {
        let mut story = Story::seeded(9);
        story.create().accepted();
        let operation = Bytes::from(Generated::sequenced_line(&story.log()[0]));
        let mut late = LateLines::with_identities_up_to(4 * operation.len()).unwrap();
        let none = Bytes::from_static(b"{");
        for number in 1..=10 {
            late.add([(did(1), number, &none), (did(2), 100 + number, &operation)]).unwrap();
            late.add([(did(3), 200 + number, if number < 5 { &operation } else { &none })])
                .unwrap();
        }
        late.add([(did(2), 99, &none)]).unwrap();
        let mut told = Vec::new();
        late.for_each_group(|gathered| {
            told.push(match gathered {
                GatheredLines::Whole(group) => Ok(group.iter().map(|(n, _)| *n).collect()),
                GatheredLines::TooMany { did, first, lines } => Err((did, first, lines)),
            });
            Ok::<(), SpillError>(())
        })
        .unwrap();
        let whole: Vec<u64> = (1..=10).collect();
        assert_eq!(told, [Err((did(2), 99, 10)), Err((did(3), 201, 4)), Ok(whole)]);
        let mut numbers = Vec::new();
        late.for_each_line(|number, _| {
            numbers.push(number);
            Ok::<(), SpillError>(())
        })
        .unwrap();
        assert!(numbers.len() == 31 && numbers.is_sorted());
    }
}
