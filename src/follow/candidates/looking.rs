//! What is found out of the upstreams by asking them, and which one is to be followed as it stands.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, timeout};

use super::Candidates;
use crate::follow::agreement::{Agreement, AskError, Newest};
use crate::follow::candidate::Opinion;
use crate::live::Mode;
use crate::store::{Source, Store, StoreError};

/// How long an answer to a comparison is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

impl Candidates {
    /// Asks these for the newest of what is held.
    pub(super) async fn look(&mut self, store: &Store, places: &[usize]) -> Result<(), StoreError> {
        let newest = Newest::read(store).await?;
        let answers = join_all(places.iter().map(|place| {
            let client = &self.all[*place].client;
            let has_stated_ours = self.all[*place].has_stated_ours();
            timeout(PATIENCE, newest.ask(store, client, has_stated_ours))
        }));
        let answers = answers.await;
        for (&place, answer) in places.iter().zip(answers) {
            let candidate = &mut self.all[place];
            match answer {
                Ok(Ok(agreement)) => {
                    candidate.compared(agreement, newest.cursor(), &self.settings);
                }
                Ok(Err(AskError::Store(error))) => return Err(error),
                // Of the one that is followed its reader says it.
                _ if self.followed == Some(place) => {}
                Ok(Err(fault)) => candidate.failed(fault.to_string(), &self.settings),
                Err(_) => {
                    let silence = format!("there was no answer within {PATIENCE:?}");
                    candidate.failed(silence, &self.settings);
                }
            }
            candidate.record(store).await?;
        }
        if let Some(place) = self.followed {
            // What was believed without the others is not any more, once it is held.
            self.alone &= self.all.len() == 1 || !self.all[place].has_all();
        }
        self.state();
        Ok(())
    }

    /// Whether another one has for too long what the one that is followed has not brought.
    pub(super) fn look_ahead(&mut self) {
        // By time the cursor does not move.
        let Some(followed) = self.followed.filter(|_| self.numbering.is_ours()) else { return };
        let cursor = self.status.sequence();
        let is_live = self.status.mode() == Mode::Live;
        self.ahead = self.ahead.filter(|(number, _)| is_live && *number > cursor);
        if let Some((number, since)) = self.ahead {
            if since.elapsed() >= self.settings.behind {
                self.all[followed].opinion = Opinion::Behind(number);
            }
            return;
        }
        let others = self.all.iter().enumerate().filter(|(place, _)| *place != followed);
        let next = others.filter_map(|(_, other)| other.next()).filter(|next| *next > cursor).min();
        self.ahead = next.filter(|_| is_live).map(|next| (next, Instant::now()));
    }

    /// Which one is to be followed as it stands; none where none is well. One that would give other numbers, or none, is
    /// followed while there is no other that is to be trusted.
    pub(super) fn choice(&self) -> Option<usize> {
        let well = || (0..self.all.len()).filter(|place| self.is_well(*place));
        let is_trusted =
            |place: &usize| self.followed == Some(*place) || !self.all[*place].is_on_probation();
        let has_ours = |place: &usize| self.all[*place].numbering().is_ours();
        let trusted = well().filter(has_ours).find(is_trusted);
        trusted.or_else(|| well().find(is_trusted)).or_else(|| well().next())
    }

    pub(super) fn is_well(&self, place: usize) -> bool {
        let is_away = self.followed == Some(place) && self.away().is_some();
        !is_away && !self.all[place].is_refuted() && self.all[place].is_well(&self.settings)
    }

    /// Why the one that is followed is away, if it is.
    pub(super) fn away(&self) -> Option<String> {
        let (failing, fault) = self.contact.failing()?;
        (failing >= self.settings.away).then_some(fault)
    }

    /// The one that was followed last, once what it states is to be believed though nobody bears out what is held:
    /// another one states the same, or nobody has said anything else for long.
    pub(super) fn last_resort(&self, source: &Source, waited: Duration) -> Option<usize> {
        let place = self.all.iter().position(|it| it.client.base() == source.upstream)?;
        let opinion = &self.all[place].opinion;
        let Opinion::Compared(agreement) = opinion else { return None };
        let others = || {
            let others = self.all.iter().enumerate().filter(|(other, _)| *other != place);
            others.map(|(_, other)| &other.opinion)
        };
        let is_borne_out = match agreement {
            Agreement::Differs(_) => others().any(|other| other == opinion),
            // Who is away may have what all others lack.
            Agreement::Lacks { from: ours, .. } => others().all(|other| {
                matches!(other, Opinion::Compared(Agreement::Lacks { from, .. }) if from == ours)
            }),
            Agreement::Same { .. } | Agreement::SameByCid(_) => false,
        };
        (is_borne_out || waited >= self.settings.alone).then_some(place)
    }
}
