//! Doubts: what was refused may have been damaged on its way, or have come before what it builds on. The
//! upstream is asked about each refusal once more, and again after ever longer pauses while that may still help.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::again::{self, AgainError, Said};
use super::bearing_out::refuse_unless_borne_out;
use super::fetch::{
    contradicts, fetch_audit_log, fetch_believed_audit_log, fetch_lines, fetch_to_believe,
};
use super::numbering::Numbering;
use super::reader::{Event, Gone};
use crate::clock;
use crate::judge::{Course, Decoded};
use crate::store::{Asked, Lease, NewRefusal, Store, StoredOperation, StoredRefusal};
use crate::upstream::{Backoff, ExportClient, Priority, UpstreamFault};
use did_plc::entry::Received;
use did_plc::refusal::UNKNOWN_TYPE;
use did_plc::{Cid, Did, Refusal};

/// Refusals that are asked about in one go.
const AT_ONCE: usize = 1_000;

/// When the upstream is asked about what was refused.
#[derive(Debug, Clone)]
pub struct DoubtSettings {
    /// How often it is looked whether there is something to ask about.
    pub look: Duration,
    /// The pauses after the first question, the second, and so on; after the last nothing is expected any
    /// more, and what is missing is found by reading everything again.
    pub pauses: Vec<Duration>,
    /// Who else is asked for the audit log of an identity, in turn, when what it lacks is not the upstream's.
    pub others: Vec<ExportClient>,
}

impl Default for DoubtSettings {
    fn default() -> DoubtSettings {
        let pauses = [10, 60, 600, 3_600, 6 * 3_600, 24 * 3_600].map(Duration::from_secs);
        DoubtSettings { look: Duration::from_secs(5), pauses: pauses.to_vec(), others: Vec::new() }
    }
}

/// Asks an upstream about what was refused.
pub struct Doubts {
    /// Where the refusals are.
    pub store: Store,
    /// Who is asked.
    pub client: ExportClient,
    /// Which numbers it has: by others than ours it is not asked.
    pub numbering: Numbering,
    /// Other upstreams, who are asked after it, and before those of the settings.
    pub others: Vec<ExportClient>,
    /// By which right it is recorded what came of that.
    pub lease: Lease,
    /// Who judges what comes.
    pub events: mpsc::Sender<Event>,
    /// Whether the upstream has the log that was read from it. Of another one nothing is taken in here: its
    /// numbers would hide where it begins.
    pub same_log: watch::Receiver<bool>,
    /// The numbers that are held are an earlier upstream's: by them nothing can be asked yet.
    pub renumbering: bool,
    /// When to ask.
    pub settings: DoubtSettings,
    /// About which refusals, and for which time, the others were asked while the upstream took no questions: they are
    /// not asked again before it. None at the beginning.
    pub others_asked: BTreeSet<(i64, i32)>,
}

impl Doubts {
    /// Asks until the session ends.
    pub async fn run(mut self) -> Gone {
        let mut backoff = Backoff::new(self.client.limits());
        let mut said = Said::nothing_of("asking again about what was refused");
        loop {
            if again::wait_for(&mut self.same_log).await.is_err() {
                return Gone;
            }
            let pause = match self.settle().await {
                Ok(()) => {
                    said.say_well();
                    backoff.reset();
                    self.settings.look
                }
                Err(AgainError::Gone) => return Gone,
                Err(error) => {
                    let pause = match &error {
                        AgainError::Upstream(fault) => backoff.after(fault),
                        AgainError::Store(_) | AgainError::Gone => self.settings.look,
                    };
                    said.say(&error, pause, &self.store);
                    pause
                }
            };
            if self.events.is_closed() {
                return Gone;
            }
            sleep(pause).await;
        }
    }

    /// Asks about everything that is due by now. A crash leaves it due.
    async fn settle(&mut self) -> Result<(), AgainError> {
        if self.renumbering {
            self.renumbering = self.store.source().await?.is_some_and(|source| source.renumbering);
            if self.renumbering {
                return Ok(());
            }
        }
        let now = clock::now();
        loop {
            let due = self.store.doubtful(now, AT_ONCE).await?;
            if due.is_empty() {
                return Ok(());
            }
            let mut asked = BTreeSet::new();
            match self.ask(&due, &mut asked).await {
                Ok(()) => self.note(&due).await?,
                // The rest is still due, and comes first the next time.
                Err(AgainError::Upstream(fault)) => {
                    let asked: Vec<StoredRefusal> =
                        due.into_iter().filter(|doubt| asked.contains(&doubt.id)).collect();
                    self.note(&asked).await?;
                    return Err(fault.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks about all of these, and lists those that were asked about; all of them were where it does not fail.
    async fn ask(
        &mut self,
        due: &[StoredRefusal],
        asked: &mut BTreeSet<i64>,
    ) -> Result<(), AgainError> {
        let answer = self.ask_upstream(due, asked).await;
        if let Err(AgainError::Store(_) | AgainError::Gone) = answer {
            return answer;
        }
        let mut left = BTreeSet::new();
        for source in self.others.iter().chain(&self.settings.others) {
            let mut standing = self.standing(due).await?;
            standing.retain(|doubt| !self.others_asked.contains(&(doubt.id, doubt.asked)));
            left.extend(self.ask_another(&standing, source).await?);
        }
        // What the upstream was not asked about is due the next time too: no more is remembered than that.
        let again = if answer.is_err() { due } else { &[] };
        let again = again.iter().filter(|doubt| !left.contains(&doubt.id));
        self.others_asked = again.map(|doubt| (doubt.id, doubt.asked)).collect();
        answer
    }

    async fn ask_upstream(
        &self,
        due: &[StoredRefusal],
        asked: &mut BTreeSet<i64>,
    ) -> Result<(), AgainError> {
        self.ask_by_number(due, asked).await?;
        self.ask_by_identity(&self.standing(due).await?, asked).await
    }

    /// Reads again where the refused lines stood: many of one page with one request.
    async fn ask_by_number(
        &self,
        due: &[StoredRefusal],
        asked: &mut BTreeSet<i64>,
    ) -> Result<(), AgainError> {
        let page = self.client.limits().page as i64;
        let by_number = due.iter().filter(|_| self.numbering.is_ours());
        let mut numbered: Vec<(i64, &StoredRefusal)> =
            by_number.filter_map(|doubt| Some((doubt.refusal.sequence?, doubt))).collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        let mut rest = &numbered[..];
        while let Some(&(first, _)) = rest.first() {
            let (here, after) = rest
                .split_at(rest.partition_point(|(number, _)| *number < first.saturating_add(page)));
            let last = here.last().map_or(first, |(number, _)| *number);
            let answer = self.read_again(first, last).await;
            if counts(&answer) {
                // For some the answer is only the first one; a fault is all that comes of asking now.
                let is_done = |doubt| answer.is_err() || !is_about_identity(doubt);
                let done = here.iter().filter(|(_, doubt)| is_done(doubt));
                asked.extend(done.map(|(_, doubt)| doubt.id));
            }
            go_on_after(answer)?;
            rest = after;
        }
        Ok(())
    }

    /// Takes in what the export has from one number to another one.
    async fn read_again(&self, first: i64, last: i64) -> Result<(), AgainError> {
        let count = usize::try_from(last - first + 1).unwrap_or(1);
        let held = self.store.export_by_sequence(first - 1, count).await?;
        let fetch = async || {
            let mut lines = fetch_lines(&self.client, first - 1, count, Priority::Aside).await?;
            lines.retain_up_to(last);
            Ok(lines)
        };
        let lines = fetch_to_believe(fetch, |lines| contradicts(lines, &held)).await?;
        let range = (first - 1, last);
        refuse_unless_borne_out(&self.events, &self.others, range, &lines, &held).await?;
        self.take_in(lines).await
    }

    /// Reads the audit logs of identities of which something is lacking, or which the refused line names
    /// without a number, or with one that is not the upstream's.
    async fn ask_by_identity(
        &self,
        standing: &[StoredRefusal],
        asked: &mut BTreeSet<i64>,
    ) -> Result<(), AgainError> {
        let by_number = self.numbering.is_ours();
        for (did, doubts) in by_identity(standing, |it| !by_number || is_about_identity(it)) {
            let answer = self.read_log(did).await;
            if counts(&answer) {
                asked.extend(doubts);
            }
            go_on_after(answer)?;
        }
        Ok(())
    }

    async fn read_log(&self, did: Did) -> Result<(), AgainError> {
        let held = self.store.history(&did).await?;
        match fetch_believed_audit_log(&self.client, &did, &held).await? {
            Some(mut log) => {
                if !self.numbering.is_ours() {
                    log.forget_numbers();
                }
                self.take_in(log).await
            }
            None => Ok(()),
        }
    }

    /// Reads what somebody beside the upstream has of these identities. Whoever is away now is asked the next time:
    /// returned is what was not asked about.
    async fn ask_another(
        &self,
        standing: &[StoredRefusal],
        source: &ExportClient,
    ) -> Result<Vec<i64>, AgainError> {
        let mut identities = by_identity(standing, is_about_identity).into_iter();
        while let Some((did, doubts)) = identities.next() {
            match fetch_audit_log(source, &did).await {
                Ok(Some(mut log)) if !log.is_empty() => {
                    log.forget_numbers();
                    let stated_by = Some(source.base().into());
                    again::take_in(&self.events, log, Course::Elsewhere, stated_by).await?;
                }
                Ok(_) => {}
                Err(fault) if is_away(&fault) => {
                    let left = identities.flat_map(|(_, doubts)| doubts);
                    return Ok(doubts.into_iter().chain(left).collect());
                }
                Err(fault) => tracing::debug!(%did, "its audit log cannot be had: {fault}"),
            }
        }
        Ok(Vec::new())
    }

    async fn take_in(&self, decoded: Decoded) -> Result<(), AgainError> {
        if !decoded.is_empty() {
            again::take_in(&self.events, decoded, Course::Again, None).await?;
        }
        Ok(())
    }

    /// Records what came of asking about these.
    async fn note(&self, asked: &[StoredRefusal]) -> Result<(), AgainError> {
        if asked.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = asked.iter().filter_map(|doubt| doubt.refusal.sequence).collect();
        let held = self.store.sequences(&numbers).await?.into_iter();
        let held: BTreeMap<i64, StoredOperation> =
            held.filter_map(|operation| Some((operation.sequence?, operation))).collect();
        let now = clock::now();
        let came: Vec<Asked> = self
            .standing(asked)
            .await?
            .iter()
            .map(|doubt| {
                let holder = doubt.refusal.sequence.and_then(|number| held.get(&number));
                let accepted = is_of_line(doubt)
                    && holder.is_some_and(|holder| is_rendering(&doubt.refusal.line, holder));
                let pause = self.settings.pauses.get(doubt.asked.unsigned_abs() as usize);
                let may_help = is_of_line(doubt) && !is_of_other_type(doubt) || lacks_prev(doubt);
                let again = !accepted && may_help;
                let ask_at = pause.filter(|_| again).map(|pause| now + *pause);
                Asked { id: doubt.id, accepted, ask_at }
            })
            .collect();
        let healed = asked.len() - came.iter().filter(|came| !came.accepted).count();
        self.store.note_asked(&self.lease, &came, now).await?;
        let count = asked.len();
        tracing::info!(asked = count, accepted = healed, "asked again about what was refused");
        metrics::counter!("plc_doubts_asked_total").increment(count as u64);
        metrics::counter!("plc_doubts_healed_total").increment(healed as u64);
        Ok(())
    }

    /// Those of them that still stand, after what came was judged.
    async fn standing(&self, doubts: &[StoredRefusal]) -> Result<Vec<StoredRefusal>, AgainError> {
        let ids: Vec<i64> = doubts.iter().map(|doubt| doubt.id).collect();
        Ok(self.store.still_refused(&ids).await?)
    }
}

/// Whether a question counts as asked, whatever came: one that was not taken does not.
fn counts(answer: &Result<(), AgainError>) -> bool {
    match answer {
        Err(AgainError::Upstream(fault)) => {
            !matches!(fault, UpstreamFault::Unreachable { .. } | UpstreamFault::RateLimited { .. })
        }
        Ok(()) | Err(AgainError::Store(_) | AgainError::Gone) => true,
    }
}

/// Goes on with the next question, unless the upstream is away or takes none.
fn go_on_after(answer: Result<(), AgainError>) -> Result<(), AgainError> {
    match answer {
        Err(AgainError::Upstream(fault)) if !is_away(&fault) => {
            tracing::debug!("no answer about what was refused: {fault}");
            Ok(())
        }
        answer => answer,
    }
}

/// Whether somebody is away or takes no questions now.
fn is_away(fault: &UpstreamFault) -> bool {
    matches!(
        fault,
        UpstreamFault::Unreachable { .. }
            | UpstreamFault::Silent { .. }
            | UpstreamFault::TooSlow { .. }
            | UpstreamFault::Truncated { .. }
            | UpstreamFault::RateLimited { .. }
            | UpstreamFault::ServerError { .. }
    )
}

/// The identities whose audit logs are to be read, with what that is asked about.
fn by_identity(
    standing: &[StoredRefusal],
    is_asked: impl Fn(&StoredRefusal) -> bool,
) -> BTreeMap<Did, Vec<i64>> {
    let mut identities: BTreeMap<Did, Vec<i64>> = BTreeMap::new();
    for doubt in standing.iter().filter(|doubt| is_asked(doubt)) {
        if let Ok(did) = doubt.refusal.did.parse() {
            identities.entry(did).or_default().push(doubt.id);
        }
    }
    identities
}

/// Whether the audit log of the identity can tell more than what has the number now.
fn is_about_identity(doubt: &StoredRefusal) -> bool {
    doubt.refusal.sequence.is_none() || lacks_prev(doubt)
}

/// Whether the line is refused, and not an operation that could be judged.
fn is_of_line(doubt: &StoredRefusal) -> bool {
    let refusal = &doubt.refusal;
    refusal.key == NewRefusal::key_of_line(&refusal.line)
}

/// Whether a refused line may have been another rendering of the operation that has its number now: what it says of
/// its identity and of its CID is that operation's, or was damaged so that it can be nobody's.
fn is_rendering(line: &[u8], holder: &StoredOperation) -> bool {
    let (did, cids) = match Received::decode(line) {
        Ok(received) => {
            let stated = received.stated_cid.unwrap_or_default();
            (received.did.to_string(), vec![received.cid.to_string(), stated])
        }
        Err(undecodable) => (undecodable.did, vec![undecodable.cid]),
    };
    let is_its_cid = cids.contains(&holder.cid().to_string());
    match did.parse::<Did>() {
        Ok(did) if is_its_cid => did == holder.did,
        Ok(did) => did == holder.did && cids.iter().all(|cid| cid.parse::<Cid>().is_err()),
        Err(_) => is_its_cid,
    }
}

/// Whether it is a whole line of a type that carries no operation, as the upstream may have from now on.
fn is_of_other_type(doubt: &StoredRefusal) -> bool {
    doubt.refusal.kind == UNKNOWN_TYPE
}

/// Whether all that is wrong is that something before it is not there.
fn lacks_prev(doubt: &StoredRefusal) -> bool {
    Refusal::kind_lacks_prev(&doubt.refusal.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use did_plc::Timestamp;
    use plc_testkit::builder::Story;
    use plc_testkit::fake_upstream::LogEntry;

    fn holder(line: &str) -> StoredOperation {
        let received = Received::decode(line.as_bytes()).unwrap();
        StoredOperation {
            did: received.did,
            created_at: received.created_at,
            sequence: received.sequence,
            signed: Bytes::clone(&received.signed),
            signer: 0,
            nullified_by: None,
            received_at: Timestamp::from_millis(0),
        }
    }

    #[test]
    fn a_damaged_line_is_a_rendering_of_what_it_states() {
        let mut story = Story::seeded(1);
        let alice = story.create().accepted();
        story.update(&alice).accepted();
        story.create().accepted();
        let log: Vec<LogEntry> = story.log().iter().map(LogEntry::from).collect();
        let (entry, update, other) = (&log[0], &log[1], &log[2]);
        let line = entry.sequenced();
        let held = holder(&line);
        let is = |damaged: &str| is_rendering(damaged.as_bytes(), &held);
        // Its operation cannot be read any more.
        let unreadable = line.replacen("\"sig\":", "\"sig\":\"\",\"sig\":", 1);
        assert!(is(&line) && is(&unreadable));
        // Its operation, and the CID of another one; and the other way round.
        assert!(is(&line.replacen(&entry.cid, &update.cid, 1)));
        assert!(is(&line.replacen(&entry.operation, &update.operation, 1)));
        // A damaged CID or DID is nobody's; with both nothing says whose it was.
        let (no_cid, no_did) = (&entry.cid[..20], &entry.did[..20]);
        let without_cid = unreadable.replacen(&entry.cid, no_cid, 1);
        let without_did = unreadable.replacen(&entry.did, no_did, 1);
        assert!(is(&without_cid) && is(&without_did));
        assert!(!is(&without_cid.replacen(&entry.did, no_did, 1)));
        // Another operation of the same identity, and another identity's.
        assert!(!is(&unreadable.replacen(&entry.cid, &update.cid, 1)));
        assert!(!is(&unreadable.replacen(&entry.did, &other.did, 1)));
        assert!(!is(&without_cid.replacen(&entry.did, &other.did, 1)));
    }
}
