//! The upstreams that can be followed, in order of preference, and which of them is.
//!
//! What is held here is the measure: all of it was verified, and was stated by one that was followed. Each upstream is
//! asked now and then for the newest of it ([`Newest`]). Who has all of it can be followed from the stored cursor on,
//! whoever it came from. Who lacks the end of it is behind, and is not followed before it has caught up: what it brings
//! would be read twice, and its end be taken for a loss. Who states something else while another one bears out what is
//! held is refuted. Where nobody bears it out, all of them may be right, as after the restore of a backup that all
//! others have followed: then the one that was followed last is followed on, as if there were no other.
//!
//! The first in order that is well is followed, and none is left for one that is less preferred while it is well. One
//! that was not well has to be so for a while before it is returned to, and twice as long each time it does not last.
//!
//! Who has all of it by its CIDs, under numbers of its own or without any, is followed by time while nobody with our
//! numbers is to be trusted (`time_reader.rs`): the cursor waits, and the numbers come later.
//!
//! Nothing of this is stored but which upstream was followed last, and that after the comparison: a process that ends at
//! any point begins with a comparison.

mod looking;
mod reporting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::follow::agreement::Agreement;
use crate::follow::candidate::{Candidate, Opinion};
use crate::follow::contact::Contact;
use crate::follow::numbering::Numbering;
use crate::follow::switching::SwitchSettings;
use crate::live::{Mode, Standing, Status};
use crate::store::{Lease, Source, Store, StoreError};
use crate::upstream::ExportClient;

/// Between two looks at whether the one that is followed is still well.
const TICK: Duration = Duration::from_secs(1);
/// Lines within an hour that do not verify, where another upstream has others that do, until an upstream is refuted: one
/// may be a damaged row.
const MISSTATED: usize = 3;
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The upstreams of one follower.
pub struct Candidates {
    /// In order of preference.
    all: Vec<Candidate>,
    settings: SwitchSettings,
    status: Arc<Status>,
    /// The one that is followed; none while it is to be chosen.
    followed: Option<usize>,
    /// Which numbers that one has.
    numbering: Numbering,
    /// It is followed though nobody bears out what it states, or there is no other.
    alone: bool,
    contact: Arc<Contact>,
    /// A number that another one has and the followed one has not brought, and when it was seen there.
    ahead: Option<(i64, Instant)>,
    /// When what the followed one stated did not verify, and what another one did.
    misstated: VecDeque<Instant>,
}

/// The one that is followed, for as long as a session lasts.
#[derive(Debug, Clone)]
pub struct Followed {
    /// It.
    pub client: ExportClient,
    /// Which numbers it has.
    pub numbering: Numbering,
    /// The others, who are asked before what does not fit is believed, in order of preference.
    pub others: Vec<ExportClient>,
    /// Who is told how it answers.
    pub contact: Arc<Contact>,
    /// It is believed without asking the others.
    pub alone: bool,
}

impl Candidates {
    /// These, of which nothing is known yet. With one there is nothing to choose.
    pub fn new(
        clients: &[ExportClient],
        settings: SwitchSettings,
        status: &Arc<Status>,
    ) -> Candidates {
        let all: Vec<Candidate> = clients.iter().cloned().map(Candidate::new).collect();
        let only = (all.len() == 1).then_some(0);
        Candidates {
            all,
            settings,
            status: Arc::clone(status),
            followed: only,
            numbering: Numbering::Ours,
            alone: only.is_some(),
            contact: Arc::new(Contact::new()),
            ahead: None,
            misstated: VecDeque::new(),
        }
    }

    /// The one that is followed, or was last, or is preferred.
    pub fn client(&self) -> &ExportClient {
        &self.all[self.followed.unwrap_or(self.status.upstreams().followed())].client
    }

    /// All but that one, in order of preference.
    pub fn others(&self) -> Vec<ExportClient> {
        let base = self.client().base();
        let others = self.all.iter().map(|candidate| &candidate.client);
        others.filter(|client| client.base() != base).cloned().collect()
    }

    /// Those of the others that are well and have our numbers.
    pub fn well(&self) -> Vec<ExportClient> {
        let others = (0..self.all.len()).filter(|place| self.followed != Some(*place));
        let well = others.filter(|place| self.is_well(*place));
        let well = well.filter(|place| self.all[*place].numbering().is_ours());
        well.map(|place| self.all[place].client.clone()).collect()
    }

    /// What a session with that one works with.
    pub fn followed(&self) -> Followed {
        Followed {
            client: self.client().clone(),
            numbering: self.numbering,
            others: self.others(),
            contact: Arc::clone(&self.contact),
            alone: self.alone,
        }
    }

    /// Whether nobody else has a say in what the one that is followed states.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Makes sure that one is followed which has the log that is held here, and that the store remembers it as the
    /// one. False when asked to end before there was one. A crash leaves the upstream of before, and the choice is made
    /// again.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn choose(
        &mut self,
        (store, lease): (&Store, &Lease),
        source: &Source,
        shutdown: &CancellationToken,
    ) -> Result<bool, StoreError> {
        // Another process may have followed another one meanwhile.
        let followed = self.followed.map(|place| self.all[place].client.base());
        let is_only = self.all.len() == 1 || !self.numbering.is_ours();
        if followed.is_some_and(|base| base == source.upstream || is_only) {
            return Ok(true);
        }
        (self.followed, self.alone) = (None, false);
        let begun = Instant::now();
        let mut said = false;
        let everybody: Vec<usize> = (0..self.all.len()).collect();
        let chosen = loop {
            self.look(store, &everybody).await?;
            let pause = match self.choice() {
                Some(place) if self.all[place].has_all() => break place,
                // What it lacks was received a moment ago.
                Some(_) if begun.elapsed() < self.settings.away => {
                    TICK.min(self.settings.away / 10)
                }
                Some(place) => {
                    self.all[place].begin_probation(&self.settings, true);
                    self.settings.look / 10
                }
                None => {
                    if let Some(place) = self.last_resort(source, begun.elapsed()) {
                        self.alone = true;
                        break place;
                    }
                    if !std::mem::replace(&mut said, true) {
                        self.say_that_there_is_none(source);
                    }
                    self.settings.look / 10
                }
            };
            self.status.set_mode(Mode::Waiting);
            if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(false);
            }
        };
        self.numbering = self.all[chosen].numbering();
        let base = self.all[chosen].client.base().to_owned();
        // The numbers that are held stay those of the upstream of before where it has others.
        if self.numbering.is_ours() && base != source.upstream {
            store.set_upstream(lease, &base).await?;
        }
        self.follow(chosen);
        Ok(true)
    }

    /// Watches while one is followed, until another one is to be: it is not well any more, or one that is preferred to it
    /// is. May be dropped at any time.
    pub async fn watch(&mut self, store: &Store) {
        let mut next_look = Instant::now();
        loop {
            sleep(TICK.min(self.settings.look / 10)).await;
            self.state();
            let is_well = self.contact.failing().is_none();
            let pause = if is_well { self.settings.look } else { self.settings.look / 10 };
            next_look = next_look.min(Instant::now() + pause);
            if self.all.len() == 1 || Instant::now() < next_look {
                continue;
            }
            next_look = Instant::now() + pause;
            // The one that is followed is not troubled while its reader gets no answer either.
            let places =
                (0..self.all.len()).filter(|place| is_well || Some(*place) != self.followed);
            let places: Vec<usize> = places.collect();
            if let Err(error) = self.look(store, &places).await {
                tracing::debug!("the upstreams cannot be compared with what is held: {error}");
                continue;
            }
            self.look_ahead();
            self.state();
            if self.is_read_otherwise() {
                return;
            }
            let Some(choice) = self.choice().filter(|choice| Some(*choice) != self.followed) else {
                continue;
            };
            // One that is preferred is not waited for while another one is well.
            let is_well = self.followed.is_some_and(|place| self.is_well(place));
            if !is_well || self.all[choice].has_all() {
                return;
            }
        }
    }

    /// Whether the one that is followed is read by time, and states our numbers now.
    fn is_read_otherwise(&self) -> bool {
        let followed = self.followed.map(|place| &self.all[place]);
        !self.numbering.is_ours()
            && followed.is_some_and(|it| it.has_all() && it.numbering().is_ours())
    }

    /// Whether the one that is followed has what it gave us; if not, another one is to be chosen.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn still_has_all(&mut self, store: &Store) -> Result<bool, StoreError> {
        if let Some(place) = self.followed {
            // What was known of it is of no use.
            self.all[place].opinion = Opinion::Unknown;
        }
        let everybody: Vec<usize> = (0..self.all.len()).collect();
        self.look(store, &everybody).await?;
        let has_all = self.followed.is_some_and(|place| {
            self.all[place].has_all() && self.all[place].numbering().is_ours()
        });
        if !has_all {
            self.leave();
        }
        Ok(has_all)
    }

    /// The one that is followed turned out to have these numbers: it is read otherwise from here on where there is no other,
    /// and else the choice is made again.
    pub fn turn_to(&mut self, numbering: Numbering) {
        if self.all.len() > 1 {
            (self.followed, self.alone) = (None, false);
            self.numbering = Numbering::Ours;
            self.misstated.clear();
            return;
        }
        self.numbering = numbering;
        self.all[0].opinion = Opinion::Compared(match numbering {
            Numbering::Ours => Agreement::Same { next: None },
            other => Agreement::SameByCid(other),
        });
    }

    /// The cursor was put back to what the one that is followed has.
    pub fn has_stepped_back(&mut self) {
        if let Some(place) = self.followed {
            self.all[place].opinion = Opinion::Compared(Agreement::Same { next: None });
            self.contact.well_at(Instant::now());
            self.alone = self.all.len() == 1;
        }
    }

    /// The one that is followed has stated so many lines that do not verify, where another one states some that do. True
    /// when it is refuted by that, and another one is to be chosen.
    pub fn misstates(&mut self, lines: usize, other: &str) -> bool {
        let now = Instant::now();
        self.misstated.extend(std::iter::repeat_n(now, lines.min(MISSTATED)));
        self.misstated.retain(|at| at.elapsed() < HOUR);
        let refuted = self.misstated.len() >= MISSTATED;
        if refuted {
            self.refute(format!(
                "states what does not verify, where {other} states under the same numbers what does"
            ));
        }
        refuted
    }

    /// The one that is followed was found to lie.
    pub fn refute(&mut self, reason: String) {
        if let Some(place) = self.followed {
            self.all[place].opinion = Opinion::Lies(reason);
        }
        self.leave();
    }

    /// Another one than the one that is followed is to be chosen.
    pub fn leave(&mut self) {
        let Some(place) = self.followed.filter(|_| self.all.len() > 1) else { return };
        let upstream = self.all[place].client.base().to_owned();
        let (standing, reason) = self.standing(place);
        if standing == Standing::Followed && self.all[place].has_all() {
            tracing::warn!(
                "{upstream} is left for an upstream that is preferred, and is well again"
            );
        } else {
            let reason = if reason.is_empty() { "does not have what it gave us" } else { &reason };
            tracing::warn!("{upstream} is left: it {reason}");
            let is_soon = self.all[place].followed_at.is_some_and(|at| at.elapsed() < HOUR);
            if let Some(fault) = self.away() {
                self.all[place].opinion = Opinion::Silent(fault);
            }
            self.all[place].begin_probation(&self.settings, is_soon);
        }
        (self.followed, self.alone) = (None, false);
        self.numbering = Numbering::Ours;
        self.misstated.clear();
    }

    /// From here on this one is followed, which was compared with what is held.
    fn follow(&mut self, place: usize) {
        let upstreams = self.status.upstreams();
        if upstreams.followed() != place {
            metrics::counter!("plc_upstream_switches_total").increment(1);
        }
        upstreams.set_followed(place);
        self.followed = Some(place);
        self.contact = Arc::new(Contact::new());
        self.ahead = None;
        let chosen = &mut self.all[place];
        chosen.followed_at = Some(Instant::now());
        let upstream = chosen.client.base();
        if self.alone {
            tracing::warn!(
                "following {upstream}, though no other upstream bears out what it states"
            );
        } else {
            let (_, reason) = chosen.standing(true, &self.settings);
            let reason = if reason.is_empty() { "has the log that is held here" } else { &reason };
            tracing::info!("following {upstream}, which {reason}");
        }
        self.state();
    }
}
