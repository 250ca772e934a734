//! Judging a log that somebody has dumped, from its first line to its last, in bounded memory. What comes of it
//! depends on the lines and their times, and not on the order in which they stand.
//!
//! ```text
//! first reading ──▶ share of the identity ──in order──▶ said, in the end
//!                                          └──late────▶ second reading ──▶ gathered ──▶ judged as a whole
//!                                                  └──none──▶ said as it came
//! ```
//!
//! No identity has to do with another, so that they are dealt out to a number of shares that are
//! worked on side by side. Identities whose lines do not come in the order of their times, or say otherwise than
//! others, are judged when all is known, from a second reading of the log; a log in which there is none is read once.
//! What may come once only, through a pipe, is judged line by line as well, for the case that it does.

use std::mem;

use ahash::AHashMap;
use bytes::Bytes;
use rayon::prelude::*;

use super::finding::{Finding, Summary};
use super::said::Said;
use super::share::{Late, Share};
use crate::judge::{self, Candidate, GatheredLines, LateLines, SpillError};
use did_plc::entry::stated_did;
use did_plc::signature::Verifier;
use did_plc::{Cid, Did};

/// Shares that the identities are dealt out to: enough for the cores of most machines.
const SHARES: usize = 16;
/// Findings that are put in the order of their lines before they are told. With more of them they are told in
/// several runs.
const SORTED: usize = 200_000;

/// Judges a log block by block.
pub struct DumpJudge<'a> {
    verifier: &'a dyn Verifier,
    shares: Vec<Share>,
    /// The number of the last line.
    last: u64,
    /// What was gathered by the second reading.
    gathered: Option<LateLines>,
    /// What was found of late identities as they came, by line: a finding as JSON.
    as_it_came: Option<LateLines>,
    /// Of what is certain already.
    summary: Summary,
}

impl<'a> DumpJudge<'a> {
    /// A judge that has seen nothing, of a log that can be read a second time.
    pub fn new(verifier: &'a dyn Verifier) -> DumpJudge<'a> {
        DumpJudge::with_shares(verifier, false)
    }

    /// The same of a log that may come once only: if it does, late identities are told as their lines came.
    pub fn of_pipe(verifier: &'a dyn Verifier) -> DumpJudge<'a> {
        DumpJudge::with_shares(verifier, true)
    }

    fn with_shares(verifier: &'a dyn Verifier, may_come_once: bool) -> DumpJudge<'a> {
        let shares = (0..SHARES).map(|_| Share::new(may_come_once)).collect();
        let summary = Summary::default();
        DumpJudge { verifier, shares, last: 0, gathered: None, as_it_came: None, summary }
    }

    /// Judges a log that is in memory: what is found, in the order of its lines, and what it comes to.
    ///
    /// # Errors
    ///
    /// When the temporary database fails, here and below.
    pub fn judge_all(
        log: &[(u64, Bytes)],
        verifier: &'a dyn Verifier,
    ) -> Result<(Vec<Finding>, Summary), SpillError> {
        let mut judge = DumpJudge::new(verifier);
        let mut findings = judge.judge(log)?;
        if judge.late_identities() > 0 {
            judge.gather(log)?;
        }
        let summary = judge.finish(|finding| {
            findings.push(finding);
            Ok::<(), SpillError>(())
        })?;
        findings.sort_by_key(|finding| finding.line);
        Ok((findings, summary))
    }

    /// Takes in the next lines of the log, each with its number. Of those that carry no operation it is said at
    /// once, in order; what is wrong with others is certain in the end.
    ///
    /// # Errors
    ///
    /// When the temporary database fails.
    pub fn judge(&mut self, block: &[(u64, Bytes)]) -> Result<Vec<Finding>, SpillError> {
        let mut undecodable = Vec::new();
        let mut dealt: Vec<Vec<Candidate>> = self.shares.iter().map(|_| Vec::new()).collect();
        for (line, decoded) in judge::decode(&texts(block)).into_iter().enumerate() {
            match decoded {
                Ok(received) => {
                    dealt[share_of(&received.did)].push(Candidate { line, received });
                }
                Err(error) => {
                    self.summary.count_refused(error.refusal.kind());
                    self.summary.unreadable += u64::from(!error.names_identity());
                    undecodable.push(Finding::undecodable(block[line].0, error));
                }
            }
        }
        let verifier = self.verifier;
        self.shares
            .par_iter_mut()
            .zip(dealt)
            .try_for_each(|(share, candidates)| share.judge(block, candidates, verifier))?;
        self.keep_found()?;
        self.summary.operations += block.len() as u64;
        self.last = block.last().map_or(self.last, |(number, _)| *number);
        Ok(undecodable)
    }

    /// Moves what was found of late identities out of memory.
    fn keep_found(&mut self) -> Result<(), SpillError> {
        let found: Vec<_> = self.shares.iter_mut().flat_map(Share::take_found).collect();
        if found.is_empty() {
            return Ok(());
        }
        let found = found.into_iter().map(|(did, finding)| {
            // There is nothing in a finding that JSON cannot say.
            (did, finding.line, Bytes::from(serde_json::to_vec(&finding).unwrap_or_default()))
        });
        let found: Vec<(Did, u64, Bytes)> = found.collect();
        opened(&mut self.as_it_came)?.add(found.iter().map(|(did, line, text)| (*did, *line, text)))
    }

    /// How many identities are left that have to be judged as a whole. They are if the log is read a second
    /// time, by [`gather`](DumpJudge::gather). If not, they are told as they came where that was
    /// [asked for](DumpJudge::of_pipe), and counted as not judged otherwise.
    pub fn late_identities(&self) -> u64 {
        self.shares.iter().map(|share| share.late().identities).sum()
    }

    /// Takes in the next lines of the log for the second time.
    ///
    /// # Errors
    ///
    /// When the temporary database fails.
    pub fn gather(&mut self, block: &[(u64, Bytes)]) -> Result<(), SpillError> {
        let named: Vec<Option<Did>> = block.par_iter().map(|(_, line)| stated_did(line)).collect();
        let mut dealt: Vec<Vec<(Did, usize)>> = self.shares.iter().map(|_| Vec::new()).collect();
        for (line, did) in named.into_iter().enumerate() {
            // A file may have grown meanwhile.
            if let Some(did) = did.filter(|_| block[line].0 <= self.last) {
                dealt[share_of(&did)].push((did, line));
            }
        }
        // The shares are not changed: their databases are one thread's at a time.
        let late: Vec<Vec<(Did, usize)>> = self
            .shares
            .par_iter_mut()
            .zip(dealt)
            .map(|(share, mut named)| {
                let mut late = Vec::new();
                for (did, line) in named.drain(..) {
                    if share.is_late(&did)? {
                        late.push((did, line));
                    }
                }
                Ok(late)
            })
            .collect::<Result<_, SpillError>>()?;
        let lines =
            late.into_iter().flatten().map(|(did, line)| (did, block[line].0, &block[line].1));
        opened(&mut self.gathered)?.add(lines)
    }

    /// Ends the log: tells what is wrong with its operations, and returns what it comes to.
    ///
    /// # Errors
    ///
    /// When the temporary database fails, or the telling.
    pub fn finish<E: From<SpillError>>(
        self,
        mut tell: impl FnMut(Finding) -> Result<(), E>,
    ) -> Result<Summary, E> {
        let mut summary = self.summary;
        let mut findings = Vec::new();
        for share in self.shares {
            let Late { lines, .. } = share.late();
            if self.gathered.is_none() {
                match share.as_it_came() {
                    Some(as_it_came) => {
                        summary.add(as_it_came);
                        summary.as_they_came += lines;
                    }
                    None => summary.unjudged += lines,
                }
            }
            let (found, of_share) = share.finish();
            findings.extend(found);
            summary.add(&of_share);
        }
        if let Some(gathered) = self.gathered {
            let verifier = self.verifier;
            gathered.for_each_group(|gathered| {
                let (found, of_group) = match gathered {
                    GatheredLines::Whole(lines) => judge_whole(lines, verifier),
                    GatheredLines::TooMany { did, first, lines } => not_judged(&did, first, lines),
                };
                findings.extend(found);
                summary.add(&of_group);
                if findings.len() < SORTED { Ok(()) } else { tell_sorted(&mut findings, &mut tell) }
            })?;
        } else if let Some(as_it_came) = self.as_it_came {
            findings.sort_by_key(|finding| finding.line);
            let mut others = mem::take(&mut findings).into_iter().peekable();
            as_it_came.for_each_line(|number, text| {
                while let Some(other) = others.next_if(|other| other.line < number) {
                    tell(other)?;
                }
                // It was written by this program a moment ago.
                serde_json::from_slice(text).map_or(Ok(()), &mut tell)
            })?;
            findings.extend(others);
        }
        tell_sorted(&mut findings, &mut tell)?;
        let refused: u64 = summary.refused.values().sum();
        // Every other line says what another one has said.
        let told = summary.accepted + refused + summary.unjudged;
        summary.repeated = summary.operations.saturating_sub(told);
        Ok(summary)
    }
}

/// The lines that are kept there, from the first time on.
fn opened(lines: &mut Option<LateLines>) -> Result<&mut LateLines, SpillError> {
    Ok(match lines {
        Some(lines) => lines,
        none => none.insert(LateLines::new()?),
    })
}

/// What is said of an identity that has more lines than are kept in memory.
fn not_judged(did: &Did, first: u64, lines: u64) -> (Vec<Finding>, Summary) {
    let finding = Finding::not_judged(first, did, lines, LateLines::MAX_IDENTITY);
    (vec![finding], Summary { unjudged: lines, ..Summary::default() })
}

fn tell_sorted<E>(
    findings: &mut Vec<Finding>,
    tell: &mut impl FnMut(Finding) -> Result<(), E>,
) -> Result<(), E> {
    findings.sort_by_key(|finding| finding.line);
    mem::take(findings).into_iter().try_for_each(tell)
}

fn texts(block: &[(u64, Bytes)]) -> Vec<Bytes> {
    block.iter().map(|(_, line)| line.clone()).collect()
}

/// By the last bits of an identity, which are as random as a hash;
/// [`SpillingChains`](judge::SpillingChains) go by the first.
fn share_of(did: &Did) -> usize {
    let [.., last] = did.as_bytes();
    usize::from(*last) % SHARES
}

/// Judges identities of which these are all lines.
fn judge_whole(lines: &[(u64, Bytes)], verifier: &dyn Verifier) -> (Vec<Finding>, Summary) {
    let decoded = judge::decode(&texts(lines)).into_iter().enumerate();
    // What carries no operation was told at the first reading.
    let candidates =
        decoded.filter_map(|(line, decoded)| Some(Candidate { line, received: decoded.ok()? }));
    let mut groups = judge::group(candidates);
    groups.iter_mut().for_each(|(_, group)| forget_order(&mut group.candidates));
    let judged = judge::judge(&mut groups, verifier);
    let mut findings = Vec::new();
    let mut summary = Summary::default();
    for ((did, group), judged) in groups.iter().zip(judge::by_identity(&judged)) {
        let mut said = Said::default();
        for judged in judged {
            said.note(lines[judged.candidate.line].0, judged);
        }
        let (found, of_identity) = said.finish(did);
        findings.extend(found);
        summary.add(&of_identity);
        summary.accepted += group.chain.links().len() as u64;
        summary.identities += u64::from(!group.chain.links().is_empty());
    }
    (findings, summary)
}

/// Makes what the lines of one identity say the same in whatever order they stand: of statements of one operation
/// and one time those with its CID come first, and then those with the lower number; and it is stated to be
/// nullified if one of its lines says so.
fn forget_order(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|Candidate { received, .. }| {
        (received.stated_cid.is_some(), received.sequence)
    });
    let mut flags: AHashMap<Cid, Option<bool>> = AHashMap::new();
    for Candidate { received, .. } in candidates.iter() {
        let flag = flags.entry(received.cid).or_default();
        *flag = (*flag).max(received.nullified);
    }
    for Candidate { received, .. } in candidates {
        received.nullified = flags.get(&received.cid).copied().flatten();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::signature::PlainVerifier;
    use plc_testkit::Generated;
    use plc_testkit::builder::Story;

    #[test]
    fn a_line_that_comes_again_and_says_otherwise_is_found() {
        let mut story = Story::seeded(1);
        story.create().accepted();
        let honest = &story.log()[0];
        let later = "2030-01-01T00:00:00.000Z".to_owned();
        let moved = Generated { seq: honest.seq + 1, created_at: later, ..honest.clone() };
        let renamed = Generated { cid: Cid::of(b"another").to_string(), ..honest.clone() };
        let block: Vec<(u64, Bytes)> = (1..)
            .zip([honest, honest, &moved, &renamed])
            .map(|(number, entry)| (number, entry.sequenced_line().into()))
            .collect();
        let (findings, summary) = DumpJudge::judge_all(&block, &PlainVerifier).unwrap();
        let found: Vec<_> = findings.iter().map(|found| (found.line, &*found.kind)).collect();
        assert_eq!(
            found,
            [(3, "restated-created-at"), (3, "restated-sequence"), (4, "restated-cid")]
        );
        assert_eq!((summary.accepted, summary.repeated, summary.restated), (1, 3, 2));
        assert!(summary.refused.is_empty() && !summary.is_clean());
    }

    fn block(lines: impl IntoIterator<Item = String>) -> Vec<(u64, Bytes)> {
        (1..).zip(lines.into_iter().map(Bytes::from)).collect()
    }

    #[test]
    fn what_comes_in_order_is_read_once() {
        let mut story = Story::seeded(2);
        let alice = story.create().accepted();
        let stolen = story.update(&alice).accepted();
        story.update(&stolen).padded_signature().refused("signature-encoding");
        let recovery = story.recovery.clone();
        story.after(&alice).signed_by(&recovery).accepted();
        story.create().accepted();
        let lines: Vec<String> = story.log().iter().map(Generated::timestamped_line).collect();
        let mut judge = DumpJudge::new(&PlainVerifier);
        for one in block(lines.clone()) {
            assert_eq!(judge.judge(&[one]).unwrap(), []);
        }
        // Some of them come twice, as where pages overlap.
        for number in [0, 4] {
            judge.judge(&[(6 + number as u64, lines[4].clone().into())]).unwrap();
        }
        assert_eq!(judge.late_identities(), 0);
        let mut findings = Vec::new();
        let tell = |finding| {
            findings.push(finding);
            Ok::<(), SpillError>(())
        };
        let summary = judge.finish(tell).unwrap();
        let found: Vec<_> = findings.iter().map(|found| (found.line, &*found.kind)).collect();
        assert_eq!(found, [(3, "signature-encoding")]);
        let counts = (summary.operations, summary.identities, summary.accepted, summary.repeated);
        assert_eq!(counts, (7, 2, 4, 2));
    }

    #[test]
    fn without_a_second_reading_each_line_is_counted_once() {
        let mut story = Story::seeded(3);
        let alice = story.create().accepted();
        let first = story.update(&alice).accepted();
        story.update(&first).padded_signature().refused("signature-encoding");
        story.update(&first).accepted();
        story.create().accepted();
        let lines: Vec<String> = story.log().iter().map(Generated::sequenced_line).collect();
        // The third update comes before the second, and that twice.
        let order = [0, 2, 4, 1, 1, 3];
        let mut judge = DumpJudge::new(&PlainVerifier);
        for one in block(order.map(|at| lines[at].clone())) {
            judge.judge(&[one]).unwrap();
        }
        assert_eq!(judge.late_identities(), 1);
        let summary = judge.finish(|finding| panic!("{finding:?}")).map_err(|it: SpillError| it);
        let summary = summary.unwrap();
        let counts = (summary.operations, summary.identities, summary.accepted, summary.unjudged);
        assert_eq!(counts, (6, 1, 1, 5));
        assert_eq!((summary.repeated, summary.is_clean()), (0, false));
        // What may come once only is told as it came.
        let mut judge = DumpJudge::of_pipe(&PlainVerifier);
        for one in block(order.map(|at| lines[at].clone())) {
            judge.judge(&[one]).unwrap();
        }
        assert_eq!(judge.late_identities(), 1);
        let (found, summary) = finished(judge);
        assert_eq!(found, [(2, "unknown-prev".to_owned())]);
        let counts = (summary.operations, summary.identities, summary.accepted, summary.repeated);
        assert_eq!(counts, (6, 2, 4, 1));
        assert_eq!((summary.as_they_came, summary.unjudged, summary.is_clean()), (5, 0, false));
    }

    /// Line and kind of each finding in the order in which they are told, and what it came to.
    fn finished(judge: DumpJudge<'_>) -> (Vec<(u64, String)>, Summary) {
        let mut found = Vec::new();
        let tell = |finding: Finding| {
            found.push((finding.line, finding.kind));
            Ok::<(), SpillError>(())
        };
        let summary = judge.finish(tell).unwrap();
        (found, summary)
    }

    #[test]
    fn the_end_of_a_log_that_comes_once_is_told_line_by_line() {
        let mut story = Story::seeded(7);
        let old: Vec<_> = (0..20).map(|_| story.create().accepted()).collect();
        let begin = story.log().len();
        for identity in &old {
            let update = story.update(identity).accepted();
            story.create().forged_signature().refused("signature-invalid");
            story.update(&update).accepted();
        }
        let end: Vec<String> = story.log()[begin..].iter().map(Generated::sequenced_line).collect();
        let expected: Vec<(u64, String)> = (1..=60)
            .map(|line| (line, if line % 3 == 2 { "signature-invalid" } else { "unknown-did" }))
            .map(|(line, kind)| (line, kind.to_owned()))
            .collect();
        for size in [1, 7, 60] {
            let mut judge = DumpJudge::of_pipe(&PlainVerifier);
            for part in block(end.clone()).chunks(size) {
                assert_eq!(judge.judge(part).unwrap(), []);
            }
            assert_eq!(judge.late_identities(), 20);
            let (found, summary) = finished(judge);
            assert_eq!(found, expected);
            assert_eq!((summary.refused["unknown-did"], summary.as_they_came), (40, 40));
            assert_eq!((summary.accepted, summary.identities, summary.repeated), (0, 0, 0));
        }
        // With a second reading it is told as ever.
        let mut judge = DumpJudge::of_pipe(&PlainVerifier);
        judge.judge(&block(end.clone())).unwrap();
        judge.gather(&block(end)).unwrap();
        let (found, summary) = finished(judge);
        assert_eq!((found, summary.as_they_came), (expected, 0));
    }

    /// A flag that nothing bears out at first may be stated by a line that comes later.
    #[test]
    fn flags_are_not_compared_as_they_come() {
        let mut story = Story::seeded(10);
        let alice = story.create().accepted();
        story.update(&alice).accepted();
        let recovery = story.recovery.clone();
        story.after(&alice).signed_by(&recovery).accepted();
        let honest: Vec<String> = story.log().iter().map(Generated::timestamped_line).collect();
        let mut lines = honest.clone();
        lines[1] = lines[1].replace("\"nullified\":true", "\"nullified\":false");
        assert_ne!(lines[1], honest[1]);
        let log = block(lines.clone());
        let mut judge = DumpJudge::of_pipe(&PlainVerifier);
        judge.judge(&log).unwrap();
        let (found, summary) = finished(judge);
        assert_eq!((found, summary.wrong_flags), (vec![(3, "nullified-flag".to_owned())], 1));
        lines.push(honest[1].clone());
        let mut judge = DumpJudge::of_pipe(&PlainVerifier);
        for one in block(lines) {
            judge.judge(&[one]).unwrap();
        }
        assert_eq!(judge.late_identities(), 1);
        let (found, summary) = finished(judge);
        assert_eq!((found, summary.wrong_flags, summary.as_they_came), (vec![], 0, 4));
    }

    #[test]
    fn an_identity_with_too_many_lines_is_not_judged_and_that_is_told() {
        let mut story = Story::seeded(8);
        let alice = story.create().accepted();
        let bob = story.create().accepted();
        for _ in 0..3 {
            story.update(&bob).forged_signature().refused("signature-invalid");
        }
        story.update(&alice).accepted();
        let lines: Vec<String> = story.log().iter().map(Generated::sequenced_line).collect();
        let bytes = lines.iter().map(String::len).max().unwrap();
        let log = block(lines.into_iter().rev());
        let mut judge = DumpJudge::new(&PlainVerifier);
        judge.judge(&log).unwrap();
        judge.gathered = Some(LateLines::with_identities_up_to(2 * bytes).unwrap());
        judge.gather(&log).unwrap();
        let (found, summary) = finished(judge);
        assert_eq!(found, [(2, "not-judged".to_owned())]);
        let counts = (summary.operations, summary.identities, summary.accepted, summary.unjudged);
        assert_eq!(counts, (6, 1, 2, 4));
        assert_eq!((summary.repeated, summary.is_clean()), (0, false));
    }

    #[test]
    fn an_identity_of_which_too_much_is_to_be_said_is_left_for_later() {
        let mut story = Story::seeded(4);
        let alice = story.create().accepted();
        story.update(&alice).padded_signature().refused("signature-encoding");
        let [honest, refused] = story.log() else { panic!() };
        let at = |minutes: u64| {
            let at = alice.created_at + std::time::Duration::from_secs(60 * minutes);
            Generated { created_at: at.to_string(), ..refused.clone() }.sequenced_line()
        };
        let many = 12_000;
        let log = block(std::iter::once(honest.sequenced_line()).chain((1..=many).map(at)));
        let mut judge = DumpJudge::new(&PlainVerifier);
        for part in log.chunks(1_000) {
            assert_eq!(judge.judge(part).unwrap(), []);
        }
        assert_eq!(judge.late_identities(), 1);
        assert!(judge.shares.iter().all(|share| share.held() <= 10_000));
        let (findings, summary) = DumpJudge::judge_all(&log, &PlainVerifier).unwrap();
        assert!(findings.iter().map(|finding| finding.line).eq(2..=many + 1));
        assert_eq!((summary.accepted, &summary.refused["signature-encoding"]), (1, &many));
        assert_eq!((summary.repeated, summary.unjudged), (0, 0));
    }
}
