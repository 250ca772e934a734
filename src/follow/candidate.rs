//! One upstream that can be followed: what came of asking it, whether it is well, and how long it has to be so.

use std::time::Duration;

use tokio::time::Instant;

use super::agreement::Agreement;
use super::numbering::Numbering;
use super::switching::SwitchSettings;
use crate::clock;
use crate::live::Standing;
use crate::store::{DivergenceKind, NewDivergence, Store, StoreError, audit_log};
use crate::upstream::ExportClient;
use did_plc::Did;

/// One that can be followed.
pub struct Candidate {
    /// It.
    pub client: ExportClient,
    /// What came of asking it last.
    pub opinion: Opinion,
    /// How often in a row it has not answered.
    unanswered: u32,
    /// Since when it lacks something up to this number of those that are held; none while it lacks nothing.
    lacks: Option<(i64, Instant)>,
    /// Since when it is well; none while it is not.
    well_since: Option<Instant>,
    /// How long it has to be well before it is followed for its place in the order.
    probation: Duration,
    /// Why it is not to be followed until then, whatever its log has.
    refuted: Option<String>,
    /// It has stated our numbers.
    has_stated_ours: bool,
    /// The identity of which a difference is on record.
    recorded: Option<Did>,
    /// When it began to be followed last.
    pub followed_at: Option<Instant>,
}

/// What is known of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opinion {
    /// Nothing.
    Unknown,
    /// It does not answer.
    Silent(String),
    /// How its log compares with what is held.
    Compared(Agreement),
    /// It was found to lie, by other means.
    Lies(String),
    /// It does not have what another one has.
    Behind(i64),
}

impl Candidate {
    /// Nothing is known of it yet.
    pub fn new(client: ExportClient) -> Candidate {
        Candidate {
            client,
            opinion: Opinion::Unknown,
            unanswered: 0,
            lacks: None,
            well_since: None,
            probation: Duration::ZERO,
            refuted: None,
            has_stated_ours: false,
            recorded: None,
            followed_at: None,
        }
    }

    /// It was compared with what is held.
    pub fn compared(&mut self, agreement: Agreement, cursor: i64, settings: &SwitchSettings) {
        self.unanswered = 0;
        // One that grows is behind by something else each time.
        self.lacks = match agreement {
            // Where it has none of what was compared, it is not known to have grown.
            Agreement::Lacks { from, is_all, .. } => {
                let before = self.lacks.filter(|(up_to, _)| is_all || from <= *up_to);
                Some(before.unwrap_or((cursor, Instant::now())))
            }
            _ => None,
        };
        self.has_stated_ours |= match agreement {
            Agreement::Same { .. } => cursor > 0,
            // It has stated those before.
            Agreement::Lacks { is_all, numbering, .. } => !is_all && numbering.is_ours(),
            Agreement::SameByCid(_) | Agreement::Differs(_) => false,
        };
        self.opinion = Opinion::Compared(agreement);
        self.note(settings);
    }

    /// It did not answer. Once is nothing, after it has.
    pub fn failed(&mut self, reason: String, settings: &SwitchSettings) {
        self.unanswered += 1;
        if self.unanswered > 1 || self.opinion == Opinion::Unknown {
            self.opinion = Opinion::Silent(reason);
        }
        self.note(settings);
    }

    /// Notes whether it is well.
    fn note(&mut self, settings: &SwitchSettings) {
        if self.is_well(settings) {
            self.well_since.get_or_insert_with(Instant::now);
        } else {
            self.well_since = None;
            let differs = matches!(self.opinion, Opinion::Compared(Agreement::Differs(_)));
            let probation = if differs { settings.repented } else { settings.well };
            self.probation = self.probation.max(probation);
        }
    }

    /// It is left: it has to be well for a while before it is followed again, for twice as long where it was followed
    /// only for a short time since.
    pub fn begin_probation(&mut self, settings: &SwitchSettings, is_soon: bool) {
        let refutation = match &self.opinion {
            Opinion::Lies(reason) => Some(reason.clone()),
            Opinion::Compared(Agreement::Differs(difference)) => Some(difference.to_string()),
            _ => None,
        };
        let (least, most) = match refutation {
            Some(_) => (settings.repented, settings.repented * 24),
            None => (settings.well, settings.well * 12),
        };
        let again = is_soon && !self.probation.is_zero();
        self.probation = if again { (self.probation * 2).clamp(least, most) } else { least };
        self.refuted = self.refuted.take().or(refutation);
        self.well_since = None;
    }

    /// One that was refuted and has been well for long enough is like any other.
    pub fn end_probation(&mut self) {
        if !self.is_on_probation() {
            self.refuted = None;
        }
    }

    /// Whether it has to be well for longer.
    pub fn is_on_probation(&self) -> bool {
        match self.well_since {
            Some(since) => since.elapsed() < self.probation,
            None => !self.probation.is_zero(),
        }
    }

    /// Whether it is not to be followed whatever it has.
    pub fn is_refuted(&self) -> bool {
        self.refuted.is_some()
    }

    /// Whether it has what is held here, but what may still be on its way there.
    pub fn is_well(&self, settings: &SwitchSettings) -> bool {
        match &self.opinion {
            // Clocks may jump.
            Opinion::Compared(Agreement::Lacks { received_ago, .. }) => {
                let is_new = self.lacks.is_none_or(|(_, since)| since.elapsed() < settings.behind);
                *received_ago < settings.behind && is_new
            }
            opinion => self.has_all() && self.unanswered < 2 && *opinion != Opinion::Unknown,
        }
    }

    /// Whether it has all that is held here up to the cursor, under whatever numbers.
    pub fn has_all(&self) -> bool {
        matches!(self.opinion, Opinion::Compared(Agreement::Same { .. } | Agreement::SameByCid(_)))
    }

    /// Which numbers it has, as far as that is known.
    pub fn numbering(&self) -> Numbering {
        match &self.opinion {
            Opinion::Compared(
                Agreement::SameByCid(numbering) | Agreement::Lacks { numbering, .. },
            ) => *numbering,
            _ => Numbering::Ours,
        }
    }

    /// Whether it has stated our numbers: other ones are no numbers of its own then.
    pub fn has_stated_ours(&self) -> bool {
        self.has_stated_ours
    }

    /// The number that comes after the cursor there.
    pub fn next(&self) -> Option<i64> {
        match &self.opinion {
            Opinion::Compared(Agreement::Same { next }) => *next,
            _ => None,
        }
    }

    /// How it stands with it, and why.
    pub fn standing(&self, followed: bool, settings: &SwitchSettings) -> (Standing, String) {
        if let Some(reason) = self.refuted.as_ref().filter(|_| !followed) {
            return (Standing::Refuted, reason.clone());
        }
        let (standing, reason) = match &self.opinion {
            Opinion::Unknown => (Standing::Unknown, String::new()),
            Opinion::Silent(reason) => (Standing::Away, format!("does not answer: {reason}")),
            Opinion::Lies(reason) => (Standing::Refuted, reason.clone()),
            Opinion::Behind(number) => {
                (Standing::Behind, format!("does not have number {number}, which another one has"))
            }
            Opinion::Compared(Agreement::Differs(difference)) => {
                (Standing::Refuted, difference.to_string())
            }
            Opinion::Compared(Agreement::Lacks { from, .. }) if !self.is_well(settings) => {
                (Standing::Behind, format!("has nothing from number {from} on"))
            }
            Opinion::Compared(
                Agreement::SameByCid(numbering)
                | Agreement::Lacks {
                    numbering: numbering @ (Numbering::Own | Numbering::Absent),
                    ..
                },
            ) => {
                let how = match numbering {
                    Numbering::Absent => "without numbers",
                    Numbering::Ours | Numbering::Own => "under numbers of its own",
                };
                let reason = format!("has the log that is held here {how}: it is read by time");
                (Standing::OwnNumbers, reason)
            }
            Opinion::Compared(_) => (Standing::Ready, String::new()),
        };
        let is_followed =
            followed && !matches!(self.opinion, Opinion::Lies(_) | Opinion::Behind(_));
        (if is_followed { Standing::Followed } else { standing }, reason)
    }

    /// Keeps both sides of a difference as a record, which is closed when there is none any more. Another log differs in
    /// all that comes: of that the first is enough.
    pub async fn record(&mut self, store: &Store) -> Result<(), StoreError> {
        let Opinion::Compared(agreement) = &self.opinion else { return Ok(()) };
        let (base, kind) = (self.client.base(), DivergenceKind::RestatedSequence.name());
        match (agreement, self.recorded) {
            (Agreement::Differs(difference), None) => {
                let held = store.sequences(&[difference.sequence]).await?;
                // Where there are no numbers it is another log, as far as that can be told.
                let Some(held) = held.first() else { return Ok(()) };
                let did = held.did.to_string();
                let record = NewDivergence {
                    source: base.to_owned(),
                    did: did.clone(),
                    kind: kind.to_owned(),
                    subject: held.cid().to_string(),
                    ours: Some(audit_log(&store.history(&held.did).await?)),
                    theirs: difference.line.clone(),
                };
                store.note_divergences(base, &did, &[], &[record], clock::now()).await?;
                self.recorded = Some(held.did);
            }
            (Agreement::Same { .. } | Agreement::SameByCid(_), Some(did)) => {
                let did = did.to_string();
                store.note_divergences(base, &did, &[kind], &[], clock::now()).await?;
                self.recorded = None;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Limits;
    use tokio::time::advance;

    fn candidate() -> Candidate {
        Candidate::new(ExportClient::new("http://a", 0, "test", Limits::default()).unwrap())
    }

    fn lacks(from: i64) -> Agreement {
        let (received_ago, numbering) = (Duration::ZERO, Numbering::Ours);
        Agreement::Lacks { from, received_ago, is_all: false, numbering }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_grows_is_not_behind_and_one_that_stands_still_is() {
        let settings = SwitchSettings::default();
        let mut candidate = candidate();
        for cursor in [10, 20, 30, 40] {
            candidate.compared(lacks(cursor - 2), cursor, &settings);
            assert!(candidate.is_well(&settings));
            advance(settings.behind - Duration::from_secs(1)).await;
        }
        // It has come to what it lacked, and lacks what is new; or it has not.
        candidate.compared(lacks(41), 50, &settings);
        assert!(candidate.is_well(&settings));
        advance(settings.behind).await;
        candidate.compared(lacks(45), 60, &settings);
        assert!(!candidate.is_well(&settings));
        assert_eq!(candidate.standing(false, &settings).0, Standing::Behind);
        // Where it has none of the newest, what it lacks first is another one each time that the log grows.
        let mut stuck = super::Candidate::new(candidate.client.clone());
        for cursor in [100, 200, 300] {
            let (from, received_ago) = (cursor - 29, Duration::ZERO);
            stuck.compared(
                Agreement::Lacks { from, received_ago, is_all: true, numbering: Numbering::Ours },
                cursor,
                &settings,
            );
            advance(settings.behind / 2).await;
        }
        assert!(!stuck.is_well(&settings));
        // Whatever the clock says, what was received long ago is on its way no more.
        let old = Agreement::Lacks {
            from: 99,
            received_ago: settings.behind,
            is_all: false,
            numbering: Numbering::Ours,
        };
        candidate.compared(old, 99, &settings);
        assert!(!candidate.is_well(&settings));
    }

    #[tokio::test(start_paused = true)]
    async fn it_has_to_be_well_for_twice_as_long_each_time() {
        let settings = SwitchSettings::default();
        let mut candidate = candidate();
        // Nothing is held against one that is new.
        assert!(!candidate.is_on_probation());
        let same = Agreement::Same { next: None };
        for minutes in [5, 10, 20, 40, 60, 60] {
            candidate.begin_probation(&settings, minutes > 5);
            candidate.compared(same.clone(), 1, &settings);
            advance(Duration::from_secs(60 * minutes - 1)).await;
            assert!(candidate.is_on_probation(), "{minutes}");
            // Once is nothing, and twice begins anew.
            candidate.failed("silent".to_owned(), &settings);
            assert!(candidate.is_well(&settings));
            advance(Duration::from_secs(1)).await;
            assert!(!candidate.is_on_probation(), "{minutes}");
        }
        candidate.begin_probation(&settings, false);
        candidate.compared(same.clone(), 1, &settings);
        advance(settings.well - Duration::from_secs(1)).await;
        candidate.failed("silent".to_owned(), &settings);
        candidate.failed("silent".to_owned(), &settings);
        candidate.compared(same, 1, &settings);
        advance(settings.well - Duration::from_secs(1)).await;
        assert!(candidate.is_on_probation());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_refuted_is_so_until_it_was_well_for_long() {
        let settings = SwitchSettings::default();
        let mut candidate = candidate();
        candidate.opinion = Opinion::Lies("lies".to_owned());
        candidate.begin_probation(&settings, true);
        candidate.compared(Agreement::Same { next: None }, 1, &settings);
        candidate.end_probation();
        assert_eq!(candidate.standing(false, &settings), (Standing::Refuted, "lies".to_owned()));
        advance(settings.repented).await;
        candidate.end_probation();
        assert_eq!(candidate.standing(false, &settings), (Standing::Ready, String::new()));
    }
}
