//! What clients ask for, and what they must be answered.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rand::{Rng, RngExt};

/// Where the DID stands in a line of the log: after `{"did":"`.
const DID: Range<usize> = 8..40;
/// Letters and digits of a DID.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Identities that count as new.
const NEW: usize = 500;
/// Of a hundred questions about identities that are held, those about new ones.
const NEW_SHARE: u32 = 15;
/// Operations that are asked for at the end of the log.
const TAIL: u64 = 100;

/// The identities of a log.
pub struct Identities {
    /// The number of each first operation, rising, and the DID.
    geneses: Vec<(u64, Box<str>)>,
    /// Those that are ended somewhere in the log.
    ended: HashSet<Box<str>>,
}

impl Identities {
    /// Finds them in a log whose line N has the number N.
    pub fn read(log: &Path) -> anyhow::Result<Identities> {
        let (first, last) = (
            memchr::memmem::Finder::new(r#","prev":null,"#),
            memchr::memmem::Finder::new(r#""type":"plc_tombstone""#),
        );
        let (mut geneses, mut ended) = (Vec::new(), HashSet::new());
        for (line, sequence) in BufReader::new(File::open(log)?).split(b'\n').zip(1..) {
            let line = line?;
            let did = line.get(DID).context("a line of the log is short")?;
            if first.find(&line).is_some() {
                geneses.push((sequence, str::from_utf8(did)?.into()));
            } else if last.find(&line).is_some() {
                ended.insert(str::from_utf8(did)?.into());
            }
        }
        Ok(Identities { geneses, ended })
    }

    /// One of those whose first operation is among the first so many of the log.
    fn any(&self, held: u64, random: &mut impl Rng) -> &str {
        let known = self.geneses.partition_point(|(sequence, _)| *sequence <= held);
        let from = match random.random_ratio(NEW_SHARE, 100) {
            true => known.saturating_sub(NEW),
            false => 0,
        };
        &self.geneses[random.random_range(from..known)].1
    }
}

/// What must be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// 200.
    Found,
    /// 200, or 404 once the identity was ended.
    FoundOrEnded,
    /// 404.
    Unknown,
}

impl Expected {
    /// Whether this status is what must be answered.
    pub fn allows(self, status: u16) -> bool {
        match self {
            Expected::Found => status == 200,
            Expected::FoundOrEnded => matches!(status, 200 | 404),
            Expected::Unknown => status == 404,
        }
    }
}

/// A request.
#[derive(Debug)]
pub struct Question {
    pub path: String,
    pub expected: Expected,
    /// The identity that it is about; none of one that there is not, and of a page.
    pub did: Option<Box<str>>,
}

/// Makes questions as the clients of a directory ask them.
pub struct Questions<R> {
    pub identities: Arc<Identities>,
    pub random: R,
}

impl<R: Rng> Questions<R> {
    /// The next one, where so many operations are known to be held.
    pub fn next(&mut self, held: u64) -> Question {
        let suffix = match self.random.random_range(0..100) {
            0..66 => "",
            66..74 => "/data",
            74..82 => "/log/audit",
            82..88 => "/log/last",
            88..93 => "/log",
            93..97 => return self.unknown(),
            97..99 => return page(held.saturating_sub(TAIL)),
            _ => return page(self.random.random_range(0..=held)),
        };
        let did = self.identities.any(held, &mut self.random);
        let may_be_ended = matches!(suffix, "" | "/data") && self.identities.ended.contains(did);
        let expected = if may_be_ended { Expected::FoundOrEnded } else { Expected::Found };
        Question { path: format!("/{did}{suffix}"), expected, did: Some(did.into()) }
    }

    fn unknown(&mut self) -> Question {
        let mut path = "/did:plc:".to_owned();
        path.extend((0..24).map(|_| char::from(BASE32[self.random.random_range(0..BASE32.len())])));
        Question { path, expected: Expected::Unknown, did: None }
    }
}

fn page(after: u64) -> Question {
    let path = format!("/export?after={after}&count=1000");
    Question { path, expected: Expected::Found, did: None }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn only_what_is_held_is_expected() {
        let did = |n: u8| -> Box<str> { format!("did:plc:{}", char::from(b'a' + n)).into() };
        let identities = Arc::new(Identities {
            geneses: vec![(1, did(0)), (4, did(1)), (6, did(2))],
            ended: HashSet::from([did(0)]),
        });
        let mut questions = Questions { identities, random: ChaCha8Rng::seed_from_u64(1) };
        let mut asked = HashSet::new();
        for _ in 0..2_000 {
            let Question { path, expected, .. } = questions.next(5);
            if path.starts_with("/export") || expected == Expected::Unknown {
                continue;
            }
            let ended = path.starts_with(&format!("/{}", did(0))) && !path.contains("/log");
            assert_eq!(expected == Expected::FoundOrEnded, ended, "{path}");
            asked.insert(path);
        }
        // Of two identities five kinds of answer.
        assert_eq!(asked.len(), 10);
    }
}
